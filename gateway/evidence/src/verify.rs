//! Checks evidence against the audit root's public key, which is kept elsewhere. Needs no secret, and trusts no key that
//! it finds in the data.
//!
//! `links` follows one chain, `writers` the logs with their checkpoints, `sessions` the chunks; `report` tells.

mod links;
mod report;
mod sessions;
mod writers;

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use hoop_store::Store;
use uuid::Uuid;

pub use report::{Report, SessionFinding, SessionReport, WriterFinding, WriterReport};

use crate::EvidenceError;
use crate::chain::CheckpointRow;
use crate::rows::{self, Row};
use sessions::Sessions;
use writers::Writers;

/// Where evidence is read from.
#[allow(clippy::large_enum_variant, reason = "one is made for a whole check")]
pub enum Source {
    Database(Store),
    /// A file that `export` wrote.
    File(PathBuf),
}

/// Checks everything, or the chunks of one session only (the writers' logs are always checked whole).
///
/// # Errors
/// Where the evidence cannot be read. What is wrong with it is in the report.
pub async fn verify(source: Source, root: &[u8; 32], session: Option<Uuid>) -> Result<Report, EvidenceError> {
    verify_with(source, root, session, &[]).await
}

/// As `verify`, against checkpoints that were kept elsewhere too (`checkpoints` reads a checkpoint file).
///
/// # Errors
/// As `verify`.
pub async fn verify_with(
    source: Source,
    root: &[u8; 32],
    session: Option<Uuid>,
    kept: &[CheckpointRow],
) -> Result<Report, EvidenceError> {
    let mut verifier = Verifier::new(root, session);
    match source {
        Source::Database(store) => rows::from_store(&store, session, |row| verifier.take(row)).await?,
        Source::File(path) => rows::from_export(&path, |row| verifier.take(row))?,
    }
    Ok(verifier.finish(kept))
}

/// The checkpoints of a checkpoint file. A torn last line is passed over.
///
/// # Errors
/// `File` where it cannot be read, `Export` where a line is no checkpoint.
pub fn checkpoints(path: &Path) -> Result<Vec<CheckpointRow>, EvidenceError> {
    let lines = rows::lines(path)?.collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if index + 1 == lines.len() => {}
            Err(error) => {
                return Err(EvidenceError::Export {
                    line: index + 1,
                    why: error.to_string(),
                });
            }
        }
    }
    Ok(rows)
}

struct Verifier {
    writers: Writers,
    sessions: Sessions,
    phase: u8,
}

impl Verifier {
    fn new(root: &[u8; 32], session: Option<Uuid>) -> Self {
        Self {
            writers: Writers::new(root),
            sessions: Sessions::new(session),
            phase: 0,
        }
    }

    fn take(&mut self, row: Row) -> Result<(), EvidenceError> {
        let phase = match row {
            Row::Writer(_) => 0,
            Row::Checkpoint(_) => 1,
            Row::Log(_) => 2,
            Row::Session(_) => 3,
            Row::Chunk(_) => 4,
        };
        if phase < self.phase {
            return Err(EvidenceError::Invalid(
                "the export's rows are not in an export's order".to_owned(),
            ));
        }
        self.phase = phase;
        match row {
            Row::Writer(row) => self.writers.take_writer(row),
            Row::Checkpoint(row) => self.writers.take_checkpoint(row),
            Row::Log(row) => {
                if self.writers.take_log(&row) {
                    self.sessions.take_log(&row);
                }
            }
            Row::Session(row) => self.sessions.take_listed(&row),
            Row::Chunk(row) => self.sessions.take_chunk(&row),
        }
        Ok(())
    }

    fn finish(self, kept: &[CheckpointRow]) -> Report {
        let live = self.writers.live();
        let (sessions_checked, chunks_checked, sessions) = self.sessions.finish(&live);
        let (root, writers) = self.writers.finish(kept);
        Report {
            root,
            writers,
            sessions_checked,
            chunks_checked,
            sessions,
        }
    }
}

/// Whether `signature` is of the holder of `public_key` over `message`.
fn signed_by(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(message, signature)
        .is_ok()
}
