//! Access rules with real clients: what a group opens, and how its loss, a rule's change and a network reach people.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::hoop::{Credential, Hoop};
use hoop_tests::http::Api;
use hoop_tests::process::{eventually, run};
use hoop_tests::record::text;
use serde_json::{Value, json};

const PASSWORD: &str = "a password for ada 1";
/// Longest time from a change to its effect on the same replica (the design's promise is 1 s; the rest is the test's own).
const SAME_REPLICA: Duration = Duration::from_secs(2);
/// Longest time from a change to its effect on another replica.
const OTHER_REPLICA: Duration = Duration::from_secs(6);
const LINK_DEADLINE: Duration = Duration::from_secs(30);
const CLIENT_DEADLINE: Duration = Duration::from_secs(30);

/// Ada, of group sre, and a connection `prod` that only the rule `sre` opens.
struct Ada {
    hoop: Hoop,
    credential: Credential,
}

impl Ada {
    async fn start(replicas: usize) -> Result<Self> {
        let hoop = Hoop::with(hoop_tests::hoop::Options {
            replicas,
            ..Default::default()
        })
        .await?;
        hoop.connection("prod", json!({"allow_members": false})).await?;
        let ada = json!({"username": "ada", "password": PASSWORD, "role": "member"});
        hoop.api.post("/api/users", ada).await?;
        hoop.api.post("/api/access/rules", rule(json!({}))).await?;
        groups(&hoop, &["sre"]).await?;
        let base = hoop.gateway()?.ready.api.clone();
        let api = Api::login(&base, "ada", PASSWORD).await?;
        let answer = api.post("/api/connections/prod/credentials", json!({})).await?;
        let credential = Credential {
            user: text(&answer, "user"),
            password: text(&answer, "password"),
            answer,
        };
        let ada = Self { hoop, credential };
        for replica in 0..replicas {
            let login = ada.login(replica)?;
            eventually("each replica serves", LINK_DEADLINE, async || {
                login.query("select 1").await.map(Some)
            })
            .await?;
        }
        Ok(ada)
    }

    fn login(&self, gateway: usize) -> Result<Login> {
        Ok(self.hoop.login_at(gateway, &self.credential)?.sslmode("require"))
    }

    /// Runs `select 1`; answers what psql says on its error stream.
    async fn psql(&self) -> Result<(bool, String)> {
        let mut command = self.login(0)?.command("psql");
        command.args(["-X", "-c", "select 1"]);
        let said = run(command, CLIENT_DEADLINE).await?;
        Ok((said.ok, said.err))
    }
}

fn rule(over: Value) -> Value {
    let mut rule = json!({"name": "sre", "groups": ["sre"], "connections": ["prod"]});
    if let (Some(rule), Value::Object(over)) = (rule.as_object_mut(), over) {
        rule.extend(over);
    }
    rule
}

async fn groups(hoop: &Hoop, groups: &[&str]) -> Result<()> {
    let ada = json!({"role": "member", "email": "", "groups": groups, "active": true});
    hoop.api.put("/api/users/ada", ada).await.map(drop)
}

#[tokio::test]
async fn a_removed_group_ends_the_sessions_that_it_allowed_on_every_replica() -> Result<()> {
    let ada = Ada::start(2).await?;
    let here = ada.login(0)?.with("PGAPPNAME", "here").connect().await?;
    let there = ada.login(1)?.with("PGAPPNAME", "there").connect().await?;
    here.simple_query("select 1").await?;
    there.simple_query("select 1").await?;
    groups(&ada.hoop, &["dev"]).await?;
    let removed = Instant::now();
    eventually("the session on the same replica has ended", SAME_REPLICA, async || {
        Ok(here.is_closed().then_some(()))
    })
    .await?;
    let left = OTHER_REPLICA.saturating_sub(removed.elapsed());
    eventually("the session on the other replica has ended", left, async || {
        Ok(there.is_closed().then_some(()))
    })
    .await?;
    let (good, said) = ada.psql().await?;
    ensure!(
        !good && said.contains("your account may not use the connection \"prod\""),
        "{said}"
    );
    ensure!(said.contains("Ask an administrator"), "{said}");
    let events = ada.hoop.all_events().await?;
    let ended = events.iter().filter(|event| text(event, "kind") == "ended");
    let denied = ended.filter(|event| text(event, "code") == "access_denied").count();
    ensure!(denied == 2, "both sessions' records say why they ended, {denied} do");
    Ok(())
}

#[tokio::test]
async fn a_rule_that_is_changed_reaches_running_sessions_and_leaves_the_others_alone() -> Result<()> {
    let ada = Ada::start(1).await?;
    let bystander = ada.hoop.person().await?.sslmode("require").connect().await?;
    let client = ada.login(0)?.connect().await?;
    let describe = json!({"description": "a change that takes nothing away"});
    ada.hoop.api.put("/api/access/rules/sre", rule(describe)).await?;
    client.simple_query("select 1").await.context("the session goes on")?;
    let elsewhere = json!({"networks": ["192.0.2.0/24"]});
    ada.hoop.api.put("/api/access/rules/sre", rule(elsewhere)).await?;
    eventually("the session from another network has ended", SAME_REPLICA, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    bystander
        .simple_query("select 1")
        .await
        .context("who has access otherwise stays")?;
    let (good, said) = ada.psql().await?;
    ensure!(
        !good && said.contains("not from your network") && said.contains("other networks"),
        "{said}"
    );

    ada.hoop
        .api
        .put("/api/access/rules/sre", rule(json!({"modes": ["web"]})))
        .await?;
    let (good, said) = ada.psql().await?;
    ensure!(!good && said.contains("may not use the connection \"prod\""), "{said}");
    ada.hoop
        .api
        .put(
            "/api/access/rules/sre",
            rule(json!({"networks": ["127.0.0.0/8", "::1/128"]})),
        )
        .await?;
    let (good, said) = ada.psql().await?;
    ensure!(good, "{said}");
    Ok(())
}

#[tokio::test]
async fn a_deactivated_person_is_out_at_once() -> Result<()> {
    let ada = Ada::start(1).await?;
    let client = ada.login(0)?.connect().await?;
    client.simple_query("select 1").await?;
    let inactive = json!({"role": "member", "email": "", "groups": ["sre"], "active": false});
    ada.hoop.api.put("/api/users/ada", inactive).await?;
    eventually("the session has ended", SAME_REPLICA, async || {
        Ok(client.is_closed().then_some(()))
    })
    .await?;
    let (good, said) = ada.psql().await?;
    ensure!(!good && said.contains("was revoked"), "{said}");
    Ok(())
}
