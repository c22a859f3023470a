//! Port 8010: accepts, hands each socket to an arbiter, shakes hands there under a deadline, and feeds that arbiter's
//! gRPC server. How long a connection may stay is its [`door`](super::door)'s.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hoop_actors::gate::GateTicket;
use hoop_proto::link::link_server::LinkServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::{debug, error};

use super::door::{Closing, LinkConnection};
use super::service::LinkService;
use crate::certificates::Certificates;

/// HTTP/2 windows never bind: flow control is the frames' credits (DESIGN §6).
pub const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Above the largest credit of a channel.
pub const STREAM_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Largest HTTP/2 frame.
pub const FRAME_MAX_BYTES: u32 = 512 << 10;
/// Largest link message.
pub const MESSAGE_MAX_BYTES: usize = 1 << 20;
/// With `PING_TIMEOUT`, a dead peer is found within 20 s. Most of it is for the answer: a machine that is short of
/// processor time is slow, and not dead.
pub const PING_INTERVAL: Duration = Duration::from_secs(4);
pub const PING_TIMEOUT: Duration = Duration::from_secs(14);
/// Streams on one connection: sessions and registers.
const STREAMS_MAX: u32 = 65_536;
/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have shaken hands and wait for the gRPC server.
const READY_CONNECTIONS: usize = 64;

/// A connection of port 8010 after its handshake.
pub struct LinkIo {
    stream: TlsStream<TcpStream>,
    connection: LinkConnection,
    closing: Closing,
}

impl Connected for LinkIo {
    type ConnectInfo = LinkConnection;

    fn connect_info(&self) -> LinkConnection {
        self.connection.clone()
    }
}

impl AsyncRead for LinkIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.closing.poll_closed(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One arbiter's end of port 8010. Made on that arbiter; lives as long as its sender.
#[derive(Clone)]
pub struct LinkPort {
    ready: mpsc::Sender<Result<LinkIo, io::Error>>,
    certificates: Certificates,
}

impl LinkPort {
    /// Starts this arbiter's gRPC server. Must run on the arbiter.
    #[must_use]
    pub fn start(service: LinkService, certificates: Certificates) -> Self {
        let (ready, connections) = mpsc::channel(READY_CONNECTIONS);
        let arbiter = service.arbiter;
        let server = Server::builder()
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_frame_size(FRAME_MAX_BYTES)
            .http2_adaptive_window(Some(false))
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(LinkServer::new(service).max_decoding_message_size(MESSAGE_MAX_BYTES));
        actix_rt::spawn(async move {
            if let Err(error) = server.serve_with_incoming(ReceiverStream::new(connections)).await {
                error!(%error, arbiter, "the agent link's server ended");
            }
        });
        Self { ready, certificates }
    }

    /// Shakes hands and hands the connection to the server, all within what the door allows. Runs on the arbiter.
    pub async fn serve(&self, socket: TcpStream, client: SocketAddr, ticket: GateTicket) {
        let handshake = TlsAcceptor::from(self.certificates.link()).accept(socket);
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake);
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = ticket.evicted() => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                ticket.spoke();
                // rustls has verified it against the installation's CA, or there is none
                let replica = stream
                    .get_ref()
                    .1
                    .peer_certificates()
                    .is_some_and(|chain| !chain.is_empty());
                let (connection, closing) = LinkConnection::new(client, replica);
                actix_rt::spawn(connection.clone().watch(ticket));
                let io = LinkIo {
                    stream,
                    connection,
                    closing,
                };
                if self.ready.send(Ok(io)).await.is_err() {
                    debug!("the agent link's server has stopped");
                }
            }
            Ok(Err(error)) => debug!(%client, %error, "no TLS on the agent link"),
            Err(_) => debug!(%client, "a TLS handshake on the agent link took over 10 s"),
        }
    }
}
