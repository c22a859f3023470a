//! Request and response belong together, and an assertion is good for one sign-in.

use chrono::TimeDelta;
use hoop_auth::saml::{Pending, SamlConfig, SamlError, SamlForm};

use crate::forge::{ATTACKER, Forge, STRANGER, VICTIM};
use crate::harness::{Cache, config, finish, form, now, pending, provider, redeem};
use crate::refused;

#[test]
fn an_assertion_signs_in_once() {
    let cache = Cache::default();
    let redeem = |forge: &Forge| {
        let asserted = finish(forge).unwrap();
        futures_util::FutureExt::now_or_never(asserted.redeem(&cache)).unwrap()
    };
    assert!(redeem(&Forge::default()).is_ok());
    refused!(redeem(&Forge::default()), SamlError::Replayed);
    assert_eq!(
        *cache.until.lock().unwrap(),
        Some("2026-03-01T12:06:00Z".parse().unwrap())
    );
    // Another wrapping of the same assertion is the same assertion.
    refused!(
        redeem(&Forge {
            sign_response: true,
            ..Forge::default()
        }),
        SamlError::Replayed
    );
}

#[test]
fn a_pending_sign_in_ends_after_ten_minutes_and_belongs_to_its_provider_and_relay_state() {
    let (provider, form) = (provider(config()), form(&Forge::default().form()));
    let mut late = pending();
    late.made_at = now() - TimeDelta::minutes(10);
    assert!(provider.finish(Some(&late), &form, now()).is_ok());
    late.made_at -= TimeDelta::seconds(1);
    refused!(provider.finish(Some(&late), &form, now()), SamlError::PendingExpired);
    let other = Pending {
        provider: "other".into(),
        ..pending()
    };
    refused!(provider.finish(Some(&other), &form, now()), SamlError::OtherProvider);
    for relay_state in [None, Some("other".into())] {
        let form = SamlForm {
            relay_state,
            ..form.clone()
        };
        refused!(provider.finish(Some(&pending()), &form, now()), SamlError::RelayState);
    }
}

#[test]
fn a_sign_in_that_the_provider_began_is_refused_unless_configured() {
    let unsolicited = Forge {
        in_response_to: None,
        ..Forge::default()
    };
    let form = SamlForm {
        saml_response: unsolicited.form(),
        relay_state: None,
    };
    refused!(provider(config()).finish(None, &form, now()), SamlError::Unsolicited);
    let allowing = provider(SamlConfig {
        allow_idp_initiated: true,
        ..config()
    });
    assert_eq!(
        redeem(allowing.finish(None, &form, now()).unwrap()).identity.subject,
        VICTIM
    );
    // An answer to somebody's request is not one of these.
    let form = SamlForm {
        saml_response: Forge::default().form(),
        relay_state: None,
    };
    refused!(allowing.finish(None, &form, now()), SamlError::InResponseTo { .. });
}

#[test]
fn no_text_of_an_error_repeats_the_response() {
    let secrets = ["mallory", "sre", "_assertion", "other.example.test"];
    let forge = Forge {
        name_id: ATTACKER.into(),
        ..Forge::default()
    };
    let errors = [
        finish(&Forge {
            issuer: "https://other.example.test".into(),
            ..forge.clone()
        }),
        finish(&Forge {
            audience: "https://other.example.test".into(),
            ..forge.clone()
        }),
        finish(&Forge {
            signer: &STRANGER,
            named: Some(&STRANGER),
            ..forge
        }),
    ];
    for result in errors {
        let error = result.unwrap_err();
        let texts = format!("{error} {error:?} {} {}", error.for_person(), error.remedy());
        assert!(secrets.iter().all(|secret| !texts.contains(secret)), "{texts}");
    }
}
