//! Responses with markup or structure that none needs, each refused for its own reason.

use hoop_auth::saml::{MAX_ATTRIBUTES, MAX_RESPONSE_BYTES, MAX_TAGS, Markup, SamlError};

use crate::forge::{self, Forge, TRUSTED, VICTIM, attribute};
use crate::harness::{config, finish, finish_with, finish_xml, redeem};
use crate::refused;

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
