//! A gateway of a few lines: takes links over TLS, welcomes them as it is told to, and hands their streams to the test.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use hoop_actors::mux::{Mux, MuxConfig, MuxEvent};
use hoop_agent::config::Config;
use hoop_agent::run::Agent;
use hoop_proto::link::agent_message::Body as FromAgent;
use hoop_proto::link::gateway_message::Body as FromGateway;
use hoop_proto::link::link_server::{Link, LinkServer};
use hoop_proto::link::{AgentMessage, Dispatch, Frame, GatewayMessage, Hello, Target, Welcome};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::authority::Authority;

pub const TOKEN: &str = "payload.signature";
const WAIT: Duration = Duration::from_secs(20);

/// One link as the test sees it.
pub struct Linked {
    pub hello: Hello,
    pub replica: Uuid,
    pub arbiter: u32,
    pub instance: String,
    pub to_agent: mpsc::Sender<Result<GatewayMessage, Status>>,
    from_agent: Streaming<AgentMessage>,
}

impl Linked {
    pub async fn say(&self, body: FromGateway) {
        self.to_agent
            .send(Ok(GatewayMessage { body: Some(body) }))
            .await
            .unwrap();
    }

    /// The agent's next word; `None` when it has gone.
    pub async fn hear(&mut self) -> Option<FromAgent> {
        let message = timeout(WAIT, self.from_agent.message())
            .await
            .expect("the agent says nothing");
        message.ok().flatten().and_then(|message| message.body)
    }

    pub async fn dispatch(&self, target: Target) -> Bytes {
        let session = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
        self.say(FromGateway::Dispatch(Dispatch {
            session: session.clone(),
            ticket: Bytes::from_static(&[7; 32]),
            replica: Bytes::copy_from_slice(self.replica.as_bytes()),
            arbiter: self.arbiter,
            connection: "test-db".into(),
            target: Some(target),
        }))
        .await;
        session
    }
}

type Attached = (
    Streaming<Frame>,
    oneshot::Sender<Pin<Box<dyn Stream<Item = Frame> + Send>>>,
    String,
);

pub struct Gateway {
    pub key: String,
    pub port: u16,
    links: mpsc::Receiver<Linked>,
    attached: mpsc::Receiver<Attached>,
    /// TCP connections that were made, closed ones included.
    pub dials: Arc<AtomicU32>,
    open: Arc<Mutex<HashSet<u32>>>,
    cut: Arc<Mutex<CancellationToken>>,
}

struct Service {
    replicas: Vec<Uuid>,
    arbiters: u32,
    next: AtomicU32,
    links: mpsc::Sender<Linked>,
    attached: mpsc::Sender<Attached>,
}

impl Gateway {
    /// Serves as `replicas` with `arbiters` each, in turns from one connection to the next.
    pub async fn start(authority: &Authority, replicas: usize, arbiters: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let leaf = authority.leaf(&["127.0.0.1", "localhost"]);
        let chain = CertificateDer::pem_slice_iter(leaf.chain_pem.as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let dials = Arc::new(AtomicU32::new(0));
        let open = Arc::new(Mutex::new(HashSet::new()));
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let (counter, now_open, cutter) = (Arc::clone(&dials), Arc::clone(&open), Arc::clone(&cut));
        let incoming = stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(socket, _)| socket), listener))
        })
        .filter_map(move |socket| {
            let (acceptor, now_open) = (acceptor.clone(), Arc::clone(&now_open));
            let id = counter.fetch_add(1, Ordering::SeqCst);
            let cut = Box::pin(cutter.lock().unwrap().clone().cancelled_owned());
            async move {
                let stream = acceptor.accept(socket.ok()?).await.ok()?;
                now_open.lock().unwrap().insert(id);
                Some(Ok::<_, std::io::Error>(Io {
                    stream,
                    id,
                    open: now_open,
                    cut,
                }))
            }
        });
        let (links_sender, links) = mpsc::channel(64);
        let (attached_sender, attached) = mpsc::channel(64);
        let service = Service {
            replicas: (0..replicas).map(|_| Uuid::new_v4()).collect(),
            arbiters,
            next: AtomicU32::new(0),
            links: links_sender,
            attached: attached_sender,
        };
        let server = tonic::transport::Server::builder()
            .initial_connection_window_size((1 << 31) - 1)
            .initial_stream_window_size(32 << 20)
            .max_frame_size(512 * 1024)
            .add_service(LinkServer::new(service));
        tokio::spawn(async move { server.serve_with_incoming(Box::pin(incoming)).await });
        let key = format!(
            "grpcs://test-agent:{TOKEN}@127.0.0.1:{port}?mode=standard&pin={}",
            authority.pin()
        );
        Self {
            key,
            port,
            links,
            attached,
            dials,
            open,
            cut,
        }
    }

    pub async fn link(&mut self) -> Linked {
        timeout(WAIT, self.links.recv()).await.expect("no link came").unwrap()
    }

    /// The next Attach, as a mux; its Open has been read.
    pub async fn attach(&mut self) -> Mux {
        let (inbound, outbound, _) = timeout(WAIT, self.attached.recv())
            .await
            .expect("no Attach came")
            .unwrap();
        let (mux, outbox) = Mux::start(inbound, MuxConfig::default());
        let _ = mux.channel(1);
        assert!(outbound.send(Box::pin(outbox)).is_ok());
        match next(&mux).await {
            MuxEvent::Open(0, open) => assert_eq!((&open.ticket[..], open.kind.as_str()), (&[7; 32][..], "session")),
            other => panic!("began with {other:?}"),
        }
        mux
    }

    /// Breaks every connection that is open, as a process's death does.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.lock().unwrap().len()
    }
}

pub async fn next(mux: &Mux) -> MuxEvent {
    timeout(WAIT, mux.next_event()).await.expect("no event came")
}

/// An agent with this configuration file; a whole one needs only the key.
pub fn agent(key: &str, toml: &str) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, toml).unwrap();
    let config = Config::load(Some(&path), |name| (name == "HOOP_KEY").then(|| key.to_owned())).unwrap();
    Agent::start(config, |_| None).unwrap()
}

pub fn target(address: std::net::SocketAddr) -> Target {
    Target {
        protocol: "postgres".into(),
        host: address.ip().to_string(),
        port: address.port().into(),
        user: "u".into(),
        tls: "disable".into(),
        ..Target::default()
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn authorised<T>(request: &Request<T>) -> Result<String, Status> {
    let text = |name: &str| {
        request
            .metadata()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    if text("authorization") == format!("Bearer {TOKEN}") {
        Ok(text("x-hoop-agent-instance"))
    } else {
        Err(Status::unauthenticated("the token was revoked"))
    }
}

#[tonic::async_trait]
impl Link for Service {
    type RegisterStream = Out<GatewayMessage>;
    type AttachStream = Out<Frame>;
    type PeerStream = Out<Frame>;
    type ConnectStream = Out<Frame>;

    async fn register(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let instance = authorised(&request)?;
        let mut from_agent = request.into_inner();
        let Some(FromAgent::Hello(hello)) = from_agent.message().await?.and_then(|message| message.body) else {
            return Err(Status::invalid_argument("no Hello"));
        };
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let replica = self.replicas[number as usize % self.replicas.len()];
        let arbiter = number / self.replicas.len() as u32 % self.arbiters;
        let (to_agent, messages) = mpsc::channel(16);
        let welcome = Welcome {
            agent: "test-agent".into(),
            gateway_version: "0.0.0".into(),
            replica: Bytes::copy_from_slice(replica.as_bytes()),
            arbiter,
            arbiters: self.arbiters,
            replicas: self
                .replicas
                .iter()
                .map(|id| Bytes::copy_from_slice(id.as_bytes()))
                .collect(),
        };
        let first = GatewayMessage {
            body: Some(FromGateway::Welcome(welcome)),
        };
        to_agent.send(Ok(first)).await.unwrap();
        let linked = Linked {
            hello,
            replica,
            arbiter,
            instance,
            to_agent,
            from_agent,
        };
        self.links
            .send(linked)
            .await
            .map_err(|_| Status::unavailable("test over"))?;
        let messages = stream::unfold(messages, |mut messages| async move {
            messages.recv().await.map(|message| (message, messages))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn attach(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        let instance = authorised(&request)?;
        let (sender, outbound) = oneshot::channel();
        let attached = (request.into_inner(), sender, instance);
        self.attached
            .send(attached)
            .await
            .map_err(|_| Status::unavailable("test over"))?;
        let outbound = outbound.await.map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(Box::pin(outbound.map(Ok))))
    }

    async fn peer(&self, _: Request<Streaming<Frame>>) -> Result<Response<Self::PeerStream>, Status> {
        Err(Status::unimplemented("peer"))
    }

    async fn connect(&self, _: Request<Streaming<Frame>>) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Status::unimplemented("connect"))
    }
}

struct Io {
    stream: TlsStream<TcpStream>,
    id: u32,
    open: Arc<Mutex<HashSet<u32>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Drop for Io {
    fn drop(&mut self) {
        self.open.lock().unwrap().remove(&self.id);
    }
}

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

type PollIo<T> = Poll<std::io::Result<T>>;

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>, buf: &mut ReadBuf<'_>) -> PollIo<()> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>, buf: &[u8]) -> PollIo<usize> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> PollIo<()> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> PollIo<()> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
