//! *Test connection*: what is told of each way in which a login can fail, by a real agent of a real PostgreSQL.

use anyhow::{Context as _, Result, ensure};
use hoop_tests::cluster::{APP, Make, STORE, free_port};
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::record::{number, text};
use serde_json::{Value, json};

/// An address that the agent may not dial.
const DENIED: &str = "127.0.0.2";

async fn rig() -> Result<Hoop> {
    Hoop::with(Options {
        agent_env: vec![("HOOP_AGENT_DENY".into(), format!("{DENIED}/32:*"))],
        target: Make {
            tls: true,
            ..Make::default()
        },
        ..Options::default()
    })
    .await
}

/// What the only agent found, of settings that are not stored.
async fn tried(hoop: &Hoop, over: Value) -> Result<Value> {
    let mut body = json!({
        "name": "trial", "agents": ["default"], "host": "127.0.0.1", "port": hoop.target.port, "user": APP,
        "secret": {"value": hoop.target_password}, "tls": "disable", "default_database": APP,
    });
    if let (Some(body), Value::Object(over)) = (body.as_object_mut(), over) {
        body.extend(over);
    }
    let answer = hoop.api.post("/api/connections/test", body).await?;
    ensure!(
        !answer.to_string().contains(&hoop.target_password),
        "the secret is told"
    );
    Ok(answer.pointer("/agents/0").context("no agent")?.clone())
}

fn failed(found: &Value, at: &str, code: &str, part: &str) -> Result<()> {
    ensure!(
        text(found, "ok") == "false"
            && text(found, "failed_at") == at
            && text(found, "code") == code
            && text(found, "message").contains(part)
            && !text(found, "hint").is_empty(),
        "wanted {at}, {code}, {part:?}: {found:#}"
    );
    Ok(())
}

#[tokio::test]
async fn a_test_says_what_failed_where() -> Result<()> {
    let hoop = rig().await?;
    let found = tried(&hoop, json!({"host": "no-such-host.invalid"})).await?;
    failed(&found, "resolve", "target_unreachable", "cannot resolve")?;
    ensure!(!text(&found, "cause").is_empty(), "{found}");
    failed(
        &tried(&hoop, json!({"host": DENIED})).await?,
        "allow",
        "agent_refused",
        "deny",
    )?;
    let found = tried(&hoop, json!({"port": free_port()?})).await?;
    failed(&found, "connect", "target_unreachable", "cannot reach")?;
    ensure!(text(&found, "cause").contains("refused"), "{found}");
    // the system's roots do not know the target's CA
    let found = tried(&hoop, json!({"tls": "verify-full", "host": "localhost"})).await?;
    failed(&found, "tls", "target_tls", "TLS")?;
    let other_name =
        json!({"tls": "verify-full", "tls_ca_pem": hoop.target.ca_pem, "tls_server_name": "other.example"});
    failed(
        &tried(&hoop, other_name).await?,
        "tls",
        "target_tls",
        "for another name",
    )?;
    let found = tried(&hoop, json!({"secret": {"value": "wrong"}})).await?;
    failed(
        &found,
        "login",
        "target_refused_login",
        "password authentication failed",
    )?;
    ensure!(text(&found, "sqlstate") == "28P01", "{found}");
    let found = tried(&hoop, json!({"default_database": "nowhere"})).await?;
    failed(&found, "database", "target_refused_login", "does not exist")?;
    ensure!(text(&found, "sqlstate") == "3D000", "{found}");
    let missing = json!({"secret": {"reference": "env:HOOP_TARGET_NOT_THERE"}});
    failed(
        &tried(&hoop, missing).await?,
        "secret",
        "target_secret_missing",
        "HOOP_TARGET_NOT_THERE",
    )?;
    let outside = json!({"secret": {"reference": "file:/etc/passwd"}});
    failed(
        &tried(&hoop, outside).await?,
        "secret",
        "agent_refused",
        "does not allow file:",
    )?;
    failed(
        &tried(&hoop, json!({"secret": null})).await?,
        "secret",
        "target_secret_missing",
        "asks for a password",
    )?;
    Ok(())
}

#[tokio::test]
async fn a_test_that_goes_well_tells_version_tls_and_times_sends_no_statement_and_is_recorded() -> Result<()> {
    let hoop = rig().await?;
    hoop.api.post("/api/agents", json!({"name": "absent"})).await?;
    hoop.connection("both", json!({"agents": ["default", "absent"]}))
        .await?;
    let answer = hoop.api.post("/api/connections/both/test", json!({})).await?;
    ensure!(text(&answer, "ok") == "false", "{answer}");
    let [here, absent] = ["/agents/0", "/agents/1"].map(|at| answer.pointer(at).cloned().unwrap_or_default());
    ensure!(
        text(&here, "ok") == "true" && here.get("failed_at") == Some(&Value::Null),
        "{here}"
    );
    let version = hoop
        .target
        .superuser(APP)
        .await?
        .query_one("show server_version", &[])
        .await?;
    ensure!(text(&here, "server_version") == version.get::<_, String>(0), "{here}");
    ensure!(here.get("tls") == Some(&Value::Null), "{here}");
    let took = here.get("took_us").context("times")?;
    for step in ["connect", "login", "round_trip"] {
        ensure!(number(took, step) > 0, "{step}: {took}");
    }
    failed(&absent, "agent", "agent_offline", "absent")?;
    let verified = json!({"tls": "verify-full", "tls_ca_pem": hoop.target.ca_pem, "host": "localhost"});
    let found = tried(&hoop, verified).await?;
    ensure!(found.pointer("/tls/version") == Some(&json!("TLSv1_3")), "{found}");
    ensure!(number(found.get("took_us").context("times")?, "tls") > 0, "{found}");
    // no session, and no statement at the target, came of it
    ensure!(
        hoop.sessions()
            .await?
            .iter()
            .all(|session| text(session, "connection") == CONNECTION)
    );
    ensure!(!hoop.target.log().contains("hoop statement"), "{}", hoop.target.log());
    let store = hoop.store_cluster().superuser(STORE).await?;
    let rows = store
        .query(
            "select payload from writer_log where kind = 'connection.test' order by at_us",
            &[],
        )
        .await?;
    let subjects: Vec<String> = (rows.iter())
        .map(|row| serde_json::from_str::<Value>(row.get(0)).map(|payload| text(&payload, "subject")))
        .collect::<Result<_, _>>()?;
    ensure!(subjects == ["both", "trial"], "{subjects:?}");
    for row in &rows {
        ensure!(!row.get::<_, String>(0).contains(&hoop.target_password));
    }
    Ok(())
}
