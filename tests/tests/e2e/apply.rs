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

async fn apply(hoop: &Hoop, folder: &Path, arguments: &[&str]) -> Result<Said> {
    let folder = folder.to_str().context("no UTF-8")?;
    command(hoop, &[&["apply", "-f", folder], arguments].concat()).await
}

/// With nothing but the server and a token: no database, no configuration.
async fn command(hoop: &Hoop, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(binaries::gateway()?);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOOP_") || name == "DATABASE_URL") {
        command.env_remove(name);
    }
    command
        .env("HOOP_TOKEN", hoop.api.token().context("no token")?)
        .env("ORDERS_SECRET", SECRET)
        .env("HOOP_SERVER", &hoop.gateway()?.ready.api)
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

const SMALL: &str = "kind: agent
name: edge
key_file: edge.key
---
kind: connection
name: orders
agents: [edge]
host: db.internal
user: app
---
kind: rule
name: sre
groups: [sre]
connections: [orders]
";

#[tokio::test]
async fn a_set_removes_what_it_has_made_and_nothing_else() -> Result<()> {
    let hoop = Hoop::start().await?;
    let folder = hoop.scratch.path().join("declared");
    fs::create_dir(&folder)?;
    let file = folder.join("all.yaml");
    let by_hand = json!({"name": "by-hand", "groups": ["a"], "connections": ["*"]});
    hoop.api.post("/api/access/rules", by_hand).await?;
    let taken_over = "---\nkind: rule\nname: by-hand\ngroups: [b]\nconnections: [\"*\"]\n";
    fs::write(&file, format!("{SMALL}{taken_over}"))?;
    ended(&apply(&hoop, &folder, &["--set", "team"]).await?, 0, "4 done")?;
    let other = "kind: rule\nname: other\ngroups: [sre]\nconnections: [orders]\n";
    let elsewhere = hoop.scratch.path().join("other.yaml");
    fs::write(&elsewhere, other)?;
    ended(&apply(&hoop, &elsewhere, &["--set", "other"]).await?, 0, "1 done")?;

    // another set's, or nobody's, hands are bound
    fs::write(&elsewhere, SMALL.replace("groups: [sre]", "groups: [dba]"))?;
    for set in [vec![], vec!["--set", "other"]] {
        let said = apply(&hoop, &elsewhere, &set).await?;
        ensure!(
            said.code == Some(1) && said.err.contains("is the set team's"),
            "{said:?}"
        );
    }
    let alone = apply(&hoop, &folder, &["--prune"]).await?;
    ensure!(!alone.ok && alone.err.contains("--set"), "{alone:?}");

    fs::write(&file, "kind: group\nname: sre\nmembers: []\n")?;
    let kept = apply(&hoop, &folder, &["--set", "team"]).await?;
    ended(&kept, 0, "0 done, 1 as declared")?;
    let dry = apply(&hoop, &folder, &["--set", "team", "--prune", "--dry-run"]).await?;
    ended(&dry, 2, "- rule sre\n- connection orders\n- agent edge\n3 to do")?;
    hoop.api.get("/api/connections/orders").await?;
    let pruned = apply(&hoop, &folder, &["--set", "team", "--prune"]).await?;
    ended(&pruned, 0, "3 done, 1 as declared")?;
    for gone in ["/api/connections/orders", "/api/access/rules/sre"] {
        ensure!(hoop.api.send("GET", gone, None).await?.status == 404, "{gone}");
    }
    let agents = hoop.api.get("/api/agents?q=edge").await?;
    ensure!(agents["items"] == json!([]), "{agents}");
    for stays in [
        "/api/connections/app",
        "/api/access/rules/other",
        "/api/access/rules/by-hand",
    ] {
        hoop.api.get(stays).await?;
    }
    let again = apply(&hoop, &folder, &["--set", "team", "--prune"]).await?;
    ended(&again, 0, "0 done, 1 as declared")?;
    let audit = hoop.api.get("/api/audit?subject=orders&kind=connection.delete").await?;
    ensure!(audit["items"][0]["by"]["user"] == "admin", "{audit}");
    Ok(())
}

#[tokio::test]
async fn a_group_gets_its_members_and_keeps_those_of_a_provider() -> Result<()> {
    let hoop = Hoop::start().await?;
    for (name, groups) in [
        ("ada", json!([])),
        ("bob", json!(["sre", "dba"])),
        ("eve", json!(["sre"])),
    ] {
        let user = json!({
            "username": name, "password": "correct horse battery", "role": "member", "groups": groups,
            "email": format!("{name}@example.org"),
        });
        hoop.api.post("/api/users", user).await?;
    }
    // as a sign-in at a provider leaves it
    let store = hoop.target.superuser(hoop_tests::cluster::STORE).await?;
    let told = "insert into identities (provider, subject, user_id, groups) \
                select 'corp', 'eve', id, array['sre'] from users where username = 'eve'";
    store.batch_execute(told).await?;
    let file = hoop.scratch.path().join("group.yaml");
    let write = |members: &str| fs::write(&file, format!("kind: group\nname: sre\nmembers: [{members}]\n"));
    write("Ada")?;
    let dry = apply(&hoop, &file, &["--dry-run"]).await?;
    ended(&dry, 2, "~ group sre\n    + ada\n    - bob\n1 to do")?;
    ended(&apply(&hoop, &file, &[]).await?, 0, "1 done, 0 as declared")?;
    let groups = async |name: &str| anyhow::Ok(hoop.api.get(&format!("/api/users/{name}")).await?["groups"].clone());
    ensure!(groups("ada").await? == json!(["sre"]));
    ensure!(groups("bob").await? == json!(["dba"]));
    ensure!(groups("eve").await? == json!(["sre"]));
    ensure!(hoop.api.get("/api/users/ada").await?["email"] == "ada@example.org");
    ended(&apply(&hoop, &file, &[]).await?, 0, "0 done, 1 as declared")?;

    write("ada, eve")?;
    ended(&apply(&hoop, &file, &[]).await?, 0, "0 done, 1 as declared")?;
    fs::write(&file, "kind: group\nname: dba\nmembers: [eve]\n")?;
    let said = apply(&hoop, &file, &[]).await?;
    ensure!(
        said.code == Some(1) && said.err.contains("those that the provider corp tells"),
        "{said:?}"
    );
    write("nobody")?;
    let said = apply(&hoop, &file, &[]).await?;
    ensure!(
        said.code == Some(1) && said.err.contains("user nobody does not exist"),
        "{said:?}"
    );
    ensure!(groups("ada").await? == json!(["sre"]), "something was done before");
    Ok(())
}

#[tokio::test]
async fn what_get_prints_changes_nothing_when_it_is_applied() -> Result<()> {
    let hoop = Hoop::start().await?;
    let folder = hoop.scratch.path().join("declared");
    fs::create_dir(&folder)?;
    fs::write(folder.join("all.yaml"), DECLARED)?;
    apply(&hoop, &folder, &["--set", "team"]).await?.success()?;
    let odd = json!({
        "name": "odd", "users": ["ada"], "tags": ["a: b", "#x", "true", "5"], "description": "two\nlines, \"quoted\"",
        "schedule": {"days": ["mon"], "from": "08:00", "until": "18:00", "timezone": "Europe/Berlin"},
        "networks": ["10.0.0.0/8"], "modes": ["native"], "max_credential_s": 60, "enabled": false,
    });
    hoop.api.post("/api/access/rules", odd).await?;
    let ada =
        json!({"username": "ada", "password": "correct horse battery", "role": "member", "groups": ["dba", "sre"]});
    hoop.api.post("/api/users", ada).await?;

    let printed = command(&hoop, &["get", "-o", "yaml"]).await?.success()?;
    for document in [
        "kind: agent\nname: edge\n",
        "kind: connection\nname: orders\nagents: [edge]\nhost: db.internal\nuser: app\n",
        "kind: rule\nname: sre\nconnections: [orders]\ngroups: [sre]\n",
        "kind: group\nname: dba\nmembers: [ada]\n",
    ] {
        ensure!(printed.out.contains(document), "no {document:?} in {}", printed.out);
    }
    ensure!(!printed.out.contains(SECRET), "a secret is printed");
    let file = hoop.scratch.path().join("printed.yaml");
    fs::write(&file, &printed.out)?;
    let again = apply(&hoop, &file, &["--dry-run"]).await?;
    let documents = printed.out.matches("kind: ").count();
    ended(&again, 0, &format!("0 to do, {documents} as declared"))?;

    let of_set = command(&hoop, &["get", "--set", "team", "rule"]).await?.success()?;
    ensure!(
        of_set.out == "kind: rule\nname: sre\nconnections: [orders]\ngroups: [sre]\n",
        "{}",
        of_set.out
    );
    Ok(())
}
