//! Responses that sign somebody in, and whom they name.

use hoop_auth::saml::SamlConfig;

use crate::forge::{self, ECDSA, ECDSA_SHA256, Forge, Signer, TRUSTED, VICTIM, attribute};
use crate::harness::{config, config_trusting, finish, finish_with, redeem};

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

/// Signed by `xmlsec1`: the assertion's namespace as the default one, white space, typed values, inclusive prefixes, SHA-512,
/// fractions of seconds, a second confirmation, no issuer of the response.
#[test]
fn a_response_of_another_style_is_read_the_same() {
    let signer = Signer {
        key_pem: String::new(),
        certificate_pem: include_str!("fixtures/styled.pem").into(),
    };
    let xml = include_str!("fixtures/styled.xml");
    let signed_in = redeem(finish_with(config_trusting(&[&signer]), &forge::encode(xml)).unwrap());
    assert_eq!(signed_in.identity.subject, "Jörg-7");
    assert_eq!(signed_in.identity.email, "");
    assert_eq!(
        signed_in.identity.groups,
        Some(vec!["sre".into(), "CN=Ops & Dev,OU=x".into()])
    );
    assert_eq!(signed_in.session_index, "s1");
}

/// Signed by `xmlsec1` with a key on P-384.
#[test]
fn an_ecdsa_signature_of_another_program_is_taken() {
    let signer = Signer {
        key_pem: String::new(),
        certificate_pem: include_str!("fixtures/ecdsa.pem").into(),
    };
    let response = forge::encode(include_str!("fixtures/ecdsa.xml"));
    let signed_in = redeem(finish_with(config_trusting(&[&signer]), &response).unwrap());
    assert_eq!(signed_in.identity.subject, VICTIM);
}
