//! Access rules, users that change, and the decision that follows from both.

use actix_web::http::Method;
use serde_json::{Value, json};

use crate::rig::{Api, Rig, connection, rig};

fn rule(name: &str) -> Value {
    json!({"name": name, "groups": ["sre"], "connections": ["prod-*"], "max_credential_s": 600})
}

impl<S: Api> Rig<S> {
    async fn put(&self, path: &str, body: Value) -> u16 {
        self.call(Method::PUT, path, &self.admin, Some(body)).await.status
    }

    async fn delete(&self, path: &str) -> u16 {
        self.call(Method::DELETE, path, &self.admin, None).await.status
    }

    /// A connection that no member may use without a rule.
    async fn closed(&self, name: &str) {
        let mut closed = connection(name);
        closed["allow_members"] = json!(false);
        assert_eq!(self.post("/api/connections", &self.admin, closed).await.status, 201);
    }

    async fn ada(&self, groups: &[&str]) {
        let ada = json!({"role": "member", "email": "", "groups": groups, "active": true});
        assert_eq!(self.put("/api/users/ada", ada).await, 200);
    }

    async fn explained(&self, question: &str) -> Value {
        let answer = self
            .get(&format!("/api/access/explain?{question}"), &self.auditor)
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }
}

#[actix_web::test]
async fn a_rule_is_made_read_changed_and_deleted_by_admins_alone() {
    let rig = rig().await;
    let made = rig.post("/api/access/rules", &rig.admin, rule("sre")).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let tag = made.header("etag").to_owned();
    assert_eq!(made.json()["modes"], json!(["native", "web", "exec", "runbook"]));
    rig.post("/api/access/rules", &rig.admin, rule("sre"))
        .await
        .problem(409);

    let list = rig.get("/api/access/rules", &rig.auditor).await.json();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["name"].clone())
        .collect();
    assert_eq!(
        names,
        ["administrators", "sre"],
        "the first rule is there from the start"
    );
    rig.get("/api/access/rules", &rig.member).await.problem(403);
    rig.get("/api/access/rules/nothing", &rig.auditor).await.problem(404);
    for token in [&rig.auditor, &rig.member] {
        rig.post("/api/access/rules", token, rule("x")).await.problem(403);
        let path = "/api/access/rules/sre";
        rig.call(Method::PUT, path, token, Some(rule("sre"))).await.problem(403);
        rig.call(Method::DELETE, path, token, None).await.problem(403);
    }

    let change = |tag: String| {
        actix_web::test::TestRequest::put()
            .uri("/api/access/rules/sre")
            .insert_header(("authorization", format!("Bearer {}", rig.admin)))
            .insert_header(("if-match", tag))
            .set_json(rule("sre"))
    };
    assert_eq!(rig.raw(change(tag.clone())).await.status, 200);
    rig.raw(change(tag)).await.problem(412);
    assert_eq!(rig.delete("/api/access/rules/sre").await, 204);
    assert_eq!(rig.delete("/api/access/rules/sre").await, 404);
    let kinds: Vec<_> = rig.records().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["rule.create", "rule.update", "rule.delete"]);
}

#[actix_web::test]
async fn a_rule_that_cannot_be_is_refused_by_its_member() {
    let rig = rig().await;
    for (member, value) in [
        ("name", json!("Not A Label")),
        ("groups", json!([])),
        ("groups", json!([" "])),
        ("connections", json!([])),
        ("connections", json!(["a*b"])),
        ("modes", json!([])),
        ("modes", json!(["telepathy"])),
        ("roles", json!(["auditor"])),
        ("networks", json!(["10.0.0.0/33"])),
        ("max_credential_s", json!(172_801)),
        (
            "schedule",
            json!({"days": [], "from": "08:00", "until": "18:00", "timezone": "UTC"}),
        ),
        (
            "schedule",
            json!({"days": ["mon"], "from": "8", "until": "18:00", "timezone": "UTC"}),
        ),
        (
            "schedule",
            json!({"days": ["mon"], "from": "08:00", "until": "18:00", "timezone": "Mars/Olympus"}),
        ),
        ("surprise", json!(1)),
    ] {
        let mut bad = rule("sre");
        bad[member] = value.clone();
        let answer = rig.post("/api/access/rules", &rig.admin, bad).await;
        assert_eq!(answer.problem(422), member, "{value}");
    }
}

#[actix_web::test]
async fn a_group_opens_what_its_rule_names_and_its_removal_shuts_it() {
    let rig = rig().await;
    rig.connection().await;
    rig.closed("prod-db").await;
    rig.closed("stage-db").await;
    let credentials = |name: &str| format!("/api/connections/{name}/credentials");
    rig.post(&credentials("prod-db"), &rig.member, json!({}))
        .await
        .problem(404);
    assert_eq!(
        rig.post("/api/access/rules", &rig.admin, rule("sre-prod")).await.status,
        201
    );
    let denied = rig.explained("user=ada&connection=prod-db").await;
    assert_eq!(denied["allowed"], false);
    assert_eq!(
        denied["summary"],
        "ada may not use prod-db: the rule sre-prod allows it to the groups sre."
    );

    rig.ada(&["sre", "sre", " dev "]).await;
    assert_eq!(
        rig.get("/api/me", &rig.member).await.json()["groups"],
        json!(["dev", "sre"])
    );
    let allowed = rig.explained("user=ada&connection=prod-db").await;
    assert_eq!(
        (&allowed["allowed"], &allowed["max_credential_s"]),
        (&json!(true), &json!(600))
    );
    assert_eq!(rig.get("/api/connections/prod-db", &rig.member).await.status, 200);
    rig.get("/api/connections/stage-db", &rig.member).await.problem(404);
    let long = rig
        .post(&credentials("prod-db"), &rig.member, json!({"ttl_seconds": 601}))
        .await;
    assert_eq!(long.problem(422), "ttl_seconds");
    let made = rig.post(&credentials("prod-db"), &rig.member, json!({})).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let expires: chrono::DateTime<chrono::Utc> = made.json()["expires_at"].as_str().unwrap().parse().unwrap();
    assert!(
        expires < chrono::Utc::now() + chrono::TimeDelta::seconds(660),
        "the rule's limit is the default"
    );
    let record = rig
        .store
        .lookup_credential(made.json()["id"].as_str().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert!(rig.may_use(&record));

    rig.ada(&["dev"]).await;
    rig.get("/api/connections/prod-db", &rig.member).await.problem(404);
    rig.post(&credentials("prod-db"), &rig.member, json!({}))
        .await
        .problem(404);
    let record = rig.store.lookup_credential(&record.id).await.unwrap().unwrap();
    assert!(!rig.may_use(&record), "what was made before is of no use any more");
}

#[actix_web::test]
async fn an_explanation_asks_for_time_and_place_where_they_are_given() {
    let rig = rig().await;
    rig.connection().await;
    rig.closed("prod-db").await;
    let mut strict = rule("strict");
    strict["users"] = json!(["ada"]);
    strict["modes"] = json!(["native"]);
    strict["networks"] = json!(["192.0.2.9/24"]);
    strict["schedule"] = json!({"days": ["tue"], "from": "08:00", "until": "18:00", "timezone": "Europe/Berlin"});
    let made = rig.post("/api/access/rules", &rig.admin, strict).await.json();
    assert_eq!(
        made["networks"],
        json!(["192.0.2.0/24"]),
        "a network is named by its first address"
    );
    for (question, allowed, obstacle) in [
        ("", true, json!([])),
        ("&mode=web", false, json!(["mode"])),
        ("&address=192.0.2.1&at=2026-11-24T07:00:00Z", true, json!([])),
        ("&address=192.0.2.1&at=2026-11-24T17:00:00Z", false, json!(["schedule"])),
        (
            "&address=198.51.100.1&at=2026-11-24T07:00:00Z",
            false,
            json!(["network"]),
        ),
    ] {
        let explained = rig.explained(&format!("user=ada&connection=prod-db{question}")).await;
        assert_eq!(explained["allowed"], allowed, "{question}: {explained}");
        assert_eq!(explained["rules"][0]["obstacles"], obstacle, "{question}");
    }
    let at = rig
        .explained("user=ada&connection=prod-db&address=192.0.2.1&at=2026-11-24T07:00:00Z")
        .await;
    assert_eq!(at["until"], "2026-11-24T17:00:00Z");
    for (question, status) in [
        ("user=nobody&connection=prod-db", 404),
        ("user=ada&connection=nothing", 404),
        ("user=ada&connection=prod-db&at=2026-11-24T07:00:00Z", 422),
        ("user=ada&connection=prod-db&surprise=1", 422),
        ("user=ada", 422),
    ] {
        rig.get(&format!("/api/access/explain?{question}"), &rig.admin)
            .await
            .problem(status);
    }
    rig.get("/api/access/explain?user=ada&connection=prod-db", &rig.member)
        .await
        .problem(403);
}

#[actix_web::test]
async fn administrators_reach_by_a_rule_as_everybody_does() {
    let rig = rig().await;
    rig.connection().await;
    rig.closed("prod-db").await;
    let path = "/api/connections/prod-db/credentials";
    assert_eq!(rig.post(path, &rig.admin, json!({})).await.status, 201);
    assert_eq!(rig.delete("/api/access/rules/administrators").await, 204);
    rig.post(path, &rig.admin, json!({})).await.problem(403);
}

#[actix_web::test]
async fn a_user_changes_and_somebody_is_always_left_to_administer() {
    let rig = rig().await;
    let root = |role: &str, active: bool| json!({"role": role, "email": "", "groups": [], "active": active});
    for (role, active) in [("member", true), ("admin", false)] {
        let answer = rig
            .call(Method::PUT, "/api/users/root", &rig.admin, Some(root(role, active)))
            .await;
        assert_eq!(answer.problem(422), "role");
    }
    rig.call(Method::DELETE, "/api/users/root", &rig.admin, None)
        .await
        .problem(422);
    let second = json!({"username": "second", "password": "a long password 2", "role": "admin"});
    assert_eq!(rig.post("/api/users", &rig.admin, second).await.status, 201);
    assert_eq!(rig.put("/api/users/root", root("auditor", true)).await, 200);
    rig.call(Method::PUT, "/api/users/ada", &rig.admin, Some(root("admin", true)))
        .await
        .problem(403);
    assert_eq!(rig.get("/api/users/ada", &rig.admin).await.status, 200);
    rig.get("/api/users/ada", &rig.member).await.problem(403);
}

#[actix_web::test]
async fn tokens_end_with_a_sign_out_a_new_password_and_their_user() {
    let rig = rig().await;
    assert_eq!(rig.post("/api/logout", &rig.auditor, json!({})).await.status, 204);
    rig.get("/api/me", &rig.auditor).await.problem(401);
    let short = rig
        .call(
            Method::PUT,
            "/api/users/ada/password",
            &rig.admin,
            Some(json!({"password": "short"})),
        )
        .await;
    assert_eq!(short.problem(422), "password");
    let new = json!({"password": "another long password"});
    assert_eq!(rig.put("/api/users/ada/password", new).await, 204);
    rig.get("/api/me", &rig.member).await.problem(401);
    let sign_in = json!({"username": "ada", "password": "another long password"});
    let token = rig.post("/api/login", "", sign_in.clone()).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(rig.get("/api/me", &token).await.json()["username"], "ada");
    assert_eq!(rig.delete("/api/users/ada").await, 204);
    rig.get("/api/me", &token).await.problem(401);
    rig.post("/api/login", "", sign_in).await.problem(401);
}
