//! The seam between a protocol's codec and the session that drives it.
//!
//! After the handshake a codec *scans*: one batch of bytes in, the same bytes with event spans out. An unchanged batch
//! is written on as the same `Bytes`.

use bytes::Bytes;
use smallvec::SmallVec;
use thiserror::Error;

use crate::end::Refusal;
use crate::event::{Event, Outcome};

/// Scanned bytes that may move together, and what is in them, in order. `bytes` may be empty (more is needed to know)
/// and may begin with bytes that an earlier call held back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    pub bytes: Bytes,
    pub events: SmallVec<[Event; 2]>,
}

/// What to do with a judged client batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// For the target, in order.
    pub target: SmallVec<[Bytes; 2]>,
    /// For the client at once: a refusal answered by the gateway alone (only when the session is idle).
    pub client: SmallVec<[Bytes; 2]>,
    /// Outcomes that are already known (refused statements that the target never sees).
    pub outcomes: SmallVec<[Outcome; 1]>,
}

/// A peer broke its protocol, or exceeded a bound of this codec. The session ends with it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Violation {
    /// For a person: what was wrong, with the figures.
    pub message: String,
    /// Protocol-specific error code for the client (SQLSTATE for PostgreSQL).
    pub code: &'static str,
}

/// One session's two directions, after its start-up. Not thread-safe by design: both pumps run on one arbiter.
pub trait Dialogue: 'static {
    /// Scans bytes from the client. A statement's message is held back until it is whole (bounded).
    ///
    /// # Errors
    /// `Violation` where the client broke the protocol or exceeded a bound.
    fn client(&mut self, bytes: Bytes) -> Result<Batch, Violation>;

    /// Encodes the verdict over a client batch: `refusals` are (index into `batch.events`, why), ascending. With no
    /// refusal the batch's own bytes are forwarded. Must be called once for each batch of `client`, in order.
    fn apply(&mut self, batch: Batch, refusals: &[(usize, Refusal)]) -> Applied;

    /// Scans bytes from the target.
    ///
    /// # Errors
    /// `Violation` where the target broke the protocol.
    fn target(&mut self, bytes: Bytes) -> Result<Batch, Violation>;

    /// True where nothing that was forwarded is unanswered and no transaction is open.
    fn idle(&self) -> bool;

    /// Bytes that the client must still get of a message that it has a part of; 0 between two messages. Where the
    /// message's length is not known yet, those that are missing to know it.
    fn unfinished(&self) -> usize;

    /// Statements forwarded whose outcome is not known (for the record, when the session ends).
    fn unanswered(&mut self) -> Vec<Outcome>;

    /// A notice for the client, or `None` where it cannot be sent now (in the middle of a message).
    fn notice(&self, text: &str, hint: &str) -> Option<Bytes>;

    /// The last message that the client gets: why the session ends. Empty in the middle of a message, and where the two
    /// sides have parted already: the client has said goodbye, or the target why it closes.
    fn farewell(&self, refusal: &Refusal) -> Bytes;
}
