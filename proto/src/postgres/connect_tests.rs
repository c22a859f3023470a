use super::super::accept::{self, Accept, AcceptOptions, Verifier};
use super::super::encode::{ready_for_query, single};
use super::super::error_response::fatal;
use super::super::scram::ITERATIONS;
use super::*;

fn options() -> ConnectOptions {
    ConnectOptions {
        user: "app_rw".into(),
        password: Some(Zeroizing::new("secret".into())),
        database: "app".into(),
        tls: TlsMode::Disable,
        ..ConnectOptions::default()
    }
}

fn sent(connect: &mut Connect) -> Bytes {
    match connect.step() {
        Step::Send(bytes) => bytes,
        other => panic!("expected Send, got {other:?}"),
    }
}

fn failed(connect: &mut Connect) -> Refusal {
    match connect.step() {
        Step::Failed(refusal) => refusal,
        other => panic!("expected Failed, got {other:?}"),
    }
}

fn authentication(code: u32, rest: &[u8]) -> Bytes {
    single(b'R', |out| {
        out.put_u32(code);
        out.put_slice(rest);
    })
}

/// A connect that has sent its start-up without TLS.
fn greeted(options: ConnectOptions) -> Connect {
    let mut connect = Connect::new(options);
    sent(&mut connect);
    assert_eq!(connect.step(), Step::Need);
    connect
}

fn settle(connect: &mut Connect) -> Step {
    let parameter = single(b'S', |out| out.put_slice(b"TimeZone\0UTC\0"));
    connect.receive(&authentication(0, b""));
    connect.receive(&parameter);
    connect.receive(b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04");
    connect.receive(&ready_for_query(b'I'));
    connect.receive(b"rest");
    let step = connect.step();
    let expected = Step::Ready {
        greeting: parameter,
        process_id: 7,
        secret: Bytes::from_static(&[1, 2, 3, 4]),
        minor: 0,
        rest: Bytes::from_static(b"rest"),
    };
    assert_eq!(step, expected);
    step
}

#[test]
fn trust_is_ready_at_once() {
    let mut connect = greeted(ConnectOptions {
        password: None,
        ..options()
    });
    settle(&mut connect);
    assert_eq!(connect.step(), Step::Need);
}

#[test]
fn cleartext_and_md5_need_verified_tls_or_leave() {
    for ask in [authentication(3, b""), authentication(5, &[1, 2, 3, 4])] {
        let mut connect = greeted(options());
        connect.receive(&ask);
        assert_eq!(failed(&mut connect).end, End::AgentRefused);

        let mut allowed = greeted(ConnectOptions {
            allow_cleartext_login: true,
            ..options()
        });
        allowed.receive(&ask);
        assert_eq!(sent(&mut allowed)[0], b'p');
        settle(&mut allowed);

        let mut verified = Connect::new(ConnectOptions {
            tls: TlsMode::VerifyFull,
            ..options()
        });
        sent(&mut verified);
        verified.receive(b"S");
        assert_eq!(verified.step(), Step::StartTls);
        verified.tls_started(true, None);
        sent(&mut verified);
        verified.receive(&ask);
        assert_eq!(sent(&mut verified)[0], b'p');
    }
}

#[test]
fn a_login_without_a_password_says_what_is_missing() {
    for ask in [authentication(3, b""), authentication(10, b"SCRAM-SHA-256\0\0")] {
        let mut connect = greeted(ConnectOptions {
            password: None,
            allow_cleartext_login: true,
            ..options()
        });
        connect.receive(&ask);
        assert_eq!(failed(&mut connect).end, End::TargetSecretMissing);
    }
}

#[test]
fn tls_answers_follow_the_mode() {
    let answered = |tls, answer: &'static [u8]| {
        let mut connect = Connect::new(ConnectOptions { tls, ..options() });
        assert_eq!(sent(&mut connect), startup::ssl_request());
        assert_eq!(connect.step(), Step::Need);
        connect.receive(answer);
        connect.step()
    };
    for tls in [TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyFull] {
        assert_eq!(answered(tls, b"S"), Step::StartTls);
        for bad in [&b"E\0\0\0\x20SFATAL"[..], b"Sx", b"H"] {
            assert!(matches!(answered(tls, bad), Step::Failed(_)), "{tls:?} {bad:?}");
        }
    }
    assert!(matches!(answered(TlsMode::Prefer, b"N"), Step::Send(_)));
    for tls in [TlsMode::Require, TlsMode::VerifyFull] {
        assert!(matches!(
            answered(tls, b"N"),
            Step::Failed(Refusal {
                end: End::TargetTls,
                ..
            })
        ));
    }
    let mut unverified = Connect::new(ConnectOptions {
        tls: TlsMode::VerifyFull,
        ..options()
    });
    sent(&mut unverified);
    unverified.receive(b"S");
    assert_eq!(unverified.step(), Step::StartTls);
    unverified.tls_started(false, None);
    assert_eq!(failed(&mut unverified).end, End::TargetTls);
}

#[test]
fn the_targets_refusal_keeps_its_code_and_loses_account_and_host() {
    let mut connect = greeted(options());
    connect.receive(&fatal(
        "28000",
        "no pg_hba.conf entry for host \"10.0.0.5\", user \"app_rw\", database \"app\"",
        "",
    ));
    let refusal = failed(&mut connect);
    assert_eq!((refusal.end, refusal.sqlstate()), (End::TargetRefusedLogin, "28000"));
    assert_eq!(
        refusal.message,
        "the target refused the login: no pg_hba.conf entry for host \"…\", user \"…\", database \"app\""
    );
}

#[test]
fn an_impostor_that_skips_the_proof_is_not_trusted() {
    let mut connect = greeted(options());
    connect.receive(&authentication(10, b"SCRAM-SHA-256\0\0"));
    sent(&mut connect);
    connect.receive(&authentication(0, b""));
    assert_eq!(failed(&mut connect).end, End::TargetViolation);
}

#[test]
fn what_the_agent_does_not_speak_is_named() {
    for (code, method) in [(7, "GSSAPI"), (9, "SSPI")] {
        let mut connect = greeted(options());
        connect.receive(&authentication(code, b""));
        assert!(failed(&mut connect).message.contains(method));
    }
}

/// Our connect against our accept, in memory.
fn play(minor: u32, verifier: Option<Verifier>, binding: Option<Vec<u8>>) -> (Step, Option<accept::Startup>) {
    let tls = if binding.is_some() {
        TlsMode::VerifyFull
    } else {
        TlsMode::Prefer
    };
    let mut connect = Connect::new(ConnectOptions {
        tls,
        minor,
        ..options()
    });
    let mut accept = Accept::new(AcceptOptions {
        tls: binding.is_some(),
        mock_key: [1; 32],
        on_tls_direct: false,
        credentials_url: String::new(),
    });
    let mut proved = None;
    let mut turns = 0;
    loop {
        turns += 1;
        assert!(turns < 50, "the two wait for each other");
        match connect.step() {
            Step::Send(bytes) => accept.receive(&bytes),
            Step::StartTls => connect.tls_started(true, binding.clone()),
            Step::Need => {}
            end => return (end, proved),
        }
        loop {
            match accept.step() {
                accept::Step::Need => break,
                accept::Step::Send(bytes) => connect.receive(&bytes),
                accept::Step::StartTls => accept.tls_started(binding.clone()),
                accept::Step::Ask { .. } => accept.answer(verifier.clone()),
                accept::Step::Proved(startup) => {
                    connect.receive(&accept.welcome());
                    connect.receive(&Accept::ready(
                        b"",
                        7,
                        &vec![9; if startup.minor == 2 { 32 } else { 4 }],
                    ));
                    proved = Some(startup);
                }
                accept::Step::Failed { send, .. } => connect.receive(&send),
                accept::Step::Cancel { .. } => panic!("nobody cancels"),
            }
        }
    }
}

#[test]
fn connect_and_accept_understand_each_other() {
    let verifier = || Some(Verifier::make("secret", &[4; 16], ITERATIONS));
    for minor in [0, 2] {
        for binding in [None, Some(vec![8; 32])] {
            let (step, startup) = play(minor, verifier(), binding.clone());
            let Step::Ready {
                minor: spoken,
                secret,
                process_id,
                ..
            } = step
            else {
                panic!("{step:?}")
            };
            assert_eq!(
                (spoken, secret.len(), process_id),
                (minor, if minor == 2 { 32 } else { 4 }, 7)
            );
            let startup = startup.unwrap();
            assert_eq!(
                (startup.user.as_str(), startup.database.as_deref()),
                ("app_rw", Some("app"))
            );
            assert_eq!(
                (startup.minor, startup.tls, startup.sasl_plus),
                (minor, binding.is_some(), binding.is_some())
            );
        }
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_reach_the_other_end() {
    for verifier in [None, Some(Verifier::make("other", &[4; 16], ITERATIONS))] {
        let (step, startup) = play(0, verifier, None);
        let Step::Failed(refusal) = step else {
            panic!("{step:?}")
        };
        assert_eq!((refusal.end, refusal.sqlstate()), (End::TargetRefusedLogin, "28P01"));
        assert!(!refusal.message.contains("app_rw"), "{}", refusal.message);
        assert_eq!(startup, None);
    }
}

#[test]
fn neither_options_nor_steps_show_a_secret() {
    let shown = format!(
        "{:?} {:?}",
        Connect::new(options()),
        Step::Send(Bytes::from_static(b"secret"))
    );
    assert!(!shown.contains("secret") && !shown.contains("app_rw"), "{shown}");
}
