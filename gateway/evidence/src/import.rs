//! Takes in the journal folder of a replica that never came back, under a writer of its own.

use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::Ed25519KeyPair;
use hoop_store::Store;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::EvidenceError;
use crate::engine::{Engine, Parts, Status};
use crate::identity::Identity;
use crate::journal::{JournalError, find_segments, lock};
pub use crate::replay::Replayed;

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The writer under which the records were written.
    pub writer: Uuid,
    pub writers: Vec<Replayed>,
    /// Places in the files where something is not what was written; each is in the log.
    pub damage: u64,
}

/// Carries all segments of `dir` over and deletes them. The folder must not be in use. Events that the store has already
/// are passed over; sessions without an end get `replica_lost`.
///
/// # Errors
/// `Journal` where the folder cannot be read or is in use, or the store's own.
pub async fn import(
    dir: &Path,
    store: &Store,
    audit_root: &Ed25519KeyPair,
    checkpoint_file: Option<&Path>,
) -> Result<Imported, EvidenceError> {
    let _lock = lock(dir)?;
    let old = find_segments(dir).map_err(|source| JournalError::Io {
        operation: "read",
        path: dir.display().to_string(),
        source,
    })?;
    let writer = Uuid::now_v7();
    let parts = Parts {
        store: store.clone(),
        journal: None,
        old,
        identity: Arc::new(Identity::new(writer, writer, audit_root)?),
        checkpoint_file: checkpoint_file.map(Path::to_owned),
        status: Arc::new(Mutex::new(Status::default())),
    };
    let (_commands, heard) = mpsc::channel(1);
    let replay = Engine::new(parts, heard).run_to_the_end_of_replay().await?;
    Ok(Imported {
        writer,
        writers: replay.writers,
        damage: replay.damage,
    })
}
