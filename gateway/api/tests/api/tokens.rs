//! Personal tokens and service accounts.

use actix_web::http::Method;
use serde_json::{Value, json};

use crate::rig::{PASSWORD, rig};

fn wanted(scopes: &[&str]) -> Value {
    json!({"name": "laptop", "scopes": scopes})
}

#[actix_web::test]
async fn a_token_is_shown_once_and_listed_without_its_secret() {
    let rig = rig().await;
    let made = rig.post("/api/tokens", &rig.member, wanted(&["read"])).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let made = made.json();
    let secret = made["token"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("hoop_pat_") && secret.len() == 56, "{secret}");
    assert_eq!(made["scopes"], json!(["read"]));
    assert_eq!(made["last_used_at"], Value::Null);
    let days = |name: &str| {
        made[name]
            .as_str()
            .unwrap()
            .parse::<chrono::DateTime<chrono::Utc>>()
            .unwrap()
    };
    assert_eq!((days("expires_at") - days("created_at")).num_days(), 90);
    rig.forget();

    assert_eq!(rig.get("/api/me", &secret).await.json()["username"], "ada");
    for token in [&rig.member, &rig.auditor, &rig.admin, &secret] {
        let list = rig.get("/api/tokens", token).await.json();
        assert_eq!(list["items"][0]["hint"], secret[..13]);
        assert_eq!(list["items"][0]["user"], "ada");
        assert!(list["items"][0]["last_used_at"].is_string());
    }
    let id = made["id"].as_str().unwrap();
    assert_eq!(
        rig.get(&format!("/api/tokens/{id}"), &rig.member).await.json()["state"],
        "active"
    );
    assert!(!rig.was_answered(&secret[13..]));
    let recorded = format!("{:?}", rig.records());
    assert!(recorded.contains("token.make") && !recorded.contains(&secret[13..]));
    let client = rig.store.client().await.unwrap();
    let rows = client
        .query("select t::text from personal_tokens t", &[])
        .await
        .unwrap();
    let stored: String = rows[0].get(0);
    assert!(
        stored.contains(&secret[..13]) && !stored.contains(&secret[13..]),
        "{stored}"
    );
}

#[actix_web::test]
async fn a_token_ends_by_time_by_revocation_and_with_its_owner() {
    let rig = rig().await;
    let make = async || {
        let made = rig.post("/api/tokens", &rig.member, wanted(&["read"])).await.json();
        let part = |name: &str| made[name].as_str().unwrap().to_owned();
        (part("id"), part("token"))
    };
    let sql = async |sql: &str| rig.store.client().await.unwrap().batch_execute(sql).await.unwrap();
    let state = async |id: &str| rig.get(&format!("/api/tokens/{id}"), &rig.admin).await.json()["state"].clone();

    let (revoked, secret) = make().await;
    let path = format!("/api/tokens/{revoked}");
    rig.call(Method::DELETE, &path, &rig.auditor, None).await.problem(403);
    assert_eq!(rig.call(Method::DELETE, &path, &rig.member, None).await.status, 204);
    assert_eq!(rig.call(Method::DELETE, &path, &rig.member, None).await.status, 204);
    rig.get("/api/me", &secret).await.problem(401);
    assert_eq!(state(&revoked).await, "revoked");

    let (expired, secret) = make().await;
    sql("update personal_tokens set expires_at = now() - interval '1 second' where revoked_at is null").await;
    rig.get("/api/me", &secret).await.problem(401);
    assert_eq!(state(&expired).await, "expired");

    let (owners, secret) = make().await;
    let ada = |active: bool| json!({"role": "member", "email": "", "groups": [], "active": active});
    let set = async |body| {
        rig.call(Method::PUT, "/api/users/ada", &rig.admin, Some(body))
            .await
            .status
    };
    assert_eq!(set(ada(false)).await, 200);
    rig.get("/api/me", &secret).await.problem(401);
    assert_eq!(state(&owners).await, "revoked");
    assert_eq!(set(ada(true)).await, 200);
    assert_eq!(rig.get("/api/me", &secret).await.status, 200);
    let password = json!({"password": PASSWORD});
    let path = "/api/users/ada/password";
    assert_eq!(
        rig.call(Method::PUT, path, &rig.admin, Some(password)).await.status,
        204
    );
    rig.get("/api/me", &secret).await.problem(401);

    let foreign = rig.post("/api/tokens", &rig.admin, wanted(&["read"])).await.json();
    let path = format!("/api/tokens/{}", foreign["id"].as_str().unwrap());
    rig.call(Method::DELETE, &path, &rig.admin, None).await;
    let user = rig.store.find_user("ada").await.unwrap().unwrap();
    let again = rig
        .store
        .issue_token(&user, std::time::Duration::from_secs(60))
        .await
        .unwrap()
        .unwrap();
    rig.call(Method::DELETE, &path, &again.token, None).await.problem(404);
    rig.get(&path, &again.token).await.problem(404);
}

#[actix_web::test]
async fn a_token_gets_no_more_than_its_owner_has() {
    let rig = rig().await;
    let refused = async |token: &str, body: Value| rig.post("/api/tokens", token, body).await.problem(422);
    assert_eq!(refused(&rig.member, wanted(&["admin"])).await, "scopes");
    assert_eq!(refused(&rig.auditor, wanted(&["connect"])).await, "scopes");
    assert_eq!(refused(&rig.admin, wanted(&[])).await, "scopes");
    assert_eq!(refused(&rig.admin, wanted(&["everything"])).await, "scopes");
    for (member, value) in [
        ("ttl_seconds", json!(59)),
        ("ttl_seconds", json!(31_622_401)),
        ("name", json!(" ")),
    ] {
        let mut body = wanted(&["read"]);
        body[member] = value;
        assert_eq!(refused(&rig.admin, body).await, member);
    }
    // a read token cannot make itself more
    let read = rig.post("/api/tokens", &rig.admin, wanted(&["read"])).await.json();
    let read = read["token"].as_str().unwrap();
    rig.post("/api/tokens", read, wanted(&["admin"])).await.problem(403);
    // nobody signs in as another person
    let mut for_ada = wanted(&["read"]);
    for_ada["user"] = json!("ada");
    assert_eq!(refused(&rig.admin, for_ada.clone()).await, "user");
    rig.post("/api/tokens", &rig.auditor, for_ada).await.problem(403);

    let client = rig.store.client().await.unwrap();
    let many = "insert into personal_tokens (id, user_id, name, scopes, hint, sha256, expires_at) \
        select gen_random_uuid(), u.id, 'x', '{read}', '', sha256(n::text::bytea), now() + interval '1 day' \
        from users u, generate_series(1, 100) n where u.username = 'ada'";
    client.batch_execute(many).await.unwrap();
    assert_eq!(refused(&rig.member, wanted(&["read"])).await, "name");
}

#[actix_web::test]
async fn a_service_account_has_tokens_and_no_password() {
    let rig = rig().await;
    rig.connection().await;
    let robot = json!({"username": "robot", "role": "member", "service": true, "groups": ["ci"]});
    let made = rig.post("/api/users", &rig.admin, robot.clone()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["service"], true);
    let mut with_password = robot;
    with_password["username"] = json!("other");
    with_password["password"] = json!(PASSWORD);
    assert_eq!(
        rig.post("/api/users", &rig.admin, with_password).await.problem(422),
        "password"
    );
    let person = json!({"username": "person", "role": "member"});
    assert_eq!(
        rig.post("/api/users", &rig.admin, person).await.problem(422),
        "password"
    );
    let set = json!({"password": PASSWORD});
    let path = "/api/users/robot/password";
    assert_eq!(
        rig.call(Method::PUT, path, &rig.admin, Some(set)).await.problem(422),
        "password"
    );
    rig.post("/api/login", "", json!({"username": "robot", "password": PASSWORD}))
        .await
        .problem(401);
    let found = rig.get("/api/users?service=true", &rig.auditor).await.json();
    assert_eq!(
        (found["items"].as_array().unwrap().len(), &found["items"][0]["username"]),
        (1, &json!("robot"))
    );

    let body = json!({"name": "ci", "scopes": ["connect"], "user": "robot"});
    let token = rig.post("/api/tokens", &rig.admin, body).await.json();
    let token = token["token"].as_str().unwrap();
    let credential = rig.post("/api/connections/db/credentials", token, json!({})).await;
    assert_eq!(credential.status, 201, "{}", credential.text);
    let (kind, payload) = rig.records().pop().unwrap();
    assert_eq!(kind, "credential.make");
    assert_eq!(payload["by"]["user"], "robot");
    assert!(
        payload["by"]["token"].is_string(),
        "the record names the token: {payload}"
    );
}

/// An admin's service account is no administrator who is left.
#[actix_web::test]
async fn the_last_admin_is_a_person() {
    let rig = rig().await;
    let robot = json!({"username": "robot", "role": "admin", "service": true});
    assert_eq!(rig.post("/api/users", &rig.admin, robot).await.status, 201);
    let demoted = json!({"role": "member", "email": "", "groups": [], "active": true});
    let path = "/api/users/root";
    assert_eq!(
        rig.call(Method::PUT, path, &rig.admin, Some(demoted))
            .await
            .problem(422),
        "role"
    );
}
