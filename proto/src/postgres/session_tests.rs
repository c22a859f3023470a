use super::super::encode::{query, single};
use super::super::error_response::{Report, fatal};
use super::super::sample;
use super::*;
use crate::end::End;
use crate::event::StatementKind;
use bytes::{BufMut, BytesMut};

fn session() -> Session {
    Session::new(Limits::default())
}

fn why() -> Refusal {
    Refusal::new(
        End::Refused,
        "not allowed here",
        "Ask for a review: https://hoop.example/r/1",
    )
}

fn parse(name: &str, text: &str) -> Bytes {
    single(b'P', |out| {
        super::super::encode::string(out, name.as_bytes());
        super::super::encode::string(out, text.as_bytes());
        out.put_u16(0);
    })
}

fn bind(portal: &str, statement: &str) -> Bytes {
    single(b'B', |out| {
        super::super::encode::string(out, portal.as_bytes());
        super::super::encode::string(out, statement.as_bytes());
        out.put_slice(&[0; 6]);
    })
}

fn execute(portal: &str) -> Bytes {
    single(b'E', |out| {
        super::super::encode::string(out, portal.as_bytes());
        out.put_u32(0);
    })
}

fn close(what: u8, name: &str) -> Bytes {
    single(b'C', |out| {
        out.put_u8(what);
        super::super::encode::string(out, name.as_bytes());
    })
}

fn sync() -> Bytes {
    single(b'S', |_| ())
}

fn complete(tag: &str) -> Bytes {
    single(b'C', |out| super::super::encode::string(out, tag.as_bytes()))
}

fn ready(status: u8) -> Bytes {
    super::super::encode::ready_for_query(status)
}

fn error(code: &str) -> Bytes {
    super::super::error_response::error_response(
        Severity::Error,
        &Refusal {
            end: End::Internal,
            message: "at fault".into(),
            hint: String::new(),
            code: code.into(),
        },
    )
}

fn bare(kind: u8) -> Bytes {
    single(kind, |_| ())
}

fn copy_in_response() -> Bytes {
    single(b'G', |out| out.put_slice(&[0, 0, 0]))
}

/// Sends these; every batch must be passed on as it is.
fn send(session: &mut Session, messages: &[Bytes]) -> Vec<Event> {
    let bytes = Bytes::from(messages.concat());
    let batch = session.client(bytes.clone()).unwrap();
    assert_eq!(
        (batch.bytes.as_ptr(), batch.bytes.len()),
        (bytes.as_ptr(), bytes.len()),
        "not the same bytes"
    );
    let events = batch.events.to_vec();
    let applied = session.apply(batch, &[]);
    assert_eq!(applied.target.as_slice(), [bytes]);
    events
}

/// Sends these and refuses every statement whose text begins with "drop".
fn send_refusing(session: &mut Session, messages: &[Bytes]) -> Applied {
    let batch = session.client(Bytes::from(messages.concat())).unwrap();
    let refused = |event: &Event| match event {
        Event::Statement(statement) => statement.text.starts_with(b"drop"),
        Event::Input { .. } => true,
        _ => false,
    };
    let refusals: Vec<_> = batch
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| refused(event))
        .map(|(index, _)| (index, why()))
        .collect();
    session.apply(batch, &refusals)
}

/// Answers with these; the batch must reach the client as it is.
fn answer(session: &mut Session, messages: &[Bytes]) -> Vec<Event> {
    let bytes = Bytes::from(messages.concat());
    let batch = session.target(bytes.clone()).unwrap();
    assert_eq!(
        (batch.bytes.as_ptr(), batch.bytes.len()),
        (bytes.as_ptr(), bytes.len()),
        "not the same bytes"
    );
    batch.events.to_vec()
}

fn outcomes(events: &[Event]) -> Vec<(StatementId, Status, &str, &str, u64)> {
    let mut outcomes = Vec::new();
    for event in events {
        if let Event::Outcome(it) = event {
            outcomes.push((it.statement, it.status, it.sqlstate.as_str(), it.tag.as_str(), it.rows));
        }
    }
    outcomes
}

fn texts(events: &[Event]) -> Vec<(StatementId, StatementKind, String)> {
    let text = |event: &Event| match event {
        Event::Statement(it) => Some((it.id, it.kind, String::from_utf8(it.text.to_vec()).unwrap())),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

#[test]
fn a_query_and_its_answer_pass_as_they_are() {
    let mut session = session();
    let events = send(&mut session, &[query("select 1")]);
    assert_eq!(texts(&events), [(1, StatementKind::Query, "select 1".into())]);
    assert!(!session.idle());
    let answered = answer(&mut session, &[sample::select_answer(3, 10)]);
    let Event::Output {
        statement: 1,
        ref span,
        rows: 3,
    } = answered[0]
    else {
        panic!("{answered:?}")
    };
    assert_eq!(*span, 0..(32 + 3 * 21));
    let Event::Outcome(outcome) = &answered[1] else {
        panic!("{answered:?}")
    };
    assert_eq!((outcome.tag.as_str(), outcome.rows, outcome.bytes), ("SELECT 3", 3, 95));
    assert_eq!((outcome.status, outcome.sqlstate.as_str()), (Status::Ok, ""));
    assert!(session.idle());
}

#[test]
fn a_query_of_several_statements_has_one_outcome() {
    let mut session = session();
    send(&mut session, &[query("select 1; select 2")]);
    let select = sample::select_answer(2, 1);
    let first = select.slice(..select.len() - 6);
    let events = answer(&mut session, &[first, select]);
    assert_eq!(outcomes(&events), [(1, Status::Ok, "", "SELECT 2", 4)]);
}

#[test]
fn an_execute_has_the_text_of_its_parse_and_the_params_of_its_bind() {
    let mut session = session();
    let sent = sample::extended("s1", "select $1, $2", true, &[Some("7"), None]);
    let events = send(&mut session, &[sent]);
    let [Event::Statement(statement)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (statement.kind, &statement.text[..], &statement.name[..]),
        (StatementKind::Execute, &b"select $1, $2"[..], &b"s1"[..])
    );
    let params: Vec<_> = statement
        .params
        .iter()
        .map(|param| (param.format, param.data.as_deref()))
        .collect();
    assert_eq!(params, [(0, Some(&b"7"[..])), (0, None)]);
    let events = answer(&mut session, &[sample::extended_answer(true, 1, 5)]);
    assert_eq!(outcomes(&events), [(1, Status::Ok, "", "SELECT 1", 1)]);
    assert!(session.idle());
    let events = send(&mut session, &[sample::extended("s1", "", false, &[Some("8"), None])]);
    assert_eq!(texts(&events), [(2, StatementKind::Execute, "select $1, $2".into())]);
}

#[test]
fn a_pipeline_is_answered_in_order() {
    let mut session = session();
    let one = |text| sample::extended("", text, true, &[]);
    send(&mut session, &[one("select 1"), one("select 2"), query("select 3")]);
    let answers = [
        sample::extended_answer(true, 1, 1),
        sample::extended_answer(true, 2, 1),
        sample::select_answer(3, 1),
    ];
    let events = answer(&mut session, &answers);
    let rows: Vec<_> = outcomes(&events).iter().map(|it| (it.0, it.4)).collect();
    assert_eq!(rows, [(1, 1), (2, 2), (3, 3)]);
    assert!(session.idle());
}

#[test]
fn after_an_error_the_rest_up_to_the_sync_is_skipped() {
    let mut session = session();
    let all = |text| [parse("", text), bind("", ""), execute("")].concat();
    let pipeline = [all("select 1"), all("selec 2"), all("select 3")].concat();
    send(&mut session, &[pipeline.into(), sync(), query("select 4")]);
    let first = [bare(b'1'), bare(b'2'), complete("SELECT 1")].concat();
    let events = answer(&mut session, &[first.into(), error("42601"), ready(b'I')]);
    let expected = [
        (1, Status::Ok, "", "SELECT 1", 0),
        (2, Status::Error, "42601", "", 0),
        (3, Status::Skipped, "", "", 0),
    ];
    assert_eq!(outcomes(&events), expected);
    assert!(!session.idle());
    answer(&mut session, &[sample::select_answer(1, 1)]);
    assert!(session.idle());
}

#[test]
fn what_comes_after_an_error_and_before_the_sync_is_skipped_too() {
    let mut session = session();
    send(&mut session, &[parse("", "selec"), bare(b'H')]);
    let events = answer(&mut session, &[error("42601")]);
    assert_eq!(outcomes(&events), [(1, Status::Error, "42601", "", 0)]);
    let batch = session
        .client(Bytes::from(
            [bind("", ""), execute(""), query("select 1"), sync()].concat(),
        ))
        .unwrap();
    let applied = session.apply(batch, &[]);
    let skipped: Vec<_> = applied.outcomes.iter().map(|it| (it.statement, it.status)).collect();
    assert_eq!(skipped, [(2, Status::Skipped), (3, Status::Skipped)]);
    assert!(!session.idle());
    answer(&mut session, &[ready(b'I')]);
    assert!(session.idle());
}

#[test]
fn copy_in_through_libpqs_extended_protocol_stays_in_step() {
    let mut session = session();
    send(
        &mut session,
        &[parse("", "copy t from stdin"), bind("", ""), execute(""), sync()],
    );
    answer(&mut session, &[bare(b'1'), bare(b'2'), copy_in_response()]);
    let events = send(&mut session, &[sample::copy_data(2, 10), bare(b'c'), sync()]);
    assert_eq!(
        events,
        [Event::Input {
            statement: 1,
            span: 0..30,
            rows: 2
        }]
    );
    let events = answer(&mut session, &[complete("COPY 2"), ready(b'I')]);
    assert_eq!(outcomes(&events), [(1, Status::Ok, "", "COPY 2", 0)]);
    assert!(session.idle());
}

#[test]
fn copy_out_counts_rows() {
    let mut session = session();
    send(&mut session, &[query("copy t to stdout")]);
    let head = single(b'H', |out| out.put_slice(&[0, 0, 0]));
    let events = answer(
        &mut session,
        &[
            head,
            sample::copy_data(5, 3),
            bare(b'c'),
            complete("COPY 5"),
            ready(b'I'),
        ],
    );
    assert_eq!(outcomes(&events), [(1, Status::Ok, "", "COPY 5", 5)]);
    assert!(matches!(
        events[0],
        Event::Output {
            statement: 1,
            rows: 5,
            ..
        }
    ));
}

#[test]
fn a_refusal_of_an_idle_session_never_reaches_the_target() {
    let mut session = session();
    let applied = send_refusing(&mut session, &[query("drop table t")]);
    assert!(applied.target.is_empty());
    let client = applied.client.concat();
    assert!(client.ends_with(&ready(b'I')));
    assert_eq!(Report::parse(&client[5..]).message, "not allowed here");
    let [outcome] = applied.outcomes.as_slice() else {
        panic!("{:?}", applied.outcomes)
    };
    assert_eq!(
        (outcome.statement, outcome.status, outcome.sqlstate.as_str()),
        (1, Status::Refused, "42501")
    );
    assert!(session.idle());
}

#[test]
fn a_refusal_in_a_transaction_goes_through_the_target() {
    let mut session = session();
    send(&mut session, &[query("begin")]);
    answer(&mut session, &[complete("BEGIN"), ready(b'T')]);
    assert!(!session.idle());
    let applied = send_refusing(&mut session, &[query("drop table t"), query("select 1")]);
    assert!(applied.client.is_empty() && applied.outcomes.is_empty());
    let target = applied.target.concat();
    assert!(!target.windows(4).any(|window| window == b"drop"));
    assert!(target.ends_with(&query("select 1")) && target.starts_with(b"Q"));

    let batch = session
        .target(Bytes::from([error("42601"), ready(b'E')].concat()))
        .unwrap();
    let report = Report::parse(&batch.bytes[5..]);
    assert_eq!((report.severity.as_str(), report.code.as_str()), ("ERROR", "42501"));
    assert_eq!((report.message, report.hint), (why().message, why().hint));
    assert!(batch.bytes.ends_with(&ready(b'E')));
    assert_eq!(outcomes(&batch.events), [(2, Status::Refused, "42501", "", 0)]);
}

#[test]
fn spans_behind_a_replaced_error_are_the_outgoing_ones() {
    let mut session = session();
    send(&mut session, &[query("begin")]);
    answer(&mut session, &[complete("BEGIN"), ready(b'T')]);
    send_refusing(&mut session, &[query("drop"), query("select 1")]);
    let batch = session
        .target(Bytes::from(
            [error("42601"), ready(b'E'), sample::select_answer(1, 3)].concat(),
        ))
        .unwrap();
    let Some(Event::Output { span, rows: 1, .. }) =
        batch.events.iter().find(|event| matches!(event, Event::Output { .. }))
    else {
        panic!("{:?}", batch.events)
    };
    assert_eq!(batch.bytes[span.start], b'T');
    assert_eq!(batch.bytes[span.end], b'C');
}

#[test]
fn a_refused_execute_fails_at_the_target_and_drops_up_to_the_sync() {
    let mut session = session();
    let all = |text| Bytes::from([parse("", text), bind("", ""), execute("")].concat());
    let applied = send_refusing(
        &mut session,
        &[all("select 1"), all("drop t"), all("select 3"), bare(b'H')],
    );
    let kept = [all("select 1"), parse("", "drop t"), bind("", "")].concat();
    let target = applied.target.concat();
    let substitute = target.strip_prefix(&kept[..]).unwrap();
    assert!(substitute.starts_with(b"P") && substitute[5..].starts_with(b"hoop_refused\0REFUSED"));
    let skipped: Vec<_> = applied.outcomes.iter().map(|it| (it.statement, it.status)).collect();
    assert_eq!(skipped, [(3, Status::Skipped)]);

    // The client goes on before it hears of it.
    let applied = send_refusing(&mut session, &[all("drop u"), sync(), query("select 5")]);
    assert_eq!(applied.target.concat(), [sync(), query("select 5")].concat());
    let status: Vec<_> = applied.outcomes.iter().map(|it| (it.statement, it.status)).collect();
    assert_eq!(status, [(4, Status::Refused)]);

    let first = [bare(b'1'), bare(b'2'), complete("SELECT 1"), bare(b'1'), bare(b'2')].concat();
    let bytes = Bytes::from([&first[..], &error("42601"), &ready(b'I'), &sample::select_answer(1, 1)].concat());
    let batch = session.target(bytes).unwrap();
    let statuses: Vec<_> = outcomes(&batch.events).iter().map(|it| (it.0, it.1)).collect();
    assert_eq!(statuses, [(1, Status::Ok), (2, Status::Refused), (5, Status::Ok)]);
    assert_eq!(Report::parse(&batch.bytes[first.len() + 5..]).code, "42501");
    assert!(session.idle());
}

#[test]
fn the_targets_own_error_in_a_refusals_place_is_kept() {
    let mut session = session();
    send(&mut session, &[query("begin")]);
    answer(&mut session, &[complete("BEGIN"), ready(b'T')]);
    send_refusing(&mut session, &[query("drop")]);
    let shutdown = fatal("57P01", "terminating connection due to administrator command", "");
    let events = answer(&mut session, &[shutdown]);
    assert_eq!(outcomes(&events), [(2, Status::Refused, "42501", "", 0)]);
}

#[test]
fn refused_copy_data_fails_the_copy() {
    let mut session = session();
    send(&mut session, &[query("copy t from stdin")]);
    answer(&mut session, &[copy_in_response()]);
    let data = sample::copy_data(2, 10);
    send(&mut session, &[data.slice(..22)]);
    let applied = send_refusing(&mut session, &[data.slice(22..), sample::copy_data(1, 3)]);
    let target = applied.target.concat();
    assert_eq!(target[..8], [0; 8]);
    assert_eq!(target[8..], single(b'f', |out| out.put_slice(b"refused by Hoop\0"))[..]);
    let applied = send_refusing(&mut session, &[sample::copy_data(1, 3), bare(b'c')]);
    assert!(applied.target.is_empty());
    let batch = session
        .target(Bytes::from([error("57014"), ready(b'I')].concat()))
        .unwrap();
    assert_eq!(Report::parse(&batch.bytes[5..]).code, "42501");
    assert_eq!(outcomes(&batch.events), [(1, Status::Error, "42501", "", 0)]);
    send(&mut session, &[query("select 1")]);
    answer(&mut session, &[sample::select_answer(1, 1)]);
    assert!(session.idle());
}

#[test]
fn a_redefinition_that_fails_leaves_the_old_text() {
    for name in ["", "s"] {
        let mut session = session();
        send(&mut session, &[parse(name, "drop table t"), sync()]);
        answer(&mut session, &[bare(b'1'), ready(b'I')]);
        // The target skips the second Parse, because what came before it in its segment failed.
        send(&mut session, &[bind("", "nowhere"), parse(name, "select 1"), sync()]);
        answer(&mut session, &[error("26000"), ready(b'I')]);
        let events = send(&mut session, &[bind("", name), execute(""), sync()]);
        assert_eq!(texts(&events), [(4, StatementKind::Execute, "drop table t".into())]);
    }
}

#[test]
fn a_name_that_may_mean_two_statements_is_not_guessed() {
    let mut session = session();
    send(&mut session, &[parse("", "drop table t"), sync()]);
    answer(&mut session, &[bare(b'1'), ready(b'I')]);
    send(&mut session, &[bind("", "nowhere"), parse("", "select 1"), sync()]);
    let violation = session
        .client(Bytes::from([bind("", ""), execute("")].concat()))
        .unwrap_err();
    assert_eq!(violation.code, "0A000");
    assert!(violation.message.contains("wait for ReadyForQuery"), "{violation}");
}

#[test]
fn sql_that_drops_prepared_statements_is_noticed() {
    for (text, tag, left) in [
        ("deallocate s", "DEALLOCATE", "EXECUTE \"s\""),
        ("deallocate other", "DEALLOCATE", "select 1"),
        ("/* x */ deallocate other", "DEALLOCATE", "EXECUTE \"s\""),
        ("discard all", "DISCARD ALL", "EXECUTE \"s\""),
        ("delete from t", "DELETE 5", "select 1"),
    ] {
        let mut session = session();
        send(&mut session, &[parse("s", "select 1"), sync()]);
        answer(&mut session, &[bare(b'1'), ready(b'I')]);
        send(&mut session, &[query(text)]);
        answer(&mut session, &[complete(tag), ready(b'I')]);
        let events = send(&mut session, &[bind("", "s"), execute(""), sync()]);
        assert_eq!(texts(&events)[0].2, left, "{text}");
    }
}

#[test]
fn a_closed_statement_is_gone() {
    let mut session = session();
    send(
        &mut session,
        &[
            parse("s", "select 1"),
            close(b'S', "s"),
            parse("s", "select 2"),
            bind("p", "s"),
            execute("p"),
            close(b'P', "p"),
        ],
    );
    let events = send(&mut session, &[execute("p"), sync()]);
    assert_eq!(texts(&events)[0].2, "FETCH ALL FROM \"p\"");
    assert_eq!(session.statements.count(), 1);
}

#[test]
fn a_function_call_is_a_statement() {
    let mut session = session();
    let call = single(b'F', |out| {
        out.put_slice(&[0, 0, 4, 210, 0, 0, 0, 1, 0, 0, 0, 2, b'h', b'i', 0, 0])
    });
    let events = send(&mut session, &[call]);
    assert_eq!(
        texts(&events),
        [(1, StatementKind::FunctionCall, "function 1234".into())]
    );
    let response = single(b'V', |out| out.put_slice(&[0, 0, 0, 1, b'x']));
    let events = answer(&mut session, &[response, ready(b'I')]);
    assert_eq!(outcomes(&events), [(1, Status::Ok, "", "", 1)]);
}

#[test]
fn what_is_told_outside_of_statements_is_a_notice() {
    let mut session = session();
    let notify = single(b'A', |out| out.put_slice(b"\0\0\0\x07jobs\0done\0"));
    let parameter = single(b'S', |out| out.put_slice(b"TimeZone\0UTC\0"));
    let events = answer(&mut session, &[notify, parameter, notice_response("careful", "")]);
    let expected = [
        ("notify", "jobs from 7: done"),
        ("parameter", "TimeZone = UTC"),
        ("notice", "NOTICE: careful"),
    ];
    assert_eq!(
        events,
        expected.map(|(kind, text)| Event::Notice {
            kind,
            text: text.into()
        })
    );
}

#[test]
fn a_suspended_portal_ends_its_execute() {
    let mut session = session();
    send(
        &mut session,
        &[parse("", "select"), bind("p", ""), execute("p"), execute("p"), sync()],
    );
    let row = sample::data_rows(1, 1);
    let events = answer(
        &mut session,
        &[
            bare(b'1'),
            bare(b'2'),
            row.clone(),
            bare(b's'),
            row,
            complete("SELECT 1"),
            ready(b'I'),
        ],
    );
    assert_eq!(
        outcomes(&events),
        [(1, Status::Ok, "", "", 1), (2, Status::Ok, "", "SELECT 1", 1)]
    );
}

#[test]
fn no_notice_and_no_farewell_within_a_message() {
    let mut session = session();
    send(&mut session, &[query("select 1")]);
    assert!(session.notice("wait", "").is_some());
    let rows = sample::data_rows(1, 100);
    session.target(rows.slice(..3)).unwrap();
    assert!(session.notice("wait", "").is_none() && session.farewell(&why()).is_empty());
    session.target(rows.slice(3..)).unwrap();
    assert!(session.farewell(&why()).starts_with(b"E"));
}

#[test]
fn no_farewell_after_a_goodbye_of_either_side() {
    let mut left = session();
    assert!(left.farewell(&why()).starts_with(b"E"));
    send(&mut left, &[Bytes::from_static(b"X\0\0\0\x04")]);
    assert!(left.farewell(&why()).is_empty(), "the client has said Terminate");
    let mut stopped = session();
    stopped.target(error("42601")).unwrap();
    assert!(stopped.farewell(&why()).starts_with(b"E"));
    let shutdown = fatal("57P01", "terminating connection due to administrator command", "");
    stopped.target(shutdown).unwrap();
    assert!(stopped.farewell(&why()).is_empty(), "the target has said why");
}

#[test]
fn what_was_not_answered_is_unknown() {
    let mut session = session();
    send(&mut session, &[query("begin"), query("select 1")]);
    send_refusing(&mut session, &[query("drop t")]);
    answer(&mut session, &[sample::data_rows(2, 1)]);
    let unanswered: Vec<_> = session
        .unanswered()
        .iter()
        .map(|it| (it.statement, it.status, it.rows))
        .collect();
    assert_eq!(
        unanswered,
        [
            (1, Status::Unknown, 2),
            (2, Status::Unknown, 0),
            (3, Status::Refused, 0)
        ]
    );
}

#[test]
fn bounds_are_told_with_their_figures() {
    let limits = Limits {
        statement_bytes: 100,
        prepared: 1,
        portal_bytes: 20,
        unanswered: 4,
        ..Limits::default()
    };
    let told = |messages: &[Bytes]| {
        let mut session = Session::new(limits);
        session.client(Bytes::from(messages.concat())).unwrap_err()
    };
    let long = told(&[query(&"x".repeat(100))]);
    assert_eq!(long.code, "54000");
    assert!(long.message.contains("106 bytes; the limit is 100 bytes"), "{long}");
    assert_eq!(
        told(&[parse("a", ""), parse("b", "")]).message,
        "the session has 2 prepared statements; the limit is 1"
    );
    let portals = told(&(0..4).map(|_| bind("", "")).collect::<Vec<_>>());
    assert_eq!(
        portals.message,
        "the session has 24 bytes of portals' parameters; the limit is 20"
    );
    assert_eq!(told(&(0..5).map(|_| sync()).collect::<Vec<_>>()).code, "54000");
}

#[test]
fn broken_messages_are_violations() {
    for bytes in [
        &b"p\0\0\0\x08abcd"[..],
        b"Q\0\0\0\x03",
        b"Q\0\0\0\x06ab",
        b"C\0\0\0\x06x\0",
        b"E\0\0\0\x04",
    ] {
        let violation = session().client(Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(violation.code, "08P01", "{bytes:?}");
    }
    for bytes in [&b"R\0\0\0\x08\0\0\0\0"[..], b"Z\0\0\0\x05x", b"1\0\0\0\x04"] {
        assert_eq!(
            session().target(Bytes::copy_from_slice(bytes)).unwrap_err().code,
            "08P01",
            "{bytes:?}"
        );
    }
}

#[test]
fn a_statement_is_held_back_until_it_is_whole() {
    let mut session = session();
    let message = query("select 'long enough to be split'");
    for end in 0..message.len() - 1 {
        let batch = session.client(message.slice(end..=end)).unwrap();
        assert_eq!(batch, Batch::default());
        assert_eq!(session.apply(batch, &[]), Applied::default());
    }
    let batch = session.client(message.slice(message.len() - 1..)).unwrap();
    assert_eq!(batch.bytes, message);
    let target: BytesMut = session.apply(batch, &[]).target.concat().as_slice().into();
    assert_eq!(target, message);
}

fn prepared(events: &[Event]) -> Vec<(StatementId, StatementKind, &str, &str, usize)> {
    let mut prepared = Vec::new();
    for event in events {
        if let Event::Prepared(it) = event {
            let (name, text) = (std::str::from_utf8(&it.name), std::str::from_utf8(&it.text));
            prepared.push((it.id, it.kind, name.unwrap(), text.unwrap(), it.params.len()));
        }
    }
    prepared
}

#[test]
fn a_parse_and_a_bind_in_a_batch_with_their_execute_are_told_by_it_alone() {
    let mut session = session();
    let events = send(&mut session, &[sample::extended("s1", "select $1", true, &[Some("7")])]);
    assert!(matches!(&events[..], [Event::Statement(_)]), "{events:?}");
    answer(&mut session, &[sample::extended_answer(true, 1, 1)]);
    for _ in 0..3 {
        let events = send(&mut session, &[sample::extended("s1", "", false, &[Some("7")])]);
        assert!(matches!(&events[..], [Event::Statement(_)]), "{events:?}");
        answer(&mut session, &[sample::extended_answer(false, 1, 1)]);
    }
    assert_eq!(session.last_statement, 4);
}

#[test]
fn what_is_prepared_without_being_run_has_an_event_and_an_outcome() {
    let mut session = session();
    let describe = single(b'D', |out| out.put_slice(b"Ss1\0"));
    let events = send(&mut session, &[parse("s1", "select 1"), describe, sync()]);
    assert_eq!(prepared(&events), [(1, StatementKind::Parse, "s1", "select 1", 0)]);
    let Event::Prepared(it) = &events[0] else {
        panic!("{events:?}")
    };
    assert_eq!(it.span, 0..parse("s1", "select 1").len());
    let events = answer(&mut session, &[bare(b'1'), bare(b'n'), ready(b'I')]);
    assert_eq!(outcomes(&events), [(1, Status::Ok, "", "", 0)]);

    let events = send(&mut session, &[bind("p", "s1"), sync()]);
    assert_eq!(prepared(&events), [(2, StatementKind::Bind, "s1", "select 1", 0)]);
    let events = answer(&mut session, &[bare(b'2'), ready(b'T')]);
    assert_eq!(outcomes(&events), [(2, Status::Ok, "", "", 0)]);

    let events = send(&mut session, &[execute("p"), sync()]);
    assert_eq!(texts(&events), [(3, StatementKind::Execute, "select 1".into())]);
    assert_eq!(events.len(), 1);
}

#[test]
fn a_bind_without_its_execute_tells_of_its_parse() {
    let mut session = session();
    let events = send(&mut session, &[parse("", "select 1"), bind("", ""), sync()]);
    assert_eq!(prepared(&events), [(1, StatementKind::Bind, "", "select 1", 0)]);
    let events = answer(&mut session, &[error("42601"), ready(b'I')]);
    assert_eq!(
        outcomes(&events),
        [(1, Status::Error, "42601", "", 0)],
        "the error of the Parse is what came of both"
    );
}

#[test]
fn what_is_only_prepared_stands_where_the_client_sent_it() {
    let mut session = session();
    let run = |text| Bytes::from([parse("", text), bind("", ""), execute("")].concat());
    let events = send(
        &mut session,
        &[
            run("select 1"),
            parse("a", "select 2"),
            parse("b", "select 3"),
            run("select 4"),
            sync(),
        ],
    );
    let order: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::Statement(it) | Event::Prepared(it) => (it.text.clone(), it.kind),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        ("select 1", StatementKind::Execute),
        ("select 2", StatementKind::Parse),
        ("select 3", StatementKind::Parse),
        ("select 4", StatementKind::Execute),
    ];
    assert_eq!(order, expected.map(|(text, kind)| (Bytes::from(text), kind)));
    let first = [bare(b'1'), bare(b'2'), complete("SELECT 1")].concat();
    let events = answer(&mut session, &[first.into(), error("42601"), ready(b'I')]);
    let mut seen: Vec<_> = outcomes(&events).iter().map(|it| (it.0, it.1)).collect();
    seen.sort_unstable_by_key(|(id, _)| *id);
    let expected = [
        (1, Status::Ok),
        (2, Status::Skipped),
        (3, Status::Error),
        (4, Status::Skipped),
    ];
    assert_eq!(seen, expected, "numbers are names: 1 and 2 run, 3 and 4 are prepared");
}

#[test]
fn a_parse_that_another_replaces_before_it_is_run_is_told() {
    let mut session = session();
    let events = send(
        &mut session,
        &[
            parse("", "select 1"),
            parse("", "select 2"),
            bind("", ""),
            execute(""),
            sync(),
        ],
    );
    assert_eq!(prepared(&events), [(2, StatementKind::Parse, "", "select 1", 0)]);
    assert_eq!(texts(&events), [(1, StatementKind::Execute, "select 2".into())]);
}

#[test]
fn what_was_prepared_after_a_refusal_never_went_out() {
    let mut session = session();
    send(&mut session, &[query("begin")]);
    answer(&mut session, &[complete("BEGIN"), ready(b'T')]);
    send_refusing(&mut session, &[parse("", "drop t"), bind("", ""), execute("")]);
    let batch = session
        .client(Bytes::from([parse("s", "select 1"), bare(b'H')].concat()))
        .unwrap();
    assert_eq!(prepared(&batch.events), [(3, StatementKind::Parse, "s", "select 1", 0)]);
    let applied = session.apply(batch, &[]);
    assert!(applied.target.is_empty(), "{applied:?}");
    assert_eq!(applied.outcomes.len(), 1);
    assert_eq!(
        (applied.outcomes[0].statement, applied.outcomes[0].status),
        (3, Status::Skipped)
    );
}

#[test]
fn what_was_prepared_and_not_answered_is_unknown() {
    let mut session = session().after(7);
    let events = send(&mut session, &[parse("s", "select 1"), bare(b'H')]);
    assert_eq!(prepared(&events), [(8, StatementKind::Parse, "s", "select 1", 0)]);
    let unanswered = session.unanswered();
    assert_eq!(unanswered.len(), 1);
    assert_eq!((unanswered[0].statement, unanswered[0].status), (8, Status::Unknown));
}
