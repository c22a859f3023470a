//! The agents' port before anybody has proved who they are.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::hoop::{Hoop, Options};
use hoop_tests::tls::Tls;
use tokio::task::JoinHandle;

/// The gateway pings every 10 s; a connection that lives is not silent for longer.
const SILENCE: Duration = Duration::from_secs(15);
/// The gateway's own deadline for a proof is 20 s.
const PROOF_DEADLINE: Duration = Duration::from_secs(40);
/// Unauthenticated connections that an address may have here.
const CAP: usize = 4;

/// Shakes hands at the agents' port and answers pings, nothing more. Answers how long the gateway let it.
fn linger(address: &str, ca_pem: &str) -> Result<JoinHandle<Result<Duration>>> {
    let tls = Tls::connect(address, ca_pem, b"h2", b"")?;
    Ok(tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        tls.answer_pings(SILENCE)?;
        Ok(begun.elapsed())
    }))
}

#[tokio::test]
async fn a_connection_of_the_agents_port_that_proves_nothing_counts_and_is_closed() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        gateway_env: vec![("HOOP_HANDSHAKES_PER_ADDRESS".into(), CAP.to_string())],
        ..Options::default()
    })
    .await?;
    let link = hoop.gateway()?.ready.link.clone();
    let ca_pem = std::fs::read_to_string(&hoop.ca_file)?;
    let mut lingering: Vec<_> = (0..CAP + 1).map(|_| linger(&link, &ca_pem)).collect::<Result<_>>()?;
    // TLS is done on all of them, and the oldest has made room for the last.
    let oldest = lingering.remove(0);
    let lasted = tokio::time::timeout(SILENCE, oldest)
        .await
        .context("the oldest is still open")???;
    ensure!(
        lasted < Duration::from_secs(10),
        "the oldest was closed by its own deadline: {lasted:?}"
    );
    // They keep neither agents nor people out.
    hoop.agent_mut()?.process.kill_hard()?;
    hoop.agent_mut()?.start_again()?;
    hoop.wait_for_agent().await?;
    let me = hoop.person().await?.sslmode("disable").connect().await?;
    // Now nobody else wants a place, and yet an answered ping is no proof.
    let alone = linger(&link, &ca_pem)?;
    let lasted = tokio::time::timeout(PROOF_DEADLINE, alone)
        .await
        .context("pings keep a connection open that proves nothing")???;
    ensure!(
        lasted > Duration::from_secs(15),
        "closed before its deadline: {lasted:?}"
    );
    // The agent's own connection, as old as that, has proved whose it is.
    me.simple_query("select 1").await?;
    Ok(())
}
