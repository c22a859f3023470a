//! Genuine responses that were meant for somebody else or another time.

use chrono::TimeDelta;
use hoop_auth::saml::{NameIdFormat, SamlConfig, SamlError, Signed};

use crate::forge::{self, Forge, TRUSTED, attribute};
use crate::harness::{config, finish, finish_with, finish_xml, now, redeem};
use crate::refused;

fn at(seconds_from_now: i64) -> String {
    (now() + TimeDelta::seconds(seconds_from_now)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

#[test]
fn another_issuer_is_refused() {
    let forge = Forge {
        issuer: "https://other.example.test".into(),
        ..Forge::default()
    };
    refused!(
        finish(&forge),
        SamlError::Issuer {
            element: Signed::Response
        }
    );
    let assertion = forge.assertion();
    let xml = Forge::default().response("_response", "", &assertion);
    refused!(
        finish_xml(&xml),
        SamlError::Issuer {
            element: Signed::Assertion
        }
    );
}

#[test]
fn another_audience_is_refused() {
    let forge = Forge {
        audience: "https://other.example.test".into(),
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Audience);
    // All restrictions must hold, not one of them.
    let two = format!(
        "{}</saml:Audience></saml:AudienceRestriction><saml:AudienceRestriction><saml:Audience>https://other.example.test",
        forge::SP
    );
    refused!(
        finish(&Forge {
            audience: two,
            ..Forge::default()
        }),
        SamlError::Audience
    );
    let either = format!("https://other.example.test</saml:Audience><saml:Audience>{}", forge::SP);
    assert!(
        finish(&Forge {
            audience: either,
            ..Forge::default()
        })
        .is_ok()
    );
}

#[test]
fn another_address_is_refused() {
    let forge = Forge {
        recipient: format!("{}/", forge::ACS),
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Recipient);
    let forge = Forge {
        destination: Some("https://other.example.test/acs".into()),
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Destination);
    let forge = Forge {
        destination: None,
        sign_response: true,
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Destination);
}

#[test]
fn an_answer_to_another_request_is_refused() {
    for other in [Some("_other".into()), None] {
        let forge = Forge {
            in_response_to: other,
            ..Forge::default()
        };
        refused!(
            finish(&forge),
            SamlError::InResponseTo {
                element: Signed::Response
            }
        );
        // The response's attribute is not signed: what counts is the assertion's.
        let xml = Forge::default().response("_response", "", &forge.assertion());
        refused!(
            finish_xml(&xml),
            SamlError::InResponseTo {
                element: Signed::Assertion
            }
        );
    }
}

#[test]
fn times_are_checked_with_a_minute_of_difference() {
    type Change = fn(&mut Forge, String);
    let early: [Change; 1] = [|forge, at| forge.not_before = at];
    for change in early {
        let mut forge = Forge::default();
        change(&mut forge, at(60));
        assert!(finish(&forge).is_ok());
        change(&mut forge, at(61));
        refused!(finish(&forge), SamlError::NotYetValid { attribute: "NotBefore" });
    }
    let late: [Change; 2] = [
        |forge, at| forge.not_on_or_after = at,
        |forge, at| forge.confirmed_until = at,
    ];
    for change in late {
        let mut forge = Forge::default();
        change(&mut forge, at(-59));
        assert!(finish(&forge).is_ok());
        change(&mut forge, at(-60));
        refused!(
            finish(&forge),
            SamlError::Expired {
                attribute: "NotOnOrAfter"
            }
        );
    }
    let forge = Forge {
        confirmed_until: "soon".into(),
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Incomplete("NotOnOrAfter"));
}

#[test]
fn times_that_are_none_are_refused_wherever_they_stand() {
    let good = Forge::default().xml();
    for time in [
        "2026-03-01TJ2:00:00Z",
        "J026-03-01T12:00:00Z",
        "2026-03-01T12:00:00+01:00",
        "2026-03-01 12:00:00Z",
        "",
    ] {
        let xml = good.replacen(forge::NOW, time, 1);
        refused!(finish_xml(&xml), SamlError::Incomplete("IssueInstant"));
    }
    let without = good.replacen(&format!(r#" IssueInstant="{}""#, forge::NOW), "", 1);
    refused!(finish_xml(&without), SamlError::Incomplete("IssueInstant"));
    let until = Forge {
        not_on_or_after: "2026-03-01T1J:00:00Z".into(),
        ..Forge::default()
    };
    refused!(finish(&until), SamlError::Incomplete("NotOnOrAfter"));
}

#[test]
fn the_providers_end_of_session_is_told_and_kept() {
    let with_end = |end: &str| {
        let forge = Forge::default();
        let template = forge.assertion_with(&forge.signature("_assertion"));
        let template = template.replace("SessionIndex=", &format!("SessionNotOnOrAfter=\"{end}\" SessionIndex="));
        forge.response("_response", "", &forge::sign(&template, &TRUSTED))
    };
    let signed_in = redeem(finish_xml(&with_end("2026-03-01T20:00:00Z")).unwrap());
    assert_eq!(signed_in.session_ends, Some("2026-03-01T20:00:00Z".parse().unwrap()));
    refused!(
        finish_xml(&with_end(&at(-60))),
        SamlError::Expired {
            attribute: "SessionNotOnOrAfter"
        }
    );
}

#[test]
fn names_that_do_not_last_are_refused() {
    let transient = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient";
    let forge = Forge {
        name_id_format: transient,
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::NameIdFormat { found: "transient" });
    let persistent_only = SamlConfig {
        name_id_format: Some(NameIdFormat::Persistent),
        ..config()
    };
    refused!(
        finish_with(persistent_only, &Forge::default().form()),
        SamlError::NameIdFormat { found: "emailAddress" }
    );
    for name in ["", " alice", "a\tb", "<b>alice</b>", &"x".repeat(257)] {
        let forge = Forge {
            name_id: name.into(),
            ..Forge::default()
        };
        refused!(finish(&forge), SamlError::Incomplete("NameID"));
    }
}

#[test]
fn groups_that_are_no_text_are_refused() {
    let forge = Forge {
        attributes: attribute("groups", &["<b>admin</b>"]),
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Incomplete(_));
}

#[test]
fn what_the_two_readers_read_differently_is_refused() {
    // The second reader loses groups that come in several elements, one of them with several values.
    let attributes = [attribute("groups", &["sre"]), attribute("groups", &["admin", "dev"])].concat();
    refused!(
        finish(&Forge {
            attributes,
            ..Forge::default()
        }),
        SamlError::Disagreement("groups")
    );
}

#[test]
fn unknown_conditions_are_refused() {
    let condition = format!(
        "{}</saml:Audience></saml:AudienceRestriction><saml:Condition/><saml:AudienceRestriction><saml:Audience>{}",
        forge::SP,
        forge::SP
    );
    refused!(
        finish(&Forge {
            audience: condition,
            ..Forge::default()
        }),
        SamlError::Condition
    );
}
