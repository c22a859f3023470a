//! Opens sessions' chunks again: for the API, for `events`, for a person who investigates. Needs the master key.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;

use futures_util::TryStreamExt;
use hoop_proto::evidence::Event;
use hoop_store::Store;
use hoop_store::seal::MasterKey;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::EvidenceError;
use crate::arbiter::open_data_key;
use crate::chain::ChunkRow;
use crate::chunk;
use crate::rows::{self, Row, SessionRow};

const CHUNKS: &str = "select seq, stored from chunks where session = $1 and stored is not null order by seq";

/// All events of a session, in order.
///
/// # Errors
/// `UnknownSession`, `KeyDestroyed`, `Key`, `Chunk` where a chunk is not what was written, or the store's own.
pub async fn events(store: &Store, session: Uuid) -> Result<Vec<Event>, EvidenceError> {
    let mut events = Vec::new();
    each(store, session, |event| events.push(event)).await?;
    Ok(events)
}

/// As `events`, without holding more than a chunk.
///
/// # Errors
/// As `events`.
pub async fn each(store: &Store, session: Uuid, take: impl FnMut(Event)) -> Result<(), EvidenceError> {
    let client = store
        .client()
        .await
        .map_err(|error| EvidenceError::Away(error.to_string()))?;
    each_of(&client, store.master(), session, take).await
}

/// Every event of every session, session by session in the order of their starts. A session whose key was destroyed is
/// passed over.
///
/// # Errors
/// As `events`.
pub async fn all(store: &Store, mut take: impl FnMut(Uuid, Event)) -> Result<(), EvidenceError> {
    let client = store
        .client()
        .await
        .map_err(|error| EvidenceError::Away(error.to_string()))?;
    let rows = client
        .query_typed("select id from sessions order by started_at, id", &[])
        .await
        .map_err(EvidenceError::query("list sessions"))?;
    for row in rows {
        let session: Uuid = row.get(0);
        match each_of(&client, store.master(), session, |event| take(session, event)).await {
            Ok(()) | Err(EvidenceError::KeyDestroyed { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Every event of an export, session by session. A session whose key was destroyed is passed over.
///
/// # Errors
/// `File` or `Export` where it cannot be read, `Key` and `Chunk` where a session's key or a chunk is not what was written.
pub fn exported(path: &Path, master: &MasterKey, mut take: impl FnMut(Uuid, Event)) -> Result<(), EvidenceError> {
    let mut keys = BTreeMap::new();
    rows::from_export(path, |row| match row {
        Row::Session(SessionRow {
            id,
            wrapped_key: Some(wrapped),
        }) => {
            let key = hex::decode(&wrapped)
                .ok()
                .and_then(|wrapped| open_data_key(master, &id, &wrapped));
            keys.insert(id, key.ok_or(EvidenceError::Key { session: id })?);
            Ok(())
        }
        Row::Chunk(ChunkRow {
            session, seq, stored, ..
        }) => {
            if let Some(key) = keys.get(&session) {
                for event in chunk::open(key, &session, seq, &stored)? {
                    take(session, event);
                }
            }
            Ok(())
        }
        Row::Writer(_) | Row::Checkpoint(_) | Row::Log(_) | Row::Session(_) => Ok(()),
    })
}

pub(crate) async fn each_of(
    client: &Client,
    master: &MasterKey,
    session: Uuid,
    mut take: impl FnMut(Event),
) -> Result<(), EvidenceError> {
    let failed = EvidenceError::query("read a session's chunks");
    let row = client
        .query_typed_opt(
            "select wrapped_key from sessions where id = $1",
            &[(&session, Type::UUID)],
        )
        .await
        .map_err(failed)?
        .ok_or(EvidenceError::UnknownSession { session })?;
    let wrapped: Option<Vec<u8>> = row.get(0);
    let wrapped = wrapped.ok_or(EvidenceError::KeyDestroyed { session })?;
    let key = open_data_key(master, &session, &wrapped).ok_or(EvidenceError::Key { session })?;
    let rows = client
        .query_typed_raw(CHUNKS, [(session, Type::UUID)])
        .await
        .map_err(failed)?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        for event in chunk::open(&key, &session, row.get(0), row.get(1))? {
            take(event);
        }
    }
    Ok(())
}
