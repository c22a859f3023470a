//! `PeerDialer`: the calling side of `Peer`. Mutual TLS from the installation's CA; one stream a session.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use hoop_proto::link::link_client::LinkClient;
use hoop_proto::link::{Cancel, Control, Frame, Open, control, frame};
use hoop_store::replicas::ReplicaRow;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use super::dispatch::Request;
use super::tickets::Attached;
use super::{FrameStream, port};
use crate::certificates::Certificates;
use crate::tls::REPLICA_NAME;

/// Longest time to reach another replica.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Another replica could not be used.
#[derive(Debug, Error)]
pub enum PeerError {
    #[error("it has told no address")]
    NoAddress,
    #[error("cannot reach {address}")]
    Dial {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("it refused the stream: {0}")]
    Refused(String),
}

/// Dials other replicas. Cheap to clone.
#[derive(Clone)]
pub struct PeerDialer {
    certificates: Certificates,
}

fn first_frame(open: Open) -> Result<Frame, Status> {
    Ok(Frame {
        channel: 0,
        body: Some(frame::Body::Open(open)),
    })
}

impl PeerDialer {
    #[must_use]
    pub const fn new(certificates: Certificates) -> Self {
        Self { certificates }
    }

    async fn dial(&self, replica: &ReplicaRow) -> Result<LinkClient<Channel>, PeerError> {
        let address = replica.address.clone();
        if address.is_empty() {
            return Err(PeerError::NoAddress);
        }
        let tls = TlsConnector::from(self.certificates.peer());
        let at = address.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, at) = (tls.clone(), at.clone());
            async move {
                let tcp = TcpStream::connect(&at).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(REPLICA_NAME).map_err(std::io::Error::other)?;
                let stream = tls.connect(name, tcp).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://replica.hoop.internal")
            .connect_timeout(DIAL_TIMEOUT)
            .initial_connection_window_size(port::CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(port::STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(port::PING_INTERVAL)
            .keep_alive_timeout(port::PING_TIMEOUT)
            .connect_with_connector(connector)
            .await
            .map_err(|source| PeerError::Dial { address, source })?;
        Ok(LinkClient::new(channel).max_decoding_message_size(port::MESSAGE_MAX_BYTES))
    }

    /// Carries a session over `replica`.
    ///
    /// # Errors
    /// `PeerError` where it cannot be reached; what its agent says comes in the stream.
    pub async fn open(&self, replica: &ReplicaRow, request: &Request) -> Result<Attached, PeerError> {
        let mut client = self.dial(replica).await?;
        let open = Open {
            session: Bytes::copy_from_slice(request.session.as_bytes()),
            kind: "session".into(),
            target: Some(request.target.clone()),
            agent: request.agent.clone(),
            connection: request.connection.clone(),
            replica: Bytes::copy_from_slice(replica.id.as_bytes()),
            ..Open::default()
        };
        let (outbound, frames) = oneshot::channel::<FrameStream>();
        // our frames follow once the session has its mux; a session that gives up ends the stream
        let rest = frames
            .map(|frames| frames.unwrap_or_else(|_| Box::pin(futures_util::stream::empty())))
            .flatten_stream();
        let stream = futures_util::stream::iter([first_frame(open)])
            .chain(rest)
            .filter_map(|frame| async { frame.ok() });
        let inbound = client
            .peer(stream)
            .await
            .map_err(|status| PeerError::Refused(status.message().into()))?;
        Ok(Attached {
            inbound: Box::pin(inbound.into_inner()),
            outbound,
        })
    }

    /// Passes a CancelRequest to the replica whose session it names.
    ///
    /// # Errors
    /// `PeerError` where it cannot be reached.
    pub async fn cancel(&self, replica: &ReplicaRow, process_id: u32, secret: Bytes) -> Result<(), PeerError> {
        let mut client = self.dial(replica).await?;
        let open = Open {
            session: Bytes::copy_from_slice(Uuid::nil().as_bytes()),
            kind: "cancel".into(),
            replica: Bytes::copy_from_slice(replica.id.as_bytes()),
            ..Open::default()
        };
        let cancel = Control {
            body: Some(control::Body::Cancel(Cancel { process_id, secret })),
        };
        let frames = [
            Frame {
                channel: 0,
                body: Some(frame::Body::Open(open)),
            },
            Frame {
                channel: 0,
                body: Some(frame::Body::Control(cancel)),
            },
        ];
        let answer = client
            .peer(futures_util::stream::iter(frames))
            .await
            .map_err(|status| PeerError::Refused(status.message().into()))?;
        // its end says that the cancel was looked at
        drop(answer.into_inner().next().await);
        Ok(())
    }
}
