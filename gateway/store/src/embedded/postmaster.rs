//! One server process: started by us, or adopted from a gateway that was killed.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::{EmbeddedError, PROBE_TIMEOUT, QUIT_TIMEOUT, STOP_TIMEOUT, SUPERUSER};
use crate::database_url::DatabaseUrl;
use crate::pool::Connector;

/// How often the process is asked whether it lives.
const POLL: Duration = Duration::from_millis(100);
/// Settings of a small private server; `fsync` and `synchronous_commit` stay as they are: on.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("port", "5432"),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "100"),
    ("shared_buffers", "64MB"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "1GB"),
    ("checkpoint_timeout", "15min"),
    ("jit", "off"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("cluster_name", "hoop"),
];

/// The signals a postmaster understands, and the one it cannot refuse.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    /// SIGINT: end sessions, checkpoint, exit.
    Fast,
    /// SIGQUIT: exit at once, recover at the next start.
    Immediate,
    Kill,
}

impl Signal {
    pub fn send(self, pid: u32) {
        kill(
            pid,
            match self {
                Self::Fast => rustix::process::Signal::INT,
                Self::Immediate => rustix::process::Signal::QUIT,
                Self::Kill => rustix::process::Signal::KILL,
            },
        );
    }
}

/// The socket's folder of the server that runs in `data_dir`, if one does.
pub fn socket_dir_of_running(data_dir: &Path) -> Option<PathBuf> {
    let (pid, socket_dir) = read_pid_file(data_dir)?;
    is_our_server(pid, data_dir).then_some(socket_dir)
}

/// A running server process.
pub struct Postmaster {
    pid: u32,
    /// `None`: adopted, so its exit status goes to somebody else.
    child: Option<Child>,
    socket_dir: PathBuf,
}

impl Postmaster {
    /// Starts a server. It is its own process group, so that a Ctrl-C at the gateway's terminal does not reach it.
    pub fn spawn(cluster: &Cluster) -> Result<Self, EmbeddedError> {
        for lock in [
            cluster.data_dir().join("postmaster.pid"),
            cluster.socket_dir().join(".s.PGSQL.5432.lock"),
        ] {
            remove_lock_of_a_zombie(&lock)?;
        }
        let log = cluster.log();
        let open = OpenOptions::new().append(true).open(&log);
        let file = open.map_err(|source| EmbeddedError::File {
            action: "open",
            path: log,
            source,
        })?;
        let program = cluster.binaries.program("postgres");
        let failed = |source| EmbeddedError::Run {
            program: program.clone(),
            source,
        };
        let mut command = cluster.command("postgres");
        command.arg("-D").arg(cluster.data_dir());
        for (name, value) in SETTINGS {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
            .arg("-c")
            .arg(format!("unix_socket_directories={}", cluster.socket_dir().display()));
        command
            .stdout(Stdio::from(file.try_clone().map_err(failed)?))
            .stderr(Stdio::from(file))
            .process_group(0);
        let child = command.spawn().map_err(failed)?;
        Ok(Self {
            pid: child.id(),
            child: Some(child),
            socket_dir: cluster.socket_dir().to_owned(),
        })
    }

    /// The server that a killed gateway left running in this data folder, if there is one and it answers; one that does
    /// not is stopped.
    pub async fn adopt(cluster: &Cluster) -> Result<Option<Self>, EmbeddedError> {
        let data_dir = cluster.data_dir();
        let Some((pid, socket_dir)) = read_pid_file(&data_dir) else {
            return Ok(None);
        };
        if !is_our_server(pid, &data_dir) {
            return Ok(None);
        }
        let mut orphan = Self {
            pid,
            child: None,
            socket_dir,
        };
        if orphan.socket_dir == cluster.socket_dir() && orphan.answers_for(&data_dir).await {
            tracing::info!(
                pid,
                "adopted the embedded PostgreSQL that the last gateway left running"
            );
            return Ok(Some(orphan));
        }
        tracing::warn!(
            pid,
            "the embedded PostgreSQL that the last gateway left does not answer; it is stopped"
        );
        orphan.stop(STOP_TIMEOUT, QUIT_TIMEOUT).await;
        Ok(None)
    }

    pub const fn pid(&self) -> u32 {
        self.pid
    }

    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Why the process ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        match &mut self.child {
            Some(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(format!("it ended with {status}")),
                Err(error) => Some(format!("it cannot be waited for: {error}")),
            },
            None if is_alive(self.pid) => None,
            None => Some("it ended".to_owned()),
        }
    }

    /// Waits for the process's end and answers why. Cancel-safe.
    pub async fn wait(&mut self) -> String {
        loop {
            if let Some(why) = self.ended() {
                return why;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops the process, the hard way where it takes too long.
    pub async fn stop(&mut self, fast: Duration, immediate: Duration) {
        for (signal, patience) in [
            (Signal::Fast, fast),
            (Signal::Immediate, immediate),
            (Signal::Kill, immediate),
        ] {
            if self.ended().is_some() {
                return;
            }
            signal.send(self.pid);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if self.ended().is_some() {
                    return;
                }
                tokio::time::sleep(POLL / 4).await;
            }
            tracing::warn!(pid = self.pid, ?signal, "the embedded PostgreSQL does not stop");
        }
    }

    async fn answers_for(&self, data_dir: &Path) -> bool {
        let ask = async {
            let url = DatabaseUrl::unix(self.socket_dir.clone(), SUPERUSER, "postgres");
            let client = Connector::new(&url).ok()?.client().await.ok()?;
            let row = client
                .query_one("select current_setting('data_directory')", &[])
                .await
                .ok()?;
            Some(Path::new(row.get::<_, &str>(0)) == data_dir)
        };
        tokio::time::timeout(PROBE_TIMEOUT, ask)
            .await
            .ok()
            .flatten()
            .unwrap_or(false)
    }
}

/// `postmaster.pid`: line 1 the process id, line 5 the socket's folder (PostgreSQL's `miscadmin.h`, LOCK_FILE_LINE_*).
fn read_pid_file(data_dir: &Path) -> Option<(u32, PathBuf)> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 1)?;
    Some((pid, PathBuf::from(lines.nth(3).unwrap_or_default().trim())))
}

/// Whether the process is a server of this data folder, not a stranger with a reused id: a postmaster works in it.
fn is_our_server(pid: u32, data_dir: &Path) -> bool {
    is_alive(pid) && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir)
}

/// PostgreSQL takes a process that nobody waited for (an orphan, in a container whose process 1 reaps none) for a living
/// owner of its lock file, and would never start again. That it has no backends left, it checks by shared memory.
fn remove_lock_of_a_zombie(lock: &Path) -> Result<(), EmbeddedError> {
    let Ok(text) = fs::read_to_string(lock) else {
        return Ok(());
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else {
        return Ok(());
    };
    if !matches!(state_of(pid), Some('Z' | 'X')) {
        return Ok(());
    }
    fs::remove_file(lock).map_err(|source| EmbeddedError::File {
        action: "remove",
        path: lock.to_owned(),
        source,
    })
}

/// Alive and not a zombie.
fn is_alive(pid: u32) -> bool {
    !matches!(state_of(pid), None | Some('Z' | 'X'))
}

/// The process's state, from proc(5)'s stat: pid (comm) state …, and comm may hold anything.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may be gone already.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_read_and_a_stranger_is_not_taken_for_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        fs::write(
            dir.path().join("postmaster.pid"),
            format!("{own}\n/d\n1700000000\n5432\n/tmp/s\n\n  1 2\nready\n"),
        )
        .unwrap();
        assert_eq!(read_pid_file(dir.path()), Some((own, PathBuf::from("/tmp/s"))));
        assert!(is_alive(own));
        assert!(!is_our_server(own, dir.path()));
        fs::write(dir.path().join("postmaster.pid"), "1\n").unwrap();
        assert_eq!(read_pid_file(dir.path()), None);
    }
}
