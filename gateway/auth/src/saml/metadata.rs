//! Reads an identity provider's metadata (saml-metadata 2.4.3). An administrator chose it, so it is trusted; a signature
//! in it is not verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bergshamra::xml::uppsala::Parser;
use bergshamra::xml::{Document, NodeId};

use super::config::{ConfigError, Trusted};
use super::dom::{self, METADATA, SIGNATURE};
use super::gate::MAX_DEPTH;

/// Metadata of one entity has 2 to 20 KiB.
pub const MAX_METADATA_BYTES: usize = 1024 * 1024;

const REDIRECT: &str = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect";
const FIELD: &str = "identity_provider.metadata";

/// Entity id, address and signing certificates.
pub fn read(xml: &str) -> Result<Trusted, ConfigError> {
    if xml.len() > MAX_METADATA_BYTES {
        return Err(ConfigError::new(
            FIELD,
            format!("it is larger than {MAX_METADATA_BYTES} bytes; give the metadata of one entity only"),
        ));
    }
    let document = Parser::new()
        .with_max_depth(MAX_DEPTH)
        .with_forbid_dtd(true)
        .with_forbid_entities(true)
        .parse(xml.trim_start_matches('\u{feff}'))
        .map_err(|_| ConfigError::new(FIELD, "it is not XML; download the metadata again"))?;
    let entity = document
        .document_element()
        .filter(|root| dom::is(&document, *root, METADATA, "EntityDescriptor"))
        .ok_or_else(|| {
            ConfigError::new(
                FIELD,
                "it is not one EntityDescriptor; give the metadata of one entity only",
            )
        })?;
    let descriptor = dom::only_child(&document, entity, METADATA, "IDPSSODescriptor").ok_or_else(|| {
        ConfigError::new(
            FIELD,
            "it has no IDPSSODescriptor; take the identity provider's metadata, not a service's",
        )
    })?;
    let entity_id = dom::attribute(&document, entity, "entityID")
        .ok_or_else(|| ConfigError::new(FIELD, "it has no entityID; download the metadata again"))?;
    Ok(Trusted {
        entity_id: entity_id.to_owned(),
        sso_url: sso_url(&document, descriptor)?,
        certificates: certificates(&document, descriptor)?,
        wants_signed_requests: matches!(
            dom::attribute(&document, descriptor, "WantAuthnRequestsSigned"),
            Some("true" | "1")
        ),
    })
}

fn sso_url(document: &Document<'_>, descriptor: NodeId) -> Result<String, ConfigError> {
    dom::children(document, descriptor, METADATA, "SingleSignOnService")
        .into_iter()
        .find(|service| dom::attribute(document, *service, "Binding") == Some(REDIRECT))
        .and_then(|service| dom::attribute(document, service, "Location"))
        .map(str::to_owned)
        .ok_or_else(|| ConfigError::new(FIELD, "it has no SingleSignOnService with the HTTP-Redirect binding; turn that binding on at the identity provider"))
}

/// The certificates for signing: those marked so and those not marked at all.
fn certificates(document: &Document<'_>, descriptor: NodeId) -> Result<Vec<Vec<u8>>, ConfigError> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    for key in dom::children(document, descriptor, METADATA, "KeyDescriptor") {
        if !matches!(dom::attribute(document, key, "use"), None | Some("signing")) {
            continue;
        }
        for node in document.descendants(key) {
            if !dom::is(document, node, SIGNATURE, "X509Certificate") {
                continue;
            }
            let text: String = dom::text(document, node)
                .unwrap_or_default()
                .split_ascii_whitespace()
                .collect();
            let der = STANDARD
                .decode(text)
                .map_err(|_| ConfigError::new(FIELD, "a certificate in it is damaged; download the metadata again"))?;
            if !found.contains(&der) {
                found.push(der);
            }
        }
    }
    match found.is_empty() {
        true => Err(ConfigError::new(
            FIELD,
            "it has no certificate for signing; let the identity provider publish one",
        )),
        false => Ok(found),
    }
}
