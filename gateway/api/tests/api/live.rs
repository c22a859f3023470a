//! A stream of events, and what it does not keep alive.

use std::future::poll_fn;
use std::pin::pin;

use actix_web::body::MessageBody;
use actix_web::test::{TestRequest, call_service};
use hoop_store::browser_sessions::Lifetimes;
use hoop_store::change::Unrecorded;
use hoop_store::users::{Role, UserSettings};
use serde_json::json;

use crate::rig::{PASSWORD, rig};

#[actix_web::test]
async fn an_open_page_does_not_keep_a_browser_session_from_being_idle() {
    let rig = rig().await;
    let login = json!({"username": "ada", "password": PASSWORD, "hold": "cookie"});
    let signed_in = rig.post("/api/login", "", login).await;
    let (cookie, _) = signed_in.header("set-cookie").split_once(';').unwrap();
    let request = TestRequest::get()
        .uri("/api/events")
        .peer_addr("192.0.2.7:40000".parse().unwrap())
        .insert_header(("cookie", cookie))
        .to_request();
    let response = call_service(&rig.app, request).await;
    assert_eq!(response.status(), 200);
    let mut body = pin!(response.into_body());
    let mut read_until = async |event: &str| loop {
        let piece = poll_fn(|cx| body.as_mut().poll_next(cx)).await.unwrap().unwrap();
        let piece = String::from_utf8(piece.to_vec()).unwrap();
        assert!(!piece.contains("event: end"), "the sign-in is over");
        if piece.contains(&format!("event: {event}\n")) {
            break;
        }
    };
    read_until("ready").await;
    let age = "update browser_sessions set last_used_at = now() - interval '50 minutes'";
    rig.store.client().await.unwrap().batch_execute(age).await.unwrap();
    let sessions = async |of| {
        let listed = rig.store.browser_sessions(of, Lifetimes::default()).await;
        listed.unwrap()
    };
    let ada = rig.store.find_user("ada").await.unwrap().unwrap();
    let before = sessions(ada.id).await;
    // the stream looks again who it is for
    let settings = UserSettings {
        email: String::new(),
        role: Role::Member,
        groups: vec!["sre".into()],
        active: true,
    };
    rig.store.update_user("ada", settings, None, &Unrecorded).await.unwrap();
    read_until("access.changed").await;
    assert_eq!(sessions(ada.id).await, before);
}
