//! Identities, refresh tokens and used assertions against a real PostgreSQL.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};
use serde_json::{Value, json};

use crate::change::{Unrecorded, Witness};
use crate::identities::{Recognised, Role, Terms, Vouched};
use crate::refreshes::Claimed;
use crate::users::{User, UserSettings};
use crate::{Store, StoreError, testing};

const PASSWORD: &str = "correct horse battery";
const CLAIM: Duration = Duration::from_secs(60);

fn alice(groups: Option<&[&str]>) -> Vouched {
    Vouched {
        provider: "corp".into(),
        subject: "u-1".into(),
        email: "alice@example.test".into(),
        display_name: "Alice".into(),
        groups: groups.map(|groups| groups.iter().map(|group| (*group).to_owned()).collect()),
    }
}

const TERMS: Terms = Terms {
    creates: true,
    first_role: Role::Member,
    role: None,
};

#[derive(Default)]
struct Records(Mutex<Vec<(&'static str, Value)>>);

impl Witness for Records {
    fn record<'a>(&'a self, kind: &'static str, payload: Value) -> BoxFuture<'a, Result<(), String>> {
        self.0.lock().unwrap().push((kind, payload));
        Box::pin(ready(Ok(())))
    }
}

impl Records {
    fn kinds(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|(kind, _)| *kind).collect()
    }
}

/// A token for the user as it is now.
async fn token_of(store: &Store, user: &User) -> zeroize::Zeroizing<String> {
    let present = store.users_by_id(&[user.id]).await.unwrap().remove(0);
    store.issue_token(&present, CLAIM).await.unwrap().unwrap().token
}

async fn signed_in(store: &Store, vouched: &Vouched) -> User {
    match store.recognise(vouched, &TERMS, &Unrecorded).await.unwrap() {
        Recognised::Known(user) | Recognised::Created(user) => user,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_person_is_created_once_and_found_by_provider_and_subject_whatever_else_changes() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let records = Records::default();
    let first = store
        .recognise(&alice(Some(&["sre", "dev"])), &TERMS, &records)
        .await
        .unwrap();
    let Recognised::Created(user) = first else {
        panic!("{first:?}")
    };
    assert_eq!((user.username.as_str(), user.role), ("alice", Role::Member));
    assert_eq!(user.groups, ["dev", "sre"]);
    let renamed = Vouched {
        email: "other@example.test".into(),
        display_name: "Somebody".into(),
        ..alice(Some(&["dev", "sre"]))
    };
    let second = store.recognise(&renamed, &TERMS, &records).await.unwrap();
    let Recognised::Known(again) = second else {
        panic!("{second:?}")
    };
    assert_eq!((again.id, again.username.as_str()), (user.id, "alice"));
    assert_eq!(again.email, "other@example.test");
    store.recognise(&renamed, &TERMS, &records).await.unwrap();
    assert_eq!(
        records.kinds(),
        ["user.create", "user.update"],
        "what changes nothing is no change"
    );
    assert_eq!(
        records.0.lock().unwrap()[0].1["after"]["identity"],
        json!({"provider": "corp", "subject": "u-1"})
    );
    let elsewhere = Vouched {
        provider: "other".into(),
        ..alice(None)
    };
    assert_ne!(
        signed_in(&store, &elsewhere).await.id,
        user.id,
        "the same subject and address of another provider"
    );
}

#[tokio::test]
async fn two_first_sign_ins_at_once_make_one_user() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let vouched = alice(None);
    let (one, two) = tokio::join!(signed_in(&store, &vouched), signed_in(&store, &vouched));
    assert_eq!(one.id, two.id);
    let client = store.client().await.unwrap();
    let users = client.query_one("select count(*) from users", &[]).await.unwrap();
    assert_eq!(users.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn nobodys_name_is_taken_over_not_even_one_that_is_free_again() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let local = store
        .create_user("alice", PASSWORD, Role::Admin, "alice@example.test", &Unrecorded)
        .await
        .unwrap();
    store
        .create_user("alice-2", PASSWORD, Role::Admin, "", &Unrecorded)
        .await
        .unwrap();
    store.delete_user("alice-2", None, &Unrecorded).await.unwrap();
    let user = signed_in(&store, &alice(None)).await;
    assert_ne!(user.id, local.id);
    assert_eq!(user.username, "alice-3");
    let spec = serde_json::from_value(json!({"users": ["bob"], "connections": ["*"]})).unwrap();
    store.create_rule("named", spec, &Unrecorded).await.unwrap();
    let bob = Vouched {
        subject: "u-2".into(),
        email: "bob@evil.test".into(),
        ..alice(None)
    };
    assert_eq!(
        signed_in(&store, &bob).await.username,
        "bob-2",
        "a rule speaks of another bob"
    );
}

#[tokio::test]
async fn strangers_and_deactivated_people_are_told_apart_and_stay_out() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let closed = Terms {
        creates: false,
        ..TERMS
    };
    let stranger = store.recognise(&alice(None), &closed, &Unrecorded).await.unwrap();
    assert!(matches!(stranger, Recognised::Stranger), "{stranger:?}");
    store
        .create_user("ada", PASSWORD, Role::Member, "", &Unrecorded)
        .await
        .unwrap();
    store.link_identity("ada", "corp", "u-1", &Unrecorded).await.unwrap();
    let known = store
        .recognise(&alice(Some(&["dev"])), &closed, &Unrecorded)
        .await
        .unwrap();
    let Recognised::Known(ada) = known else {
        panic!("{known:?}")
    };
    assert_eq!(
        (ada.username.as_str(), ada.groups.as_slice()),
        ("ada", ["dev".to_owned()].as_slice())
    );
    let inactive = UserSettings {
        email: String::new(),
        role: Role::Member,
        groups: vec![],
        active: false,
    };
    store.update_user("ada", inactive, None, &Unrecorded).await.unwrap();
    let refused = store
        .recognise(&alice(Some(&["sre"])), &TERMS, &Unrecorded)
        .await
        .unwrap();
    assert!(matches!(refused, Recognised::Inactive(_)), "{refused:?}");
    assert_eq!(
        store.find_user("ada").await.unwrap().unwrap().groups,
        Vec::<String>::new()
    );
    store.delete_user("ada", None, &Unrecorded).await.unwrap();
    assert_ne!(signed_in(&store, &alice(None)).await.id, ada.id, "deleted is forgotten");
}

#[tokio::test]
async fn groups_are_what_the_providers_say_together_and_go_with_the_link() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let user = signed_in(&store, &alice(Some(&["dev"]))).await;
    store.link_identity("alice", "other", "x", &Unrecorded).await.unwrap();
    let other = Vouched {
        provider: "other".into(),
        subject: "x".into(),
        ..alice(Some(&["sre"]))
    };
    assert_eq!(signed_in(&store, &other).await.groups, ["dev", "sre"]);
    assert_eq!(signed_in(&store, &alice(Some(&[]))).await.groups, ["sre"]);
    assert_eq!(
        signed_in(&store, &alice(None)).await.groups,
        ["sre"],
        "not a word is not none"
    );
    let token = token_of(&store, &user).await;
    let taken = store
        .link_identity("alice", "other", "x", &Unrecorded)
        .await
        .unwrap_err();
    assert!(matches!(taken, StoreError::Conflict { .. }), "{taken}");
    let last = store.latest_change().await.unwrap();
    store.unlink_identity("alice", "other", "x", &Unrecorded).await.unwrap();
    assert_eq!(
        store.find_user("alice").await.unwrap().unwrap().groups,
        Vec::<String>::new()
    );
    assert!(store.token_user(&token).await.unwrap().is_none());
    assert_eq!(
        store.changes_since(last).await.unwrap()[0].kind,
        crate::changes::USER_CHANGED
    );
    let gone = store
        .unlink_identity("alice", "other", "x", &Unrecorded)
        .await
        .unwrap_err();
    assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
    assert_eq!(store.identities_of(user.id).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_provider_says_the_role_where_it_is_asked_to() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let says = |role| Terms {
        role: Some(role),
        first_role: role,
        ..TERMS
    };
    let admin = store
        .recognise(&alice(None), &says(Role::Admin), &Unrecorded)
        .await
        .unwrap();
    assert!(
        matches!(&admin, Recognised::Created(user) if user.role == Role::Admin),
        "{admin:?}"
    );
    let member = store
        .recognise(&alice(None), &says(Role::Member), &Unrecorded)
        .await
        .unwrap();
    assert!(
        matches!(&member, Recognised::Known(user) if user.role == Role::Member),
        "{member:?}"
    );
}

async fn claim(store: &Store) -> Vec<Claimed> {
    store.claim_refreshes(&["corp".into()], 10, CLAIM).await.unwrap()
}

#[tokio::test]
async fn a_refresh_token_is_used_by_one_replica_at_a_time_and_only_for_who_is_signed_in() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let user = signed_in(&store, &alice(Some(&["dev"]))).await;
    let now = Duration::ZERO;
    store
        .keep_refresh_token("corp", "u-1", Some("first"), now)
        .await
        .unwrap();
    assert!(claim(&store).await.is_empty(), "not signed in anywhere");
    token_of(&store, &user).await;
    assert!(
        store
            .claim_refreshes(&["other".into()], 10, CLAIM)
            .await
            .unwrap()
            .is_empty()
    );
    let (one, two) = tokio::join!(claim(&store), claim(&store));
    let mut claimed: Vec<Claimed> = one.into_iter().chain(two).collect();
    assert_eq!(claimed.len(), 1);
    let first = claimed.remove(0);
    assert_eq!(first.token.as_str(), "first");
    assert!(store.refreshed(&first, "second", now).await.unwrap());
    assert!(
        !store.refreshed(&first, "late", now).await.unwrap(),
        "a claim is good for one answer"
    );
    let second = claim(&store).await.remove(0);
    assert_eq!(second.token.as_str(), "second");
    // the person signs in anew meanwhile
    store
        .keep_refresh_token("corp", "u-1", Some("third"), now)
        .await
        .unwrap();
    assert!(
        store
            .sign_in_is_over(&second, None, &Unrecorded)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(claim(&store).await.remove(0).token.as_str(), "third");

    let rows = store.client().await.unwrap();
    let row = rows
        .query_one("select refresh_sealed from identities", &[])
        .await
        .unwrap();
    let sealed: Vec<u8> = row.get(0);
    assert!(!String::from_utf8_lossy(&sealed).contains("third"));
}

#[tokio::test]
async fn a_claim_that_was_left_behind_is_taken_over() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let user = signed_in(&store, &alice(None)).await;
    token_of(&store, &user).await;
    store
        .keep_refresh_token("corp", "u-1", Some("token"), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(claim(&store).await.len(), 1);
    assert!(claim(&store).await.is_empty());
    let client = store.client().await.unwrap();
    client
        .batch_execute("update identities set claimed_until = now() - interval '1 s'")
        .await
        .unwrap();
    let left = claim(&store).await.remove(0);
    store.refresh_later(&left, Duration::ZERO).await.unwrap();
    assert_eq!(claim(&store).await.remove(0).token.as_str(), "token", "tried again");
}

#[tokio::test]
async fn a_sign_in_that_the_provider_ended_takes_groups_role_and_tokens_along() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let admin = Terms {
        role: Some(Role::Admin),
        ..TERMS
    };
    let user = signed_in(&store, &alice(Some(&["ops"]))).await;
    store
        .recognise(&alice(Some(&["ops"])), &admin, &Unrecorded)
        .await
        .unwrap();
    let token = token_of(&store, &user).await;
    store
        .keep_refresh_token("corp", "u-1", Some("token"), Duration::ZERO)
        .await
        .unwrap();
    let claimed = claim(&store).await.remove(0);
    let records = Records::default();
    let ended = store
        .sign_in_is_over(&claimed, Some(Role::Member), &records)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((ended.groups.as_slice(), ended.role), (&[] as &[String], Role::Member));
    assert_eq!(records.kinds(), ["identity.ended"]);
    assert!(store.token_user(&token).await.unwrap().is_none());
    token_of(&store, &user).await;
    assert!(claim(&store).await.is_empty(), "nothing is left to ask with");
}

#[tokio::test]
async fn an_assertion_is_used_once_and_forgotten_when_it_is_no_longer_valid() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let soon = chrono::Utc::now() + chrono::TimeDelta::minutes(5);
    let (one, two) = tokio::join!(store.use_assertion("a", soon), store.use_assertion("a", soon));
    assert_ne!(one.unwrap(), two.unwrap());
    let past = chrono::Utc::now() - chrono::TimeDelta::minutes(5);
    assert!(store.use_assertion("b", past).await.unwrap());
    assert!(store.use_assertion("c", soon).await.unwrap());
    let client = store.client().await.unwrap();
    let left = client
        .query("select id from saml_assertions order by id", &[])
        .await
        .unwrap();
    assert_eq!(
        left.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(),
        ["a", "c"]
    );
}
