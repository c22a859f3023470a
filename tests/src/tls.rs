//! A TLS client that looks at what a port shows: blocking, so that a test runs it on a thread of its own.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// One read or write.
const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2's connection preface and an empty SETTINGS frame (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// A verified connection to a port that begins with TLS.
#[derive(Debug)]
pub struct Tls(StreamOwned<ClientConnection, TcpStream>);

impl Tls {
    /// Shakes hands as `localhost`, trusting only `ca_pem`. `before` is sent in clear before the handshake.
    ///
    /// # Errors
    /// Where the port does not answer or shows another certificate.
    pub fn connect(address: &str, ca_pem: &str, alpn: &[u8], before: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let address: SocketAddr = address.parse().with_context(|| address.to_owned())?;
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(IO_TIMEOUT))?;
        socket.set_write_timeout(Some(IO_TIMEOUT))?;
        socket.write_all(before)?;
        let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self(stream))
    }

    /// The server's own certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.0.conn.peer_certificates().unwrap_or_default();
        chain.first().map(|leaf| leaf.as_ref().to_vec()).unwrap_or_default()
    }

    /// Speaks HTTP/2 without ever opening a stream: acknowledges settings and answers pings, until the server closes.
    ///
    /// # Errors
    /// Where nothing at all comes for `silence`.
    pub fn answer_pings(mut self, silence: Duration) -> Result<()> {
        self.0.sock.set_read_timeout(Some(silence))?;
        let mut socket_open = self.0.write_all(PREFACE).is_ok();
        while socket_open {
            let mut head = [0; 9];
            match self.0.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    anyhow::bail!("it is open, and silent for {silence:?}");
                }
                Err(_) => return Ok(()),
            }
            let [l0, l1, l2, kind, flags, ..] = head;
            let mut body = vec![0; usize::try_from(u32::from_be_bytes([0, l0, l1, l2]))?];
            if self.0.read_exact(&mut body).is_err() {
                return Ok(());
            }
            let answer = match kind {
                SETTINGS if flags & ACK == 0 => vec![0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0],
                PING if flags & ACK == 0 => [&[0, 0, 8, PING, ACK, 0, 0, 0, 0], body.as_slice()].concat(),
                _ => Vec::new(),
            };
            socket_open = self.0.write_all(&answer).and_then(|()| self.0.flush()).is_ok();
        }
        Ok(())
    }
}
