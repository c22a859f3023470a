//! `Directory`: applies what changes elsewhere (a kill, a revoked credential or agent) to this replica. Truth is the
//! numbered change log in the store; a notice is only a hint to read it now.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use chrono::Utc;
use hoop_access::{Circumstances, Mode};
use hoop_actors::handle::Handle;
use hoop_proto::end::End;
use hoop_store::changes::{self, Change, READ_BATCH};
use hoop_store::connections::Connection;
use hoop_store::database_url::DatabaseUrl;
use hoop_store::users::User;
use hoop_store::{Store, StoreError};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::links::registry::{AgentRevoked, Links};
use crate::sessions::{EndSessions, Known, List, Sessions, Which};

/// How often the change log is read without a hint.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for the directory to take a hint.
const HINT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often running sessions are judged without a change: for access that ends with its hours.
const REJUDGE_INTERVAL: Duration = Duration::from_secs(15);
/// Longest time for reading and applying what is new in the change log.
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
    /// This replica.
    pub replica: Uuid,
    /// Number of the last change that was applied: what was before is in the tables themselves.
    pub last: Arc<AtomicI64>,
}

/// The actor, on the main arbiter.
pub struct Directory {
    parts: DirectoryParts,
    reading: bool,
    again: bool,
    judging: bool,
}

impl Directory {
    #[must_use]
    pub const fn new(parts: DirectoryParts) -> Self {
        Self {
            parts,
            reading: false,
            again: false,
            judging: false,
        }
    }

    /// A judgement that fails, or is late, is made again at the next interval.
    fn look_at_the_hours(&mut self, ctx: &mut Context<Self>) {
        if self.judging {
            return;
        }
        self.judging = true;
        let parts = self.parts.clone();
        let looking = async move {
            rejudge(&parts).await?;
            free_left_behind(&parts).await
        };
        let judging = tokio::time::timeout(READ_TIMEOUT, looking);
        let judging = actix::fut::wrap_future::<_, Self>(judging);
        ctx.spawn(actix::ActorFutureExt::map(
            judging,
            |judged, directory: &mut Self, _| {
                directory.judging = false;
                match judged {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(%error, "cannot judge the running sessions"),
                    Err(_) => warn!("judging the running sessions takes over 5 s"),
                }
            },
        ));
    }

    fn read(&mut self, ctx: &mut Context<Self>) {
        if self.reading {
            self.again = true;
            return;
        }
        self.reading = true;
        let parts = self.parts.clone();
        let reading = async move { tokio::time::timeout(READ_TIMEOUT, catch_up(&parts)).await };
        let reading = actix::fut::wrap_future::<_, Self>(reading);
        ctx.spawn(actix::ActorFutureExt::map(
            reading,
            |read, directory: &mut Self, ctx| {
                directory.reading = false;
                match read {
                    Ok(Ok(())) => directory.parts.freshness.confirm(),
                    // what was not applied is read again
                    Ok(Err(error)) => warn!(%error, "cannot apply the change log"),
                    Err(_) => warn!("applying the change log takes over 5 s; it goes on at the next read"),
                }
                if std::mem::take(&mut directory.again) {
                    directory.read(ctx);
                }
            },
        ));
    }
}

/// Applies all changes that are not applied yet, in order. A change counts as applied once all of it is done; it may be
/// applied twice, which ends the same sessions once.
async fn catch_up(parts: &DirectoryParts) -> Result<(), StoreError> {
    loop {
        let found = parts.store.changes_since(parts.last.load(Ordering::Relaxed)).await?;
        let of_rules = |change: &Change| change.kind == changes::RULES_CHANGED;
        if found.iter().any(of_rules) {
            parts.store.refresh_rules().await?;
        }
        if found.iter().any(|change| of_rules(change) || is_of_access(change)) {
            rejudge(parts).await?;
        }
        for change in &found {
            apply(parts, change).await?;
            parts.last.fetch_max(change.seq, Ordering::Relaxed);
        }
        if i64::try_from(found.len()).unwrap_or(i64::MAX) < READ_BATCH {
            return Ok(());
        }
    }
}

fn is_of_access(change: &Change) -> bool {
    [changes::CONNECTION_CHANGED, changes::USER_CHANGED].contains(&change.kind.as_str())
}

/// Asks for every running session whether it would be allowed now, and ends those that would not.
async fn rejudge(parts: &DirectoryParts) -> Result<(), StoreError> {
    let Ok(running) = parts.sessions.send(List).await else {
        return Ok(());
    };
    if running.is_empty() {
        return Ok(());
    }
    let each_once = |ids: HashSet<Uuid>| ids.into_iter().collect::<Vec<_>>();
    let users = each_once(running.iter().map(|(_, known)| known.user_id).collect());
    let connections = each_once(running.iter().map(|(_, known)| known.connection_id).collect());
    let users = parts.store.users_by_id(&users).await?;
    let users: HashMap<Uuid, User> = users.into_iter().map(|user| (user.id, user)).collect();
    let connections = parts.store.connections_by_id(&connections).await?;
    let connections: HashMap<Uuid, Connection> = connections.into_iter().map(|it| (it.id, it)).collect();
    let (rules, now) = (parts.store.rules(), Utc::now());
    let stays = |known: &Known| {
        let circumstances = Circumstances {
            mode: Mode::Native,
            using: Some((now, known.client)),
        };
        match (users.get(&known.user_id), connections.get(&known.connection_id)) {
            (Some(user), Some(connection)) => rules
                .decide(&user.subject(), &connection.object(), &circumstances)
                .is_allowed(),
            _ => false,
        }
    };
    let over: HashSet<Uuid> = (running.iter().filter(|(_, known)| !stays(known)))
        .map(|(id, _)| *id)
        .collect();
    if !over.is_empty() {
        let end = EndSessions {
            which: Which::These(over),
            end: End::AccessDenied,
            by: "access rules".into(),
            message: "the access to this connection was taken away, or its hours are over".into(),
        };
        let _ = parts.sessions.send(end).await;
    }
    Ok(())
}

/// Gives back the places of sessions that could not do so themselves.
async fn free_left_behind(parts: &DirectoryParts) -> Result<(), StoreError> {
    let held = parts.store.held_places(parts.replica).await?;
    if held.is_empty() {
        return Ok(());
    }
    let Ok(running) = parts.sessions.send(List).await else {
        return Ok(());
    };
    let running: HashSet<Uuid> = running.into_iter().map(|(id, _)| id).collect();
    let left: Vec<Uuid> = held.into_iter().filter(|id| !running.contains(id)).collect();
    if left.is_empty() {
        return Ok(());
    }
    parts.store.give_places_back(&left).await
}

async fn apply(parts: &DirectoryParts, change: &Change) -> Result<(), StoreError> {
    debug!(seq = change.seq, kind = change.kind, subject = change.subject, "change");
    let subject = change.subject.clone();
    let (which, end, message) = match change.kind.as_str() {
        "session_killed" => match Uuid::parse_str(&subject) {
            Ok(id) => (Which::One(id), End::Killed, "an administrator ended this session"),
            Err(_) => return Ok(()),
        },
        "credential_revoked" => (
            Which::Credential(subject),
            End::CredentialRevoked,
            "this session's credential was revoked",
        ),
        "agent_revoked" => {
            let Ok(id) = Uuid::parse_str(&subject) else {
                return Ok(());
            };
            let _ = parts.links.send(AgentRevoked(id)).await;
            match parts.store.agent_name(id).await? {
                Some(name) => (
                    Which::Agent(name),
                    End::AgentRefused,
                    "the agent of this connection was revoked",
                ),
                None => return Ok(()),
            }
        }
        // other changes are read from their tables when they are needed
        _ => return Ok(()),
    };
    let end = EndSessions {
        which,
        end,
        by: "change log".into(),
        message: message.into(),
    };
    // waits for room in the mailbox: a change is never dropped
    let _ = parts.sessions.send(end).await;
    Ok(())
}

impl Actor for Directory {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read(ctx);
        ctx.run_interval(POLL_INTERVAL, |directory, ctx| directory.read(ctx));
        ctx.run_interval(REJUDGE_INTERVAL, |directory, ctx| directory.look_at_the_hours(ctx));
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

/// Passes the store's hints on, for as long as the gateway runs.
pub async fn hints(url: DatabaseUrl, directory: Handle<Directory>) {
    let mut hints = match hoop_store::changes::listen(&url) {
        Ok(hints) => hints,
        Err(error) => {
            warn!(%error, "changes are heard of by polling alone");
            return;
        }
    };
    loop {
        hints.next().await;
        // a directory that is down reads the log when it starts over
        let _ = directory.ask(Hint, HINT_TIMEOUT).await;
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
