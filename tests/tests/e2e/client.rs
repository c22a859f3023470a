//! The command `hoop`, as a person uses it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::binaries;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::{Said, run};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// Where somebody is signed in, and with which token.
pub type Account<'a> = (&'a str, &'a str);

/// `hoop` with a home of its own, and a token where one is given.
pub fn hoop(home: &Path, server: Option<Account>, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binaries::client()?);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HOOP_") || text.starts_with("PG") || text == "DISPLAY" || text == "BROWSER" {
            command.env_remove(&name);
        }
    }
    command.env("HOOP_HOME", home).args(arguments);
    if let Some((address, token)) = server {
        command.envs([("HOOP_SERVER", address), ("HOOP_TOKEN", token)]);
    }
    Ok(command)
}

/// How many credentials are good.
async fn active(installation: &Hoop) -> Result<usize> {
    let credentials = hoop_tests::hoop::items(&installation.api, "/api/credentials").await?;
    let good = |item: &&Value| item.get("state") == Some(&json!("active"));
    Ok(credentials.iter().filter(good).count())
}

async fn token(installation: &Hoop) -> Result<String> {
    let ready = &installation.gateway()?.ready;
    let password = std::fs::read_to_string(&ready.admin_password_file)?;
    let body = json!({"username": ready.admin_user, "password": password.trim()});
    let answer = installation.api.post("/api/login", body).await?;
    let token = answer.get("token").and_then(Value::as_str).context("no token")?;
    Ok(token.to_owned())
}

#[tokio::test]
async fn a_person_lists_connects_and_leaves_no_credential_behind() -> Result<()> {
    let installation = Hoop::start().await?;
    let token = token(&installation).await?;
    let address = installation.gateway()?.ready.api.clone();
    let home = tempfile::tempdir()?;
    let say = async |arguments: &[&str]| -> Result<Said> {
        run(hoop(home.path(), Some((&address, &token)), arguments)?, DEADLINE).await
    };
    let status = say(&["status"]).await?.success()?;
    ensure!(status.out.starts_with("admin (admin"), "{}", status.out);
    let listed = say(&["connections"]).await?.success()?;
    ensure!(
        listed.out.lines().any(|line| line.starts_with("app ")),
        "{}",
        listed.out
    );

    let before = active(&installation).await?;
    let query = "select current_user || ' at ' || current_database()";
    let answered = say(&["connect", "app", "--", "-X", "-A", "-t", "-c", query])
        .await?
        .success()?;
    ensure!(answered.out.trim() == "app at app", "{} {}", answered.out, answered.err);
    let failed = say(&[
        "connect",
        "app",
        "--",
        "-X",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        "select 1/0",
    ])
    .await?;
    ensure!(
        failed.code == Some(1) && failed.err.contains("division by zero"),
        "{failed:?}"
    );
    let sessions = say(&["sessions", "--json"]).await?.success()?;
    ensure!(sessions.out.lines().count() >= 2, "{}", sessions.out);
    ensure!(active(&installation).await? == before, "a credential outlives its psql");

    let made = say(&["credential", "app", "--ttl", "60", "--json"]).await?.success()?;
    let made: Value = serde_json::from_str(&made.out)?;
    ensure!(made.get("password").is_some_and(Value::is_string), "{made}");
    ensure!(
        std::fs::read_dir(home.path())?.next().is_none(),
        "a token of the environment is not kept"
    );
    Ok(())
}

#[tokio::test]
async fn what_goes_wrong_is_told_with_its_remedy() -> Result<()> {
    let installation = Hoop::start().await?;
    let address = installation.gateway()?.ready.api.clone();
    let home = tempfile::tempdir()?;
    let token = token(&installation).await?;
    let cases: [(Option<Account>, &[&str], &str); 6] = [
        (None, &["status"], "hoop login https://HOST:8009"),
        (None, &["login"], "Which gateway?"),
        (None, &["login", "http://hoop.example.com:8009"], "use https"),
        (
            Some((&address, "wrong")),
            &["connections"],
            "does not take your token any more: hoop login",
        ),
        (
            Some((&address, &token)),
            &["connect", "nowhere"],
            "connection nowhere does not exist",
        ),
        (Some(("http://127.0.0.1:1", &token)), &["status"], "cannot be reached"),
    ];
    for (server, arguments, told) in cases {
        let said = run(hoop(home.path(), server, arguments)?, DEADLINE).await?;
        ensure!(!said.ok && said.err.contains(told), "hoop {arguments:?}: {said:?}");
        ensure!(!said.err.contains(&token), "a token is told");
    }
    Ok(())
}

/// Nobody answers at the proxy: what went there would fail.
#[tokio::test]
async fn a_gateway_on_this_machine_is_not_asked_through_a_proxy() -> Result<()> {
    let installation = Hoop::start().await?;
    let (address, token) = (installation.gateway()?.ready.api.clone(), token(&installation).await?);
    let home = tempfile::tempdir()?;
    let mut status = hoop(home.path(), Some((&address, &token)), &["status"])?;
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        status.env(name, "http://127.0.0.1:1");
    }
    for name in ["no_proxy", "NO_PROXY"] {
        status.env_remove(name);
    }
    let said = run(status, DEADLINE).await?.success()?;
    ensure!(said.out.starts_with("admin (admin"), "{said:?}");
    Ok(())
}
