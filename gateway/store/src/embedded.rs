//! The embedded store: a private PostgreSQL of the gateway's own, for quick starts, `./dev run` and tests.
//!
//! The machine's binaries, a supervised child, a data folder, a unix socket and nothing else. It must not be used
//! where `DATABASE_URL` is given, and it must not outlive its lock: one gateway a data folder. Layout, below the
//! gateway's data folder:
//!
//! ```text
//! store.lock     locked (flock) while a gateway uses the store
//! store/         0700, the server's user: cluster/ (PGDATA), postgres.log, socket (names the socket's folder)
//! ```
//!
//! The child is not tied to the gateway's life: after a `kill -9` of the gateway it goes on, and the next start adopts
//! it. Log-in is by `peer`: the kernel says who is at the other end, and only the gateway's own user is let in.

mod binaries;
mod cluster;
#[cfg(test)]
mod over_tls;
mod owner;
mod postmaster;

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::StoreError;
use crate::database_url::DatabaseUrl;
use crate::pool::{Connector, told};

use self::cluster::Cluster;
use self::postmaster::Postmaster;

/// The database that the gateway uses.
const DATABASE: &str = "hoop";
/// The server's superuser; the only one who may log in.
const SUPERUSER: &str = "hoop";
/// How long a server may take to accept connections, recovery after a crash included.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(50);
/// One attempt to connect while waiting for readiness.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// A fast shutdown (SIGINT: sessions are ended, a checkpoint is written) may take so long, then comes SIGQUIT.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// An immediate shutdown (SIGQUIT: recovery at the next start) may take so long, then comes SIGKILL.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_MAX: Duration = Duration::from_secs(10);
/// A server that ran so long starts the backoff anew.
const RESTART_RESET: Duration = Duration::from_secs(60);

/// The embedded store cannot be started.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    #[error(
        "no PostgreSQL server (14 or newer) found in {looked}; install one (Debian, Ubuntu: apt-get install postgresql; \
         Fedora: dnf install postgresql-server) or set DATABASE_URL to use a server that runs elsewhere"
    )]
    NoBinaries { looked: String },
    #[error(
        "{} holds data of PostgreSQL {found}, but PostgreSQL {installed} is what is installed; install postgresql-{found} \
         again, or move the data: with {found} installed, start the gateway, `pg_dump -Fc -h SOCKET_FOLDER -U hoop hoop \
         > hoop.dump`, stop it, move the folder away, start it with {installed}, then `pg_restore --clean -h \
         SOCKET_FOLDER -U hoop -d hoop hoop.dump`", folder.display()
    )]
    OtherVersion {
        folder: PathBuf,
        found: String,
        installed: String,
    },
    #[error("the data folder {} is in use by another gateway", folder.display())]
    InUse { folder: PathBuf },
    #[error(
        "the embedded PostgreSQL runs as user {user}, who may not enter {}; put the data folder elsewhere (for example \
         /var/lib/hoop), or allow it: chmod o+x {}", folder.display(), folder.display()
    )]
    NotReachable { user: String, folder: PathBuf },
    #[error("this process is root, and the machine has neither user postgres nor nobody to run PostgreSQL as")]
    NoUser,
    #[error("the user of this process (uid {uid}) has no name on this machine, and PostgreSQL needs one")]
    NamelessUser { uid: u32 },
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: std::io::Error },
    #[error("initdb failed: {0}")]
    Initdb(String),
    #[error("the embedded PostgreSQL does not start: {why}\n{log}")]
    NotReady { why: String, log: String },
    #[error("the embedded PostgreSQL runs, but its database cannot be used")]
    Database(#[from] StoreError),
}

/// What the supervised server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// Accepts connections; the process id of its postmaster.
    Up(u32),
    /// It ended without being asked to and is being restarted; why, and how often this has happened.
    Down { why: String, exits: u64 },
    /// Stopped as asked.
    Stopped,
}

/// A running embedded server. Dropping it leaves the server running, for the next start to adopt; `stop` ends it.
pub struct Embedded {
    url: DatabaseUrl,
    socket_dir: PathBuf,
    log: PathBuf,
    state: watch::Receiver<ServerState>,
    stop: mpsc::Sender<()>,
    supervisor: JoinHandle<()>,
}

impl Embedded {
    /// Starts the server of a gateway's data folder, or adopts the one that a killed gateway left. At first start makes
    /// the cluster and the database (seconds). A task of this runtime supervises the server from then on and restarts
    /// it, with backoff, for as long as it takes.
    ///
    /// # Errors
    /// `EmbeddedError`, which says what to install or change.
    pub async fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let cluster = Cluster::prepare(data_dir).await?;
        let mut postmaster = match Postmaster::adopt(&cluster).await? {
            Some(adopted) => adopted,
            None => Postmaster::spawn(&cluster)?,
        };
        let socket_dir = postmaster.socket_dir().to_owned();
        let url = DatabaseUrl::unix(socket_dir.clone(), SUPERUSER, DATABASE);
        if let Err(error) = ready(&mut postmaster, &cluster, &url).await {
            postmaster.stop(STOP_TIMEOUT, QUIT_TIMEOUT).await;
            return Err(error);
        }
        make_database(&url).await?;

        let log = cluster.log();
        let (tell, state) = watch::channel(ServerState::Up(postmaster.pid()));
        let (stop, stop_asked) = mpsc::channel(1);
        let supervisor = tokio::spawn(supervise(cluster, postmaster, url.clone(), tell, stop_asked));
        Ok(Self {
            url,
            socket_dir,
            log,
            state,
            stop,
            supervisor,
        })
    }

    /// The server that another process (a running gateway) has started in this data folder, for a command that only
    /// reads. `None` where none runs; `start` makes one then.
    #[must_use]
    pub fn running(data_dir: &Path) -> Option<DatabaseUrl> {
        let cluster = data_dir.join("store").join("cluster");
        let socket_dir = postmaster::socket_dir_of_running(&cluster)?;
        Some(DatabaseUrl::unix(socket_dir, SUPERUSER, DATABASE))
    }

    /// Stays the same over restarts of the server.
    #[must_use]
    pub const fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    /// The folder of the unix socket: `psql -h <folder> -U hoop hoop`, as the gateway's user.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The server's log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Follows the server's state.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.clone()
    }

    /// Resolves when the server next ends without being asked to (it is being restarted by then), or has been stopped.
    pub async fn exited(&self) -> ServerState {
        let mut state = self.state.clone();
        let exits_of = |state: &ServerState| match state {
            ServerState::Down { exits, .. } => Some(*exits),
            _ => None,
        };
        let before = exits_of(&state.borrow_and_update());
        let ended = state.wait_for(|now| match now {
            ServerState::Stopped => true,
            ServerState::Down { exits, .. } => Some(*exits) != before,
            ServerState::Up(_) => false,
        });
        ended.await.map_or(ServerState::Stopped, |state| state.clone())
    }

    /// Stops the server: fast, and by force after `STOP_TIMEOUT`. Nothing that was committed is lost either way.
    pub async fn stop(self) {
        let _unheard = self.stop.send(()).await;
        if let Err(error) = self.supervisor.await {
            tracing::error!(%error, "the supervisor of the embedded store is lost");
        }
    }
}

/// Whether an embedded server could be started here: the programs are installed, and there is a user to run them as.
///
/// # Errors
/// `NoBinaries`, `NoUser`, `NamelessUser`.
pub fn available() -> Result<(), EmbeddedError> {
    binaries::Binaries::find(None)?;
    owner::Owner::find().map(drop)
}

/// Waits until the server takes a log-in.
async fn ready(postmaster: &mut Postmaster, cluster: &Cluster, url: &DatabaseUrl) -> Result<(), EmbeddedError> {
    let probe = Connector::new(&url.with_database("postgres"))?;
    let deadline = Instant::now() + READY_TIMEOUT;
    let not_ready = |why: String| EmbeddedError::NotReady {
        why,
        log: cluster.log_tail(),
    };
    loop {
        let error = match tokio::time::timeout(PROBE_TIMEOUT, probe.connect()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => told(&error),
            Err(_) => "it does not answer".to_owned(),
        };
        if let Some(why) = postmaster.ended() {
            return Err(not_ready(why));
        }
        if Instant::now() >= deadline {
            return Err(not_ready(error));
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

async fn make_database(url: &DatabaseUrl) -> Result<(), EmbeddedError> {
    let client = Connector::new(&url.with_database("postgres"))?.client().await?;
    let failed = StoreError::query("make the embedded database");
    let found = client
        .query_opt("select from pg_database where datname = $1", &[&DATABASE])
        .await
        .map_err(failed)?;
    if found.is_none() {
        client
            .batch_execute(&format!("create database {DATABASE}"))
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Owns the postmaster until it is told to stop: waits for its end, starts it again, with backoff.
async fn supervise(
    cluster: Cluster,
    mut postmaster: Postmaster,
    url: DatabaseUrl,
    tell: watch::Sender<ServerState>,
    mut stop_asked: mpsc::Receiver<()>,
) {
    let mut exits = 0;
    let mut pause = RESTART_FIRST;
    loop {
        let up_since = Instant::now();
        let why = tokio::select! {
            why = postmaster.wait() => why,
            asked = stop_asked.recv() => {
                // `None`: the `Embedded` was dropped, and the server stays for the next start to adopt.
                if asked.is_some() {
                    postmaster.stop(STOP_TIMEOUT, QUIT_TIMEOUT).await;
                    cluster.remove_socket_dir();
                    tell.send_replace(ServerState::Stopped);
                }
                return;
            }
        };
        if up_since.elapsed() > RESTART_RESET {
            pause = RESTART_FIRST;
        }
        loop {
            exits += 1;
            tracing::error!(
                why,
                log = cluster.log_tail(),
                "the embedded PostgreSQL ended; it is restarted"
            );
            tell.send_replace(ServerState::Down {
                why: why.clone(),
                exits,
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                asked = stop_asked.recv() => {
                    if asked.is_some() {
                        cluster.remove_socket_dir();
                        tell.send_replace(ServerState::Stopped);
                    }
                    return;
                }
            }
            pause = (pause * 2).min(RESTART_MAX);
            let started = match Postmaster::spawn(&cluster) {
                Ok(started) => started,
                Err(error) => {
                    tracing::error!(error = told(&error), "the embedded PostgreSQL cannot be started");
                    continue;
                }
            };
            postmaster = started;
            match ready(&mut postmaster, &cluster, &url).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(error = told(&error), "the embedded PostgreSQL does not become ready");
                    postmaster.stop(STOP_TIMEOUT, QUIT_TIMEOUT).await;
                }
            }
        }
        tell.send_replace(ServerState::Up(postmaster.pid()));
    }
}

#[cfg(test)]
mod tests {
    use super::postmaster::Signal;
    use super::*;
    use crate::testing::{Folder, postgres_available};

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn answer(embedded: &Embedded, sql: &str) -> String {
        let client = Connector::new(embedded.url()).unwrap().client().await.unwrap();
        client.query_one(sql, &[]).await.unwrap().get(0)
    }

    #[tokio::test]
    async fn a_server_keeps_its_data_over_a_stop_and_leaves_no_socket() {
        if !postgres_available() {
            return;
        }
        let folder = Folder::new();
        let server = Embedded::start(folder.path()).await.unwrap();
        assert_eq!(
            answer(
                &server,
                "select current_setting('fsync') || current_setting('listen_addresses')"
            )
            .await,
            "on"
        );
        let client = Connector::new(server.url()).unwrap().client().await.unwrap();
        client
            .batch_execute("create table kept as select 'yes' as value")
            .await
            .unwrap();
        let socket_dir = server.socket_dir().to_owned();
        let state = server.state();
        server.stop().await;
        assert_eq!(*state.borrow(), ServerState::Stopped);
        assert!(!socket_dir.exists());

        let server = Embedded::start(folder.path()).await.unwrap();
        assert_eq!(answer(&server, "select value from kept").await, "yes");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_server_that_is_killed_is_started_again_at_the_same_address() {
        if !postgres_available() {
            return;
        }
        let folder = Folder::new();
        let server = Embedded::start(folder.path()).await.unwrap();
        let mut state = server.state();
        let ServerState::Up(pid) = state.borrow().clone() else {
            panic!("not up")
        };
        let exited = server.exited();
        Signal::Kill.send(pid);
        let exited = tokio::time::timeout(PATIENCE, exited).await.unwrap();
        assert!(matches!(exited, ServerState::Down { exits: 1, .. }), "{exited:?}");
        let up = state.wait_for(|state| matches!(state, ServerState::Up(again) if *again != pid));
        tokio::time::timeout(PATIENCE, up).await.unwrap().unwrap();
        assert_eq!(answer(&server, "select 'back'").await, "back");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_folder_serves_one_gateway_and_an_orphan_is_adopted() {
        if !postgres_available() {
            return;
        }
        let folder = Folder::new();
        let first = Embedded::start(folder.path()).await.unwrap();
        let ServerState::Up(pid) = first.state().borrow().clone() else {
            panic!("not up")
        };
        assert!(matches!(
            Embedded::start(folder.path()).await,
            Err(EmbeddedError::InUse { .. })
        ));

        // What a `kill -9` of the gateway leaves: a server, and no lock.
        let Embedded { supervisor, .. } = first;
        supervisor.abort();
        let _cancelled = supervisor.await;
        let second = Embedded::start(folder.path()).await.unwrap();
        assert_eq!(*second.state().borrow(), ServerState::Up(pid));
        assert_eq!(answer(&second, "select 'adopted'").await, "adopted");

        // An adopted server is supervised too.
        let mut state = second.state();
        Signal::Kill.send(pid);
        let up = state.wait_for(|state| matches!(state, ServerState::Up(again) if *again != pid));
        tokio::time::timeout(PATIENCE, up).await.unwrap().unwrap();
        second.stop().await;
    }

    #[tokio::test]
    async fn data_of_another_version_is_refused_with_the_way_to_move_it() {
        if !postgres_available() {
            return;
        }
        let folder = Folder::new();
        Embedded::start(folder.path()).await.unwrap().stop().await;
        let version = folder.path().join("store/cluster/PG_VERSION");
        std::fs::write(&version, "13\n").unwrap();
        let told = Embedded::start(folder.path()).await.err().unwrap().to_string();
        assert!(
            told.contains("PostgreSQL 13") && told.contains("pg_dump") && told.contains("pg_restore"),
            "{told}"
        );
    }
}
