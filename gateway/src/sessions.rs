//! `Sessions`: which sessions this replica runs, so that a kill, a revoked credential or a removed agent reaches them.
//! It holds addresses and names, never bytes.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use actix::{Actor, Context, Handler, Message, MessageResult, Recipient};
use hoop_actors::session::Kill;
use hoop_proto::end::{End, Refusal};
use tracing::{info, warn};
use uuid::Uuid;

use crate::vital::Vital;

/// A session and what is known of it.
pub struct Entry {
    pub kill: Recipient<Kill>,
    pub known: Known,
}

/// By what a session can be meant, and what its access is judged by.
#[derive(Clone)]
pub struct Known {
    pub user: String,
    pub user_id: Uuid,
    pub client: IpAddr,
    pub credential: String,
    pub connection: String,
    pub connection_id: Uuid,
    pub agent: String,
}

/// The registry's actor, on the main arbiter.
pub struct Sessions {
    entries: HashMap<Uuid, Entry>,
    max_sessions: usize,
    closing: bool,
    _vital: Vital,
}

impl Sessions {
    #[must_use]
    pub fn new(max_sessions: usize, vital: Vital) -> Self {
        Self {
            entries: HashMap::new(),
            max_sessions,
            closing: false,
            _vital: vital,
        }
    }
}

impl Actor for Sessions {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
    }
}

/// A session is about to start.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct Open {
    pub id: Uuid,
    pub entry: Entry,
}

impl Handler<Open> for Sessions {
    type Result = Result<(), Refusal>;

    fn handle(&mut self, message: Open, _: &mut Self::Context) -> Self::Result {
        if self.closing {
            return Err(stopping());
        }
        if self.entries.len() >= self.max_sessions {
            return Err(Refusal::new(
                End::TooManySessions,
                format!("this gateway serves its {} sessions already", self.max_sessions),
                "Try again in a moment, or ask the operator to raise max_sessions or add a replica.",
            ));
        }
        self.entries.insert(message.id, message.entry);
        Ok(())
    }
}

/// No more sessions: this replica stops.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Close;

impl Handler<Close> for Sessions {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.closing = true;
    }
}

/// Told to who comes while the gateway stops.
#[must_use]
pub fn stopping() -> Refusal {
    Refusal::new(
        End::Shutdown,
        "the gateway is stopping",
        "Connect again: another replica, or this one, will serve you.",
    )
}

/// A session is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Closed(pub Uuid);

impl Handler<Closed> for Sessions {
    type Result = ();

    fn handle(&mut self, message: Closed, _: &mut Self::Context) {
        self.entries.remove(&message.0);
    }
}

/// Another agent than the one that was chosen serves this session.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ServedBy {
    pub session: Uuid,
    pub agent: String,
}

impl Handler<ServedBy> for Sessions {
    type Result = ();

    fn handle(&mut self, message: ServedBy, _: &mut Self::Context) {
        if let Some(entry) = self.entries.get_mut(&message.session) {
            entry.known.agent = message.agent;
        }
    }
}

/// Which sessions to end.
#[derive(Debug, Clone)]
pub enum Which {
    One(Uuid),
    Credential(String),
    /// Each of these.
    These(HashSet<Uuid>),
    Agent(String),
    All,
}

/// Ends sessions. Answers how many were told.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct EndSessions {
    pub which: Which,
    pub end: End,
    pub by: String,
    pub message: String,
}

impl Handler<EndSessions> for Sessions {
    type Result = usize;

    fn handle(&mut self, message: EndSessions, _: &mut Self::Context) -> usize {
        let mut told = 0;
        for (id, entry) in &self.entries {
            let known = &entry.known;
            let meant = match &message.which {
                Which::One(wanted) => wanted == id,
                Which::Credential(credential) => *credential == known.credential,
                Which::These(ids) => ids.contains(id),
                Which::Agent(agent) => *agent == known.agent,
                Which::All => true,
            };
            if !meant {
                continue;
            }
            let kill = Kill {
                end: message.end,
                by: message.by.clone(),
                message: message.message.clone(),
            };
            // a session's mailbox carries control only: it is full only if kills are waiting there
            if entry.kill.try_send(kill).is_err() {
                warn!(session = %id, "a session does not take its kill; one waits there already, or it is over");
            }
            info!(session = %id, user = known.user, connection = known.connection, end = %message.end, by = message.by, "session told to end");
            told += 1;
        }
        told
    }
}

/// All sessions that run here, for their access to be judged again.
#[derive(Message)]
#[rtype(result = "Vec<(Uuid, Known)>")]
pub struct List;

impl Handler<List> for Sessions {
    type Result = MessageResult<List>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        let all = self.entries.iter().map(|(id, entry)| (*id, entry.known.clone()));
        MessageResult(all.collect())
    }
}

/// How many sessions run here.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Count;

impl Handler<Count> for Sessions {
    type Result = MessageResult<Count>;

    fn handle(&mut self, _: Count, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.entries.len())
    }
}
