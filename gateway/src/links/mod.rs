//! The agents' side of the gateway: port 8010, one gRPC server an arbiter, a registry of who is linked, one-time
//! tickets, and the same for sessions that reach their agent through another replica.

pub mod agent_link;
pub mod dispatch;
pub mod door;
pub mod peer;
pub mod port;
pub mod registry;
pub mod service;
pub mod tickets;

use std::pin::Pin;

use futures_util::Stream;
use hoop_actors::mux::close_of;
use hoop_proto::end::Refusal;
use hoop_proto::link::{Frame, frame};
use tonic::Status;

/// Frames of one Attach or Peer stream, in either direction.
pub type FrameStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send + 'static>>;

/// A frame that ends the session with this refusal.
#[must_use]
pub fn close_frame(refusal: &Refusal) -> Frame {
    Frame {
        channel: 0,
        body: Some(frame::Body::Close(close_of(Some(refusal)))),
    }
}
