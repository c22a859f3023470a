//! What changes, changes live: kills, revocations, agents that go and come back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hoop_tests::hoop::{CONNECTION, Credential, Hoop, Options};
use hoop_tests::process::{eventually, run};
use hoop_tests::record::text;
use serde_json::json;

use super::psql::await_active;

const LIVE_DEADLINE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_kill_ends_a_session_within_its_query_and_tells_the_client() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "victim");
    let mut command = me.command("psql");
    command.args(["-X", "-c", "select pg_sleep(60)"]);
    let victim = tokio::spawn(run(command, Duration::from_secs(60)));
    await_active(&hoop, "pg_sleep(60)").await?;
    let session = text(&hoop.session("victim").await?, "id");
    let begun = Instant::now();
    hoop.api
        .post(&format!("/api/sessions/{session}/kill"), json!({}))
        .await?;
    let said = victim.await??;
    ensure!(begun.elapsed() < LIVE_DEADLINE, "{:?}", begun.elapsed());
    ensure!(!said.ok && said.err.contains("FATAL"), "{}", said.err);
    let record = hoop.record("victim").await?;
    ensure!(record.end() == "killed", "{:?}", record.of("ended"));
    ensure!(
        record.of("control").iter().any(|event| text(event, "by") == "admin"),
        "{:#?}",
        record.events
    );
    let (_, outcome) = record.statement("pg_sleep(60)")?;
    ensure!(text(outcome, "status") == "unknown", "{outcome}");
    Ok(())
}

#[tokio::test]
async fn a_kill_stops_the_statement_at_the_target_too() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "runaway");
    let mut command = me.command("psql");
    command.args(["-X", "-c", "select pg_sleep(60)"]);
    let runaway = tokio::spawn(run(command, Duration::from_secs(60)));
    await_active(&hoop, "pg_sleep(60)").await?;
    let session = text(&hoop.session("runaway").await?, "id");
    hoop.api
        .post(&format!("/api/sessions/{session}/kill"), json!({}))
        .await?;
    ensure!(!runaway.await??.ok);
    // PostgreSQL does not look at its client while it runs a statement: somebody must cancel it.
    let target = hoop.target.superuser("app").await?;
    eventually("the target's session is gone", LIVE_DEADLINE, async || {
        let sql = "select 1 from pg_stat_activity where query like '%pg_sleep(60)%' and pid <> pg_backend_pid()";
        Ok(target.query_opt(sql, &[]).await?.is_none().then_some(()))
    })
    .await
}

/// Revokes it and waits for the end of its session; how long that took after the answer.
async fn revoked(hoop: &Hoop, credential: &Credential, client: &tokio_postgres::Client) -> Result<Duration> {
    hoop.api
        .delete(&format!("/api/credentials/{}", credential.user))
        .await?;
    let begun = Instant::now();
    eventually("the session has ended", LIVE_DEADLINE * 2, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    Ok(begun.elapsed())
}

#[tokio::test]
async fn revoking_a_credential_ends_its_running_sessions_within_a_second() -> Result<()> {
    let hoop = Hoop::start().await?;
    let kept = hoop.person().await?.sslmode("disable").connect().await?;
    // several times, for a look at the change log every two seconds would do sometimes
    for number in 0..3 {
        let credential = hoop.credential(CONNECTION).await?;
        let name = format!("revoked-{number}");
        let login = hoop.login(&credential)?.with("PGAPPNAME", &name).sslmode("disable");
        let client = login.connect().await?;
        client.simple_query("select 1").await?;
        let took = revoked(&hoop, &credential, &client).await?;
        ensure!(took < Duration::from_secs(1), "{took:?}");
        ensure!(hoop.record(&name).await?.end() == "credential_revoked");
        ensure!(login.connect().await.is_err(), "a revoked credential logs in");
    }
    kept.simple_query("select 1").await?;
    Ok(())
}

#[tokio::test]
async fn revoking_a_credential_ends_its_sessions_at_other_replicas_within_five_seconds() -> Result<()> {
    let hoop = Hoop::with(Options {
        replicas: 2,
        ..Options::default()
    })
    .await?;
    let credential = hoop.credential(CONNECTION).await?;
    let login = hoop.login_at(1, &credential)?.sslmode("disable");
    let client = eventually("a login at the second replica", LIVE_DEADLINE * 4, async || {
        login.connect().await.map(Some)
    })
    .await?;
    client.simple_query("select 1").await?;
    let took = revoked(&hoop, &credential, &client).await?;
    ensure!(took < LIVE_DEADLINE, "{took:?}");
    ensure!(login.connect().await.is_err(), "a revoked credential logs in");
    Ok(())
}

#[tokio::test]
async fn an_agent_killed_and_started_again_serves_again_within_seconds() -> Result<()> {
    let mut hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let client = me.sslmode("disable").connect().await?;
    client.simple_query("select 1").await?;
    hoop.agent_mut()?.process.kill_hard()?;
    eventually("its session has ended", LIVE_DEADLINE, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    hoop.agent_mut()?.start_again()?;
    eventually("a login works", LIVE_DEADLINE * 2, async || {
        me.query("select 1").await.map(Some)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_stopping_agent_lets_its_sessions_finish_and_the_other_serves_new_ones() -> Result<()> {
    let options = Options {
        agents: 2,
        ..Default::default()
    };
    let mut hoop = Hoop::with(options).await?;
    let me = hoop.person().await?.sslmode("disable");
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(me.connect().await?);
    }
    hoop.agent_mut()?.process.signal("TERM")?;
    for client in &clients {
        client.simple_query("select pg_sleep(0.2)").await?;
    }
    for _ in 0..6 {
        me.connect().await?.simple_query("select 1").await?;
    }
    Ok(())
}
