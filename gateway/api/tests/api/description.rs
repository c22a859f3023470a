use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::rig::{connection, rig};

/// What every route of `/api`, and every one with a body, documents.
const OF_MANY: [u16; 2] = [429, 408];
/// Every route and its other documented statuses.
const ROUTES: &[(&str, &str, &[u16])] = &[
    ("get", "/healthz", &[200]),
    ("get", "/readyz", &[200, 503]),
    ("get", "/metrics", &[200, 401, 403, 500, 503]),
    ("get", "/api/ca.pem", &[200, 500, 503]),
    ("get", "/api/openapi.json", &[200, 500, 503]),
    ("get", "/api/docs", &[200, 500, 503]),
    ("get", "/api/docs.css", &[200, 500, 503]),
    (
        "post",
        "/api/login",
        &[200, 202, 400, 401, 403, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/login/second-factor",
        &[200, 400, 401, 403, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/login/enrol",
        &[200, 400, 401, 403, 409, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/setup",
        &[200, 400, 401, 403, 413, 415, 422, 429, 500, 503],
    ),
    (
        "put",
        "/api/me/password",
        &[204, 400, 401, 403, 413, 415, 422, 429, 500, 503],
    ),
    ("get", "/api/me/second-factor", &[200, 401, 403, 500, 503]),
    (
        "post",
        "/api/me/second-factor",
        &[200, 400, 401, 403, 409, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/me/second-factor/confirm",
        &[200, 400, 401, 403, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/me/second-factor/recovery-codes",
        &[200, 400, 401, 403, 404, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/me/second-factor/remove",
        &[204, 400, 401, 403, 404, 413, 415, 422, 429, 500, 503],
    ),
    (
        "delete",
        "/api/users/{username}/second-factor",
        &[204, 401, 403, 404, 500, 503],
    ),
    ("post", "/api/logout", &[204, 401, 403, 500, 503]),
    ("get", "/api/session", &[200, 401, 403, 500, 503]),
    ("get", "/api/me/browser-sessions", &[200, 401, 403, 500, 503]),
    (
        "delete",
        "/api/me/browser-sessions/{id}",
        &[204, 401, 403, 404, 500, 503],
    ),
    (
        "get",
        "/api/users/{username}/browser-sessions",
        &[200, 401, 403, 404, 500, 503],
    ),
    (
        "delete",
        "/api/users/{username}/browser-sessions",
        &[204, 401, 403, 404, 500, 503],
    ),
    ("get", "/api/sign-in", &[200, 422]),
    ("get", "/api/sign-in/providers", &[200, 500, 503]),
    ("get", "/api/sign-in/log-out-address", &[200, 401, 403, 500, 503]),
    ("post", "/api/sign-in/device", &[200, 400, 413, 415, 422, 429, 500, 503]),
    ("get", "/api/sign-in/device", &[200, 303, 401, 404, 422, 429, 500, 503]),
    (
        "post",
        "/api/sign-in/device/answer",
        &[200, 400, 401, 403, 404, 413, 415, 429, 500, 503],
    ),
    (
        "post",
        "/api/sign-in/device/token",
        &[200, 400, 401, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/sign-in/loopback", &[200, 303, 401, 422, 500, 503]),
    (
        "post",
        "/api/sign-in/loopback/answer",
        &[303, 400, 401, 403, 413, 415, 422, 500, 503],
    ),
    (
        "post",
        "/api/sign-in/loopback/token",
        &[200, 400, 401, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/sign-in/{provider}", &[303, 403, 404, 422, 503]),
    (
        "get",
        "/api/sign-in/{provider}/callback",
        &[303, 400, 401, 403, 404, 429, 500, 503],
    ),
    (
        "post",
        "/api/sign-in/{provider}/acs",
        &[303, 400, 401, 403, 404, 413, 415, 429, 500, 503],
    ),
    ("get", "/api/sign-in/{provider}/metadata", &[200, 404]),
    (
        "get",
        "/api/users/{username}/identities",
        &[200, 401, 403, 404, 500, 503],
    ),
    (
        "post",
        "/api/users/{username}/identities",
        &[201, 400, 401, 403, 404, 409, 413, 415, 422, 500, 503],
    ),
    (
        "delete",
        "/api/users/{username}/identities",
        &[204, 401, 403, 404, 422, 500, 503],
    ),
    ("get", "/api/me", &[200, 401, 403, 500, 503]),
    ("get", "/api/users", &[200, 401, 403, 422, 500, 503]),
    ("get", "/api/users/{username}", &[200, 401, 403, 404, 500, 503]),
    (
        "put",
        "/api/users/{username}",
        &[200, 400, 401, 403, 404, 412, 413, 415, 422, 500, 503],
    ),
    (
        "delete",
        "/api/users/{username}",
        &[204, 400, 401, 403, 404, 412, 422, 500, 503],
    ),
    (
        "put",
        "/api/users/{username}/password",
        &[204, 400, 401, 403, 404, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/access/rules", &[200, 401, 403, 422, 500, 503]),
    (
        "post",
        "/api/access/rules",
        &[201, 400, 401, 403, 409, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/access/rules/{name}", &[200, 401, 403, 404, 500, 503]),
    (
        "put",
        "/api/access/rules/{name}",
        &[200, 400, 401, 403, 404, 412, 413, 415, 422, 500, 503],
    ),
    (
        "delete",
        "/api/access/rules/{name}",
        &[204, 400, 401, 403, 404, 412, 500, 503],
    ),
    ("get", "/api/access/explain", &[200, 401, 403, 404, 422, 500, 503]),
    (
        "post",
        "/api/users",
        &[201, 400, 401, 403, 409, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/agents", &[200, 401, 403, 422, 500, 503]),
    (
        "post",
        "/api/agents",
        &[201, 400, 401, 403, 409, 413, 415, 422, 500, 503],
    ),
    ("delete", "/api/agents/{name}", &[204, 401, 403, 404, 500, 503]),
    ("get", "/api/connections", &[200, 401, 403, 422, 500, 503]),
    (
        "post",
        "/api/connections",
        &[201, 400, 401, 403, 409, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/connections/{name}", &[200, 401, 403, 404, 500, 503]),
    (
        "put",
        "/api/connections/{name}",
        &[200, 400, 401, 403, 404, 412, 413, 415, 422, 500, 503],
    ),
    (
        "delete",
        "/api/connections/{name}",
        &[204, 400, 401, 403, 404, 412, 500, 503],
    ),
    (
        "post",
        "/api/connections/test",
        &[200, 400, 401, 403, 413, 415, 422, 429, 500, 503],
    ),
    (
        "post",
        "/api/connections/{name}/test",
        &[200, 401, 403, 404, 429, 500, 503],
    ),
    (
        "post",
        "/api/connections/{name}/credentials",
        &[201, 400, 401, 403, 404, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/credentials", &[200, 401, 403, 422, 500, 503]),
    ("delete", "/api/credentials/{id}", &[204, 401, 403, 404, 500, 503]),
    ("get", "/api/ssh-keys", &[200, 401, 403, 422, 500, 503]),
    (
        "post",
        "/api/ssh-keys",
        &[201, 400, 401, 403, 404, 409, 413, 415, 422, 500, 503],
    ),
    ("delete", "/api/ssh-keys/{id}", &[204, 401, 403, 404, 500, 503]),
    ("get", "/api/tokens", &[200, 401, 403, 422, 500, 503]),
    (
        "post",
        "/api/tokens",
        &[201, 400, 401, 403, 404, 413, 415, 422, 500, 503],
    ),
    ("get", "/api/tokens/{id}", &[200, 401, 403, 404, 500, 503]),
    ("delete", "/api/tokens/{id}", &[204, 401, 403, 404, 500, 503]),
    ("get", "/api/sessions", &[200, 401, 403, 422, 500, 503]),
    ("get", "/api/sessions/{id}", &[200, 401, 403, 404, 500, 503]),
    ("get", "/api/sessions/{id}/events", &[200, 401, 403, 404, 422, 500, 503]),
    ("post", "/api/sessions/{id}/kill", &[202, 401, 403, 404, 409, 500, 503]),
    ("get", "/api/events", &[200, 401, 403, 422, 429, 500, 503]),
    ("get", "/api/audit", &[200, 401, 403, 422, 500, 503]),
    ("get", "/api/audit/export", &[200, 401, 403, 422, 500, 503]),
];

#[actix_web::test]
async fn the_description_lists_every_route_with_its_statuses() {
    let rig = rig().await;
    let document = rig.get("/api/openapi.json", "").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let mut described = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let mut statuses: Vec<u16> = operation["responses"]
                .as_object()
                .unwrap()
                .keys()
                .map(|s| s.parse().unwrap())
                .collect();
            statuses.sort_unstable();
            if path.starts_with("/api") {
                assert!(statuses.contains(&429), "{method} {path}");
                assert_eq!(statuses.contains(&413), statuses.contains(&408), "{method} {path}");
            }
            statuses.retain(|status| !OF_MANY.contains(status));
            described.insert((method.clone(), path.clone()), statuses);
        }
    }
    let expected: BTreeMap<_, _> = ROUTES
        .iter()
        .map(|(m, p, s)| {
            let statuses = s.iter().copied().filter(|status| !OF_MANY.contains(status));
            (((*m).to_owned(), (*p).to_owned()), statuses.collect())
        })
        .collect();
    assert_eq!(described, expected);
}

/// Where a `$ref` leads that leads nowhere.
fn dangling(value: &Value, document: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref")
                && document.pointer(target.trim_start_matches('#')).is_none()
            {
                out.push(target.clone());
            }
            members.values().for_each(|v| dangling(v, document, out));
        }
        Value::Array(items) => items.iter().for_each(|v| dangling(v, document, out)),
        _ => {}
    }
}

#[actix_web::test]
async fn the_description_refers_only_to_what_it_holds_and_names_operations_once() {
    let rig = rig().await;
    let document = rig.get("/api/openapi.json", "").await.json();
    let mut lost = Vec::new();
    dangling(&document, &document, &mut lost);
    assert_eq!(lost, Vec::<String>::new());
    let mut names: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| {
            item.as_object()
                .unwrap()
                .values()
                .map(|o| o["operationId"].as_str().unwrap())
        })
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

/// Names of the schemas that answers are made of, with what those refer to.
fn answered(document: &Value) -> BTreeSet<String> {
    let responses = document["paths"].as_object().unwrap().values().flat_map(|item| {
        let operations = item.as_object().unwrap().values();
        operations.map(|operation| operation["responses"].clone())
    });
    let mut waiting: Vec<Value> = responses.collect();
    let mut names = BTreeSet::new();
    while let Some(value) = waiting.pop() {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(target)) = members.get("$ref")
                    && names.insert(target.rsplit('/').next().unwrap().to_owned())
                {
                    waiting.push(document.pointer(target.trim_start_matches('#')).unwrap().clone());
                }
                waiting.extend(members.into_iter().map(|(_, value)| value));
            }
            Value::Array(items) => waiting.extend(items),
            _ => {}
        }
    }
    names
}

fn may_be_null(member: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null" || kind["type"] == "null";
    ["type", "oneOf", "anyOf"]
        .iter()
        .any(|of| member[of].as_array().is_some_and(|kinds| kinds.iter().any(is_null)))
}

/// Who reads a record must expect what other releases have written.
const OPEN: [&str; 1] = ["RecordedBy"];

#[actix_web::test]
async fn a_member_of_an_answer_is_there_or_absent_but_never_either_or_null() {
    let rig = rig().await;
    let document = rig.get("/api/openapi.json", "").await.json();
    let names = answered(&document);
    assert!(names.contains("Connection") && names.contains("Page_Connection") && names.contains("Target"));
    for name in names.iter().filter(|name| !OPEN.contains(&name.as_str())) {
        let schema = &document["components"]["schemas"][name];
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (member, of) in schema["properties"].as_object().into_iter().flatten() {
            let always = required.iter().any(|other| other == member);
            assert!(always || !may_be_null(of), "{name}.{member} is optional and null: {of}");
        }
    }
}

#[actix_web::test]
async fn a_page_names_what_its_items_are() {
    let rig = rig().await;
    let document = rig.get("/api/openapi.json", "").await.json();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let pages = schemas.iter().filter(|(name, _)| name.starts_with("Page_"));
    let mut seen = 0;
    for (name, schema) in pages {
        let item = name.trim_start_matches("Page_");
        let items = &schema["properties"]["items"]["items"];
        assert_eq!(items["$ref"], format!("#/components/schemas/{item}"), "{name}");
        seen += 1;
    }
    assert!(seen >= 9, "{seen}");
}

#[actix_web::test]
async fn figures_are_for_readers_and_every_answer_is_counted_by_its_route() {
    let rig = rig().await;
    let text = rig.get("/metrics", &rig.auditor).await;
    assert_eq!((text.status, text.text.as_str()), (200, "hoop_sessions_live 0\n"));
    assert_eq!(text.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(rig.get("/metrics", &rig.member).await.status, 403);
    assert_eq!(rig.get("/metrics", "").await.status, 401);
    rig.get("/api/users/ada", &rig.admin).await;
    rig.get("/api/users/nobody", &rig.admin).await.problem(404);
    rig.get("/api/users/ada", "").await.problem(401);
    assert_eq!(
        *rig.fake.answered.lock().unwrap(),
        [
            "GET /api/users/{username} 200",
            "GET /api/users/{username} 404",
            "GET /api/users/{username} 401"
        ]
    );
}

#[actix_web::test]
async fn health_and_the_ca_need_no_sign_in() {
    let rig = rig().await;
    assert_eq!(rig.get("/healthz", "").await.status, 200);
    assert_eq!(rig.get("/readyz", "").await.status, 200);
    rig.fake.not_ready.store(true, Ordering::Relaxed);
    let not_ready = rig.get("/readyz", "").await;
    assert_eq!(not_ready.status, 503);
    assert_eq!(not_ready.json()["links"]["detail"], "no link");
    let pem = rig.get("/api/ca.pem", "").await;
    assert!(pem.text.starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(pem.header("x-content-type-options"), "nosniff");
    assert!(pem.header("strict-transport-security").starts_with("max-age"));
}

#[actix_web::test]
async fn the_page_of_the_description_loads_nothing_from_elsewhere_and_runs_nothing() {
    let rig = rig().await;
    let page = rig.get("/api/docs", "").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "{policy}");
    // an address in a text loads nothing
    for loading in [
        "<script",
        "style=",
        "src=",
        "href=\"http",
        "href=\"//",
        "url(",
        "@import",
    ] {
        assert!(!page.text.contains(loading), "{loading}");
    }
    assert!(page.text.contains("<code>/api/access/rules/{name}</code>"));
    assert!(
        rig.get("/api/docs.css", "")
            .await
            .header("content-type")
            .starts_with("text/css")
    );
}

#[actix_web::test]
async fn every_response_has_the_careful_headers() {
    let rig = rig().await;
    for path in [
        "/healthz",
        "/readyz",
        "/api/ca.pem",
        "/api/me",
        "/api/nothing",
        "/nothing",
        "/api/users/%00",
    ] {
        let answer = rig.get(path, "").await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
        assert!(
            answer
                .header("content-security-policy")
                .starts_with("default-src 'none'"),
            "{path}"
        );
        assert!(
            answer.header("strict-transport-security").starts_with("max-age"),
            "{path}"
        );
    }
}

/// PostgreSQL has no zero byte in a text: asking it would be a failure of ours.
#[actix_web::test]
async fn a_zero_byte_is_refused_wherever_it_stands() {
    let rig = rig().await;
    rig.connection().await;
    for path in ["access/rules", "connections", "users", "tokens", "sessions"] {
        for bad in ["%00", "a%00", "%ff"] {
            rig.get(&format!("/api/{path}/{bad}"), &rig.admin).await.problem(404);
        }
    }
    let explain = "/api/access/explain?user=ada&connection=%00";
    rig.get(explain, &rig.admin).await.problem(422);
    let far = "/api/access/explain?user=ada&connection=db&address=192.0.2.1&at=%2B99999-01-01T00:00:00Z";
    assert_eq!(rig.get(far, &rig.admin).await.problem(422), "at");
    let mut body = connection("zero");
    body["description"] = "a\0b".into();
    rig.post("/api/connections", &rig.admin, body).await.problem(422);
    let rule = serde_json::json!({"name": "zero", "groups": ["a\0b"], "connections": ["*"], "description": "\0"});
    rig.post("/api/access/rules", &rig.admin, rule).await.problem(422);
    let token = serde_json::json!({"name": "a\0b", "scopes": ["read"]});
    rig.post("/api/tokens", &rig.admin, token).await.problem(422);
}
