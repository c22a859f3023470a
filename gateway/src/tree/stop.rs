//! A stop, top to bottom: no new sessions, drain, end what is left, arbiters, evidence, store.

use std::time::Duration;

use actix::Addr;
use actix_web::dev::ServerHandle;
use anyhow::{Result, anyhow};
use hoop_actors::handle::Handle;
use hoop_actors::keeper::Keeper;
use hoop_actors::shutdown::{Shutdown, Trigger};
use hoop_evidence::writer::{AuditWriter, Finish};
use hoop_proto::end::End;
use hoop_store::Store;
use hoop_store::embedded::Embedded;
use hoop_store::replicas::Replica;
use tracing::{info, warn};

use actix::ArbiterHandle;

use super::PART_LOST;
use super::arbiters::close_arbiters;
use crate::api::Served;
use crate::config::Config;
use crate::lease::LEASE_LOST;
use crate::links::registry::{Carried, DrainAll, Links};
use crate::ready;
use crate::sessions::{Close, Count, EndSessions, Sessions, Which};
use crate::telemetry::Telemetry;

/// How often a drain looks whether sessions are left.
const DRAIN_CHECK: Duration = Duration::from_millis(100);
/// Longest wait for ended sessions to tell their ends.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(7);
/// Longest wait for the collector to take the last spans.
const TRACES_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the last evidence to be committed.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// What a stop has to do with.
pub(super) struct Running {
    pub config: Config,
    pub trigger: Trigger,
    pub keeper: Keeper,
    pub store: Store,
    pub replica: Replica,
    pub links: Addr<Links>,
    pub sessions: Addr<Sessions>,
    pub writer: Handle<AuditWriter>,
    pub served: Served,
    pub metrics: Option<ServerHandle>,
    pub telemetry: Telemetry,
    pub arbiters: Vec<ArbiterHandle>,
    pub embedded: Option<Embedded>,
}

/// Stops everything, each part after what needs it.
///
/// # Errors
/// Where the process stops by itself, not because it was told to.
pub(super) async fn stop(why: &'static str, running: Running) -> Result<()> {
    let Running {
        config,
        trigger,
        keeper,
        store,
        replica,
        links,
        sessions,
        writer,
        served,
        metrics,
        telemetry,
        arbiters,
        embedded,
    } = running;
    info!(why, "stopping: no new sessions; a second signal hurries");
    let drain_deadline = Duration::from_secs(config.shutdown_deadline_s);
    Shutdown::new(trigger, drain_deadline + LAST_WORDS_TIMEOUT + FINISH_TIMEOUT)
        .phase("drain", drain_deadline, drain(drain_deadline, links, sessions.clone()))
        .phase("api", LAST_WORDS_TIMEOUT, async move { served.stop().await })
        .phase("sessions", LAST_WORDS_TIMEOUT, end_all(sessions))
        .phase("arbiters", LAST_WORDS_TIMEOUT, async move {
            close_arbiters(&arbiters).await
        })
        .phase("traces", TRACES_TIMEOUT, async move { telemetry.flush().await })
        .phase("evidence", FINISH_TIMEOUT, finish(writer))
        .run()
        .await;
    if let Err(error) = store.release_replica(&replica).await {
        warn!(%error, "cannot give this replica's place back; its lease runs out by itself");
    }
    ready::remove(&config);
    if let Some(metrics) = metrics {
        metrics.stop(false).await;
    }
    keeper.stop();
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    if why == LEASE_LOST || why == PART_LOST {
        Err(anyhow!("stopped because {why}"))
    } else {
        Ok(())
    }
}

/// Commits the last evidence.
async fn finish(writer: Handle<AuditWriter>) {
    match writer.ask(Finish, FINISH_TIMEOUT).await {
        Ok(Ok(())) => {}
        // the journal stays, and is carried over at the next start
        Ok(Err(error)) => warn!(%error, "the evidence was not closed in order"),
        Err(error) => warn!(%error, "the evidence was not closed in order"),
    }
}

/// Asks agents and sessions to go, and waits until none is left.
async fn drain(deadline: Duration, links: Addr<Links>, sessions: Addr<Sessions>) {
    let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    let _ = sessions.send(Close).await;
    let _ = links.send(DrainAll { deadline_ms }).await;
    until_empty(&sessions).await;
    // sessions of other replicas that this one's agents carry
    while links.send(Carried).await.is_ok_and(|carried| carried > 0) {
        tokio::time::sleep(DRAIN_CHECK).await;
    }
}

async fn until_empty(sessions: &Addr<Sessions>) {
    while sessions.send(Count).await.is_ok_and(|count| count > 0) {
        tokio::time::sleep(DRAIN_CHECK).await;
    }
}

/// Ends what is left and waits until it has told its end.
async fn end_all(sessions: Addr<Sessions>) {
    let end = EndSessions {
        which: Which::All,
        end: End::Shutdown,
        by: "shutdown".into(),
        message: "the gateway is stopping; connect again".into(),
    };
    if sessions.send(end).await.is_ok_and(|told| told > 0) {
        until_empty(&sessions).await;
    }
}
