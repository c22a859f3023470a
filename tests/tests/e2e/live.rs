//! Live updates: what each person sees of what happens on any replica, how a stream is taken up again, and its ends.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::events::Events;
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::http::Api;
use serde_json::json;

const PASSWORD: &str = "a password for ada 1";
/// A session's start is in the store within 1 s, and is asked for every second.
const SEEN: Duration = Duration::from_secs(15);
const STOP: Duration = Duration::from_secs(4);

async fn ada(hoop: &Hoop) -> Result<Api> {
    let ada = json!({"username": "ada", "password": PASSWORD, "role": "member"});
    hoop.api.post("/api/users", ada).await?;
    Api::login(&hoop.gateway()?.ready.api, "ada", PASSWORD).await
}

async fn set_ada(hoop: &Hoop, role: &str, active: bool) -> Result<()> {
    let ada = json!({"role": role, "email": "", "groups": [], "active": active});
    hoop.api.put("/api/users/ada", ada).await.map(drop)
}

#[tokio::test]
async fn a_session_on_one_replica_is_seen_on_the_other_and_only_by_who_may_read_it() -> Result<()> {
    let hoop = Hoop::with(Options {
        replicas: 2,
        ..Options::default()
    })
    .await?;
    let ada = ada(&hoop).await?;
    let second = hoop.gateways.get(1).context("the second replica")?;
    let (mut admin, first) = Events::open(&hoop.api.at(&second.ready.api), None).await?;
    ensure!(first.name == "ready", "{first:?}");
    let (mut member, _) = Events::open(&ada, None).await?;

    let credential = hoop.credential(CONNECTION).await?;
    let session = hoop.login_at(0, &credential)?.sslmode("disable").connect().await?;
    let started = admin.next("session.started", SEEN).await?.context("the stream ended")?;
    ensure!(
        started.data["connection"] == CONNECTION && started.data["live"] == true,
        "{started:?}"
    );
    drop(session);
    let ended = admin.next("session.ended", SEEN).await?.context("the stream ended")?;
    ensure!(
        ended.data["id"] == started.data["id"] && ended.data["end_code"] == "client_closed",
        "{ended:?}"
    );

    hoop.api
        .post(
            "/api/access/rules",
            json!({"name": "r", "groups": ["none"], "connections": ["none"]}),
        )
        .await?;
    let changed = admin
        .next("resource.changed", SEEN)
        .await?
        .context("the stream ended")?;
    ensure!(
        changed.data["kind"] == "rules_changed" && changed.data["subject"] == "r",
        "{changed:?}"
    );
    // the member was told of none of it, only that the rules are others
    let seen = member.until("access.changed", SEEN).await?;
    ensure!(seen.len() == 1, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_was_lost_goes_on_where_it_was_or_says_that_it_cannot() -> Result<()> {
    let hoop = Hoop::start().await?;
    let change = async |name: &str| {
        hoop.api
            .post(
                "/api/access/rules",
                json!({"name": name, "groups": ["x"], "connections": ["x"]}),
            )
            .await
    };
    let (mut events, ready) = Events::open(&hoop.api, None).await?;
    change("one").await?;
    let one = events
        .next("resource.changed", SEEN)
        .await?
        .context("the stream ended")?;
    change("two").await?;
    events
        .next("resource.changed", SEEN)
        .await?
        .context("the stream ended")?;
    drop(events);

    let (mut again, first) = Events::open(&hoop.api, Some(&one.id)).await?;
    ensure!(first.name == "ready", "{first:?}");
    let two = again
        .next("resource.changed", SEEN)
        .await?
        .context("the stream ended")?;
    ensure!(two.data["subject"] == "two", "{two:?}");

    for unknown in [
        "nonsense",
        &format!("{}999999", ready.id),
        "0193b0a0-0000-7000-8000-000000000000.1",
    ] {
        let (_, first) = Events::open(&hoop.api, Some(unknown)).await?;
        ensure!(first.name == "resync", "{unknown}: {first:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_shows_what_the_role_of_now_allows_and_ends_with_the_sign_in() -> Result<()> {
    let hoop = Hoop::start().await?;
    let ada = ada(&hoop).await?;
    let (mut events, _) = Events::open(&ada, None).await?;
    set_ada(&hoop, "auditor", true).await?;
    let own = events
        .next("resource.changed", SEEN)
        .await?
        .context("the stream ended")?;
    ensure!(own.data["kind"] == "user_changed", "{own:?}");
    let user = hoop.api.get("/api/users/ada").await?;
    ensure!(own.data["subject"] == user["id"], "{own:?}");

    set_ada(&hoop, "auditor", false).await?;
    ensure!(
        events.next("end", SEEN).await?.is_some(),
        "the stream of a deactivated user goes on"
    );
    ensure!(events.next("end", SEEN).await?.is_none(), "something follows the end");
    Ok(())
}

#[tokio::test]
async fn a_stop_does_not_wait_for_streams() -> Result<()> {
    let mut hoop = Hoop::start().await?;
    let (mut events, _) = Events::open(&hoop.api, None).await?;
    let gateway = hoop.gateways.first_mut().context("no gateway")?;
    let began = Instant::now();
    gateway.process.signal("TERM")?;
    ensure!(events.next("end", SEEN).await?.is_none(), "the stream goes on");
    while gateway.process.alive() {
        ensure!(began.elapsed() < STOP, "the gateway still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
