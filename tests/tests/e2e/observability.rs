//! What an operator sees: figures, traces, log lines with their session's id.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::collector::Collector;
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::http::Api;
use hoop_tests::process::eventually;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

/// The value of a series, named with its labels.
fn series(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no series {name} in\n{text}"))?.parse()?)
}

#[tokio::test]
async fn figures_tell_what_sessions_and_callers_did_and_name_nobody() -> Result<()> {
    let hoop = Hoop::start().await?;
    let figures = async || Ok::<_, anyhow::Error>(hoop.api.send("GET", "/metrics", None).await?.text());
    let before = figures().await?;
    let credential = hoop.credential(CONNECTION).await?;
    let login = hoop.login(&credential)?.sslmode("disable");
    let client = login.connect().await?;
    client.batch_execute("select repeat('x', 100000)").await?;
    let during = figures().await?;
    ensure!(series(&during, "hoop_sessions_live")? == 1.0, "{during}");
    drop(client);
    login
        .password("wrong")
        .connect()
        .await
        .err()
        .context("a wrong password was taken")?;
    let ended = "hoop_sessions_ended_total{code=\"client_closed\"}";
    let text = eventually("the session is over", DEADLINE, async || {
        let text = figures().await?;
        let over = series(&text, ended)? > series(&before, ended)? && series(&text, "hoop_sessions_live")? == 0.0;
        Ok(over.then_some(text))
    })
    .await?;
    for (name, least) in [
        ("hoop_sessions_started_total", 1.0),
        ("hoop_logins_total{port=\"postgres\",outcome=\"ok\"}", 1.0),
        ("hoop_logins_total{port=\"postgres\",outcome=\"failed\"}", 1.0),
        ("hoop_denials_total{code=\"wrong_credential\"}", 1.0),
        ("hoop_session_bytes_total{from=\"target\"}", 100_000.0),
        ("hoop_statements_total", 1.0),
        ("hoop_stage_seconds_count{stage=\"login\"}", 1.0),
        ("hoop_stage_seconds_count{stage=\"authorise\"}", 1.0),
        ("hoop_stage_seconds_count{stage=\"dispatch\"}", 1.0),
        ("hoop_stage_seconds_count{stage=\"target_login\"}", 1.0),
        ("hoop_journal_write_seconds_count", 1.0),
    ] {
        let grown = series(&text, name)? - series(&before, name)?;
        ensure!(grown >= least, "{name} grew by {grown}");
    }
    let route = "hoop_api_requests_total{route=\"/api/connections/{name}/credentials\",method=\"POST\",status=\"201\"}";
    ensure!(series(&text, route)? >= 1.0, "{text}");
    ensure!(series(&text, "hoop_agents_online")? == 1.0 && series(&text, "hoop_store_commit_seconds_count")? > 0.0);
    for name in [CONNECTION, "admin", &credential.user, "127.0.0.1"] {
        ensure!(!text.contains(&format!("\"{name}\"")), "{name} is in the figures");
    }
    Ok(())
}

#[tokio::test]
async fn prometheus_reads_the_figures_without_a_sign_in_only_where_it_is_told_to() -> Result<()> {
    let hoop = Hoop::with(Options {
        gateway_env: vec![("HOOP_METRICS_LISTEN".into(), "127.0.0.1:0".into())],
        ..Options::default()
    })
    .await?;
    let address = hoop
        .gateway()?
        .ready
        .metrics
        .clone()
        .context("no address of the figures")?;
    let scraped = Api::anonymous(&format!("http://{address}"));
    let answer = scraped.send("GET", "/metrics", None).await?;
    ensure!(
        answer.status == 200 && answer.text().contains("hoop_build_info"),
        "{}",
        answer.text()
    );
    ensure!(
        scraped.send("GET", "/api/me", None).await?.status == 404,
        "the API is served there too"
    );
    let stranger = Api::anonymous(&hoop.gateway()?.ready.api);
    ensure!(stranger.send("GET", "/metrics", None).await?.status == 401);
    Ok(())
}

fn named<'a>(spans: &'a [Value], name: &str) -> Result<&'a Value> {
    let found = spans.iter().rev().find(|span| span["name"] == name);
    found.with_context(|| format!("no span {name} in {spans:#?}"))
}

#[tokio::test]
async fn a_session_is_one_trace_with_its_steps_and_a_request_links_to_its_callers() -> Result<()> {
    let collector = Collector::start().await?;
    let hoop = Hoop::with(Options {
        gateway_env: vec![("HOOP_OTLP_ENDPOINT".into(), collector.url.clone())],
        ..Options::default()
    })
    .await?;
    let client = hoop.person().await?.connect().await?;
    client.batch_execute("select 'a statement that nobody traces'").await?;
    drop(client);
    let session = hoop.sessions().await?.first().context("no session")?["id"].clone();
    let is_ours = |span: &Value| {
        let attributes = span["attributes"].as_array().cloned().unwrap_or_default();
        attributes
            .iter()
            .any(|a| a["key"] == "hoop.session.id" && a["value"]["stringValue"] == session)
    };
    let root = eventually("the session's span", DEADLINE, async || {
        Ok(collector.spans().into_iter().find(is_ours))
    })
    .await?;
    let trace: Vec<Value> = collector
        .spans()
        .into_iter()
        .filter(|span| span["traceId"] == root["traceId"])
        .collect();
    for step in ["login", "authorise", "dispatch", "target_login"] {
        ensure!(
            named(&trace, step)?["parentSpanId"] == root["spanId"],
            "{step} is not below the session"
        );
    }
    ensure!(trace.len() == 5 && root["name"] == "session", "{trace:#?}");

    let headers = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
    hoop.api.send_with("GET", "/api/me", None, &headers).await?;
    let request = eventually("the request's span", DEADLINE, async || {
        let linked = |span: &Value| span["links"][0]["spanId"] == "00f067aa0ba902b7";
        Ok(collector.spans().into_iter().find(linked))
    })
    .await?;
    ensure!(
        request["name"] == "GET /api/me" && request["traceId"] != request["links"][0]["traceId"],
        "{request}"
    );
    ensure!(!collector.text().contains("nobody traces"), "a statement is in a trace");
    Ok(())
}

#[tokio::test]
async fn each_log_line_of_a_session_has_its_id_in_json() -> Result<()> {
    let hoop = Hoop::with(Options {
        gateway_env: vec![("HOOP_LOG_FORMAT".into(), "json".into())],
        ..Options::default()
    })
    .await?;
    drop(hoop.person().await?.connect().await?);
    let session = hoop.sessions().await?.first().context("no session")?["id"].clone();
    let log = eventually("the session's end in the log", DEADLINE, async || {
        let log = hoop.gateway()?.process.log();
        let over = log
            .lines()
            .any(|line| line.contains("session ended") && line.contains(session.as_str().unwrap_or("?")));
        Ok(over.then_some(log))
    })
    .await?;
    let mut of_session = 0;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        let message = line["fields"]["message"].as_str().unwrap_or_default();
        if message.starts_with("session starts") || message.starts_with("session ended") {
            ensure!(
                line["span"]["id"].is_string() || line["fields"]["session"].is_string(),
                "{line}"
            );
            of_session += usize::from(line["span"]["id"] == session);
        }
    }
    ensure!(of_session == 2, "{of_session} lines of the session {session}");
    Ok(())
}
