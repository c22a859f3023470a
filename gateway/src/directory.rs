//! `Directory`: applies what changes elsewhere (a kill, a revoked credential or agent) to this replica. Truth is the
//! numbered change log in the store; a notice is only a hint to read it now.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use hoop_proto::end::End;
use hoop_store::Store;
use hoop_store::changes::Change;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::links::registry::{AgentRevoked, Links};
use crate::sessions::{EndSessions, Sessions, Which};

/// How often the change log is read without a hint.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Longest read of the change log.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long ago this replica last confirmed that it knows all changes. Shared with every session.
#[derive(Clone)]
pub struct Freshness {
    started: Instant,
    confirmed_ms: Arc<AtomicU64>,
    stale_max: Duration,
}

impl Freshness {
    #[must_use]
    pub fn new(stale_max: Duration) -> Self {
        Self {
            started: Instant::now(),
            confirmed_ms: Arc::default(),
            stale_max,
        }
    }

    fn confirm(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.confirmed_ms.store(now, Ordering::Relaxed);
    }

    /// True where the policy known here is older than `policy_stale_max_s`.
    #[must_use]
    pub fn stale(&self) -> bool {
        let confirmed = Duration::from_millis(self.confirmed_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(confirmed) > self.stale_max
    }
}

/// What a directory is made from.
#[derive(Clone)]
pub struct DirectoryParts {
    pub store: Store,
    pub sessions: Addr<Sessions>,
    pub links: Addr<Links>,
    pub freshness: Freshness,
    /// Number of the last change that was applied: what was before is in the tables themselves.
    pub last: Arc<AtomicI64>,
}

/// The actor, on the main arbiter.
pub struct Directory {
    parts: DirectoryParts,
    reading: bool,
    again: bool,
}

impl Directory {
    #[must_use]
    pub const fn new(parts: DirectoryParts) -> Self {
        Self {
            parts,
            reading: false,
            again: false,
        }
    }

    fn read(&mut self, ctx: &mut Context<Self>) {
        if self.reading {
            self.again = true;
            return;
        }
        self.reading = true;
        let (store, last) = (self.parts.store.clone(), self.parts.last.load(Ordering::Relaxed));
        let reading = async move { tokio::time::timeout(READ_TIMEOUT, store.changes_since(last)).await };
        let reading = actix::fut::wrap_future::<_, Self>(reading);
        ctx.spawn(actix::ActorFutureExt::map(
            reading,
            |read, directory: &mut Self, ctx| {
                directory.reading = false;
                match read {
                    Ok(Ok(found)) => {
                        directory.parts.freshness.confirm();
                        for change in found {
                            directory.parts.last.fetch_max(change.seq, Ordering::Relaxed);
                            directory.apply(&change, ctx);
                        }
                    }
                    Ok(Err(error)) => warn!(%error, "cannot read the change log"),
                    Err(_) => warn!("reading the change log took over 5 s"),
                }
                if std::mem::take(&mut directory.again) {
                    directory.read(ctx);
                }
            },
        ));
    }

    fn apply(&self, change: &Change, ctx: &mut Context<Self>) {
        debug!(seq = change.seq, kind = change.kind, subject = change.subject, "change");
        let (which, end, message) = match change.kind.as_str() {
            "session_killed" => {
                let Ok(id) = Uuid::parse_str(&change.subject) else {
                    return;
                };
                (Which::One(id), End::Killed, "an administrator ended this session")
            }
            "credential_revoked" => (
                Which::Credential(change.subject.clone()),
                End::CredentialRevoked,
                "this session's credential was revoked",
            ),
            "connection_changed" => {
                ctx.spawn(actix::fut::wrap_future(connection_changed(
                    self.parts.clone(),
                    change.subject.clone(),
                )));
                return;
            }
            "agent_revoked" => {
                if let Ok(id) = Uuid::parse_str(&change.subject) {
                    ctx.spawn(actix::fut::wrap_future(agent_revoked(self.parts.clone(), id)));
                }
                return;
            }
            // other changes are read from their tables when they are needed
            _ => return,
        };
        let (sessions, end) = (
            self.parts.sessions.clone(),
            EndSessions {
                which,
                end,
                by: "change log".into(),
                message: message.into(),
            },
        );
        // waits for room in the mailbox: a change is never dropped
        ctx.spawn(actix::fut::wrap_future(async move {
            let _ = sessions.send(end).await;
        }));
    }
}

/// Ends the sessions of a connection that is no more. A change of its settings reaches the next session.
async fn connection_changed(parts: DirectoryParts, name: String) {
    match parts.store.find_connection(&name).await {
        Ok(Some(_)) => {}
        Ok(None) => {
            let end = EndSessions {
                which: Which::Connection(name),
                end: End::AccessDenied,
                by: "change log".into(),
                message: "this connection was deleted".into(),
            };
            let _ = parts.sessions.send(end).await;
        }
        Err(error) => warn!(%error, connection = name, "cannot see whether a changed connection is still there"),
    }
}

/// Ends a revoked agent's links, and the sessions that it carries on this replica.
async fn agent_revoked(parts: DirectoryParts, id: Uuid) {
    let _ = parts.links.send(AgentRevoked(id)).await;
    match parts.store.agent_name(id).await {
        Ok(Some(name)) => {
            let end = EndSessions {
                which: Which::Agent(name),
                end: End::AgentRefused,
                by: "change log".into(),
                message: "the agent of this connection was revoked".into(),
            };
            let _ = parts.sessions.send(end).await;
        }
        Ok(None) => {}
        Err(error) => {
            warn!(%error, agent = %id, "cannot find the name of a revoked agent; its sessions end with its links")
        }
    }
}

impl Actor for Directory {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.parts.freshness.confirm();
        self.read(ctx);
        ctx.run_interval(POLL_INTERVAL, |directory, ctx| directory.read(ctx));
    }
}

/// Something may have changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Hint;

impl Handler<Hint> for Directory {
    type Result = ();

    fn handle(&mut self, _: Hint, ctx: &mut Self::Context) {
        self.read(ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_is_fresh_until_its_limit_after_the_last_confirmation() {
        let freshness = Freshness::new(Duration::from_millis(20));
        freshness.confirm();
        assert!(!freshness.stale());
        std::thread::sleep(Duration::from_millis(40));
        assert!(freshness.stale());
        freshness.confirm();
        assert!(!freshness.stale());
    }
}
