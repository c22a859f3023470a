//! What ends a session by itself: its credential's end, and the end of its replica's place.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::http::Api;
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use serde_json::json;

/// A credential's life here, in seconds.
const TTL_S: u64 = 6;
const END_DEADLINE: Duration = Duration::from_secs(15);
/// A lease runs for 10 s; then another replica gives its holder up.
const LEASE_DEADLINE: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_session_ends_with_its_credential() -> Result<()> {
    let hoop = Hoop::start().await?;
    let credential = hoop.credential_for(CONNECTION, json!({"ttl_seconds": TTL_S})).await?;
    let made = Instant::now();
    let login = hoop.login(&credential)?.with("PGAPPNAME", "expiring");
    let client = login.sslmode("disable").connect().await?;
    client.simple_query("select 1").await?;
    eventually("the session has ended", END_DEADLINE, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    ensure!(
        made.elapsed() >= Duration::from_secs(TTL_S - 1),
        "it ended {:?} after its credential was made",
        made.elapsed()
    );
    ensure!(hoop.record("expiring").await?.end() == "credential_expired");
    let said = login.psql(&["-c", "select 1"]).await?;
    ensure!(!said.ok && said.err.contains("expired"), "{}", said.err);
    Ok(())
}

#[tokio::test]
async fn a_replica_that_lost_its_lease_ends_its_sessions_and_itself() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        replicas: 2,
        gateway_env: vec![("HOOP_SHUTDOWN_DEADLINE_S".into(), "1".into())],
        ..Options::default()
    })
    .await?;
    let client = hoop
        .person()
        .await?
        .with("PGAPPNAME", "outlived")
        .sslmode("disable")
        .connect()
        .await?;
    client.simple_query("select 1").await?;
    let session = text(&hoop.session("outlived").await?, "id");
    let other = hoop.gateways.get(1).context("a second gateway")?.ready.api.clone();
    let ready = &hoop.gateway()?.ready;
    let password = std::fs::read_to_string(&ready.admin_password_file)?;
    let other = Api::login(&other, &ready.admin_user, password.trim()).await?;
    let path = format!("/api/sessions/{session}");
    // Frozen for longer than its lease: the other replica supposes how its sessions ended.
    hoop.gateway()?.process.signal("STOP")?;
    eventually("the other replica gives it up", LEASE_DEADLINE, async || {
        let session = other.get(&path).await?;
        Ok((text(&session, "end_provisional") == "true" && text(&session, "end_code") == "replica_lost").then_some(()))
    })
    .await?;
    hoop.gateway()?.process.signal("CONT")?;
    let gateway = hoop.gateway_mut()?;
    eventually("it notices and stops", LEASE_DEADLINE, async || {
        Ok((!gateway.process.alive()).then_some(()))
    })
    .await?;
    ensure!(client.is_closed() || client.simple_query("select 2").await.is_err());
    let log = hoop.gateway()?.process.log();
    ensure!(log.contains("its lease was lost"), "{log}");
    // Its own word of how the session ended takes the place of what was supposed.
    let told = eventually("the session's own end is told", LEASE_DEADLINE, async || {
        let session = other.get(&path).await?;
        Ok((text(&session, "end_provisional") == "false").then_some(session))
    })
    .await?;
    ensure!(text(&told, "end_code") == "shutdown", "{told}");
    hoop.verify(&["--all"]).await?.success()?;
    Ok(())
}
