//! The people's side: one module a protocol, and what they share.

pub mod canceller;
pub mod origin;
pub mod port;
pub mod postgres;

use hoop_actors::maybe_tls::MaybeTls;
use tokio::net::TcpStream;

/// A client's socket.
pub type ClientStream = MaybeTls<tokio_rustls::server::TlsStream<TcpStream>>;
