//! Administrative changes that reach running sessions: a deleted connection, a revoked agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use hoop_tests::hoop::{CONNECTION, Hoop};
use hoop_tests::process::eventually;
use hoop_tests::record::text;

const LIVE_DEADLINE: Duration = Duration::from_secs(5);

/// A session that runs, and what makes it end: told as `end` in its record.
async fn ends_with(path: &str, end: &str) -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "affected").sslmode("disable");
    let client = me.connect().await?;
    client.simple_query("select 1").await?;
    hoop.api.delete(path).await?;
    eventually("the session has ended", LIVE_DEADLINE, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    let ended: Vec<String> = hoop
        .all_events()
        .await?
        .iter()
        .filter(|event| text(event, "kind") == "ended")
        .map(|event| text(event, "code"))
        .collect();
    ensure!(ended.iter().any(|code| code == end), "the record tells {ended:?}");
    Ok(())
}

#[tokio::test]
async fn deleting_a_connection_ends_its_running_sessions() -> Result<()> {
    ends_with(&format!("/api/connections/{CONNECTION}"), "access_denied").await
}

#[tokio::test]
async fn revoking_an_agent_ends_the_sessions_that_it_carries() -> Result<()> {
    ends_with("/api/agents/default", "agent_refused").await
}
