//! `AgentLink`: one Register stream of one agent, on the arbiter of its connection. Control only, never session bytes.

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, StreamHandler};
use hoop_actors::mux::refusal_of;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::{
    AgentMessage, Close, Dispatch, Drain, GatewayMessage, Health, Refused, Replicas, agent_message, gateway_message,
};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{info, warn};
use uuid::Uuid;

use super::door::OpenStream;
use super::registry::{Join, Leave, LinkDraining, Links};
use super::tickets::Tickets;

/// Messages to one agent that may wait for its connection.
pub const OUTBOX_MESSAGES: usize = 1024;
/// Messages to one link that may wait for its actor.
const MAILBOX_MESSAGES: usize = 1024;

/// What a link is made of.
pub struct LinkParts {
    pub agent_id: Uuid,
    pub agent: String,
    pub arbiter: usize,
    /// The agent has the capability `test`.
    pub can_test: bool,
    pub outbox: mpsc::Sender<Result<GatewayMessage, Status>>,
    pub tickets: Tickets,
    pub links: Addr<Links>,
    /// Counts on its connection for as long as the link lives.
    pub _stream: OpenStream,
}

/// The actor.
pub struct AgentLink {
    parts: LinkParts,
    id: Option<u64>,
}

impl AgentLink {
    #[must_use]
    pub const fn new(parts: LinkParts) -> Self {
        Self { parts, id: None }
    }

    fn send(&self, body: gateway_message::Body) -> bool {
        self.parts
            .outbox
            .try_send(Ok(GatewayMessage { body: Some(body) }))
            .is_ok()
    }
}

impl Actor for AgentLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MESSAGES);
        let join = Join {
            agent_id: self.parts.agent_id,
            agent: self.parts.agent.clone(),
            arbiter: self.parts.arbiter,
            can_test: self.parts.can_test,
            address: ctx.address(),
        };
        let links = self.parts.links.clone();
        let joining = actix::fut::wrap_future::<_, Self>(async move { links.send(join).await });
        ctx.wait(actix::ActorFutureExt::map(
            joining,
            |joined, link: &mut Self, ctx| match joined {
                Ok(Some(id)) => {
                    link.id = Some(id);
                    info!(
                        agent = link.parts.agent,
                        arbiter = link.parts.arbiter,
                        link = id,
                        "agent linked"
                    );
                }
                Ok(None) => {
                    let refused = Refused {
                        code: "agent_refused".into(),
                        message:
                            "this link is not taken: the agent was revoked, holds too many links, or the gateway stops"
                                .into(),
                        hint: "The agent dials again by itself.".into(),
                        ..Refused::default()
                    };
                    link.send(gateway_message::Body::Refused(refused));
                    ctx.stop();
                }
                Err(_) => ctx.stop(),
            },
        ));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        if let Some(id) = self.id.take() {
            self.parts.tickets.link_lost(id);
            info!(agent = self.parts.agent, link = id, "agent link ended");
            let links = self.parts.links.clone();
            actix_rt::spawn(async move {
                let _ = links.send(Leave(id)).await;
            });
        }
    }
}

impl Drop for AgentLink {
    /// An actor that panics is not `stopped`: nobody must be sent to its link any more. Its agent dials again, for the
    /// stream ends with it.
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            warn!(agent = self.parts.agent, link = id, "an agent link was lost");
            self.parts.tickets.link_lost(id);
            if self.parts.links.try_send(Leave(id)).is_err() {
                warn!(
                    link = id,
                    "the registry of links is busy or gone; it keeps a link that is lost"
                );
            }
        }
    }
}

impl StreamHandler<Result<AgentMessage, Status>> for AgentLink {
    fn handle(&mut self, item: Result<AgentMessage, Status>, ctx: &mut Self::Context) {
        let message = match item {
            Ok(message) => message,
            Err(status) => {
                info!(agent = self.parts.agent, reason = status.message(), "agent link broke");
                ctx.stop();
                return;
            }
        };
        match message.body {
            Some(agent_message::Body::Refused(refused)) => {
                let Some((id, session)) = self.id.zip(Uuid::from_slice(&refused.session).ok()) else {
                    return;
                };
                let close = Close {
                    code: refused.code,
                    message: refused.message,
                    hint: refused.hint,
                };
                let refusal =
                    refusal_of(&close).unwrap_or_else(|| Refusal::new(End::AgentRefused, close.message, close.hint));
                self.parts.tickets.refuse(id, session, refusal);
            }
            Some(agent_message::Body::Health(health)) => {
                self.send(gateway_message::Body::Health(Health {
                    sent_at_ms: health.sent_at_ms,
                }));
            }
            Some(agent_message::Body::Draining(_)) => {
                if let Some(id) = self.id {
                    let links = self.parts.links.clone();
                    ctx.spawn(actix::fut::wrap_future(async move {
                        let _ = links.send(LinkDraining(id)).await;
                    }));
                }
            }
            Some(agent_message::Body::Hello(_)) => {
                warn!(agent = self.parts.agent, "a second Hello ends the link");
                ctx.stop();
            }
            // a newer agent's message: nothing that this release must understand
            None => {}
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// A session for this agent. Answers whether the message is on its way.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct SendDispatch(pub Dispatch);

impl Handler<SendDispatch> for AgentLink {
    type Result = bool;

    fn handle(&mut self, message: SendDispatch, _: &mut Self::Context) -> bool {
        self.send(gateway_message::Body::Dispatch(message.0))
    }
}

/// The set of live replicas has changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReplicasChanged(pub Vec<Uuid>);

impl Handler<ReplicasChanged> for AgentLink {
    type Result = ();

    fn handle(&mut self, message: ReplicasChanged, _: &mut Self::Context) {
        let replicas = message
            .0
            .iter()
            .map(|id| bytes::Bytes::copy_from_slice(id.as_bytes()))
            .collect();
        self.send(gateway_message::Body::Replicas(Replicas { replicas }));
    }
}

/// The agent's key was revoked.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Revoked;

impl Handler<Revoked> for AgentLink {
    type Result = ();

    fn handle(&mut self, _: Revoked, ctx: &mut Self::Context) {
        let refused = Refused {
            code: "agent_refused".into(),
            message: "this agent's key was revoked".into(),
            hint: "Register the agent again and give it the new HOOP_KEY.".into(),
            ..Refused::default()
        };
        self.send(gateway_message::Body::Refused(refused));
        ctx.stop();
    }
}

/// This replica stops: look elsewhere.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DrainLink {
    pub deadline_ms: u32,
}

impl Handler<DrainLink> for AgentLink {
    type Result = ();

    fn handle(&mut self, message: DrainLink, _: &mut Self::Context) {
        self.send(gateway_message::Body::Drain(Drain {
            deadline_ms: message.deadline_ms,
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use hoop_actors::shutdown::Trigger;
    use hoop_store::testing;
    use tokio::time::timeout;

    use super::*;
    use crate::links::door::LinkConnection;
    use crate::links::registry::Online;
    use crate::vital::Vital;

    /// Longest wait for what follows a panic.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Fail;

    impl Handler<Fail> for AgentLink {
        type Result = ();

        fn handle(&mut self, _: Fail, _: &mut Self::Context) {
            panic!("as a bug would");
        }
    }

    #[actix_rt::test]
    async fn a_link_that_panics_leaves_the_registry_and_its_stream_ends_so_that_its_agent_dials_again() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let replica = store.claim_replica("").await.unwrap();
        let links = Links::new(store, replica, Vital::new("the test's registry", &Trigger::default())).start();
        let client: SocketAddr = "10.0.0.1:1000".parse().unwrap();
        let (connection, _closing) = LinkConnection::new(client, true);
        let (outbox, mut messages) = mpsc::channel(OUTBOX_MESSAGES);
        let link = AgentLink::new(LinkParts {
            agent_id: Uuid::now_v7(),
            agent: "default".into(),
            arbiter: 0,
            can_test: true,
            outbox,
            tickets: Tickets::default(),
            links: links.clone(),
            _stream: connection.open_stream().unwrap(),
        })
        .start();
        // its mailbox is open once it has joined
        assert!(link.send(SendDispatch(Dispatch::default())).await.unwrap());
        assert_eq!(links.send(Online).await.unwrap(), ["default"]);
        assert!(link.send(Fail).await.is_err());
        assert!(messages.recv().await.is_some(), "the dispatch");
        assert!(
            timeout(PATIENCE, messages.recv()).await.unwrap().is_none(),
            "its stream is open"
        );
        assert_eq!(links.send(Online).await.unwrap(), Vec::<String>::new());
    }
}
