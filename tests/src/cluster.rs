//! A private PostgreSQL: the machine's own binaries, a folder, a free port on 127.0.0.1. Serves as target and, in tests,
//! also as the gateway's store (another database of the same cluster).

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio_postgres::{Client, NoTls};

use crate::binaries::profile_dir;
use crate::process::{Process, Said, eventually};

const START_DEADLINE: Duration = Duration::from_secs(30);
/// A free port may be taken by somebody else before the server binds it.
const START_ATTEMPTS: usize = 5;
/// The account that the agent logs in with, and its database, in every cluster made from the template.
pub const APP: &str = "app";
/// The database for a gateway's store, in every cluster made from the template.
pub const STORE: &str = "hoop";
/// Names that the target's certificate carries.
const CERTIFICATE_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// How a cluster is made.
#[derive(Debug, Clone, Default)]
pub struct Make {
    /// `0`: a free one.
    pub port: u16,
    /// `-c name=value` for the server.
    pub settings: Vec<(String, String)>,
    /// Lines put before the default `host all all all scram-sha-256` of pg_hba.conf.
    pub hba: Vec<String>,
    /// With a certificate for `localhost`.
    pub tls: bool,
}

/// A running cluster; dropping it stops it.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    make: Make,
    pub port: u16,
    /// Superuser `postgres`.
    pub superuser_password: String,
    /// PEM of the CA that signed the server's certificate; empty without TLS.
    pub ca_pem: String,
    server: Option<Process>,
}

/// The folder of PostgreSQL's server binaries: `HOOP_PG_BIN`, or Debian's newest.
///
/// # Errors
/// Where none is found.
pub fn pg_bin() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOOP_PG_BIN") {
        return Ok(PathBuf::from(path));
    }
    let versions = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL server: ./dev setup installs it")?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("postgres").exists().then_some((version, bin))
        })
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, bin)| bin)
        .context("no PostgreSQL server: ./dev setup installs it")
}

/// The user that servers run as where this process is root (PostgreSQL refuses root): uid and gid of `postgres`.
///
/// # Errors
/// Where there is no such user.
pub fn unprivileged() -> Result<Option<(u32, u32)>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let root = status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(1) == Some("0"));
    if !root {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd")?;
    let fields: Vec<&str> = passwd
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .context("no user postgres")?
        .split(':')
        .collect();
    let id = |at: usize| {
        fields
            .get(at)
            .and_then(|id| id.parse().ok())
            .context("user postgres has no ids")
    };
    Ok(Some((id(2)?, id(3)?)))
}

/// A command that runs as an unprivileged user where this process is root.
///
/// # Errors
/// Where there is no such user.
pub fn as_unprivileged(program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = unprivileged()? {
        command.uid(uid).gid(gid).current_dir("/");
    }
    Ok(command)
}

/// Gives a folder and all in it to the unprivileged user, where there is one.
///
/// # Errors
/// Where it cannot be given.
pub fn hand_over(path: &Path) -> Result<()> {
    let Some((uid, gid)) = unprivileged()? else {
        return Ok(());
    };
    let status = Command::new("chown")
        .arg("-R")
        .arg(format!("{uid}:{gid}"))
        .arg(path)
        .status()?;
    if !status.success() {
        bail!("{} cannot be given to user postgres", path.display());
    }
    Ok(())
}

/// A port on 127.0.0.1 that nobody listens on now.
///
/// # Errors
/// Where none can be had.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Cluster {
    /// A new cluster with user and database `app` (its statements are logged) and database `hoop`, in `dir`, which must
    /// not exist.
    ///
    /// # Errors
    /// Where it cannot be made or started.
    pub async fn start(dir: &Path, make: Make) -> Result<Self> {
        let template = template().await?;
        fs::create_dir_all(dir)?;
        copy(&template, dir)?;
        Self::run(dir, make).await
    }

    /// The cluster in `dir`, made where it does not exist; for a demo that outlives its process.
    ///
    /// # Errors
    /// Where it cannot be made or started.
    pub async fn open(dir: &Path, make: Make) -> Result<Self> {
        if !dir.join("data/PG_VERSION").exists() {
            initialise(dir)?;
        }
        Self::run(dir, make).await
    }

    async fn run(dir: &Path, make: Make) -> Result<Self> {
        let superuser_password = fs::read_to_string(dir.join("superuser"))?.trim().to_owned();
        let ca_pem = if make.tls {
            certificate(&dir.join("data"))?
        } else {
            String::new()
        };
        let mut hba = make.hba.join("\n");
        hba += "\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n";
        fs::write(dir.join("data/pg_hba.conf"), hba)?;
        hand_over(dir)?;
        let mut cluster = Self {
            dir: dir.to_path_buf(),
            make,
            port: 0,
            superuser_password,
            ca_pem,
            server: None,
        };
        let mut attempt = 1;
        loop {
            cluster.port = if cluster.make.port == 0 {
                free_port()?
            } else {
                cluster.make.port
            };
            match cluster.start_again().await {
                Ok(()) => return Ok(cluster),
                Err(why) if attempt == START_ATTEMPTS || cluster.make.port != 0 => return Err(why),
                Err(_) => attempt += 1,
            }
        }
    }

    /// Starts the server on the same folder and port.
    ///
    /// # Errors
    /// Where it does not answer within 30 s.
    pub async fn start_again(&mut self) -> Result<()> {
        let mut command = as_unprivileged(pg_bin()?.join("postgres"))?;
        command
            .arg("-D")
            .arg(self.dir.join("data"))
            .arg("-p")
            .arg(self.port.to_string());
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories="] {
            command.args(["-c", setting]);
        }
        for (name, value) in &self.make.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        if self.make.tls {
            command.args([
                "-c",
                "ssl=on",
                "-c",
                "ssl_cert_file=server.crt",
                "-c",
                "ssl_key_file=server.key",
            ]);
        }
        let mut server = Process::spawn("PostgreSQL", command, &self.log_path(), "QUIT")?;
        let config = self.config("postgres", &self.superuser_password, "postgres");
        server
            .until("ready", START_DEADLINE, async || {
                config.connect(NoTls).await.ok().map(drop)
            })
            .await?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops the server at once, as a crash of the machine's database would: connections break.
    ///
    /// # Errors
    /// Where it does not stop.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.stop()?;
        }
        Ok(())
    }

    /// Ends the server by a signal: `INT` is its fast shutdown, `KILL` leaves neither it nor its children time for a word.
    ///
    /// # Errors
    /// Where it does not end.
    pub async fn stop_by(&mut self, signal: &str) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        let children = children(server.pid())?;
        server.signal(signal)?;
        if signal == "KILL" {
            // They notice within a moment that the postmaster is gone; one that has gone by then is as good.
            for child in children {
                let _gone = crate::process::signal(child, signal);
            }
        }
        eventually("the server has ended", START_DEADLINE, async || {
            Ok((!server.alive()).then_some(()))
        })
        .await
    }

    /// Kills the postmaster with SIGKILL and starts the server again on the same folder.
    ///
    /// # Errors
    /// Where it does not come back.
    pub async fn kill_and_start_again(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill_hard()?;
        }
        // Its children notice within a moment; until then the new one refuses to start.
        let mut last = None;
        for _ in 0..50 {
            match self.start_again().await {
                Ok(()) => return Ok(()),
                Err(why) => last = Some(why),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(last.context("not started")?)
    }

    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// All that the server has logged: what it received, for database `app`.
    #[must_use]
    pub fn log(&self) -> String {
        crate::process::read_lossy(&self.log_path())
    }

    /// Options of a connection to this cluster itself.
    #[must_use]
    pub fn config(&self, user: &str, password: &str, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user(user)
            .password(password)
            .dbname(database);
        config.connect_timeout(Duration::from_secs(5));
        config
    }

    /// The superuser, on the cluster itself.
    ///
    /// # Errors
    /// Where the server cannot be reached.
    pub async fn superuser(&self, database: &str) -> Result<Client> {
        connect(&self.config("postgres", &self.superuser_password, database)).await
    }

    /// Gives `app` a password of its own, by any of PostgreSQL's methods that `password_encryption` knows.
    ///
    /// # Errors
    /// Where the server cannot be reached.
    pub async fn set_password(&self, role: &str, password: &str, encryption: &str) -> Result<()> {
        let client = self.superuser("postgres").await?;
        client
            .batch_execute(&format!("SET password_encryption = '{encryption}'"))
            .await?;
        client
            .batch_execute(&format!("ALTER ROLE \"{role}\" PASSWORD '{password}'"))
            .await?;
        Ok(())
    }

    /// URL of a database, as `DATABASE_URL` takes it.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres:{}@127.0.0.1:{}/{database}?sslmode=disable",
            self.superuser_password, self.port
        )
    }

    /// Memory of the server is not ours to count; its process id is, for tests that stop it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Process::pid)
    }

    /// A whole database as SQL text.
    ///
    /// # Errors
    /// Where pg_dump fails.
    pub async fn dump(&self, database: &str) -> Result<String> {
        let mut command = Command::new(pg_bin()?.join("pg_dump"));
        command
            .env("PGPASSWORD", &self.superuser_password)
            .args(["-h", "127.0.0.1", "-U", "postgres"]);
        command.arg("-p").arg(self.port.to_string()).arg(database);
        let said: Said = crate::process::run(command, Duration::from_secs(120))
            .await?
            .success()?;
        Ok(said.out)
    }
}

/// Connects without TLS and drives the connection in the background.
///
/// # Errors
/// Where the login fails.
pub async fn connect(config: &tokio_postgres::Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// initdb, as the unprivileged user, with a random superuser password in `dir/superuser`.
fn initialise(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let password = dir.join("superuser");
    fs::write(&password, uuid::Uuid::new_v4().simple().to_string())?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    hand_over(dir)?;
    let mut command = as_unprivileged(pg_bin()?.join("initdb"))?;
    command.arg("-D").arg(dir.join("data")).arg("--pwfile").arg(&password);
    command.args([
        "-U",
        "postgres",
        "-A",
        "scram-sha-256",
        "-N",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
    ]);
    let said = Said::from(command.output().context("initdb")?);
    said.success().with_context(|| format!("initdb in {}", dir.display()))?;
    // The demo's and the tests' data is made again at will: no fsync.
    let settings = "fsync = off\nmax_connections = 300\nlog_line_prefix = '%m [%p] %d '\n";
    let file = dir.join("data/postgresql.conf");
    let text = fs::read_to_string(&file)? + settings;
    fs::write(&file, text)?;
    Ok(())
}

/// A stopped cluster to copy from, made once for this build: initdb takes a second or two, a copy a tenth of that.
async fn template() -> Result<PathBuf> {
    let version = pg_bin()?.display().to_string().replace('/', "-");
    let done = profile_dir()?.join(format!("pg-template-1{version}"));
    let lock = fs::File::create(done.with_extension("lock"))?;
    tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if done.exists() {
        return Ok(done);
    }
    let scratch = scratch()?;
    let dir = scratch.path().join("template");
    {
        let mut cluster = Cluster::open(&dir, Make::default()).await?;
        let client = cluster.superuser("postgres").await?;
        for sql in [
            "CREATE ROLE app LOGIN PASSWORD 'replaced by each test'",
            "CREATE DATABASE app OWNER app",
            "CREATE DATABASE hoop",
            "ALTER DATABASE app SET log_statement = 'all'",
            "ALTER DATABASE app SET log_min_duration_statement = -1",
        ] {
            client.batch_execute(sql).await?;
        }
        drop(client);
        if let Some(mut server) = cluster.server.take() {
            server.signal("INT")?;
            eventually("the template stopped", START_DEADLINE, async || {
                Ok((!server.alive()).then_some(()))
            })
            .await?;
        }
        let _ = fs::remove_file(dir.join("log"));
    }
    let part = done.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part)?;
    copy(&dir, &part)?;
    fs::rename(&part, &done)?;
    Ok(done)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(from.join("."))
        .arg(to)
        .status()
        .context("cp")?;
    if !status.success() {
        bail!("{} cannot be copied to {}", from.display(), to.display());
    }
    Ok(())
}

/// A temporary folder with a short name that other users can pass through (a server may run as another user). With
/// `HOOP_KEEP=1` it is kept, with all logs in it, and said.
///
/// # Errors
/// Where it cannot be made.
pub fn scratch() -> Result<tempfile::TempDir> {
    let mut dir = tempfile::Builder::new().prefix("hoop-").tempdir()?;
    if std::env::var_os("HOOP_KEEP").is_some() {
        dir.disable_cleanup(true);
        println!("kept: {}", dir.path().display());
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// The processes that this one has started and that live.
fn children(parent: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// Makes a CA and a server certificate for `localhost`; answers the CA's PEM.
fn certificate(data: &Path) -> Result<String> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "test target CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(CERTIFICATE_NAMES.map(str::to_owned))?.signed_by(&key, &ca)?;
    fs::write(data.join("server.crt"), leaf.pem())?;
    fs::write(data.join("server.key"), key.serialize_pem())?;
    fs::set_permissions(data.join("server.key"), fs::Permissions::from_mode(0o600))?;
    Ok(ca.pem())
}
