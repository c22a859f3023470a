use actix_web::http::Method;
use serde_json::json;

use crate::rig::{connection, rig};

#[actix_web::test]
async fn roles_decide() {
    let rig = rig().await;
    rig.connection().await;
    let (admin, auditor, member) = (&rig.admin, &rig.auditor, &rig.member);
    // An auditor reads everything; a member reads what is the member's.
    for path in ["agents", "users"] {
        let path = format!("/api/{path}");
        assert_eq!(rig.get(&path, admin).await.status, 200);
        assert_eq!(rig.get(&path, auditor).await.status, 200);
        rig.get(&path, member).await.problem(403);
    }
    for path in ["connections", "credentials", "sessions"] {
        for token in [admin, auditor, member] {
            assert_eq!(rig.get(&format!("/api/{path}"), token).await.status, 200, "{path}");
        }
    }
    // Only an admin changes anything. The role is judged before the body.
    for token in [auditor, member] {
        rig.post("/api/agents", token, json!({"nonsense": 1}))
            .await
            .problem(403);
        rig.post("/api/users", token, json!({})).await.problem(403);
        rig.post("/api/connections", token, connection("x")).await.problem(403);
        rig.call(Method::PUT, "/api/connections/db", token, Some(connection("db")))
            .await
            .problem(403);
        rig.call(Method::DELETE, "/api/connections/db", token, None)
            .await
            .problem(403);
        rig.call(Method::DELETE, "/api/agents/default", token, None)
            .await
            .problem(403);
        rig.post("/api/sessions/x/kill", token, json!({})).await.problem(403);
    }
    rig.post("/api/connections/db/credentials", auditor, json!({}))
        .await
        .problem(403);
    rig.get("/api/sessions/x/events", member).await.problem(403);
}

#[actix_web::test]
async fn a_member_uses_what_allows_members_and_sees_no_target() {
    let rig = rig().await;
    rig.connection().await;
    let mut closed = connection("closed");
    closed["allow_members"] = json!(false);
    closed["host"] = json!("closed.internal");
    assert_eq!(rig.post("/api/connections", &rig.admin, closed).await.status, 201);
    rig.forget();

    let list = rig.get("/api/connections", &rig.member).await.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["name"], "db");
    rig.get("/api/connections/closed", &rig.member).await.problem(404);
    assert_eq!(rig.get("/api/connections/db", &rig.member).await.status, 200);
    rig.post("/api/connections/closed/credentials", &rig.member, json!({}))
        .await
        .problem(404);
    for hidden in ["db.internal", "closed.internal", "\"target\""] {
        assert!(!rig.was_answered(hidden), "{hidden}");
    }

    let own = rig
        .post("/api/connections/db/credentials", &rig.member, json!({}))
        .await
        .json();
    let foreign = rig
        .post("/api/connections/db/credentials", &rig.admin, json!({}))
        .await
        .json();
    let (own, foreign) = (own["id"].as_str().unwrap(), foreign["id"].as_str().unwrap());
    let list = rig.get("/api/credentials", &rig.member).await.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["id"], own);
    assert_eq!(
        rig.get("/api/credentials", &rig.auditor).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    rig.call(
        Method::DELETE,
        &format!("/api/credentials/{foreign}"),
        &rig.member,
        None,
    )
    .await
    .problem(404);
    rig.call(Method::DELETE, &format!("/api/credentials/{own}"), &rig.auditor, None)
        .await
        .problem(403);
    assert_eq!(
        rig.call(Method::DELETE, &format!("/api/credentials/{own}"), &rig.member, None)
            .await
            .status,
        204
    );

    // What allowed it is taken away: the next use is refused.
    let record = rig.store.lookup_credential(own).await.unwrap().unwrap();
    assert!(rig.may_use(&record));
    let mut shut = connection("db");
    shut["allow_members"] = json!(false);
    assert_eq!(
        rig.call(Method::PUT, "/api/connections/db", &rig.admin, Some(shut))
            .await
            .status,
        200
    );
    let record = rig.store.lookup_credential(own).await.unwrap().unwrap();
    assert!(!rig.may_use(&record));
}
