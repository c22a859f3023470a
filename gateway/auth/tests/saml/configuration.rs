//! Configuration, our metadata, and requests.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hoop_auth::saml::{ConfigError, IdentityProvider, NameIdFormat, Pending, SamlConfig, SamlProvider, SigningKey};
use rcgen::{KeyPair, RsaKeySize};
use saml_rs::binding::deflate_raw_decode;
use url::Url;

use crate::forge::{ACS, ECDSA, Forge, IDP, SP, STRANGER, Signer, TRUSTED, VICTIM};
use crate::harness::{config, finish_with, now, provider, redeem};

fn signing_key(signer: &Signer) -> SigningKey {
    SigningKey {
        private_key_pem: signer.key_pem.clone().into(),
        certificate_pem: signer.certificate_pem.clone(),
    }
}

fn metadata(attributes: &str, content: &str) -> String {
    format!(
        r#"<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" xmlns:ds="http://www.w3.org/2000/09/xmldsig#" entityID="{IDP}"><md:IDPSSODescriptor protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol"{attributes}>{content}</md:IDPSSODescriptor></md:EntityDescriptor>"#
    )
}

fn key_descriptor(usage: &str, signer: &Signer) -> String {
    let lines: Vec<_> = signer
        .certificate_pem
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect();
    let certificate = lines.join("\n");
    format!(
        "<md:KeyDescriptor{usage}><ds:KeyInfo><ds:X509Data><ds:X509Certificate>\n{certificate}\n</ds:X509Certificate></ds:X509Data></ds:KeyInfo></md:KeyDescriptor>"
    )
}

const REDIRECT: &str = r#"<md:SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect" Location="https://idp.example.test/sso"/>"#;

fn from_metadata(xml: String) -> SamlConfig {
    SamlConfig {
        identity_provider: IdentityProvider::Metadata { xml },
        ..config()
    }
}

fn refusal(config: SamlConfig) -> ConfigError {
    SamlProvider::new(config).err().expect("it is refused")
}

#[test]
fn metadata_gives_entity_address_and_signing_certificates() {
    let keys = [
        key_descriptor(r#" use="encryption""#, &ECDSA),
        key_descriptor(r#" use="signing""#, &STRANGER),
        key_descriptor("", &TRUSTED),
    ];
    let xml = metadata("", &format!("{}{REDIRECT}", keys.concat()));
    let signed_in = redeem(finish_with(from_metadata(xml.clone()), &Forge::default().form()).unwrap());
    assert_eq!(signed_in.identity.subject, VICTIM);
    let begun = provider(from_metadata(format!("\u{feff}<?xml version=\"1.0\"?>\n{xml}")))
        .begin(now())
        .unwrap();
    assert!(
        begun
            .redirect_url
            .starts_with("https://idp.example.test/sso?SAMLRequest="),
        "{}",
        begun.redirect_url
    );
    // A key for encryption does not sign.
    let ecdsa = Forge {
        signer: &ECDSA,
        signature_method: crate::forge::ECDSA_SHA256,
        ..Forge::default()
    };
    assert!(finish_with(from_metadata(xml), &ecdsa.form()).is_err());
}

#[test]
fn metadata_that_does_not_do_names_the_remedy() {
    let key = key_descriptor("", &TRUSTED);
    for (xml, remedy) in [
        ("<a/>".to_owned(), "EntityDescriptor"),
        ("no xml".into(), "not XML"),
        (
            format!("<!DOCTYPE a>{}", metadata("", &format!("{key}{REDIRECT}"))),
            "not XML",
        ),
        (metadata("", &key), "HTTP-Redirect"),
        (metadata("", REDIRECT), "no certificate"),
        (
            metadata("", "").replace("IDPSSODescriptor", "SPSSODescriptor"),
            "IDPSSODescriptor",
        ),
        (" ".repeat(2 << 20), "larger"),
    ] {
        let error = refusal(from_metadata(xml));
        assert_eq!(error.field, "identity_provider.metadata");
        assert!(error.remedy.contains(remedy), "{error}");
    }
    let wants = metadata(r#" WantAuthnRequestsSigned="true""#, &format!("{key}{REDIRECT}"));
    assert_eq!(refusal(from_metadata(wants)).field, "signing_key");
}

#[test]
fn fields_that_do_not_do_are_named() {
    let with = |change: fn(&mut SamlConfig)| {
        let mut config = config();
        change(&mut config);
        refusal(config).field
    };
    assert_eq!(with(|config| config.name.clear()), "name");
    assert_eq!(with(|config| config.sp_entity_id = " x".into()), "sp_entity_id");
    assert_eq!(with(|config| config.sp_entity_id = IDP.into()), "sp_entity_id");
    assert_eq!(with(|config| config.acs_url = "/acs".into()), "acs_url");
    assert_eq!(with(|config| config.acs_url = "ftp://x/acs".into()), "acs_url");
    assert_eq!(
        with(|config| config.groups_attribute = Some(String::new())),
        "groups_attribute"
    );
}

#[test]
fn certificates_and_keys_that_do_not_do_are_named() {
    let certificates = |pems: Vec<String>| {
        let identity_provider = IdentityProvider::Manual {
            entity_id: IDP.into(),
            sso_url: "https://idp.example.test/sso".into(),
            certificates: pems,
        };
        refusal(SamlConfig {
            identity_provider,
            ..config()
        })
    };
    let short = Signer::new(&KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap());
    assert_eq!(
        certificates(vec![short.key_pem]).field,
        "identity_provider.certificates"
    );
    assert!(certificates(Vec::new()).remedy.contains("give the certificate"));
    let other = Signer::new(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    assert!(
        certificates(vec![other.certificate_pem])
            .remedy
            .contains("neither RSA nor ECDSA")
    );
    let weak = include_str!("fixtures/rsa1024.pem").to_owned();
    assert!(certificates(vec![weak]).remedy.contains("2,048"));

    let signing = |key: SigningKey| {
        refusal(SamlConfig {
            signing_key: Some(key),
            ..config()
        })
    };
    assert_eq!(signing(signing_key(&ECDSA)).remedy, "give an RSA private key");
    let mixed = SigningKey {
        certificate_pem: STRANGER.certificate_pem.clone(),
        ..signing_key(&TRUSTED)
    };
    assert!(signing(mixed).remedy.contains("belong together"));
    let debug = format!("{:?}", signing_key(&TRUSTED));
    assert!(!debug.contains("PRIVATE"), "{debug}");
}

#[test]
fn a_request_is_signed_and_keeps_the_providers_own_query() {
    let provider = provider(SamlConfig {
        signing_key: Some(signing_key(&STRANGER)),
        ..config()
    });
    let begun = provider.begin(now()).unwrap();
    let url = Url::parse(&begun.redirect_url).unwrap();
    let value = |name: &str| {
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    assert_eq!(value("tenant").as_deref(), Some("7"));
    assert_eq!(value("RelayState"), Some(begun.pending.relay_state.clone()));
    assert_eq!(
        value("SigAlg").as_deref(),
        Some("http://www.w3.org/2001/04/xmldsig-more#rsa-sha256")
    );
    // saml-bindings 3.4.4.1: signed is the query from SAMLRequest to SigAlg, as it is encoded.
    let query = url.query().unwrap();
    let signed = &query[query.find("SAMLRequest=").unwrap()..query.find("&Signature=").unwrap()];
    let signature = STANDARD.decode(value("Signature").unwrap()).unwrap();
    let key = KeyPair::from_pem(&STRANGER.key_pem).unwrap();
    let public = UnparsedPublicKey::new(
        &RSA_PKCS1_2048_8192_SHA256,
        rcgen::PublicKeyData::subject_public_key_info(&key),
    );
    public
        .verify(signed.as_bytes(), &signature)
        .expect("the signature verifies");
}

#[test]
fn a_request_asks_for_the_configured_name_only() {
    let asked = |name_id_format| {
        let begun = provider(SamlConfig {
            name_id_format,
            ..config()
        })
        .begin(now())
        .unwrap();
        let url = Url::parse(&begun.redirect_url).unwrap();
        let (_, request) = url.query_pairs().find(|(key, _)| key == "SAMLRequest").unwrap();
        let deflated = STANDARD.decode(request.as_bytes()).unwrap();
        let xml = String::from_utf8(deflate_raw_decode(&deflated).unwrap()).unwrap();
        assert!(xml.contains(&format!(r#" ID="{}""#, begun.pending.request_id)), "{xml}");
        xml.split("NameIDPolicy Format=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        asked(Some(NameIdFormat::Persistent)),
        "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent"
    );
    assert_eq!(
        asked(Some(NameIdFormat::EmailAddress)),
        "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress"
    );
    assert_eq!(asked(None), "urn:oasis:names:tc:SAML:1.1:nameid-format:unspecified");
}

#[test]
fn what_is_pending_survives_serialisation_and_is_never_the_same() {
    let provider = provider(config());
    let (one, other) = (
        provider.begin(now()).unwrap().pending,
        provider.begin(now()).unwrap().pending,
    );
    assert_ne!(one.request_id, other.request_id);
    assert_ne!(one.relay_state, other.relay_state);
    assert!(one.relay_state.len() <= 80, "the binding's limit");
    let text = serde_json::to_string(&one).unwrap();
    assert_eq!(serde_json::from_str::<Pending>(&text).unwrap(), one);
}

#[test]
fn our_metadata_says_what_we_are() {
    let full = SamlConfig {
        signing_key: Some(signing_key(&STRANGER)),
        name_id_format: Some(NameIdFormat::Persistent),
        ..config()
    };
    let xml = provider(full).metadata();
    for part in [
        &format!(r#"entityID="{SP}""#),
        &format!(r#"Location="{ACS}""#),
        r#"WantAssertionsSigned="true""#,
        r#"AuthnRequestsSigned="true""#,
        "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST",
        "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent",
        "X509Certificate",
    ] {
        assert!(xml.contains(part), "{part} is missing in {xml}");
    }
    assert!(!xml.contains("PRIVATE"));
    assert!(provider(config()).metadata().contains(r#"AuthnRequestsSigned="false""#));
}
