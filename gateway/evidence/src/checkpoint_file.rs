//! Checkpoints' file sink: one JSON line each, only ever appended. Copies of it kept elsewhere are what stops somebody
//! who holds both the database and the master key.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::chain::CheckpointRow;

pub(crate) struct CheckpointFile(Option<PathBuf>);

impl CheckpointFile {
    pub const fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// A failure is logged and not fatal: the checkpoint is in the store.
    pub fn append(&self, row: &CheckpointRow) {
        if let Some(path) = &self.0
            && let Err(error) = append(path, row)
        {
            tracing::warn!(path = %path.display(), %error, "a checkpoint could not be written to its file");
        }
    }
}

fn append(path: &PathBuf, row: &CheckpointRow) -> io::Result<()> {
    let mut line = serde_json::to_vec(row)?;
    line.push(b'\n');
    File::options().create(true).append(true).open(path)?.write_all(&line)
}
