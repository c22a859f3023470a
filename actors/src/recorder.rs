//! A session's view of its record. The journal behind it lives in `hoop-evidence`.

use futures_util::future::LocalBoxFuture;
use hoop_proto::evidence::event::Body;
use thiserror::Error;

/// The record could not be kept. The session ends with it (fail closed).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the record cannot be kept: {0}")]
pub struct RecordError(pub String);

/// What `commit` answers.
pub enum Commit {
    /// All that was appended is as safe as the session's audit mode asks.
    Done,
    /// It will be when this future answers (synced, strict, or a journal whose byte budget is used up).
    Wait(LocalBoxFuture<'static, Result<(), RecordError>>),
}

/// Appends events to a session's record, in order. Lives on the session's arbiter.
///
/// `append` numbers the event and gives it its time; it only buffers. What a target is about to receive must be
/// committed first: `commit` makes everything appended so far, by any session of this arbiter, safe with one `write`.
/// What was appended and not committed is written behind within `FLUSH_INTERVAL_MS` by the journal itself.
pub trait Recorder: 'static {
    /// # Errors
    /// `RecordError` where the journal is closed or its disk is full.
    fn append(&mut self, body: Body) -> Result<(), RecordError>;

    /// # Errors
    /// `RecordError` where the write failed.
    fn commit(&mut self) -> Result<Commit, RecordError>;
}

/// Longest time that an appended event waits for its `write`, in milliseconds.
pub const FLUSH_INTERVAL_MS: u64 = 20;

impl<R: Recorder + ?Sized> Recorder for Box<R> {
    fn append(&mut self, body: Body) -> Result<(), RecordError> {
        (**self).append(body)
    }

    fn commit(&mut self) -> Result<Commit, RecordError> {
        (**self).commit()
    }
}
