//! How fuzzed bytes enter the PostgreSQL codec. Shared by the fuzz targets and by `proto/tests/replay_crashes.rs`.
//!
//! The first byte of an input chooses how the rest is cut into batches; everything else is what a peer sends.

use bytes::Bytes;
use hoop_proto::dialogue::Dialogue;
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::Event;
use hoop_proto::postgres::accept::{self, Accept, AcceptOptions, Verifier};
use hoop_proto::postgres::connect::{self, Connect, ConnectOptions, TlsMode};
use hoop_proto::postgres::sample;
use hoop_proto::postgres::session::{Limits, Session};

/// Steps of one machine without input between them: more is a loop.
const MAX_STEPS: usize = 16;

/// Batches of 1 to 64 bytes, or all at once.
fn batches(data: &[u8]) -> (u8, impl Iterator<Item = &[u8]>) {
    let (choice, rest) = data.split_first().map_or((0, data), |(choice, rest)| (*choice, rest));
    let size = if choice & 0x80 == 0 {
        rest.len().max(1)
    } else {
        usize::from(choice & 0x3f) + 1
    };
    (choice, rest.chunks(size))
}

/// A client before it has proved itself.
pub fn pg_accept(data: &[u8]) {
    let (choice, batches) = batches(data);
    let mut accept = Accept::new(AcceptOptions {
        tls: choice & 1 != 0,
        mock_key: [7; 32],
        on_tls_direct: choice & 2 != 0,
        credentials_url: String::new(),
    });
    let verifier = Verifier {
        salt: vec![1; 16],
        iterations: 4096,
        stored_key: [2; 32],
        server_key: [3; 32],
    };
    for batch in batches {
        accept.receive(batch);
        for step in 0.. {
            assert!(step < MAX_STEPS, "the machine does not wait");
            match accept.step() {
                accept::Step::Need => break,
                accept::Step::Send(bytes) => assert!(!bytes.is_empty()),
                accept::Step::StartTls => accept.tls_started((choice & 4 != 0).then(|| vec![9; 32])),
                accept::Step::Ask { .. } => accept.answer((choice & 8 != 0).then(|| verifier.clone())),
                accept::Step::Proved(_) => panic!("nobody knows the password"),
                accept::Step::Cancel { .. } | accept::Step::Failed { .. } => return,
            }
        }
    }
}

/// A target during the login.
pub fn pg_connect(data: &[u8]) {
    let (choice, batches) = batches(data);
    let tls = [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyFull];
    let options = ConnectOptions {
        user: "user".into(),
        password: (choice & 4 != 0).then(|| String::from("secret").into()),
        database: "database".into(),
        minor: u32::from(choice & 8) >> 2,
        tls: tls[usize::from(choice & 3)],
        allow_cleartext_login: choice & 16 != 0,
        ..ConnectOptions::default()
    };
    let mut connect = Connect::with_nonce(options, "nonce");
    for batch in batches {
        for step in 0.. {
            assert!(step < MAX_STEPS, "the machine does not wait");
            match connect.step() {
                connect::Step::Need => break,
                connect::Step::Send(bytes) => assert!(!bytes.is_empty()),
                connect::Step::StartTls => connect.tls_started(true, Some(vec![9; 32])),
                connect::Step::Ready { .. } | connect::Step::Failed(_) => return,
            }
        }
        // A server's iteration count costs up to half a second by design: not what is looked for.
        if batch.windows(3).any(|window| window == b",i=")
            && batch.len() > 9
            && !batch.windows(7).any(|w| w == b",i=4096")
        {
            return;
        }
        connect.receive(batch);
    }
    connect.step();
}

fn session() -> Session {
    // Bounds are small, so that they are met.
    Session::new(Limits {
        statement_bytes: 4096,
        prepared: 8,
        prepared_bytes: 4096,
        portals: 8,
        portal_bytes: 4096,
        unanswered: 64,
    })
}

/// A client after its login. Some of its statements are refused.
pub fn pg_session_client(data: &[u8]) {
    let (choice, batches) = batches(data);
    let mut session = session();
    for (turn, bytes) in batches.enumerate() {
        let Ok(batch) = session.client(Bytes::copy_from_slice(bytes)) else {
            return;
        };
        let mut refusals = Vec::new();
        for (index, event) in batch.events.iter().enumerate() {
            match event {
                Event::Statement(statement) => {
                    assert!(batch.bytes.get(statement.span.clone()).is_some());
                    if (statement.id + u64::from(choice)) % 3 == 0 {
                        refusals.push((index, Refusal::new(End::Refused, "no", "")));
                    }
                }
                Event::Input { span, .. } => {
                    assert!(batch.bytes.get(span.clone()).is_some());
                    if turn % 5 == 4 {
                        refusals.push((index, Refusal::new(End::Refused, "no", "")));
                    }
                }
                _ => {}
            }
        }
        session.apply(batch, &refusals);
        if turn % 4 == 3 {
            let answer = sample::extended_answer(choice & 1 != 0, 2, 3);
            if session.target(answer).is_err() {
                return;
            }
        }
    }
    session.unanswered();
}

/// A target after the login, with a pipeline before it.
pub fn pg_session_target(data: &[u8]) {
    let (choice, batches) = batches(data);
    let mut session = session();
    let sent = [
        sample::extended("", "select 1", true, &[Some("1")]),
        hoop_proto::postgres::encode::query("copy t from stdin"),
        sample::extended("s", "copy t from stdin", true, &[]),
        sample::copy_data(2, 10),
        sample::extended("s", "", false, &[None]),
    ];
    for bytes in sent {
        let Ok(batch) = session.client(bytes) else {
            panic!("a client's own messages are taken")
        };
        let refusals: &[_] = if choice & 1 == 0 {
            &[]
        } else {
            &[(0, Refusal::new(End::Refused, "no", ""))]
        };
        session.apply(batch, refusals);
    }
    for bytes in batches {
        let Ok(batch) = session.target(Bytes::copy_from_slice(bytes)) else {
            return;
        };
        for event in &batch.events {
            if let Event::Output { span, .. } = event {
                assert!(batch.bytes.get(span.clone()).is_some());
            }
        }
        session.notice("text", "hint");
    }
    session.unanswered();
}
