//! Client programs: whom they log in as and where, said in libpq's environment, so that no password is on a command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::binaries::checkout;
use crate::process::{Said, run};

/// How long one client program may take.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(120);

/// Everything a PostgreSQL client needs to know.
#[derive(Debug, Clone)]
pub struct Login {
    pub port: u16,
    pub user: String,
    pub password: String,
    pub database: String,
    pub sslmode: String,
    /// Certificate of the CA for `verify-full`; the host is `localhost` then.
    pub ca_file: PathBuf,
    /// Further environment.
    pub extra: Vec<(String, String)>,
    /// Words before the program, e.g. `ip netns exec NAME`.
    pub prefix: Vec<String>,
    /// The address dialled.
    pub address: String,
}

impl Login {
    /// A login without TLS on 127.0.0.1.
    #[must_use]
    pub fn plain(port: u16, user: &str, password: &str, database: &str) -> Self {
        Self {
            port,
            user: user.to_owned(),
            password: password.to_owned(),
            database: database.to_owned(),
            sslmode: "disable".to_owned(),
            ca_file: PathBuf::new(),
            extra: Vec::new(),
            prefix: Vec::new(),
            address: "127.0.0.1".to_owned(),
        }
    }

    #[must_use]
    pub fn sslmode(&self, mode: &str) -> Self {
        Self {
            sslmode: mode.to_owned(),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn password(&self, password: &str) -> Self {
        Self {
            password: password.to_owned(),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn user(&self, user: &str) -> Self {
        Self {
            user: user.to_owned(),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn port(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// One more variable for the client's environment.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut login = self.clone();
        login.extra.push((name.to_owned(), value.to_owned()));
        login
    }

    /// libpq's environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut pairs: Vec<(String, String)> = [
            ("PGHOST", "localhost"),
            ("PGHOSTADDR", &self.address),
            ("PGPORT", &self.port.to_string()),
            ("PGUSER", &self.user),
            ("PGPASSWORD", &self.password),
            ("PGDATABASE", &self.database),
            ("PGSSLMODE", &self.sslmode),
            ("PGCONNECT_TIMEOUT", "20"),
            ("PGSSLROOTCERT", &self.ca_file.display().to_string()),
        ]
        .into_iter()
        .filter(|(name, value)| *name != "PGSSLROOTCERT" || !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        pairs.extend(self.extra.iter().cloned());
        pairs
    }

    /// A client program with this login in its environment.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let program = own_program(program.as_ref());
        let mut command = match self.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        for name in ["PGSERVICE", "PGPASSFILE", "PGOPTIONS", "PGAPPNAME", "PGGSSENCMODE"] {
            command.env_remove(name);
        }
        command.envs(self.environment());
        command
    }

    /// psql without its start-up file, unaligned, with these further arguments.
    ///
    /// # Errors
    /// Where psql cannot be started or does not end in time; not where it fails.
    pub async fn psql(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = self.command("psql");
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(arguments);
        run(command, CLIENT_DEADLINE).await
    }

    /// One command string through psql; what it prints, without the last newline.
    ///
    /// # Errors
    /// Where psql fails.
    pub async fn query(&self, sql: &str) -> Result<String> {
        let said = self
            .psql(&["-c", sql])
            .await?
            .success()
            .with_context(|| format!("psql -c {sql:?}"))?;
        Ok(said.out.trim_end_matches('\n').to_owned())
    }

    /// tokio-postgres without TLS.
    ///
    /// # Errors
    /// Where the login fails.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&self.address)
            .port(self.port)
            .user(&self.user)
            .password(&self.password);
        config.dbname(&self.database).connect_timeout(Duration::from_secs(20));
        if let Some((_, application)) = self.extra.iter().find(|(name, _)| name == "PGAPPNAME") {
            config.application_name(application);
        }
        crate::cluster::connect(&config).await
    }
}

/// PostgreSQL's own program where there is one of that name: Debian's psql is a Perl script that costs 40 ms a start.
#[must_use]
pub fn own_program(name: &std::ffi::OsStr) -> PathBuf {
    match crate::cluster::pg_bin() {
        Ok(bin) if bin.join(name).exists() => bin.join(name),
        _ => PathBuf::from(name),
    }
}

/// The Python with psycopg and asyncpg: `HOOP_PYTHON`, or the one that `./dev setup` made.
///
/// # Errors
/// Where there is none.
pub fn python() -> Result<PathBuf> {
    tool("HOOP_PYTHON", ".dev/venv/bin/python", "Python with psycopg and asyncpg")
}

/// The folder of Node's modules with `pg`: `HOOP_NODE_MODULES`, or the one that `./dev setup` made.
///
/// # Errors
/// Where there is none.
pub fn node_modules() -> Result<PathBuf> {
    tool("HOOP_NODE_MODULES", ".dev/node/node_modules", "Node's module pg")
}

fn tool(variable: &str, default: &str, what: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| checkout().join(default), PathBuf::from);
    if !path.exists() {
        bail!("{what} is not at {}: ./dev setup installs it", path.display());
    }
    Ok(path)
}

/// A program of `tests/rigs`.
#[must_use]
pub fn rig(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rigs").join(name)
}

/// Runs a Python program of `tests/rigs` with this login.
///
/// # Errors
/// Where Python is not set up or the program does not end in time.
pub async fn run_python(login: &Login, program: &str, arguments: &[&str]) -> Result<Said> {
    let mut command = login.command(python()?);
    command.arg(rig(program)).args(arguments);
    run(command, CLIENT_DEADLINE).await
}

/// Runs a Node program of `tests/rigs` with this login.
///
/// # Errors
/// Where Node's module is not set up or the program does not end in time.
pub async fn run_node(login: &Login, program: &str, arguments: &[&str]) -> Result<Said> {
    let mut command = login.command("node");
    command
        .env("HOOP_NODE_MODULES", node_modules()?)
        .arg(rig(program))
        .args(arguments);
    run(command, CLIENT_DEADLINE).await
}

/// Where Debian's libpostgresql-jdbc-java puts the driver.
const JDBC_JAR: &str = "/usr/share/java/postgresql.jar";

/// A Java with PostgreSQL's JDBC driver.
#[derive(Debug)]
pub struct Jdbc {
    jar: PathBuf,
}

impl Jdbc {
    /// `None` where javac or the driver is missing.
    #[must_use]
    pub fn find() -> Option<Self> {
        let jar = PathBuf::from(JDBC_JAR);
        let javac = Command::new("javac").arg("-version").output();
        (jar.exists() && javac.is_ok_and(|said| said.status.success())).then_some(Self { jar })
    }

    /// Compiles `tests/rigs/JdbcClient.java` into a folder; answers the class path.
    ///
    /// # Errors
    /// Where it does not compile.
    pub async fn compile(&self, folder: &Path) -> Result<String> {
        let mut command = Command::new("javac");
        command.arg("-cp").arg(&self.jar).arg("-d").arg(folder);
        command.arg(rig("JdbcClient.java"));
        run(command, CLIENT_DEADLINE).await?.success()?;
        Ok(format!("{}:{}", folder.display(), self.jar.display()))
    }

    /// Runs it with this login.
    #[must_use]
    pub fn command(&self, login: &Login, class_path: &str) -> Command {
        let mut command = login.command("java");
        command.args(["-cp", class_path, "JdbcClient"]);
        command
    }
}
