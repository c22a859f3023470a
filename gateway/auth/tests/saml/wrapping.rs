//! Signature wrapping: each document holds a genuine signature and the attacker's name.

use bergshamra::xml::{Document, NodeId, uppsala};
use bergshamra::{DsigContext, VerifyResult};
use hoop_auth::saml::SamlError;

use crate::forge::{self, ATTACKER, Forge, TRUSTED, VICTIM};
use crate::harness::{finish, finish_xml, redeem};

/// How service providers that were broken by wrapping read: the first assertion's `Subject/NameID`.
fn naive_name(document: &Document<'_>, assertions: impl Iterator<Item = NodeId>) -> Option<String> {
    let mut node = assertions.into_iter().next()?;
    for step in ["Subject", "NameID"] {
        node = document
            .children_iter(node)
            .find(|child| local(document, *child) == Some(step))?;
    }
    document.element_text(node).map(str::to_owned)
}

fn local<'d>(document: &'d Document<'_>, node: NodeId) -> Option<&'d str> {
    document.element(node).map(|element| element.name.local_name.as_ref())
}

/// What two naive readers see: `//Assertion` and `/Response/Assertion`.
fn naive_names(xml: &str) -> [Option<String>; 2] {
    let document = uppsala::parse(xml).unwrap();
    let root = document.document_element().unwrap();
    let is_assertion = |node: &NodeId| local(&document, *node) == Some("Assertion");
    [
        naive_name(&document, document.descendants(root).into_iter().filter(is_assertion)),
        naive_name(&document, document.children(root).into_iter().filter(is_assertion)),
    ]
}

/// How many signatures verify with the identity provider's key, wherever they stand and whatever they cover.
fn genuine_signatures(xml: &str) -> usize {
    let context = DsigContext::new(TRUSTED.trusted()).with_strict_verification(false);
    let results = bergshamra::verify_all(&context, xml).unwrap();
    results
        .iter()
        .filter(|result| matches!(result, VerifyResult::Valid { .. }))
        .count()
}

#[test]
fn the_document_that_is_wrapped_is_accepted_as_it_is() {
    let forge = Forge::default();
    assert_eq!(genuine_signatures(&forge.xml()), 1);
    assert_eq!(naive_names(&forge.xml()), [Some(VICTIM.into()), Some(VICTIM.into())]);
    assert_eq!(redeem(finish(&forge).unwrap()).identity.subject, VICTIM);
    let both = Forge {
        sign_response: true,
        ..forge
    };
    assert_eq!(genuine_signatures(&both.xml()), 2);
    assert_eq!(redeem(finish(&both).unwrap()).identity.subject, VICTIM);
}

#[test]
fn all_eight_wrappings_fool_a_naive_reader_and_are_refused() {
    for (name, xml) in forge::wrapped() {
        let seen = naive_names(&xml);
        assert!(seen.contains(&Some(ATTACKER.into())), "{name} is no attack: {seen:?}");
        // In two, what is signed stands inside of the signature: only verifiers that take the signature out of the signed
        // element, instead of out of what is digested, call that genuine.
        assert!(
            genuine_signatures(&xml) >= 1 || ["XSW6", "XSW8"].contains(&name),
            "{name} has no genuine signature"
        );
        match (name, finish_xml(&xml)) {
            ("XSW1" | "XSW2", Err(SamlError::Responses)) => {}
            (_, Err(SamlError::Assertions { found: 2 })) => {}
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}
