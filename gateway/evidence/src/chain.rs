//! What is hashed and signed, byte for byte: the rows of writers' logs, chunks, checkpoints and certificates.
//!
//! Shared by the writer, which makes them, and by `verify`, which trusts nothing else. It must not read or write rows.
//! Every message begins with its own name, integers are big-endian, and what varies in length follows its length.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A SHA-256.
pub type Hash = [u8; 32];
/// What the first record of a chain has in the place of its predecessor's hash.
pub const NO_HASH: Hash = [0; 32];

/// A writer's public key and the audit root's word for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterRow {
    pub id: Uuid,
    pub replica: Uuid,
    #[serde(with = "as_base64")]
    pub public_key: Vec<u8>,
    #[serde(with = "as_base64")]
    pub certificate: Vec<u8>,
    pub started_at_us: i64,
    /// Its replica held a lease when this was read. A hint, not evidence.
    #[serde(default)]
    pub live: bool,
}

/// One record of a writer's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    pub writer: Uuid,
    pub seq: i64,
    pub at_us: i64,
    pub kind: String,
    pub payload: String,
    #[serde(with = "as_base64")]
    pub prev_hash: Vec<u8>,
    #[serde(with = "as_base64")]
    pub hash: Vec<u8>,
}

/// A writer's signed head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRow {
    pub writer: Uuid,
    pub number: i64,
    pub seq: i64,
    #[serde(with = "as_base64")]
    pub head_hash: Vec<u8>,
    pub at_us: i64,
    /// JSON: a list of `Named`.
    pub others: String,
    #[serde(with = "as_base64")]
    pub prev_hash: Vec<u8>,
    #[serde(with = "as_base64")]
    pub signature: Vec<u8>,
}

/// One session's sealed events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRow {
    pub session: Uuid,
    pub seq: i64,
    pub first_event: i64,
    pub last_event: i64,
    #[serde(with = "as_base64")]
    pub stored: Vec<u8>,
    #[serde(with = "as_base64")]
    pub prev_hash: Vec<u8>,
    #[serde(with = "as_base64")]
    pub hash: Vec<u8>,
}

/// Another writer's checkpoint, as a checkpoint names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub writer: Uuid,
    pub number: i64,
    /// The log's length that it signed.
    pub seq: i64,
    /// Hexadecimal hash of the checkpoint.
    pub hash: String,
}

struct Message(Context);

impl Message {
    fn new(name: &str) -> Self {
        let mut message = Self(Context::new(&SHA256));
        message.bytes(name.as_bytes());
        message
    }

    fn id(&mut self, id: &Uuid) -> &mut Self {
        self.0.update(id.as_bytes());
        self
    }

    fn number(&mut self, number: i64) -> &mut Self {
        self.0.update(&number.to_be_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    fn hash(self) -> Hash {
        let mut hash = NO_HASH;
        for (to, from) in hash.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        hash
    }
}

impl LogRow {
    /// The hash that this row's content has, whatever its `hash` column says.
    #[must_use]
    pub fn computed(&self) -> Hash {
        let mut message = Message::new("hoop log 1");
        message.id(&self.writer).number(self.seq).number(self.at_us);
        message
            .bytes(self.kind.as_bytes())
            .bytes(self.payload.as_bytes())
            .bytes(&self.prev_hash);
        message.hash()
    }
}

impl ChunkRow {
    /// The hash that this row's content has, whatever its `hash` column says.
    #[must_use]
    pub fn computed(&self) -> Hash {
        let mut message = Message::new("hoop chunk 1");
        message
            .id(&self.session)
            .number(self.seq)
            .number(self.first_event)
            .number(self.last_event);
        message.bytes(&self.stored).bytes(&self.prev_hash);
        message.hash()
    }
}

impl CheckpointRow {
    /// What is signed; also the hash by which the next checkpoint and other writers name this one.
    #[must_use]
    pub fn computed(&self) -> Hash {
        let mut message = Message::new("hoop checkpoint 1");
        message
            .id(&self.writer)
            .number(self.number)
            .number(self.seq)
            .bytes(&self.head_hash)
            .number(self.at_us);
        message.bytes(self.others.as_bytes()).bytes(&self.prev_hash);
        message.hash()
    }
}

impl WriterRow {
    /// What the audit root signs.
    #[must_use]
    pub fn computed(&self) -> Hash {
        let mut message = Message::new("hoop writer 1");
        message
            .id(&self.id)
            .id(&self.replica)
            .bytes(&self.public_key)
            .number(self.started_at_us);
        message.hash()
    }
}

/// Bytes as base64 in JSON.
mod as_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}
