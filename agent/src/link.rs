//! `AgentLink`: one connection to one arbiter of one gateway replica, and the Register stream on it.
//!
//! It lives for one connection; whether another one is dialled is the planner's business (`links`). Its sessions hold
//! the connection too and outlive it: a link that drains, or whose Register stream ends, takes no session with it.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use futures_util::stream;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::agent_message::Body as FromAgent;
use hoop_proto::link::gateway_message::Body as FromGateway;
use hoop_proto::link::link_client::LinkClient;
use hoop_proto::link::{AgentMessage, Dispatch, Draining, GatewayMessage, Hello, Refused};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel as Http2, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

use crate::attach::{self, Shared};
use crate::dial::{DialError, Dialer};
use crate::links::{LinkId, Links, Lost, Replicas, Retiring, Verdict, Welcomed};
use crate::sessions::{NotAdmitted, Sessions};

/// What one side may send unread over all streams (RFC 9113, section 6.9.1): never what limits, credit does.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Above the largest credit window (16 MiB) with its framing.
const STREAM_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// One Data frame of the mux and its framing fit in one HTTP/2 frame.
const MAX_FRAME_BYTES: u32 = 512 * 1024;
/// A ping after so much silence, and so long for its answer: a dead peer is found within 18 s. Most of it is for the
/// answer: a machine that is short of processor time is slow, and not dead.
const PING_INTERVAL: Duration = Duration::from_secs(4);
const PING_TIMEOUT: Duration = Duration::from_secs(14);
/// The gateway's answer to Register, and then its Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages to the gateway that wait; they are few and small.
const REGISTER_QUEUE: usize = 64;
/// The planner's answer.
const PLANNER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a link looks whether its planner lives.
const PLANNER_CHECK: Duration = Duration::from_secs(5);
/// What this release can do beyond logging in and carrying bytes.
pub const CAPABILITIES: [&str; 3] = ["postgres.cancel", "postgres.3.2", "test"];

/// Why a link is over.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("HTTP/2 with the gateway failed")]
    Http2(#[source] tonic::transport::Error),
    #[error("the gateway refuses this agent's key: {0}; register the agent again, or set the new key")]
    KeyRefused(String),
    #[error("the gateway refused the link: {0}")]
    Refused(String),
    #[error("the gateway did not welcome the agent within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("the gateway began with something else than Welcome")]
    NotWelcome,
    #[error("the link broke: {0}")]
    Broken(String),
    #[error("the gateway closed the link")]
    Closed,
    #[error("the agent holds a link to this arbiter of this replica already")]
    Duplicate,
    #[error("the agent's planner has gone")]
    NoPlanner,
}

/// One connection's actor. Its mailbox carries control only.
pub struct AgentLink {
    id: LinkId,
    shared: Rc<Shared>,
    sessions: Sessions,
    dialer: Dialer,
    planner: Addr<Links>,
    to_gateway: mpsc::Sender<AgentMessage>,
    from_agent: Option<mpsc::Receiver<AgentMessage>>,
    /// What is told to the planner when the actor dies; a panic leaves the first value.
    end: Option<LinkEnd>,
}

impl AgentLink {
    #[must_use]
    pub fn new(id: LinkId, shared: Rc<Shared>, sessions: Sessions, dialer: Dialer, planner: Addr<Links>) -> Self {
        let (to_gateway, from_agent) = mpsc::channel(REGISTER_QUEUE);
        let from_agent = Some(from_agent);
        Self {
            id,
            shared,
            sessions,
            dialer,
            planner,
            to_gateway,
            from_agent,
            end: None,
        }
    }
}

impl Actor for AgentLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(from_agent) = self.from_agent.take() else {
            return ctx.stop();
        };
        let connection = Connection {
            id: self.id,
            shared: Rc::clone(&self.shared),
            sessions: self.sessions.clone(),
            dialer: self.dialer.clone(),
            planner: self.planner.clone(),
            to_gateway: self.to_gateway.clone(),
        };
        let life = connection.live(from_agent).into_actor(self).map(|end, link, ctx| {
            link.end = Some(end);
            ctx.stop();
        });
        ctx.spawn(life);
        // A planner that was made anew dials for itself, and does not know this link.
        ctx.run_interval(PLANNER_CHECK, |link, ctx| {
            if !link.planner.connected() {
                link.end = Some(LinkEnd::NoPlanner);
                ctx.stop();
            }
        });
    }
}

/// The exit guard: also after a panic the planner hears that the link is gone.
impl Drop for AgentLink {
    fn drop(&mut self) {
        let end = self
            .end
            .take()
            .unwrap_or_else(|| LinkEnd::Broken("its actor died".to_owned()));
        // A full mailbox loses the message; the planner also looks for dead links by itself.
        let _unheard = self.planner.try_send(Lost { link: self.id, end });
    }
}

/// The agent is stopping: the gateway is to send no more sessions here.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SayDraining;

impl Handler<SayDraining> for AgentLink {
    type Result = ();

    fn handle(&mut self, _message: SayDraining, _ctx: &mut Self::Context) {
        let draining = AgentMessage {
            body: Some(FromAgent::Draining(Draining {})),
        };
        if self.to_gateway.try_send(draining).is_err() {
            tracing::debug!(link = self.id.0, "the gateway was not told that the agent drains");
        }
    }
}

/// The connection's life as one future, so that it reads from top to bottom.
struct Connection {
    id: LinkId,
    shared: Rc<Shared>,
    sessions: Sessions,
    dialer: Dialer,
    planner: Addr<Links>,
    to_gateway: mpsc::Sender<AgentMessage>,
}

impl Connection {
    async fn live(self, from_agent: mpsc::Receiver<AgentMessage>) -> LinkEnd {
        match self.run(from_agent).await {
            Ok(()) => LinkEnd::Closed,
            Err(end) => end,
        }
    }

    async fn run(&self, from_agent: mpsc::Receiver<AgentMessage>) -> Result<(), LinkEnd> {
        let tls = self.dialer.dial().await?;
        let mut client = LinkClient::new(http2(tls, &self.dialer.authority()).await.map_err(LinkEnd::Http2)?);
        let mut messages = self.register(&mut client, from_agent).await?;
        while let Some(message) = messages.message().await.map_err(|status| ended(&status))? {
            self.hear(message, &client).await?;
        }
        Ok(())
    }

    /// Hello, Welcome, and the planner's word whether this link is wanted.
    async fn register(
        &self,
        client: &mut LinkClient<Http2>,
        from_agent: mpsc::Receiver<AgentMessage>,
    ) -> Result<Streaming<GatewayMessage>, LinkEnd> {
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: self.shared.config.protocols.clone(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            instance: self.shared.instance.to_vec().into(),
            sealing_key: Default::default(),
        };
        self.say(FromAgent::Hello(hello));
        let mut request = Request::new(from_agent_stream(from_agent));
        self.shared.authorize(&mut request).map_err(|status| ended(&status))?;
        let welcome = async {
            let mut messages = client
                .register(request)
                .await
                .map_err(|status| ended(&status))?
                .into_inner();
            let first = messages.message().await.map_err(|status| ended(&status))?;
            Ok::<_, LinkEnd>((messages, first))
        };
        let (messages, first) = timeout(WELCOME_TIMEOUT, welcome)
            .await
            .map_err(|_| LinkEnd::NoWelcome)??;
        let welcome = match first.and_then(|message| message.body) {
            Some(FromGateway::Welcome(welcome)) => welcome,
            Some(FromGateway::Refused(refused)) => return Err(LinkEnd::Refused(refusal_text(&refused))),
            None => return Err(LinkEnd::Closed),
            Some(_) => return Err(LinkEnd::NotWelcome),
        };
        let replica = Uuid::from_slice(&welcome.replica).map_err(|_| LinkEnd::NotWelcome)?;
        let welcomed = Welcomed {
            link: self.id,
            replica,
            arbiter: welcome.arbiter,
            arbiters: welcome.arbiters,
            replicas: uuids(&welcome.replicas),
        };
        match self.ask(welcomed).await? {
            Verdict::Keep => {
                tracing::info!(
                    link = self.id.0, %replica, arbiter = welcome.arbiter, gateway = welcome.gateway_version,
                    agent = welcome.agent, "linked"
                );
                Ok(messages)
            }
            Verdict::Duplicate => Err(LinkEnd::Duplicate),
        }
    }

    async fn hear(&self, message: GatewayMessage, client: &LinkClient<Http2>) -> Result<(), LinkEnd> {
        match message.body {
            Some(FromGateway::Dispatch(dispatch)) => self.dispatch(dispatch, client),
            Some(FromGateway::Replicas(replicas)) => {
                self.ask(Replicas {
                    replicas: uuids(&replicas.replicas),
                })
                .await?;
            }
            Some(FromGateway::Drain(drain)) => {
                tracing::info!(
                    link = self.id.0,
                    deadline_ms = drain.deadline_ms,
                    "the gateway replica is draining"
                );
                self.ask(Retiring { link: self.id }).await?;
            }
            Some(FromGateway::Health(health)) => self.say(FromAgent::Health(health)),
            Some(FromGateway::Refused(refused)) => return Err(LinkEnd::Refused(refusal_text(&refused))),
            // A second Welcome means nothing; an unknown message comes from a newer gateway.
            Some(FromGateway::Welcome(_)) | None => {}
        }
        Ok(())
    }

    /// Starts a session on this arbiter, or says at once why not.
    fn dispatch(&self, dispatch: Dispatch, client: &LinkClient<Http2>) {
        match self.judge(&dispatch) {
            Ok(admission) => {
                let (shared, client) = (Rc::clone(&self.shared), client.clone());
                actix_rt::spawn(attach::serve(shared, client, dispatch, admission));
            }
            Err(refusal) => {
                tracing::warn!(
                    connection = dispatch.connection,
                    reason = refusal.message,
                    "session refused"
                );
                self.say(FromAgent::Refused(Refused {
                    session: dispatch.session,
                    code: refusal.end.code().to_owned(),
                    message: refusal.message,
                    hint: refusal.hint,
                }));
            }
        }
    }

    /// What is known before anything is dialled. Allow-list and references follow, where the session can be told.
    fn judge(&self, dispatch: &Dispatch) -> Result<crate::sessions::Admission, Refusal> {
        let agent = &self.shared.config.key.agent;
        let target = dispatch.target.as_ref();
        let protocol = target.map(|target| target.protocol.as_str()).unwrap_or_default();
        if !self.shared.config.protocols.iter().any(|known| known == protocol) {
            return Err(Refusal::new(
                End::AgentRefused,
                format!("agent \"{agent}\" does not serve the protocol \"{protocol}\" by its rule protocols"),
                "Upgrade the agent, or add the protocol to its configuration.",
            ));
        }
        if target.is_some_and(|target| target.cancel_only) {
            return Err(Refusal::new(
                End::AgentTooOld,
                format!("agent \"{agent}\" takes cancels only within their session"),
                "Upgrade the agent.",
            ));
        }
        self.sessions.admit().map_err(|why| match why {
            NotAdmitted::Full(limit) => Refusal::new(
                End::TooManySessions,
                format!("agent \"{agent}\" runs {limit} sessions already, by its rule max_sessions"),
                "Try again later, or run another agent with the same key.",
            ),
            NotAdmitted::Stopping => Refusal::new(
                End::AgentOffline,
                format!("agent \"{agent}\" is shutting down"),
                "Connect again.",
            ),
        })
    }

    fn say(&self, body: FromAgent) {
        if self.to_gateway.try_send(AgentMessage { body: Some(body) }).is_err() {
            tracing::warn!(link = self.id.0, "a message to the gateway was dropped: too many wait");
        }
    }

    async fn ask<M>(&self, message: M) -> Result<M::Result, LinkEnd>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        Links: Handler<M>,
    {
        self.planner
            .send(message)
            .timeout(PLANNER_TIMEOUT)
            .await
            .map_err(|_| LinkEnd::NoPlanner)
    }
}

fn from_agent_stream(
    from_agent: mpsc::Receiver<AgentMessage>,
) -> impl futures_util::Stream<Item = AgentMessage> + Send {
    stream::unfold(from_agent, |mut from_agent| async move {
        from_agent.recv().await.map(|next| (next, from_agent))
    })
}

/// HTTP/2 over a stream that is open already. It is given away once: a broken link stays broken.
async fn http2(stream: TlsStream<TcpStream>, authority: &str) -> Result<Http2, tonic::transport::Error> {
    let origin = format!("https://{authority}").parse().unwrap_or_default();
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .origin(origin)
        .user_agent(concat!("hoop-agent/", env!("CARGO_PKG_VERSION")))?
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .http2_adaptive_window(false)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().ok().and_then(|mut once| once.take());
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
        }
    });
    // Returns when the HTTP/2 preface is sent; tasks run where this is awaited, on the link's arbiter.
    endpoint.connect_with_connector(connector).await
}

fn ended(status: &Status) -> LinkEnd {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => LinkEnd::KeyRefused(status.message().to_owned()),
        _ => LinkEnd::Broken(format!("{:?} {}", status.code(), status.message())),
    }
}

fn refusal_text(refused: &Refused) -> String {
    if refused.hint.is_empty() {
        refused.message.clone()
    } else {
        format!("{} ({})", refused.message, refused.hint)
    }
}

fn uuids(raw: &[bytes::Bytes]) -> Vec<Uuid> {
    raw.iter().filter_map(|bytes| Uuid::from_slice(bytes).ok()).collect()
}
