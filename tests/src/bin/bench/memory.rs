//! What sessions cost in memory, and what their record costs on disk.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hoop_tests::clients::Login;
use hoop_tests::cluster::{Cluster, STORE};

use crate::cases::copy_out;
use crate::lanes::{Lane, Lanes};

const IDLE_SESSIONS: u32 = 300;
const STALLED_CLIENTS: usize = 100;
/// After this long nothing grows any more that has a bound.
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_ROUNDS: usize = 60;

/// Clients that asked for a large result and do not read it.
pub struct Stalled(Vec<Child>);

impl Stalled {
    /// # Errors
    /// Where psql cannot be started.
    pub fn start(login: &Login) -> Result<Self> {
        let mut children = Vec::new();
        for _ in 0..STALLED_CLIENTS {
            let mut command = login.command("psql");
            // Nobody reads this pipe, so psql stops reading its socket.
            command
                .args(["-X", "-q", "-c", "COPY wide TO STDOUT"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            children.push(command.stderr(Stdio::null()).spawn()?);
        }
        Ok(Self(children))
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Resident memory of processes, in KiB.
fn resident(pids: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        sum += line.split_whitespace().next().context("no VmRSS")?.parse::<f64>()?;
    }
    Ok(sum)
}

/// KiB an idle session, or `None` for the target itself.
pub async fn idle(lane: Lane, lanes: &Lanes, login: &Login) -> Result<Option<f64>> {
    let pids = lanes.pids(lane);
    if pids.is_empty() {
        return Ok(None);
    }
    // What the first session brings along is not a session's.
    let warm = login.connect().await?;
    warm.simple_query("select 1").await?;
    let before = resident(&pids)?;
    let mut clients = Vec::new();
    for _ in 0..IDLE_SESSIONS {
        let client = login.connect().await?;
        client.simple_query("select 1").await?;
        clients.push(client);
    }
    tokio::time::sleep(SETTLE).await;
    let after = resident(&pids)?;
    Ok(Some((after - before) / f64::from(IDLE_SESSIONS)))
}

/// KiB that a lane grows by, in all, from 5 s after 100 clients stopped reading until 30 s after.
pub async fn stalled(lane: Lane, lanes: &Lanes, login: &Login) -> Result<Option<f64>> {
    let pids = lanes.pids(lane);
    if pids.is_empty() {
        return Ok(None);
    }
    let stalled = Stalled::start(login)?;
    tokio::time::sleep(SETTLE).await;
    let before = resident(&pids)?;
    tokio::time::sleep(SETTLE * 5).await;
    let after = resident(&pids)?;
    drop(stalled);
    Ok(Some(after - before))
}

/// Bytes written to journal, store's WAL and store's tables for each byte of one COPY recorded in full.
pub async fn audit(lane: Lane, lanes: &Lanes, login: &Login) -> Result<Option<f64>> {
    let Some(hoop) = lanes.hoop.as_ref().filter(|_| lane == Lane::Hoop) else {
        return Ok(None);
    };
    let store = hoop.store_cluster();
    let gateway = hoop.gateway()?.process.pid();
    let before = (written(gateway)?, stored(store).await?);
    copy_out(login).await?;
    let mut last = stored(store).await?;
    for _ in 0..SETTLE_ROUNDS {
        tokio::time::sleep(SETTLE).await;
        let now = stored(store).await?;
        if (now.0 - last.0).abs() < 1_000_000.0 {
            let ((journal, (wal, tables)), after) = (before, written(gateway)?);
            let bytes = (after - journal) + (now.0 - wal) + (now.1 - tables);
            return Ok(Some(bytes / lanes.wide_bytes));
        }
        last = now;
    }
    bail!("the store did not come to rest")
}

/// Bytes that a process made the kernel write to disks.
fn written(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .context("no write_bytes")?;
    Ok(line.trim().parse()?)
}

/// Where the store's WAL ends and how large its database is, in bytes.
async fn stored(store: &Cluster) -> Result<(f64, f64)> {
    let client = store.superuser(STORE).await?;
    let row = client
        .query_one(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8, pg_database_size(current_database())::float8",
            &[],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}
