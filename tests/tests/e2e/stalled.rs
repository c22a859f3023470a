//! Clients that stop reading: nobody else notices, and memory stays where it is.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::full;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::{eventually, resident_kib};
use hoop_tests::tcp::dripping_line;
use serde_json::json;

/// Until every buffer between target and client is full.
const FULL_DEADLINE: Duration = Duration::from_secs(240);
/// Clients that start together: targets and clients are on the same machine here, and take its processors from all.
const AT_ONCE: usize = 10;
/// What a query of a neighbour may take, on a machine that other tests share. A link that is lost takes longer.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(5);
/// How long nothing is read while memory and neighbours are looked at.
const STILL_FOR: Duration = Duration::from_secs(5);
/// What one stalled reader may hold in gateway and agent together, in KiB.
const STALLED_READER_KIB: u64 = 6 * 1024;
/// Looks at the target in a row that must find all of them blocked.
const STILL_LOOKS: u32 = 10;
/// What memory may move by while nobody reads, in KiB.
const STILL_KIB: u64 = 8 * 1024;

/// A session of the same agent, opened before the others stall, which asks something all the time.
struct Neighbour {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<Duration>>,
}

impl Neighbour {
    async fn start(login: &Login) -> Result<Self> {
        let client = login.sslmode("disable").connect().await?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                client.simple_query("select 1").await.context("a neighbour's query")?;
                longest = longest.max(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(longest)
        });
        Ok(Self { stop, task })
    }

    /// Its longest query, once it is stopped. An error where any failed.
    async fn stop(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// Clients that start a COPY and never read its result.
struct Stalled(Vec<Child>);

impl Stalled {
    /// Starts so many more.
    fn start(&mut self, login: &Login, count: usize, sql: &str) -> Result<()> {
        for _ in 0..count {
            let mut command = login.command("psql");
            command
                .args(["-X", "-q", "-c", sql])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            self.0.push(command.spawn()?);
        }
        Ok(())
    }

    /// Waits until the target can send nothing more to any of them, because every buffer on the way is full.
    async fn until_still(&mut self, hoop: &Hoop) -> Result<()> {
        let target = hoop.target.superuser("app").await?;
        let blocked = "select count(*) from pg_stat_activity where query like 'copy%' and wait_event = 'ClientWrite'";
        let mut looks = 0;
        eventually("nothing moves any more", FULL_DEADLINE, async || {
            for child in &mut self.0 {
                ensure!(child.try_wait()?.is_none(), "a stalled client has ended");
            }
            let blocked: i64 = target.query_one(blocked, &[]).await?.get(0);
            looks = if usize::try_from(blocked)? == self.0.len() {
                looks + 1
            } else {
                0
            };
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok((looks >= STILL_LOOKS).then_some(()))
        })
        .await
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

/// Resident memory of gateway and agent, in KiB.
fn resident(hoop: &Hoop) -> Result<u64> {
    hoop.pids().map(resident_kib).sum()
}

/// How often the agent has linked to the gateway.
fn links(hoop: &Hoop) -> usize {
    let log = hoop.agents.first().map(|agent| agent.process.log()).unwrap_or_default();
    log.lines().filter(|line| line.contains("linked")).count()
}

async fn stalled_readers(sql: &str) -> Result<()> {
    let count = if full() {
        100
    } else {
        hoop_tests::skipped("100 stalled readers", "20 were started; ./dev test --full starts 100");
        20
    };
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let links_before = links(&hoop);
    let neighbour = Neighbour::start(&me).await?;
    // What the first ones cost has a part that others do not cost again.
    let mut some = 0;
    let mut stalled = Stalled(Vec::new());
    while stalled.0.len() < count {
        stalled.start(&me, AT_ONCE, sql)?;
        stalled.until_still(&hoop).await?;
        if stalled.0.len() == AT_ONCE {
            some = resident(&hoop)?;
        }
    }
    let while_filling = neighbour.stop().await?;
    ensure!(
        while_filling < NEIGHBOUR_LIMIT,
        "a neighbour waited for {while_filling:?}"
    );
    let before = resident(&hoop)?;
    let neighbour = Neighbour::start(&me).await?;
    tokio::time::sleep(STILL_FOR).await;
    let while_still = neighbour.stop().await?;
    ensure!(while_still < NEIGHBOUR_LIMIT, "a neighbour waited for {while_still:?}");
    let after = resident(&hoop)?;
    ensure!(
        after < before + STILL_KIB,
        "memory grew from {before} to {after} KiB while nobody read"
    );
    let each = after.saturating_sub(some) / (count - AT_ONCE) as u64;
    ensure!(each < STALLED_READER_KIB, "a stalled reader holds {each} KiB");
    ensure!(links(&hoop) == links_before, "the link was lost");
    Ok(())
}

#[tokio::test]
async fn readers_that_leave_large_rows_unread_delay_nobody_and_cost_no_memory() -> Result<()> {
    stalled_readers("copy (select repeat('z', 100000) from generate_series(1, 100000)) to stdout").await
}

#[tokio::test]
async fn readers_that_leave_tiny_rows_unread_delay_nobody_and_cost_no_memory() -> Result<()> {
    // A function in the list of columns is streamed; in FROM the target would write gigabytes to its disk first.
    stalled_readers("copy (select generate_series(1, 1000000000)) to stdout").await
}

#[tokio::test]
async fn a_slow_reader_gets_its_whole_result() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let rows = if full() { 10_000 } else { 500 };
    let sql = format!("copy (select repeat('w', 100000) from generate_series(1, {rows})) to stdout");
    let mut command = me.command("sh");
    // Reads 1 MB, then pauses, again and again.
    command.args(["-c", "\"$1\" -X -q -c \"$2\" | while dd bs=1M count=8 iflag=fullblock status=none | wc -c | grep -v '^0$'; do sleep 0.2; done"]);
    command
        .arg("sh")
        .arg(hoop_tests::clients::own_program("psql".as_ref()))
        .arg(&sql);
    let said = hoop_tests::process::run(command, Duration::from_secs(600)).await?;
    let read: u64 = said
        .out
        .lines()
        .filter_map(|line| line.trim().parse::<u64>().ok())
        .sum();
    ensure!(read == rows * 100_001, "{read} bytes came: {}", said.err);
    Ok(())
}

/// Sent whole before the line drips: more than fits between the line and a client that reads nothing.
const BEFORE_DRIPS_BYTES: u64 = 32 * 1024 * 1024;
/// 1,000 bytes of a line in one CopyData (manual, "Message Formats").
const COPY_ROW_BYTES: usize = 1_005;
/// Sent a byte at a time: several times what the window in frames allows unread.
const DRIPS: usize = 5_000;

/// One-byte frames pile up behind a client that reads nothing, as far as their credit lets them; the others of the same
/// link go on, and in the end the client gets every byte.
#[tokio::test]
async fn single_bytes_that_nobody_reads_delay_nobody_and_arrive_in_the_end() -> Result<()> {
    let hoop = Hoop::start().await?;
    let line = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = line.local_addr()?.port();
    let target = format!("127.0.0.1:{}", hoop.target.port).parse()?;
    let line = tokio::spawn(dripping_line(line, target, BEFORE_DRIPS_BYTES));
    hoop.connection("dripping", json!({"port": port})).await?;
    let me = hoop.person().await?;
    let links_before = links(&hoop);
    let neighbour = Neighbour::start(&me).await?;
    let dripping = hoop.login(&hoop.credential("dripping").await?)?.sslmode("disable");
    let whole = usize::try_from(BEFORE_DRIPS_BYTES)? / COPY_ROW_BYTES;
    let sql = format!(
        "copy (select repeat('d', 999) from generate_series(1, {})) to stdout",
        whole + DRIPS / 1000
    );
    let mut command = dripping.command("sh");
    // Reads nothing while the bytes come, then all of it.
    command.args(["-c", "\"$1\" -X -q -c \"$2\" | (sleep 20; wc -c)", "sh"]);
    command.arg(hoop_tests::clients::own_program("psql".as_ref())).arg(&sql);
    let said = hoop_tests::process::run(command, Duration::from_secs(600)).await?;
    ensure!(
        said.out.trim() == ((whole + DRIPS / 1000) * 1000).to_string(),
        "{} {}",
        said.out,
        said.err
    );
    let longest = neighbour.stop().await?;
    ensure!(longest < NEIGHBOUR_LIMIT, "a neighbour waited for {longest:?}");
    ensure!(links(&hoop) == links_before, "the link was lost");
    line.abort();
    Ok(())
}
