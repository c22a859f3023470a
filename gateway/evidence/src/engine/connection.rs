//! The engine's one connection to the store, outside the pool: it waits behind nobody, and nobody waits behind it.

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{Engine, GROUP_TIMEOUT_MS, OPEN_SESSIONS_OF_REPLICA, Retry, Status};
use crate::EvidenceError;
use crate::group::{Failure, add_checkpoint, add_log, failure};
use crate::log::{Log, now};

impl Engine {
    /// Makes this writer known, with a first checkpoint that names all earlier writers; or takes it up again.
    pub(super) async fn register(&mut self) -> Result<(), EvidenceError> {
        let mut retry = Retry::new();
        loop {
            self.connected().await;
            let Some(mut client) = self.client.take() else { continue };
            let registered = self.try_register(&mut client).await;
            self.client = Some(client);
            match registered.map_err(failure) {
                Ok(()) => return Ok(()),
                Err(Failure::Contradicted(why)) => return Err(EvidenceError::Contradicted(why)),
                Err(Failure::Away(why)) => self.lost(why),
            }
            retry.pause().await;
        }
    }

    pub(super) async fn try_register(&mut self, client: &mut Client) -> Result<(), tokio_postgres::Error> {
        let row = self.parts.identity.row.clone();
        let known = "select groups from writers where id = $1";
        if let Some(known) = client.query_typed_opt(known, &[(&row.id, Type::UUID)]).await? {
            self.groups = known.get(0);
            self.log = Log::load(client, row.id).await?;
            return Ok(());
        }
        let mut log = Log::new(row.id);
        let others = log.others(client).await?;
        let tx = client.transaction().await?;
        let add =
            "insert into writers (id, replica, public_key, certificate, started_at_us) values ($1, $2, $3, $4, $5)";
        tx.execute_typed(
            add,
            &[
                (&row.id, Type::UUID),
                (&row.replica, Type::UUID),
                (&row.public_key, Type::BYTEA),
                (&row.certificate, Type::BYTEA),
                (&row.started_at_us, Type::INT8),
            ],
        )
        .await?;
        let started = log.append(
            "writer_started",
            &json!({"replica": row.replica, "started_at_us": row.started_at_us}),
        );
        add_log(&tx, row.id, &[started]).await?;
        let checkpoint = log.checkpoint(&self.parts.identity, &others);
        add_checkpoint(&tx, &checkpoint).await?;
        tx.commit().await?;
        self.checkpoint_file.append(&checkpoint);
        self.log = log;
        self.groups = 0;
        Ok(())
    }

    pub(super) async fn give_up_lost_replicas(&mut self) -> Result<(), EvidenceError> {
        for (replica, answer) in std::mem::take(&mut self.replay.give_up) {
            let rows = self.query(OPEN_SESSIONS_OF_REPLICA, &replica, Type::UUID).await?;
            let at = now();
            self.due.given_up.extend(rows.iter().map(|row| (row.get(0), at)));
            self.due.counts.push((rows.len() as u64, answer));
        }
        Ok(())
    }

    /// One read, however long the store is away.
    pub(crate) async fn query(
        &mut self,
        sql: &str,
        param: &(dyn tokio_postgres::types::ToSql + Sync),
        kind: Type,
    ) -> Result<Vec<tokio_postgres::Row>, EvidenceError> {
        let mut retry = Retry::new();
        loop {
            let client = self.connected().await;
            let params = [(param, kind.clone())];
            let asked = client.query_typed(sql, &params);
            let why = match timeout(Duration::from_millis(GROUP_TIMEOUT_MS), asked).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => match failure(error) {
                    Failure::Contradicted(why) => return Err(EvidenceError::Contradicted(why)),
                    Failure::Away(why) => why,
                },
                Err(_) => format!("no answer within {GROUP_TIMEOUT_MS} ms"),
            };
            self.lost(why);
            retry.pause().await;
        }
    }

    /// A connection to the store, awaited as long as it takes.
    pub(crate) async fn connected(&mut self) -> &mut Client {
        let mut retry = Retry::new();
        while self.client.as_ref().is_none_or(Client::is_closed) {
            match self.parts.store.dedicated().await {
                Ok(client) => {
                    self.client = Some(client);
                    self.set_status(|status| {
                        status.connected = true;
                        status.error.clear();
                    });
                }
                Err(error) => {
                    self.lost(error.to_string());
                    retry.pause().await;
                }
            }
        }
        #[allow(clippy::unreachable, reason = "the loop above ends only with a client")]
        self.client.as_mut().unwrap_or_else(|| unreachable!())
    }

    pub(super) fn lost(&mut self, why: String) {
        tracing::warn!(why, "the store does not take evidence; the journal keeps it");
        self.client = None;
        self.set_status(|status| {
            status.connected = false;
            status.error = why;
        });
    }

    pub(super) fn set_status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.parts.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn show(&self) {
        self.set_status(|status| {
            status.replaying = self.replay.is_open();
            status.log_seq = self.log.seq();
            status.sessions = self.sessions.len();
        });
    }
}
