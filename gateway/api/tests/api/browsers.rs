//! Signing in from a browser: the cookie, what keeps others from using it, and where it ends.

use actix_web::http::Method;
use actix_web::test::TestRequest;
use serde_json::{Value, json};

use crate::rig::{Answer, Api, PASSWORD, Rig, rig};

/// A browser that is signed in.
struct Browser {
    cookie: String,
    csrf: String,
}

async fn sign_in<S: Api>(rig: &Rig<S>, username: &str) -> Browser {
    let body = json!({"username": username, "password": PASSWORD, "hold": "cookie"});
    let answer = rig.post("/api/login", "", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let (cookie, attributes) = answer.header("set-cookie").split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure");
    assert!(cookie.starts_with("__Host-hoop_session=hoop_s_"), "{cookie}");
    assert!(!answer.text.contains("hoop_s_") && answer.json().get("token").is_none());
    Browser {
        cookie: cookie.to_owned(),
        csrf: answer.json()["csrf_token"].as_str().unwrap().to_owned(),
    }
}

impl Browser {
    async fn send<S: Api>(&self, rig: &Rig<S>, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = TestRequest::default().method(method).uri(path);
        request = request.insert_header(("cookie", self.cookie.as_str()));
        for header in headers {
            request = request.append_header(*header);
        }
        rig.raw(request.set_json(json!({"name": "edge"}))).await
    }

    async fn get<S: Api>(&self, rig: &Rig<S>, path: &str) -> Answer {
        self.send(rig, Method::GET, path, &[]).await
    }

    async fn post<S: Api>(&self, rig: &Rig<S>, path: &str) -> Answer {
        self.send(rig, Method::POST, path, &[("x-csrf-token", &self.csrf)])
            .await
    }
}

#[actix_web::test]
async fn a_browser_reads_with_its_cookie_and_changes_with_its_token_from_our_own_pages() {
    let rig = rig().await;
    let root = sign_in(&rig, "root").await;
    assert_eq!(root.get(&rig, "/api/users").await.status, 200);
    let session = root.get(&rig, "/api/session").await.json();
    assert_eq!(session["csrf_token"], root.csrf);
    assert_eq!(
        (&session["hold"], &session["method"]),
        (&json!("cookie"), &json!("password"))
    );

    let other = sign_in(&rig, "watch").await;
    let refused: [(&[(&str, &str)], &str); 4] = [
        (&[], "X-CSRF-Token"),
        (&[("x-csrf-token", &other.csrf)], "X-CSRF-Token"),
        (
            &[("x-csrf-token", &root.csrf), ("origin", "https://evil.test")],
            "Origin",
        ),
        (&[("x-csrf-token", &root.csrf), ("origin", "null")], "Origin"),
    ];
    for (headers, field) in refused {
        let answer = root.send(&rig, Method::POST, "/api/agents", headers).await;
        assert_eq!(answer.problem(403), field, "{headers:?}");
    }
    let own = [("x-csrf-token", root.csrf.as_str()), ("origin", "https://gateway.test")];
    let made = root.send(&rig, Method::POST, "/api/agents", &own).await;
    assert_eq!(made.status, 201, "{}", made.text);
}

#[actix_web::test]
async fn who_asks_is_said_once_and_plainly() {
    let rig = rig().await;
    let root = sign_in(&rig, "root").await;
    let bearer = format!("Bearer {}", rig.admin);
    let both = root
        .send(&rig, Method::GET, "/api/me", &[("authorization", &bearer)])
        .await;
    both.problem(401);
    assert!(both.text.contains("Send one of them"), "{}", both.text);
    let basic = root
        .send(&rig, Method::GET, "/api/me", &[("authorization", "Basic eDp5")])
        .await;
    assert_eq!(basic.problem(401), "Authorization");
    let twice = root
        .send(&rig, Method::GET, "/api/me", &[("cookie", &root.cookie)])
        .await;
    twice.problem(401);
    assert!(twice.text.contains("twice"), "{}", twice.text);
    let forged = TestRequest::get()
        .uri("/api/me")
        .insert_header(("cookie", "__Host-hoop_session=hoop_s_0"));
    rig.raw(forged).await.problem(401);
}

#[actix_web::test]
async fn a_session_ends_at_sign_out_at_the_next_sign_in_and_by_an_administrator() {
    let rig = rig().await;
    let ada = sign_in(&rig, "ada").await;
    let out = ada.post(&rig, "/api/logout").await;
    assert_eq!(out.status, 204);
    assert!(
        out.header("set-cookie")
            .starts_with("__Host-hoop_session=; Path=/; Max-Age=0;")
    );
    ada.get(&rig, "/api/me").await.problem(401);

    let first = sign_in(&rig, "ada").await;
    let again = TestRequest::post()
        .uri("/api/login")
        .insert_header(("cookie", first.cookie.as_str()))
        .set_json(json!({"username": "ada", "password": PASSWORD, "hold": "cookie"}));
    assert_eq!(rig.raw(again).await.status, 200);
    first.get(&rig, "/api/me").await.problem(401);

    let (one, two) = (sign_in(&rig, "ada").await, sign_in(&rig, "ada").await);
    let list = one.get(&rig, "/api/me/browser-sessions").await.json();
    let items = list["items"].as_array().unwrap();
    let current: Vec<&Value> = items.iter().filter(|item| item["current"] == true).collect();
    assert_eq!((items.len(), current.len()), (3, 1), "{list}");
    assert_eq!(current[0]["address"], "192.0.2.7");
    let path = format!("/api/me/browser-sessions/{}", current[0]["id"].as_str().unwrap());
    let token = [("x-csrf-token", two.csrf.as_str())];
    assert_eq!(two.send(&rig, Method::DELETE, &path, &token).await.status, 204);
    one.get(&rig, "/api/me").await.problem(401);
    two.send(&rig, Method::DELETE, &path, &token).await.problem(404);
    let root = sign_in(&rig, "root").await;
    let own = root.get(&rig, "/api/me/browser-sessions").await.json();
    let path = format!("/api/me/browser-sessions/{}", own["items"][0]["id"].as_str().unwrap());
    two.send(&rig, Method::DELETE, &path, &token).await.problem(404);

    let path = "/api/users/ada/browser-sessions";
    assert_eq!(
        rig.get(path, &rig.auditor).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    rig.call(Method::DELETE, path, &rig.auditor, None).await.problem(403);
    assert_eq!(rig.call(Method::DELETE, path, &rig.admin, None).await.status, 204);
    two.get(&rig, "/api/me").await.problem(401);
}

#[actix_web::test]
async fn sign_ins_are_recorded_and_none_succeeds_unrecorded() {
    let rig = rig().await;
    let ada = sign_in(&rig, "ada").await;
    let wrong = |name: &str| json!({"username": name, "password": "not the password"});
    rig.post("/api/login", "", wrong("ada")).await.problem(401);
    rig.post("/api/login", "", wrong("my-password-in-the-wrong-box"))
        .await
        .problem(401);
    ada.post(&rig, "/api/logout").await;

    let records = rig.records();
    let said = serde_json::to_string(&records).unwrap();
    for secret in [PASSWORD, "not the password", "in-the-wrong-box", "hoop_s_", &ada.csrf] {
        assert!(!said.contains(secret), "{said}");
    }
    let [success, known, unknown, out] = <[_; 4]>::try_from(records).unwrap();
    assert_eq!(success.0, "login.succeeded");
    assert_eq!(success.1["by"]["user"], "ada");
    assert_eq!(success.1["by"]["address"], "192.0.2.7");
    assert_eq!(success.1["after"]["method"], "password");
    assert_eq!((known.0.as_str(), &known.1["subject"]), ("login.failed", &json!("ada")));
    assert_eq!(known.1["after"]["why"], "wrong password");
    assert_eq!(
        (unknown.0.as_str(), &unknown.1["subject"]),
        ("login.failed", &json!(null))
    );
    assert_eq!((out.0.as_str(), &out.1["by"]["user"]), ("logout", &json!("ada")));
    assert_eq!(out.1["before"]["session"], success.1["after"]["session"]);

    rig.fake.record_fails.store(true, std::sync::atomic::Ordering::Relaxed);
    let body = json!({"username": "ada", "password": PASSWORD, "hold": "cookie"});
    let refused = rig.post("/api/login", "", body).await;
    refused.problem(500);
    assert_eq!(refused.header("set-cookie"), "");
}

#[actix_web::test]
async fn nobody_is_signed_in_from_another_sites_page() {
    let rig = rig().await;
    let foreign = TestRequest::post()
        .uri("/api/login")
        .insert_header(("origin", "https://evil.test"))
        .set_json(json!({"username": "ada", "password": PASSWORD, "hold": "cookie"}));
    assert_eq!(rig.raw(foreign).await.problem(403), "Origin");
}

#[actix_web::test]
async fn attempts_that_are_refused_unseen_are_in_the_record_once_a_window() {
    let rig = rig().await;
    for name in ["ada", "my-password-in-the-wrong-box"] {
        let guess = json!({"username": name, "password": "not the password"});
        for _ in 0..5 {
            rig.post("/api/login", "", guess.clone()).await.problem(401);
        }
        for _ in 0..3 {
            rig.post("/api/login", "", guess.clone()).await.problem(429);
        }
    }
    let records = rig.records();
    let of = |wanted: &str| {
        let found = records.iter().filter(|(kind, _)| kind == wanted);
        found.map(|(_, payload)| payload.clone()).collect::<Vec<Value>>()
    };
    assert_eq!(of("login.failed").len(), 10);
    let [known, unknown] = <[_; 2]>::try_from(of("login.refused")).unwrap();
    assert_eq!((&known["subject"], &unknown["subject"]), (&json!("ada"), &json!(null)));
    for refused in [&known, &unknown] {
        assert_eq!(refused["by"]["address"], "192.0.2.7");
        assert_eq!(
            (&refused["after"]["method"], &refused["after"]["attempts"]),
            (&json!("password"), &json!(1))
        );
    }
    assert!(!serde_json::to_string(&records).unwrap().contains("wrong-box"));
}
