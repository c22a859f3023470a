//! `GatewayControl`: the running gateway as the API sees it.

use std::path::PathBuf;
use std::time::Duration;

use actix::Addr;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hoop_actors::handle::Handle;
use hoop_api::connection_test::{AgentTest, ConnectionToTest};
use hoop_api::control::{Answered, Check, Control, ControlError, Readiness};
use hoop_evidence::read;
use hoop_evidence::writer::{AuditSetup, AuditWriter, Flush, Log};
use hoop_proto::end::End;
use hoop_proto::evidence::Event;
use hoop_store::Store;
use serde_json::Value;
use uuid::Uuid;

use crate::directory::Freshness;
use crate::links::dispatch::Dispatcher;
use crate::links::registry::{Links, Online};
use crate::metrics;
use crate::sessions::{EndSessions, Sessions, Which};
use crate::telemetry::Telemetry;
use crate::trial;

/// Where people and agents reach this gateway.
#[derive(Clone)]
pub struct Addresses {
    /// `host:port` for agents.
    pub link: String,
    pub postgres_host: String,
    pub postgres_port: u16,
}

/// Implements the API's view.
#[derive(Clone)]
pub struct GatewayControl {
    pub store: Store,
    pub sessions: Addr<Sessions>,
    pub links: Addr<Links>,
    pub dispatcher: Dispatcher,
    pub writer: Handle<AuditWriter>,
    pub audit: AuditSetup,
    pub freshness: Freshness,
    pub addresses: Addresses,
    pub journal_dir: PathBuf,
    pub telemetry: Telemetry,
}

/// Longest wait for an administrative record to be committed.
const RECORD_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest wait for what is journalled to be readable.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Share of the journal's byte budget above which the replica says that it is not ready.
const JOURNAL_FULL_PERCENT: u64 = 90;

fn failed(problem: impl std::fmt::Display) -> ControlError {
    ControlError(problem.to_string())
}

impl Control for GatewayControl {
    fn kill_session(&self, session: Uuid, by: String) -> BoxFuture<'_, Result<bool, ControlError>> {
        let end = EndSessions {
            which: Which::One(session),
            end: End::Killed,
            message: format!("{by} ended this session"),
            by,
        };
        async move { self.sessions.send(end).await.map(|told| told > 0).map_err(failed) }.boxed()
    }

    fn record(&self, kind: &'static str, payload: Value) -> BoxFuture<'_, Result<(), String>> {
        let log = Log {
            kind: kind.to_owned(),
            payload,
        };
        async move {
            let recorded = self
                .writer
                .ask(log, RECORD_TIMEOUT)
                .await
                .map_err(|error| error.to_string())?;
            recorded.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn session_events(
        &self,
        session: Uuid,
        after_seq: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, ControlError>> {
        async move {
            // what this replica has journalled is shown too; where the store is slow, what it has is shown
            let _ = self.writer.ask(Flush, FLUSH_TIMEOUT).await;
            let mut events = Vec::new();
            let take = |event: Event| {
                if event.seq > after_seq && events.len() < limit {
                    events.push(event);
                }
            };
            read::each(&self.store, session, take).await.map_err(failed)?;
            Ok(events)
        }
        .boxed()
    }

    fn agents_online(&self) -> BoxFuture<'_, Result<Vec<String>, ControlError>> {
        async move {
            let mut online = self.links.send(Online).await.map_err(failed)?;
            online.extend(self.store.agents_linked().await.map_err(failed)?);
            online.sort_unstable();
            online.dedup();
            Ok(online)
        }
        .boxed()
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        metrics::render(self).boxed()
    }

    fn answered(&self, answered: &Answered<'_>) {
        metrics::answered(answered);
        self.telemetry.answered(answered);
    }

    fn ready(&self) -> BoxFuture<'_, Readiness> {
        async move {
            let status = self.audit.status();
            let store = if self.freshness.stale() {
                Check::bad("the store has not been reached for too long")
            } else if status.journal_bytes * 100 >= status.journal_budget_bytes * JOURNAL_FULL_PERCENT {
                Check::bad("the journal's byte budget is nearly used up: the store takes no records")
            } else {
                Check::good()
            };
            let mut warnings = Vec::new();
            if status.replaying {
                warnings.push("journals of earlier runs are still being carried over".to_owned());
            }
            match self.store.clock_offset().await {
                Ok(offset) if offset.is_large() => warnings.push(format!("this replica's clock is off: {offset:?}")),
                Ok(_) => {}
                Err(error) => warnings.push(format!("the store's clock cannot be asked: {error}")),
            }
            let links = match self.links.send(Online).await {
                Ok(_) => Check::good(),
                Err(error) => Check::bad(error.to_string()),
            };
            Readiness {
                store,
                listeners: Check::good(),
                links,
                warnings,
            }
        }
        .boxed()
    }

    fn test_connection(&self, asked: ConnectionToTest) -> BoxFuture<'_, Result<Vec<AgentTest>, ControlError>> {
        let dispatcher = self.dispatcher.clone();
        // a task of its own: it ends by itself, whether its caller waits or not
        async move { actix_rt::spawn(trial::run(dispatcher, asked)).await.map_err(failed) }.boxed()
    }

    fn link_address(&self) -> String {
        self.addresses.link.clone()
    }

    fn postgres_address(&self) -> (String, u16) {
        (self.addresses.postgres_host.clone(), self.addresses.postgres_port)
    }
}
