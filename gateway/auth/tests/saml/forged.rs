//! Responses that must not sign anybody in, each refused for its own reason.

use chrono::TimeDelta;
use hoop_auth::saml::{
    MAX_ATTRIBUTES, MAX_RESPONSE_BYTES, MAX_TAGS, Markup, NameIdFormat, SamlConfig, SamlError, SamlForm, Signed,
};

use crate::forge::{self, ATTACKER, ECDSA, ECDSA_SHA256, Forge, SHA1, STRANGER, Signer, TRUSTED, VICTIM, attribute};
use crate::harness::{
    Cache, config, config_trusting, finish, finish_with, finish_xml, form, now, pending, provider, redeem,
};
use crate::refused;

fn at(seconds_from_now: i64) -> String {
    (now() + TimeDelta::seconds(seconds_from_now)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

// What is good.

#[test]
fn a_good_response_tells_who_it_is() {
    let attributes = [
        attribute("groups", &["sre"]),
        attribute("mail", &["alice@corp.test"]),
        attribute("name", &["Alice &amp; Co"]),
        attribute("groups", &["admin"]),
        attribute("odd", &["<b>no text</b>"]),
    ];
    let forge = Forge {
        attributes: attributes.concat(),
        ..Forge::default()
    };
    let config = SamlConfig {
        email_attribute: Some("mail".into()),
        display_name_attribute: Some("name".into()),
        ..config()
    };
    let signed_in = redeem(finish_with(config, &forge.form()).unwrap());
    assert_eq!(signed_in.identity.provider, "corp");
    assert_eq!(signed_in.identity.subject, VICTIM);
    assert_eq!(signed_in.identity.email, "alice@corp.test");
    assert_eq!(signed_in.identity.display_name, "Alice & Co");
    assert_eq!(signed_in.identity.groups, Some(vec!["sre".into(), "admin".into()]));
    assert_eq!(signed_in.session_index, "_session");
    assert_eq!(signed_in.session_ends, None);
}

#[test]
fn the_name_id_serves_as_address_if_it_is_one() {
    assert_eq!(redeem(finish(&Forge::default()).unwrap()).identity.email, VICTIM);
    let persistent = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent";
    let forge = Forge {
        name_id_format: persistent,
        ..Forge::default()
    };
    assert_eq!(redeem(finish(&forge).unwrap()).identity.email, "");
}

#[test]
fn no_groups_attribute_means_no_groups_if_one_is_configured_and_nothing_if_none_is() {
    let forge = Forge {
        attributes: attribute("other", &["x"]),
        ..Forge::default()
    };
    assert_eq!(redeem(finish(&forge).unwrap()).identity.groups, Some(Vec::new()));
    let config = SamlConfig {
        groups_attribute: None,
        ..config()
    };
    assert_eq!(
        redeem(finish_with(config, &forge.form()).unwrap()).identity.groups,
        None
    );
}

#[test]
fn ecdsa_signatures_and_a_second_certificate_are_taken() {
    let forge = Forge {
        signer: &ECDSA,
        named: None,
        signature_method: ECDSA_SHA256,
        ..Forge::default()
    };
    let asserted = finish_with(config_trusting(&[&ECDSA, &TRUSTED]), &forge.form()).unwrap();
    assert_eq!(redeem(asserted).identity.subject, VICTIM);
    let asserted = finish_with(config_trusting(&[&ECDSA, &TRUSTED]), &Forge::default().form()).unwrap();
    assert_eq!(redeem(asserted).identity.subject, VICTIM);
}

#[test]
fn line_ends_in_the_base64_are_taken() {
    let encoded = Forge::default().form();
    let lines: Vec<_> = encoded
        .as_bytes()
        .chunks(76)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    assert!(finish_with(config(), &lines.join("\r\n")).is_ok());
}

#[test]
fn a_thousand_groups_fit() {
    let groups: Vec<_> = (0..1000)
        .map(|n| format!("a-group-with-a-rather-long-name-{n}"))
        .collect();
    let names: Vec<_> = groups.iter().map(String::as_str).collect();
    let forge = Forge {
        attributes: attribute("groups", &names),
        ..Forge::default()
    };
    assert_eq!(redeem(finish(&forge).unwrap()).identity.groups, Some(groups));
}

// Signatures.

#[test]
fn unsigned_assertions_are_refused_even_in_a_signed_response() {
    let forge = Forge {
        sign_assertion: false,
        ..Forge::default()
    };
    refused!(
        finish(&forge),
        SamlError::Unsigned {
            element: Signed::Assertion
        }
    );
    let forge = Forge {
        sign_response: true,
        ..forge
    };
    refused!(
        finish(&forge),
        SamlError::Unsigned {
            element: Signed::Assertion
        }
    );
}

#[test]
fn unsigned_responses_are_refused_if_signed_ones_are_wanted() {
    let wanted = || SamlConfig {
        require_signed_response: true,
        ..config()
    };
    refused!(
        finish_with(wanted(), &Forge::default().form()),
        SamlError::Unsigned {
            element: Signed::Response
        }
    );
    let forge = Forge {
        sign_response: true,
        ..Forge::default()
    };
    assert!(finish_with(wanted(), &forge.form()).is_ok());
}

#[test]
fn a_key_in_the_response_is_not_believed() {
    let forge = Forge {
        signer: &STRANGER,
        named: Some(&STRANGER),
        ..Forge::default()
    };
    refused!(
        finish(&forge),
        SamlError::UnknownCertificate { element: Signed::Assertion, ref sha256 } if sha256.len() == 64
    );
}

#[test]
fn a_strangers_signature_under_the_configured_name_is_refused() {
    for named in [Some(&*TRUSTED), None] {
        let forge = Forge {
            signer: &STRANGER,
            named,
            ..Forge::default()
        };
        refused!(
            finish(&forge),
            SamlError::Signature {
                element: Signed::Assertion
            }
        );
    }
}

#[test]
fn a_stranger_may_not_sign_the_response_around_a_genuine_assertion() {
    let genuine = Forge::default().assertion();
    let stranger = Forge {
        signer: &STRANGER,
        named: None,
        ..Forge::default()
    };
    let response = stranger.response("_response", &stranger.signature("_response"), &genuine);
    let signed = forge::sign(&response, &STRANGER);
    refused!(
        finish_xml(&signed),
        SamlError::Signature {
            element: Signed::Response
        }
    );
}

#[test]
fn key_info_that_points_elsewhere_is_refused() {
    let xml = Forge::default()
        .xml()
        .replace("<ds:X509Data>", r##"<ds:RetrievalMethod URI="#x"/><ds:X509Data>"##);
    refused!(finish_xml(&xml), SamlError::SignatureForm(_));
}

#[test]
fn sha1_is_refused_as_digest() {
    let forge = Forge {
        digest_method: SHA1,
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::Algorithm { what: "digest" });
}

/// Made by `xmlsec1`: the same response with the same key, once with SHA-256 and once with SHA-1, which our own library
/// verifies but does not make.
#[test]
fn a_genuine_sha1_signature_is_refused() {
    let signer = Signer {
        key_pem: String::new(),
        certificate_pem: include_str!("fixtures/xmlsec1.pem").into(),
    };
    let finish = |xml: &str| finish_with(config_trusting(&[&signer]), &forge::encode(xml));
    let asserted = finish(include_str!("fixtures/sha256.xml")).unwrap();
    assert_eq!(redeem(asserted).identity.subject, VICTIM);
    let xml = include_str!("fixtures/sha1.xml");
    let verified = bergshamra::verify(&bergshamra::DsigContext::new(signer.trusted()), xml).unwrap();
    assert!(verified.is_valid(), "{verified:?}");
    refused!(finish(xml), SamlError::Algorithm { what: "signature" });
}

#[test]
fn an_hmac_keyed_with_the_public_certificate_is_refused() {
    let hmac = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256";
    let xml = Forge::default().xml().replace(forge::RSA_SHA256, hmac);
    refused!(finish_xml(&xml), SamlError::Algorithm { what: "signature" });
}

#[test]
fn a_signature_over_another_element_is_refused() {
    // The response's own signature, moved into the assertion.
    let forge = Forge {
        sign_response: true,
        sign_assertion: false,
        ..Forge::default()
    };
    let (bare, signature) = forge::split_signature(&forge.xml());
    let issuer = format!("<saml:Issuer>{}</saml:Issuer>", forge.issuer);
    let at = bare.rfind(&issuer).unwrap() + issuer.len();
    let xml = format!("{}{signature}{}", &bare[..at], &bare[at..]);
    refused!(finish_xml(&xml), SamlError::OtherReference);
}

#[test]
fn a_signature_of_everything_or_of_a_file_is_refused() {
    for uri in ["", "/etc/passwd", "#xpointer(/)", "#"] {
        let xml = Forge::default()
            .xml()
            .replace(r##"URI="#_assertion""##, &format!(r#"URI="{uri}""#));
        refused!(finish_xml(&xml), SamlError::OtherReference);
    }
}

#[test]
fn transforms_of_an_attackers_choice_are_refused() {
    let xpath = r#"<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"><ds:XPath>1</ds:XPath></ds:Transform></ds:Transforms>"#;
    let xml = Forge::default().xml().replace("</ds:Transforms>", xpath);
    refused!(finish_xml(&xml), SamlError::SignatureForm(_));
}

#[test]
fn two_references_are_refused() {
    let xml = Forge::default().xml();
    let start = xml.find("<ds:Reference ").unwrap();
    let end = xml.find("</ds:Reference>").unwrap() + "</ds:Reference>".len();
    let twice = format!("{}{}{}", &xml[..end], &xml[start..end], &xml[end..]);
    refused!(finish_xml(&twice), SamlError::SignatureForm(_));
}

#[test]
fn what_was_changed_after_signing_is_refused() {
    let changes = [
        (VICTIM, ATTACKER),
        (">sre<", ">root<"),
        (r#"SessionIndex="_session""#, r#"SessionIndex="_other""#),
        (
            r#"Method="urn:oasis:names:tc:SAML:2.0:cm:bearer""#,
            r#"Method="urn:oasis:names:tc:SAML:2.0:cm:bearer" a="b""#,
        ),
    ];
    for (from, to) in changes {
        let xml = Forge::default().xml();
        assert!(xml.contains(from));
        refused!(
            finish_xml(&xml.replace(from, to)),
            SamlError::Signature {
                element: Signed::Assertion
            }
        );
    }
    let both = Forge {
        sign_response: true,
        ..Forge::default()
    }
    .xml();
    let changed = both.replacen(forge::NOW, "2026-03-01T12:00:01Z", 1);
    refused!(
        finish_xml(&changed),
        SamlError::Signature {
            element: Signed::Response
        }
    );
}

#[test]
fn a_signature_elsewhere_is_refused() {
    let forge = Forge::default();
    let (_, signature) = forge::split_signature(&forge.xml());
    let xml = forge.xml().replace(
        "<samlp:Status>",
        &format!("<samlp:Extensions>{signature}</samlp:Extensions><samlp:Status>"),
    );
    refused!(finish_xml(&xml), SamlError::MisplacedSignature);
    let xml = forge.xml().replace(&signature, &format!("{signature}{signature}"));
    refused!(finish_xml(&xml), SamlError::MisplacedSignature);
}

#[test]
fn two_elements_with_the_signed_id_are_refused() {
    let xml = Forge::default()
        .xml()
        .replace(r#"ID="_response""#, r#"ID="_assertion""#);
    refused!(
        finish_xml(&xml),
        SamlError::Signature {
            element: Signed::Assertion
        }
    );
}

// Markup and structure.

#[test]
fn a_comment_that_cuts_a_name_short_is_refused() {
    // Signed over the whole name, which canonicalization without comments makes of both.
    let forge = Forge {
        name_id: format!("{VICTIM}.evil.test"),
        ..Forge::default()
    };
    let xml = forge.xml().replace(".evil.test", "<!---->.evil.test");
    refused!(finish_xml(&xml), SamlError::Markup(Markup::Comment));
    // Without the comment it is another person, not the victim.
    assert_eq!(
        redeem(finish(&forge).unwrap()).identity.subject,
        format!("{VICTIM}.evil.test")
    );
}

#[test]
fn instructions_cdata_and_document_types_are_refused() {
    let xml = Forge::default().xml();
    let name = |with: &str| xml.replace(VICTIM, with);
    refused!(
        finish_xml(&name("alice<?x?>@example.test")),
        SamlError::Markup(Markup::ProcessingInstruction)
    );
    refused!(
        finish_xml(&name("<![CDATA[alice@example.test]]>")),
        SamlError::Markup(Markup::Cdata)
    );
    for document_type in [
        r#"<!DOCTYPE r [<!ENTITY a "alice@example.test">]>"#,
        r#"<!DOCTYPE r SYSTEM "file:///etc/passwd">"#,
        r#"<!DOCTYPE r [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>"#,
    ] {
        refused!(
            finish_xml(&format!("{document_type}{xml}")),
            SamlError::Markup(Markup::DocumentType)
        );
        let declared = format!(r#"<?xml version="1.0"?>{document_type}{xml}"#);
        refused!(finish_xml(&declared), SamlError::Markup(Markup::DocumentType));
    }
    refused!(finish_xml(&name("&a;")), SamlError::NotXml);
}

#[test]
fn an_xml_declaration_is_taken() {
    assert!(
        finish_xml(&format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>{}"#,
            Forge::default().xml()
        ))
        .is_ok()
    );
}

#[test]
fn two_assertions_are_refused_though_both_are_signed() {
    let forge = Forge::default();
    let assertion = forge.assertion();
    let second = forge::sign(
        &forge
            .assertion_with(&forge.signature("_second"))
            .replace(r#"ID="_assertion""#, r#"ID="_second""#),
        &TRUSTED,
    );
    let xml = forge.response("_response", "", &format!("{assertion}{second}"));
    refused!(finish_xml(&xml), SamlError::Assertions { found: 2 });
    refused!(
        finish_xml(&forge.response("_response", "", "")),
        SamlError::Assertions { found: 0 }
    );
}

#[test]
fn an_assertion_of_another_namespace_is_refused() {
    let forge = Forge::default();
    let fake = r#"<x:Assertion xmlns:x="urn:other" ID="_x"/>"#;
    let xml = forge.response("_response", "", &format!("{fake}{}", forge.assertion()));
    refused!(finish_xml(&xml), SamlError::Assertions { found: 2 });
    refused!(
        finish_xml(&forge.response("_response", "", fake)),
        SamlError::MisplacedAssertion
    );
    let extensions = format!("<samlp:Extensions>{}</samlp:Extensions>", forge.assertion());
    refused!(
        finish_xml(&forge.response("_response", "", &extensions)),
        SamlError::MisplacedAssertion
    );
}

#[test]
fn encrypted_assertions_are_refused_with_a_remedy() {
    let xml = Forge::default().response("_response", "", "<saml:EncryptedAssertion/>");
    refused!(finish_xml(&xml), ref error @ SamlError::Encrypted if error.remedy().contains("encryption"));
}

#[test]
fn size_and_depth_are_bounded() {
    let filler = "x".repeat(MAX_RESPONSE_BYTES);
    let forge = Forge {
        attributes: attribute("filler", &[&filler]),
        ..Forge::default()
    };
    refused!(finish(&forge), SamlError::TooLarge);
    refused!(
        finish_with(config(), &"A".repeat(MAX_RESPONSE_BYTES * 2)),
        SamlError::TooLarge
    );
    let deep = format!("{}{}", "<a>".repeat(33), "</a>".repeat(33));
    refused!(finish_xml(&deep), SamlError::NotXml);
    let forge = |filler: String| Forge {
        attributes: format!("{}{filler}", attribute("groups", &["sre"])),
        ..Forge::default()
    };
    refused!(finish_xml(&"<a/>".repeat(MAX_TAGS)), SamlError::TooComplex);
    let wide = |attributes: usize| {
        let attributes: String = (0..attributes).map(|n| format!(" a{n}=\"\"")).collect();
        finish(&forge(format!("<saml:Attribute Name=\"n\"{attributes}/>")))
    };
    assert!(wide(MAX_ATTRIBUTES - 1).is_ok());
    refused!(wide(MAX_ATTRIBUTES), SamlError::TooComplex);
}

#[test]
fn what_is_no_response_is_refused() {
    refused!(finish_with(config(), "not base64!"), SamlError::NotBase64);
    refused!(finish_with(config(), ""), SamlError::NotXml);
    refused!(finish_xml("hello"), SamlError::NotXml);
    refused!(finish_with(config(), "//79"), SamlError::NotXml);
    refused!(finish_xml("<Response/>"), SamlError::NotAResponse);
    let assertion = Forge::default().assertion();
    refused!(finish_xml(&assertion), SamlError::NotAResponse);
    let old = Forge::default()
        .xml()
        .replacen(r#"Version="2.0""#, r#"Version="1.1""#, 1);
    refused!(finish_xml(&old), SamlError::NotAResponse);
}

#[test]
fn a_no_is_told_by_the_standards_word_only() {
    let xml = Forge {
        status: "Responder",
        ..Forge::default()
    }
    .response("_response", "", "");
    refused!(finish_xml(&xml), SamlError::Denied { status: "Responder" });
    let second = xml.replace(
        "Responder\"/>",
        r#"Responder"><samlp:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:AuthnFailed"/></samlp:StatusCode>"#,
    );
    refused!(finish_xml(&second), SamlError::Denied { status: "AuthnFailed" });
    let invented = Forge {
        status: "Hello\nworld",
        ..Forge::default()
    }
    .response("_response", "", "");
    refused!(
        finish_xml(&invented),
        SamlError::Denied {
            status: "another status"
        }
    );
}

// What it says.

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

// The exchange.

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
    let other = hoop_auth::saml::Pending {
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
