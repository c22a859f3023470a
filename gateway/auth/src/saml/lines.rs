//! Each line of defence holds without the ones before it: wrapped documents past the gate.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use bergshamra::xml::{Document, NodeId, uppsala};
use chrono::{DateTime, Utc};

use super::config::{IdentityProvider, SamlConfig, Settings};
use super::error::SamlError;
use super::gate::Response;
use super::library::Library;
use super::{Pending, dom, signature};
use forge::{ACS, Forge, IDP, NOW, SP, TRUSTED, VICTIM};

#[path = "../../tests/saml/forge.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
mod forge;

fn settings() -> Settings {
    Settings::new(SamlConfig {
        name: "corp".into(),
        sp_entity_id: SP.into(),
        acs_url: ACS.into(),
        identity_provider: IdentityProvider::Manual {
            entity_id: IDP.into(),
            sso_url: "https://idp.example.test/sso".into(),
            certificates: vec![TRUSTED.certificate_pem.clone()],
        },
        groups_attribute: None,
        email_attribute: None,
        display_name_attribute: None,
        name_id_format: None,
        require_signed_response: false,
        allow_idp_initiated: false,
        signing_key: None,
    })
    .unwrap()
}

fn named<'d>(document: &'d Document<'_>, namespace: &'d str, name: &'d str) -> impl Iterator<Item = NodeId> + 'd {
    let all = document.descendants(document.document_element().unwrap());
    all.into_iter()
        .filter(move |node| dom::is(document, *node, namespace, name))
}

/// What a gate without a look at structure would hand on: any assertion with any signature.
fn every_reading(document: &Document<'_>) -> Vec<Response> {
    let root = document.document_element().unwrap();
    named(document, dom::ASSERTION, "Assertion")
        .flat_map(|assertion| {
            named(document, dom::SIGNATURE, "Signature").map(move |signature| Response {
                root,
                assertion,
                response_signature: None,
                assertion_signature: Some(signature),
            })
        })
        .collect()
}

#[test]
fn without_the_gate_no_signature_covers_the_attackers_assertion() {
    let settings = settings();
    for (name, xml) in forge::wrapped() {
        let document = uppsala::parse(&xml).unwrap();
        for reading in every_reading(&document) {
            let attackers = dom::attribute(&document, reading.assertion, "ID") == Some("_evil");
            let verified = signature::verify(&document, &reading, &settings);
            assert!(!attackers || verified.is_err(), "{name} got past the signature");
        }
    }
    let good = Forge::default().xml();
    let document = uppsala::parse(&good).unwrap();
    assert!(signature::verify(&document, &every_reading(&document)[0], &settings).is_ok());
}

#[test]
fn the_second_reader_alone_never_answers_with_the_attackers_name() {
    let library = Library::new(&settings()).unwrap();
    let now: DateTime<Utc> = NOW.parse().unwrap();
    let pending = Pending {
        provider: "corp".into(),
        request_id: "_request".into(),
        relay_state: "relay".into(),
        made_at: now,
    };
    let read = |xml: &str| library.read(&forge::encode(xml), Some(&pending), now);
    assert!(read(&Forge::default().xml()).is_ok());
    for (name, xml) in forge::wrapped() {
        match read(&xml) {
            Err(SamlError::Disagreement(_)) => {}
            Err(other) => panic!("{name}: {other:?}"),
            // Some it reads as they were meant, from the assertion that is signed.
            Ok(answer) => assert_eq!(answer.subject(), VICTIM, "{name}"),
        }
    }
}
