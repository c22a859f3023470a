//! The change log: what every replica must come to know, numbered, read from the last number on.
//!
//! A notification is only a hint to read now; replicas also read every `POLL_INTERVAL` and after each reconnect.
//! Only administrative changes are published here: audit transactions must never notify.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::poll_fn;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, GenericClient};

use crate::database_url::DatabaseUrl;
use crate::pool::{CONNECT_TIMEOUT_MS, Connector, told};
use crate::{Store, StoreError};

/// Published when a session is killed; the subject is its id.
pub const SESSION_KILLED: &str = "session_killed";
/// Published when a credential is revoked; the subject is its id.
pub const CREDENTIAL_REVOKED: &str = "credential_revoked";
/// Published when an agent is revoked; the subject is its id.
pub const AGENT_REVOKED: &str = "agent_revoked";
/// Published when a connection is made, changed or deleted; the subject is its name.
pub const CONNECTION_CHANGED: &str = "connection_changed";
/// Published when an access rule is made, changed or deleted; the subject is its name.
pub const RULES_CHANGED: &str = "rules_changed";
/// Published when a user's role, groups or activity change, or the user is deleted; the subject is the id.
pub const USER_CHANGED: &str = "user_changed";

/// How often a replica reads the log whether or not it was notified.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Changes read at once; a reader that gets as many reads on.
pub const READ_BATCH: i64 = 1_000;
/// The notification channel (named in schema.sql, `publish_change`).
const CHANNEL: &str = "hoop_changes";
const RECONNECT_FIRST_MS: u64 = 200;
const RECONNECT_MAX_MS: u64 = 5_000;
/// A listening connection that is silent for so long is asked whether it lives.
const LISTEN_CHECK: Duration = Duration::from_secs(15);

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub seq: i64,
    pub kind: String,
    pub subject: String,
    pub at: DateTime<Utc>,
}

/// Publishes a change with the transaction of `client` (or at once, outside of one), and answers its number. Numbers
/// become visible in order: publishing transactions wait for each other, so publish last in a transaction. For a
/// pool's client or transaction pass what it dereferences to (`&**client`, `&*transaction`).
///
/// # Errors
/// `Query`, `Away`.
pub async fn publish(client: &impl GenericClient, kind: &str, subject: &str) -> Result<i64, StoreError> {
    let row = client
        .query_typed_one(
            "select publish_change($1, $2)",
            &[(&kind, Type::TEXT), (&subject, Type::TEXT)],
        )
        .await
        .map_err(StoreError::query("publish a change"))?;
    Ok(row.get(0))
}

impl Store {
    /// The changes after number `last`, in order, at most `READ_BATCH` of them.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn changes_since(&self, last: i64) -> Result<Vec<Change>, StoreError> {
        let failed = StoreError::query("read changes");
        let client = self.client().await?;
        let sql = "select seq, kind, subject, at from changes where seq > $1 order by seq limit $2";
        let rows = client
            .query_typed(sql, &[(&last, Type::INT8), (&READ_BATCH, Type::INT8)])
            .await
            .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|row| Change {
                seq: row.get(0),
                kind: row.get(1),
                subject: row.get(2),
                at: row.get(3),
            })
            .collect())
    }

    /// The newest number, 0 where nothing was published yet: where a replica that has just read everything begins.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn latest_change(&self) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let row = client
            .query_typed_one("select coalesce(max(seq), 0) from changes", &[])
            .await
            .map_err(StoreError::query("read changes"))?;
        Ok(row.get(0))
    }
}

/// Hints that the log has news. Several that nobody waited for are one. Dropping it ends the listening.
pub struct Hints {
    news: watch::Receiver<u64>,
    task: AbortHandle,
}

impl Hints {
    /// Waits for the next hint: a notification, or that the listening connection is new (again), after which the log
    /// must be read too. Cancel-safe.
    pub async fn next(&mut self) {
        if self.news.changed().await.is_err() {
            // The listening task is gone with its runtime; there will be no hint.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on a connection of its own, for ever, reconnecting with backoff. `url` must lead to the server itself, not
/// to a pooler (`DATABASE_DIRECT_URL`).
///
/// # Errors
/// `Setup` where the URL's certificate files cannot be read. That the store is away is no error: it is tried again.
pub fn listen(url: &DatabaseUrl) -> Result<Hints, StoreError> {
    let connector = Connector::new(url)?;
    let (tell, news) = watch::channel(0);
    let task = tokio::spawn(listen_for_ever(connector, tell)).abort_handle();
    Ok(Hints { news, task })
}

async fn listen_for_ever(connector: Connector, tell: watch::Sender<u64>) {
    let mut pause_ms = RECONNECT_FIRST_MS;
    loop {
        let before = *tell.borrow();
        let why = listen_once(&connector, &tell).await;
        if *tell.borrow() != before {
            pause_ms = RECONNECT_FIRST_MS;
        }
        tracing::warn!(why, pause_ms, "the connection that hears of changes is lost");
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = pause_ms.saturating_mul(2).min(RECONNECT_MAX_MS);
    }
}

/// Listens until the connection is lost, and answers why.
async fn listen_once(connector: &Connector, tell: &watch::Sender<u64>) -> String {
    let limit = Duration::from_millis(CONNECT_TIMEOUT_MS);
    let (client, mut connection) = match tokio::time::timeout(limit, connector.connect()).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => return told(&error),
        Err(_) => return format!("no connection within {CONNECT_TIMEOUT_MS} ms"),
    };
    let hear = async {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(_))) => tell.send_modify(|count| *count += 1),
                Some(Ok(_)) => {}
                Some(Err(error)) => return told(&error),
                None => return "closed".to_owned(),
            }
        }
    };
    let ask = async {
        if let Err(error) = client.batch_execute(&format!("listen {CHANNEL}")).await {
            return told(&error);
        }
        tell.send_modify(|count| *count += 1);
        loop {
            tokio::time::sleep(LISTEN_CHECK).await;
            match tokio::time::timeout(limit, client.batch_execute("")).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return told(&error),
                Err(_) => return "no answer".to_owned(),
            }
        }
    };
    tokio::select! {
        why = hear => why,
        why = ask => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn changes_are_read_from_the_last_number_on() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let mut client = store.client().await.unwrap();
        let first = publish(&**client, SESSION_KILLED, "a").await.unwrap();
        let tx = client.transaction().await.unwrap();
        publish(&*tx, AGENT_REVOKED, "lost").await.unwrap();
        tx.rollback().await.unwrap();
        let second = publish(&**client, CONNECTION_CHANGED, "b").await.unwrap();
        let seen = store.changes_since(0).await.unwrap();
        assert_eq!(
            seen.iter().map(|c| (c.seq, c.subject.as_str())).collect::<Vec<_>>(),
            [(first, "a"), (second, "b")]
        );
        assert_eq!(store.changes_since(first).await.unwrap().len(), 1);
        assert_eq!(store.latest_change().await.unwrap(), second);
        assert!(store.changes_since(second).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn no_reader_sees_a_number_before_a_smaller_one() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let mut slow = store.client().await.unwrap();
        let quick = store.client().await.unwrap();
        let tx = slow.transaction().await.unwrap();
        let first = publish(&*tx, SESSION_KILLED, "slow").await.unwrap();
        let second = tokio::spawn(async move { publish(&**quick, SESSION_KILLED, "quick").await.unwrap() });
        // The quick one waits for the slow one, seen as a lock that is not granted.
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                     and database = (select oid from pg_database where datname = current_database())";
        while tx.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(store.changes_since(0).await.unwrap().is_empty());
        tx.commit().await.unwrap();
        assert!(second.await.unwrap() > first);
        assert_eq!(store.changes_since(0).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_listener_hears_of_changes_and_again_after_its_connection_was_cut() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let mut hints = listen(store.url()).unwrap();
        let next = async |hints: &mut Hints| tokio::time::timeout(PATIENCE, hints.next()).await.expect("a hint");
        next(&mut hints).await;
        let client = store.client().await.unwrap();
        publish(&**client, SESSION_KILLED, "a").await.unwrap();
        next(&mut hints).await;

        let cut = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() and query ilike 'listen%'";
        assert_eq!(client.query(cut, &[]).await.unwrap().len(), 1);
        next(&mut hints).await;
        publish(&**client, SESSION_KILLED, "b").await.unwrap();
        next(&mut hints).await;
    }
}
