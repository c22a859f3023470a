//! An agent that breaks the link's rules in one session: that session ends and its client is told, the others of the same
//! link and the link itself go on.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::stream;
use hoop_agent::attach::{self, Shared};
use hoop_agent::config::Config;
use hoop_agent::dial::Dialer;
use hoop_agent::sessions::Sessions;
use hoop_proto::link::frame::Body;
use hoop_proto::link::link_client::LinkClient;
use hoop_proto::link::{AgentMessage, Dispatch, Frame, GatewayMessage, Hello, Open, agent_message, gateway_message};
use hoop_tests::clients::Login;
use hoop_tests::hoop::{Hoop, Options};
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

/// The connection whose sessions the agent floods; all others it serves as a real one does.
const FLOODED: &str = "flooded";
/// Sent a byte at a time, with no look at credit: a hundred times what the first window allows.
const SINGLE_BYTES: usize = 100_000;
/// An HTTP/2 window that never binds, as a real agent has it.
const WINDOW_BYTES: u32 = (1 << 31) - 1;
const LINK_DEADLINE: Duration = Duration::from_secs(20);

/// A stream of what comes out of a queue.
fn sent<T: Send + 'static>(queue: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> + Send {
    stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|next| (next, queue))
    })
}

/// One connection to the gateway, and what its sessions are made with.
struct Rogue {
    client: LinkClient<Channel>,
    shared: Rc<Shared>,
    sessions: Sessions,
    messages: Streaming<GatewayMessage>,
    _to_gateway: mpsc::Sender<AgentMessage>,
}

impl Rogue {
    async fn link(key: &str) -> Result<Self> {
        let variable = |name: &str| (name == "HOOP_KEY").then(|| key.to_owned());
        let config = Config::load(None, variable)?;
        let dialer = Dialer::new(&config.key, |_| None)?;
        let stream = Arc::new(Mutex::new(Some(dialer.dial().await?)));
        let connector = tower::service_fn(move |_| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            async move {
                stream
                    .map(TokioIo::new)
                    .ok_or(io::Error::from(io::ErrorKind::NotConnected))
            }
        });
        let authority = dialer.authority();
        let channel = Endpoint::from_shared(format!("http://{authority}"))?
            .origin(format!("https://{authority}").parse()?)
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .connect_with_connector(connector)
            .await?;
        let mut client = LinkClient::new(channel);
        let shared = Rc::new(Shared {
            config,
            budget: Default::default(),
            instance: [7; 16],
        });
        let (to_gateway, queue) = mpsc::channel(8);
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: vec!["postgres".to_owned()],
            capabilities: vec!["postgres.cancel".to_owned(), "postgres.3.2".to_owned()],
            instance: vec![7; 16].into(),
            ..Hello::default()
        };
        let body = Some(agent_message::Body::Hello(hello));
        to_gateway.send(AgentMessage { body }).await?;
        let mut request = Request::new(sent(queue));
        shared.authorize(&mut request)?;
        let messages = client.register(request).await?.into_inner();
        Ok(Self {
            client,
            shared,
            sessions: Sessions::new(1000),
            messages,
            _to_gateway: to_gateway,
        })
    }

    /// Serves until the link ends, which it does not.
    async fn serve(mut self) -> Result<()> {
        while let Some(message) = self.messages.message().await? {
            let Some(gateway_message::Body::Dispatch(dispatch)) = message.body else {
                continue;
            };
            if dispatch.connection == FLOODED {
                tokio::task::spawn_local(flood(Rc::clone(&self.shared), self.client.clone(), dispatch));
            } else {
                let admission = self.sessions.admit().ok().context("room for a session")?;
                let (shared, client) = (Rc::clone(&self.shared), self.client.clone());
                tokio::task::spawn_local(attach::serve(shared, client, dispatch, admission));
            }
        }
        bail!("the gateway closed the link")
    }
}

/// Attaches, and sends single bytes that nobody has given credit for.
async fn flood(shared: Rc<Shared>, mut client: LinkClient<Channel>, dispatch: Dispatch) -> Result<()> {
    let (frames, queue) = mpsc::channel(1024);
    let open = Open {
        session: dispatch.session,
        ticket: dispatch.ticket,
        kind: "session".to_owned(),
        connection: dispatch.connection,
        ..Open::default()
    };
    let frame = |channel, body| Frame {
        channel,
        body: Some(body),
    };
    frames.send(frame(0, Body::Open(open))).await?;
    let mut request = Request::new(sent(queue));
    shared.authorize(&mut request)?;
    let _inbound = client.attach(request).await?.into_inner();
    for _ in 0..SINGLE_BYTES {
        frames.send(frame(1, Body::Data(Bytes::from_static(b"x")))).await?;
    }
    Ok(())
}

async fn told(login: &Login) -> Result<(String, String, String)> {
    let error = login.connect().await.err().context("it was let in")?;
    let error = error
        .downcast_ref::<tokio_postgres::Error>()
        .and_then(tokio_postgres::Error::as_db_error)
        .with_context(|| format!("no ErrorResponse: {error:?}"))?;
    let hint = error.hint().unwrap_or_default().to_owned();
    Ok((error.code().code().to_owned(), error.message().to_owned(), hint))
}

#[tokio::test]
async fn single_bytes_without_credit_end_their_session_and_no_other_of_the_link() -> Result<()> {
    LocalSet::new().run_until(flooded()).await
}

async fn flooded() -> Result<()> {
    let options = Options {
        agents: 0,
        ..Options::default()
    };
    let hoop = Hoop::with(options).await?;
    let registered = hoop.api.post("/api/agents", json!({"name": "rogue"})).await?;
    let key = text(&registered, "key");
    hoop.connection("honest", json!({"agents": ["rogue"]})).await?;
    hoop.connection(FLOODED, json!({"agents": ["rogue"]})).await?;
    let rogue = tokio::task::spawn_local(async move { Rogue::link(&key).await?.serve().await });
    let honest = hoop.login(&hoop.credential("honest").await?)?.sslmode("disable");
    let neighbour = eventually("the agent serves", LINK_DEADLINE, async || {
        honest.connect().await.map(Some)
    })
    .await?;
    // it says hello as an older release does: what it cannot do is not asked of it
    let tested = hoop.api.post("/api/connections/honest/test", json!({})).await?;
    let found = tested.pointer("/agents/0").context("no agent")?;
    ensure!(
        text(found, "failed_at") == "agent" && text(found, "code") == "agent_too_old",
        "{found}"
    );
    let flooded = hoop.login(&hoop.credential(FLOODED).await?)?.sslmode("disable");
    for _ in 0..5 {
        let (refused, asked) = tokio::join!(told(&flooded), neighbour.simple_query("select pg_sleep(0.1)"));
        let (code, message, hint) = refused?;
        ensure!(
            code == "08006"
                && message == "the link to the agent broke its flow-control rules"
                && hint.starts_with("Connect again; if it goes on, ask an administrator"),
            "{code} {message} {hint}"
        );
        asked.context("a neighbour of the flooded session")?;
        ensure!(!rogue.is_finished(), "the link was lost");
    }
    honest.connect().await?.simple_query("select 1").await?;
    neighbour.simple_query("select 1").await?;
    ensure!(!rogue.is_finished(), "the link was lost");
    Ok(())
}
