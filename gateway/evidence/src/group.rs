//! One transaction of the writer: everything that becomes true together, and how it is committed exactly once.
//!
//! INVARIANT: a group's number is in `writers.groups` exactly if the whole group is committed. After a lost connection
//! the number tells whether the group has to be sent again.

use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::chain::{CheckpointRow, ChunkRow, LogRow};
use crate::fault;

/// How a session ended, for the list of sessions.
pub(crate) struct EndedRow {
    pub session: Uuid,
    /// Microseconds since the session's start.
    pub offset_us: i64,
    pub code: String,
    pub message: String,
    pub statements: i64,
    pub client_bytes: i64,
    pub target_bytes: i64,
}

#[derive(Default)]
pub(crate) struct Group {
    pub number: i64,
    /// JSON objects with the columns of `sessions`; `wrapped_key` in hexadecimal, `started_at_us` for `started_at`.
    pub started: Vec<Value>,
    pub chunks: Vec<ChunkRow>,
    /// Statements that sessions have begun since their last group.
    pub statements: Vec<(Uuid, i64)>,
    pub ended: Vec<EndedRow>,
    /// Sessions of lost replicas, and the moment (UTC, microseconds) at which they are given up.
    pub given_up: Vec<(Uuid, i64)>,
    pub log: Vec<LogRow>,
    pub checkpoint: Option<CheckpointRow>,
    pub stopped: bool,
}

/// Why a group was not committed.
pub(crate) enum Failure {
    /// The store is away or refused for a reason that passes: send the same group again.
    Away(String),
    /// The store holds something that this group contradicts: start over from what the store holds.
    Contradicted(String),
}

const ADD_SESSIONS: &str = "insert into sessions (id, writer, replica, protocol, user_name, user_id, email, groups, \
     connection, connection_id, agent, client_address, credential, database, application, client_tls, policy_version, \
     audit_mode, started_at, wrapped_key) \
     select r.id, r.writer, r.replica, r.protocol, r.user_name, r.user_id, r.email, \
     array(select jsonb_array_elements_text(r.groups)), r.connection, r.connection_id, r.agent, r.client_address, \
     r.credential, r.database, r.application, r.client_tls, r.policy_version, r.audit_mode, \
     timestamptz 'epoch' + r.started_at_us * interval '1 microsecond', decode(r.wrapped_key, 'hex') \
     from jsonb_to_recordset($1) as r (id uuid, writer uuid, replica uuid, protocol text, user_name text, user_id uuid, \
     email text, groups jsonb, connection text, connection_id uuid, agent text, client_address text, credential text, \
     database text, application text, client_tls boolean, policy_version bigint, audit_mode text, started_at_us bigint, \
     wrapped_key text) on conflict (id) do nothing";

const ADD_CHUNKS: &str = "insert into chunks (session, seq, first_event, last_event, stored, prev_hash, hash) \
     select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[], $7::bytea[])";

const ADD_STATEMENTS: &str = "update sessions s set statements = s.statements + d.n \
     from unnest($1::uuid[], $2::bigint[]) as d (id, n) where s.id = d.id";

const END_SESSIONS: &str = "update sessions s set writer = $8, end_provisional = false, \
     ended_at = s.started_at + d.at_us * interval '1 microsecond', end_code = d.code, end_message = d.message, \
     statements = d.statements, client_bytes = d.client_bytes, target_bytes = d.target_bytes \
     from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[]) \
     as d (id, at_us, code, message, statements, client_bytes, target_bytes) where s.id = d.id";

const GIVE_UP_SESSIONS: &str = "update sessions s set end_provisional = true, end_code = 'replica_lost', \
     ended_at = timestamptz 'epoch' + d.at_us * interval '1 microsecond' \
     from unnest($1::uuid[], $2::bigint[]) as d (id, at_us) where s.id = d.id and s.ended_at is null";

const ADD_LOG: &str = "insert into writer_log (writer, seq, at_us, kind, payload, prev_hash, hash) \
     select $1, * from unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])";

const ADD_CHECKPOINT: &str = "insert into checkpoints (writer, number, seq, head_hash, at_us, others, prev_hash, \
     signature) values ($1, $2, $3, $4, $5, $6, $7, $8)";

const COUNT_GROUP: &str = "update writers set groups = $2, stopped = $3 where id = $1 and groups = $2 - 1";

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

impl Group {
    pub fn is_empty(&self) -> bool {
        self.started.is_empty()
            && self.chunks.is_empty()
            && self.statements.is_empty()
            && self.ended.is_empty()
            && self.given_up.is_empty()
            && self.log.is_empty()
            && self.checkpoint.is_none()
            && !self.stopped
    }

    /// Commits this group of `writer`, or finds that it was committed before.
    pub async fn commit(&self, client: &mut Client, writer: Uuid) -> Result<(), Failure> {
        let tx = client.transaction().await.map_err(failure)?;
        let counted = tx
            .execute_typed(
                COUNT_GROUP,
                &[
                    (&writer, Type::UUID),
                    (&self.number, Type::INT8),
                    (&self.stopped, Type::BOOL),
                ],
            )
            .await
            .map_err(failure)?;
        if counted != 1 {
            let row = tx
                .query_typed("select groups from writers where id = $1", &[(&writer, Type::UUID)])
                .await
                .map_err(failure)?;
            return match row.first().map(|row| row.get::<_, i64>(0)) {
                Some(groups) if groups == self.number => Ok(()),
                Some(groups) => Err(Failure::Contradicted(format!(
                    "it counts {groups} groups of this writer, not {}",
                    self.number - 1
                ))),
                None => Err(Failure::Contradicted("it does not know this writer".to_owned())),
            };
        }
        self.add_rows(&tx, writer).await.map_err(failure)?;
        fault::point("inside_commit");
        tx.commit().await.map_err(failure)
    }

    async fn add_rows(&self, tx: &tokio_postgres::Transaction<'_>, writer: Uuid) -> Result<(), tokio_postgres::Error> {
        if !self.started.is_empty() {
            let rows = json!(self.started);
            tx.execute_typed(ADD_SESSIONS, &[(&rows, Type::JSONB)]).await?;
        }
        if !self.chunks.is_empty() {
            let rows = &self.chunks;
            let params: &[Param<'_>] = &[
                (&column(rows, |row| row.session), Type::UUID_ARRAY),
                (&column(rows, |row| row.seq), Type::INT8_ARRAY),
                (&column(rows, |row| row.first_event), Type::INT8_ARRAY),
                (&column(rows, |row| row.last_event), Type::INT8_ARRAY),
                (&column(rows, |row| row.stored.as_slice()), Type::BYTEA_ARRAY),
                (&column(rows, |row| row.prev_hash.as_slice()), Type::BYTEA_ARRAY),
                (&column(rows, |row| row.hash.as_slice()), Type::BYTEA_ARRAY),
            ];
            tx.execute_typed(ADD_CHUNKS, params).await?;
        }
        if !self.statements.is_empty() {
            let params: &[Param<'_>] = &[
                (&column(&self.statements, |row| row.0), Type::UUID_ARRAY),
                (&column(&self.statements, |row| row.1), Type::INT8_ARRAY),
            ];
            tx.execute_typed(ADD_STATEMENTS, params).await?;
        }
        if !self.ended.is_empty() {
            let rows = &self.ended;
            let params: &[Param<'_>] = &[
                (&column(rows, |row| row.session), Type::UUID_ARRAY),
                (&column(rows, |row| row.offset_us), Type::INT8_ARRAY),
                (&column(rows, |row| row.code.as_str()), Type::TEXT_ARRAY),
                (&column(rows, |row| row.message.as_str()), Type::TEXT_ARRAY),
                (&column(rows, |row| row.statements), Type::INT8_ARRAY),
                (&column(rows, |row| row.client_bytes), Type::INT8_ARRAY),
                (&column(rows, |row| row.target_bytes), Type::INT8_ARRAY),
                (&writer, Type::UUID),
            ];
            tx.execute_typed(END_SESSIONS, params).await?;
        }
        if !self.given_up.is_empty() {
            let params: &[Param<'_>] = &[
                (&column(&self.given_up, |row| row.0), Type::UUID_ARRAY),
                (&column(&self.given_up, |row| row.1), Type::INT8_ARRAY),
            ];
            tx.execute_typed(GIVE_UP_SESSIONS, params).await?;
        }
        add_log(tx, writer, &self.log).await?;
        if let Some(checkpoint) = &self.checkpoint {
            add_checkpoint(tx, checkpoint).await?;
        }
        Ok(())
    }
}

pub(crate) async fn add_log(
    tx: &tokio_postgres::Transaction<'_>,
    writer: Uuid,
    rows: &[LogRow],
) -> Result<(), tokio_postgres::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let params: &[Param<'_>] = &[
        (&writer, Type::UUID),
        (&column(rows, |row| row.seq), Type::INT8_ARRAY),
        (&column(rows, |row| row.at_us), Type::INT8_ARRAY),
        (&column(rows, |row| row.kind.as_str()), Type::TEXT_ARRAY),
        (&column(rows, |row| row.payload.as_str()), Type::TEXT_ARRAY),
        (&column(rows, |row| row.prev_hash.as_slice()), Type::BYTEA_ARRAY),
        (&column(rows, |row| row.hash.as_slice()), Type::BYTEA_ARRAY),
    ];
    tx.execute_typed(ADD_LOG, params).await.map(|_| ())
}

pub(crate) async fn add_checkpoint(
    tx: &tokio_postgres::Transaction<'_>,
    row: &CheckpointRow,
) -> Result<(), tokio_postgres::Error> {
    let params: &[Param<'_>] = &[
        (&row.writer, Type::UUID),
        (&row.number, Type::INT8),
        (&row.seq, Type::INT8),
        (&row.head_hash, Type::BYTEA),
        (&row.at_us, Type::INT8),
        (&row.others, Type::TEXT),
        (&row.prev_hash, Type::BYTEA),
        (&row.signature, Type::BYTEA),
    ];
    tx.execute_typed(ADD_CHECKPOINT, params).await.map(|_| ())
}

fn column<'a, R, T>(rows: &'a [R], get: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(get).collect()
}

/// What a refusal of the store means for the group. Classes 08, 53, 55, 57, 58 and serialization failures pass.
pub(crate) fn failure(error: tokio_postgres::Error) -> Failure {
    let told = told(&error);
    match error.code().map(|code| code.code()) {
        Some(code)
            if !["08", "40", "53", "55", "57", "58", "25"]
                .iter()
                .any(|passing| code.starts_with(passing)) =>
        {
            Failure::Contradicted(told)
        }
        _ => Failure::Away(told),
    }
}

/// The server's message, or the transport's.
pub(crate) fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |db| format!("{} ({})", db.message(), db.code().code()),
    )
}
