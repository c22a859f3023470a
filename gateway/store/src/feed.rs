//! What happened since one last looked, for those who watch: which sessions started and ended, on any replica.
//!
//! Read from the writers' logs, whose numbers have no gaps: nothing is missed or told twice, and audit transactions
//! need not notify. Reads only, and only while somebody watches.

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::change::{Params, get};
use crate::{Store, StoreError};

/// Most records of one writer that are read at once.
pub const SESSION_LOG_BATCH: i64 = 500;

/// How far a writer's log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterHead {
    pub writer: Uuid,
    pub seq: i64,
    /// It said goodbye: nothing follows.
    pub stopped: bool,
}

/// A session's start or end in a writer's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionMark {
    pub seq: i64,
    pub session: Uuid,
    pub started: bool,
}

impl Store {
    /// The heads of all writers that have not stopped, and of `also`.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn writer_heads(&self, also: &[Uuid]) -> Result<Vec<WriterHead>, StoreError> {
        let sql = "select w.id, w.stopped, coalesce(h.seq, 0) as seq from writers w left join lateral \
                   (select seq from writer_log where writer = w.id order by seq desc limit 1) h on true \
                   where not w.stopped or w.id = any($1)";
        let rows = self
            .read("reading the writers' heads", sql, &[(&also, Type::UUID_ARRAY)])
            .await?;
        let head = |row| {
            Ok(WriterHead {
                writer: get(row, "id")?,
                seq: get(row, "seq")?,
                stopped: get(row, "stopped")?,
            })
        };
        rows.iter().map(head).collect()
    }

    /// Starts and ends in a writer's log after number `after` and up to `to`, in order, at most `SESSION_LOG_BATCH`.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn session_marks(&self, writer: Uuid, after: i64, to: i64) -> Result<Vec<SessionMark>, StoreError> {
        let sql = "select seq, kind, writer_log_member(payload, '{session}') as session from writer_log \
                   where writer = $1 and seq > $2 and seq <= $3 \
                   and kind in ('session_started', 'session_ended', 'session_given_up') order by seq limit $4";
        let params: Params<'_> = &[
            (&writer, Type::UUID),
            (&after, Type::INT8),
            (&to, Type::INT8),
            (&SESSION_LOG_BATCH, Type::INT8),
        ];
        let rows = self.read("reading the sessions' log", sql, params).await?;
        let mut marks = Vec::with_capacity(rows.len());
        for row in &rows {
            let session: Option<String> = get(row, "session")?;
            let kind: String = get(row, "kind")?;
            if let Some(session) = session.and_then(|id| Uuid::parse_str(&id).ok()) {
                marks.push(SessionMark {
                    seq: get(row, "seq")?,
                    session,
                    started: kind == "session_started",
                });
            }
        }
        Ok(marks)
    }
}
