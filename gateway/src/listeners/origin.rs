//! Where a connection really comes from: its peer, or, where the peer is a trusted proxy, whom its PROXY header names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hoop_actors::network::Network;
use hoop_proto::proxy_protocol::{self, Origin, Progress};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Longest wait for a trusted proxy's header, which comes before anything else.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// `trusted_proxies`. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[Network]>);

impl TrustedProxies {
    #[must_use]
    pub fn new(networks: &[Network]) -> Self {
        Self(networks.into())
    }

    /// Whether this peer's word counts for where a connection comes from.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(peer))
    }

    /// The address that counts. From a trusted proxy the header is expected, and taken off the connection; from anybody
    /// else nothing is read: a header from there is no start of the protocol, which ends the connection.
    ///
    /// # Errors
    /// Where a trusted proxy's connection does not begin with a header: it must be closed.
    pub async fn origin(&self, socket: &mut TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
        if !self.trusts(peer.ip()) {
            return Ok(peer);
        }
        match tokio::time::timeout(HEADER_TIMEOUT, header(socket)).await {
            Ok(Ok(Origin::Client(client))) => Ok(client),
            Ok(Ok(Origin::Proxy)) => Ok(peer),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other(
                "a trusted proxy sent no PROXY protocol header within 5 s",
            )),
        }
    }
}

async fn header(socket: &mut TcpStream) -> io::Result<Origin> {
    let mut bytes = Vec::new();
    loop {
        match proxy_protocol::read(&bytes).map_err(io::Error::other)? {
            Progress::Header(origin) => return Ok(origin),
            Progress::Need(more) => {
                let wanted = bytes.len() + more;
                let read = socket.take(more as u64).read_to_end(&mut bytes).await?;
                if bytes.len() < wanted || read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}
