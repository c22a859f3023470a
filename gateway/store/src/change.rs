//! One administrative change: a transaction that is announced to every replica, and recorded before it is committed.
//!
//! INVARIANT: nothing is committed that the witness has not recorded (fail closed). A record whose commit then fails
//! speaks of an attempt; the next record shows the state that it did not change.

use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, ToSql, Type};

use crate::{Store, StoreError, changes};

/// Changes of one process that may hold a pooled connection while they wait for their record.
const CHANGES_AT_ONCE: usize = 2;
/// Longest wait for a record, in milliseconds.
const RECORD_TIMEOUT_MS: u64 = 10_000;

/// "hoop" in ASCII, then 5: held from a version of the policy until it is committed.
const POLICY_LOCK: i64 = 114_827_820_269_573;

static CHANGES: Semaphore = Semaphore::const_new(CHANGES_AT_ONCE);

/// Keeps the record of administrative changes (who, what, before and after; never a secret).
pub trait Witness: Sync {
    /// Answers when the record is safe. `payload` is an object with `subject`, `before` and `after`.
    fn record<'a>(&'a self, kind: &'static str, payload: Value) -> BoxFuture<'a, Result<(), String>>;
}

/// For the first start, before there is a record to write to, and for tests.
#[derive(Debug, Clone, Copy)]
pub struct Unrecorded;

impl Witness for Unrecorded {
    fn record<'a>(&'a self, _kind: &'static str, _payload: Value) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

pub(crate) type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

impl Store {
    /// A read of one statement, unnamed at the server, so that a pooler may stand between.
    pub(crate) async fn read(
        &self,
        operation: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let client = self.client().await?;
        #[cfg(test)]
        crate::plans::note(&client, sql, params).await;
        client
            .query_typed(sql, params)
            .await
            .map_err(StoreError::query(operation))
    }

    pub(crate) async fn read_opt(
        &self,
        operation: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.read(operation, sql, params).await?.into_iter().next())
    }
}

/// An open change. Dropping it undoes it.
pub(crate) struct Change<'c> {
    tx: Transaction<'c>,
    operation: &'static str,
    announcements: Vec<(&'static str, String)>,
}

impl<'c> Change<'c> {
    pub(crate) async fn begin(client: &'c mut Object, operation: &'static str) -> Result<Self, StoreError> {
        let tx = client.transaction().await.map_err(StoreError::query(operation))?;
        Ok(Self {
            tx,
            operation,
            announcements: Vec::new(),
        })
    }

    pub(crate) async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        self.tx
            .query_typed(sql, params)
            .await
            .map_err(StoreError::query(self.operation))
    }

    pub(crate) async fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Tells every replica, of `kind` (constants of `changes`), once the change is committed.
    pub(crate) fn announce(&mut self, kind: &'static str, subject: impl Into<String>) {
        self.announcements.push((kind, subject.into()));
    }

    /// Records, announces (publishing transactions wait for each other, so it comes last), commits.
    pub(crate) async fn commit(
        self,
        witness: &dyn Witness,
        kind: &'static str,
        payload: Value,
    ) -> Result<(), StoreError> {
        let operation = self.operation;
        let _permit = CHANGES
            .acquire()
            .await
            .map_err(|_| StoreError::Setup("the store is closing".into()))?;
        tokio::time::timeout(Duration::from_millis(RECORD_TIMEOUT_MS), witness.record(kind, payload))
            .await
            .map_err(|_| StoreError::Unrecorded(format!("no answer within {RECORD_TIMEOUT_MS} ms")))?
            .map_err(StoreError::Unrecorded)?;
        for (kind, subject) in &self.announcements {
            changes::publish(&*self.tx, kind, subject).await?;
        }
        self.tx.commit().await.map_err(StoreError::query(operation))
    }

    /// Commits what is no administrative change, and is recorded otherwise or not at all: when somebody signed in last, a
    /// code that was used or was wrong.
    pub(crate) async fn commit_unrecorded(self) -> Result<(), StoreError> {
        self.tx.commit().await.map_err(StoreError::query(self.operation))
    }
}

/// The unique index refused it: `what` exists already.
pub(crate) fn conflict(error: StoreError, what: impl FnOnce() -> String) -> StoreError {
    match error {
        StoreError::Query { source, .. } if source.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            StoreError::Conflict { what: what() }
        }
        other => other,
    }
}

/// `current` is what is stored; a change that was asked for on another version is refused.
///
/// # Errors
/// `Stale`.
pub(crate) fn check_version(
    what: impl FnOnce() -> String,
    current: i64,
    wanted: Option<i64>,
) -> Result<(), StoreError> {
    match wanted {
        Some(version) if version != current => Err(StoreError::Stale {
            what: what(),
            version: current,
        }),
        _ => Ok(()),
    }
}

/// One more numbered version of the policy. `settings` `None`: deleted. Versions become visible in their order: changes of
/// the policy wait for each other until they are committed, so no reader sees n + 1 before n.
pub(crate) async fn policy_change(
    change: &Change<'_>,
    kind: &str,
    subject: &str,
    settings: Option<&Value>,
) -> Result<i64, StoreError> {
    change
        .query("select pg_advisory_xact_lock($1)", &[(&POLICY_LOCK, Type::INT8)])
        .await?;
    let row = change
        .query_opt(
            "insert into policy_versions (kind, subject, settings) values ($1, $2, $3) returning version",
            &[(&kind, Type::TEXT), (&subject, Type::TEXT), (&settings, Type::JSONB)],
        )
        .await?;
    let row = row.ok_or_else(|| StoreError::Setup("the store gave no version".into()))?;
    get(&row, "version")
}

/// One column of a row.
pub(crate) fn get<T: FromSqlOwned>(row: &Row, column: &'static str) -> Result<T, StoreError> {
    row.try_get(column).map_err(StoreError::query(column))
}
