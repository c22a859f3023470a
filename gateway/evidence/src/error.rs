//! What can go wrong with evidence, outside the journal.

use thiserror::Error;
use uuid::Uuid;

use crate::journal::JournalError;

#[derive(Debug, Error)]
pub enum EvidenceError {
    #[error("the evidence writer's store is away: {0}")]
    Away(String),
    #[error("the store refused to {operation}")]
    Query {
        operation: &'static str,
        source: tokio_postgres::Error,
    },
    #[error("the store contradicts the evidence writer: {0}")]
    Contradicted(String),
    #[error("the system gives no random bytes")]
    Random,
    #[error("the data key of session {session} cannot be opened: is this the installation's master key?")]
    Key { session: Uuid },
    #[error("the data key of session {session} was destroyed: its events cannot be read any more")]
    KeyDestroyed { session: Uuid },
    #[error("session {session} is not known")]
    UnknownSession { session: Uuid },
    #[error("chunk {seq} of session {session} is not what was written: {why}")]
    Chunk { session: Uuid, seq: i64, why: &'static str },
    #[error("the evidence writer has stopped")]
    Stopped,
    #[error("the evidence writer has more to answer than it takes ({limit} at once)")]
    Busy { limit: usize },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: String,
        source: std::io::Error,
    },
    #[error("line {line} is no evidence export: {why}")]
    Export { line: usize, why: String },
    #[error("{0}")]
    Invalid(String),
}

impl EvidenceError {
    /// For `map_err`: the store refused this operation.
    pub(crate) fn query(operation: &'static str) -> impl Fn(tokio_postgres::Error) -> Self + Copy {
        move |source| Self::Query { operation, source }
    }
}
