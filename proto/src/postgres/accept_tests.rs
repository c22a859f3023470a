use super::super::scram::ITERATIONS;
use super::super::scram::client::ClientExchange;
use super::super::startup::{cancel_request, gssenc_request, ssl_request, startup_message};
use super::*;

const URL: &str = "https://hoop.example/connections";

fn accept(tls: bool) -> Accept {
    Accept::new(AcceptOptions {
        tls,
        mock_key: [3; 32],
        on_tls_direct: false,
        credentials_url: URL.into(),
    })
}

fn code_of(send: &Bytes) -> String {
    super::super::error_response::Report::parse(&send[5..]).code
}

fn failed(accept: &mut Accept) -> Refusal {
    match accept.step() {
        Step::Failed { send, refusal } => {
            assert_eq!(code_of(&send), refusal.sqlstate());
            refusal
        }
        other => panic!("expected Failed, got {other:?}"),
    }
}

fn sent(accept: &mut Accept) -> Bytes {
    match accept.step() {
        Step::Send(bytes) => bytes,
        other => panic!("expected Send, got {other:?}"),
    }
}

/// Plays a login with libpq's side of SCRAM; gives the last step.
fn login(accept: &mut Accept, verifier: Option<Verifier>, password: &str, plus: Option<Vec<u8>>) -> Step {
    assert_eq!(
        accept.step(),
        Step::Ask {
            user: "c2345678a".into()
        }
    );
    assert_eq!(accept.step(), Step::Need);
    accept.answer(verifier);
    let offer = sent(accept);
    assert_eq!(offer.windows(4).any(|window| window == b"PLUS"), plus.is_some());
    let with_plus = plus.is_some();
    let mut client = ClientExchange::new("", plus, with_plus).unwrap();
    let first = client.first();
    let mut initial = BytesMut::new();
    message(&mut initial, b'p', |out| {
        string(out, client.mechanism().as_bytes());
        out.put_u32(first.len() as u32);
        out.put_slice(first.as_bytes());
    });
    accept.receive(&initial);
    let reply = sent(accept);
    let last = client
        .last(std::str::from_utf8(&reply[9..]).unwrap(), password)
        .unwrap();
    let mut response = BytesMut::new();
    message(&mut response, b'p', |out| out.put_slice(last.as_bytes()));
    for byte in response.iter() {
        assert_eq!(accept.step(), Step::Need);
        accept.receive(&[*byte]);
    }
    let step = accept.step();
    if let Step::Proved(_) = step {
        let welcome = accept.welcome();
        let length = u32::from_be_bytes(welcome[1..5].try_into().unwrap()) as usize;
        assert_eq!(
            client.verify(std::str::from_utf8(&welcome[9..=length]).unwrap()),
            Ok(())
        );
        assert_eq!(welcome[length + 1..], [b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
    }
    step
}

fn verifier() -> Verifier {
    Verifier::make("secret", &[1; 16], ITERATIONS)
}

#[test]
fn a_login_over_plain_tcp_is_proved() {
    let mut accept = accept(false);
    accept.receive(&ssl_request());
    assert_eq!(sent(&mut accept), "N");
    let parameters = [
        ("user", "c2345678a"),
        ("database", "app"),
        ("application_name", "psql"),
        ("options", "-c a=b"),
    ];
    accept.receive(&startup_message(0, parameters));
    let step = login(&mut accept, Some(verifier()), "secret", None);
    let expected = Startup {
        user: "c2345678a".into(),
        database: Some("app".into()),
        parameters: vec![
            ("application_name".into(), "psql".into()),
            ("options".into(), "-c a=b".into()),
        ],
        minor: 0,
        tls: false,
        sasl_plus: false,
        replication: false,
    };
    assert_eq!(step, Step::Proved(expected));
    assert_eq!(accept.step(), Step::Need);
    accept.receive(b"early");
    assert_eq!(accept.into_rest(), "early");
}

#[test]
fn a_login_over_tls_is_bound_to_it() {
    let mut accept = accept(true);
    accept.receive(&gssenc_request());
    assert_eq!(sent(&mut accept), "N");
    accept.receive(&ssl_request());
    assert_eq!(sent(&mut accept), "S");
    assert_eq!(accept.step(), Step::StartTls);
    accept.tls_started(Some(vec![5; 32]));
    accept.receive(&startup_message(
        2,
        [("user", "c2345678a"), ("replication", "database")],
    ));
    let Step::Proved(startup) = login(&mut accept, Some(verifier()), "secret", Some(vec![5; 32])) else {
        panic!()
    };
    assert!(startup.tls && startup.sasl_plus && startup.replication);
    assert_eq!((startup.minor, startup.database), (2, None));
}

#[test]
fn direct_tls_needs_no_request_and_refuses_one() {
    let direct = || {
        let options = AcceptOptions {
            tls: true,
            mock_key: [3; 32],
            on_tls_direct: true,
            credentials_url: String::new(),
        };
        let mut accept = Accept::new(options);
        accept.tls_started(None);
        accept
    };
    let mut accept = direct();
    accept.receive(&startup_message(0, [("user", "c2345678a")]));
    let Step::Proved(startup) = login(&mut accept, Some(verifier()), "secret", None) else {
        panic!()
    };
    assert!(startup.tls);
    let mut accept = direct();
    accept.receive(&ssl_request());
    assert_eq!(failed(&mut accept).end, End::ClientViolation);
}

#[test]
fn a_wrong_password_and_an_unknown_user_are_told_alike() {
    let refusal = |verifier| {
        let mut accept = accept(false);
        accept.receive(&startup_message(0, [("user", "c2345678a")]));
        match login(&mut accept, verifier, "wrong", None) {
            Step::Failed { send, refusal } => (send, refusal),
            other => panic!("expected Failed, got {other:?}"),
        }
    };
    let (send, known) = refusal(Some(verifier()));
    assert_eq!((send, known.clone()), refusal(None));
    assert_eq!(known.message, "password authentication failed for user \"c2345678a\"");
    assert_eq!(known.sqlstate(), "28P01");
    assert!(known.hint.contains(URL), "{}", known.hint);
}

#[test]
fn plain_bytes_behind_an_ssl_request_are_refused() {
    for tls in [true, false] {
        let mut accept = accept(tls);
        accept.receive(&[ssl_request(), startup_message(0, [("user", "x")])].concat());
        assert_eq!(failed(&mut accept).sqlstate(), "08P01");
    }
    let mut accept = accept(true);
    accept.receive(&ssl_request());
    assert_eq!(sent(&mut accept), "S");
    assert_eq!(accept.step(), Step::StartTls);
    accept.receive(b"x");
    accept.tls_started(None);
    assert_eq!(failed(&mut accept).sqlstate(), "08P01");
}

#[test]
fn encryption_is_asked_for_once_each() {
    for request in [ssl_request(), gssenc_request()] {
        let mut accept = accept(false);
        accept.receive(&request);
        assert_eq!(sent(&mut accept), "N");
        assert_eq!(accept.step(), Step::Need);
        accept.receive(&request);
        assert_eq!(failed(&mut accept).end, End::ClientViolation);
    }
}

#[test]
fn a_cancel_is_given_with_its_key() {
    for secret in [&[1, 2, 3, 4][..], &[7; 32]] {
        let mut accept = accept(true);
        accept.receive(&cancel_request(77, secret));
        assert_eq!(
            accept.step(),
            Step::Cancel {
                process_id: 77,
                secret: Bytes::copy_from_slice(secret)
            }
        );
        assert_eq!(accept.step(), Step::Need);
    }
}

#[test]
fn unknown_minors_and_options_are_negotiated() {
    let offer = |minor, option: Option<(&'static str, &'static str)>| {
        let mut accept = accept(false);
        accept.receive(&startup_message(
            minor,
            [("user", "c2345678a")].into_iter().chain(option),
        ));
        assert!(matches!(accept.step(), Step::Ask { .. }));
        accept.answer(None);
        sent(&mut accept)
    };
    let negotiate = |minor: u8, options: &[u8]| {
        let head = [b'v', 0, 0, 0, 12 + options.len() as u8, 0, 3, 0, minor];
        [&head[..], &[0, 0, 0, u8::from(!options.is_empty())], options].concat()
    };
    assert_eq!(offer(0, None)[0], b'R');
    assert_eq!(offer(2, None)[0], b'R');
    assert!(offer(9, None).starts_with(&negotiate(2, b"")));
    assert!(offer(1, None).starts_with(&negotiate(0, b"")));
    assert!(offer(0, Some(("_pq_.x", "1"))).starts_with(&negotiate(0, b"_pq_.x\0")));
}

#[test]
fn protocol_2_and_a_missing_user_are_told_clearly() {
    let mut accept_2 = accept(false);
    accept_2.receive(&[0, 0, 0, 8, 0, 2, 0, 0]);
    let refusal = failed(&mut accept_2);
    assert_eq!(
        refusal.message,
        "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"
    );
    assert_eq!(refusal.sqlstate(), "0A000");
    let mut nobody = accept(false);
    nobody.receive(&startup_message(0, [("database", "x")]));
    assert_eq!(failed(&mut nobody).sqlstate(), "28000");
    let mut odd = accept(false);
    odd.receive(&startup_message(0, [("user", "x"), ("replication", "maybe")]));
    assert_eq!(failed(&mut odd).sqlstate(), "22023");
}

#[test]
fn what_is_buffered_before_the_proof_is_bounded() {
    let mut accept = accept(false);
    accept.receive(&startup_message(0, [("user", "c2345678a")]));
    assert!(matches!(accept.step(), Step::Ask { .. }));
    accept.receive(&vec![b'p'; 1 << 20]);
    let refusal = failed(&mut accept);
    assert!(
        refusal.message.contains("the limit is 14096 bytes"),
        "{}",
        refusal.message
    );
}

#[test]
fn ready_ends_with_key_and_status() {
    let bytes = Accept::ready(b"greeting", 7, &[1, 2, 3, 4]);
    let expected = [
        &b"greeting"[..],
        b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04",
        b"Z\0\0\0\x05I",
    ]
    .concat();
    assert_eq!(bytes, expected);
}
