//! Connections to the store: how one is made, and the bounded pool of them.
//!
//! It must not know any table. Every wait here has an end: a store that is away is told within
//! `POOL_WAIT_TIMEOUT_MS + CONNECT_TIMEOUT_MS`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::StoreError;
use crate::database_url::{DatabaseUrl, SslMode};
use crate::tls;

/// Connections of the main pool where the configuration says nothing.
pub const DEFAULT_POOL_SIZE: usize = 16;
/// How long a caller waits for a free connection.
pub const POOL_WAIT_TIMEOUT_MS: u64 = 5_000;
/// How long making a connection may take, log-in included, over all hosts of the URL.
pub const CONNECT_TIMEOUT_MS: u64 = 10_000;
/// How long the check of a returned connection may take.
pub const RECYCLE_TIMEOUT_MS: u64 = 2_000;
/// A statement that takes longer is ended by the server.
pub const STATEMENT_TIMEOUT_MS: u64 = 30_000;
/// A wait for a lock that takes longer is ended by the server.
pub const LOCK_TIMEOUT_MS: u64 = 10_000;
/// A transaction left open by a lost replica is ended by the server.
pub const IDLE_IN_TRANSACTION_TIMEOUT_MS: u64 = 60_000;
/// Unacknowledged bytes end a connection after this.
const TCP_USER_TIMEOUT_MS: u64 = 10_000;
const KEEPALIVE_IDLE_S: u64 = 30;

type TlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
pub(crate) type StoreConnection = Connection<Socket, TlsStream>;

/// Makes connections for one `DatabaseUrl`. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    prefer: bool,
    /// A pooler refused the start-up `options`: its sessions run without our timeouts.
    without_options: Arc<AtomicBool>,
}

impl Connector {
    pub(crate) fn new(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let tls = tls::connector(url).map_err(|error| StoreError::Setup(told(&error)))?;
        let mut config = url.config();
        config.keepalives(true);
        config.keepalives_idle(Duration::from_secs(KEEPALIVE_IDLE_S));
        config.tcp_user_timeout(Duration::from_millis(TCP_USER_TIMEOUT_MS));
        config.options(format!(
            "-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} \
             -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS} -c TimeZone=UTC"
        ));
        Ok(Self {
            config,
            tls,
            prefer: url.ssl_mode() == SslMode::Prefer,
            without_options: Arc::new(AtomicBool::new(false)),
        })
    }

    /// One connection, log-in included. The second part must be polled for the first to work.
    pub(crate) async fn connect(&self) -> Result<(Client, StoreConnection), tokio_postgres::Error> {
        let mut config = self.config.clone();
        if self.without_options.load(Ordering::Relaxed) {
            config.options("");
        }
        match config.connect(self.tls.clone()).await {
            Err(error) if refuses_options(&error) && !self.without_options.swap(true, Ordering::Relaxed) => {
                tracing::warn!("the store's pooler takes no start-up options: no statement timeout is set");
                config.options("");
                config.connect(self.tls.clone()).await
            }
            // libpq's `prefer`: a TLS handshake that fails is followed by a plain attempt.
            Err(error) if self.prefer && error.as_db_error().is_none() => {
                config.ssl_mode(tokio_postgres::config::SslMode::Disable);
                config.connect(self.tls.clone()).await.map_err(|_| error)
            }
            outcome => outcome,
        }
    }

    /// A connection of its own, driven by a task on this runtime.
    pub(crate) async fn client(&self) -> Result<Client, StoreError> {
        let (client, connection) = within(CONNECT_TIMEOUT_MS, self.connect()).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = told(&error), "a connection to the store ended");
            }
        });
        Ok(client)
    }

    /// A pool whose connections live on the runtime that calls this.
    pub(crate) fn pool(&self, size: usize) -> Result<Pool, StoreError> {
        let connect = PoolConnect {
            connector: self.clone(),
            runtime: Handle::current(),
        };
        let manager_config = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_connect(self.config.clone(), connect, manager_config);
        Pool::builder(manager)
            .max_size(size.max(1))
            .wait_timeout(Some(Duration::from_millis(POOL_WAIT_TIMEOUT_MS)))
            .create_timeout(Some(Duration::from_millis(CONNECT_TIMEOUT_MS)))
            .recycle_timeout(Some(Duration::from_millis(RECYCLE_TIMEOUT_MS)))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::Setup(told(&error)))
    }
}

async fn within<T>(
    limit_ms: u64,
    step: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(Duration::from_millis(limit_ms), step).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(StoreError::connect(error)),
        Err(_) => Err(StoreError::Away(format!("no connection within {limit_ms} ms"))),
    }
}

/// Deadpool's way to a connection. Each is made and driven on the runtime that opened the store, for callers on
/// arbiters come and go and their reactors with them.
struct PoolConnect {
    connector: Connector,
    runtime: Handle,
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl deadpool_postgres::Connect for PoolConnect {
    fn connect(&self, _config: &tokio_postgres::Config) -> Connecting<'_> {
        Box::pin(async move {
            let (answer, made) = tokio::sync::oneshot::channel();
            let connector = self.connector.clone();
            let driver = self.runtime.spawn(async move {
                match connector.connect().await {
                    Ok((client, connection)) => {
                        if answer.send(Ok(client)).is_ok()
                            && let Err(error) = connection.await
                        {
                            tracing::debug!(error = told(&error), "a connection to the store ended");
                        }
                    }
                    Err(error) => {
                        let _unheard = answer.send(Err(error));
                    }
                }
            });
            match made.await {
                Ok(Ok(client)) => Ok((client, driver)),
                Ok(Err(error)) => Err(error),
                // The runtime is shutting down: nothing can be connected any more.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

/// pgbouncer answers 08P01 "unsupported startup parameter in options: …".
fn refuses_options(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|db| *db.code() == SqlState::PROTOCOL_VIOLATION && db.message().contains("startup parameter"))
}

/// Whether an error means that the server is not there (now), rather than that it refused a statement.
pub(crate) fn means_away(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        None => true,
        Some(code) => {
            let class = code.code();
            class.starts_with("08") || class.starts_with("57P") || class.starts_with("53")
        }
    }
}

/// An error with its causes on one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        next = cause.source();
    }
    out
}
