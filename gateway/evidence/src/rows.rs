//! Evidence as rows, in one order, from one snapshot: what an export holds and what `verify` reads.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::pin::pin;

use futures_util::TryStreamExt;
use hoop_store::Store;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{IsolationLevel, Row as SqlRow, Transaction};
use uuid::Uuid;

use crate::EvidenceError;
use crate::chain::{CheckpointRow, ChunkRow, LogRow, WriterRow};
use crate::log::checkpoint_row;

/// One line of an export. All writers come first, then checkpoints, logs, sessions and chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    Writer(WriterRow),
    Checkpoint(CheckpointRow),
    Log(LogRow),
    Session(SessionRow),
    Chunk(ChunkRow),
}

/// A session's line in the list of sessions; its data key stays wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    pub id: Uuid,
    pub wrapped_key: Option<String>,
}

const WRITERS: &str = "select w.id, w.replica, w.public_key, w.certificate, w.started_at_us, not w.stopped and exists ( \
     select from replicas r where r.id = w.replica and r.released_at is null and r.lost_at is null \
     and r.lease_until > clock_timestamp()) from writers w order by w.id";
const CHECKPOINTS: &str = "select writer, number, seq, head_hash, at_us, others, prev_hash, signature from checkpoints \
     order by writer, number";
const LOGS: &str = "select writer, seq, at_us, kind, payload, prev_hash, hash from writer_log order by writer, seq";
const SESSIONS: &str =
    "select id, encode(wrapped_key, 'hex') from sessions where ($1::uuid is null or id = $1) order by id";
const CHUNKS: &str = "select session, seq, first_event, last_event, stored, prev_hash, hash from chunks \
     where stored is not null and ($1::uuid is null or session = $1) order by session, seq";

/// Gives every row of the store to `take`, chunks and list only of `session` if one is given.
pub(crate) async fn from_store(
    store: &Store,
    session: Option<Uuid>,
    mut take: impl FnMut(Row) -> Result<(), EvidenceError>,
) -> Result<(), EvidenceError> {
    let failed = EvidenceError::query("read the evidence");
    let mut client = store
        .client()
        .await
        .map_err(|error| EvidenceError::Away(error.to_string()))?;
    let tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(failed)?;
    tx.batch_execute("set local statement_timeout = 0")
        .await
        .map_err(failed)?;
    let session = &[(session, Type::UUID)][..];
    each(&tx, WRITERS, &[], |row| take(Row::Writer(writer_row(row)?))).await?;
    each(&tx, CHECKPOINTS, &[], |row| {
        take(Row::Checkpoint(checkpoint_row(row).map_err(failed)?))
    })
    .await?;
    each(&tx, LOGS, &[], |row| take(Row::Log(log_row(row)?))).await?;
    each(&tx, SESSIONS, session, |row| {
        let (id, wrapped_key) = (get(row, 0)?, get(row, 1)?);
        take(Row::Session(SessionRow { id, wrapped_key }))
    })
    .await?;
    each(&tx, CHUNKS, session, |row| take(Row::Chunk(chunk_row(row)?))).await?;
    tx.commit().await.map_err(failed)
}

async fn each(
    tx: &Transaction<'_>,
    sql: &str,
    params: &[(Option<Uuid>, Type)],
    mut take: impl FnMut(&SqlRow) -> Result<(), EvidenceError>,
) -> Result<(), EvidenceError> {
    let failed = EvidenceError::query("read the evidence");
    let rows = tx.query_typed_raw(sql, params.iter().cloned()).await.map_err(failed)?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        take(&row)?;
    }
    Ok(())
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a SqlRow, column: usize) -> Result<T, EvidenceError> {
    row.try_get(column).map_err(EvidenceError::query("read the evidence"))
}

fn writer_row(row: &SqlRow) -> Result<WriterRow, EvidenceError> {
    Ok(WriterRow {
        id: get(row, 0)?,
        replica: get(row, 1)?,
        public_key: get(row, 2)?,
        certificate: get(row, 3)?,
        started_at_us: get(row, 4)?,
        live: get(row, 5)?,
    })
}

fn log_row(row: &SqlRow) -> Result<LogRow, EvidenceError> {
    Ok(LogRow {
        writer: get(row, 0)?,
        seq: get(row, 1)?,
        at_us: get(row, 2)?,
        kind: get(row, 3)?,
        payload: get(row, 4)?,
        prev_hash: get(row, 5)?,
        hash: get(row, 6)?,
    })
}

fn chunk_row(row: &SqlRow) -> Result<ChunkRow, EvidenceError> {
    Ok(ChunkRow {
        session: get(row, 0)?,
        seq: get(row, 1)?,
        first_event: get(row, 2)?,
        last_event: get(row, 3)?,
        stored: get(row, 4)?,
        prev_hash: get(row, 5)?,
        hash: get(row, 6)?,
    })
}

/// Gives every row of an export to `take`.
pub(crate) fn from_export(
    path: &Path,
    mut take: impl FnMut(Row) -> Result<(), EvidenceError>,
) -> Result<(), EvidenceError> {
    for (index, line) in lines(path)?.enumerate() {
        let line = line?;
        let row = serde_json::from_str(&line).map_err(|error| EvidenceError::Export {
            line: index + 1,
            why: error.to_string(),
        })?;
        take(row)?;
    }
    Ok(())
}

pub(crate) fn lines(path: &Path) -> Result<impl Iterator<Item = Result<String, EvidenceError>>, EvidenceError> {
    let shown = path.display().to_string();
    let failed = move |source| EvidenceError::File {
        operation: "read",
        path: shown.clone(),
        source,
    };
    let file = File::open(path).map_err(&failed)?;
    Ok(BufReader::new(file).lines().map(move |line| line.map_err(&failed)))
}
