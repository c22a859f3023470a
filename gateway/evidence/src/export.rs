//! Writes all evidence of a store to a file that `verify` reads anywhere: sealed bytes stay sealed, no secret is needed.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hoop_store::Store;

use crate::EvidenceError;
use crate::rows::{self, Row};

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    pub writers: u64,
    pub log_records: u64,
    pub sessions: u64,
    pub chunks: u64,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            writers,
            log_records,
            sessions,
            chunks,
        } = self;
        write!(
            f,
            "{writers} writers with {log_records} records, {sessions} sessions with {chunks} chunks"
        )
    }
}

/// Writes every row, one line of JSON each, as one snapshot. An existing file is replaced; a new one is of mode 0600.
///
/// # Errors
/// The store's, or `File` where `path` cannot be written.
pub async fn export(store: &Store, path: &Path) -> Result<Exported, EvidenceError> {
    let failed = |source| EvidenceError::File {
        operation: "write",
        path: path.display().to_string(),
        source,
    };
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let mut out = BufWriter::new(file);
    let mut exported = Exported::default();
    rows::from_store(store, None, |row| {
        match row {
            Row::Writer(_) => exported.writers += 1,
            Row::Log(_) => exported.log_records += 1,
            Row::Session(_) => exported.sessions += 1,
            Row::Chunk(_) => exported.chunks += 1,
            Row::Checkpoint(_) => {}
        }
        serde_json::to_writer(&mut out, &row).map_err(|error| failed(error.into()))?;
        out.write_all(b"\n").map_err(failed)
    })
    .await?;
    out.flush().map_err(failed)?;
    Ok(exported)
}
