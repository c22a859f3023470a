//! Evidence: the journal that makes a record safe before a target receives a byte, the writer that carries it into
//! PostgreSQL as sealed chunks under hash chains, and the checks that anybody can make afterwards.
//!
//! The way of an event: `arbiter` (buffer, one `write`) → `segment` (file) → `tail` → `writer` (chunks, log, one
//! transaction a group) → `read`, `verify`, `export`. Nothing here decides what is recorded.

pub mod arbiter;
pub mod chain;
mod checkpoint_file;
mod chunk;
pub mod engine;
pub mod error;
pub mod export;
pub mod fault;
mod group;
pub mod identity;
pub mod import;
pub mod journal;
mod log;
pub mod metrics;
pub mod read;
mod replay;
mod rows;
pub mod segment;
mod session;
mod tail;
pub mod verify;
pub mod writer;

pub use arbiter::{ArbiterJournal, SessionRecorder};
pub use engine::Status;
pub use error::EvidenceError;
pub use journal::{AuditMode, Journal, JournalConfig, JournalError};
pub use writer::{AuditSetup, AuditWriter};

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = chain::NO_HASH;
    for (to, from) in hash
        .iter_mut()
        .zip(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
    {
        *to = *from;
    }
    hash
}
