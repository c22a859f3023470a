//! The gateway's PostgreSQL store: one pool, the numbered schema, sealed secrets, one file a resource.
//!
//! It must not hold session bytes or evidence: those go through the journal (`hoop-evidence`).

pub mod seal;

use deadpool_postgres::Pool;
use thiserror::Error;

use crate::seal::MasterKey;

/// A connection to the installation's database. Cheap to clone; every clone shares the pool.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    master: MasterKey,
}

impl Store {
    /// A store over an existing pool whose schema is already applied.
    #[must_use]
    pub const fn from_pool(pool: Pool, master: MasterKey) -> Self {
        Self { pool, master }
    }

    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    #[must_use]
    pub const fn master(&self) -> &MasterKey {
        &self.master
    }
}

/// What can go wrong between the gateway and its store.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("the store is away: {0}")]
    Away(String),
    #[error("the store refused {operation}")]
    Query { operation: &'static str, source: tokio_postgres::Error },
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{what} exists already")]
    Conflict { what: String },
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("cannot open a sealed value of {what}: is this the installation's master key?")]
    Sealed { what: &'static str },
    #[error("{0}")]
    Setup(String),
}
