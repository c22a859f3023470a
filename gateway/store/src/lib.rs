//! The gateway's PostgreSQL store: one pool, the numbered schema, sealed secrets, one file a resource.
//!
//! It must not hold session bytes or evidence: those go through the journal (`hoop-evidence`).

pub mod agents;
pub mod browser_sessions;
pub mod ca;
pub mod challenges;
pub mod change;
pub mod changes;
pub mod cli_sign_ins;
pub mod clock;
pub mod connections;
pub mod credentials;
pub mod database_url;
pub mod embedded;
pub mod feed;
pub mod identities;
mod identity_names;
#[cfg(test)]
mod identity_tests;
pub mod installation;
pub mod list;
pub mod master_keys;
pub mod migrate;
pub mod names;
mod opaque;
pub mod personal_tokens;
pub mod places;
#[cfg(test)]
mod plans;
pub mod pool;
mod random;
pub mod refreshes;
pub mod replicas;
pub mod reseal;
#[cfg(test)]
mod resource_tests;
pub mod rules;
pub mod saml_assertions;
pub mod seal;
pub mod second_factors;
pub mod sessions;
pub mod settings;
pub mod setup_links;
pub mod ssh_keys;
pub mod ssh_public_key;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tls;
pub mod tokens;
pub mod users;
mod within;
pub mod writer_log;

use thiserror::Error;
pub use tokio_postgres::error::SqlState;

pub use crate::database_url::DatabaseUrl;
pub use crate::embedded::Embedded;
pub use crate::installation::Installation;
pub use crate::store::{Store, StoreConfig};

/// What can go wrong between the gateway and its store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The server is not there (now). Fail closed, try again later.
    #[error("the store is away: {0}")]
    Away(String),
    #[error("the store refused {operation}")]
    Query {
        operation: &'static str,
        source: tokio_postgres::Error,
    },
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{what} exists already")]
    Conflict { what: String },
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("cannot open a sealed value of {what}: is this the installation's master key?")]
    Sealed { what: &'static str },
    #[error(transparent)]
    Schema(#[from] migrate::SchemaError),
    #[error("{what} was changed in between: it is version {version} now")]
    Stale { what: String, version: i64 },
    /// Nothing was changed (fail closed).
    #[error("the change was not made, for it cannot be recorded: {0}")]
    Unrecorded(String),
    #[error("{0}")]
    Setup(String),
}

impl StoreError {
    /// Turns a PostgreSQL error of `operation` into `Away` (connection lost, server shutting down or out of
    /// connections) or `Query`: `….map_err(StoreError::query("list users"))`.
    pub fn query(operation: &'static str) -> impl Fn(tokio_postgres::Error) -> Self + Copy {
        move |source| {
            if pool::means_away(&source) {
                Self::Away(pool::told(&source))
            } else {
                Self::Query { operation, source }
            }
        }
    }

    /// An error while connecting: `Setup` where the server answered and refused us, `Away` otherwise.
    pub(crate) fn connect(source: tokio_postgres::Error) -> Self {
        if pool::means_away(&source) {
            Self::Away(pool::told(&source))
        } else {
            Self::Setup(format!("the store refused the log-in: {}", pool::told(&source)))
        }
    }
}
