//! TLS towards the client: every way of asking for it, and what comes before it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::cluster::Make;
use hoop_tests::hoop::{Hoop, Options};
use hoop_tests::record::text;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

#[tokio::test]
async fn every_sslmode_with_every_gssencmode_does_what_libpq_promises() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    // mode, whether the connection must end up encrypted
    let modes = [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
        ("verify-ca", true),
        ("verify-full", true),
    ];
    for (mode, encrypted) in modes {
        for gss in ["disable", "prefer"] {
            let application = format!("{mode} {gss}");
            let login = me
                .sslmode(mode)
                .with("PGGSSENCMODE", gss)
                .with("PGAPPNAME", &application);
            let said = login
                .psql(&["-c", "select 1"])
                .await?
                .success()
                .context(application.clone())?;
            ensure!(said.out == "1\n", "{application}: {}", said.out);
            let session = hoop.session(&application).await?;
            ensure!(
                text(&session, "client_tls") == encrypted.to_string(),
                "{application}: {session}"
            );
        }
    }
    let said = me.with("PGGSSENCMODE", "require").psql(&["-c", "select 1"]).await?;
    ensure!(!said.ok && said.err.contains("GSSAPI"), "{}", said.err);
    Ok(())
}

#[tokio::test]
async fn a_foreign_authority_and_a_wrong_name_are_noticed_by_the_client() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let foreign = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let file = hoop.scratch.path().join("foreign.pem");
    std::fs::write(&file, foreign.cert.pem())?;
    let said = Login {
        ca_file: file,
        ..me.clone()
    }
    .psql(&["-c", "select 1"])
    .await?;
    ensure!(
        !said.ok && said.err.contains("certificate verify failed"),
        "{}",
        said.err
    );
    let said = me.with("PGHOST", "elsewhere.example").psql(&["-c", "select 1"]).await?;
    ensure!(
        !said.ok && said.err.contains("does not match host name"),
        "{}",
        said.err
    );
    Ok(())
}

#[tokio::test]
async fn encryption_requests_are_answered_in_either_order_and_nothing_may_hide_behind_them() -> Result<()> {
    let hoop = Hoop::start().await?;
    let address = hoop.gateway()?.ready.postgres.clone();
    let mut socket = TcpStream::connect(&address).await?;
    socket.write_all(&GSSENC_REQUEST).await?;
    ensure!(answer(&mut socket).await? == Some(b'N'));
    socket.write_all(&SSL_REQUEST).await?;
    ensure!(answer(&mut socket).await? == Some(b'S'));
    // A start-up sent in clear behind SSLRequest must not be taken for one sent through TLS (CVE-2021-23214).
    let mut socket = TcpStream::connect(&address).await?;
    let mut hidden = SSL_REQUEST.to_vec();
    hidden.extend([0, 0, 0, 17, 0, 3, 0, 0]);
    hidden.extend(b"user\0mal\0\0");
    socket.write_all(&hidden).await?;
    let mut rest = Vec::new();
    let read = tokio::time::timeout(ANSWER_DEADLINE, socket.read_to_end(&mut rest))
        .await
        .context("not closed")?;
    ensure!(read.is_err() || !rest.contains(&b'R'), "the gateway went on: {rest:?}");
    Ok(())
}

#[tokio::test]
async fn the_agent_speaks_each_tls_mode_and_each_login_method_with_the_target() -> Result<()> {
    let roles = [
        ("md5-role", "md5"),
        ("plain-role", "password"),
        ("trust-role", "trust"),
        ("scram-role", "scram-sha-256"),
    ];
    let mut hba = vec!["hostnossl all tls-only all reject".to_owned()];
    hba.extend(
        roles
            .iter()
            .map(|(role, method)| format!("host all {role} all {method}")),
    );
    let options = Options {
        target: Make {
            tls: true,
            hba,
            ..Make::default()
        },
        ..Options::default()
    };
    let hoop = Hoop::with(options).await?;
    let superuser = hoop.target.superuser("app").await?;
    for (role, method) in roles.into_iter().chain([("tls-only", "scram-sha-256")]) {
        superuser
            .batch_execute(&format!("create role \"{role}\" login"))
            .await?;
        let encryption = if method == "md5" { "md5" } else { "scram-sha-256" };
        hoop.target
            .set_password(role, &hoop.target_password, encryption)
            .await?;
    }
    let mut number = 0;
    let mut check = async |body: serde_json::Value, works: bool| -> Result<String> {
        number += 1;
        let name = format!("c{number}");
        hoop.connection(&name, body.clone()).await?;
        let me = hoop.login(&hoop.credential(&name).await?)?;
        let said = me
            .psql(&["-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()"])
            .await?;
        ensure!(said.ok == works, "{body}: {} {}", said.out, said.err);
        Ok(if works { said.out.trim().to_owned() } else { said.err })
    };
    let ca = hoop.target.ca_pem.as_str();
    ensure!(check(json!({"tls": "disable"}), true).await? == "f");
    ensure!(check(json!({"tls": "prefer"}), true).await? == "t");
    ensure!(check(json!({"tls": "require"}), true).await? == "t");
    let full = json!({"tls": "verify-full", "tls_ca_pem": ca, "tls_server_name": "localhost"});
    ensure!(check(full.clone(), true).await? == "t");
    // Not our CA; not the certificate's name.
    check(json!({"tls": "verify-full"}), false).await?;
    check(
        json!({"tls": "verify-full", "tls_ca_pem": ca, "tls_server_name": "other.example"}),
        false,
    )
    .await?;
    ensure!(check(json!({"tls": "require", "user": "tls-only"}), true).await? == "t");
    check(json!({"tls": "disable", "user": "tls-only"}), false).await?;
    // Cleartext and md5 need verified TLS, unless the connection says otherwise.
    for (role, method) in roles {
        let careful = matches!(method, "md5" | "password");
        let refused = check(json!({"tls": "require", "user": role}), !careful).await?;
        ensure!(!careful || refused.contains("FATAL"), "{refused}");
        check(
            json!({"tls": "disable", "user": role, "allow_cleartext_login": true}),
            true,
        )
        .await?;
        let mut verified = full.clone();
        verified["user"] = json!(role);
        check(verified, true).await?;
    }
    Ok(())
}

async fn answer(socket: &mut TcpStream) -> Result<Option<u8>> {
    let mut byte = [0];
    let read = tokio::time::timeout(ANSWER_DEADLINE, socket.read(&mut byte))
        .await
        .context("no answer")??;
    Ok((read == 1).then_some(byte[0]))
}
