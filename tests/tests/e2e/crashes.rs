//! Nothing that the target received is missing from the verified record, whatever is killed. The oracle is the target's
//! own log (`log_statement = all`) with a unique comment in each statement.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::full_only;
use hoop_tests::hoop::{CONNECTION, Hoop, Options, StoreKind};
use hoop_tests::process::eventually;
use hoop_tests::record::text;

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

/// Compares what the target received with what `events --all` shows and `verify --all` accepts.
async fn compare(hoop: &Hoop) -> Result<()> {
    let received = marks(&hoop.target.log());
    ensure!(!received.is_empty(), "the target received nothing");
    eventually(
        "the record holds all that the target received",
        SETTLE_DEADLINE,
        async || {
            let events = hoop.all_events().await?;
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
    .await?;
    let said = hoop.verify(&["--all"]).await?;
    ensure!(said.ok, "{}\n{}", said.out, said.err);
    Ok(())
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
    eventually("logins work again", BACK_DEADLINE * 2, async || {
        login.query("select 1").await.map(Some)
    })
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
    eventually("logins work again", BACK_DEADLINE * 2, async || {
        login.query("select 1").await.map(Some)
    })
    .await?;
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
    eventually("logins work again", BACK_DEADLINE * 2, async || {
        login.query("select 1").await.map(Some)
    })
    .await?;
    load.stop().await?;
    compare(&hoop).await
}

#[tokio::test]
async fn a_target_that_went_away_is_a_clear_error_and_its_return_is_noticed() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    let login = hoop.person().await?;
    let client = login.sslmode("disable").connect().await?;
    hoop.target.stop()?;
    let error = client.simple_query("select 1").await.err().context("it answered")?;
    ensure!(client.is_closed() || error.as_db_error().is_some(), "{error:?}");
    let said = login.psql(&["-c", "select 1"]).await?;
    ensure!(!said.ok && said.err.contains("FATAL"), "{}", said.err);
    hoop.target.start_again().await?;
    eventually("the target serves again", BACK_DEADLINE, async || {
        login.query("select 1").await.map(Some)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn everything_is_killed_in_turn_under_load_and_nothing_is_missing() -> Result<()> {
    full_only!("everything_is_killed_in_turn_under_load_and_nothing_is_missing");
    let options = Options {
        store: StoreKind::Own,
        replicas: 2,
        agents: 2,
        ..Options::default()
    };
    let mut hoop = Hoop::with(options).await?;
    let credential = hoop.credential(CONNECTION).await?;
    let logins = [hoop.login_at(0, &credential)?, hoop.login_at(1, &credential)?];
    let load = Load::start(&logins, 12);
    for round in 0..12 {
        tokio::time::sleep(Duration::from_millis(700 + 137 * (round % 5))).await;
        match round % 5 {
            0 | 3 => {
                let which = usize::from(round % 5 == 3);
                let gateway = hoop.gateways.get_mut(which).context("gateway")?;
                gateway.process.kill_hard()?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                gateway.start_again().await?;
            }
            1 | 4 => {
                let which = usize::from(round % 5 == 4);
                let agent = hoop.agents.get_mut(which).context("agent")?;
                agent.process.kill_hard()?;
                agent.start_again()?;
            }
            _ => hoop.store.as_mut().context("own store")?.kill_and_start_again().await?,
        }
        for login in &logins {
            let what = format!("logins work after kill {round}");
            eventually(&what, BACK_DEADLINE * 3, async || {
                login.query("select 1").await.map(Some)
            })
            .await?;
        }
    }
    ensure!(load.stop().await? > 100, "too few statements to prove anything");
    compare(&hoop).await
}
