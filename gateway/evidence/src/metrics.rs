//! How long the record takes: figures of this process.

use hoop_actors::metrics::{Counter, Histogram};

/// One frame's sealing and `write` into the journal.
pub static JOURNAL_WRITE: Histogram = Histogram::new();
/// Bytes written into the journal.
pub static JOURNAL_BYTES: Counter = Counter::new();
/// One transaction of the audit writer that was committed.
pub static STORE_COMMIT: Histogram = Histogram::new();
/// Transactions of the audit writer that the store did not take at once.
pub static STORE_COMMIT_FAILURES: Counter = Counter::new();
