use actix_web::http::Method;
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Attempt, Cut, Ended, Event, Input, Outcome};
use hoop_store::changes;
use serde_json::json;
use uuid::Uuid;

use crate::rig::{Api, Rig, rig};

/// Sessions of `user`, oldest first; the last one is live.
pub async fn insert<S: Api>(rig: &Rig<S>, user: &str, count: i32) -> Vec<Uuid> {
    let owner = rig.store.find_user(user).await.unwrap().unwrap();
    let client = rig.store.client().await.unwrap();
    let mut ids = Vec::new();
    for n in 0..count {
        let id = Uuid::now_v7();
        let over = n + 1 < count;
        client
            .execute(
                "insert into sessions (id, writer, replica, protocol, user_name, user_id, email, groups, connection, \
                 agent, client_address, credential, database, application, client_tls, policy_version, audit_mode, \
                 started_at, ended_at, end_code) values ($1, $1, $1, 'postgres', $2, $3, '', '{}', 'db', 'default', \
                 '192.0.2.1', 'c00000000', 'app', 'psql', true, 1, 'journalled', now() + $4 * interval '1 second', \
                 case when $5 then now() end, case when $5 then 'client_closed' end)",
                &[&id, &user, &owner.id, &f64::from(n), &over],
            )
            .await
            .unwrap();
        ids.push(id);
    }
    ids
}

#[actix_web::test]
async fn sessions_are_listed_newest_first_in_pages() {
    let rig = rig().await;
    let mut expected = insert(&rig, "ada", 5).await;
    expected.reverse();
    insert(&rig, "root", 1).await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = rig
            .get(&format!("/api/sessions?limit=2&user=ada{cursor}"), &rig.auditor)
            .await
            .json();
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, expected.iter().map(ToString::to_string).collect::<Vec<_>>());
    let live = rig
        .get("/api/sessions?live=true&connection=db", &rig.admin)
        .await
        .json();
    assert_eq!(live["items"].as_array().unwrap().len(), 2);
    let over = rig.get("/api/sessions?live=false", &rig.admin).await.json();
    assert_eq!(over["items"].as_array().unwrap().len(), 4);
    assert_eq!(over["items"][0]["end_code"], "client_closed");
}

#[actix_web::test]
async fn a_member_sees_only_the_members_own() {
    let rig = rig().await;
    let own = insert(&rig, "ada", 1).await;
    let foreign = insert(&rig, "root", 1).await;
    let list = rig.get("/api/sessions?user=root", &rig.member).await.json();
    assert_eq!(list["items"], json!([]));
    assert_eq!(
        rig.get("/api/sessions", &rig.member).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        rig.get(&format!("/api/sessions/{}", own[0]), &rig.member).await.status,
        200
    );
    rig.get(&format!("/api/sessions/{}", foreign[0]), &rig.member)
        .await
        .problem(404);
    assert_eq!(
        rig.get(&format!("/api/sessions/{}", foreign[0]), &rig.auditor)
            .await
            .status,
        200
    );
}

#[actix_web::test]
async fn a_kill_is_recorded_announced_and_done() {
    let rig = rig().await;
    let ids = insert(&rig, "ada", 2).await;
    let kill = |id: Uuid| {
        rig.call(
            Method::POST,
            Box::leak(format!("/api/sessions/{id}/kill").into_boxed_str()),
            &rig.admin,
            None,
        )
    };
    kill(ids[0]).await.problem(409);
    kill(Uuid::now_v7()).await.problem(404);
    let answer = kill(ids[1]).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(answer.json(), json!({"session": ids[1], "ended_here": true}));
    assert_eq!(*rig.fake.killed.lock().unwrap(), [(ids[1], "root".to_owned())]);
    assert_eq!(rig.records()[0].0, "session.kill");
    let changes = rig.store.changes_since(0).await.unwrap();
    assert!(
        changes
            .iter()
            .any(|c| c.kind == changes::SESSION_KILLED && c.subject == ids[1].to_string()),
        "{changes:?}"
    );
}

#[actix_web::test]
async fn events_are_shown_decoded_and_in_pages() {
    let rig = rig().await;
    let id = insert(&rig, "ada", 1).await[0];
    let bodies = [
        Body::Attempt(Attempt {
            statement: 1,
            kind: "query".into(),
            text: "select 1".into(),
            ..Attempt::default()
        }),
        Body::Outcome(Outcome {
            statement: 1,
            status: "ok".into(),
            tag: "SELECT 1".into(),
            rows: 1,
            ..Outcome::default()
        }),
        Body::Prepared(Attempt {
            statement: 2,
            kind: "parse".into(),
            text: "select 2".into(),
            ..Attempt::default()
        }),
        Body::Input(Input {
            statement: 1,
            data: b"d\0\0\0\x061\n".as_slice().into(),
        }),
        Body::InputCut(Cut {
            statement: 1,
            rows: 7,
            ..Cut::default()
        }),
        Body::Ended(Ended {
            code: "client_closed".into(),
            ..Ended::default()
        }),
    ];
    let event = |(n, body): (usize, Body)| Event {
        seq: n as u64 + 1,
        offset_us: 10,
        body: Some(body),
    };
    *rig.fake.events.lock().unwrap() = bodies.into_iter().enumerate().map(event).collect();
    let path = format!("/api/sessions/{id}/events");
    let first = rig.get(&format!("{path}?limit=2"), &rig.auditor).await.json();
    assert_eq!(first["items"][0]["kind"], "attempt");
    assert_eq!(first["items"][0]["text"], "select 1");
    assert_eq!(first["items"][1]["tag"], "SELECT 1");
    let next = first["next"].as_str().unwrap();
    let second = rig
        .get(&format!("{path}?limit=2&cursor={next}"), &rig.auditor)
        .await
        .json();
    assert_eq!(second["items"][0]["kind"], "prepared");
    assert_eq!(second["items"][0]["statement_kind"], "parse");
    assert_eq!(second["items"][0]["text"], "select 2");
    assert_eq!(second["items"][1]["kind"], "input");
    assert_eq!(second["items"][1]["text"], "1\n");
    let next = second["next"].as_str().unwrap();
    let third = rig
        .get(&format!("{path}?limit=2&cursor={next}"), &rig.auditor)
        .await
        .json();
    assert_eq!(third["items"][0]["kind"], "input_cut");
    assert_eq!(third["items"][0]["rows"], 7);
    assert_eq!(third["items"][1]["code"], "client_closed");
    assert_eq!(third["next"], json!(null));
    rig.get(&path, &rig.member).await.problem(403);
}
