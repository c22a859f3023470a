use std::sync::atomic::Ordering;

use actix_web::http::Method;
use actix_web::test::TestRequest;
use hoop_store::connections::Secret;
use hoop_store::credentials::CredentialState;
use serde_json::{Value, json};

use crate::rig::{TARGET_SECRET, connection, rig};

#[actix_web::test]
async fn agent_connection_and_credential_are_made_and_end() {
    let rig = rig().await;
    let agent = rig.post("/api/agents", &rig.admin, json!({"name": "default"})).await;
    assert_eq!(agent.status, 201, "{}", agent.text);
    let key = agent.json()["key"].as_str().unwrap().to_owned();
    let pin = rig.store.installation().ca.pin();
    let token = key.strip_prefix("grpcs://default:").unwrap().split_once('@').unwrap().0;
    assert!(
        key.ends_with(&format!("@gateway.test:8010?mode=standard&pin={pin}")),
        "{key}"
    );
    assert_eq!(rig.store.authenticate_agent(token).await.unwrap().name, "default");

    let made = rig.post("/api/connections", &rig.admin, connection("db")).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["target"]["secret"], "sealed");
    let stored = rig.store.find_connection("db").await.unwrap().unwrap();
    let Some(Secret::Value(secret)) = rig.store.connection_secret(stored.id).await.unwrap() else {
        panic!("sealed")
    };
    assert_eq!(*secret, TARGET_SECRET);

    let credential = rig.post("/api/connections/db/credentials", &rig.admin, json!({})).await;
    assert_eq!(credential.status, 201, "{}", credential.text);
    let credential = credential.json();
    let (id, password) = (
        credential["user"].as_str().unwrap(),
        credential["password"].as_str().unwrap(),
    );
    assert_eq!((id.len(), password.len()), (9, 26));
    let command = credential["command"].as_str().unwrap();
    assert!(command.starts_with("psql ") && !command.contains(password), "{command}");
    assert_eq!(
        (credential["host"].as_str(), credential["port"].as_u64()),
        (Some("gateway.test"), Some(15432))
    );
    let record = rig.store.lookup_credential(id).await.unwrap().unwrap();
    assert_eq!(record.state, CredentialState::Active);
    assert!(
        (28_790..=28_800).contains(&record.expires_in_s),
        "{}",
        record.expires_in_s
    );

    assert_eq!(
        rig.call(Method::DELETE, &format!("/api/credentials/{id}"), &rig.admin, None)
            .await
            .status,
        204
    );
    let record = rig.store.lookup_credential(id).await.unwrap().unwrap();
    assert_eq!(record.state, CredentialState::Revoked);
    assert_eq!(
        rig.call(Method::DELETE, "/api/connections/db", &rig.admin, None)
            .await
            .status,
        204
    );
    rig.get("/api/connections/db", &rig.admin).await.problem(404);
    assert_eq!(
        rig.call(Method::DELETE, "/api/agents/default", &rig.admin, None)
            .await
            .status,
        204
    );
    assert!(rig.store.authenticate_agent(token).await.is_err());

    let kinds: Vec<String> = rig.records().into_iter().map(|(kind, _)| kind).collect();
    let expected = [
        "agent.register",
        "connection.create",
        "credential.make",
        "credential.revoke",
        "connection.delete",
    ];
    assert_eq!(kinds, [expected.as_slice(), &["agent.revoke"]].concat());
    assert!(
        rig.records()
            .iter()
            .all(|(_, p)| p["by"]["user"] == "root" && p["subject"].is_string())
    );
    let written = format!("{:?}", rig.records());
    assert!(
        !written.contains(TARGET_SECRET) && !written.contains(password) && !written.contains(token),
        "{written}"
    );
}

#[actix_web::test]
async fn no_answer_holds_a_secret() {
    let rig = rig().await;
    rig.connection().await;
    let made = rig
        .post(
            "/api/connections/db/credentials",
            &rig.admin,
            json!({"ttl_seconds": 60}),
        )
        .await
        .json();
    let agent = rig
        .post("/api/agents", &rig.admin, json!({"name": "second"}))
        .await
        .json();
    let key = agent["key"].as_str().unwrap().to_owned();
    rig.forget();

    let mut wrong = connection("other");
    wrong["port"] = json!(TARGET_SECRET);
    rig.post("/api/connections", &rig.admin, wrong).await.problem(422);
    let mut wrong = connection("other");
    wrong["secret"] = json!(TARGET_SECRET);
    assert_eq!(
        rig.post("/api/connections", &rig.admin, wrong).await.problem(422),
        "secret"
    );
    let mut changed = connection("db");
    changed["description"] = json!("changed");
    assert_eq!(
        rig.call(Method::PUT, "/api/connections/db", &rig.admin, Some(changed))
            .await
            .status,
        200
    );
    for path in [
        "agents",
        "connections",
        "connections/db",
        "credentials",
        "users",
        "sessions",
        "openapi.json",
    ] {
        for token in [&rig.admin, &rig.auditor, &rig.member] {
            rig.get(&format!("/api/{path}"), token).await;
        }
    }
    let secrets = [
        TARGET_SECRET,
        made["password"].as_str().unwrap(),
        &key,
        rig.admin.as_str(),
        "argon2",
    ];
    for secret in secrets {
        assert!(!rig.was_answered(secret), "answered {secret}");
    }
}

#[actix_web::test]
async fn an_update_keeps_replaces_or_removes_the_secret_and_heeds_if_match() {
    let rig = rig().await;
    rig.connection().await;
    let read = rig.get("/api/connections/db", &rig.admin).await;
    let tag = read.header("etag").to_owned();
    let put = |body: Value, tag: String| {
        let request = TestRequest::put()
            .uri("/api/connections/db")
            .insert_header(("if-match", tag))
            .set_json(body);
        rig.raw(request.insert_header(("authorization", format!("Bearer {}", rig.admin))))
    };
    let mut body = connection("db");
    body.as_object_mut().unwrap().remove("secret");
    let kept = put(body.clone(), tag.clone()).await;
    assert_eq!(kept.json()["target"]["secret"], "sealed", "{}", kept.text);
    put(body.clone(), tag).await.problem(412);
    put(body.clone(), "nonsense".into()).await.problem(400);
    body["secret"] = json!({"reference": "env:HOOP_TARGET_DB"});
    let referred = put(body.clone(), "*".into()).await.json();
    assert_eq!(referred["target"]["secret_reference"], "env:HOOP_TARGET_DB");
    body["secret"] = json!(null);
    assert_eq!(put(body.clone(), "*".into()).await.json()["target"]["secret"], "none");
    body["name"] = json!("other");
    assert_eq!(put(body, "*".into()).await.problem(422), "name");
}

#[actix_web::test]
async fn a_change_that_cannot_be_recorded_is_not_made() {
    let rig = rig().await;
    rig.connection().await;
    rig.fake.record_fails.store(true, Ordering::Relaxed);
    rig.post("/api/agents", &rig.admin, json!({"name": "second"}))
        .await
        .problem(500);
    rig.post("/api/connections", &rig.admin, connection("second"))
        .await
        .problem(500);
    rig.call(Method::DELETE, "/api/connections/db", &rig.admin, None)
        .await
        .problem(500);
    rig.post("/api/connections/db/credentials", &rig.admin, json!({}))
        .await
        .problem(500);
    let user = json!({"username": "eve", "password": "a long password", "role": "admin"});
    rig.post("/api/users", &rig.admin, user).await.problem(500);
    rig.fake.record_fails.store(false, Ordering::Relaxed);
    assert_eq!(
        rig.get("/api/agents", &rig.admin).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        rig.get("/api/connections", &rig.admin).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(rig.get("/api/credentials", &rig.admin).await.json()["items"], json!([]));
    assert!(rig.store.find_user("eve").await.unwrap().is_none());
}

#[actix_web::test]
async fn a_wrong_request_is_told_what_is_wrong() {
    let rig = rig().await;
    rig.connection().await;
    let admin = &rig.admin;
    assert_eq!(
        rig.post("/api/agents", admin, json!({"name": "x", "extra": 1}))
            .await
            .problem(422),
        "extra"
    );
    assert_eq!(rig.post("/api/agents", admin, json!({})).await.problem(422), "name");
    assert_eq!(
        rig.post("/api/agents", admin, json!({"name": "Not A Label"}))
            .await
            .problem(422),
        "name"
    );
    rig.post("/api/agents", admin, json!({"name": "default"}))
        .await
        .problem(409);
    rig.post("/api/connections", admin, connection("db")).await.problem(409);
    let mut stray = connection("other");
    stray["agents"] = json!(["default", "nobody"]);
    assert_eq!(rig.post("/api/connections", admin, stray).await.problem(422), "agents");
    let ttl = json!({"ttl_seconds": 172_801});
    assert_eq!(
        rig.post("/api/connections/db/credentials", admin, ttl)
            .await
            .problem(422),
        "ttl_seconds"
    );
    let short = json!({"username": "eve", "password": "short", "role": "member"});
    assert_eq!(rig.post("/api/users", admin, short).await.problem(422), "password");
    assert_eq!(rig.get("/api/agents?limit=0", admin).await.problem(422), "limit");
    assert_eq!(rig.get("/api/agents?nonsense=1", admin).await.problem(422), "nonsense");
    assert_eq!(
        rig.get("/api/sessions?cursor=nonsense", admin).await.problem(422),
        "cursor"
    );

    let authorized = |request: TestRequest| request.insert_header(("authorization", format!("Bearer {admin}")));
    let post = |kind: &'static str, body: Vec<u8>| {
        authorized(
            TestRequest::post()
                .uri("/api/agents")
                .insert_header(("content-type", kind))
                .set_payload(body),
        )
    };
    rig.raw(post("application/json", b"{".to_vec())).await.problem(400);
    rig.raw(post("application/json", b"{]".to_vec())).await.problem(400);
    rig.raw(post("text/plain", b"{}".to_vec())).await.problem(415);
    rig.raw(post("application/json", vec![b' '; 70_000])).await.problem(413);
    rig.get("/api/nothing", admin).await.problem(404);
    rig.get("/nothing", admin).await.problem(404);
    let not_allowed = rig.call(Method::PUT, "/api/agents", admin, None).await;
    not_allowed.problem(405);
    assert_eq!(not_allowed.header("allow"), "GET, POST");
    rig.call(Method::POST, "/healthz", "", None).await.problem(405);
    rig.call(Method::DELETE, "/api/agents/nobody", admin, None)
        .await
        .problem(404);
    rig.call(Method::DELETE, "/api/credentials/c00000000", admin, None)
        .await
        .problem(404);
}

#[actix_web::test]
async fn a_connection_is_tested_by_admins_alone_recorded_and_not_too_often() {
    let rig = rig().await;
    rig.connection().await;
    let path = "/api/connections/db/test";
    for (token, status) in [(rig.member.as_str(), 403), (rig.auditor.as_str(), 403), ("", 401)] {
        rig.call(Method::POST, path, token, None).await.problem(status);
    }
    assert!(!rig.records().iter().any(|(kind, _)| kind == "connection.test"));
    let tested = rig.call(Method::POST, path, &rig.admin, None).await;
    assert_eq!(
        (tested.status, &tested.json()["ok"]),
        (200, &json!(true)),
        "{}",
        tested.text
    );
    assert_eq!(tested.json()["agents"][0]["server_version"], "secret: true");
    let records = rig.records();
    let (_, record) = records.iter().find(|(kind, _)| kind == "connection.test").unwrap();
    assert_eq!(
        (&record["subject"], &record["by"]["user"]),
        (&json!("db"), &json!("root"))
    );
    assert!(!record.to_string().contains(TARGET_SECRET), "{record}");
    rig.call(Method::POST, "/api/connections/none/test", &rig.admin, None)
        .await
        .problem(404);
    // before it is stored: with the stored secret where none is given
    let mut unsaved = connection("db");
    unsaved.as_object_mut().unwrap().remove("secret");
    let tested = rig.post("/api/connections/test", &rig.admin, unsaved.clone()).await;
    assert_eq!(
        tested.json()["agents"][0]["server_version"],
        "secret: true",
        "{}",
        tested.text
    );
    unsaved["name"] = json!("new");
    let tested = rig.post("/api/connections/test", &rig.admin, unsaved.clone()).await;
    assert_eq!(
        tested.json()["agents"][0]["server_version"],
        "secret: false",
        "{}",
        tested.text
    );
    unsaved["port"] = json!(0);
    assert_eq!(
        rig.post("/api/connections/test", &rig.admin, unsaved)
            .await
            .problem(422),
        "port"
    );
    rig.fake.record_fails.store(true, Ordering::Relaxed);
    rig.call(Method::POST, path, &rig.admin, None).await.problem(500);
    rig.fake.record_fails.store(false, Ordering::Relaxed);
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(rig.call(Method::POST, path, &rig.admin, None).await);
    }
    let last = answers.last().unwrap();
    last.problem(429);
    assert!(last.header("retry-after").parse::<u64>().unwrap() > 0);
}
