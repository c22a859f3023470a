//! A real PostgreSQL for tests: one private server a test process, a fresh database a test.
//!
//! Set `HOOP_TEST_DATABASE_URL` (a superuser's) to use a server that runs already. Must not be compiled into a release:
//! it panics, and it prints.
#![allow(clippy::panic, clippy::expect_used, clippy::print_stderr)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use uuid::Uuid;

use crate::database_url::DatabaseUrl;
use crate::embedded::{Embedded, ServerState};
use crate::pool::Connector;
use crate::seal::MasterKey;
use crate::store::{Store, StoreConfig};

const SERVER_VARIABLE: &str = "HOOP_TEST_DATABASE_URL";
/// Connections of a test's pool; the server has 100 for all tests of the process.
const POOL_SIZE: usize = 6;

/// A store over a fresh database with the whole schema, under a fresh master key.
///
/// # Panics
/// Where there is no PostgreSQL: see `try_store`.
pub async fn store() -> Store {
    try_store().await.expect("a PostgreSQL server for tests")
}

/// As `store`, or `None` with the reason printed where the machine has no PostgreSQL: the test is skipped.
pub async fn try_store() -> Option<Store> {
    let master = MasterKey::new(&MasterKey::generate().expect("random bytes")).expect("a key");
    let config = StoreConfig {
        url: fresh_database().await?,
        pool_size: POOL_SIZE,
    };
    Some(
        Store::open(&config, master)
            .await
            .unwrap_or_else(|error| panic!("the test's store does not open: {error:?}")),
    )
}

/// The URL of a fresh, empty database, or `None` as `try_store`.
pub async fn fresh_database() -> Option<DatabaseUrl> {
    let server = match std::env::var(SERVER_VARIABLE) {
        Ok(text) => DatabaseUrl::parse(&text).unwrap_or_else(|error| panic!("{SERVER_VARIABLE}: {error}")),
        Err(_) => tokio::task::spawn_blocking(server)
            .await
            .expect("the test server's thread")?,
    };
    let name = format!("test_{}", Uuid::now_v7().simple());
    let client = Connector::new(&server.with_database("postgres"))
        .expect("a test server's URL")
        .client()
        .await
        .unwrap_or_else(|error| panic!("the test server does not answer: {error:?}"));
    client
        .batch_execute(&format!("create database {name}"))
        .await
        .expect("a fresh database");
    Some(server.with_database(&name))
}

/// Whether the machine has PostgreSQL; prints why a test is skipped where it has not.
#[must_use]
pub fn postgres_available() -> bool {
    match crate::embedded::available() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// A temporary data folder that every user may pass through; any server left in it is ended, and the folder removed,
/// when this is dropped or the process ends, however it ends.
pub struct Folder {
    path: PathBuf,
    watchdog: Child,
}

impl Folder {
    /// # Panics
    /// Where the machine's temporary folder cannot be written.
    #[must_use]
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hoop-test-{}", Uuid::now_v7().simple()));
        fs::create_dir(&path).expect("a temporary folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a temporary folder's mode");
        // The shell reads until this process is gone, for only it holds the other end of the pipe.
        let script = r#"trap '' INT TERM HUP; cat >/dev/null
            pid=$(head -n 1 "$0/store/cluster/postmaster.pid" 2>/dev/null)
            if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$0/store/cluster" ]; then
                kill -QUIT "$pid"
                while [ -d "/proc/$pid" ]; do sleep 0.05; done
            fi
            socket=$(cat "$0/store/socket" 2>/dev/null)
            case $socket in */hoop-*) rm -rf "$socket";; esac
            rm -rf "$0""#;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell");
        Self { path, watchdog }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ended = self.watchdog.wait();
    }
}

/// This process's server, started by whoever asks first, on a runtime of its own.
fn server() -> Option<DatabaseUrl> {
    static SERVER: OnceLock<Option<(DatabaseUrl, Folder)>> = OnceLock::new();
    let start = || {
        if !postgres_available() {
            return None;
        }
        let folder = Folder::new();
        let data_dir = folder.path().to_owned();
        let (tell, started) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let embedded = Embedded::start(&data_dir)
                    .await
                    .unwrap_or_else(|error| panic!("the test server does not start: {error}"));
                tell.send(embedded.url().clone()).expect("somebody who waits");
                while embedded.exited().await != ServerState::Stopped {}
            });
        });
        Some((started.recv().expect("the test server"), folder))
    };
    SERVER.get_or_init(start).as_ref().map(|(url, _)| url.clone())
}
