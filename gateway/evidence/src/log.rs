//! A writer's log: numbers its records, chains their hashes, and signs its head from time to time.
//!
//! It makes rows; `group` commits them. Whoever appends must commit what was appended, or start over from the store.

use std::collections::HashMap;

use serde_json::Value;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::arbiter::now_us;
use crate::chain::{CheckpointRow, Hash, LogRow, NO_HASH, Named};
use crate::identity::Identity;

/// Last checkpoint of every other writer.
const OTHERS: &str = "select c.writer, c.number, c.seq, c.head_hash, c.at_us, c.others, c.prev_hash, c.signature \
     from writers w cross join lateral \
     (select * from checkpoints where writer = w.id order by number desc limit 1) c where w.id <> $1 order by w.id";

/// Where a writer's log has got to.
pub(crate) struct Log {
    writer: Uuid,
    seq: i64,
    hash: Hash,
    checkpoint_number: i64,
    checkpoint_hash: Hash,
    checkpoint_seq: i64,
    /// The last checkpoint of other writers that ours have named: (number, hash).
    named: HashMap<Uuid, String>,
}

impl Log {
    pub fn new(writer: Uuid) -> Self {
        Self {
            writer,
            seq: 0,
            hash: NO_HASH,
            checkpoint_number: 0,
            checkpoint_hash: NO_HASH,
            checkpoint_seq: 0,
            named: HashMap::new(),
        }
    }

    /// As the store holds it: for an engine that takes the same writer up again.
    pub async fn load(client: &Client, writer: Uuid) -> Result<Self, tokio_postgres::Error> {
        let mut log = Self::new(writer);
        let head = "select seq, hash from writer_log where writer = $1 order by seq desc limit 1";
        if let Some(row) = client.query_typed_opt(head, &[(&writer, Type::UUID)]).await? {
            log.seq = row.try_get(0)?;
            log.hash = hash(row.try_get(1)?);
        }
        let checkpoints = "select writer, number, seq, head_hash, at_us, others, prev_hash, signature from checkpoints \
             where writer = $1 order by number";
        for row in client.query_typed(checkpoints, &[(&writer, Type::UUID)]).await? {
            let row = checkpoint_row(&row)?;
            log.checkpointed(&row);
        }
        Ok(log)
    }

    pub const fn seq(&self) -> i64 {
        self.seq
    }

    /// The next record.
    pub fn append(&mut self, kind: &str, payload: &Value) -> LogRow {
        let mut row = LogRow {
            writer: self.writer,
            seq: self.seq + 1,
            at_us: now(),
            kind: kind.to_owned(),
            payload: payload.to_string(),
            prev_hash: self.hash.to_vec(),
            hash: Vec::new(),
        };
        self.hash = row.computed();
        self.seq = row.seq;
        row.hash = self.hash.to_vec();
        row
    }

    /// Whether there is anything that the last checkpoint does not cover.
    pub const fn has_grown(&self) -> bool {
        self.seq > self.checkpoint_seq
    }

    /// Others' checkpoints that ours have not named yet.
    pub async fn others(&self, client: &Client) -> Result<Vec<Named>, tokio_postgres::Error> {
        let mut others = Vec::new();
        for row in client.query_typed(OTHERS, &[(&self.writer, Type::UUID)]).await? {
            let row = checkpoint_row(&row)?;
            let named = Named {
                writer: row.writer,
                number: row.number,
                seq: row.seq,
                hash: hex::encode(row.computed()),
            };
            if self.named.get(&named.writer) != Some(&named.hash) {
                others.push(named);
            }
        }
        Ok(others)
    }

    /// Signs the head as it is now.
    pub fn checkpoint(&mut self, identity: &Identity, others: &[Named]) -> CheckpointRow {
        let mut row = CheckpointRow {
            writer: self.writer,
            number: self.checkpoint_number + 1,
            seq: self.seq,
            head_hash: self.hash.to_vec(),
            at_us: now(),
            others: serde_json::to_string(others).unwrap_or_default(),
            prev_hash: self.checkpoint_hash.to_vec(),
            signature: Vec::new(),
        };
        identity.sign(&mut row);
        self.checkpointed(&row);
        row
    }

    fn checkpointed(&mut self, row: &CheckpointRow) {
        self.checkpoint_number = row.number;
        self.checkpoint_hash = row.computed();
        self.checkpoint_seq = row.seq;
        let named: Vec<Named> = serde_json::from_str(&row.others).unwrap_or_default();
        self.named
            .extend(named.into_iter().map(|named| (named.writer, named.hash)));
    }
}

pub(crate) fn checkpoint_row(row: &tokio_postgres::Row) -> Result<CheckpointRow, tokio_postgres::Error> {
    Ok(CheckpointRow {
        writer: row.try_get(0)?,
        number: row.try_get(1)?,
        seq: row.try_get(2)?,
        head_hash: row.try_get(3)?,
        at_us: row.try_get(4)?,
        others: row.try_get(5)?,
        prev_hash: row.try_get(6)?,
        signature: row.try_get(7)?,
    })
}

/// A hash column; one of another length is no hash of ours, and matches none.
pub(crate) fn hash(bytes: &[u8]) -> Hash {
    bytes.try_into().unwrap_or(NO_HASH)
}

pub(crate) fn now() -> i64 {
    i64::try_from(now_us()).unwrap_or(i64::MAX)
}
