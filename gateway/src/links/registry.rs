//! `Links`: who is linked to this replica. Every login asks it once; it holds addresses, never bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult, ResponseFuture};
use hoop_store::Store;
use hoop_store::replicas::Replica;
use tracing::warn;
use uuid::Uuid;

use crate::vital::Vital;

use super::agent_link::{AgentLink, DrainLink, ReplicasChanged, Revoked};

/// Pause before a failed report to the store is tried again.
const PUBLISH_RETRY: Duration = Duration::from_secs(2);
/// Links that one agent identity may hold to one replica (instances times arbiters).
pub const LINKS_PER_AGENT_MAX: usize = 512;

struct Entry {
    agent_id: Uuid,
    agent: String,
    arbiter: usize,
    address: Addr<AgentLink>,
    can_test: bool,
    sessions: Arc<AtomicUsize>,
    draining: bool,
}

/// The registry's actor, on the main arbiter.
pub struct Links {
    entries: HashMap<u64, Entry>,
    next: u64,
    store: Store,
    replica: Replica,
    /// Agents whose keys were revoked while this replica runs: a register that was under way does not join.
    revoked: HashSet<Uuid>,
    /// This replica stops: no more links.
    closing: bool,
    /// A report to the store is under way; `dirty`: another one must follow.
    publishing: bool,
    dirty: bool,
    _vital: Vital,
}

impl Links {
    #[must_use]
    pub fn new(store: Store, replica: Replica, vital: Vital) -> Self {
        Self {
            entries: HashMap::new(),
            next: 1,
            store,
            replica,
            revoked: HashSet::new(),
            closing: false,
            publishing: false,
            dirty: false,
            _vital: vital,
        }
    }

    /// The link that serves a session of this arbiter best, of those of the agents that are meant.
    fn best(&self, arbiter: usize, meant: impl Fn(&str) -> bool) -> Option<(u64, &Entry)> {
        self.entries
            .iter()
            .filter(|(_, entry)| meant(&entry.agent) && !entry.draining && entry.address.connected())
            .min_by_key(|(_, entry)| (entry.arbiter != arbiter, entry.sessions.load(Ordering::Relaxed)))
            .map(|(link, entry)| (*link, entry))
    }

    /// Tells the other replicas, through the store, whom we can reach. One report at a time, so that the last one told
    /// is the last one kept.
    fn publish(&mut self, ctx: &mut Context<Self>) {
        if self.publishing {
            self.dirty = true;
            return;
        }
        self.publishing = true;
        let mut agents: Vec<Uuid> = self
            .entries
            .values()
            .filter(|e| !e.draining)
            .map(|e| e.agent_id)
            .collect();
        agents.sort_unstable();
        agents.dedup();
        let (store, replica) = (self.store.clone(), self.replica);
        let telling = actix::fut::wrap_future::<_, Self>(async move {
            let told = store.replace_links(&replica, &agents).await;
            if told.is_err() {
                tokio::time::sleep(PUBLISH_RETRY).await;
            }
            told
        });
        ctx.spawn(actix::ActorFutureExt::map(telling, |told, links: &mut Self, ctx| {
            links.publishing = false;
            if let Err(error) = &told {
                warn!(%error, "cannot tell the other replicas which agents are linked here; trying again");
            }
            if std::mem::take(&mut links.dirty) || told.is_err() {
                links.publish(ctx);
            }
        }));
    }
}

impl Actor for Links {
    type Context = Context<Self>;
}

/// A link has said hello. Answers its number.
#[derive(Message)]
#[rtype(result = "Option<u64>")]
pub struct Join {
    pub agent_id: Uuid,
    pub agent: String,
    pub arbiter: usize,
    pub address: Addr<AgentLink>,
    /// It has the capability `test`.
    pub can_test: bool,
}

impl Handler<Join> for Links {
    type Result = Option<u64>;

    fn handle(&mut self, message: Join, ctx: &mut Self::Context) -> Self::Result {
        let held = self
            .entries
            .values()
            .filter(|entry| entry.agent_id == message.agent_id)
            .count();
        if held >= LINKS_PER_AGENT_MAX || self.closing || self.revoked.contains(&message.agent_id) {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.entries.insert(
            id,
            Entry {
                agent_id: message.agent_id,
                agent: message.agent,
                arbiter: message.arbiter,
                address: message.address,
                can_test: message.can_test,
                sessions: Arc::default(),
                draining: false,
            },
        );
        self.publish(ctx);
        Some(id)
    }
}

/// A link is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave(pub u64);

impl Handler<Leave> for Links {
    type Result = ();

    fn handle(&mut self, message: Leave, ctx: &mut Self::Context) {
        if self.entries.remove(&message.0).is_some() {
            self.publish(ctx);
        }
    }
}

/// An agent takes no more sessions on this link.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LinkDraining(pub u64);

impl Handler<LinkDraining> for Links {
    type Result = ();

    fn handle(&mut self, message: LinkDraining, ctx: &mut Self::Context) {
        if let Some(entry) = self.entries.get_mut(&message.0) {
            entry.draining = true;
            self.publish(ctx);
        }
    }
}

/// Which of these agents is to serve: the one with the least busy link here, one on this arbiter before others.
#[derive(Message)]
#[rtype(result = "Option<String>")]
pub struct Nearest {
    pub agents: Vec<String>,
    pub arbiter: usize,
}

impl Handler<Nearest> for Links {
    type Result = Option<String>;

    fn handle(&mut self, message: Nearest, _: &mut Self::Context) -> Self::Result {
        let (_, entry) = self.best(message.arbiter, |agent| message.agents.iter().any(|name| name == agent))?;
        Some(entry.agent.clone())
    }
}

/// A link to this agent: on this arbiter where there is one, the least busy among equals.
#[derive(Message)]
#[rtype(result = "Option<Picked>")]
pub struct Pick {
    pub agent: String,
    pub arbiter: usize,
}

/// A link that serves.
pub struct Picked {
    pub link: u64,
    pub arbiter: usize,
    pub address: Addr<AgentLink>,
    /// It has the capability `test`.
    pub can_test: bool,
    /// Counts this session among the link's until it is dropped.
    pub load: LinkLoad,
}

/// One session's share of a link's load.
pub struct LinkLoad(Arc<AtomicUsize>);

impl LinkLoad {
    fn take(sessions: &Arc<AtomicUsize>) -> Self {
        sessions.fetch_add(1, Ordering::Relaxed);
        Self(sessions.clone())
    }
}

impl Drop for LinkLoad {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Handler<Pick> for Links {
    type Result = Option<Picked>;

    fn handle(&mut self, message: Pick, _: &mut Self::Context) -> Self::Result {
        let (link, entry) = self.best(message.arbiter, |agent| agent == message.agent)?;
        Some(Picked {
            link,
            arbiter: entry.arbiter,
            address: entry.address.clone(),
            can_test: entry.can_test,
            load: LinkLoad::take(&entry.sessions),
        })
    }
}

/// How many sessions the links carry, those of other replicas included.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Carried;

impl Handler<Carried> for Links {
    type Result = MessageResult<Carried>;

    fn handle(&mut self, _: Carried, _: &mut Self::Context) -> Self::Result {
        MessageResult(
            self.entries
                .values()
                .map(|entry| entry.sessions.load(Ordering::Relaxed))
                .sum(),
        )
    }
}

/// The names of all agents that are linked to this replica.
#[derive(Message)]
#[rtype(result = "Vec<String>")]
pub struct Online;

impl Handler<Online> for Links {
    type Result = MessageResult<Online>;

    fn handle(&mut self, _: Online, _: &mut Self::Context) -> Self::Result {
        let mut names: Vec<String> = self.entries.values().map(|entry| entry.agent.clone()).collect();
        names.sort_unstable();
        names.dedup();
        MessageResult(names)
    }
}

/// How many links there are.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct CountLinks;

impl Handler<CountLinks> for Links {
    type Result = MessageResult<CountLinks>;

    fn handle(&mut self, _: CountLinks, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.entries.len())
    }
}

/// An agent's key was revoked: its links end now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AgentRevoked(pub Uuid);

impl Handler<AgentRevoked> for Links {
    type Result = ();

    fn handle(&mut self, message: AgentRevoked, _: &mut Self::Context) {
        self.revoked.insert(message.0);
        for entry in self.entries.values().filter(|entry| entry.agent_id == message.0) {
            if entry.address.try_send(Revoked).is_err() {
                warn!(agent = entry.agent, "the link of a revoked agent does not answer");
            }
        }
    }
}

/// The set of live replicas has changed.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct Replicas(pub Vec<Uuid>);

impl Handler<Replicas> for Links {
    type Result = ();

    fn handle(&mut self, message: Replicas, ctx: &mut Self::Context) {
        for entry in self.entries.values() {
            if entry.address.try_send(ReplicasChanged(message.0.clone())).is_err() {
                warn!(agent = entry.agent, "a link does not take the new list of replicas");
            }
        }
        self.publish(ctx);
    }
}

/// The replica stops: every agent is asked to look elsewhere.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DrainAll {
    pub deadline_ms: u32,
}

impl Handler<DrainAll> for Links {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, message: DrainAll, _: &mut Self::Context) -> Self::Result {
        self.closing = true;
        for entry in self.entries.values_mut() {
            entry.draining = true;
        }
        let addresses: Vec<_> = self.entries.values().map(|entry| entry.address.clone()).collect();
        Box::pin(async move {
            for address in addresses {
                // a link that is gone needs no telling
                let _ = address
                    .send(DrainLink {
                        deadline_ms: message.deadline_ms,
                    })
                    .await;
            }
        })
    }
}
