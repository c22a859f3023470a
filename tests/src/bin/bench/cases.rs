//! What is measured, and how one run of it goes.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::TryStreamExt as _;
use hoop_tests::clients::Login;
use hoop_tests::cluster::APP;
use hoop_tests::process::{Said, run};

use crate::lanes::{Lane, Lanes};
use crate::memory;

/// Longest run of one bulk transfer.
const BULK_DEADLINE: Duration = Duration::from_secs(900);
/// Logins whose median is one figure.
const CONNECTS: usize = 30;
const BYTES_A_MEGABYTE: f64 = 1_000_000.0;

/// One line of the table.
/// A long line between gateway and agent.
#[derive(Debug, Clone, Copy)]
pub struct Wan {
    pub bytes_per_second: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub says: &'static str,
    pub unit: &'static str,
    pub kind: Kind,
    pub tls: bool,
    /// Connection of the lane hoop; empty for the default one.
    pub variant: &'static str,
    /// Needs table `wide`.
    pub wide: bool,
    /// Measured with a delay between gateway and agent.
    pub wan: Option<Wan>,
    pub note: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `pgbench -S` by query mode and clients.
    Pgbench(&'static str, u32),
    /// The same, one client: the 99th percentile of its latency.
    Percentile,
    CopyOut,
    Select,
    Dump,
    Restore,
    Connect,
    IdleMemory,
    StalledMemory,
    StalledPercentile,
    AuditBytes,
}

const fn case(name: &'static str, unit: &'static str, kind: Kind, says: &'static str) -> Case {
    let wide = matches!(
        kind,
        Kind::CopyOut | Kind::Select | Kind::StalledMemory | Kind::StalledPercentile | Kind::AuditBytes
    );
    Case {
        name,
        says,
        unit,
        kind,
        tls: false,
        variant: "",
        wide,
        wan: None,
        note: "",
    }
}

const fn tls(mut case: Case, name: &'static str) -> Case {
    case.name = name;
    case.tls = true;
    case
}

const fn variant(mut case: Case, name: &'static str, variant: &'static str) -> Case {
    case.name = name;
    case.variant = variant;
    case
}

const fn wan(mut case: Case, bytes_per_second: Option<u64>, note: &'static str) -> Case {
    case.wan = Some(Wan { bytes_per_second });
    case.note = note;
    case
}

const SIMPLE_1: Case = case(
    "simple_1",
    "1/s",
    Kind::Pgbench("simple", 1),
    "pgbench -S, simple protocol, 1 client",
);
const SIMPLE_8: Case = case(
    "simple_8",
    "1/s",
    Kind::Pgbench("simple", 8),
    "pgbench -S, simple protocol, 8 clients",
);
const PREPARED_1: Case = case(
    "prepared_1",
    "1/s",
    Kind::Pgbench("prepared", 1),
    "pgbench -S, prepared, 1 client",
);
const PREPARED_8: Case = case(
    "prepared_8",
    "1/s",
    Kind::Pgbench("prepared", 8),
    "pgbench -S, prepared, 8 clients",
);
const COPY_OUT: Case = case(
    "copy_out",
    "MB/s",
    Kind::CopyOut,
    "COPY … TO STDOUT of table wide through psql",
);
const CONNECT: Case = case(
    "connect",
    "ms",
    Kind::Connect,
    "psql -c 'select 1', connecting included",
);

/// In the order in which they are measured.
pub const CASES: &[Case] = &[
    SIMPLE_1,
    SIMPLE_8,
    PREPARED_1,
    PREPARED_8,
    case(
        "latency_p99_1",
        "us",
        Kind::Percentile,
        "pgbench -S, 1 client: 99th percentile of one transaction",
    ),
    CONNECT,
    COPY_OUT,
    case("select", "MB/s", Kind::Select, "SELECT of table wide, read as it comes"),
    case("pg_dump", "MB/s", Kind::Dump, "pg_dump of a million rows"),
    case("pg_restore", "MB/s", Kind::Restore, "pg_restore of a million rows"),
    tls(SIMPLE_1, "simple_1_tls"),
    tls(SIMPLE_8, "simple_8_tls"),
    tls(PREPARED_1, "prepared_1_tls"),
    tls(PREPARED_8, "prepared_8_tls"),
    tls(COPY_OUT, "copy_out_tls"),
    tls(CONNECT, "connect_tls"),
    variant(SIMPLE_1, "simple_1_synced", "synced"),
    variant(SIMPLE_8, "simple_8_synced", "synced"),
    variant(SIMPLE_1, "simple_1_strict", "strict"),
    variant(SIMPLE_8, "simple_8_strict", "strict"),
    variant(SIMPLE_1, "simple_1_record_off", "record-off"),
    variant(COPY_OUT, "copy_out_record_off", "record-off"),
    variant(COPY_OUT, "copy_out_record_full", "record-full"),
    case(
        "idle_memory",
        "KiB",
        Kind::IdleMemory,
        "resident memory of one idle session, without the target's",
    ),
    case(
        "stalled_memory",
        "KiB",
        Kind::StalledMemory,
        "growth of memory while 100 clients do not read",
    ),
    case(
        "stalled_p99_ratio",
        "x",
        Kind::StalledPercentile,
        "p99 of an active client beside 100 that do not read",
    ),
    variant(
        case(
            "audit_bytes",
            "x",
            Kind::AuditBytes,
            "journal + WAL + tables, per byte recorded in full",
        ),
        "audit_bytes",
        "record-full",
    ),
    wan(
        case(
            "wan_50ms_copy_out",
            "MB/s",
            Kind::CopyOut,
            "COPY with 50 ms of delay between gateway and agent",
        ),
        None,
        "50 ms a round trip between the hops; direct has it too",
    ),
    wan(
        case(
            "wan_50ms_60mb_copy_out",
            "MB/s",
            Kind::CopyOut,
            "the same over a line that carries 60 MB/s, which leaves the processors time",
        ),
        Some(60_000_000),
        "a line of 60 MB/s and 50 ms a round trip, made in user space",
    ),
];

/// One run of a case through a lane; `None` where the lane has no such thing.
///
/// # Errors
/// Where the run fails.
pub async fn run_once(case: &Case, lane: Lane, lanes: &Lanes, seconds: u32) -> Result<Option<f64>> {
    let login = lanes.login(lane, case.tls, case.variant)?;
    let figure = match case.kind {
        Kind::Pgbench(mode, clients) => pgbench(&login, mode, clients, seconds).await?,
        Kind::Percentile => percentile(&login, lanes, seconds).await?,
        Kind::CopyOut => copy_out(&login)
            .await
            .map(|took| lanes.wide_bytes / BYTES_A_MEGABYTE / took)?,
        Kind::Select => select(&login, lanes).await?,
        Kind::Dump => dump(&login, lanes).await?,
        Kind::Restore => restore(&login, lanes).await?,
        Kind::Connect => connects(&login).await?,
        Kind::IdleMemory => return memory::idle(lane, lanes, &login).await,
        Kind::StalledMemory => return memory::stalled(lane, lanes, &login).await,
        Kind::StalledPercentile => {
            let alone = percentile(&login, lanes, seconds).await?;
            let stalled = memory::Stalled::start(&login)?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let beside = percentile(&login, lanes, seconds).await?;
            drop(stalled);
            beside / alone
        }
        Kind::AuditBytes => return memory::audit(lane, lanes, &login).await,
    };
    Ok(Some(figure))
}

async fn pgbench(login: &Login, mode: &str, clients: u32, seconds: u32) -> Result<f64> {
    let mut command = login.command("pgbench");
    command.args([
        "-S",
        "-n",
        "-M",
        mode,
        "-c",
        &clients.to_string(),
        "-j",
        &clients.min(2).to_string(),
    ]);
    command.args(["-T", &seconds.to_string()]);
    let said = run(command, Duration::from_secs(u64::from(seconds) + 60)).await?;
    let said = said.success().context("pgbench")?;
    let line = said
        .out
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .context("no tps")?;
    Ok(line.split(' ').next().context("no tps")?.parse()?)
}

/// The 99th percentile of a transaction's latency, in microseconds.
pub async fn percentile(login: &Login, lanes: &Lanes, seconds: u32) -> Result<f64> {
    let folder = tempfile::tempdir_in(lanes.folder())?;
    let mut command = login.command("pgbench");
    command.args(["-S", "-n", "-M", "simple", "-c", "1", "-l", "-T", &seconds.to_string()]);
    command.arg("--log-prefix").arg(folder.path().join("log"));
    run(command, Duration::from_secs(u64::from(seconds) + 60))
        .await?
        .success()
        .context("pgbench -l")?;
    let mut times: Vec<f64> = Vec::new();
    for entry in fs::read_dir(folder.path())? {
        // client, transaction, microseconds, script, …
        for line in fs::read_to_string(entry?.path())?.lines() {
            times.extend(line.split(' ').nth(2).and_then(|time| time.parse::<f64>().ok()));
        }
    }
    times.sort_by(f64::total_cmp);
    times
        .get(times.len() * 99 / 100)
        .copied()
        .context("no transaction was logged")
}

/// Seconds of a COPY of table `wide` that goes nowhere.
pub async fn copy_out(login: &Login) -> Result<f64> {
    let mut command = login.command("psql");
    command.args(["-X", "-q", "-c", "COPY wide TO STDOUT"]);
    to_nowhere(command).await
}

async fn to_nowhere(command: std::process::Command) -> Result<f64> {
    let start = Instant::now();
    let mut command = tokio::process::Command::from(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(BULK_DEADLINE, command.output()).await??;
    let took = start.elapsed().as_secs_f64();
    let said = Said::from(output);
    if !said.ok {
        bail!("a transfer failed: {}", said.err);
    }
    Ok(took)
}

async fn select(login: &Login, lanes: &Lanes) -> Result<f64> {
    let client = login.connect().await?;
    let start = Instant::now();
    let rows = client
        .query_raw("SELECT id, a, b, c FROM wide", Vec::<String>::new())
        .await?;
    let mut rows = std::pin::pin!(rows);
    let mut count = 0_u64;
    while rows.try_next().await?.is_some() {
        count += 1;
    }
    if count == 0 {
        bail!("no row came");
    }
    Ok(lanes.wide_bytes / BYTES_A_MEGABYTE / start.elapsed().as_secs_f64())
}

async fn dump(login: &Login, lanes: &Lanes) -> Result<f64> {
    let mut command = login.command("pg_dump");
    command.args(["-Fc", "-Z0", "-t", "pgbench_accounts"]);
    Ok(lanes.accounts_bytes / BYTES_A_MEGABYTE / to_nowhere(command).await?)
}

async fn restore(login: &Login, lanes: &Lanes) -> Result<f64> {
    let file = lanes.folder().join("accounts.dump");
    if !file.exists() {
        let mut command = lanes.login(Lane::Direct, false, "")?.command("pg_dump");
        command.args(["-Fc", "-Z0", "-t", "pgbench_accounts", "-f"]).arg(&file);
        run(command, BULK_DEADLINE).await?.success().context("pg_dump")?;
    }
    let mut command = login.command("pg_restore");
    command.args(["--clean", "--if-exists", "-d", APP]).arg(&file);
    Ok(lanes.accounts_bytes / BYTES_A_MEGABYTE / to_nowhere(command).await?)
}

/// Median of a login with one query, in milliseconds.
async fn connects(login: &Login) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..CONNECTS {
        let mut command = login.command("psql");
        command.args(["-X", "-q", "-c", "select 1"]);
        times.push(to_nowhere(command).await? * 1000.0);
    }
    crate::report::median(times).context("no login")
}
