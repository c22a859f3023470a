//! `Store`: the pool, the master key and the installation, opened together.

use std::sync::Arc;

use deadpool_postgres::Pool;
use tokio_postgres::Client;

use crate::database_url::DatabaseUrl;
use crate::installation::{self, Installation};
use crate::migrate::migrate;
use crate::pool::{Connector, DEFAULT_POOL_SIZE};
use crate::rules::KnownRules;
use crate::seal::MasterKey;
use crate::{StoreError, pool};

/// The oldest PostgreSQL that the schema runs on (`server_version_num`).
const MIN_SERVER_VERSION: i32 = 140_000;

/// How to reach the installation's database.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub url: DatabaseUrl,
    /// Connections of the main pool.
    pub pool_size: usize,
}

impl StoreConfig {
    #[must_use]
    pub const fn new(url: DatabaseUrl) -> Self {
        Self {
            url,
            pool_size: DEFAULT_POOL_SIZE,
        }
    }
}

/// A connection to the installation's database. Cheap to clone; every clone shares the pool.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    connector: Connector,
    url: DatabaseUrl,
    master: MasterKey,
    installation: Arc<Installation>,
    rules: Arc<KnownRules>,
}

impl Store {
    /// Connects, applies the schema, loads the installation or makes it. The pool's connections are driven by the
    /// runtime that calls this, whoever uses them, so call it on the one that lives longest and is never blocked.
    ///
    /// # Errors
    /// `Away`, `Setup` (server too old, certificate files), `Schema`, `Sealed` (not the installation's master key).
    pub async fn open(config: &StoreConfig, master: MasterKey) -> Result<Self, StoreError> {
        let connector = Connector::new(&config.url)?;
        let mut client = connector.client().await?;
        check_version(&client).await?;
        migrate(&mut client).await?;
        let installation = installation::ensure(&mut client, &master).await?;
        let pool = connector.pool(config.pool_size)?;
        let store = Self {
            pool,
            connector,
            url: config.url.clone(),
            master,
            installation: Arc::new(installation),
            rules: Arc::default(),
        };
        store.refresh_rules().await?;
        Ok(store)
    }

    pub(crate) fn known_rules(&self) -> &KnownRules {
        &self.rules
    }

    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    #[must_use]
    pub const fn master(&self) -> &MasterKey {
        &self.master
    }

    #[must_use]
    pub const fn installation(&self) -> &Arc<Installation> {
        &self.installation
    }

    #[must_use]
    pub const fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    /// A connection from the pool.
    ///
    /// # Errors
    /// `Away` within `POOL_WAIT_TIMEOUT_MS + CONNECT_TIMEOUT_MS`.
    pub async fn client(&self) -> Result<deadpool_postgres::Client, StoreError> {
        self.pool
            .get()
            .await
            .map_err(|error| StoreError::Away(pool::told(&error)))
    }

    /// A connection outside the pool, for one that must not wait behind others (the audit writer), driven by a task on
    /// the runtime that calls this. When it is lost, ask again.
    ///
    /// # Errors
    /// `Away` within `CONNECT_TIMEOUT_MS`.
    pub async fn dedicated(&self) -> Result<Client, StoreError> {
        self.connector.client().await
    }
}

async fn check_version(client: &Client) -> Result<(), StoreError> {
    let row = client
        .query_typed_one(
            "select current_setting('server_version_num')::integer, current_setting('server_version')",
            &[],
        )
        .await
        .map_err(StoreError::query("ask the server's version"))?;
    let (number, text): (i32, String) = (row.get(0), row.get(1));
    if number < MIN_SERVER_VERSION {
        return Err(StoreError::Setup(format!(
            "the store is PostgreSQL {text}; version 14 or newer is needed"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::pool::POOL_WAIT_TIMEOUT_MS;

    fn master() -> MasterKey {
        MasterKey::new(&MasterKey::generate().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_is_away() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url = DatabaseUrl::parse(&format!("postgres://u:secret@127.0.0.1:{port}/d?sslmode=disable")).unwrap();
        let error = Store::open(&StoreConfig::new(url), master()).await.err().unwrap();
        assert!(matches!(error, StoreError::Away(_)), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("secret"));
    }

    #[tokio::test]
    async fn a_wrong_password_is_no_absence() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let folder = match &url.hosts()[0].0 {
            crate::database_url::Host::Unix(folder) => folder.clone(),
            crate::database_url::Host::Tcp(_) => return,
        };
        let error = Store::open(
            &StoreConfig::new(DatabaseUrl::unix(folder, "stranger", "hoop")),
            master(),
        )
        .await;
        assert!(matches!(error.err().unwrap(), StoreError::Setup(_)));
    }

    #[tokio::test]
    async fn a_pool_that_is_used_up_answers_in_time_and_a_dedicated_connection_does_not_wait() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let store = Store::open(&StoreConfig { url, pool_size: 1 }, master()).await.unwrap();
        let held = store.client().await.unwrap();
        let started = Instant::now();
        assert!(matches!(store.client().await, Err(StoreError::Away(_))));
        assert!(started.elapsed() < Duration::from_millis(POOL_WAIT_TIMEOUT_MS * 3));
        store
            .dedicated()
            .await
            .unwrap()
            .batch_execute("select 1")
            .await
            .unwrap();
        drop(held);
        store.client().await.unwrap().batch_execute("select 1").await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_carries_limits_and_one_that_was_cut_is_replaced() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let store = Store::open(&StoreConfig { url, pool_size: 1 }, master()).await.unwrap();
        let client = store.client().await.unwrap();
        let row = client
            .query_one("select current_setting('statement_timeout')", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), "30s");
        let error = client
            .batch_execute("select pg_terminate_backend(pg_backend_pid())")
            .await
            .unwrap_err();
        assert!(matches!(StoreError::query("cut")(error), StoreError::Away(_)));
        while !client.is_closed() {
            tokio::task::yield_now().await;
        }
        drop(client);
        store.client().await.unwrap().batch_execute("select 1").await.unwrap();
    }

    /// Arbiters come and go; a pooled connection made for one must serve the next.
    #[tokio::test]
    async fn a_connection_outlives_the_runtime_that_asked_for_it() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let store = Store::open(&StoreConfig { url, pool_size: 1 }, master()).await.unwrap();
        let mut backends = Vec::new();
        for _ in 0..2 {
            let store = store.clone();
            let asked = tokio::task::spawn_blocking(move || {
                let arbiter = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let ask = async {
                    let client = store.client().await.unwrap();
                    client
                        .query_one("select pg_backend_pid()", &[])
                        .await
                        .unwrap()
                        .get::<_, i32>(0)
                };
                arbiter.block_on(ask)
            });
            backends.push(asked.await.unwrap());
        }
        assert_eq!(backends[0], backends[1], "the same connection serves both");
    }
}
