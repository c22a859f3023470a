//! The API against its own description: schemathesis sends what the description allows, and what it does not, as an admin,
//! as a member and as nobody, and checks every answer. No route is left out.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::{python, rig};
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::http::Api;
use hoop_tests::process::run;
use serde_json::json;

const PASSWORD: &str = "a password for ada 1";
const DEADLINE: Duration = Duration::from_secs(170);
const FULL_DEADLINE: Duration = Duration::from_secs(1500);
/// What the description gives, each of its bounds from both sides, and chains of operations that need one another.
const PHASES: &str = "examples,coverage,stateful";
/// The same and random requests.
const FULL_PHASES: &str = "examples,coverage,fuzzing,stateful";
/// Random requests of one operation, and chains, at most.
const EXAMPLES: u32 = 3;
const FULL_EXAMPLES: u32 = 100;
/// The address that hooks.py sends from, so that each of its requests may come from another client.
const PROXY: &str = "127.0.0.9";
const EVERY_CHECK: &str = "all";

/// Who asks.
struct Asking {
    user: &'static str,
    password: String,
    token: String,
}

async fn hoop() -> Result<Hoop> {
    let rate = || "1000000".to_owned();
    let hoop = Hoop::with(Options {
        gateway_env: vec![
            ("HOOP_TRUSTED_PROXIES".into(), PROXY.into()),
            ("HOOP_ADDRESS_REQUESTS_BURST".into(), rate()),
            ("HOOP_ACCOUNT_REQUESTS_BURST".into(), rate()),
        ],
        ..Options::default()
    })
    .await?;
    // what answers are made of
    for (name, role) in [("ada", "member"), ("scapegoat", "member")] {
        let user = json!({"username": name, "password": PASSWORD, "role": role, "groups": ["all"]});
        hoop.api.post("/api/users", user).await?;
    }
    let rule = json!({"name": "all", "groups": ["all"], "connections": [CONNECTION]});
    hoop.api.post("/api/access/rules", rule).await?;
    let session = hoop.login(&hoop.credential(CONNECTION).await?)?.sslmode("disable");
    session.query("select 1").await?;
    Ok(hoop)
}

/// Runs it, and fails with its report where it finds anything.
async fn run_against(hoop: &Hoop, asking: Option<&Asking>) -> Result<()> {
    let api = &hoop.gateway()?.ready.api;
    let mut config = fs::read_to_string(rig("schemathesis/schemathesis.toml"))?;
    if asking.is_some() {
        config += "\n[auth.openapi.bearer]\nbearer = \"${HOOP_TOKEN}\"\n";
    }
    let config_file = hoop.scratch.path().join("schemathesis.toml");
    fs::write(&config_file, config)?;
    let (phases, examples, deadline) = match hoop_tests::full() {
        true => (FULL_PHASES, FULL_EXAMPLES, FULL_DEADLINE),
        false => (PHASES, EXAMPLES, DEADLINE),
    };
    let mut command = Command::new(python()?);
    command
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(&config_file)
        .args(["run", "--checks", EVERY_CHECK, "--no-color"])
        .args(["--phases", phases, "--max-examples", &examples.to_string()])
        .arg(format!("{api}/api/openapi.json"))
        .env("SCHEMATHESIS_HOOKS", rig("schemathesis/hooks.py"))
        .env("HOOP_API", api)
        .current_dir(hoop.scratch.path());
    if let Some(asking) = asking {
        command
            .env("HOOP_USER", asking.user)
            .env("HOOP_PASSWORD", &asking.password)
            .env("HOOP_TOKEN", &asking.token);
    }
    let said = run(command, deadline).await?;
    ensure!(said.ok, "schemathesis found something:\n{}\n{}", said.out, said.err);
    Ok(())
}

#[tokio::test]
async fn an_admin_gets_what_the_description_says() -> Result<()> {
    let hoop = hoop().await?;
    let ready = &hoop.gateway()?.ready;
    let admin = Asking {
        user: "admin",
        password: fs::read_to_string(&ready.admin_password_file)?.trim().to_owned(),
        token: hoop.api.token().context("no token")?.to_owned(),
    };
    run_against(&hoop, Some(&admin)).await
}

#[tokio::test]
async fn a_member_gets_what_the_description_says() -> Result<()> {
    let hoop = hoop().await?;
    let api = Api::login(&hoop.gateway()?.ready.api, "ada", PASSWORD).await?;
    let member = Asking {
        user: "ada",
        password: PASSWORD.to_owned(),
        token: api.token().context("no token")?.to_owned(),
    };
    run_against(&hoop, Some(&member)).await
}

#[tokio::test]
async fn a_stranger_gets_what_the_description_says() -> Result<()> {
    run_against(&hoop().await?, None).await
}
