//! The gRPC service of port 8010, one value an arbiter. It authenticates, hands over, and holds nothing.

use std::time::Duration;

use actix::{Actor, Addr, Arbiter, AsyncContext};
use bytes::Bytes;
use futures_util::StreamExt;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::link_server::Link;
use hoop_proto::link::{AgentMessage, Frame, GatewayMessage, Welcome, agent_message, control, frame, gateway_message};
use hoop_store::Store;
use hoop_store::agents::AgentAuthError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};
use uuid::Uuid;

use super::agent_link::{AgentLink, LinkParts, OUTBOX_MESSAGES};
use super::dispatch::{self, Dispatcher};
use super::door::{LinkConnection, OpenStream};
use super::registry::Links;
use super::tickets::{Attached, Tickets};
use super::{FrameStream, close_frame};
use crate::cancel::CancelKeys;

/// Longest wait for a stream's first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the session to take its Attach.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// The capability of an agent that tries a target without a session (`hoop.v1.Target.test_only`).
const TEST: &str = "test";

/// One arbiter's service.
#[derive(Clone)]
pub struct LinkService {
    pub store: Store,
    pub tickets: Tickets,
    pub links: Addr<Links>,
    pub dispatcher: Dispatcher,
    pub cancel_keys: CancelKeys,
    pub replica: Uuid,
    pub replicas: watch::Receiver<Vec<Uuid>>,
    pub arbiter: usize,
    pub arbiters: usize,
}

/// The connection that a request came on, and its stream counted there.
fn connection_of<T>(request: &Request<T>) -> Result<(LinkConnection, OpenStream), Status> {
    let connection = request
        .extensions()
        .get::<LinkConnection>()
        .ok_or_else(|| Status::internal("a request without its connection"))?;
    Ok((connection.clone(), connection.open_stream()?))
}

/// A client's frames; the stream counts on its connection for as long as they are read.
fn counted(inbound: Streaming<Frame>, stream: OpenStream) -> FrameStream {
    Box::pin(inbound.inspect(move |_| {
        let _ = &stream;
    }))
}

impl LinkService {
    async fn first(inbound: &mut Streaming<Frame>) -> Result<Frame, Status> {
        tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no first frame within 10 s"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended before its first frame"))
    }

    async fn serve_peer(&self, open: hoop_proto::link::Open, inbound: FrameStream) -> Result<FrameStream, Refusal> {
        let session = Uuid::from_slice(&open.session)
            .map_err(|_| Refusal::new(End::Internal, "a replica sent no session id", ""))?;
        let target = open
            .target
            .ok_or_else(|| Refusal::new(End::Internal, "a replica sent no target", ""))?;
        let request = dispatch::Request {
            session,
            agent: open.agent,
            connection: open.connection,
            target,
        };
        let (attached, load) = self.dispatcher.here(&request, self.arbiter).await?;
        // The two streams are joined end to end: credits run through, and bound what is under way.
        attached.outbound.send(inbound).map_err(|_| {
            Refusal::new(
                End::LinkLost,
                "the agent was lost before it reached the target",
                "Try again.",
            )
        })?;
        let frames = attached.inbound.inspect(move |_| {
            // keeps the link's load counted for as long as the stream lives
            let _ = &load;
        });
        Ok(Box::pin(frames))
    }

    async fn serve_cancel(&self, mut inbound: Streaming<Frame>) -> Result<FrameStream, Status> {
        let frame = Self::first(&mut inbound).await?;
        if let Some(frame::Body::Control(hoop_proto::link::Control {
            body: Some(control::Body::Cancel(cancel)),
        })) = frame.body
        {
            self.cancel_keys.cancel(cancel.process_id, &cancel.secret);
        }
        Ok(Box::pin(futures_util::stream::empty()))
    }
}

#[tonic::async_trait]
impl Link for LinkService {
    type RegisterStream = ReceiverStream<Result<GatewayMessage, Status>>;
    type AttachStream = FrameStream;
    type PeerStream = FrameStream;
    type ConnectStream = FrameStream;

    async fn register(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let (connection, stream) = connection_of(&request)?;
        let client = connection.client;
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("no agent token: give the agent its HOOP_KEY"))?
            .to_owned();
        let agent = self.store.authenticate_agent(&token).await.map_err(|error| {
            warn!(%client, %error, "an agent was turned away");
            match error {
                AgentAuthError::Store(_) => {
                    Status::unavailable("the gateway's store is away; the agent tries again by itself")
                }
                _ => Status::unauthenticated(
                    "this agent token is unknown or revoked: register the agent again and give it the new HOOP_KEY",
                ),
            }
        })?;
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))??
            .and_then(|message| message.body);
        let Some(agent_message::Body::Hello(hello)) = hello else {
            return Err(Status::invalid_argument("the first message is not Hello"));
        };
        if !hello.protocols.iter().any(|protocol| protocol == "postgres") {
            return Err(Status::failed_precondition(
                "this agent speaks none of this gateway's protocols: upgrade it",
            ));
        }
        connection.proved();
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let replicas = self
            .replicas
            .borrow()
            .iter()
            .map(|id| Bytes::copy_from_slice(id.as_bytes()))
            .collect();
        let welcome = Welcome {
            agent: agent.name.clone(),
            gateway_version: env!("CARGO_PKG_VERSION").into(),
            replica: Bytes::copy_from_slice(self.replica.as_bytes()),
            arbiter: u32::try_from(self.arbiter).unwrap_or_default(),
            arbiters: u32::try_from(self.arbiters).unwrap_or(1),
            replicas,
        };
        let first = GatewayMessage {
            body: Some(gateway_message::Body::Welcome(welcome)),
        };
        outbox
            .try_send(Ok(first))
            .map_err(|_| Status::internal("the link's outbox is closed"))?;
        info!(agent = agent.name, version = hello.version, %client, "agent says hello");
        let parts = LinkParts {
            agent_id: agent.id,
            agent: agent.name,
            arbiter: self.arbiter,
            can_test: hello.capabilities.iter().any(|known| known == TEST),
            outbox,
            tickets: self.tickets.clone(),
            links: self.links.clone(),
            _stream: stream,
        };
        let arbiter = Arbiter::try_current().ok_or_else(|| Status::internal("not on an arbiter"))?;
        AgentLink::start_in_arbiter(&arbiter, move |ctx| {
            ctx.add_stream(inbound);
            AgentLink::new(parts)
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn attach(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        let (connection, stream) = connection_of(&request)?;
        let mut inbound = request.into_inner();
        let frame = Self::first(&mut inbound).await?;
        let Some(frame::Body::Open(open)) = frame.body else {
            return Err(Status::invalid_argument("the first frame is not Open"));
        };
        // A ticket of another replica: a balancer has split one connection's streams.
        let Some((_, waiting)) = self.tickets.redeem(&open.ticket) else {
            return Err(Status::failed_precondition(
                "this ticket is not good here: it was used, its session is gone, or the balancer before port 8010 does \
                 not keep one connection on one replica (it must pass TCP through)",
            ));
        };
        connection.proved();
        let (outbound, frames) = oneshot::channel();
        waiting
            .send(Ok(Attached {
                inbound: counted(inbound, stream),
                outbound,
            }))
            .map_err(|_| Status::cancelled("the session is gone"))?;
        let frames = tokio::time::timeout(HANDOVER_TIMEOUT, frames)
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| Status::cancelled("the session is gone"))?;
        Ok(Response::new(frames))
    }

    async fn peer(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::PeerStream>, Status> {
        let (connection, stream) = connection_of(&request)?;
        if !connection.replica {
            return Err(Status::unauthenticated("only replicas of this installation speak Peer"));
        }
        let mut inbound = request.into_inner();
        let frame = Self::first(&mut inbound).await?;
        let Some(frame::Body::Open(open)) = frame.body else {
            return Err(Status::invalid_argument("the first frame is not Open"));
        };
        if open.replica.as_ref() != self.replica.as_bytes() {
            return Err(Status::failed_precondition(
                "another replica was meant: peer_address must lead to one replica, not to a balancer",
            ));
        }
        match open.kind.as_str() {
            "cancel" => self.serve_cancel(inbound).await.map(Response::new),
            "session" => match self.serve_peer(open, counted(inbound, stream)).await {
                Ok(frames) => Ok(Response::new(frames)),
                // the caller tries the next replica
                Err(refusal) if refusal.end == End::AgentOffline => Err(Status::unavailable(refusal.message)),
                Err(refusal) => {
                    let frames: FrameStream = Box::pin(futures_util::stream::iter([Ok(close_frame(&refusal))]));
                    Ok(Response::new(frames))
                }
            },
            other => Err(Status::unimplemented(format!("a newer replica asks for {other:?}"))),
        }
    }

    async fn connect(&self, _: Request<Streaming<Frame>>) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Status::unimplemented(
            "Connect is reserved for the hoop client, which this release does not serve yet",
        ))
    }
}
