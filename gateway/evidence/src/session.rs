//! One session as the writer sees it: where its chain has got to, and the chunk that is being filled.

use std::time::Instant;

use bytes::Bytes;
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Ended, Event, Started};
use hoop_store::seal::{AesKey, MasterKey};
use prost::Message;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::arbiter::open_data_key;
use crate::chain::{ChunkRow, Hash, NO_HASH};
use crate::chunk;
use crate::segment::{event_kind, event_seq};
use crate::{AuditMode, EvidenceError};

/// A chunk is closed when it has this much, in bytes before compression.
const CHUNK_BYTES: usize = 256 * 1024;
/// Field numbers of `Event.body`.
const STARTED: u32 = 3;
const ATTEMPT: u32 = 4;
const ENDED: u32 = 10;
/// Longest text copied into a log record or a list, in characters.
const TEXT_MAX_CHARS: usize = 1_000;

/// Where an event lies in the journal: source and position of its frame.
pub(crate) type Place = (usize, u64);

pub(crate) struct Session {
    pub id: Uuid,
    wrapped_key: Vec<u8>,
    key: Option<AesKey>,
    /// The chain's last chunk, committed or in the group being made.
    pub chunk_seq: i64,
    pub head: Hash,
    /// Number of the last event taken.
    pub last_event: u64,
    /// The store has a row of it.
    pub known: bool,
    pub mode: AuditMode,
    /// Its end is in the chain, or in the chunk being filled.
    pub ended: Option<(Ended, u64)>,
    /// The store has its end.
    pub over: bool,
    /// Statements begun since the last group.
    pub new_statements: i64,
    /// The chain has grown since the last checkpoint.
    pub grown: bool,
    /// Source that its last event came from.
    pub source: Option<usize>,
    filling: Filling,
}

#[derive(Default)]
struct Filling {
    raw: Vec<u8>,
    first_event: u64,
    since: Option<Instant>,
    place: Option<Place>,
}

/// A chunk's content that waits to be sealed.
pub(crate) struct Full {
    pub raw: Vec<u8>,
    pub first_event: u64,
    pub last_event: u64,
}

/// What taking an event came to.
#[derive(Default)]
pub(crate) struct Taken {
    /// The session's start, if this was it.
    pub started: Option<Started>,
    /// Chunks that are full with it.
    pub full: Vec<Full>,
    /// Numbers of events that are missing before it.
    pub missing: Option<(u64, u64)>,
    /// It must be committed at once.
    pub urgent: bool,
}

impl Session {
    pub fn new(id: Uuid) -> Self {
        Self {
            id,
            wrapped_key: Vec::new(),
            key: None,
            chunk_seq: 0,
            head: NO_HASH,
            last_event: 0,
            known: false,
            mode: AuditMode::default(),
            ended: None,
            over: false,
            new_statements: 0,
            grown: false,
            source: None,
            filling: Filling::default(),
        }
    }

    pub fn set_wrapped_key(&mut self, wrapped: &[u8]) {
        if self.wrapped_key.is_empty() {
            self.wrapped_key = wrapped.to_vec();
        }
    }

    /// Takes one encoded event from the journal. One that the chain holds already is passed over.
    pub fn take(&mut self, encoded: &[u8], place: Option<Place>) -> Taken {
        let mut taken = Taken::default();
        let (Some(seq), Some(kind)) = (event_seq(encoded), event_kind(encoded)) else {
            return taken;
        };
        if let Some((source, _)) = place {
            self.source = Some(source);
        }
        if seq <= self.last_event {
            return taken;
        }
        if seq > self.last_event + 1 {
            taken.missing = Some((self.last_event + 1, seq - 1));
            taken.full.extend(self.take_full());
        }
        match kind {
            STARTED => {
                taken.started = decode(encoded).and_then(|event| match event.body {
                    Some(Body::Started(started)) => Some(started),
                    _ => None,
                });
                if let Some(started) = &taken.started {
                    self.mode = started.audit_mode.parse().unwrap_or_default();
                }
                taken.urgent = true;
            }
            ATTEMPT => {
                self.new_statements += 1;
            }
            ENDED => {
                self.ended = decode(encoded).and_then(|event| match event.body {
                    Some(Body::Ended(ended)) => Some((ended, event.offset_us)),
                    _ => None,
                });
                taken.urgent = true;
            }
            _ => {}
        }
        taken.urgent |= self.mode == AuditMode::Strict;
        if self.filling.raw.is_empty() {
            self.filling = Filling {
                raw: std::mem::take(&mut self.filling.raw),
                first_event: seq,
                since: Some(Instant::now()),
                place,
            };
        }
        chunk::push(&mut self.filling.raw, encoded);
        self.last_event = seq;
        if self.filling.raw.len() >= CHUNK_BYTES {
            taken.full.extend(self.take_full());
        }
        taken
    }

    /// What is being filled, as a chunk.
    pub fn take_full(&mut self) -> Option<Full> {
        if self.filling.raw.is_empty() {
            return None;
        }
        let filling = std::mem::take(&mut self.filling);
        Some(Full {
            raw: filling.raw,
            first_event: filling.first_event,
            last_event: self.last_event,
        })
    }

    /// When the chunk being filled got its first event.
    pub const fn filling_since(&self) -> Option<Instant> {
        self.filling.since
    }

    /// Where the chunk being filled begins in the journal.
    pub const fn filling_place(&self) -> Option<Place> {
        self.filling.place
    }

    /// Seals a chunk and puts it at the chain's end.
    pub async fn seal(&mut self, full: Full, master: &MasterKey) -> Result<ChunkRow, EvidenceError> {
        let key = self.key(master)?;
        let seq = self.chunk_seq + 1;
        let stored = chunk::seal(&key, &self.id, seq, full.raw).await?;
        let mut row = ChunkRow {
            session: self.id,
            seq,
            first_event: as_i64(full.first_event),
            last_event: as_i64(full.last_event),
            stored,
            prev_hash: self.head.to_vec(),
            hash: Vec::new(),
        };
        self.head = row.computed();
        self.chunk_seq = seq;
        self.grown = true;
        row.hash = self.head.to_vec();
        Ok(row)
    }

    fn key(&mut self, master: &MasterKey) -> Result<AesKey, EvidenceError> {
        if self.wrapped_key.is_empty() {
            // Its first journal record was lost to damage, which the log tells: what is left gets a key of its own.
            let raw = MasterKey::generate().map_err(|_| EvidenceError::Random)?;
            self.wrapped_key = master
                .seal(&format!("session/{}", self.id), &raw)
                .map_err(|_| EvidenceError::Random)?;
        }
        if self.key.is_none() {
            self.key = open_data_key(master, &self.id, &self.wrapped_key);
        }
        self.key.clone().ok_or(EvidenceError::Key { session: self.id })
    }

    /// Makes sure that there is a data key, so that the session's row can hold it.
    pub fn ensure_key(&mut self, master: &MasterKey) -> Result<(), EvidenceError> {
        self.key(master).map(|_| ())
    }

    /// The session's row, for `group::Group::started`.
    pub fn row(&self, started: &Started, writer: Uuid, replica: Uuid) -> Value {
        let replica = Uuid::from_slice(&started.replica).unwrap_or(replica);
        json!({
            "id": self.id, "writer": writer, "replica": replica, "protocol": text(&started.protocol),
            "user_name": text(&started.user), "user_id": id(&started.user_id), "email": text(&started.email),
            "groups": started.groups.iter().map(|group| text(group)).collect::<Vec<_>>(),
            "connection": text(&started.connection), "connection_id": id(&started.connection_id),
            "agent": text(&started.agent), "client_address": text(&started.client_address),
            "credential": text(&started.credential), "database": text(&started.database),
            "application": text(&started.application), "client_tls": started.client_tls,
            "policy_version": as_i64(started.policy_version), "audit_mode": text(&started.audit_mode),
            "started_at_us": as_i64(started.started_at_us), "wrapped_key": hex::encode(&self.wrapped_key),
        })
    }

    /// The log's record of the start: a copy of what the session speaks of, without its key.
    pub fn started_payload(row: &Value) -> Value {
        let mut payload = row.clone();
        if let Some(object) = payload.as_object_mut() {
            object.remove("wrapped_key");
            if let Some(id) = object.remove("id") {
                object.insert("session".to_owned(), id);
            }
        }
        payload
    }

    /// The chain's head, for the log.
    pub fn head_payload(&self) -> Value {
        json!({"session": self.id, "chunks": self.chunk_seq, "head": hex::encode(self.head)})
    }
}

fn decode(encoded: &[u8]) -> Option<Event> {
    Event::decode(Bytes::copy_from_slice(encoded)).ok()
}

fn id(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

/// Text that PostgreSQL can hold (no U+0000), of bounded length.
pub(crate) fn text(text: &str) -> String {
    text.chars()
        .take(TEXT_MAX_CHARS)
        .map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

pub(crate) fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
