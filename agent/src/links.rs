//! `Links`: decides when the gateway's one address is dialled, until the agent holds a link to every arbiter of every
//! replica. Parent of every `AgentLink`.
//!
//! Which replica answers a dial is the balancer's choice, so links are found by dialling: what is new is kept, a
//! duplicate is closed after its Welcome.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;
use uuid::Uuid;

use crate::attach::Shared;
use crate::config::{ARBITERS_MAX, Config};
use crate::dial::Dialer;
use crate::link::{AgentLink, LinkEnd, SayDraining};
use crate::pace::Pace;
use crate::sessions::Sessions;
use hoop_actors::budget::ByteBudget;

/// How often the planner looks by itself: a timer's drift and a lost message cost no more than this.
const SWEEP: Duration = Duration::from_secs(2);
/// Replicas that one gateway may list.
const REPLICAS_MAX: usize = 64;

/// One link connection of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A link was welcomed: is it wanted?
#[derive(Debug, Message)]
#[rtype(result = "Verdict")]
pub struct Welcomed {
    pub link: LinkId,
    pub replica: Uuid,
    pub arbiter: u32,
    pub arbiters: u32,
    pub replicas: Vec<Uuid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, MessageResponse)]
pub enum Verdict {
    Keep,
    Duplicate,
}

/// The set of live replicas changed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Replicas {
    pub replicas: Vec<Uuid>,
}

/// The replica at the other end drains: its link goes on with its sessions, and another one is wanted at once.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Retiring {
    pub link: LinkId,
}

/// A link is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Lost {
    pub link: LinkId,
    pub end: LinkEnd,
}

/// The agent stops: tell every gateway, dial no more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// How many links are held.
#[derive(Debug, Message)]
#[rtype(result = "usize")]
pub struct CountHeld;

struct Entry {
    addr: Addr<AgentLink>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialling,
    Held {
        replica: Uuid,
        arbiter: u32,
        since: Instant,
    },
    /// Held until its Register stream ends, and no longer counted.
    Retiring,
}

/// The planner.
pub struct Links {
    config: Config,
    dialer: Dialer,
    sessions: Sessions,
    budget: ByteBudget,
    instance: [u8; 16],
    arbiters: Arc<Vec<ArbiterHandle>>,
    links: BTreeMap<LinkId, Entry>,
    next_id: u64,
    replicas: BTreeSet<Uuid>,
    /// Arbiters of a replica, as its last Welcome said.
    arbiters_of: BTreeMap<Uuid, u32>,
    pace: Pace,
    stopping: bool,
}

impl Links {
    #[must_use]
    pub fn new(
        config: Config,
        dialer: Dialer,
        instance: [u8; 16],
        sessions: Sessions,
        arbiters: Arc<Vec<ArbiterHandle>>,
    ) -> Self {
        Self {
            config,
            dialer,
            sessions,
            budget: ByteBudget::default(),
            instance,
            arbiters,
            links: BTreeMap::new(),
            next_id: 0,
            replicas: BTreeSet::new(),
            arbiters_of: BTreeMap::new(),
            pace: Pace::new(Instant::now()),
            stopping: false,
        }
    }

    /// Places that a link could take: one per arbiter and live replica. Before the first Welcome there is one.
    fn wanted(&self) -> usize {
        let places = self
            .replicas
            .iter()
            .map(|replica| self.arbiters_of.get(replica).map_or(1, |count| *count as usize));
        places.sum::<usize>().max(1)
    }

    fn held(&self) -> usize {
        let counts = |state: State| match state {
            State::Held { replica, .. } => self.replicas.contains(&replica),
            State::Dialling | State::Retiring => false,
        };
        self.links.values().filter(|entry| counts(entry.state)).count()
    }

    fn dialling(&self) -> usize {
        self.links
            .values()
            .filter(|entry| entry.state == State::Dialling)
            .count()
    }

    /// Dials what is missing and may be dialled now.
    fn plan(&mut self, ctx: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        let now = Instant::now();
        let missing = self.wanted().saturating_sub(self.held() + self.dialling());
        for _ in 0..missing {
            match self.pace.take(now, self.dialling()) {
                Ok(()) => self.dial(ctx),
                Err(at) => {
                    if let Some(at) = at {
                        ctx.run_later(at.saturating_duration_since(now), Self::plan);
                    }
                    return;
                }
            }
        }
    }

    fn dial(&mut self, ctx: &mut Context<Self>) {
        let id = LinkId(self.next_id);
        self.next_id += 1;
        let index = (id.0 % self.arbiters.len().max(1) as u64) as usize;
        let Some(arbiter) = self.arbiters.get(index) else {
            return;
        };
        let (config, budget, instance) = (self.config.clone(), self.budget.clone(), self.instance);
        let (sessions, dialer, planner) = (self.sessions.clone(), self.dialer.clone(), ctx.address());
        let addr = AgentLink::start_in_arbiter(arbiter, move |_| {
            let shared = Rc::new(Shared {
                config,
                budget,
                instance,
            });
            AgentLink::new(id, shared, sessions, dialer, planner)
        });
        tracing::debug!(link = id.0, arbiter = index, "dialling the gateway");
        self.links.insert(
            id,
            Entry {
                addr,
                state: State::Dialling,
            },
        );
    }

    fn learn(&mut self, replicas: Vec<Uuid>) {
        let replicas: BTreeSet<_> = replicas.into_iter().take(REPLICAS_MAX).collect();
        if replicas != self.replicas {
            let before = self.wanted();
            self.replicas = replicas;
            self.arbiters_of.retain(|replica, _| self.replicas.contains(replica));
            self.pace.grown(self.wanted().saturating_sub(before));
        }
    }

    fn lose(&mut self, link: LinkId, end: &LinkEnd) {
        let Some(entry) = self.links.remove(&link) else { return };
        let now = Instant::now();
        match (entry.state, end) {
            (_, LinkEnd::Duplicate) => {
                tracing::debug!(link = link.0, "duplicate link closed");
                self.pace.duplicate(now);
            }
            (State::Retiring, _) => tracing::info!(link = link.0, "drained link closed"),
            (State::Held { since, .. }, _) => {
                if !self.stopping {
                    tracing::warn!(link = link.0, why = %describe(end), "link lost");
                }
                self.pace.lost(now, now.duration_since(since));
            }
            (State::Dialling, _) => {
                if !self.stopping {
                    let refused = matches!(end, LinkEnd::KeyRefused(_) | LinkEnd::Refused(_));
                    let wait = self.pace.failed(now, refused);
                    tracing::warn!(why = %describe(end), retry_ms = wait.as_millis() as u64, "no link to the gateway");
                }
            }
        }
    }
}

/// An error with its causes, for a person who reads the log.
fn describe(end: &LinkEnd) -> String {
    let mut text = end.to_string();
    let mut source = std::error::Error::source(end);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Actor for Links {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.plan(ctx);
        ctx.run_interval(SWEEP, |links, ctx| {
            let dead: Vec<LinkId> = links
                .links
                .iter()
                .filter(|(_, entry)| !entry.addr.connected())
                .map(|(id, _)| *id)
                .collect();
            for id in dead {
                links.lose(id, &LinkEnd::Broken("its actor died".to_owned()));
            }
            links.plan(ctx);
        });
    }
}

impl Handler<Welcomed> for Links {
    type Result = Verdict;

    fn handle(&mut self, welcomed: Welcomed, ctx: &mut Self::Context) -> Verdict {
        let now = Instant::now();
        self.learn(welcomed.replicas);
        // The replica that answers is live, whatever its list says.
        let before = self.wanted();
        self.replicas.insert(welcomed.replica);
        let count = welcomed.arbiters.clamp(1, ARBITERS_MAX as u32);
        self.arbiters_of.insert(welcomed.replica, count);
        self.pace.grown(self.wanted().saturating_sub(before));
        let taken = self.links.values().any(|entry| {
            matches!(entry.state, State::Held { replica, arbiter, .. }
                if replica == welcomed.replica && arbiter == welcomed.arbiter)
        });
        let verdict = match self.links.get_mut(&welcomed.link) {
            Some(entry) if !taken => {
                entry.state = State::Held {
                    replica: welcomed.replica,
                    arbiter: welcomed.arbiter,
                    since: now,
                };
                self.pace.held();
                if self.stopping {
                    let _gone = entry.addr.try_send(SayDraining);
                }
                Verdict::Keep
            }
            _ => Verdict::Duplicate,
        };
        self.plan(ctx);
        verdict
    }
}

impl Handler<Replicas> for Links {
    type Result = ();

    fn handle(&mut self, replicas: Replicas, ctx: &mut Self::Context) {
        self.learn(replicas.replicas);
        self.plan(ctx);
    }
}

impl Handler<Retiring> for Links {
    type Result = ();

    fn handle(&mut self, retiring: Retiring, ctx: &mut Self::Context) {
        if let Some(entry) = self.links.get_mut(&retiring.link) {
            entry.state = State::Retiring;
            self.pace.grown(1);
        }
        self.plan(ctx);
    }
}

impl Handler<Lost> for Links {
    type Result = ();

    fn handle(&mut self, lost: Lost, ctx: &mut Self::Context) {
        self.lose(lost.link, &lost.end);
        self.plan(ctx);
    }
}

impl Handler<Stop> for Links {
    type Result = ();

    fn handle(&mut self, _stop: Stop, _ctx: &mut Self::Context) {
        self.stopping = true;
        for entry in self.links.values() {
            let _gone = entry.addr.try_send(SayDraining);
        }
    }
}

impl Handler<CountHeld> for Links {
    type Result = usize;

    fn handle(&mut self, _count: CountHeld, _ctx: &mut Self::Context) -> usize {
        self.links
            .values()
            .filter(|entry| matches!(entry.state, State::Held { .. }))
            .count()
    }
}
