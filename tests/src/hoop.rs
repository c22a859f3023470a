//! Hoop itself under test: gateways and agents as processes on ports of their own, with a target and a store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::binaries;
use crate::clients::Login;
use crate::cluster::{APP, Cluster, Make, STORE, scratch};
use crate::http::Api;
use crate::process::{Process, Said, eventually, is_root, run};

/// The first start makes an embedded store and all keys.
const START_DEADLINE: Duration = Duration::from_secs(60);
const LINK_DEADLINE: Duration = Duration::from_secs(20);
/// How long `verify`, `export` and their like may take.
const TOOL_DEADLINE: Duration = Duration::from_secs(300);
/// Items of a page, at most what the API gives.
const PAGE_ITEMS: usize = 200;
/// Of a gateway, in its data folder.
const CONFIG_FILE: &str = "gateway.toml";
/// The connection that every harness begins with.
pub const CONNECTION: &str = "app";

/// Where the gateways keep what they know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// A database of the target's own cluster: the quickest.
    #[default]
    BesideTarget,
    /// A cluster of its own, which a test can stop.
    Own,
    /// The gateway's own child.
    Embedded,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    pub store: StoreKind,
    pub replicas: usize,
    pub agents: usize,
    pub gateway_env: Vec<(String, String)>,
    /// The gateways' configuration file; empty: none.
    pub gateway_config: String,
    pub agent_env: Vec<(String, String)>,
    /// Words before the gateway's program, e.g. `ip netns exec NAME`.
    pub gateway_prefix: Vec<String>,
    pub target: Make,
    /// Whether to wait until a login works (from this process's own network).
    pub first_login: bool,
    /// Of a store of its own.
    pub store_make: Make,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: StoreKind::default(),
            replicas: 1,
            agents: 1,
            gateway_env: Vec::new(),
            gateway_config: String::new(),
            agent_env: Vec::new(),
            gateway_prefix: Vec::new(),
            target: Make::default(),
            first_login: true,
            store_make: Make::default(),
        }
    }
}

/// What a gateway says of itself once every listener is bound.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Ready {
    pub api: String,
    pub link: String,
    pub postgres: String,
    #[serde(default)]
    pub metrics: Option<String>,
    pub root_key: String,
    pub admin_user: String,
    pub admin_password_file: PathBuf,
    pub agent_key_file: PathBuf,
    pub replica: String,
    pub pid: u32,
}

impl Ready {
    /// The port of its PostgreSQL listener.
    #[must_use]
    pub fn postgres_port(&self) -> u16 {
        port_of(&self.postgres)
    }
}

fn port_of(address: &str) -> u16 {
    address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .unwrap_or_default()
}

/// A gateway as a process.
#[derive(Debug)]
pub struct Gateway {
    pub process: Process,
    pub ready: Ready,
    pub dir: PathBuf,
    environment: Vec<(String, String)>,
    prefix: Vec<String>,
    stop_signal: &'static str,
}

impl Gateway {
    /// Starts one whose data is in `dir`, with the configuration file there if there is one, and waits for its
    /// `ready.json`.
    ///
    /// # Errors
    /// Where it does not become ready.
    pub async fn start(
        dir: &Path,
        environment: Vec<(String, String)>,
        prefix: &[String],
        stop_signal: &'static str,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let ready_file = dir.join("ready.json");
        let _ = fs::remove_file(&ready_file);
        let program = binaries::gateway()?;
        let mut command = match prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("serve");
        let file = dir.join(CONFIG_FILE);
        if file.is_file() {
            command.arg("-c").arg(file);
        }
        clean(&mut command);
        command.env("HOOP_DATA_DIR", dir).envs(environment.iter().cloned());
        let mut process = Process::spawn("hoop-gateway", command, &dir.join("log"), stop_signal)?;
        let ready = process
            .until("ready", START_DEADLINE, async || {
                serde_json::from_slice(&fs::read(&ready_file).ok()?).ok()
            })
            .await?;
        Ok(Self {
            process,
            ready,
            dir: dir.to_path_buf(),
            environment,
            prefix: prefix.to_vec(),
            stop_signal,
        })
    }

    /// Starts it again, after it ended, on the same folder and the same ports.
    ///
    /// # Errors
    /// Where it does not become ready.
    pub async fn start_again(&mut self) -> Result<()> {
        let fixed = [
            ("HOOP_LISTEN_API", self.ready.api.trim_start_matches("http://")),
            ("HOOP_LISTEN_LINK", &self.ready.link),
            ("HOOP_LISTEN_POSTGRES", &self.ready.postgres),
        ];
        let mut environment = self.environment.clone();
        environment.retain(|(name, _)| !fixed.iter().any(|(fixed, _)| fixed == name));
        environment.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
        *self = Self::start(&self.dir.clone(), environment, &self.prefix.clone(), self.stop_signal).await?;
        Ok(())
    }

    /// Leaves a variable out of the next start.
    pub fn forget(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// Runs another command of the gateway's binary with this gateway's configuration.
    ///
    /// # Errors
    /// Where it cannot be started or does not end in time; not where it fails.
    pub async fn tool(&self, arguments: &[&str]) -> Result<Said> {
        self.tool_with(&[], arguments).await
    }

    /// The same with other values in the environment.
    ///
    /// # Errors
    /// Where it cannot be started or does not end in time; not where it fails.
    pub async fn tool_with(&self, over: &[(&str, &str)], arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(binaries::gateway()?);
        clean(&mut command);
        command
            .env("HOOP_DATA_DIR", &self.dir)
            .envs(self.environment.iter().cloned());
        command.envs(over.iter().copied()).args(arguments);
        run(command, TOOL_DEADLINE).await
    }

    /// Signs in as the first administrator.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn admin(&self) -> Result<Api> {
        let password = fs::read_to_string(&self.ready.admin_password_file)
            .with_context(|| self.ready.admin_password_file.display().to_string())?;
        Api::login(&self.ready.api, &self.ready.admin_user, password.trim()).await
    }
}

/// The developer's own settings must not reach what is tested. Who is not root may look into what forbids no cores alone,
/// and tests count open files.
fn clean(command: &mut Command) {
    if !is_root() {
        command.env("HOOP_ALLOW_CORES", "1");
    }
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("HOOP_") && text != "HOOP_PG_BIN") || text.starts_with("PG") || text == "DATABASE_URL" {
            command.env_remove(&name);
        }
    }
}

/// An agent as a process.
#[derive(Debug)]
pub struct Agent {
    pub process: Process,
    key_file: PathBuf,
    log: PathBuf,
    environment: Vec<(String, String)>,
}

impl Agent {
    /// # Errors
    /// Where it cannot be started.
    pub fn start(key_file: &Path, log: &Path, environment: Vec<(String, String)>) -> Result<Self> {
        let mut command = Command::new(binaries::agent()?);
        clean(&mut command);
        command.env("HOOP_KEY_FILE", key_file).envs(environment.iter().cloned());
        let process = Process::spawn("hoop-agent", command, log, "TERM")?;
        Ok(Self {
            process,
            key_file: key_file.to_path_buf(),
            log: log.to_path_buf(),
            environment,
        })
    }

    /// # Errors
    /// Where it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        *self = Self::start(&self.key_file, &self.log, self.environment.clone())?;
        Ok(())
    }
}

/// What `POST /api/connections/{name}/credentials` answered.
#[derive(Debug, Clone)]
pub struct Credential {
    pub user: String,
    pub password: String,
    pub answer: Value,
}

/// A whole installation. Dropping it stops everything, gateways first.
#[derive(Debug)]
pub struct Hoop {
    pub gateways: Vec<Gateway>,
    pub agents: Vec<Agent>,
    pub store: Option<Cluster>,
    pub target: Cluster,
    /// The administrator, at the first gateway.
    pub api: Api,
    pub target_password: String,
    pub ca_file: PathBuf,
    pub scratch: tempfile::TempDir,
    options: Options,
}

impl Hoop {
    /// One gateway, one agent, a target, connection `app`.
    ///
    /// # Errors
    /// Where any part does not become ready.
    pub async fn start() -> Result<Self> {
        Self::with(Options::default()).await
    }

    /// # Errors
    /// Where any part does not become ready.
    pub async fn with(options: Options) -> Result<Self> {
        let scratch = scratch()?;
        let target = Cluster::start(&scratch.path().join("target"), options.target.clone()).await?;
        let target_password = format!("target-secret-{}", uuid::Uuid::new_v4().simple());
        target.set_password(APP, &target_password, "scram-sha-256").await?;
        Self::around(scratch, target, target_password, options).await
    }

    /// Hoop before a target that runs already and whose `app` has this password.
    ///
    /// # Errors
    /// Where any part does not become ready.
    pub async fn around(
        scratch: tempfile::TempDir,
        target: Cluster,
        target_password: String,
        options: Options,
    ) -> Result<Self> {
        let store = match options.store {
            StoreKind::Own => Some(Cluster::start(&scratch.path().join("store"), options.store_make.clone()).await?),
            StoreKind::BesideTarget | StoreKind::Embedded => None,
        };
        let mut environment: Vec<(String, String)> = [
            ("HOOP_LISTEN_API", "127.0.0.1:0"),
            ("HOOP_LISTEN_LINK", "127.0.0.1:0"),
            ("HOOP_LISTEN_POSTGRES", "127.0.0.1:0"),
            ("HOOP_API_TLS", "off"),
            ("HOOP_PUBLIC_HOST", "localhost"),
            (
                "HOOP_MASTER_KEY_FILE",
                &scratch.path().join("master.key").display().to_string(),
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let mut stop_signal = "KILL";
        environment.push(match options.store {
            StoreKind::Embedded => {
                // Its child must not be left behind.
                stop_signal = "TERM";
                ("HOOP_STORE".to_owned(), "embedded".to_owned())
            }
            StoreKind::BesideTarget => ("DATABASE_URL".to_owned(), target.url(STORE)),
            StoreKind::Own => (
                "DATABASE_URL".to_owned(),
                store.as_ref().context("own store")?.url(STORE),
            ),
        });
        environment.extend(options.gateway_env.iter().cloned());
        let mut gateways = Vec::new();
        for number in 1..=options.replicas {
            let dir = scratch.path().join(format!("gateway-{number}"));
            if !options.gateway_config.is_empty() {
                fs::create_dir_all(&dir)?;
                fs::write(dir.join(CONFIG_FILE), &options.gateway_config)?;
            }
            gateways.push(Gateway::start(&dir, environment.clone(), &options.gateway_prefix, stop_signal).await?);
        }
        let first = gateways.first().context("no gateway")?;
        let api = first.admin().await?;
        let ca = api.send("GET", "/api/ca.pem", None).await?;
        let ca_file = scratch.path().join("ca.pem");
        fs::write(&ca_file, &ca.body)?;
        let mut agents = Vec::new();
        for number in 1..=options.agents {
            let log = scratch.path().join(format!("agent-{number}.log"));
            agents.push(Agent::start(
                &first.ready.agent_key_file,
                &log,
                options.agent_env.clone(),
            )?);
        }
        let hoop = Self {
            gateways,
            agents,
            store,
            target,
            api,
            target_password,
            ca_file,
            scratch,
            options,
        };
        hoop.connection(CONNECTION, json!({})).await?;
        if hoop.options.agents > 0 && hoop.options.first_login {
            hoop.wait_for_agent().await?;
        }
        Ok(hoop)
    }

    /// Waits until a login through the first gateway works.
    ///
    /// # Errors
    /// Where it does not within 20 s.
    pub async fn wait_for_agent(&self) -> Result<()> {
        let login = self.login(&self.credential(CONNECTION).await?)?.sslmode("disable");
        eventually("the agent serves a login", LINK_DEADLINE, async || {
            login.connect().await.map(|_| Some(()))
        })
        .await
    }

    /// Makes a connection to the target; `over` replaces or adds members of the request.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn connection(&self, name: &str, over: Value) -> Result<Value> {
        let mut body = json!({
            "name": name,
            "protocol": "postgres",
            "agents": ["default"],
            "host": "127.0.0.1",
            "port": self.target.port,
            "user": APP,
            "secret": {"value": self.target_password},
            "tls": "disable",
            "default_database": APP,
            "databases": [APP],
        });
        if let (Some(body), Value::Object(over)) = (body.as_object_mut(), over) {
            body.extend(over);
        }
        self.api.post("/api/connections", body).await
    }

    /// Makes a credential for the administrator.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn credential(&self, connection: &str) -> Result<Credential> {
        self.credential_for(connection, json!({})).await
    }

    /// # Errors
    /// Where the gateway refuses.
    pub async fn credential_for(&self, connection: &str, body: Value) -> Result<Credential> {
        let answer = self
            .api
            .post(&format!("/api/connections/{connection}/credentials"), body)
            .await?;
        let text = |name: &str| -> Result<String> {
            Ok(answer
                .get(name)
                .and_then(Value::as_str)
                .with_context(|| format!("no {name} in {answer}"))?
                .to_owned())
        };
        Ok(Credential {
            user: text("user")?,
            password: text("password")?,
            answer,
        })
    }

    /// A credential's login at the first gateway: verify-full, the connection's default database.
    ///
    /// # Errors
    /// Where there is no gateway.
    pub fn login(&self, credential: &Credential) -> Result<Login> {
        self.login_at(0, credential)
    }

    /// # Errors
    /// Where there is no such gateway.
    pub fn login_at(&self, gateway: usize, credential: &Credential) -> Result<Login> {
        let gateway = self.gateways.get(gateway).context("no such gateway")?;
        let mut login = Login::plain(
            gateway.ready.postgres_port(),
            &credential.user,
            &credential.password,
            &credential.user,
        );
        login.sslmode = "verify-full".to_owned();
        login.ca_file.clone_from(&self.ca_file);
        Ok(login)
    }

    /// A new credential for connection `app`, as a login at the first gateway.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn person(&self) -> Result<Login> {
        self.login(&self.credential(CONNECTION).await?)
    }

    /// The process ids of gateways and agents.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        let gateways = self.gateways.iter().map(|gateway| gateway.process.pid());
        gateways.chain(self.agents.iter().map(|agent| agent.process.pid()))
    }

    /// # Errors
    /// Where there is no gateway.
    pub fn gateway(&self) -> Result<&Gateway> {
        self.gateways.first().context("no gateway")
    }

    /// # Errors
    /// Where there is no gateway.
    pub fn gateway_mut(&mut self) -> Result<&mut Gateway> {
        self.gateways.first_mut().context("no gateway")
    }

    /// # Errors
    /// Where there is no agent.
    pub fn agent_mut(&mut self) -> Result<&mut Agent> {
        self.agents.first_mut().context("no agent")
    }

    /// Starts one more agent, which dials this port of 127.0.0.1 and no other.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn agent_through(&mut self, port: u16) -> Result<()> {
        let number = self.agents.len() + 1;
        let gateway = self.gateway()?;
        let key = fs::read_to_string(&gateway.ready.agent_key_file)?;
        let (_, old) = gateway.ready.link.rsplit_once(':').context("port")?;
        let file = self.scratch.path().join(format!("balanced-key-{number}"));
        fs::write(&file, key.replace(&format!(":{old}?"), &format!(":{port}?")))?;
        let log = self.scratch.path().join(format!("balanced-{number}.log"));
        self.agents
            .push(Agent::start(&file, &log, self.options.agent_env.clone())?);
        Ok(())
    }

    /// All sessions, newest first.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn sessions(&self) -> Result<Vec<Value>> {
        items(&self.api, "/api/sessions").await
    }

    /// A session's events.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn events(&self, session: &str) -> Result<Vec<Value>> {
        items(&self.api, &format!("/api/sessions/{session}/events")).await
    }

    /// `hoop-gateway verify --root KEY` with these further arguments.
    ///
    /// # Errors
    /// Where it cannot be run; not where it finds something.
    pub async fn verify(&self, arguments: &[&str]) -> Result<Said> {
        let gateway = self.gateway()?;
        let mut all = vec!["verify", "--root", gateway.ready.root_key.as_str()];
        all.extend(arguments);
        gateway.tool(&all).await
    }

    /// Every recorded event, decrypted, as `hoop-gateway events --all` prints them.
    ///
    /// # Errors
    /// Where it fails.
    pub async fn all_events(&self) -> Result<Vec<Value>> {
        self.printed(&["events", "--all"]).await
    }

    async fn printed(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let said = self.gateway()?.tool(arguments).await?.success()?;
        said.out
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// Writes an export, checks it with `verify`, and reads every event from it: what is shown is what was verified.
    ///
    /// # Errors
    /// Where anything fails, and where `verify` finds anything.
    pub async fn verified_events(&self, file: &Path) -> Result<Vec<Value>> {
        let file = file.display().to_string();
        self.gateway()?.tool(&["export", "--out", &file]).await?.success()?;
        self.verify(&["--all", "--from", &file]).await?.success()?;
        self.printed(&["events", "--all", "--from", &file]).await
    }

    /// The store's cluster, for a test that reads or changes its rows.
    #[must_use]
    pub fn store_cluster(&self) -> &Cluster {
        self.store.as_ref().unwrap_or(&self.target)
    }
}

/// All items of a list, page after page.
///
/// # Errors
/// Where the gateway refuses.
pub async fn items(api: &Api, path: &str) -> Result<Vec<Value>> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let first = format!("{path}{separator}limit={PAGE_ITEMS}");
    let mut next = first.clone();
    let mut all = Vec::new();
    loop {
        let mut page = api.get(&next).await?;
        match page.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => all.extend(items),
            _ => anyhow::bail!("{path}: no items in {page}"),
        }
        match page.get("next").and_then(Value::as_str) {
            Some(cursor) => next = format!("{first}&cursor={cursor}"),
            None => return Ok(all),
        }
    }
}
