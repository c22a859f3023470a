//! Against npm's `oidc-provider`.

use crate::browser::Browser;
use crate::config;
use crate::provider::{Provider, RETURN_TO};
use hoop_auth::Identity;
use hoop_auth::oidc::{Callback, OidcConfig, OidcError, OidcProvider, Pending, Secret, SignedIn};
use url::Url;

/// A configuration with which the provider gives refresh tokens.
fn with_refresh(issuer: &str) -> OidcConfig {
    let mut config = config(issuer);
    config.scopes.push("offline_access".into());
    config.ask_consent = true;
    config
}

async fn answer(ours: &OidcProvider, user: &str) -> (Pending, Callback) {
    let begun = ours.begin().await.unwrap();
    let callback = Browser::new().sign_in(begun.url, user).await;
    (begun.pending, callback)
}

async fn sign_in(ours: &OidcProvider, user: &str) -> Result<SignedIn, OidcError> {
    let (pending, callback) = answer(ours, user).await;
    ours.finish(pending, callback).await
}

fn alice(groups: &[&str]) -> Identity {
    Identity {
        provider: "corp".into(),
        subject: "alice".into(),
        email: "alice@example.test".into(),
        display_name: "The alice".into(),
        groups: Some(groups.iter().map(|group| (*group).to_owned()).collect()),
    }
}

#[tokio::test]
async fn a_person_signs_in_with_groups_and_without() {
    let test = "a_person_signs_in_with_groups_and_without";
    let Some(theirs) = Provider::start(test, "id-token").await else {
        return;
    };
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    let signed_in = sign_in(&ours, "alice").await.unwrap();
    assert_eq!(signed_in.identity, alice(&["admin", "sre"]));
    assert!(signed_in.refresh_token.is_none());
    let carol = sign_in(&ours, "carol").await.unwrap().identity;
    assert_eq!(carol.groups, Some(vec![]), "in no group");
    let mut config = config(&theirs.issuer);
    config.scopes.retain(|scope| scope != "groups");
    let ours = OidcProvider::new(config).unwrap();
    let alice = sign_in(&ours, "alice").await.unwrap().identity;
    assert_eq!(alice.groups, None, "not a word of groups");
}

#[tokio::test]
async fn claims_that_only_user_info_has_are_fetched() {
    let test = "claims_that_only_user_info_has_are_fetched";
    let Some(theirs) = Provider::start(test, "userinfo").await else {
        return;
    };
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    assert_eq!(
        sign_in(&ours, "alice").await.unwrap().identity,
        alice(&["admin", "sre"])
    );
}

#[tokio::test]
async fn a_code_is_good_once_and_only_with_its_verifier() {
    let test = "a_code_is_good_once_and_only_with_its_verifier";
    let Some(theirs) = Provider::start(test, "id-token").await else {
        return;
    };
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    let is_refused = |error: OidcError| {
        assert!(
            matches!(&error, OidcError::TokenRefused { error, .. } if error == "invalid_grant"),
            "{error}"
        );
    };
    let (pending, callback) = answer(&ours, "alice").await;
    ours.finish(pending.clone(), callback.clone()).await.unwrap();
    is_refused(ours.finish(pending, callback).await.unwrap_err());

    let (pending, callback) = answer(&ours, "alice").await;
    let mut sealed = serde_json::to_value(&pending).unwrap();
    sealed["verifier"] = "x".repeat(43).into();
    is_refused(
        ours.finish(serde_json::from_value(sealed).unwrap(), callback)
            .await
            .unwrap_err(),
    );
}

#[tokio::test]
async fn a_sign_in_survives_the_provider_changing_its_key() {
    let test = "a_sign_in_survives_the_provider_changing_its_key";
    let Some(mut theirs) = Provider::start(test, "id-token").await else {
        return;
    };
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    sign_in(&ours, "alice").await.unwrap();
    let (pending, callback) = answer(&ours, "alice").await;
    theirs.tell("rotate").await;
    ours.finish(pending, callback).await.unwrap();
    sign_in(&ours, "bob").await.unwrap();
}

#[tokio::test]
async fn a_refresh_brings_the_groups_of_now() {
    let test = "a_refresh_brings_the_groups_of_now";
    for mode in ["id-token", "userinfo"] {
        let Some(mut theirs) = Provider::start(test, mode).await else {
            return;
        };
        let ours = OidcProvider::new(with_refresh(&theirs.issuer)).unwrap();
        let signed_in = sign_in(&ours, "alice").await.unwrap();
        let first = signed_in.refresh_token.unwrap();
        theirs.tell("groups alice dev").await;
        let refreshed = ours.refresh(&first, "alice").await.unwrap();
        assert_eq!(refreshed.identity, alice(&["dev"]));
        let next = refreshed.refresh_token.unwrap();
        let other = ours.refresh(&next, "bob").await.unwrap_err();
        assert_eq!(other, OidcError::SubjectDiffers);
        assert!(other.ends_sign_in());
        let unknown = ours.refresh(&Secret::new("made-up"), "alice").await.unwrap_err();
        assert!(unknown.ends_sign_in(), "{unknown}");
        theirs.tell("rotate").await;
        let again = ours.refresh(&next, "alice").await.unwrap();
        assert_eq!(again.identity, alice(&["dev"]));
    }
}

#[tokio::test]
async fn a_cancelled_login_and_a_wrong_secret_are_told_apart() {
    let test = "a_cancelled_login_and_a_wrong_secret_are_told_apart";
    let Some(theirs) = Provider::start(test, "id-token").await else {
        return;
    };
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    let begun = ours.begin().await.unwrap();
    let mut browser = Browser::new();
    let login = browser.open(begun.url).await;
    let abort = login.url.join(&format!("{}/abort", login.url.path())).unwrap();
    let callback = browser.open(abort).await.callback();
    let error = ours.finish(begun.pending, callback).await.unwrap_err();
    assert!(
        matches!(&error, OidcError::Refused { error, .. } if error == "access_denied"),
        "{error}"
    );
    assert!(error.for_person().contains("cancelled"));

    let config = OidcConfig {
        client_secret: Secret::new("wrong-s3cret"),
        ..config(&theirs.issuer)
    };
    let error = sign_in(&OidcProvider::new(config).unwrap(), "alice").await.unwrap_err();
    assert!(
        matches!(&error, OidcError::TokenRefused { error, .. } if error == "invalid_client"),
        "{error}"
    );
    assert!(error.remedy().contains("client_secret") && !error.ends_sign_in());
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

#[tokio::test]
async fn signing_out_ends_the_session_at_the_provider() {
    let test = "signing_out_ends_the_session_at_the_provider";
    let Some(theirs) = Provider::start(test, "id-token").await else {
        return;
    };
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    let begun = ours.begin().await.unwrap();
    let mut browser = Browser::new();
    let callback = browser.sign_in(begun.url, "alice").await;
    let hint = ours.finish(begun.pending, callback).await.unwrap().id_token_hint;
    // the provider's own session still stands: nobody is asked
    let again = browser.open(ours.begin().await.unwrap().url).await;
    assert!(again.left_for.is_some());

    let return_to = Url::parse(RETURN_TO).unwrap();
    let url = ours.logout_url(hint.as_ref(), Some(&return_to)).await.unwrap().unwrap();
    let question = browser.open(url).await;
    assert_eq!(question.status, 200, "{}", question.text);
    let (_, xsrf) = question.text.split_once("name=\"xsrf\" value=\"").unwrap();
    let xsrf = xsrf.split('"').next().unwrap().to_owned();
    let left = browser.submit(&question, &[("xsrf", &xsrf), ("logout", "yes")]).await;
    assert_eq!(left.left_for, Some(return_to));
    let asked = browser.open(ours.begin().await.unwrap().url).await;
    assert!(
        asked.left_for.is_none() && asked.text.contains("name=\"login\""),
        "{}",
        asked.text
    );
}

#[tokio::test]
async fn a_provider_that_went_away_is_told_of_at_once() {
    let test = "a_provider_that_went_away_is_told_of_at_once";
    let Some(theirs) = Provider::start(test, "id-token").await else {
        return;
    };
    let ours = OidcProvider::new(with_refresh(&theirs.issuer)).unwrap();
    let (pending, callback) = answer(&ours, "alice").await;
    theirs.end().await;
    let error = ours.finish(pending, callback).await.unwrap_err();
    assert!(matches!(error, OidcError::Unreachable { .. }), "{error}");
    assert!(!error.ends_sign_in(), "its absence says nothing about the person");
}
