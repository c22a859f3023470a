//! `hoop-gateway apply`: a gateway has what files declare, and a second run finds nothing to do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::binaries;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::{Said, run};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);
const DECLARED: &str = "kind: rule
name: sre
groups: [sre]
connections: [orders]
---
kind: connection
name: orders
agents: [edge]
host: db.internal
user: app
secret:
  value_from_env: ORDERS_SECRET
---
kind: agent
name: edge
key_file: edge.key
";
const SECRET: &str = "the orders' password";

/// With nothing but the server and a token: no database, no configuration.
async fn apply(hoop: &Hoop, folder: &Path, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(binaries::gateway()?);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOOP_") || name == "DATABASE_URL") {
        command.env_remove(name);
    }
    command
        .env("HOOP_TOKEN", hoop.api.token().context("no token")?)
        .env("ORDERS_SECRET", SECRET)
        .args(["apply", "--server", &hoop.gateway()?.ready.api, "-f"])
        .arg(folder)
        .args(arguments);
    run(command, DEADLINE).await
}

fn ended(said: &Said, code: i32, out: &str) -> Result<()> {
    let (is, told) = (said.code, &said.out);
    ensure!(
        is == Some(code) && told.contains(out),
        "{is:?}, wanted {code} and {out:?}: {told}{}",
        said.err
    );
    Ok(())
}

#[tokio::test]
async fn a_gateway_gets_what_is_declared_once_and_a_difference_is_shown_before() -> Result<()> {
    let hoop = Hoop::start().await?;
    let folder = hoop.scratch.path().join("declared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("all.yaml"), DECLARED)?;

    let dry = apply(&hoop, &folder, &["--dry-run"]).await?;
    ended(&dry, 2, "+ connection orders")?;
    ensure!(
        hoop.api.send("GET", "/api/connections/orders", None).await?.status == 404,
        "a dry run made something"
    );

    let first = apply(&hoop, &folder, &[]).await?;
    ended(&first, 0, "3 done, 0 as declared")?;
    let connection = hoop.api.get("/api/connections/orders").await?;
    ensure!(connection["target"]["secret"] == "sealed", "{connection}");
    let key = folder.join("edge.key");
    ensure!(fs::read_to_string(&key)?.starts_with("grpcs://edge:"), "no HOOP_KEY");
    ensure!(fs::metadata(&key)?.permissions().mode() & 0o777 == 0o600);

    ended(
        &apply(&hoop, &folder, &["--dry-run"]).await?,
        0,
        "0 to do, 3 as declared",
    )?;
    let again = apply(&hoop, &folder, &[]).await?;
    ended(&again, 0, "0 done, 3 as declared")?;
    ensure!(hoop.api.get("/api/connections/orders").await?["version"] == connection["version"]);

    // somebody changes it by hand: it is shown, and set back
    let by_hand = json!({"name": "sre", "groups": ["sre", "dba"], "connections": ["orders"]});
    hoop.api.put("/api/access/rules/sre", by_hand).await?;
    let dry = apply(&hoop, &folder, &["--dry-run"]).await?;
    ended(&dry, 2, "~ rule sre\n    groups: [\"dba\",\"sre\"] -> [\"sre\"]")?;
    ended(&apply(&hoop, &folder, &[]).await?, 0, "1 done, 2 as declared")?;
    ensure!(hoop.api.get("/api/access/rules/sre").await?["groups"] == json!(["sre"]));

    let set = apply(&hoop, &folder, &["--set-secrets"]).await?;
    ended(&set, 0, "secret: sealed -> set anew")?;
    for said in [dry, first, again, set] {
        ensure!(
            !said.out.contains(SECRET) && !said.err.contains(SECRET),
            "a secret was told"
        );
    }
    let audit = hoop.api.get("/api/audit?subject=orders").await?;
    ensure!(audit["items"][1]["kind"] == "connection.create", "{audit}");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_told_with_its_line_and_nothing_is_done() -> Result<()> {
    let hoop = Hoop::start().await?;
    let file = hoop.scratch.path().join("wrong.yaml");
    fs::write(&file, format!("{DECLARED}---\nkind: rule\nname: b\ngruops: [x]\n"))?;
    let said = apply(&hoop, &file, &[]).await?;
    ended(&said, 1, "")?;
    ensure!(
        said.err.contains("wrong.yaml:20: The member gruops is not known here."),
        "{}",
        said.err
    );
    ensure!(
        hoop.api.send("GET", "/api/access/rules/sre", None).await?.status == 404,
        "something was made"
    );

    let twice = "kind: rule\nname: a\ngroups: [x]\nconnections: [x]\n";
    fs::write(&file, format!("{twice}---\n{twice}"))?;
    let said = apply(&hoop, &file, &[]).await?;
    ensure!(
        said.code == Some(1) && said.err.contains("rule a is declared at"),
        "{}",
        said.err
    );
    Ok(())
}
