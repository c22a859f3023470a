//! Responses whose signatures are missing, wrong, or over something else.

use hoop_auth::saml::{SamlConfig, SamlError, Signed};

use crate::forge::{self, ATTACKER, Forge, SHA1, STRANGER, Signer, TRUSTED, VICTIM};
use crate::harness::{config, config_trusting, finish, finish_with, finish_xml, redeem};
use crate::refused;

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
