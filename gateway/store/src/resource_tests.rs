//! Claims about people, tokens, agents, connections and credentials, over a real PostgreSQL.

use std::time::Duration;

use hoop_proto::postgres::accept::Verifier;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::agents::AgentAuthError;
use crate::change::Unrecorded;
use crate::connections::{Secret, SecretChange};
use crate::credentials::{CREDENTIALS, CredentialFilter, CredentialState, TTL_DEFAULT_S, TTL_MAX_S};
use crate::seal::MasterKey;
use crate::settings::Settings;
use crate::users::{PasswordCheck, Role, User};
use crate::{Store, StoreError, changes, testing};

const PASSWORD: &str = "correct horse battery";

async fn person(store: &Store, name: &str, role: Role) -> User {
    store.create_user(name, PASSWORD, role, "", &Unrecorded).await.unwrap()
}

async fn settings(store: &Store) -> Settings {
    if !store.has_agents().await.unwrap() {
        store.register_agent("default", &Unrecorded).await.unwrap();
    }
    Settings {
        agents: vec!["default".into()],
        host: "db.internal".into(),
        user: "app".into(),
        ..Settings::default()
    }
}

async fn sql(store: &Store, sql: &str) {
    store.client().await.unwrap().batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn a_password_signs_in_its_active_owner_only() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let ada = person(&store, "Ada", Role::Member).await;
    assert_eq!(ada.username, "ada");
    let check = async |name: &str, forms: &[&str]| {
        let forms = forms.iter().map(|form| Zeroizing::new((*form).to_owned())).collect();
        store.check_password(name, forms).await.unwrap()
    };
    let (right, wrong) = (PasswordCheck::Right(ada.clone()), PasswordCheck::Wrong(Some(ada)));
    assert_eq!(check("ADA", &[PASSWORD]).await, right);
    assert_eq!(check("ada", &["another form", PASSWORD]).await, right);
    assert_eq!(check("ada", &["wrong"]).await, wrong);
    assert_eq!(check("ada", &[]).await, wrong);
    let nobody = PasswordCheck::Wrong(None);
    assert_eq!(check("nobody", &["nobody has this password"]).await, nobody);
    assert_eq!(check("", &[""]).await, nobody);
    assert!(matches!(
        store.create_user("ada", PASSWORD, Role::Admin, "", &Unrecorded).await,
        Err(StoreError::Conflict { .. })
    ));
    sql(&store, "update users set active = false").await;
    assert!(matches!(check("ada", &[PASSWORD]).await, PasswordCheck::Wrong(Some(_))));
}

#[tokio::test]
async fn a_token_ends_by_time_by_revocation_and_with_its_user() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let ada = person(&store, "ada", Role::Member).await;
    let issue = async || store.issue_token(&ada, Duration::from_secs(60)).await.unwrap();
    let (first, second) = (issue().await.unwrap(), issue().await.unwrap());
    assert_eq!(store.token_user(&first.token).await.unwrap().unwrap().id, ada.id);
    store.revoke_token(&first.token).await.unwrap();
    assert_eq!(store.token_user(&first.token).await.unwrap(), None);
    assert!(store.token_user(&second.token).await.unwrap().is_some());
    sql(&store, "update api_tokens set expires_at = now() - interval '1 second'").await;
    assert_eq!(store.token_user(&second.token).await.unwrap(), None);
    let third = issue().await.unwrap();
    sql(&store, "update users set active = false").await;
    assert_eq!(store.token_user(&third.token).await.unwrap(), None);
    assert!(issue().await.is_none(), "of somebody who may not sign in");
    sql(&store, "update users set active = true, version = version + 1").await;
    assert!(
        issue().await.is_none(),
        "of somebody who was changed since the password was proved"
    );
}

#[tokio::test]
async fn a_revoked_agent_is_told_so_and_its_name_is_free_again() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let first = store.register_agent("edge", &Unrecorded).await.unwrap();
    assert_eq!(store.authenticate_agent(&first.token).await.unwrap(), first.agent);
    assert!(matches!(
        store.register_agent("edge", &Unrecorded).await,
        Err(StoreError::Conflict { .. })
    ));
    store.revoke_agent("edge", &Unrecorded).await.unwrap();
    assert!(matches!(
        store.authenticate_agent(&first.token).await,
        Err(AgentAuthError::Revoked)
    ));
    let second = store.register_agent("edge", &Unrecorded).await.unwrap();
    assert_eq!(store.authenticate_agent(&second.token).await.unwrap().name, "edge");
    let published = store.changes_since(0).await.unwrap();
    assert_eq!(
        (published[0].kind.as_str(), &published[0].subject),
        (changes::AGENT_REVOKED, &first.agent.id.to_string())
    );
}

#[tokio::test]
async fn an_agent_of_another_installation_is_a_stranger() {
    let (Some(ours), Some(theirs)) = (testing::try_store().await, testing::try_store().await) else {
        return;
    };
    let agent = theirs.register_agent("edge", &Unrecorded).await.unwrap();
    assert!(matches!(
        ours.authenticate_agent(&agent.token).await,
        Err(AgentAuthError::Invalid)
    ));
}

#[tokio::test]
async fn a_secret_is_sealed_and_opens_only_for_its_connection_and_master_key() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let secret = || Some(Secret::Value(Zeroizing::new("hunter2".into())));
    let settings = settings(&store).await;
    let a = store
        .create_connection("a", settings.clone(), secret(), &Unrecorded)
        .await
        .unwrap();
    let b = store
        .create_connection("b", settings, secret(), &Unrecorded)
        .await
        .unwrap();
    assert!(b.version > a.version);
    let Some(Secret::Value(opened)) = store.connection_secret(a.id).await.unwrap() else {
        panic!("a value")
    };
    assert_eq!(*opened, "hunter2");
    let sealed: Vec<u8> = store
        .client()
        .await
        .unwrap()
        .query_one("select secret_sealed from connections where id = $1", &[&a.id])
        .await
        .unwrap()
        .get(0);
    assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
    sql(
        &store,
        "update connections set secret_sealed = (select secret_sealed from connections where name = 'b')",
    )
    .await;
    assert!(matches!(
        store.connection_secret(a.id).await,
        Err(StoreError::Sealed { .. })
    ));
    let other = MasterKey::new(&[7; 32]).unwrap();
    assert!(other.open(&format!("connection/{}/secret", b.id), &sealed).is_err());
}

#[tokio::test]
async fn each_change_of_a_connection_is_a_version_and_is_published() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let settings = settings(&store).await;
    let made = store
        .create_connection("db", settings.clone(), None, &Unrecorded)
        .await
        .unwrap();
    let wider = Settings {
        databases: vec!["*".into()],
        ..settings.clone()
    };
    let update =
        |settings, version| store.update_connection("db", settings, SecretChange::Keep, Some(version), &Unrecorded);
    let changed = update(wider, made.version).await.unwrap();
    assert!(changed.version > made.version && changed.allows_database("any"));
    assert!(matches!(
        update(settings, made.version).await,
        Err(StoreError::Stale { .. })
    ));
    store.delete_connection("db", None, &Unrecorded).await.unwrap();
    assert!(store.find_connection("db").await.unwrap().is_none());
    assert!(matches!(
        store.connection_secret(made.id).await,
        Err(StoreError::NotFound { .. })
    ));
    assert!(store.policy_version().await.unwrap() > changed.version);
    let published = store.changes_since(0).await.unwrap();
    let of_db = published
        .iter()
        .filter(|c| c.kind == changes::CONNECTION_CHANGED && c.subject == "db")
        .count();
    assert_eq!(of_db, 3);
}

#[tokio::test]
async fn a_credential_is_found_with_all_that_judges_it() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let ada = person(&store, "ada", Role::Member).await;
    let db = store
        .create_connection("db", settings(&store).await, None, &Unrecorded)
        .await
        .unwrap();
    let made = store
        .make_credential(&ada, &db, TTL_DEFAULT_S, &Unrecorded)
        .await
        .unwrap();
    let record = store.lookup_credential(&made.credential.id).await.unwrap().unwrap();
    assert_eq!(
        (record.state, &record.user, &record.connection),
        (CredentialState::Active, &ada, &db)
    );
    let proved = Verifier::make(&made.password, &record.verifier.salt, record.verifier.iterations);
    assert_eq!(record.verifier.iterations, 4096);
    assert!(proved == record.verifier, "the password proves itself");
    let native = hoop_access::Circumstances {
        mode: hoop_access::Mode::Native,
        using: None,
    };
    let decided = store
        .rules()
        .decide(&record.user.subject(), &record.connection.object(), &native);
    assert!(!decided.is_allowed(), "members are denied by default");
    assert!(store.lookup_credential("c00000000").await.unwrap().is_none());
    assert!(store.lookup_credential(&"c".repeat(9000)).await.unwrap().is_none());
    for ttl in [0, TTL_MAX_S + 1] {
        let refused = store.make_credential(&ada, &db, ttl, &Unrecorded).await;
        assert!(matches!(
            refused,
            Err(StoreError::Invalid {
                field: "ttl_seconds",
                ..
            })
        ));
    }
}

#[tokio::test]
async fn a_credential_past_its_end_is_kept_for_a_week() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let ada = person(&store, "ada", Role::Admin).await;
    let db = store
        .create_connection("db", settings(&store).await, None, &Unrecorded)
        .await
        .unwrap();
    let id = store
        .make_credential(&ada, &db, 60, &Unrecorded)
        .await
        .unwrap()
        .credential
        .id;
    let expire = |ago: &'static str| {
        let store = store.clone();
        async move {
            sql(
                &store,
                &format!("update credentials set expires_at = now() - interval '{ago}'"),
            )
            .await
        }
    };
    let state = || async {
        store
            .lookup_credential(&id)
            .await
            .unwrap()
            .map(|r| (r.state, r.expires_in_s))
    };
    expire("1 second").await;
    assert_eq!(state().await, Some((CredentialState::Expired, 0)));
    expire("6 days").await;
    assert!(state().await.is_some());
    expire("8 days").await;
    assert_eq!(state().await, None);
    let fresh = store.make_credential(&ada, &db, 60, &Unrecorded).await.unwrap();
    let kept = store
        .list_credentials(&CredentialFilter::default(), &CREDENTIALS.first(10))
        .await
        .unwrap()
        .rows;
    assert_eq!(kept, [fresh.credential], "making one clears old ones away");
}

#[tokio::test]
async fn a_credential_ends_with_its_revocation_its_person_or_its_connection() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let ada = person(&store, "ada", Role::Admin).await;
    let db = store
        .create_connection("db", settings(&store).await, None, &Unrecorded)
        .await
        .unwrap();
    let id = store
        .make_credential(&ada, &db, 60, &Unrecorded)
        .await
        .unwrap()
        .credential
        .id;
    let state = || async { store.lookup_credential(&id).await.unwrap().unwrap().state };
    store.revoke_credential(&id, &Unrecorded).await.unwrap();
    assert_eq!(state().await, CredentialState::Revoked);
    let published = store.changes_since(0).await.unwrap();
    assert!(
        published
            .iter()
            .any(|c| c.kind == changes::CREDENTIAL_REVOKED && c.subject == id)
    );
    sql(
        &store,
        "update credentials set revoked_at = null; update users set active = false",
    )
    .await;
    assert_eq!(state().await, CredentialState::Revoked);
    sql(&store, "update users set active = true").await;
    assert_eq!(state().await, CredentialState::Active);
    store.delete_connection("db", None, &Unrecorded).await.unwrap();
    assert_eq!(state().await, CredentialState::Revoked);
    let gone = store.make_credential(&ada, &db, 60, &Unrecorded).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })));
    let stranger = store.find_session(Uuid::now_v7()).await.unwrap();
    assert!(stranger.is_none());
}
