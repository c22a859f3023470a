//! Evidence: the journal that makes a record safe before a target receives a byte, the writer that carries it into
//! PostgreSQL as sealed chunks under hash chains, and the checks that anybody can make afterwards.
//!
//! The way of an event: `arbiter` (buffer, one `write`) → `segment` (file) → `tail` → `writer` (chunks, log, one
//! transaction a group) → `read`, `verify`, `export`. Nothing here decides what is recorded.

pub mod arbiter;
pub mod fault;
pub mod journal;
pub mod segment;

pub use arbiter::{ArbiterJournal, SessionRecorder};
pub use journal::{AuditMode, Journal, JournalConfig, JournalError};
