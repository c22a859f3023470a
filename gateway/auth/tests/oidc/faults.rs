//! Against a provider that lies: every check of an answer and of a token, each with the one fault that it is there for.

use crate::liar::{Fault, Key, Liar, Signature, basic, half_hash};
use crate::{CLIENT, CLIENT_SECRET, config};
use chrono::{TimeDelta, Utc};
use hoop_auth::oidc::{
    Algorithm, ClientAuth, OidcConfig, OidcError, OidcProvider, Pending, Secret, SignedIn, TokenFault,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;

const DISCOVERY: &str = "/.well-known/openid-configuration";

async fn sign_in(ours: &OidcProvider, theirs: &Liar) -> Result<SignedIn, OidcError> {
    let begun = ours.begin().await?;
    let callback = theirs.authorise(&begun.url).await;
    ours.finish(begun.pending, callback).await
}

fn ours(theirs: &Liar) -> OidcProvider {
    OidcProvider::new(config(&theirs.issuer)).unwrap()
}

/// A sign-in may move between threads.
fn on_any_thread<F: Future + Send>(future: F) -> F {
    future
}

async fn refused(theirs: &Liar) -> OidcError {
    sign_in(&ours(theirs), theirs).await.unwrap_err()
}

#[tokio::test]
async fn a_true_answer_is_taken_from_each_kind_of_key() {
    let theirs = Liar::start().await;
    for key in [Key::rsa("r"), Key::ec("e"), Key::ed("o")] {
        theirs.lies().published.push(Arc::clone(&key));
        theirs.lies().signature = Signature::With(key);
        let identity = on_any_thread(sign_in(&ours(&theirs), &theirs)).await.unwrap().identity;
        assert_eq!((identity.provider.as_str(), identity.subject.as_str()), ("corp", "u-1"));
        assert_eq!(identity.groups, Some(vec!["dev".to_owned()]));
    }
}

#[tokio::test]
async fn each_claim_of_an_id_token_is_checked() {
    let now = Utc::now().timestamp();
    let lies = [
        ("iss", json!("https://elsewhere.example.test"), TokenFault::Issuer),
        ("aud", json!("another-client"), TokenFault::Audience),
        ("aud", json!([]), TokenFault::Audience),
        ("aud", Value::Null, TokenFault::Audience),
        ("aud", json!([CLIENT, "another-client"]), TokenFault::AuthorizedParty),
        ("azp", json!("another-client"), TokenFault::AuthorizedParty),
        ("exp", json!(now - 61), TokenFault::Expired),
        ("exp", json!(0), TokenFault::Expired),
        ("iat", json!(now + 600), TokenFault::NotYetValid),
        ("nbf", json!(now + 600), TokenFault::NotYetValid),
        ("nonce", json!("that-of-another-sign-in"), TokenFault::Nonce),
        ("nonce", Value::Null, TokenFault::Nonce),
        (
            "at_hash",
            json!(half_hash("another-token")),
            TokenFault::AccessTokenHash,
        ),
    ];
    let theirs = Liar::start().await;
    for (claim, value, fault) in lies {
        theirs.lies().claims.clear();
        theirs.claim(claim, value.clone());
        assert_eq!(refused(&theirs).await, OidcError::IdToken(fault), "{claim}: {value}");
    }
    theirs.lies().claims.clear();
    theirs.claim("aud", json!([CLIENT, "another-client"]));
    theirs.claim("azp", json!(CLIENT));
    theirs.claim("at_hash", json!(half_hash("at-1")));
    theirs.claim("exp", json!(now - 20));
    sign_in(&ours(&theirs), &theirs)
        .await
        .expect("several audiences, for us; a clock that is a little behind");
}

#[tokio::test]
async fn a_token_without_what_it_must_have_is_refused() {
    let theirs = Liar::start().await;
    for claim in ["iss", "sub", "exp", "iat"] {
        theirs.lies().claims.clear();
        theirs.claim(claim, Value::Null);
        let error = refused(&theirs).await;
        assert!(matches!(error, OidcError::Unreadable { .. }), "{claim}: {error}");
    }
}

#[tokio::test]
async fn a_token_that_no_published_key_has_signed_is_refused() {
    let theirs = Liar::start().await;
    let known = Key::rsa("k1");
    theirs.lies().published = vec![Arc::clone(&known)];
    let foreign = Key::rsa("foreign");
    let same_name = Key::rsa("k1");
    let lies = [
        (Signature::None, TokenFault::Unsigned),
        (Signature::Hmac(CLIENT_SECRET.into()), TokenFault::Algorithm),
        (Signature::Broken(Arc::clone(&known)), TokenFault::Signature),
        (Signature::With(Arc::clone(&foreign)), TokenFault::UnknownKey),
        (Signature::With(same_name), TokenFault::Signature),
        (
            Signature::Disguised(Arc::clone(&foreign), json!({ "alg": "RS256", "kid": "k1" })),
            TokenFault::Signature,
        ),
        (
            Signature::Disguised(Arc::clone(&foreign), json!({ "alg": "RS256" })),
            TokenFault::Signature,
        ),
        (
            Signature::Disguised(Arc::clone(&known), json!({ "alg": "RS512", "kid": "k1" })),
            TokenFault::Algorithm,
        ),
        (
            Signature::Disguised(Arc::clone(&known), json!({ "alg": "ES256", "kid": "k1" })),
            TokenFault::UnknownKey,
        ),
        (
            Signature::Disguised(
                Arc::clone(&known),
                json!({ "alg": "RS256", "kid": "k1", "crit": ["x"] }),
            ),
            TokenFault::Malformed,
        ),
        (
            Signature::Disguised(
                Arc::clone(&known),
                json!({ "alg": "RS256", "kid": "k1", "typ": "at+jwt" }),
            ),
            TokenFault::Malformed,
        ),
    ];
    for (n, (signature, fault)) in lies.into_iter().enumerate() {
        theirs.lies().signature = signature;
        assert_eq!(refused(&theirs).await, OidcError::IdToken(fault), "lie {n}");
    }
    theirs.lies().signature = Signature::With(Key::ec("k1"));
    let only_rsa = OidcConfig {
        algorithms: vec![Algorithm::Rs256],
        ..config(&theirs.issuer)
    };
    let error = sign_in(&OidcProvider::new(only_rsa).unwrap(), &theirs)
        .await
        .unwrap_err();
    assert_eq!(error, OidcError::IdToken(TokenFault::Algorithm));
}

#[tokio::test]
async fn a_key_that_was_replaced_is_fetched_and_a_foreign_one_is_not_asked_for_again_and_again() {
    let theirs = Liar::start().await;
    let ours = ours(&theirs);
    sign_in(&ours, &theirs).await.unwrap();
    assert_eq!((theirs.hits(DISCOVERY), theirs.hits("/jwks")), (1, 1));

    let next = Key::ec("k2");
    theirs.lies().published = vec![Arc::clone(&next)];
    theirs.lies().signature = Signature::With(next);
    sign_in(&ours, &theirs).await.unwrap();
    assert_eq!((theirs.hits(DISCOVERY), theirs.hits("/jwks")), (1, 2));

    theirs.lies().signature = Signature::With(Key::ec("foreign"));
    for _ in 0..3 {
        let error = sign_in(&ours, &theirs).await.unwrap_err();
        assert_eq!(error, OidcError::IdToken(TokenFault::UnknownKey));
    }
    assert_eq!(theirs.hits("/jwks"), 2, "the keys were fetched a moment ago");
}

#[tokio::test]
async fn a_key_that_was_replaced_under_its_old_name_is_fetched() {
    let theirs = Liar::start().await;
    let ours = ours(&theirs);
    sign_in(&ours, &theirs).await.unwrap();
    let next = Key::ec("k1");
    theirs.lies().published = vec![Arc::clone(&next)];
    theirs.lies().signature = Signature::With(next);
    sign_in(&ours, &theirs).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_not_for_this_browsers_sign_in_asks_nothing_of_the_provider() {
    let theirs = Liar::start().await;
    let ours = ours(&theirs);
    let (mine, others) = (ours.begin().await.unwrap(), ours.begin().await.unwrap());
    let callback = theirs.authorise(&others.url).await;
    let error = ours.finish(mine.pending.clone(), callback).await.unwrap_err();
    assert_eq!(error, OidcError::StateDiffers);

    let callback = theirs.authorise(&mine.url).await;
    let mut sealed = serde_json::to_value(&mine.pending).unwrap();
    sealed["made_at"] = json!(Utc::now() - TimeDelta::minutes(10));
    let old: Pending = serde_json::from_value(sealed).unwrap();
    let error = ours.finish(old, callback.clone()).await.unwrap_err();
    assert!(matches!(error, OidcError::PendingExpired { .. }), "{error}");

    let other = OidcConfig {
        name: "other".into(),
        ..config(&theirs.issuer)
    };
    let error = OidcProvider::new(other)
        .unwrap()
        .finish(mine.pending.clone(), callback.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, OidcError::OtherProvider { .. }), "{error}");
    assert_eq!(theirs.hits("/token"), 0);
    ours.finish(mine.pending, callback).await.unwrap();
}

#[tokio::test]
async fn a_nonce_of_an_earlier_sign_in_is_refused() {
    let theirs = Liar::start().await;
    let ours = ours(&theirs);
    let earlier = ours.begin().await.unwrap();
    let nonce = earlier
        .url
        .query_pairs()
        .find(|(name, _)| name == "nonce")
        .unwrap()
        .1
        .into_owned();
    theirs.claim("nonce", json!(nonce));
    let callback = theirs.authorise(&earlier.url).await;
    ours.finish(earlier.pending, callback).await.unwrap();
    let error = sign_in(&ours, &theirs).await.unwrap_err();
    assert_eq!(error, OidcError::IdToken(TokenFault::Nonce));
}

#[tokio::test]
async fn the_issuer_of_an_answer_is_required_where_it_is_announced() {
    let theirs = Liar::start().await;
    let is_refused = |error: OidcError| assert!(matches!(error, OidcError::ResponseIssuer { .. }), "{error}");
    theirs
        .lies()
        .discovery
        .insert("authorization_response_iss_parameter_supported".into(), json!(true));
    is_refused(refused(&theirs).await);
    theirs.lies().callback = vec![("iss", "https://elsewhere.example.test".into())];
    is_refused(refused(&theirs).await);
    theirs.lies().callback = vec![("iss", theirs.issuer.clone())];
    sign_in(&ours(&theirs), &theirs).await.unwrap();
}

#[tokio::test]
async fn claims_that_the_id_token_lacks_come_from_user_info_about_the_same_person() {
    let theirs = Liar::start().await;
    sign_in(&ours(&theirs), &theirs).await.unwrap();
    assert_eq!(theirs.hits("/userinfo"), 0, "the ID token has them all");

    theirs.claim("groups", Value::Null);
    theirs.lies().user_info = json!({ "sub": "u-1", "groups": ["ops"], "email": "other@example.test" });
    let identity = sign_in(&ours(&theirs), &theirs).await.unwrap().identity;
    assert_eq!(identity.groups, Some(vec!["ops".to_owned()]));
    assert_eq!(identity.email, "u1@example.test", "what is signed stands");

    theirs.lies().user_info = json!({ "sub": "u-1" });
    assert_eq!(sign_in(&ours(&theirs), &theirs).await.unwrap().identity.groups, None);

    theirs.lies().user_info = json!({ "sub": "u-2", "groups": ["admin"] });
    assert_eq!(refused(&theirs).await, OidcError::SubjectDiffers);

    theirs.lies().user_info = json!({ "groups": ["admin"] });
    let error = refused(&theirs).await;
    assert!(matches!(error, OidcError::Unreadable { .. }), "{error}");

    theirs
        .lies()
        .token
        .insert("access_token".into(), json!("at-1\r\nx-admin: yes"));
    let error = refused(&theirs).await;
    assert!(matches!(error, OidcError::Unreadable { .. }), "{error}");

    theirs.lies().token.clear();
    theirs.lies().faults.insert("/userinfo", Fault::Status(503, json!({})));
    let error = refused(&theirs).await;
    assert!(matches!(error, OidcError::Status { status: 503, .. }), "{error}");

    theirs.lies().discovery.insert("userinfo_endpoint".into(), Value::Null);
    assert_eq!(sign_in(&ours(&theirs), &theirs).await.unwrap().identity.groups, None);
}

#[tokio::test]
async fn groups_and_address_come_from_the_claims_that_are_configured() {
    let theirs = Liar::start().await;
    theirs.claim("https://example.test/roles", json!(["ops", "dev"]));
    theirs.claim("upn", json!("u1@corp.example.test"));
    let config = OidcConfig {
        groups_claim: "https://example.test/roles".into(),
        email_claim: "upn".into(),
        ..config(&theirs.issuer)
    };
    let identity = sign_in(&OidcProvider::new(config).unwrap(), &theirs)
        .await
        .unwrap()
        .identity;
    assert_eq!(identity.groups, Some(vec!["ops".to_owned(), "dev".to_owned()]));
    assert_eq!(identity.email, "u1@corp.example.test");

    theirs.claim("groups", json!({ "dev": true }));
    let error = refused(&theirs).await;
    assert!(
        matches!(&error, OidcError::Claim { claim, .. } if claim == "groups"),
        "{error}"
    );
}

#[tokio::test]
async fn an_announcement_that_cannot_be_is_refused() {
    let theirs = Liar::start().await;
    let evil = "http://elsewhere.example.test/x";
    for endpoint in [
        "authorization_endpoint",
        "token_endpoint",
        "userinfo_endpoint",
        "jwks_uri",
        "end_session_endpoint",
    ] {
        theirs.lies().discovery.clear();
        theirs.lies().discovery.insert(endpoint.into(), json!(evil));
        let error = ours(&theirs).probe().await.unwrap_err();
        assert_eq!(
            error,
            OidcError::InsecureEndpoint {
                endpoint,
                url: evil.into()
            }
        );
    }
    theirs.lies().discovery.clear();
    theirs.lies().discovery.insert("token_endpoint".into(), Value::Null);
    assert_eq!(
        refused(&theirs).await,
        OidcError::MissingEndpoint {
            endpoint: "token_endpoint"
        }
    );
    theirs.lies().discovery.clear();
    theirs
        .lies()
        .discovery
        .insert("issuer".into(), json!(format!("{}/", theirs.issuer)));
    let error = refused(&theirs).await;
    assert!(
        matches!(&error, OidcError::IssuerDiffers { announced, .. } if announced.ends_with('/')),
        "{error}"
    );
    assert_eq!(theirs.hits("/jwks"), 0, "nothing further was asked of it");
}

#[tokio::test]
async fn a_provider_that_is_slow_endless_or_elsewhere_is_given_up() {
    let theirs = Liar::start().await;
    // long enough for a true answer on a busy machine
    let deadline = Duration::from_secs(2);
    let slow = OidcConfig {
        deadline,
        ..config(&theirs.issuer)
    };
    for (path, fault) in [
        (DISCOVERY, Fault::Silent),
        ("/jwks", Fault::Stalls),
        ("/token", Fault::Silent),
        ("/token", Fault::Stalls),
    ] {
        theirs.lies().faults.insert(path, fault);
        let began = Instant::now();
        let error = sign_in(&OidcProvider::new(slow.clone()).unwrap(), &theirs)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, OidcError::TimedOut { url, .. } if url.ends_with(path)),
            "{error}"
        );
        assert!(began.elapsed() >= deadline);
        theirs.lies().faults.clear();
    }
    for path in [DISCOVERY, "/jwks", "/token"] {
        for (fault, is_it) in [
            (
                Fault::Endless,
                (|e| matches!(e, OidcError::TooLarge { .. })) as fn(&OidcError) -> bool,
            ),
            (Fault::Raw("HTTP/1.1 200 OK\r\n"), |e| {
                matches!(e, OidcError::Unreachable { .. })
            }),
            (Fault::Raw("SSH-2.0-x\r\n"), |e| {
                matches!(e, OidcError::Unreachable { .. })
            }),
            (Fault::Raw("HTTP/1.1 200 OK\r\n\r\n<html>"), |e| {
                matches!(e, OidcError::Unreadable { .. })
            }),
        ] {
            theirs.lies().faults.insert(path, fault);
            let error = refused(&theirs).await;
            assert!(is_it(&error), "{path}: {error}");
        }
        theirs.lies().faults.clear();
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (theirs, other) = (Liar::start().await, Liar::start().await);
    for path in [DISCOVERY, "/jwks", "/token", "/userinfo"] {
        theirs.claim("groups", Value::Null);
        theirs
            .lies()
            .faults
            .insert(path, Fault::Redirect(format!("{}{path}", other.issuer)));
        refused(&theirs).await;
        assert_eq!(other.hits(path), 0, "{path}");
        theirs.lies().faults.clear();
    }
}

#[tokio::test]
async fn those_who_wait_for_the_provider_share_one_request_and_its_failure() {
    let theirs = Liar::start().await;
    theirs.lies().faults.insert(DISCOVERY, Fault::Silent);
    let deadline = Duration::from_secs(1);
    let ours = OidcProvider::new(OidcConfig {
        deadline,
        ..config(&theirs.issuer)
    })
    .unwrap();
    let (one, two, three) = tokio::join!(ours.begin(), ours.begin(), ours.begin());
    for failed in [one, two, three] {
        assert!(matches!(failed.unwrap_err(), OidcError::TimedOut { .. }));
    }
    assert_eq!(theirs.hits(DISCOVERY), 1);
    theirs.lies().faults.clear();
    sign_in(&ours, &theirs).await.expect("the failure is not remembered");
}

#[tokio::test]
async fn what_the_token_endpoint_says_is_told_without_what_it_should_not_have_said() {
    let theirs = Liar::start().await;
    let says = |status, body| theirs.lies().faults.insert("/token", Fault::Status(status, body));
    says(400, json!({ "error": "invalid_grant", "error_description": "expired" }));
    let error = refused(&theirs).await;
    let told = OidcError::TokenRefused {
        error: "invalid_grant".into(),
        description: "expired".into(),
    };
    assert_eq!(error, told);
    for body in [
        json!({ "access_token": "s3cret-token" }),
        json!({ "a": ["s3cret-token"] }),
        json!("s3cret-token"),
    ] {
        for status in [200, 500] {
            says(status, body.clone());
            let error = refused(&theirs).await;
            assert!(matches!(error, OidcError::Unreadable { .. }), "{error}");
            let texts = format!("{error} {error:?} {} {}", error.for_person(), error.remedy());
            assert!(!texts.contains("s3cret"), "{texts}");
        }
    }
    theirs.lies().faults.clear();
    theirs.lies().token.insert("id_token".into(), Value::Null);
    assert_eq!(refused(&theirs).await, OidcError::NoIdToken);
    theirs.lies().token.insert("id_token".into(), json!("no.token.s3cret"));
    let error = refused(&theirs).await;
    assert!(
        matches!(error, OidcError::Unreadable { .. }) && !format!("{error:?}").contains("s3cret"),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_client_proves_itself_as_the_provider_offers_or_as_it_is_told() {
    let theirs = Liar::start().await;
    let in_header = format!("Basic {}", basic(CLIENT, CLIENT_SECRET));
    let in_body = "client_secret=gateway-s3cret%2F%2B%3A%26";
    let offers = |methods: Value| {
        theirs
            .lies()
            .discovery
            .insert("token_endpoint_auth_methods_supported".into(), methods)
    };
    for (methods, told, basic) in [
        (Value::Null, None, true),
        (json!(["client_secret_post", "client_secret_basic"]), None, true),
        (json!(["client_secret_post"]), None, false),
        (json!(["client_secret_post"]), Some(ClientAuth::Basic), true),
        (json!(["client_secret_basic"]), Some(ClientAuth::Post), false),
    ] {
        offers(methods);
        let config = OidcConfig {
            client_auth: told,
            ..config(&theirs.issuer)
        };
        sign_in(&OidcProvider::new(config).unwrap(), &theirs).await.unwrap();
        let request = theirs.last_token_request();
        assert_eq!(request.contains(&in_header), basic, "{request}");
        assert_eq!(request.contains(in_body), !basic, "{request}");
    }
}

#[tokio::test]
async fn a_refresh_is_for_the_same_person_with_or_without_an_id_token() {
    let theirs = Liar::start().await;
    let ours = ours(&theirs);
    let token = Secret::new("rt-1");
    let refreshed = ours.refresh(&token, "u-1").await.unwrap();
    assert_eq!(refreshed.identity.groups, Some(vec!["dev".to_owned()]));
    assert_eq!(refreshed.refresh_after, Some(Duration::from_secs(300)));
    assert_eq!(
        refreshed.refresh_token,
        Some(token.clone()),
        "no other came, so it stays"
    );
    assert_eq!(
        ours.refresh(&token, "u-2").await.unwrap_err(),
        OidcError::SubjectDiffers
    );

    theirs.claim("aud", json!("another-client"));
    assert_eq!(
        ours.refresh(&token, "u-1").await.unwrap_err(),
        OidcError::IdToken(TokenFault::Audience)
    );

    theirs.lies().token.insert("id_token".into(), Value::Null);
    theirs.lies().token.insert("refresh_token".into(), json!("rt-2"));
    theirs.lies().user_info = json!({ "sub": "u-1", "groups": ["ops"], "email": "u1@example.test" });
    let refreshed = ours.refresh(&token, "u-1").await.unwrap();
    assert_eq!(refreshed.identity.groups, Some(vec!["ops".to_owned()]));
    assert_eq!(refreshed.refresh_token, Some(Secret::new("rt-2")));
    assert_eq!(
        ours.refresh(&token, "u-2").await.unwrap_err(),
        OidcError::SubjectDiffers
    );

    theirs.lies().discovery.insert("userinfo_endpoint".into(), Value::Null);
    let ours = OidcProvider::new(config(&theirs.issuer)).unwrap();
    assert_eq!(ours.refresh(&token, "u-1").await.unwrap_err(), OidcError::NoIdToken);
}

#[tokio::test]
async fn signing_out_leads_to_where_the_provider_announces() {
    let theirs = Liar::start().await;
    let return_to = Url::parse("https://hoop.example.test/out?x=1&y=2").unwrap();
    assert_eq!(ours(&theirs).logout_url(None, Some(&return_to)).await.unwrap(), None);
    let end = format!("{}/end?tenant=1", theirs.issuer);
    theirs
        .lies()
        .discovery
        .insert("end_session_endpoint".into(), json!(end));
    let url = ours(&theirs)
        .logout_url(Some(&Secret::new("h.i.nt")), Some(&return_to))
        .await
        .unwrap()
        .unwrap();
    let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let expected = [
        ("tenant", "1"),
        ("client_id", CLIENT),
        ("id_token_hint", "h.i.nt"),
        ("post_logout_redirect_uri", return_to.as_str()),
    ];
    assert_eq!(query, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn a_provider_of_a_private_authority_is_trusted_by_its_certificate_alone() {
    let theirs = Liar::start_with_tls().await;
    let trusting = OidcConfig {
        ca_pem: theirs.ca_pem.clone(),
        ..config(&theirs.issuer)
    };
    sign_in(&OidcProvider::new(trusting).unwrap(), &theirs).await.unwrap();

    let other = Liar::start_with_tls().await;
    for ca_pem in [None, other.ca_pem.clone()] {
        let config = OidcConfig {
            ca_pem,
            ..config(&theirs.issuer)
        };
        let error = OidcProvider::new(config).unwrap().probe().await.unwrap_err();
        assert!(matches!(error, OidcError::Unreachable { .. }), "{error}");
        assert!(
            error.to_string().contains("certificate") && error.remedy().contains("ca_pem"),
            "{error}"
        );
    }
}
