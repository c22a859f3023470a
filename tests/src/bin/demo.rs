//! What `./dev run` starts: a demo database, a gateway with its embedded store, an agent; then what to try.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use hoop_tests::clients::{Login, rig};
use hoop_tests::cluster::{Cluster, Make, as_unprivileged, free_port};
use hoop_tests::hoop::{Agent, Gateway, items};
use hoop_tests::http::Api;
use hoop_tests::process::{Said, eventually, run};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

const API: &str = "127.0.0.1:8009";
const LINK: &str = "127.0.0.1:8010";
const POSTGRES: &str = "127.0.0.1:15432";
/// Where the demo database is, unless somebody else is there.
const DEMO_PORT: u16 = 15_433;
const CONNECTION: &str = "demo";
const DATABASE: &str = "shop";
const ACCOUNT: &str = "shop";
const QUERY: &str = "SELECT id, name, email FROM customers ORDER BY id LIMIT 3";
const LINK_DEADLINE: Duration = Duration::from_secs(30);
/// The record is committed behind the session by this much at most.
const RECORD_DEADLINE: Duration = Duration::from_secs(15);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
struct Arguments {
    /// Where everything is kept.
    #[arg(long)]
    dev_dir: PathBuf,
    /// Runs one query, shows its record, verifies it, ends.
    #[arg(long)]
    once: bool,
    /// Forgets what earlier runs left.
    #[arg(long)]
    fresh: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hoop-demo: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<()> {
    let dev = fs::canonicalize(&arguments.dev_dir)?;
    for (name, address) in [("the API", API), ("agents", LINK), ("PostgreSQL", POSTGRES)] {
        require_free(name, address)?;
    }
    // From here on this is the one run of this folder.
    let _ = fs::remove_file(dev.join("env"));
    fs::write(dev.join("run.pid"), std::process::id().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = demo(arguments, &dev) => done,
            _ = interrupt.recv() => { println!("\nstopping"); Ok(()) }
            _ = terminate.recv() => { println!("stopping"); Ok(()) }
        }
    });
    for file in ["env", "run.pid"] {
        let _ = fs::remove_file(dev.join(file));
    }
    outcome
}

async fn demo(arguments: &Arguments, dev: &Path) -> Result<()> {
    let folder = folder(dev)?;
    if arguments.fresh {
        for part in ["demo", "gateway"] {
            let _ = fs::remove_dir_all(folder.join(part));
        }
    }
    fs::create_dir_all(&folder)?;

    println!("starting the demo database …");
    let port = if TcpListener::bind(("127.0.0.1", DEMO_PORT)).is_ok() {
        DEMO_PORT
    } else {
        free_port()?
    };
    let target = Cluster::open(
        &folder.join("demo"),
        Make {
            port,
            ..Make::default()
        },
    )
    .await?;
    let account_password = uuid::Uuid::new_v4().simple().to_string();
    fill(&target, &account_password).await?;

    println!("starting the gateway, its store and an agent …");
    let environment = [
        ("HOOP_STORE", "embedded"),
        ("HOOP_LISTEN_API", API),
        ("HOOP_LISTEN_LINK", LINK),
        ("HOOP_LISTEN_POSTGRES", POSTGRES),
        ("HOOP_API_TLS", "off"),
        ("HOOP_PUBLIC_HOST", "localhost"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    // In a session of its own: Ctrl-C in the terminal reaches this program, which then stops things in their order.
    let own_session = ["setsid".to_owned()];
    let gateway = Gateway::start(&folder.join("gateway"), environment.to_vec(), &own_session, "TERM")
        .await
        .context("./dev run --fresh forgets what earlier runs left in .dev")?;
    let agent = Agent::start(&gateway.ready.agent_key_file, &folder.join("agent.log"), Vec::new())?;

    let api = gateway.admin().await?;
    register(&api, port, &account_password).await?;
    let credential = api
        .post(&format!("/api/connections/{CONNECTION}/credentials"), json!({}))
        .await?;
    let text = |name: &str| {
        credential
            .get(name)
            .and_then(Value::as_str)
            .with_context(|| format!("no {name}"))
    };
    let (user, password) = (text("user")?, text("password")?);
    let ca = dev.join("ca.pem");
    fs::write(&ca, api.send("GET", "/api/ca.pem", None).await?.body)?;
    let mut login = Login::plain(gateway.ready.postgres_port(), user, password, DATABASE).sslmode("verify-full");
    login.ca_file.clone_from(&ca);
    // Before anything is said: a login must work. Its session is not the first query that is shown.
    eventually("a login through gateway and agent works", LINK_DEADLINE, async || {
        login.psql(&["-c", ""]).await?.success().map(Some)
    })
    .await?;
    let seen = sessions(&api).await?.len();

    let admin_password = fs::read_to_string(&gateway.ready.admin_password_file)?
        .trim()
        .to_owned();
    let pgpass = dev.join("pgpass");
    write_private(
        &pgpass,
        &format!("localhost:{}:*:{user}:{password}\n", gateway.ready.postgres_port()),
    )?;
    let psql = format!(
        "psql \"host=localhost port={} user={user} dbname={DATABASE} sslmode=verify-full sslrootcert={}\"",
        gateway.ready.postgres_port(),
        ca.display()
    );
    let lines = [
        ("HOOP_API", gateway.ready.api.as_str()),
        ("HOOP_ADMIN_USER", &gateway.ready.admin_user),
        ("HOOP_ADMIN_PASSWORD", &admin_password),
        ("PGPASSFILE", &pgpass.display().to_string()),
        ("HOOP_DEMO_PSQL", &psql),
    ];
    let lines: String = lines
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        .collect();
    write_private(&dev.join("env"), &lines)?;

    println!("\nready");
    println!(
        "  API          {}  (POST /api/login; /api/openapi.json describes it)",
        gateway.ready.api
    );
    println!(
        "  admin        {}, password in {}",
        gateway.ready.admin_user,
        gateway.ready.admin_password_file.display()
    );
    println!("  agents       {}", gateway.ready.link);
    println!("  PostgreSQL   {}", gateway.ready.postgres);
    println!("  logs         {}", folder.display());
    println!(
        "\ntry\n  export PGPASSFILE={}\n  {psql} -c '{QUERY}'\n",
        pgpass.display()
    );

    if arguments.once {
        once(&gateway, &api, &login, seen).await?;
        drop(agent);
        return Ok(());
    }
    println!("waiting for the first query; its record will be shown here. Ctrl-C ends everything.");
    let session = loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let now = sessions(&api).await?;
        if let Some(session) = now.len().checked_sub(seen + 1).and_then(|at| now.get(at))
            && let Some(id) = session.get("id").and_then(Value::as_str)
            && events(&api, id).await?.iter().any(|event| kind(event) == "outcome")
        {
            break id.to_owned();
        }
    };
    show(&session, &events(&api, &session).await?);
    std::future::pending::<()>().await;
    Ok(())
}

/// One query through psql, its record, the proof of the record.
async fn once(gateway: &Gateway, api: &Api, login: &Login, seen: usize) -> Result<()> {
    println!("$ psql -c '{QUERY}'");
    let mut command = login.command("psql");
    command.args(["-X", "-c", QUERY]);
    let said = run(command, Duration::from_secs(60)).await?.success()?;
    println!("{}", said.out);
    let session = eventually("the session is recorded to its end", RECORD_DEADLINE, async || {
        let now = sessions(api).await?;
        let newest = now.first().filter(|_| now.len() > seen);
        let Some(id) = newest.and_then(|session| session.get("id")).and_then(Value::as_str) else {
            return Ok(None);
        };
        let ended = events(api, id).await?.iter().any(|event| kind(event) == "ended");
        Ok(ended.then(|| id.to_owned()))
    })
    .await?;
    show(&session, &events(api, &session).await?);
    let root = gateway.ready.root_key.as_str();
    println!("\n$ hoop-gateway verify --root {root} --session {session}");
    let said = gateway.tool(&["verify", "--root", root, "--session", &session]).await?;
    println!("{}", said.out);
    said.success().context("the record does not verify")?;
    Ok(())
}

async fn sessions(api: &Api) -> Result<Vec<Value>> {
    items(api, &format!("/api/sessions?connection={CONNECTION}")).await
}

async fn events(api: &Api, session: &str) -> Result<Vec<Value>> {
    items(api, &format!("/api/sessions/{session}/events")).await
}

fn kind(event: &Value) -> &str {
    event.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn show(session: &str, events: &[Value]) {
    println!("recorded events of session {session}:");
    for event in events {
        let text = |name: &str| match event.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        let says = match kind(event) {
            "started" => format!(
                "{} on {} as {} from {}, {}",
                text("user"),
                text("connection"),
                text("credential"),
                text("client_address"),
                text("application")
            ),
            "attempt" | "prepared" => format!("#{} {}", text("statement"), text("text")),
            "output" | "input" => text("text").trim_end().replace('\n', " · ").replace('\t', " | "),
            "outcome" => format!(
                "#{} {} {} in {} µs",
                text("statement"),
                text("status"),
                text("tag"),
                text("duration_us")
            ),
            "ended" => format!("{} {}", text("code"), text("message")),
            _ => event.to_string(),
        };
        println!(
            "  {:>3} {:>10} µs  {:<8} {says}",
            text("seq"),
            text("offset_us"),
            kind(event)
        );
    }
}

/// Makes the connection, or brings it up to date.
async fn register(api: &Api, port: u16, password: &str) -> Result<()> {
    let body = json!({
        "name": CONNECTION, "protocol": "postgres", "agents": ["default"], "host": "127.0.0.1", "port": port,
        "user": ACCOUNT, "secret": {"value": password}, "tls": "disable", "default_database": DATABASE,
        "databases": [DATABASE], "description": "The demo of ./dev run: a shop with made-up personal data",
    });
    let path = format!("/api/connections/{CONNECTION}");
    let there = api.send("GET", &path, None).await?.status == 200;
    if there {
        api.put(&path, body).await?
    } else {
        api.post("/api/connections", body).await?
    };
    Ok(())
}

/// The demo's account gets a new password at each start; its data is loaded once.
async fn fill(target: &Cluster, password: &str) -> Result<()> {
    let superuser = target.superuser("postgres").await?;
    if superuser
        .query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&ACCOUNT])
        .await?
        .is_none()
    {
        superuser.batch_execute(&format!("CREATE ROLE {ACCOUNT} LOGIN")).await?;
        superuser
            .batch_execute(&format!("CREATE DATABASE {DATABASE} OWNER {ACCOUNT}"))
            .await?;
    }
    target.set_password(ACCOUNT, password, "scram-sha-256").await?;
    let login = Login::plain(target.port, ACCOUNT, password, DATABASE);
    if login.query("SELECT to_regclass('payments') IS NULL").await? == "t" {
        let sql = rig("demo.sql").display().to_string();
        login
            .psql(&["-1", "-f", &sql])
            .await?
            .success()
            .context("loading the demo's data")?;
    }
    Ok(())
}

/// `dev` itself, or, where this runs as root below a folder that the servers' user cannot enter, one in /var/tmp.
fn folder(dev: &Path) -> Result<PathBuf> {
    let enter = as_unprivileged("sh")?
        .arg("-c")
        .arg("cd \"$1\"")
        .arg("sh")
        .arg(dev)
        .output()?;
    if enter.status.success() {
        return Ok(dev.to_path_buf());
    }
    let name: String = dev
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let other = PathBuf::from(format!("/var/tmp/hoop{name}"));
    println!(
        "the servers' user cannot enter {}; data goes to {}",
        dev.display(),
        other.display()
    );
    Ok(other)
}

fn require_free(what: &str, address: &str) -> Result<()> {
    let Err(why) = TcpListener::bind(address) else {
        return Ok(());
    };
    let port = address.rsplit(':').next().unwrap_or_default();
    let by = Command::new("ss")
        .args(["-Hltnp", &format!("sport = :{port}")])
        .output()
        .map(Said::from);
    let by = by
        .map(|said| said.out.split("users:").nth(1).unwrap_or_default().trim().to_owned())
        .unwrap_or_default();
    let by = if by.is_empty() {
        "a process that ss does not name".to_owned()
    } else {
        by
    };
    bail!("{address}, the port for {what}, is taken by {by} ({why}); stop it (./dev stop, if it is an earlier run)");
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&part, path).with_context(|| path.display().to_string())
}
