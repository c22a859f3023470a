//! What the API asks of the running gateway. The binary implements it; the API owns no session, link or record.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hoop_proto::evidence::Event;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::connection_test::{AgentTest, ConnectionToTest};

/// The running gateway, as the API sees it.
pub trait Control: Send + Sync + 'static {
    /// Ends a session that this replica holds; `false` where it does not. The others hear of it through the store.
    fn kill_session(&self, session: Uuid, by: String) -> BoxFuture<'_, Result<bool, ControlError>>;

    /// Writes an administrative record and answers when it is committed. `payload` holds `by`, `subject`, `before` and
    /// `after`, and no secret.
    fn record(&self, kind: &'static str, payload: Value) -> BoxFuture<'_, Result<(), String>>;

    /// Recorded events with `seq` greater than `after_seq`, in order, at most `limit`.
    fn session_events(
        &self,
        session: Uuid,
        after_seq: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, ControlError>>;

    /// Names of agents with a link to any replica.
    fn agents_online(&self) -> BoxFuture<'_, Result<Vec<String>, ControlError>>;

    /// This replica's figures, as Prometheus reads them.
    fn metrics(&self) -> BoxFuture<'_, String>;

    /// A request was answered: for figures and traces.
    fn answered(&self, _answered: &Answered<'_>) {}

    fn ready(&self) -> BoxFuture<'_, Readiness>;

    /// Has each of a connection's agents try its target; answers in their order, within 35 s.
    fn test_connection(&self, asked: ConnectionToTest) -> BoxFuture<'_, Result<Vec<AgentTest>, ControlError>>;

    /// Where agents dial: `host:port` of the gRPC listener, as people outside name it.
    fn link_address(&self) -> String;

    /// Where PostgreSQL clients dial: the public host name and the port.
    fn postgres_address(&self) -> (String, u16);
}

/// An answered request. Nothing in it is a name or a value that somebody sent, but for `traceparent`.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    pub method: &'a str,
    /// The route's template; `None` where there is none.
    pub route: Option<&'a str>,
    pub status: u16,
    /// Until the head of the answer was made.
    pub took: Duration,
    /// The caller's own trace (W3C Trace Context), unchecked.
    pub traceparent: Option<&'a str>,
}

/// The gateway could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ControlError(pub String);

/// Whether this replica can serve.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Readiness {
    pub store: Check,
    pub listeners: Check,
    pub links: Check,
    /// What works, but should be looked at (a clock that is off).
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Check {
    pub ok: bool,
    /// For a person, without secrets; empty where all is well.
    pub detail: String,
}

impl Check {
    #[must_use]
    pub const fn good() -> Self {
        Self {
            ok: true,
            detail: String::new(),
        }
    }

    #[must_use]
    pub fn bad(detail: impl Into<String>) -> Self {
        Self {
            ok: false,
            detail: detail.into(),
        }
    }
}

impl Readiness {
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.store.ok && self.listeners.ok && self.links.ok
    }
}
