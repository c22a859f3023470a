//! Every list: its filters, its orders, and pages that stay in place while rows come and go.

use std::collections::BTreeSet;

use actix_web::http::Method;
use serde_json::{Value, json};

use crate::rig::{Api, PASSWORD, Rig, connection, rig};

impl<S: Api> Rig<S> {
    async fn user(&self, name: &str, groups: &[&str]) {
        let body = json!({"username": name, "password": PASSWORD, "role": "member", "groups": groups});
        let made = self.post("/api/users", &self.admin, body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        assert_eq!(made.json()["groups"], json!(groups));
    }

    async fn page(&self, path: &str) -> Value {
        let answer = self.get(path, &self.auditor).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json()
    }

    /// What `member` is in each item of a list.
    async fn found(&self, path: &str, member: &str) -> Vec<String> {
        values(&self.page(path).await, member)
    }
}

fn values(page: &Value, member: &str) -> Vec<String> {
    let items = page["items"].as_array().unwrap();
    let text = |item: &Value| item[member].as_str().unwrap().to_owned();
    items.iter().map(text).collect()
}

#[actix_web::test]
async fn pages_stay_in_place_while_rows_come_and_go() {
    let rig = rig().await;
    for n in 10..20 {
        rig.user(&format!("p{n}"), &["crew"]).await;
    }
    for sort in ["username", "-username", "created_at", "-created_at", "email"] {
        let mut seen = Vec::new();
        let mut path = format!("/api/users?group=crew&sort={sort}&limit=3");
        let mut round = 0;
        loop {
            let page = rig.page(&path).await;
            seen.extend(values(&page, "username"));
            // one that stands before all pages in one order, after them in the other, and goes again
            let passing = format!("{}{round}", if sort.starts_with('-') { "z" } else { "a" });
            rig.user(&passing, &["crew"]).await;
            if round > 0 {
                let gone = passing.replace(char::is_numeric, &(round - 1).to_string());
                let path = format!("/api/users/{gone}");
                assert_eq!(rig.call(Method::DELETE, &path, &rig.admin, None).await.status, 204);
            }
            round += 1;
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/api/users?group=crew&limit=3&cursor={next}");
        }
        let of_old: Vec<&String> = seen.iter().filter(|name| name.starts_with('p')).collect();
        let each: BTreeSet<&String> = of_old.iter().copied().collect();
        assert_eq!((of_old.len(), each.len()), (10, 10), "{sort}: {seen:?}");
        for left in rig.found("/api/users?limit=200", "username").await {
            if left.starts_with(['a', 'z']) && left.ends_with(char::is_numeric) {
                rig.call(Method::DELETE, &format!("/api/users/{left}"), &rig.admin, None)
                    .await;
            }
        }
    }
}

/// Lists of the description: those with a `sort`, without a parameter in the path.
async fn lists<S: Api>(rig: &Rig<S>) -> Vec<(String, Vec<String>)> {
    let document = rig.page("/api/openapi.json").await;
    let mut lists = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let parameters = item["get"]["parameters"].as_array().cloned().unwrap_or_default();
        let Some(sort) = parameters.iter().find(|parameter| parameter["name"] == "sort") else {
            continue;
        };
        let sorts = sort["schema"]["enum"].as_array().unwrap();
        let text = |sort: &Value| sort.as_str().unwrap().to_owned();
        lists.push((path.clone(), sorts.iter().map(text).collect()));
    }
    lists
}

#[actix_web::test]
async fn every_order_of_every_list_can_be_walked_row_by_row() {
    let rig = rig().await;
    rig.connection().await;
    for name in ["alpha", "beta", "gamma"] {
        assert_eq!(
            rig.post("/api/agents", &rig.admin, json!({"name": name})).await.status,
            201
        );
        assert_eq!(
            rig.post("/api/connections", &rig.admin, connection(name)).await.status,
            201
        );
        let path = format!("/api/connections/{name}/credentials");
        assert_eq!(rig.post(&path, &rig.admin, json!({})).await.status, 201);
        let rule = json!({"name": name, "groups": [name], "connections": ["*"]});
        assert_eq!(rig.post("/api/access/rules", &rig.admin, rule).await.status, 201);
    }
    crate::sessions::insert(&rig, "ada", 3).await;
    let lists = lists(&rig).await;
    assert!(lists.len() >= 6, "{lists:?}");
    for (path, sorts) in lists {
        for sort in sorts {
            let whole = rig.page(&format!("{path}?sort={sort}&limit=200")).await;
            let mut walked = Vec::new();
            let mut next = format!("{path}?sort={sort}&limit=1");
            loop {
                let page = rig.page(&next).await;
                walked.extend(page["items"].as_array().unwrap().clone());
                let Some(cursor) = page["next"].as_str() else { break };
                next = format!("{path}?sort={sort}&limit=1&cursor={cursor}");
            }
            assert_eq!(json!(walked), whole["items"], "{path} by {sort}");
            let key = sort.trim_start_matches('-');
            let mut keys = values(&whole, key);
            let given = keys.clone();
            keys.sort();
            if sort.starts_with('-') {
                keys.reverse();
            }
            assert_eq!(given, keys, "{path} by {sort}");
        }
    }
}

#[actix_web::test]
async fn filters_find_what_they_say() {
    let rig = rig().await;
    rig.connection().await;
    rig.user("grace", &["a,b", "sre"]).await;
    rig.user("edsger", &[]).await;
    for (filter, names) in [
        ("role=auditor", vec!["watch"]),
        ("group=sre", vec!["grace"]),
        ("group=a%2Cb", vec!["grace"]),
        ("group=sr", vec![]),
        ("q=RAC", vec!["grace"]),
        ("q=%25", vec![]),
        ("q=_", vec![]),
        ("active=false", vec![]),
        ("active=true&role=member&sort=-username", vec!["grace", "edsger", "ada"]),
    ] {
        assert_eq!(
            rig.found(&format!("/api/users?{filter}"), "username").await,
            names,
            "{filter}"
        );
    }

    rig.post("/api/agents", &rig.admin, json!({"name": "idle"})).await;
    for (filter, names) in [
        ("online=true", vec!["default"]),
        ("online=false", vec!["idle"]),
        ("q=efa", vec!["default"]),
    ] {
        assert_eq!(
            rig.found(&format!("/api/agents?{filter}"), "name").await,
            names,
            "{filter}"
        );
    }

    let mut other = connection("other");
    other["tags"] = json!(["env:prod"]);
    other["agents"] = json!(["default", "idle"]);
    other["owner"] = json!("ada");
    other["description"] = json!("The Ledger");
    assert_eq!(rig.post("/api/connections", &rig.admin, other).await.status, 201);
    for (filter, names) in [
        ("agent=idle", vec!["other"]),
        ("owner=ada", vec!["other"]),
        ("tag=env:prod", vec!["other"]),
        ("tag=env", vec![]),
        ("protocol=postgres&sort=-name", vec!["other", "db"]),
        ("q=ledger", vec!["other"]),
    ] {
        assert_eq!(
            rig.found(&format!("/api/connections?{filter}"), "name").await,
            names,
            "{filter}"
        );
    }
    rig.get("/api/connections?agent=idle", &rig.member).await.problem(403);

    let rule = json!({"name": "sre", "description": "On Call", "enabled": false, "groups": ["sre"], "users": ["Grace"],
        "connections": ["prod-*"], "tags": ["env:prod"]});
    assert_eq!(rig.post("/api/access/rules", &rig.admin, rule).await.status, 201);
    for filter in [
        "group=sre",
        "user=grace",
        "connection=prod-*",
        "tag=env:prod",
        "enabled=false",
        "q=on%20call",
    ] {
        assert_eq!(
            rig.found(&format!("/api/access/rules?{filter}"), "name").await,
            ["sre"],
            "{filter}"
        );
    }
    for filter in ["role=admin", "enabled=true", "connection=*"] {
        let found = rig.found(&format!("/api/access/rules?{filter}"), "name").await;
        assert_eq!(found, ["administrators"], "{filter}");
    }

    let made = rig
        .post("/api/connections/db/credentials", &rig.member, json!({}))
        .await
        .json();
    let id = made["id"].as_str().unwrap();
    for (filter, ids) in [
        ("user=ADA", vec![id]),
        ("connection=db", vec![id]),
        ("state=active", vec![id]),
        ("state=revoked", vec![]),
        ("state=expired", vec![]),
        ("user=grace", vec![]),
    ] {
        assert_eq!(
            rig.found(&format!("/api/credentials?{filter}"), "id").await,
            ids,
            "{filter}"
        );
    }

    crate::sessions::insert(&rig, "ada", 2).await;
    for (filter, count) in [
        ("protocol=postgres", 2),
        ("protocol=ssh", 0),
        ("agent=default", 2),
        ("end=client_closed", 1),
        ("from=1970-01-01T00:00:00Z&to=2100-01-01T00:00:00Z", 2),
        ("from=2100-01-01T00:00:00Z", 0),
        ("to=1970-01-01T00:00:00Z", 0),
    ] {
        let found = rig.found(&format!("/api/sessions?{filter}"), "id").await;
        assert_eq!(found.len(), count, "{filter}");
    }
}

#[actix_web::test]
async fn what_a_list_does_not_have_is_refused_by_name() {
    let rig = rig().await;
    for (path, _) in lists(&rig).await {
        let ask = async |query: &str| rig.get(&format!("{path}?{query}"), &rig.auditor).await;
        let unknown = ask("colour=red").await;
        assert_eq!(unknown.problem(422), "colour", "{path}");
        assert!(unknown.text.contains("sort, limit, cursor"), "{}", unknown.text);
        let sort = ask("sort=password_hash").await;
        assert_eq!(sort.problem(422), "sort", "{path}");
        assert!(sort.text.contains("sort must be one of "), "{}", sort.text);
        assert_eq!(ask("cursor=bm9uc2Vuc2U").await.problem(422), "cursor", "{path}");
        assert_eq!(ask("limit=201").await.problem(422), "limit", "{path}");
        assert_eq!(ask("sort=a&sort=b").await.problem(422), "sort", "{path}");
    }
    for query in [
        "from=yesterday",
        "to=1",
        "from=%2B99999-01-01T00:00:00Z",
        "live=perhaps",
        "user=%00",
    ] {
        let field = query.split('=').next().unwrap();
        let answer = rig.get(&format!("/api/sessions?{query}"), &rig.auditor).await;
        assert_eq!(answer.problem(422), field, "{query}");
    }
}

/// A member who may use 3 of 600 connections gets them in one page, and no more rows than were asked for.
#[actix_web::test]
async fn a_member_s_page_is_filled_from_what_the_member_may_use() {
    let rig = rig().await;
    rig.connection().await;
    let copies = "insert into connections (id, name, version, settings) select gen_random_uuid(), \
        'db-' || lpad(n::text, 4, '0'), version, \
        settings || jsonb_build_object('allow_members', n % 200 = 150) from connections, generate_series(1, 600) n \
        where name = 'db'";
    rig.store.client().await.unwrap().batch_execute(copies).await.unwrap();
    let all = rig.get("/api/connections", &rig.member).await.json();
    assert_eq!(values(&all, "name"), ["db", "db-0150", "db-0350", "db-0550"]);
    assert_eq!(all["next"], Value::Null);
    let first = rig.get("/api/connections?limit=3", &rig.member).await.json();
    assert_eq!(values(&first, "name"), ["db", "db-0150", "db-0350"]);
    let path = format!("/api/connections?limit=3&cursor={}", first["next"].as_str().unwrap());
    let second = rig.get(&path, &rig.member).await.json();
    assert_eq!(values(&second, "name"), ["db-0550"]);
    assert_eq!(second["next"], Value::Null);
}
