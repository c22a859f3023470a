//! What a connection sets: its limits, enforced in running sessions and told in the client's terms; several agents; the
//! ways in which it is offered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::hoop::{Agent, Hoop, Options};
use hoop_tests::process::{Said, eventually};
use hoop_tests::record::text;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// A connection with these settings, and a login to it whose sessions carry its name.
async fn limited(hoop: &Hoop, name: &str, over: Value) -> Result<Login> {
    hoop.connection(name, over).await?;
    Ok(hoop.login(&hoop.credential(name).await?)?.with("PGAPPNAME", name))
}

/// psql shows the SQLSTATE too.
const VERBOSE: [&str; 2] = ["-v", "VERBOSITY=verbose"];

fn told(said: &Said, sqlstate: &str, part: &str) -> Result<()> {
    let fatal = format!("FATAL:  {sqlstate}");
    ensure!(
        !said.ok && said.err.contains(&fatal) && said.err.contains(part) && said.err.contains("HINT:"),
        "{}",
        said.err
    );
    Ok(())
}

#[tokio::test]
async fn a_session_that_reaches_its_length_finishes_its_statement_and_is_told_why_it_ends() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = limited(&hoop, "short", json!({"session_max_s": 2})).await?;
    let begun = Instant::now();
    let running = ["-c", "select 'first', pg_sleep(4)", "-c", "select 'second'"];
    let said = me.psql(&[&VERBOSE[..], &running[..]].concat()).await?;
    ensure!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    ensure!(
        said.out.contains("first") && !said.out.contains("second"),
        "{}",
        said.out
    );
    told(&said, "57P01", "this session has lasted 2 s")?;
    let record = hoop.record("short").await?;
    ensure!(record.end() == "session_too_long", "{:?}", record.of("ended"));
    let (_, outcome) = record.statement("first")?;
    ensure!(text(outcome, "status") == "ok", "{outcome}");
    // one that does nothing ends at its length
    let login = hoop.login(&hoop.credential("short").await?)?.with("PGAPPNAME", "quiet");
    let client = login.sslmode("disable").connect().await?;
    client.simple_query("begin; select 1; commit").await?;
    eventually("the session has ended", DEADLINE, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    ensure!(hoop.record("quiet").await?.end() == "session_too_long");
    Ok(())
}

#[tokio::test]
async fn a_session_that_says_nothing_ends_after_its_idle_time_and_a_running_statement_is_not_idle() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = limited(&hoop, "idle", json!({"idle_timeout_s": 2})).await?;
    let running = [
        "-c",
        "select 'ran', pg_sleep(4)",
        "-c",
        "\\! sleep 4",
        "-c",
        "select 'late'",
    ];
    let said = me.psql(&[&VERBOSE[..], &running[..]].concat()).await?;
    ensure!(said.out.contains("ran") && !said.out.contains("late"), "{}", said.out);
    told(&said, "57P05", "nothing was sent for 2 s")?;
    ensure!(hoop.record("idle").await?.end() == "idle_timeout");
    Ok(())
}

#[tokio::test]
async fn results_beyond_a_connections_limit_end_the_session_and_are_told() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = limited(&hoop, "narrow", json!({"result_max_bytes": 200_000})).await?;
    let rows = ["-c", "select repeat('x', 1000) from generate_series(1, 10000)"];
    let said = me.psql(&[&VERBOSE[..], &rows[..]].concat()).await?;
    told(&said, "53400", "exceed its connection's limit of 200000 bytes")?;
    let record = hoop.record("narrow").await?;
    ensure!(record.end() == "result_limit", "{:?}", record.of("ended"));
    // one row that is longer than the limit is told too: it is completed first
    let me = me.with("PGAPPNAME", "long-row");
    let row = ["-c", "select repeat('x', 300000)"];
    told(
        &me.psql(&[&VERBOSE[..], &row[..]].concat()).await?,
        "53400",
        "200000 bytes",
    )?;
    // each session has the whole limit
    let me = me.with("PGAPPNAME", "within");
    for _ in 0..3 {
        ensure!(me.query("select repeat('x', 100000)").await?.len() == 100_000);
    }
    Ok(())
}

#[tokio::test]
async fn the_sessions_of_a_connection_are_counted_over_all_replicas() -> Result<()> {
    let hoop = Hoop::with(Options {
        replicas: 2,
        ..Options::default()
    })
    .await?;
    hoop.connection("two", json!({"max_sessions": 2})).await?;
    let credential = hoop.credential("two").await?;
    let at = |gateway| anyhow::Ok(hoop.login_at(gateway, &credential)?.sslmode("disable"));
    let first = eventually("a login at the first replica", DEADLINE, async || {
        at(0)?.connect().await.map(Some)
    })
    .await?;
    let second = eventually("a login at the second replica", DEADLINE, async || {
        at(1)?.connect().await.map(Some)
    })
    .await?;
    for gateway in [0, 1] {
        let said = at(gateway)?.psql(&["-c", "select 1"]).await?;
        ensure!(
            !said.ok && said.err.contains("the connection \"two\" has its 2 sessions already"),
            "{}",
            said.err
        );
    }
    drop(first);
    eventually("the place is free at the other replica", DEADLINE, async || {
        Ok(at(1)?.psql(&["-c", "select 1"]).await?.ok.then_some(()))
    })
    .await?;
    second.simple_query("select 1").await?;
    Ok(())
}

/// Registers an agent; its process, and the file of its key.
async fn agent(hoop: &Hoop, name: &str) -> Result<Agent> {
    let registered = hoop.api.post("/api/agents", json!({"name": name})).await?;
    let file = hoop.scratch.path().join(format!("{name}.key"));
    std::fs::write(&file, text(&registered, "key"))?;
    Agent::start(&file, &hoop.scratch.path().join(format!("{name}.log")), Vec::new())
}

#[tokio::test]
async fn any_of_a_connections_agents_serves_and_all_are_named_where_none_is_online() -> Result<()> {
    let hoop = Hoop::start().await?;
    let mut left = agent(&hoop, "left").await?;
    let mut right = agent(&hoop, "right").await?;
    let me = limited(&hoop, "either", json!({"agents": ["left", "right"]})).await?;
    let me = me.sslmode("disable");
    eventually("both agents are online", DEADLINE, async || {
        let agents = hoop.api.get("/api/agents").await?;
        let agents = agents.get("items").and_then(Value::as_array).context("items")?;
        let online =
            |name: &str| (agents.iter()).any(|agent| text(agent, "name") == name && text(agent, "online") == "true");
        Ok((online("left") && online("right")).then_some(()))
    })
    .await?;
    // the less busy one is taken: of many sessions at once, both get some
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(me.connect().await?);
    }
    let serving = async |wanted: &str| {
        let sessions = hoop.sessions().await?;
        let of_it = |session: &&Value| text(session, "connection") == "either" && text(session, "agent") == wanted;
        anyhow::Ok(sessions.iter().filter(of_it).count())
    };
    eventually("both agents serve", DEADLINE, async || {
        Ok((serving("left").await? > 0 && serving("right").await? > 0).then_some(()))
    })
    .await?;
    left.process.kill_hard()?;
    let alone = me.with("PGAPPNAME", "alone");
    eventually("the other one serves", DEADLINE, async || {
        alone.query("select 1").await.map(Some)
    })
    .await?;
    ensure!(text(&hoop.session("alone").await?, "agent") == "right");
    right.process.kill_hard()?;
    eventually("none is online", DEADLINE, async || {
        let said = me.psql(&["-c", "select 1"]).await?;
        let named = said
            .err
            .contains("none of this connection's agents is online: \"left\", \"right\"");
        Ok((!said.ok && named).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_connection_that_is_not_offered_to_native_clients_serves_none() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = limited(&hoop, "offered", json!({})).await?;
    let client = me.sslmode("disable").connect().await?;
    client.simple_query("select 1").await?;
    let mut body = json!({
        "name": "offered", "agents": ["default"], "host": "127.0.0.1", "port": hoop.target.port, "user": "app",
        "modes": ["web"], "owner": "ada",
    });
    let changed = hoop.api.put("/api/connections/offered", body.clone()).await?;
    ensure!(
        changed.get("modes") == Some(&json!(["web"])) && text(&changed, "owner") == "ada",
        "{changed}"
    );
    // what runs is judged again
    eventually("the running session has ended", DEADLINE, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    let said = me.psql(&["-c", "select 1"]).await?;
    ensure!(
        !said.ok && said.err.contains("does not serve clients of its own protocol"),
        "{}",
        said.err
    );
    let refused = hoop
        .api
        .send("POST", "/api/connections/offered/credentials", Some(&json!({})))
        .await?;
    ensure!(refused.status == 403, "{}", refused.status);
    if let Some(body) = body.as_object_mut() {
        body.insert("modes".into(), json!(["native", "web"]));
    }
    hoop.api.put("/api/connections/offered", body).await?;
    me.query("select 1").await?;
    Ok(())
}
