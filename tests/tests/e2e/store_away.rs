//! The gateway's own database is away for longer than rules may be old.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::hoop::{CONNECTION, Hoop, Options, StoreKind};
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use serde_json::json;
use tokio_postgres::Client;

/// `policy_stale_max_s` here.
const STALE_MAX: Duration = Duration::from_secs(2);
const STALE_DEADLINE: Duration = Duration::from_secs(20);
/// Long enough for a statement to be answered by a busy machine, where nothing holds it.
const HELD: Duration = Duration::from_secs(3);
/// After the store is back, the next reading of its changes lets statements go on.
const BACK_DEADLINE: Duration = Duration::from_secs(30);

async fn hoop() -> Result<Hoop> {
    Hoop::with(Options {
        store: StoreKind::Own,
        gateway_env: vec![("HOOP_POLICY_STALE_MAX_S".into(), STALE_MAX.as_secs().to_string())],
        ..Options::default()
    })
    .await
}

/// A session of this connection, with a statement behind it.
async fn session(hoop: &Hoop, connection: &str, application: &str) -> Result<Client> {
    let login = hoop.login(&hoop.credential(connection).await?)?;
    let client = login
        .with("PGAPPNAME", application)
        .sslmode("disable")
        .connect()
        .await?;
    client.simple_query("select 'while the store is there'").await?;
    Ok(client)
}

/// Stops the store and waits until the gateway says that its rules are too old.
async fn store_goes_away(hoop: &mut Hoop) -> Result<()> {
    hoop.store.as_mut().context("a store of its own")?.stop()?;
    eventually("the gateway's rules are too old", STALE_DEADLINE, async || {
        let answer = hoop.api.send("GET", "/readyz", None).await?;
        Ok((answer.status == 503 && answer.text().contains("has not been reached")).then_some(()))
    })
    .await
}

async fn store_comes_back(hoop: &mut Hoop) -> Result<()> {
    hoop.store.as_mut().context("a store of its own")?.start_again().await
}

#[tokio::test]
async fn statements_are_held_and_logins_refused_until_the_store_is_back() -> Result<()> {
    let mut hoop = hoop().await?;
    let client = session(&hoop, CONNECTION, "held").await?;
    let newcomer = hoop.person().await?;
    store_goes_away(&mut hoop).await?;
    let mut statement = Box::pin(client.simple_query("select 'held'"));
    ensure!(
        tokio::time::timeout(HELD, &mut statement).await.is_err(),
        "a statement went on under rules that nobody has confirmed"
    );
    ensure!(!hoop.target.log().contains("select 'held'"), "the target has it");
    let said = newcomer.psql(&["-c", "select 1"]).await?;
    ensure!(!said.ok && said.err.contains("database"), "{}", said.err);
    ensure!(said.err.contains("Try again"), "no remedy in {}", said.err);
    store_comes_back(&mut hoop).await?;
    tokio::time::timeout(BACK_DEADLINE, statement)
        .await
        .context("it is held though the store is back")??;
    ensure!(newcomer.query("select 1").await? == "1");
    drop(client);
    let record = hoop.record("held").await?;
    ensure!(
        record
            .of("notice")
            .iter()
            .all(|notice| text(notice, "notice") != "store_away")
    );
    record.statement("select 'held'")?;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_continues_goes_on_and_its_record_says_so_once() -> Result<()> {
    let mut hoop = hoop().await?;
    hoop.connection("vital", json!({"store_away": "continue"})).await?;
    let shown = hoop.api.get("/api/connections/vital").await?;
    ensure!(text(&shown, "store_away") == "continue", "{shown}");
    let shown = hoop.api.get(&format!("/api/connections/{CONNECTION}")).await?;
    ensure!(text(&shown, "store_away") == "refuse", "the default: {shown}");
    let client = session(&hoop, "vital", "vital").await?;
    store_goes_away(&mut hoop).await?;
    for statement in ["select 'goes on'", "select 'and on'"] {
        tokio::time::timeout(BACK_DEADLINE, client.simple_query(statement))
            .await
            .context("it is held all the same")??;
    }
    store_comes_back(&mut hoop).await?;
    drop(client);
    let record = hoop.record("vital").await?;
    let notices: Vec<_> = (record.events.iter())
        .filter(|event| text(event, "kind") == "notice" && text(event, "notice") == "store_away")
        .collect();
    let [notice] = notices.as_slice() else {
        anyhow::bail!("told {} times: {:#?}", notices.len(), record.events);
    };
    let (attempt, _) = record.statement("select 'goes on'")?;
    let (before, _) = record.statement("while the store is there")?;
    let seq = |event| hoop_tests::record::number(event, "seq");
    ensure!(
        seq(before) < seq(notice) && seq(notice) < seq(attempt),
        "it is not told before the statement that it let through: {:#?}",
        record.events
    );
    hoop.verify(&["--all"]).await?.success()?;
    Ok(())
}
