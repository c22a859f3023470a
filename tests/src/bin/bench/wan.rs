//! The same transfer with a delay between the two hops: the near hop and its client live in a network namespace, netem
//! delays what passes between it and the far hop. Needs root and a kernel that allows both; said where it cannot be.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hoop_tests::clients::Login;
use hoop_tests::cluster::{APP, free_port};
use hoop_tests::hoop::{Agent, Hoop, Options, StoreKind};
use hoop_tests::process::{Process, Said, eventually};
use hoop_tests::tcp::LongLine;
use serde_json::json;

use crate::Arguments;
use crate::cases::copy_out;
use crate::lanes::{Lane, Lanes, spawn_relay, start_relay};
use crate::report::Row;

const NEAR: &str = "10.213.77.2";
const FAR: &str = "10.213.77.1";
/// Of each direction: 50 ms a round trip.
const DELAY: &str = "25ms";
/// What netem may hold: a gigabit for a second.
const NETEM_PACKETS: &str = "100000";
/// The same, where the delay is made in user space.
const LINE_DELAY: Duration = Duration::from_millis(25);
const BYTES_A_MEGABYTE: f64 = 1_000_000.0;
/// A listener in the namespace cannot be asked for a free port from outside.
const NEAR_RELAY_PORT: u16 = 15_500;

/// A network namespace, removed when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Result<Self> {
        let own = Self(format!("hoop{}", std::process::id()));
        let name = own.0.as_str();
        for line in [
            format!("netns add {name}"),
            format!("link add {name}f type veth peer name {name}n netns {name}"),
            format!("addr add {FAR}/30 dev {name}f"),
            format!("link set {name}f up"),
            format!("-n {name} addr add {NEAR}/30 dev {name}n"),
            format!("-n {name} link set {name}n up"),
            format!("-n {name} link set lo up"),
        ] {
            succeed(Command::new("ip").args(line.split(' '))).with_context(|| format!("ip {line}"))?;
        }
        let netem = ["root", "netem", "delay", DELAY, "limit", NETEM_PACKETS];
        let (far, near) = (format!("{name}f"), format!("{name}n"));
        succeed(Command::new("tc").args(["qdisc", "add", "dev", &far]).args(netem)).context("tc netem")?;
        succeed(
            Command::new("tc")
                .args(["-n", name, "qdisc", "add", "dev", &near])
                .args(netem),
        )
        .context("tc netem")?;
        Ok(own)
    }

    fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.0].map(str::to_owned).to_vec()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The veth pair goes with it.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let said = Said::from(command.output()?);
    if !said.ok {
        bail!("{}", said.err.trim());
    }
    Ok(())
}

/// Measures the case, or says in the row why it could not.
///
/// # Errors
/// Where a run fails.
pub async fn run(lanes: &Lanes, arguments: &Arguments, rate: Option<u64>, row: &mut Row) -> Result<()> {
    if rate.is_some() {
        return long_lines(lanes, arguments, rate, row).await;
    }
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => {
            row.note =
                format!("no netem here ({why:#}): a long line in user space, so TCP's own windows are not tested")
                    .replace('\n', " ");
            return long_lines(lanes, arguments, None, row).await;
        }
    };
    let prefix = namespace.prefix();
    let target = lanes.target()?;
    let through = |login: Login| Login {
        prefix: prefix.clone(),
        ..login
    };
    let direct = through(Login {
        address: FAR.to_owned(),
        ..lanes.login(Lane::Direct, false, "")?
    });
    // relay2: the near relay in the namespace, the far one here, the delay between them.
    let far_port = free_port()?;
    let far = SocketAddr::new(FAR.parse()?, far_port);
    let _far = spawn_relay(
        lanes.folder(),
        3,
        far,
        SocketAddr::from(([127, 0, 0, 1], target.port)),
        &[],
        None,
    )?;
    let near = SocketAddr::from(([127, 0, 0, 1], NEAR_RELAY_PORT));
    let _near = spawn_relay(lanes.folder(), 4, near, far, &prefix, None)?;
    let relay2 = through(lanes.login(Lane::Direct, false, "")?.port(NEAR_RELAY_PORT));
    let mut ways = vec![(Lane::Direct, direct), (Lane::Relay2, relay2)];
    let installation = match &lanes.hoop {
        Some(hoop) => Some(start_hoop(hoop, &namespace).await?),
        None => None,
    };
    if let Some((_, login)) = &installation {
        ways.push((Lane::Hoop, through(login.clone())));
    }
    transfer(lanes, arguments, row, &ways).await
}

/// The delay made in user space, between the hops of each lane, and a line that carries `rate` bytes a second.
async fn long_lines(lanes: &Lanes, arguments: &Arguments, rate: Option<u64>, row: &mut Row) -> Result<()> {
    let long = LongLine {
        delay: LINE_DELAY,
        bytes_per_second: rate,
    };
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let line = |number: usize, to: u16| -> Result<(Process, u16)> {
        let port = free_port()?;
        Ok((
            spawn_relay(lanes.folder(), number, local(port), local(to), &[], Some(long))?,
            port,
        ))
    };
    let target = lanes.target()?;
    let plain = lanes.login(Lane::Direct, false, "")?;
    let (_direct_line, direct_port) = line(5, target.port)?;
    let (_far, far_port) = start_relay(lanes.folder(), 6, target.port, &[]).await?;
    let (_relay_line, relay_line_port) = line(7, far_port)?;
    let (_near, near_port) = start_relay(lanes.folder(), 8, relay_line_port, &[]).await?;
    let mut ways = vec![
        (Lane::Direct, plain.port(direct_port)),
        (Lane::Relay2, plain.port(near_port)),
    ];
    let mut kept = Vec::new();
    if let Some(hoop) = &lanes.hoop {
        // An agent of its own whose way to the gateway is the long line.
        let link = hoop.gateway()?.ready.link.clone();
        let (_, link_port) = link.rsplit_once(':').context("the link's port")?;
        let (process, line_port) = line(9, link_port.parse()?)?;
        let registered = hoop.api.post("/api/agents", json!({"name": "far"})).await?;
        let key = registered
            .get("key")
            .and_then(serde_json::Value::as_str)
            .context("no key")?;
        let file = lanes.folder().join("far-key");
        std::fs::write(&file, key.replace(&format!(":{link_port}?"), &format!(":{line_port}?")))?;
        let agent = Agent::start(&file, &lanes.folder().join("far-agent.log"), Vec::new())?;
        hoop.connection("far", json!({"agents": ["far"]})).await?;
        let login = hoop
            .login(&hoop.credential("far").await?)?
            .sslmode("disable")
            .database(APP);
        ways.push((Lane::Hoop, login));
        kept.push((process, agent));
    }
    transfer(lanes, arguments, row, &ways).await
}

async fn transfer(lanes: &Lanes, arguments: &Arguments, row: &mut Row, ways: &[(Lane, Login)]) -> Result<()> {
    for (_, login) in ways {
        eventually("a login over the delay", Duration::from_secs(30), async || {
            login.query("select 1").await.map(Some)
        })
        .await?;
    }
    for _ in 0..arguments.rounds.max(1) {
        for (lane, login) in ways {
            row.add(*lane, lanes.wide_bytes / BYTES_A_MEGABYTE / copy_out(login).await?);
        }
    }
    Ok(())
}

/// A gateway in the namespace with a store of its own, an agent outside, before the benchmark's target.
async fn start_hoop(hoop: &Hoop, namespace: &Namespace) -> Result<(Hoop, Login)> {
    let listen = |port: u16| format!("{NEAR}:{port}");
    let environment = [
        ("HOOP_LISTEN_API", listen(18_009)),
        ("HOOP_LISTEN_LINK", listen(18_010)),
        ("HOOP_LISTEN_POSTGRES", "127.0.0.1:15432".to_owned()),
        ("HOOP_PUBLIC_HOST", NEAR.to_owned()),
    ];
    let options = Options {
        store: StoreKind::Embedded,
        gateway_prefix: namespace.prefix(),
        gateway_env: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        agents: 1,
        first_login: false,
        ..Options::default()
    };
    let wan = Hoop::with(options).await?;
    let over = json!({"port": hoop.target.port, "secret": {"value": hoop.target_password}});
    wan.connection("wan", over).await?;
    let login = wan
        .login(&wan.credential("wan").await?)?
        .sslmode("disable")
        .database(APP);
    Ok((wan, login))
}
