//! How a session finds its agent: which of several, and by a link of this replica, else another replica's over `Peer`.

use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::{Dispatch, Target};
use hoop_store::replicas::ReplicaRow;
use hoop_store::{Store, StoreError};
use tracing::warn;
use uuid::Uuid;

use super::agent_link::SendDispatch;
use super::peer::PeerDialer;
use super::registry::{LinkLoad, Links, Nearest, Pick};
use super::tickets::{Attached, Tickets};

/// Longest time from a Dispatch to its Attach.
pub const DISPATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A session that wants its target.
#[derive(Clone)]
pub struct Request {
    pub session: Uuid,
    pub agent: String,
    pub connection: String,
    pub target: Target,
}

/// Knows every way to an agent. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    pub store: Store,
    pub tickets: Tickets,
    pub links: Addr<Links>,
    pub peers: PeerDialer,
    pub replica: Uuid,
}

fn offline(agent: &str) -> Refusal {
    Refusal::new(
        End::AgentOffline,
        format!("the agent \"{agent}\" of this connection is not online"),
        "Ask the operator to start hoop-agent with this agent's HOOP_KEY; then connect again.",
    )
}

fn all_offline(agents: &[String]) -> Refusal {
    match agents {
        [agent] => offline(agent),
        _ => Refusal::new(
            End::AgentOffline,
            format!(
                "none of this connection's agents is online: \"{}\"",
                agents.join("\", \"")
            ),
            "Ask the operator to start hoop-agent with the HOOP_KEY of one of them; then connect again.",
        ),
    }
}

/// Whether another agent may serve where one answered so: it has not reached the target.
const fn leaves_it_to_others(end: End) -> bool {
    matches!(
        end,
        End::AgentOffline
            | End::AgentTooOld
            | End::AgentRefused
            | End::TooManySessions
            | End::DispatchTimeout
            | End::LinkLost
            | End::Shutdown
    )
}

/// Who serves a session.
pub struct Served {
    pub agent: String,
    pub attached: Attached,
    /// Of a link of this replica.
    pub load: Option<LinkLoad>,
}

impl Dispatcher {
    /// Which of a connection's agents is to serve, as things are now: one linked to this replica, else one linked to
    /// another, else the first. `None` where none is named.
    pub async fn choose(&self, agents: &[String], arbiter: usize) -> Option<String> {
        if agents.len() > 1 {
            let nearest = Nearest {
                agents: agents.to_vec(),
                arbiter,
            };
            if let Ok(Some(agent)) = self.links.send(nearest).await {
                return Some(agent);
            }
            match self.store.agents_linked().await {
                Ok(linked) => {
                    if let Some(agent) = agents.iter().find(|agent| linked.contains(agent)) {
                        return Some(agent.clone());
                    }
                }
                Err(error) => warn!(%error, "cannot ask the store which agents are linked elsewhere"),
            }
        }
        agents.first().cloned()
    }

    /// The agent of `request`; where it cannot serve, any other of `agents`.
    ///
    /// # Errors
    /// The `Refusal` to tell the person: no agent online, or what the last one said that is.
    pub async fn any(&self, mut request: Request, agents: &[String], arbiter: usize) -> Result<Served, Refusal> {
        let first = request.agent.clone();
        let others = agents.iter().filter(|agent| **agent != first);
        let mut said = None;
        for agent in std::iter::once(&first).chain(others) {
            request.agent.clone_from(agent);
            match self.anywhere(&request, arbiter).await {
                Ok((attached, load)) => {
                    let agent = request.agent;
                    return Ok(Served { agent, attached, load });
                }
                Err(refusal) if !leaves_it_to_others(refusal.end) => return Err(refusal),
                Err(refusal) if refusal.end != End::AgentOffline => said = Some(refusal),
                Err(_) => {}
            }
        }
        Err(said.unwrap_or_else(|| all_offline(agents)))
    }

    /// A link of this replica, or another replica's.
    ///
    /// # Errors
    /// The `Refusal` to tell the person: agent offline, refused, too slow, lost.
    pub async fn anywhere(&self, request: &Request, arbiter: usize) -> Result<(Attached, Option<LinkLoad>), Refusal> {
        match self.here(request, arbiter).await {
            Ok((attached, load)) => return Ok((attached, Some(load))),
            Err(refusal) if refusal.end != End::AgentOffline => return Err(refusal),
            Err(_) => {}
        }
        let others = self.elsewhere(&request.agent).await.map_err(|error| {
            warn!(%error, "cannot ask the store which replica holds the agent's link");
            offline(&request.agent)
        })?;
        for other in others.into_iter().filter(|other| other.id != self.replica) {
            match self.peers.open(&other, request).await {
                Ok(attached) => return Ok((attached, None)),
                Err(error) => {
                    warn!(replica = %other.id, %error, "a replica that holds the agent's link cannot be reached")
                }
            }
        }
        Err(offline(&request.agent))
    }

    async fn elsewhere(&self, agent: &str) -> Result<Vec<ReplicaRow>, StoreError> {
        match self.store.find_agent(agent).await? {
            Some(agent) => self.store.linked_replicas(agent.id).await,
            None => Ok(Vec::new()),
        }
    }

    /// A link of this replica only.
    ///
    /// # Errors
    /// The `Refusal` to tell the person.
    pub async fn here(&self, request: &Request, arbiter: usize) -> Result<(Attached, LinkLoad), Refusal> {
        let pick = Pick {
            agent: request.agent.clone(),
            arbiter,
        };
        let picked = self
            .links
            .send(pick)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| offline(&request.agent))?;
        if request.target.test_only && !picked.can_test {
            return Err(Refusal::new(
                End::AgentTooOld,
                format!("the agent \"{}\" is too old to test a connection", request.agent),
                "Upgrade the agent.",
            ));
        }
        let mut ticket = self.tickets.issue(request.session, picked.link);
        let dispatch = Dispatch {
            session: Bytes::copy_from_slice(request.session.as_bytes()),
            ticket: Bytes::copy_from_slice(&ticket.bytes),
            replica: Bytes::copy_from_slice(self.replica.as_bytes()),
            arbiter: u32::try_from(picked.arbiter).unwrap_or_default(),
            connection: request.connection.clone(),
            target: Some(request.target.clone()),
        };
        if !picked.address.send(SendDispatch(dispatch)).await.unwrap_or(false) {
            return Err(offline(&request.agent));
        }
        match tokio::time::timeout(DISPATCH_TIMEOUT, &mut ticket.answer).await {
            Ok(Ok(Ok(attached))) => Ok((attached, picked.load)),
            Ok(Ok(Err(refusal))) => Err(refusal),
            Ok(Err(_)) => Err(offline(&request.agent)),
            Err(_) => Err(Refusal::new(
                End::DispatchTimeout,
                format!(
                    "the agent \"{}\" did not answer within {} s",
                    request.agent,
                    DISPATCH_TIMEOUT.as_secs()
                ),
                "Try again; if it happens again, ask the operator to look at the agent's log.",
            )),
        }
    }
}
