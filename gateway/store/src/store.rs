//! `Store`: the pool, the master key and the installation, opened together.

use std::sync::Arc;

use deadpool_postgres::Pool;
use tokio_postgres::Client;

use crate::database_url::DatabaseUrl;
use crate::installation::{self, Installation};
use crate::migrate::migrate;
use crate::pool::{Connector, DEFAULT_POOL_SIZE};
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
}

impl Store {
    /// Connects, applies the schema, loads the installation or makes it. The pool's connections live on the runtime
    /// that calls this, so call it on the one that lives longest.
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
        Ok(Self {
            pool,
            connector,
            url: config.url.clone(),
            master,
            installation: Arc::new(installation),
        })
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
