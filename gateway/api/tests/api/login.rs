use actix_web::http::Method;
use actix_web::test::TestRequest;
use serde_json::json;

use crate::rig::{PASSWORD, rig};

#[actix_web::test]
async fn a_login_answers_a_token_that_works() {
    let rig = rig().await;
    let body = json!({"username": "Root", "password": PASSWORD, "unknown": "is ignored"});
    let answer = rig.post("/api/login", "", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let signed_in = answer.json();
    assert!(signed_in["expires_at"].is_string());
    let token = signed_in["token"].as_str().unwrap();
    assert!(token.starts_with("hoop_"));
    assert_eq!(rig.get("/api/users", token).await.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[actix_web::test]
async fn wrong_passwords_and_unknown_names_are_told_alike_and_then_slowed() {
    let rig = rig().await;
    let wrong = json!({"username": "root", "password": "not the password"});
    let unknown = json!({"username": "nobody", "password": "not the password"});
    let (a, b) = (
        rig.post("/api/login", "", wrong.clone()).await,
        rig.post("/api/login", "", unknown).await,
    );
    a.problem(401);
    assert_eq!(a.text, b.text);
    assert!(a.header("www-authenticate").starts_with("Bearer"));
    for _ in 0..4 {
        rig.post("/api/login", "", wrong.clone()).await.problem(401);
    }
    let slowed = rig.post("/api/login", "", wrong).await;
    slowed.problem(429);
    assert!(slowed.header("retry-after").parse::<u64>().unwrap() >= 1);
    let other = json!({"username": "ada", "password": PASSWORD});
    assert_eq!(rig.post("/api/login", "", other).await.status, 200);
    assert!(!rig.was_answered("not the password"));
}

#[actix_web::test]
async fn without_a_valid_token_nothing_is_told() {
    let rig = rig().await;
    let no_token = rig.get("/api/agents", "").await;
    no_token.problem(401);
    assert_eq!(no_token.json()["instance"], "/api/agents");
    assert!(no_token.header("www-authenticate").starts_with("Bearer"));
    let changed = format!("{}x", &rig.admin[..rig.admin.len() - 1]);
    for token in ["hoop_", changed.as_str(), "x".repeat(5000).as_str()] {
        rig.get("/api/agents", token).await.problem(401);
    }
    let basic = TestRequest::get()
        .uri("/api/agents")
        .insert_header(("authorization", "Basic eDp5"));
    rig.raw(basic).await.problem(401);
    rig.call(Method::POST, "/api/users", "", Some(json!({"bad": 1})))
        .await
        .problem(401);
}
