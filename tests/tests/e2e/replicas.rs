//! Any replica serves anyone: cancels, kills and sessions through the other one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::{Login, run_python};
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use hoop_tests::tcp::Balancer;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::NoTls;

use super::psql::await_active;

const CROSS_DEADLINE: Duration = Duration::from_secs(5);
const LINK_DEADLINE: Duration = Duration::from_secs(30);

async fn two() -> Result<Hoop> {
    Hoop::with(Options {
        replicas: 2,
        ..Options::default()
    })
    .await
}

/// A login at each replica, once each serves.
pub async fn both(hoop: &Hoop) -> Result<(Login, Login)> {
    let credential = hoop.credential(CONNECTION).await?;
    let (first, second) = (hoop.login_at(0, &credential)?, hoop.login_at(1, &credential)?);
    for login in [&first, &second] {
        eventually("each replica serves", LINK_DEADLINE, async || {
            login.query("select 1").await.map(Some)
        })
        .await?;
    }
    Ok((first, second))
}

#[tokio::test]
async fn cancel_reaches_the_target_through_another_replica() -> Result<()> {
    let hoop = two().await?;
    let (first, _) = both(&hoop).await?;
    let addresses = hoop
        .gateways
        .iter()
        .map(|gateway| gateway.ready.postgres.parse())
        .collect::<Result<_, _>>()?;
    let balancer = Balancer::start(addresses).await?;
    let client = first.port(balancer.address.port()).connect().await?;
    balancer.choose(1);
    let token = client.cancel_token();
    let cancel = async {
        await_active(&hoop, "pg_sleep(60)").await?;
        anyhow::Ok(token.cancel_query(NoTls).await?)
    };
    let begun = std::time::Instant::now();
    let (slept, cancelled) = tokio::join!(client.batch_execute("select pg_sleep(60)"), cancel);
    cancelled?;
    let error = slept.err().context("it slept on")?;
    ensure!(error.code().map(|code| code.code()) == Some("57014"), "{error:?}");
    ensure!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    Ok(())
}

/// libpq's classic cancel, always in clear, and its newer one, encrypted where the session is; each with the short key of
/// protocol 3.0 and the long one of 3.2. The session is at the first replica, every cancel arrives at the second.
#[tokio::test]
async fn every_kind_of_cancel_reaches_the_session_through_another_replica() -> Result<()> {
    let hoop = two().await?;
    let (first, _) = both(&hoop).await?;
    let addresses = hoop
        .gateways
        .iter()
        .map(|gateway| gateway.ready.postgres.parse())
        .collect::<Result<_, _>>()?;
    let balancer = Balancer::start(addresses).await?;
    let first = first.port(balancer.address.port());
    for mode in ["disable", "verify-full"] {
        for version in ["3.0", "3.2"] {
            balancer.choose_once(0, 1);
            run_python(&first.sslmode(mode), "psycopg_cancel.py", &[version])
                .await?
                .success()
                .with_context(|| format!("{mode} {version}"))?;
        }
    }
    Ok(())
}

/// Far more cancels of one address than any arbiter takes from it.
const CANCELS: usize = 500;

#[tokio::test]
async fn an_address_that_cancels_too_often_is_not_heard_and_others_are() -> Result<()> {
    let hoop = Hoop::start().await?;
    let client = hoop.person().await?.sslmode("disable").connect().await?;
    let token = client.cancel_token();
    let gateway: std::net::SocketAddr = hoop.gateway()?.ready.postgres.parse()?;
    let dial = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(format!("{from}:0").parse()?)?;
        anyhow::Ok(socket.connect(gateway).await?)
    };
    let nobody = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2];
    for _ in 0..CANCELS {
        let mut socket = dial("127.0.0.9").await?;
        socket.write_all(&nobody).await?;
        // Answered by closing.
        ensure!(matches!(socket.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    let query = client.simple_query("select pg_sleep(60)");
    let cancels = async {
        await_active(&hoop, "pg_sleep(60)").await?;
        token.cancel_query_raw(dial("127.0.0.9").await?, NoTls).await?;
        eventually(
            "the cancel of the noisy address is dropped",
            CROSS_DEADLINE,
            async || {
                let log = hoop.gateway()?.process.log();
                Ok(log.contains("too many cancels from one address").then_some(()))
            },
        )
        .await?;
        await_active(&hoop, "pg_sleep(60)").await?;
        token.cancel_query_raw(dial("127.0.0.8").await?, NoTls).await?;
        anyhow::Ok(())
    };
    let (slept, cancelled) = tokio::join!(query, cancels);
    cancelled?;
    let error = slept.err().context("it slept on")?;
    ensure!(error.code().map(|code| code.code()) == Some("57014"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_kill_asked_of_one_replica_ends_the_session_of_the_other() -> Result<()> {
    let hoop = two().await?;
    let (_, second) = both(&hoop).await?;
    let client = second.with("PGAPPNAME", "elsewhere").sslmode("disable");
    let mut config = tokio_postgres::Config::new();
    config
        .host(&client.address)
        .port(client.port)
        .user(&client.user)
        .password(&client.password);
    config.application_name("elsewhere");
    let client = hoop_tests::cluster::connect(&config).await?;
    client.simple_query("select 1").await?;
    let session = text(&hoop.session("elsewhere").await?, "id");
    hoop.api
        .post(&format!("/api/sessions/{session}/kill"), json!({}))
        .await?;
    eventually("the session has ended", CROSS_DEADLINE, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    ensure!(hoop.record("elsewhere").await?.end() == "killed");
    Ok(())
}

#[tokio::test]
async fn a_replica_without_a_link_serves_through_the_one_that_has_it() -> Result<()> {
    let mut hoop = two().await?;
    // A balancer that always picks the first replica stands before the agents' port.
    let addresses = hoop
        .gateways
        .iter()
        .map(|gateway| gateway.ready.link.parse())
        .collect::<Result<_, _>>()?;
    let balancer = Balancer::start(addresses).await?;
    hoop.agents.clear();
    hoop.agent_through(balancer.address.port())?;
    let (_, second) = both(&hoop).await?;
    let moved = second
        .query("select sum(length(repeat('p', 1000))) from generate_series(1, 1000)")
        .await?;
    ensure!(moved == "1000000");
    let said = second
        .psql(&["-c", "select repeat('q', 1000) from generate_series(1, 5000)"])
        .await?
        .success()?;
    ensure!(said.out.len() == 5000 * 1001);
    Ok(())
}

#[tokio::test]
async fn when_a_replica_is_killed_the_other_serves_and_its_sessions_get_an_end() -> Result<()> {
    let mut hoop = two().await?;
    let (_, second) = both(&hoop).await?;
    let mut config = tokio_postgres::Config::new();
    config
        .host(&second.address)
        .port(second.port)
        .user(&second.user)
        .password(&second.password);
    config.application_name("orphan");
    let client = hoop_tests::cluster::connect(&config).await?;
    client.simple_query("select 'before the kill'").await?;
    hoop.session("orphan").await?;
    hoop.gateways.get_mut(1).context("second")?.process.kill_hard()?;
    hoop.person().await?.query("select 1").await?;
    eventually(
        "the lost replica's session has a provisional end",
        Duration::from_secs(40),
        async || Ok((text(&hoop.session("orphan").await?, "end_code") == "replica_lost").then_some(())),
    )
    .await?;
    // It comes back and replays its journal.
    hoop.gateways.get_mut(1).context("second")?.start_again().await?;
    let record = hoop.record("orphan").await?;
    record.statement("before the kill")?;
    Ok(())
}
