//! Nothing that the target received is missing from the verified record, whatever is killed. The oracle is the target's
//! own log (`log_statement = all`) with a unique comment in each statement.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::full_only;
use hoop_tests::hoop::{Gateway, Hoop, Options, StoreKind};
use hoop_tests::process::{POLL_INTERVAL, eventually};
use hoop_tests::record::text;
use hoop_tests::tcp::Balancer;

use super::psql::await_active;
use super::replicas::both;

const MARK: &str = "oracle:";
const BACK_DEADLINE: Duration = Duration::from_secs(5);
/// Until all journals are replayed and all clients have given up.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// Clients that send marked statements until told to stop, reconnecting for ever.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn start(logins: &[Login], clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..clients)
            .filter_map(|number| {
                logins
                    .get(number % logins.len().max(1))
                    .cloned()
                    .map(|login| (number, login))
            })
            .map(|(number, login)| tokio::spawn(client(number, login, Arc::clone(&stop))))
            .collect();
        Self { stop, tasks }
    }

    /// Stops all clients; how many statements were answered.
    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for task in self.tasks {
            answered += task.await?;
        }
        Ok(answered)
    }
}

async fn client(number: usize, login: Login, stop: Arc<AtomicBool>) -> u64 {
    let login = login.sslmode("disable");
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(connection) = login.connect().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let mark = uuid::Uuid::new_v4().simple().to_string();
            let done = if number.is_multiple_of(2) {
                connection
                    .simple_query(&format!("select 1 /*{MARK}{mark}*/"))
                    .await
                    .map(drop)
            } else {
                connection
                    .query(&format!("select $1::int /*{MARK}{mark}*/"), &[&1_i32])
                    .await
                    .map(drop)
            };
            if done.is_err() {
                break;
            }
            answered += 1;
        }
    }
    answered
}

/// Every mark in a text.
fn marks(text: &str) -> BTreeSet<String> {
    text.split(MARK)
        .skip(1)
        .filter_map(|rest| rest.get(..32).map(str::to_owned))
        .collect()
}

/// Compares what the target received with an export that `verify --all` accepts.
async fn compare(hoop: &Hoop) -> Result<()> {
    let received = marks(&hoop.target.log());
    ensure!(!received.is_empty(), "the target received nothing");
    let export = hoop.scratch.path().join("export");
    eventually(
        "the record holds all that the target received",
        SETTLE_DEADLINE,
        async || {
            let events = hoop.verified_events(&export).await?;
            let attempts = events.iter().filter(|event| text(event, "kind") == "attempt");
            let recorded: BTreeSet<String> = attempts.flat_map(|attempt| marks(&text(attempt, "text"))).collect();
            let missing: Vec<_> = received.difference(&recorded).collect();
            ensure!(
                missing.is_empty(),
                "the target received {}, the record holds {}, missing are {}, the first {:?}",
                received.len(),
                recorded.len(),
                missing.len(),
                missing.first()
            );
            Ok(Some(()))
        },
    )
    .await
}

/// Logins work within 5 s from `since` on, a login that hangs included.
async fn logins_work(what: &str, login: &Login, since: Instant) -> Result<()> {
    let login = login.sslmode("disable");
    let mut last = None;
    let works = async {
        loop {
            let attempt = async {
                let client = login.connect().await?;
                client.simple_query("select 1").await?;
                anyhow::Ok(())
            };
            match attempt.await {
                Ok(()) => return,
                Err(why) => last = Some(why),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let left = BACK_DEADLINE.saturating_sub(since.elapsed());
    let worked = tokio::time::timeout(left, works).await;
    worked.with_context(|| format!("{what}: no login worked within {BACK_DEADLINE:?}; the last said {last:?}"))
}

#[tokio::test]
async fn a_gateway_killed_under_load_loses_nothing_that_the_target_received() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    let login = hoop.person().await?;
    let load = Load::start(std::slice::from_ref(&login), 6);
    tokio::time::sleep(Duration::from_secs(2)).await;
    hoop.gateway_mut()?.process.kill_hard()?;
    hoop.gateway_mut()?.start_again().await?;
    logins_work(
        "after a kill of the only gateway, from its port's return on",
        &login,
        Instant::now(),
    )
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(load.stop().await? > 20, "too few statements to prove anything");
    compare(&hoop).await
}

/// Longest wait for a fault point under load.
const FAULT_DEADLINE: Duration = Duration::from_secs(60);

/// The gateway ends itself, as `kill -9` would, when it reaches `point` for the `hit`-th time under load.
async fn killed_at(point: &str, hit: u32) -> Result<()> {
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        gateway_env: vec![("HOOP_FAULT".into(), format!("{point}:{hit}"))],
        ..Options::default()
    })
    .await?;
    let login = hoop.person().await?;
    let load = Load::start(std::slice::from_ref(&login), 4);
    let begun = std::time::Instant::now();
    while hoop.gateway_mut()?.process.alive() {
        ensure!(
            begun.elapsed() < FAULT_DEADLINE,
            "{point} was not reached: is the gateway built with the feature `faults`, as ./dev test does?"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = hoop.gateway()?.process.log();
    ensure!(
        log.contains(&format!("fault point {point} reached")),
        "it ended otherwise: {log}"
    );
    hoop.gateway_mut()?.forget("HOOP_FAULT");
    hoop.gateway_mut()?.start_again().await?;
    logins_work("after the fault, from its port's return on", &login, Instant::now()).await?;
    load.stop().await?;
    compare(&hoop).await
}

#[tokio::test]
async fn killed_before_the_journal_nothing_is_missing() -> Result<()> {
    killed_at("before_journal", 200).await
}

#[tokio::test]
async fn killed_after_the_journal_nothing_is_missing() -> Result<()> {
    killed_at("after_journal", 200).await
}

#[tokio::test]
async fn killed_after_forwarding_nothing_is_missing() -> Result<()> {
    killed_at("after_forward", 200).await
}

#[tokio::test]
async fn killed_before_an_outcome_nothing_is_missing() -> Result<()> {
    killed_at("before_outcome", 200).await
}

#[tokio::test]
async fn killed_inside_a_chunk_nothing_is_missing() -> Result<()> {
    killed_at("inside_chunk", 20).await
}

#[tokio::test]
async fn killed_inside_a_commit_nothing_is_missing() -> Result<()> {
    killed_at("inside_commit", 30).await
}

#[tokio::test]
async fn the_stores_absence_is_sat_out() -> Result<()> {
    let seconds = if hoop_tests::full() {
        20
    } else {
        hoop_tests::skipped("store away for 20 s", "it was away for 4 s; ./dev test --full takes 20");
        4
    };
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    let login = hoop.person().await?;
    let load = Load::start(std::slice::from_ref(&login), 4);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let store = hoop.store.as_mut().context("own store")?;
    store.stop()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    store.start_again().await?;
    logins_work("the store is back", &login, Instant::now()).await?;
    load.stop().await?;
    compare(&hoop).await
}

/// The error of PostgreSQL that ended a query, as code and message.
fn told(error: &tokio_postgres::Error) -> Result<(String, String)> {
    let error = error
        .as_db_error()
        .with_context(|| format!("not an ErrorResponse: {error:?}"))?;
    ensure!(error.severity() == "FATAL", "{error:?}");
    Ok((error.code().code().to_owned(), error.message().to_owned()))
}

/// What a login and a query that runs are told when the target is stopped by `how`.
async fn target_goes_away(how: &str, running: (&str, &str)) -> Result<()> {
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    let login = hoop.person().await?.sslmode("disable");
    let client = login.connect().await?;
    let query = tokio::spawn(async move { client.simple_query("select pg_sleep(60)").await });
    await_active(&hoop, "pg_sleep(60)").await?;
    hoop.target.stop_by(how).await?;
    let error = query.await?.err().context("it answered")?;
    ensure!(
        told(&error)? == (running.0.to_owned(), running.1.to_owned()),
        "{error:?}"
    );
    let error = login.connect().await.err().context("it was let in")?;
    let error = error
        .downcast_ref::<tokio_postgres::Error>()
        .context("no error of PostgreSQL")?;
    let (code, message) = told(error)?;
    ensure!(
        code == "08001" && message == "agent \"default\" cannot reach the target of connection \"app\"",
        "{code} {message}"
    );
    hoop.target.start_again().await?;
    logins_work("the target is back", &login, Instant::now()).await
}

#[tokio::test]
async fn a_target_that_is_stopped_says_so_itself_and_its_return_is_noticed() -> Result<()> {
    let message = "terminating connection due to administrator command";
    target_goes_away("INT", ("57P01", message)).await
}

#[tokio::test]
async fn a_target_that_vanishes_without_a_word_is_a_clear_error_and_its_return_is_noticed() -> Result<()> {
    target_goes_away("KILL", ("08006", "the target closed the connection")).await
}

/// Links that a gateway says it holds since its last start.
fn links_held(gateway: &Gateway) -> usize {
    let log = gateway.process.log();
    let since = log.rfind("this replica's place").unwrap_or_default();
    let count = |what: &str| log.get(since..).unwrap_or_default().matches(what).count();
    count("agent linked").saturating_sub(count("agent link ended"))
}

/// An agent that looks for all replicas dials ten times a minute.
const LINKS_DEADLINE: Duration = Duration::from_secs(60);
/// Kills of `everything_is_killed_in_turn_under_load_and_nothing_is_missing`.
const KILL_ROUNDS: usize = 15;

/// Up to a second and a half, each millisecond alike.
fn random_pause() -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 1_500;
    Duration::from_millis(u64::try_from(random).unwrap_or_default())
}

/// Kills of `a_gateway_killed_at_random_moments_loses_nothing`.
const RANDOM_KILLS: usize = 5;

#[tokio::test]
async fn a_gateway_killed_at_random_moments_loses_nothing() -> Result<()> {
    full_only!("a_gateway_killed_at_random_moments_loses_nothing");
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    let login = hoop.person().await?;
    let load = Load::start(std::slice::from_ref(&login), 6);
    for _ in 0..RANDOM_KILLS {
        logins_work("between two kills", &login, Instant::now()).await?;
        tokio::time::sleep(random_pause()).await;
        hoop.gateway_mut()?.process.kill_hard()?;
        hoop.gateway_mut()?.start_again().await?;
    }
    ensure!(load.stop().await? > 20, "too few statements to prove anything");
    compare(&hoop).await
}

#[tokio::test]
async fn everything_is_killed_in_turn_under_load_and_nothing_is_missing() -> Result<()> {
    full_only!("everything_is_killed_in_turn_under_load_and_nothing_is_missing");
    let options = Options {
        store: StoreKind::Own,
        replicas: 2,
        agents: 0,
        ..Options::default()
    };
    let mut hoop = Hoop::with(options).await?;
    let addresses = hoop
        .gateways
        .iter()
        .map(|gateway| gateway.ready.link.parse())
        .collect::<Result<_, _>>()?;
    let balancer = Balancer::even(addresses).await?;
    for _ in 0..2 {
        hoop.agent_through(balancer.address.port())?;
    }
    let (first, second) = both(&hoop).await?;
    let logins = [first, second];
    let load = Load::start(&logins, 12);
    for round in 0..KILL_ROUNDS {
        // At any moment of what the clients do, and of what the gateways write behind them.
        tokio::time::sleep(random_pause()).await;
        let what = format!("kill {round}");
        match round % 5 {
            0 | 3 => {
                let which = usize::from(round % 5 == 3);
                // A gateway without a link of its own goes through the other one.
                let survivor = hoop.gateways.get(1 - which).context("gateway")?;
                eventually("the other gateway has a link of its own", LINKS_DEADLINE, async || {
                    Ok((links_held(survivor) > 0).then_some(()))
                })
                .await?;
                let gateway = hoop.gateways.get_mut(which).context("gateway")?;
                let killed = Instant::now();
                gateway.process.kill_hard()?;
                let other = logins.get(1 - which).context("login")?;
                logins_work(&format!("{what}: the other gateway, from the kill on"), other, killed).await?;
                gateway.start_again().await?;
                let itself = logins.get(which).context("login")?;
                logins_work(
                    &format!("{what}: the gateway itself, from its port's return on"),
                    itself,
                    Instant::now(),
                )
                .await?;
            }
            1 | 4 => {
                let which = usize::from(round % 5 == 4);
                let agent = hoop.agents.get_mut(which).context("agent")?;
                let killed = Instant::now();
                agent.process.kill_hard()?;
                agent.start_again()?;
                for login in &logins {
                    logins_work(&format!("{what}: an agent"), login, killed).await?;
                }
            }
            _ => {
                hoop.store.as_mut().context("own store")?.kill_and_start_again().await?;
                let back = Instant::now();
                for login in &logins {
                    logins_work(&format!("{what}: the store, from its return on"), login, back).await?;
                }
            }
        }
    }
    ensure!(load.stop().await? > 100, "too few statements to prove anything");
    compare(&hoop).await
}
