//! SSH public keys of accounts.

use actix_web::http::Method;
use serde_json::{Value, json};

use crate::rig::rig;

const LAPTOP: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER ada@laptop";
const SERVER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIi root";

fn key(line: &str) -> Value {
    json!({"public_key": line})
}

#[actix_web::test]
async fn a_key_is_one_account_s_and_is_found_by_its_fingerprint() {
    let rig = rig().await;
    let added = rig.post("/api/ssh-keys", &rig.member, key(LAPTOP)).await;
    assert_eq!(added.status, 201, "{}", added.text);
    let added = added.json();
    assert_eq!((&added["name"], &added["user"]), (&json!("ada@laptop"), &json!("ada")));
    assert_eq!(format!("{} ada@laptop", added["public_key"].as_str().unwrap()), LAPTOP);
    let fingerprint = added["fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("SHA256:"));
    for token in [&rig.member, &rig.admin] {
        rig.post("/api/ssh-keys", token, key(LAPTOP)).await.problem(409);
    }
    let path = format!("/api/ssh-keys?fingerprint={}", fingerprint.replace('+', "%2B"));
    assert_eq!(rig.get(&path, &rig.auditor).await.json()["items"][0], added);
    let (kind, payload) = rig.records().pop().unwrap();
    assert_eq!(
        (kind.as_str(), &payload["after"]["fingerprint"]),
        ("ssh_key.add", &added["fingerprint"])
    );

    // with its account it goes, and may be another's
    assert_eq!(
        rig.call(Method::DELETE, "/api/users/ada", &rig.admin, None)
            .await
            .status,
        204
    );
    assert_eq!(rig.get("/api/ssh-keys", &rig.auditor).await.json()["items"], json!([]));
    assert_eq!(rig.post("/api/ssh-keys", &rig.admin, key(LAPTOP)).await.status, 201);
}

#[actix_web::test]
async fn keys_are_their_owner_s_and_an_admin_s_to_change() {
    let rig = rig().await;
    let mut for_ada = key(LAPTOP);
    for_ada["user"] = json!("ada");
    rig.post("/api/ssh-keys", &rig.auditor, for_ada.clone())
        .await
        .problem(403);
    let adas = rig.post("/api/ssh-keys", &rig.admin, for_ada).await.json();
    assert_eq!(adas["user"], "ada");
    let roots = rig.post("/api/ssh-keys", &rig.admin, key(SERVER)).await.json();
    let mut stray = key(SERVER);
    stray["user"] = json!("nobody");
    rig.post("/api/ssh-keys", &rig.admin, stray).await.problem(404);

    let own = rig.get("/api/ssh-keys", &rig.member).await.json();
    assert_eq!(own["items"], json!([adas]));
    let all = rig.get("/api/ssh-keys?sort=name", &rig.auditor).await.json();
    assert_eq!(all["items"], json!([adas, roots]));
    let path = |key: &Value| format!("/api/ssh-keys/{}", key["id"].as_str().unwrap());
    rig.call(Method::DELETE, &path(&roots), &rig.member, None)
        .await
        .problem(404);
    rig.call(Method::DELETE, &path(&adas), &rig.auditor, None)
        .await
        .problem(403);
    assert_eq!(
        rig.call(Method::DELETE, &path(&adas), &rig.member, None).await.status,
        204
    );
    assert_eq!(
        rig.call(Method::DELETE, &path(&roots), &rig.admin, None).await.status,
        204
    );
    rig.call(Method::DELETE, "/api/ssh-keys/nonsense", &rig.admin, None)
        .await
        .problem(404);
}

#[actix_web::test]
async fn what_is_no_key_is_refused_by_field() {
    let rig = rig().await;
    let refused = async |body: Value| rig.post("/api/ssh-keys", &rig.member, body).await.problem(422);
    assert_eq!(refused(key("ssh-ed25519 AAAA")).await, "public_key");
    assert_eq!(refused(key("-----BEGIN OPENSSH PRIVATE KEY-----")).await, "public_key");
    let nameless = LAPTOP.trim_end_matches(" ada@laptop");
    assert_eq!(refused(key(nameless)).await, "name");
    let client = rig.store.client().await.unwrap();
    let many = "insert into ssh_keys (id, user_id, name, algorithm, fingerprint, openssh) \
        select gen_random_uuid(), u.id, 'x', 'x', n::text, 'x' from users u, generate_series(1, 50) n \
        where u.username = 'ada'";
    client.batch_execute(many).await.unwrap();
    assert_eq!(refused(key(LAPTOP)).await, "name");
}
