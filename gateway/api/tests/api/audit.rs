//! Reading the administrative record: filters, pages, the export, and who may.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::rig::{Api, Rig, rig};

impl<S: Api> Rig<S> {
    async fn log(&self, writer: Uuid, seq: i64, at_us: i64, kind: &str, payload: &Value) {
        let sql = "insert into writer_log (writer, seq, at_us, kind, payload, prev_hash, hash) \
                   values ($1, $2, $3, $4, $5, '\\x00', '\\xabcd')";
        let payload = payload.to_string();
        let client = self.store.client().await.unwrap();
        let written = client.execute(sql, &[&writer, &seq, &at_us, &kind, &payload]).await;
        assert_eq!(written.unwrap(), 1);
    }

    /// `kind seq` of each record that is listed.
    async fn listed(&self, question: &str) -> Vec<String> {
        let answer = self.get(&format!("/api/audit?{question}"), &self.auditor).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let short = |r: &Value| format!("{} {}", r["kind"].as_str().unwrap(), r["seq"]);
        answer.json()["items"].as_array().unwrap().iter().map(short).collect()
    }
}

fn changed(by: &str, subject: &str) -> Value {
    json!({"by": {"user": by, "role": "admin"}, "subject": subject, "before": null, "after": {"a": 1}, "note": "x"})
}

/// 2026-11-24T00:00:00Z, in microseconds.
const DAY_US: i64 = 1_795_478_400_000_000;

#[actix_web::test]
async fn the_record_is_read_by_filter_and_page_by_readers_alone() {
    let rig = rig().await;
    let writer = Uuid::now_v7();
    rig.log(writer, 1, DAY_US, "writer_started", &json!({})).await;
    rig.log(writer, 2, DAY_US + 1, "user.create", &changed("root", "ada"))
        .await;
    rig.log(writer, 3, DAY_US + 2, "rule.create", &changed("eve", "sre"))
        .await;
    rig.log(writer, 4, DAY_US + 3, "rule.update", &changed("root", "sre"))
        .await;
    for (question, expected) in [
        ("", &["rule.update 4", "rule.create 3", "user.create 2"][..]),
        ("sort=at&kind=rule.*", &["rule.create 3", "rule.update 4"]),
        ("kind=rule.update", &["rule.update 4"]),
        ("person=eve", &["rule.create 3"]),
        ("subject=sre&person=root", &["rule.update 4"]),
        ("kind=*&sort=at&limit=2", &["writer_started 1", "user.create 2"]),
        ("kind=writer_*", &["writer_started 1"]),
        ("from=2026-11-24T00:00:00.000003Z", &["rule.update 4"]),
        ("to=2026-11-24T00:00:00.000002Z", &["user.create 2"]),
        ("writer=00000000-0000-0000-0000-000000000000", &[]),
    ] {
        assert_eq!(rig.listed(question).await, expected, "{question}");
    }
    let first = rig.get("/api/audit?limit=2", &rig.admin).await.json();
    let next = format!("limit=2&cursor={}", first["next"].as_str().unwrap());
    assert_eq!(rig.listed(&next).await, ["user.create 2"]);
    let record = &first["items"][0];
    assert_eq!(record["by"]["user"], "root");
    assert_eq!(record["after"], json!({"a": 1}));
    assert_eq!(record["details"], json!({"note": "x"}));
    assert_eq!(record["hash"], "abcd");
    assert_eq!(record["at"], "2026-11-24T00:00:00.000003Z");

    for (question, field) in [
        ("kind=Rule", "kind"),
        ("kind=", "kind"),
        ("sort=kind", "sort"),
        ("cursor=1_2", "cursor"),
        ("limit=201", "limit"),
        ("who=eve", "who"),
        ("subject=%00", "subject"),
    ] {
        let refused = rig.get(&format!("/api/audit?{question}"), &rig.admin).await;
        assert_eq!(refused.problem(422), field, "{question}");
    }
    for path in ["/api/audit", "/api/audit/export"] {
        rig.get(path, &rig.member).await.problem(403);
        rig.get(path, "").await.problem(401);
    }
}

#[actix_web::test]
async fn the_export_holds_every_record_once_with_its_hashes() {
    let rig = rig().await;
    let writers = [Uuid::now_v7(), Uuid::now_v7()];
    for writer in writers {
        for seq in 1..=600 {
            rig.log(writer, seq, DAY_US + seq, "session_started", &json!({})).await;
        }
    }
    let export = rig.get("/api/audit/export", &rig.auditor).await;
    assert_eq!(export.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> = (export.text.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let places: Vec<_> = (lines.iter())
        .map(|line| (line["log"]["writer"].clone(), line["log"]["seq"].as_i64().unwrap()))
        .collect();
    let expected: Vec<_> = (writers.iter())
        .flat_map(|writer| (1..=600).map(move |seq| (json!(writer), seq)))
        .collect();
    assert!(places == expected, "{} lines", places.len());
    assert_eq!(lines[0]["log"]["hash"], "q80=");
    assert_eq!(lines[0]["log"]["payload"], "{}");

    let some = format!("/api/audit/export?kind=rule.*&writer={}", writers[0]);
    assert_eq!(rig.get(&some, &rig.auditor).await.text, "");
}
