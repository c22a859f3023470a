//! Responses that chance made: none panics, and none signs anybody in but the person whom the signature names.
//! `PROPTEST_CASES=100000` looks for longer.

use std::sync::LazyLock;

use hoop_auth::saml::{SamlConfig, SamlProvider, SignedIn};
use proptest::prelude::*;

use crate::forge::{self, Forge};
use crate::harness::{config, form, now, pending, provider, redeem};

static PROVIDER: LazyLock<SamlProvider> = LazyLock::new(|| {
    provider(SamlConfig {
        display_name_attribute: Some("name".into()),
        ..config()
    })
});

static SIGNED: LazyLock<[String; 2]> = LazyLock::new(|| {
    let forge = Forge {
        attributes: [
            forge::attribute("groups", &["sre"]),
            forge::attribute("name", &["Alice"]),
        ]
        .concat(),
        ..Forge::default()
    };
    [
        forge.xml(),
        Forge {
            sign_response: true,
            ..forge
        }
        .xml(),
    ]
});

/// What an attacker would put in.
const TOKENS: [&str; 22] = [
    "<!---->",
    "<?x?>",
    "<![CDATA[",
    "]]>",
    "<!DOCTYPE x>",
    "&#x61;",
    "&amp;",
    "&x;",
    "<saml:Assertion>",
    "</saml:Assertion>",
    "<saml:NameID>mallory</saml:NameID>",
    "<saml:Subject><saml:NameID>mallory</saml:NameID></saml:Subject>",
    "<saml:AttributeValue>root</saml:AttributeValue>",
    "</saml:NameID>",
    "<ds:Signature>",
    "<ds:Object>",
    " ID=\"_assertion\"",
    " xmlns=\"urn:oasis:names:tc:SAML:2.0:assertion\"",
    " xmlns:saml=\"urn:other\"",
    "mallory",
    "\u{0}",
    "\u{feff}",
];

#[derive(Debug, Clone)]
enum Mutation {
    Insert(usize, usize),
    Remove(usize, usize),
    /// Copies a piece to another place, as wrapping does.
    Copy(usize, usize, usize),
    Byte(usize, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = || any::<usize>();
    prop_oneof![
        (at(), at()).prop_map(|(place, token)| Mutation::Insert(place, token)),
        (at(), at()).prop_map(|(from, to)| Mutation::Remove(from, to)),
        (at(), at(), at()).prop_map(|(from, to, place)| Mutation::Copy(from, to, place)),
        (at(), any::<u8>()).prop_map(|(place, byte)| Mutation::Byte(place, byte)),
    ]
}

/// Places at which a tag begins or ends, half of the time, else any.
fn place(xml: &[u8], choice: usize) -> usize {
    let tags: Vec<_> = (0..xml.len()).filter(|at| xml[*at] == b'<').collect();
    if choice.is_multiple_of(2) && !tags.is_empty() {
        tags[choice / 2 % tags.len()]
    } else {
        choice / 2 % (xml.len() + 1)
    }
}

fn apply(xml: &mut Vec<u8>, mutation: &Mutation) {
    let range = |from: usize, to: usize, xml: &[u8]| {
        let (from, to) = (place(xml, from), place(xml, to));
        from.min(to)..from.max(to)
    };
    match *mutation {
        Mutation::Insert(at, token) => {
            let at = place(xml, at);
            xml.splice(at..at, TOKENS[token % TOKENS.len()].bytes());
        }
        Mutation::Remove(from, to) => {
            let range = range(from, to, xml);
            xml.drain(range);
        }
        Mutation::Copy(from, to, at) => {
            let piece = xml[range(from, to, xml)].to_vec();
            let at = place(xml, at);
            xml.splice(at..at, piece);
        }
        Mutation::Byte(at, byte) => {
            let at = place(xml, at);
            if let Some(old) = xml.get_mut(at) {
                *old = byte;
            }
        }
    }
}

fn sign_in(xml: &[u8]) -> Option<SignedIn> {
    let response = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, xml);
    PROVIDER
        .finish(Some(&pending()), &form(&response), now())
        .ok()
        .map(redeem)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_response_is_refused_or_means_the_same(which in 0..2usize, mutations in prop::collection::vec(mutation(), 1..4)) {
        let original = SIGNED[which].as_bytes();
        let mut xml = original.to_vec();
        for mutation in &mutations {
            apply(&mut xml, mutation);
        }
        if let Some(signed_in) = sign_in(&xml) {
            prop_assert_eq!(Some(signed_in), sign_in(original), "{}", String::from_utf8_lossy(&xml));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), text in "[<>&/!?a:= \"'-]{0,200}") {
        prop_assert!(sign_in(&bytes).is_none());
        prop_assert!(sign_in(text.as_bytes()).is_none());
    }
}

#[test]
fn what_is_mutated_signs_in() {
    for xml in SIGNED.iter() {
        assert!(sign_in(xml.as_bytes()).is_some());
    }
}
