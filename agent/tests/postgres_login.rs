//! The login at a real PostgreSQL: each method, each TLS mode, what is refused and how it is told; and cancels.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use hoop_agent::targets::allow::AllowList;
use hoop_agent::targets::postgres::{Asker, Login, cancel, login};
use hoop_agent::targets::progress::Progress;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::{Parameter, Target};
use support::authority::Authority;
use support::server::Postgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

const ASKER: Asker<'static> = Asker {
    agent: "test-agent",
    connection: "test-db",
};
const HBA: &str = "
host all trusted all trust
host all clear all password
host all hashed all md5
host all scram all scram-sha-256
hostssl all tlsonly all scram-sha-256
";
const SETUP: &str = "
set password_encryption = 'md5'; create role hashed login password 'pw-md5';
set password_encryption = 'scram-sha-256';
create role trusted login; create role clear login password 'pw-clear'; create role scram login password 'pw-scram';
create role tlsonly login password 'pw-tls';
";

fn target(port: u16, user: &str) -> Target {
    Target {
        protocol: "postgres".into(),
        host: "127.0.0.1".into(),
        port: port.into(),
        user: user.into(),
        tls: "disable".into(),
        startup: vec![
            Parameter {
                name: "database".into(),
                value: "postgres".into(),
            },
            Parameter {
                name: "application_name".into(),
                value: "hoop-test".into(),
            },
        ],
        ..Target::default()
    }
}

async fn attempt(target: &Target, password: &str) -> Result<Login, Refusal> {
    let password = (!password.is_empty()).then(|| Zeroizing::new(password.to_owned()));
    login(
        target,
        password,
        &AllowList::new(vec![], vec![]),
        ASKER,
        &mut Progress::default(),
    )
    .await
}

async fn refusal(target: &Target, password: &str) -> Refusal {
    let Err(refusal) = attempt(target, password).await else {
        panic!("logged in as {}", target.user)
    };
    for secret in ["127.0.0.1", "localhost", password] {
        assert!(
            secret.is_empty() || !format!("{refusal:?}").contains(secret),
            "{refusal:?} tells {secret}"
        );
    }
    refusal
}

/// Sends a simple query and reads up to its ReadyForQuery.
async fn query(login: &mut Login, sql: &str) -> Vec<u8> {
    let mut message = vec![b'Q'];
    message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    message.extend_from_slice(sql.as_bytes());
    message.push(0);
    login.stream.write_all(&message).await.unwrap();
    login.stream.flush().await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"Z\0\0\0\x05I") {
        let read = login.stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    answer
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn every_method_logs_in_and_a_wrong_password_is_told_without_the_account() {
    let server = Postgres::start(HBA, None, SETUP);
    for (user, password) in [
        ("trusted", ""),
        ("clear", "pw-clear"),
        ("hashed", "pw-md5"),
        ("scram", "pw-scram"),
    ] {
        let mut target = target(server.port, user);
        target.allow_cleartext_login = true;
        let mut login = attempt(&target, password)
            .await
            .unwrap_or_else(|refusal| panic!("{user}: {refusal:?}"));
        assert!(holds(&login.greeting, "server_version"), "{user}");
        assert!(holds(&login.greeting, "hoop-test"), "{user}");
        assert_eq!(login.minor, 0);
        assert!(login.early.is_empty());
        let answer = query(&mut login, "select 'i am ' || current_user").await;
        assert!(holds(&answer, &format!("i am {user}")));
    }
    for (user, password) in [("clear", "bad"), ("hashed", "bad"), ("scram", "bad"), ("nobody", "bad")] {
        let mut target = target(server.port, user);
        target.allow_cleartext_login = true;
        let refusal = refusal(&target, password).await;
        assert_eq!(refusal.end, End::TargetRefusedLogin, "{user}: {refusal:?}");
        assert!(!refusal.message.contains(user), "{refusal:?}");
    }
    let mut missing = target(server.port, "trusted");
    missing.startup[0].value = "no_such_db".into();
    let refusal = refusal(&missing, "").await;
    assert_eq!(
        (refusal.end, refusal.code.as_str()),
        (End::TargetRefusedLogin, "3D000"),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn cleartext_and_md5_need_verified_tls_unless_the_connection_says_otherwise() {
    let server = Postgres::start(HBA, None, SETUP);
    for (user, password) in [("clear", "pw-clear"), ("hashed", "pw-md5")] {
        let refusal = refusal(&target(server.port, user), password).await;
        assert!(
            matches!(
                refusal.end,
                End::TargetTls | End::TargetRefusedLogin | End::AgentRefused
            ),
            "{refusal:?}"
        );
    }
    attempt(&target(server.port, "scram"), "pw-scram")
        .await
        .map(drop)
        .unwrap();
}

#[tokio::test]
async fn each_tls_mode_does_what_libpq_says() {
    let authority = Authority::new();
    let other = Authority::new();
    let server = Postgres::start(HBA, Some(&authority.leaf(&["db.example", "127.0.0.1"])), SETUP);
    let with = |mode: &str, ca: &Authority, name: &str| {
        let mut target = target(server.port, "tlsonly");
        target.tls = mode.into();
        target.tls_ca_pem = ca.pem().into();
        target.tls_server_name = name.into();
        target
    };
    // With a certificate signed by ECDSA the server offers SCRAM-SHA-256-PLUS, so this binds to the channel too.
    for accepted in [
        with("verify-full", &authority, ""),
        with("verify-full", &authority, "db.example"),
        with("require", &authority, "other.example"),
        Target {
            tls_ca_pem: Default::default(),
            ..with("require", &authority, "")
        },
        Target {
            tls_ca_pem: Default::default(),
            ..with("prefer", &authority, "")
        },
    ] {
        let mut login = attempt(&accepted, "pw-tls")
            .await
            .unwrap_or_else(|refusal| panic!("{}: {refusal:?}", accepted.tls));
        assert!(holds(
            &query(
                &mut login,
                "select 'ssl ' || ssl from pg_stat_ssl where pid = pg_backend_pid()"
            )
            .await,
            "ssl true"
        ));
    }
    for (refused, why) in [
        (with("verify-full", &other, ""), "not signed by the connection's CA"),
        (with("require", &other, ""), "not signed by the connection's CA"),
        (with("verify-full", &authority, "other.example"), "is for another name"),
    ] {
        let refusal = refusal(&refused, "pw-tls").await;
        assert_eq!(refusal.end, End::TargetTls, "{refusal:?}");
        assert!(refusal.message.contains(why), "{refusal:?}");
        assert!(!refusal.message.contains("example"), "{refusal:?}");
    }
    let refused_by_target = refusal(&target(server.port, "tlsonly"), "pw-tls").await;
    assert_eq!(refused_by_target.end, End::TargetRefusedLogin, "{refused_by_target:?}");
}

#[tokio::test]
async fn a_target_without_tls_serves_prefer_and_not_require() {
    let server = Postgres::start(HBA, None, SETUP);
    let mut target = target(server.port, "scram");
    target.tls = "prefer".into();
    attempt(&target, "pw-scram").await.map(drop).unwrap();
    for mode in ["require", "verify-full"] {
        target.tls = mode.into();
        target.tls_ca_pem = Authority::new().pem().into();
        assert_eq!(refusal(&target, "pw-scram").await.end, End::TargetTls, "{mode}");
    }
}

#[tokio::test]
async fn a_cancel_stops_the_statement_with_and_without_tls() {
    let authority = Authority::new();
    let server = Postgres::start(HBA, Some(&authority.leaf(&["127.0.0.1"])), SETUP);
    for mode in ["disable", "verify-full"] {
        let mut target = target(server.port, "scram");
        target.tls = mode.into();
        target.tls_ca_pem = authority.pem().into();
        let mut login = attempt(&target, "pw-scram").await.unwrap();
        let key = login.cancel.clone();
        let cancelled = async {
            loop {
                let output = server.psql(
                    "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'",
                );
                if output.stdout.trim_ascii() == b"1" {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            cancel(&key).await.unwrap();
        };
        let (answer, ()) = tokio::join!(query(&mut login, "select pg_sleep(600)"), cancelled);
        assert!(holds(&answer, "57014"), "{mode}: {}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn an_unreachable_or_forbidden_target_is_told_with_agent_and_rule_and_without_host() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let unreachable = refusal(&target(free, "u"), "").await;
    assert_eq!(unreachable.end, End::TargetUnreachable);
    assert!(
        unreachable.message.contains("test-agent") && unreachable.message.contains("test-db"),
        "{unreachable:?}"
    );

    let allow = AllowList::new(vec!["10.0.0.0/8:5432".parse().unwrap()], vec![]);
    let Err(forbidden) = login(&target(free, "u"), None, &allow, ASKER, &mut Progress::default()).await else {
        panic!("logged in")
    };
    assert_eq!(forbidden.end, End::AgentRefused);
    assert!(
        forbidden.message.contains("test-agent") && forbidden.message.contains("allow"),
        "{forbidden:?}"
    );
    assert!(!format!("{forbidden:?}").contains("127.0.0.1"), "{forbidden:?}");

    let mut metadata = target(80, "u");
    metadata.host = "169.254.169.254".into();
    let guarded = refusal(&metadata, "").await;
    assert_eq!(guarded.end, End::AgentRefused);
    assert!(guarded.message.contains("metadata"), "{guarded:?}");
}
