//! What real clients and a real PostgreSQL 15 said to each other (golden/*.bin, made by golden/record.sh), played through
//! the codec: logins are reproduced byte for byte, sessions give the events written here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)] // a test: to panic is to fail

mod recording;

use bytes::Bytes;
use hoop_proto::dialogue::Dialogue;
use hoop_proto::postgres::connect::{Connect, ConnectOptions, Step, TlsMode};
use hoop_proto::postgres::session::{Limits, Session};
use recording::{Side, records, told};

/// The SCRAM nonce that the client chose in this recording.
fn nonce(records: &[(Side, Bytes)]) -> String {
    records
        .iter()
        .filter(|(side, _)| *side == Side::Client)
        .find_map(|(_, bytes)| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.split_once("n,,n=,r=").map(|(_, nonce)| nonce.to_owned())
        })
        .unwrap_or_default()
}

/// Plays the login with our own `Connect` in the client's place: it must say what the client said. Gives the end, and
/// how many records it took.
fn login(records: &[(Side, Bytes)], user: &str, password: &str, database: &str) -> (Step, usize) {
    let options = ConnectOptions {
        user: user.into(),
        password: Some(String::from(password).into()),
        database: database.into(),
        parameters: vec![("application_name".into(), "golden".into())],
        minor: 0,
        tls: TlsMode::Disable,
        allow_cleartext_login: true,
    };
    let mut connect = Connect::with_nonce(options, &nonce(records));
    for (index, (side, bytes)) in records.iter().enumerate() {
        match side {
            Side::Client => assert_eq!(connect.step(), Step::Send(bytes.clone()), "record {index}: {bytes:?}"),
            Side::Target => {
                assert_eq!(connect.step(), Step::Need);
                connect.receive(bytes);
                // Peek: an end is the last thing the machine says.
                if bytes.first() == Some(&b'E') || bytes.windows(9).any(|window| window == b"R\0\0\0\x08\0\0\0\0") {
                    return (connect.step(), index + 1);
                }
            }
        }
    }
    panic!("the recording ends within the login")
}

/// Plays a whole recording of user postgres; gives the session's events as text.
fn play(name: &str) -> Vec<String> {
    let records = records(name);
    let (step, taken) = login(&records, "postgres", "secret", "postgres");
    let Step::Ready {
        greeting,
        process_id,
        secret,
        minor: 0,
        rest,
    } = step
    else {
        panic!("{step:?}")
    };
    assert!(greeting.starts_with(b"S") && process_id > 0 && secret.len() == 4 && rest.is_empty());
    let mut session = Session::new(Limits::default());
    let mut lines = Vec::new();
    for (side, bytes) in &records[taken..] {
        let batch = match side {
            Side::Client => session.client(bytes.clone()).unwrap(),
            Side::Target => session.target(bytes.clone()).unwrap(),
        };
        assert_eq!(
            (batch.bytes.as_ptr(), batch.bytes.len()),
            (bytes.as_ptr(), bytes.len()),
            "not the same bytes"
        );
        lines.extend(told(&batch));
        if *side == Side::Client {
            assert_eq!(session.apply(batch, &[]).target.as_slice(), std::slice::from_ref(bytes));
        }
    }
    assert!(session.idle());
    assert!(session.unanswered().is_empty());
    lines
}

#[test]
fn psql_with_simple_queries() {
    let expected = [
        "statement 1 query: select 1 as one;",
        "output 1: 41 bytes, 1 rows",
        "outcome 1 ok: SELECT 1, 1 rows, 41 bytes",
        "statement 2 query: select generate_series(1, 3), null::int;",
        "output 2: 112 bytes, 3 rows",
        "outcome 2 ok: SELECT 3, 3 rows, 112 bytes",
        "statement 3 query: select 'a' ; select 'b' union all select 'c';",
        "output 3: 46 bytes, 1 rows",
        "output 3: 58 bytes, 2 rows",
        "outcome 3 ok: SELECT 2, 3 rows, 104 bytes",
        "statement 4 query: select * from missing;",
        "outcome 4 error: , 0 rows, 0 bytes, 42P01 relation \"missing\" does not exist",
        "statement 5 query: do $$ begin raise notice 'mind the gap'; end $$;",
        "notice: NOTICE: mind the gap",
        "outcome 5 ok: DO, 0 rows, 0 bytes",
        "statement 6 query: listen jobs;",
        "outcome 6 ok: LISTEN, 0 rows, 0 bytes",
        "statement 7 query: notify jobs, 'done';",
        "notify: jobs from N: done",
        "outcome 7 ok: NOTIFY, 0 rows, 0 bytes",
        "statement 8 query: set timezone to 'UTC';",
        "parameter: TimeZone = UTC",
        "outcome 8 ok: SET, 0 rows, 0 bytes",
        "statement 9 query: begin;",
        "outcome 9 ok: BEGIN, 0 rows, 0 bytes",
        "statement 10 query: select 1/0;",
        "outcome 10 error: , 0 rows, 0 bytes, 22012 division by zero",
        "statement 11 query: select 2;",
        "outcome 11 error: , 0 rows, 0 bytes, 25P02 current transaction is aborted, commands ignored until end of \
         transaction block",
        "statement 12 query: rollback;",
        "outcome 12 ok: ROLLBACK, 0 rows, 0 bytes",
    ];
    assert_eq!(play("simple"), expected);
}

#[test]
fn psql_with_copy_in_and_out() {
    let expected = [
        "statement 1 query: COPY  golden FROM STDIN csv",
        "input 1: 25 bytes, 1 rows",
        "outcome 1 ok: COPY 3, 0 rows, 0 bytes",
        "statement 2 query: copy golden to stdout;",
        "output 2: 52 bytes, 3 rows",
        "outcome 2 ok: COPY 3, 3 rows, 52 bytes",
        "statement 3 query: COPY  golden FROM STDIN csv",
        "input 3: 25 bytes, 1 rows",
        "outcome 3 error: , 0 rows, 0 bytes, 23505 duplicate key value violates unique constraint \"golden_pkey\"",
    ];
    assert_eq!(play("copy"), expected);
}

#[test]
fn pgbench_with_prepared_statements() {
    let one = |id: u32| {
        [
            format!("statement {id} execute P_0: select $1, name from golden where id < $2; (7, 7)"),
            format!("output {id}: 116 bytes, 3 rows"),
            format!("outcome {id} ok: SELECT 3, 3 rows, 116 bytes"),
        ]
    };
    let mut expected = vec![
        "prepared 1 parse P_0: select $1, name from golden where id < $2;".to_owned(),
        "outcome 1 ok: , 0 rows, 0 bytes".to_owned(),
    ];
    expected.extend([one(2), one(3), one(4)].concat());
    assert_eq!(play("prepared"), expected);
}

#[test]
fn pgbench_with_unnamed_statements() {
    let one = |id: u32| {
        [
            format!("statement {id} execute: select $1, name from golden where id < $2; (7, 7)"),
            format!("output {id}: 116 bytes, 3 rows"),
            format!("outcome {id} ok: SELECT 3, 3 rows, 116 bytes"),
        ]
    };
    assert_eq!(play("extended"), [one(1), one(2)].concat());
}

#[test]
fn pgbench_with_an_error_in_a_pipeline() {
    let expected = [
        "statement 1 execute: select 1;",
        "statement 2 execute: select 2;",
        "output 1: 46 bytes, 1 rows",
        "outcome 1 ok: SELECT 1, 1 rows, 46 bytes",
        "output 2: 46 bytes, 1 rows",
        "outcome 2 ok: SELECT 1, 1 rows, 46 bytes",
        "statement 3 execute: select 3;",
        "statement 4 execute: select 1/0;",
        "statement 5 execute: select 4;",
        "output 3: 46 bytes, 1 rows",
        "outcome 3 ok: SELECT 1, 1 rows, 46 bytes",
        "outcome 4 error: , 0 rows, 0 bytes, 22012 division by zero",
        "outcome 5 skipped: , 0 rows, 0 bytes",
    ];
    assert_eq!(play("pipeline"), expected);
}

#[test]
fn a_wrong_password_and_a_wrong_database_keep_their_codes() {
    let (step, _) = login(&records("wrong_password"), "postgres", "wrong", "postgres");
    let Step::Failed(refusal) = step else {
        panic!("{step:?}")
    };
    assert_eq!(refusal.sqlstate(), "28P01");
    assert_eq!(
        refusal.message,
        "the target refused the login: password authentication failed for user \"…\""
    );
    let (step, _) = login(&records("wrong_database"), "postgres", "secret", "missing");
    let Step::Failed(refusal) = step else {
        panic!("{step:?}")
    };
    assert_eq!(
        (refusal.sqlstate(), refusal.message.as_str()),
        (
            "3D000",
            "the target refused the login: database \"missing\" does not exist"
        )
    );
}

#[test]
fn an_md5_login_is_reproduced() {
    let (step, _) = login(&records("md5"), "golden_md5", "secret", "postgres");
    assert!(matches!(step, Step::Ready { .. }), "{step:?}");
}
