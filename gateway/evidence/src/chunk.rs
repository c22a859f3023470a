//! A chunk's inside: encoded events, each behind its length, compressed and sealed with the session's data key.

use bytes::{Buf, Bytes};
use hoop_proto::evidence::Event;
use hoop_store::seal::AesKey;
use prost::Message;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::EvidenceError;
use crate::fault;

const LEVEL: i32 = 3;
/// Chunks from this size on are compressed off the writer's thread.
const BLOCKING_FROM_BYTES: usize = 64 * 1024;
/// Most that one chunk may hold when it is opened: far more than is ever written (an event is bounded by its session).
const OPEN_MAX_BYTES: usize = 256 << 20;

/// Appends one encoded event.
pub(crate) fn push(raw: &mut Vec<u8>, event: &[u8]) {
    raw.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_le_bytes());
    raw.extend_from_slice(event);
}

fn associated(session: &Uuid, seq: i64) -> [u8; 24] {
    let mut aad = [0; 24];
    for (to, from) in aad.iter_mut().zip(session.as_bytes().iter().chain(&seq.to_be_bytes())) {
        *to = *from;
    }
    aad
}

/// Compresses and seals `raw` as chunk `seq` of `session`.
pub(crate) async fn seal(key: &AesKey, session: &Uuid, seq: i64, raw: Vec<u8>) -> Result<Vec<u8>, EvidenceError> {
    fault::point("inside_chunk");
    let aad = associated(session, seq);
    let (key, session) = (key.clone(), *session);
    let large = raw.len() >= BLOCKING_FROM_BYTES;
    let work = move || {
        let compressed = zstd::bulk::compress(&raw, LEVEL).map_err(|_| EvidenceError::Chunk {
            session,
            seq,
            why: "it cannot be compressed",
        })?;
        key.seal(&aad, &compressed).map_err(|_| EvidenceError::Random)
    };
    if large {
        spawn_blocking(work).await.map_err(|_| EvidenceError::Stopped)?
    } else {
        work()
    }
}

/// The events of a stored chunk.
///
/// # Errors
/// `EvidenceError::Chunk` where it does not open with this key, or is not what `seal` made.
pub(crate) fn open(key: &AesKey, session: &Uuid, seq: i64, stored: &[u8]) -> Result<Vec<Event>, EvidenceError> {
    let broken = |why| EvidenceError::Chunk {
        session: *session,
        seq,
        why,
    };
    let compressed = key
        .open(&associated(session, seq), stored)
        .map_err(|_| broken("it does not open with the session's key"))?;
    let bytes = zstd::bulk::Decompressor::upper_bound(&compressed)
        .unwrap_or(OPEN_MAX_BYTES)
        .min(OPEN_MAX_BYTES);
    let raw = zstd::bulk::decompress(&compressed, bytes).map_err(|_| broken("it cannot be decompressed"))?;
    let mut raw = Bytes::from(raw);
    let mut events = Vec::new();
    while raw.remaining() >= 4 {
        let length = raw.get_u32_le() as usize;
        if length > raw.len() {
            return Err(broken("an event is cut short"));
        }
        events.push(Event::decode(raw.split_to(length)).map_err(|_| broken("an event cannot be decoded"))?);
    }
    Ok(events)
}
