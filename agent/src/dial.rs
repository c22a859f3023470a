//! One encrypted connection to the gateway's one address: TCP, through a proxy where the environment wants it, then TLS
//! whose peer the key pins. Knows nothing of gRPC.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hoop_actors::trust::{self, Authorities, Libpq};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::key::AgentKey;
use crate::net::{self, NetError};
use crate::pins::PinnedAuthority;
use crate::proxy::{self, Proxy, ProxyError};
use crate::targets::tls::{TlsError, system_roots};

/// TCP, whichever of the addresses answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The proxy's answer, and then TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("HTTPS_PROXY cannot be used")]
    Proxy(#[source] ProxyError),
    #[error("the gateway at {address} cannot be reached")]
    Connect { address: String, source: NetError },
    #[error("the proxy at {address} cannot be reached")]
    ConnectProxy { address: String, source: NetError },
    #[error("\"{0}\" is neither a DNS name nor an address")]
    Name(String),
    #[error("TLS with the gateway failed")]
    Tls(#[source] io::Error),
    #[error("TLS with the gateway was not done within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TlsTimeout,
    #[error("the gateway's certificate cannot be checked")]
    Roots(#[source] TlsError),
    #[error("the gateway does not speak HTTP/2 on this port; is it its link port (8010)?")]
    NoHttp2,
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// What is needed to dial, made once.
#[derive(Debug, Clone)]
pub struct Dialer {
    host: String,
    port: u16,
    proxy: Option<Proxy>,
    tls: Arc<ClientConfig>,
}

impl Dialer {
    /// `variable` looks a name up in the environment (for the proxy).
    pub fn new(key: &AgentKey, variable: impl Fn(&str) -> Option<String>) -> Result<Self, DialError> {
        let builder = if key.pins.is_empty() {
            let roots = system_roots().map_err(DialError::Roots)?;
            let (exact, name) = (Vec::new(), true);
            trust::client_builder(Libpq::Authorities(Authorities { roots, exact, name }))
        } else {
            trust::client_builder(PinnedAuthority::new(key.pins.clone()))
        };
        let mut tls = builder.map_err(DialError::Setup)?.with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let proxy = proxy::choose(&key.host, key.port, variable).map_err(DialError::Proxy)?;
        Ok(Self {
            host: key.host.clone(),
            port: key.port,
            proxy,
            tls: Arc::new(tls),
        })
    }

    /// The gateway's address as a URL's authority.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Dials once.
    pub async fn dial(&self) -> Result<TlsStream<TcpStream>, DialError> {
        let name = ServerName::try_from(self.host.clone()).map_err(|_| DialError::Name(self.host.clone()))?;
        let tcp = self.connect().await?;
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| DialError::TlsTimeout)?
            .map_err(DialError::Tls)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(DialError::NoHttp2);
        }
        Ok(stream)
    }

    async fn connect(&self) -> Result<TcpStream, DialError> {
        let Some(proxy) = &self.proxy else {
            return open(&self.host, self.port).await.map_err(|source| DialError::Connect {
                address: self.authority(),
                source,
            });
        };
        let address = authority(&proxy.host, proxy.port);
        let mut tcp = open(&proxy.host, proxy.port)
            .await
            .map_err(|source| DialError::ConnectProxy { address, source })?;
        timeout(HANDSHAKE_TIMEOUT, proxy::tunnel(&mut tcp, proxy, &self.host, self.port))
            .await
            .map_err(|_| DialError::Proxy(ProxyError::Closed))?
            .map_err(DialError::Proxy)?;
        Ok(tcp)
    }
}

async fn open(host: &str, port: u16) -> Result<TcpStream, NetError> {
    net::connect(&net::resolve(host, port).await?, CONNECT_TIMEOUT).await
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
