//! A writer's identity: one incarnation's id and signing key, certified by the installation's audit root key.
//!
//! The private key lives in this process alone and dies with it: nobody can sign for a writer afterwards.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use uuid::Uuid;

use crate::EvidenceError;
use crate::arbiter::now_us;
use crate::chain::{CheckpointRow, WriterRow};

pub struct Identity {
    key: Ed25519KeyPair,
    pub row: WriterRow,
}

impl Identity {
    /// A fresh key for `writer`, certified by `root`.
    ///
    /// # Errors
    /// `EvidenceError::Random` where no key could be made.
    pub fn new(writer: Uuid, replica: Uuid, root: &Ed25519KeyPair) -> Result<Self, EvidenceError> {
        let key = Ed25519KeyPair::generate().map_err(|_| EvidenceError::Random)?;
        let mut row = WriterRow {
            id: writer,
            replica,
            public_key: key.public_key().as_ref().to_vec(),
            certificate: Vec::new(),
            started_at_us: i64::try_from(now_us()).unwrap_or(i64::MAX),
            live: true,
        };
        row.certificate = root.sign(&row.computed()).as_ref().to_vec();
        Ok(Self { key, row })
    }

    #[must_use]
    pub const fn writer(&self) -> Uuid {
        self.row.id
    }

    pub(crate) fn sign(&self, checkpoint: &mut CheckpointRow) {
        checkpoint.signature = self.key.sign(&checkpoint.computed()).as_ref().to_vec();
    }
}
