//! The four ways to the same target.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoop_tests::binaries;
use hoop_tests::clients::{Login, own_program};
use hoop_tests::cluster::{APP, Cluster, Make, free_port, scratch};
use hoop_tests::hoop::{CONNECTION, Hoop, Options, StoreKind};
use hoop_tests::pgbouncer::{Account, Pgbouncer};
use hoop_tests::process::{Process, eventually, run};
use hoop_tests::tcp::LongLine;
use serde_json::json;

use crate::cases::Case;

/// Rows of `wide` in a megabyte of its COPY text.
const WIDE_ROWS_A_MEGABYTE: u64 = 4800;
/// `pgbench -i -s`: a million accounts, 97 MB of COPY text.
const PGBENCH_SCALE: &str = "10";
const FILL_DEADLINE: Duration = Duration::from_secs(900);
/// Sessions that the memory cases hold, with room for all else.
const TARGET_CONNECTIONS: &str = "1200";
/// Connections that differ from `app` in one setting.
const VARIANTS: [(&str, &str, &str); 4] = [
    ("synced", "audit_mode", "synced"),
    ("strict", "audit_mode", "strict"),
    ("record-off", "record", "off"),
    ("record-full", "record", "full"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Direct,
    Relay2,
    Pgbouncer,
    Hoop,
}

impl Lane {
    pub const ALL: [Self; 4] = [Self::Direct, Self::Relay2, Self::Pgbouncer, Self::Hoop];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay2 => "relay2",
            Self::Pgbouncer => "pgbouncer",
            Self::Hoop => "hoop",
        }
    }
}

/// Everything that runs while cases are measured.
pub struct Lanes {
    /// `None` without the lane hoop.
    pub hoop: Option<Hoop>,
    relays: Vec<Process>,
    relay_port: u16,
    pgbouncer: Option<(Pgbouncer, u32)>,
    own_target: Option<(Cluster, tempfile::TempDir)>,
    password: String,
    /// COPY text of `wide`, in bytes.
    pub wide_bytes: f64,
    /// COPY text of `pgbench_accounts`, in bytes.
    pub accounts_bytes: f64,
    variants: Vec<(String, Login)>,
    /// Dropped last.
    scratch: tempfile::TempDir,
}

impl Lanes {
    /// Starts what the wanted lanes and cases need, and fills the target.
    ///
    /// # Errors
    /// Where a part cannot be started.
    pub async fn start(wanted: &[Lane], cases: &[&Case], megabytes: u64) -> Result<Self> {
        let own = scratch()?;
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let make = Make {
            settings: vec![
                setting("max_connections", TARGET_CONNECTIONS),
                setting("shared_buffers", "256MB"),
                setting("max_wal_size", "4GB"),
                setting("autovacuum", "off"),
                setting("jit", "off"),
                setting("listen_addresses", "*"),
            ],
            tls: true,
            ..Make::default()
        };
        let folder = scratch()?;
        let target = Cluster::start(&folder.path().join("target"), make).await?;
        let password = uuid::Uuid::new_v4().simple().to_string();
        target.set_password(APP, &password, "scram-sha-256").await?;
        let superuser = target.superuser("postgres").await?;
        superuser
            .batch_execute("ALTER DATABASE app RESET log_statement")
            .await?;
        drop(superuser);
        let direct = Login::plain(target.port, APP, &password, APP);
        println!("filling the target …");
        let mut fill = direct.command("pgbench");
        fill.args(["-i", "-q", "-s", PGBENCH_SCALE, "--unlogged-tables"]);
        run(fill, FILL_DEADLINE).await?.success().context("pgbench -i")?;
        if cases.iter().any(|case| case.wide) {
            let rows = megabytes * WIDE_ROWS_A_MEGABYTE;
            let mut fill = direct.command("psql");
            fill.args(["-X", "-q", "-c"]).arg(format!(
                "CREATE UNLOGGED TABLE wide AS SELECT i AS id, md5(i::text) AS a, md5((i+1)::text) || md5((i+2)::text) \
                 AS b, repeat(chr(97 + i % 26), 100) AS c FROM generate_series(1, {rows}) AS i"
            ));
            run(fill, FILL_DEADLINE).await?.success().context("table wide")?;
        }
        let mut lanes = Self {
            hoop: None,
            relays: Vec::new(),
            relay_port: 0,
            pgbouncer: None,
            own_target: None,
            password: password.clone(),
            wide_bytes: 0.0,
            accounts_bytes: 0.0,
            variants: Vec::new(),
            scratch: own,
        };
        lanes.accounts_bytes = copy_bytes(&direct, "pgbench_accounts").await?;
        if cases.iter().any(|case| case.wide) {
            lanes.wide_bytes = copy_bytes(&direct, "wide").await?;
        }
        if wanted.contains(&Lane::Relay2) {
            lanes.relay_port = lanes.start_relays(target.port).await?;
        }
        if wanted.contains(&Lane::Pgbouncer) {
            let account = Account {
                user: APP,
                password: &password,
                database: APP,
            };
            let folder = lanes.scratch.path().join("pgbouncer");
            let bouncer = Pgbouncer::start(&folder, &target, &account, "session", true).await?;
            let pid = bouncer.pid();
            lanes.pgbouncer = Some((bouncer, pid));
        }
        if wanted.contains(&Lane::Hoop) {
            let store_make = Make {
                settings: vec![setting("fsync", "on")],
                ..Make::default()
            };
            let options = Options {
                store: StoreKind::Own,
                store_make,
                ..Options::default()
            };
            let hoop = Hoop::around(folder, target, password, options).await?;
            let person = hoop.person().await?.sslmode("disable").database(APP);
            lanes.variants.push((CONNECTION.to_owned(), person));
            for (name, member, value) in VARIANTS {
                if cases.iter().any(|case| case.variant == name) {
                    hoop.connection(name, json!({ member: value })).await?;
                    let login = hoop
                        .login(&hoop.credential(name).await?)?
                        .sslmode("disable")
                        .database(APP);
                    lanes.variants.push((name.to_owned(), login));
                }
            }
            lanes.hoop = Some(hoop);
        } else {
            lanes.own_target = Some((target, folder));
        }
        Ok(lanes)
    }

    async fn start_relays(&mut self, target_port: u16) -> Result<u16> {
        let mut next = target_port;
        for number in 1..=2 {
            let (process, port) = start_relay(self.scratch.path(), number, next, &[]).await?;
            self.relays.push(process);
            next = port;
        }
        Ok(next)
    }

    /// The target itself.
    ///
    /// # Errors
    /// Never, once started.
    pub fn target(&self) -> Result<&Cluster> {
        self.hoop
            .as_ref()
            .map(|hoop| &hoop.target)
            .or(self.own_target.as_ref().map(|(target, _)| target))
            .context("no target")
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// How a client logs in through a lane; `None` where the lane has no such variant.
    ///
    /// # Errors
    /// Where the lane does not run.
    pub fn login(&self, lane: Lane, tls: bool, variant: &str) -> Result<Login> {
        let port = match lane {
            Lane::Direct => self.target()?.port,
            Lane::Relay2 => self.relay_port,
            Lane::Pgbouncer => self.pgbouncer.as_ref().context("no pgbouncer")?.0.port,
            Lane::Hoop => {
                let name = if variant.is_empty() { CONNECTION } else { variant };
                let found = self.variants.iter().find(|(known, _)| known == name);
                let (_, login) = found.with_context(|| format!("no connection {name}"))?;
                return Ok(login.sslmode(if tls { "require" } else { "disable" }));
            }
        };
        let login = Login::plain(port, APP, &self.password, APP);
        Ok(login.sslmode(if tls { "require" } else { "disable" }))
    }

    /// The processes that a lane consists of, without the target.
    #[must_use]
    pub fn pids(&self, lane: Lane) -> Vec<u32> {
        match lane {
            Lane::Direct => Vec::new(),
            Lane::Relay2 => self.relays.iter().map(Process::pid).collect(),
            Lane::Pgbouncer => self.pgbouncer.iter().map(|(_, pid)| *pid).collect(),
            Lane::Hoop => self.hoop.iter().flat_map(Hoop::pids).collect(),
        }
    }
}

/// Starts a relay on a free port of 127.0.0.1 to another port there.
///
/// # Errors
/// Where it cannot be started.
pub async fn start_relay(folder: &Path, number: usize, to: u16, prefix: &[String]) -> Result<(Process, u16)> {
    let port = free_port()?;
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let target = SocketAddr::from(([127, 0, 0, 1], to));
    let process = spawn_relay(folder, number, listen, target, prefix, None)?;
    eventually("the relay listens", Duration::from_secs(10), async || {
        Ok(tokio::net::TcpStream::connect(listen).await.ok().map(drop))
    })
    .await?;
    Ok((process, port))
}

/// Starts a relay without waiting for it.
///
/// # Errors
/// Where it cannot be started.
pub fn spawn_relay(
    folder: &Path,
    number: usize,
    listen: SocketAddr,
    target: SocketAddr,
    prefix: &[String],
    line: Option<LongLine>,
) -> Result<Process> {
    let program = binaries::relay()?;
    let mut command = match prefix.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .arg(listen.to_string())
        .arg(target.to_string())
        .args(line.map(|line| line.delay.as_millis().to_string()))
        .args(line.and_then(|line| line.bytes_per_second).map(|rate| rate.to_string()));
    Process::spawn(
        "hoop-relay",
        command,
        &folder.join(format!("relay-{number}.log")),
        "KILL",
    )
}

/// Length of a table's COPY text.
async fn copy_bytes(direct: &Login, table: &str) -> Result<f64> {
    let mut command = direct.command("sh");
    command.args(["-c", "\"$2\" -X -q -c \"COPY $1 TO STDOUT\" | wc -c", "sh", table]);
    command.arg(own_program("psql".as_ref()));
    let said = run(command, FILL_DEADLINE).await?.success()?;
    Ok(said.out.trim().parse()?)
}
