//! Signatures over response and assertion: which forms are taken, and with whose keys they are verified.
//!
//! What a signature asks for is judged before anything is computed. Only the SAML profile of XML signatures is taken
//! (saml-core 5.4): one reference, to the element that the signature stands in; enveloped and exclusive canonicalization
//! and no other transform; SHA-2. So no XPath or XSLT runs, and no file or address is looked up for a reference.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bergshamra::dsig::verify::verify_all_document;
use bergshamra::xml::{Document, NodeId};
use bergshamra::{DsigContext, Key, KeysManager, VerifyResult};

use super::config::Settings;
use super::dom;
use super::error::{SamlError, Signed};
use super::gate::Response;

/// RSA with PKCS#1 v1.5 and ECDSA, over SHA-2 (RFC 6931 2.3.2 to 2.3.6).
const SIGNATURE_METHODS: [&str; 6] = [
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha384",
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha512",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512",
];

const DIGEST_METHODS: [&str; 3] = [
    "http://www.w3.org/2001/04/xmlenc#sha256",
    "http://www.w3.org/2001/04/xmldsig-more#sha384",
    "http://www.w3.org/2001/04/xmlenc#sha512",
];

const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";

/// Exclusive canonicalization; with comments it is the same, as there are none.
const CANONICALIZATIONS: [&str; 2] = [
    "http://www.w3.org/2001/10/xml-exc-c14n#",
    "http://www.w3.org/2001/10/xml-exc-c14n#WithComments",
];

/// What may stand in a `KeyInfo`. Its keys are never used; what would make somebody fetch or decrypt one is refused.
const KEY_INFO: [&str; 3] = ["X509Data", "KeyValue", "KeyName"];

/// A configured certificate's key.
pub struct TrustedKey {
    key: Key,
    /// SHA-256 of the certificate.
    fingerprint: Vec<u8>,
}

impl TrustedKey {
    /// Of a certificate in DER. Its dates are not looked at: a certificate in SAML metadata carries a key, no more.
    pub fn new(certificate: &[u8]) -> Result<Self, bergshamra::Error> {
        let key = bergshamra::keys::loader::load_x509_cert_der(certificate)?;
        Ok(Self {
            key,
            fingerprint: fingerprint(certificate),
        })
    }

    pub fn algorithm(&self) -> &'static str {
        self.key.algorithm_name()
    }

    /// The public key (`SubjectPublicKeyInfo`, DER).
    pub fn public_key(&self) -> Option<Vec<u8>> {
        self.key.to_spki_der()
    }
}

fn fingerprint(certificate: &[u8]) -> Vec<u8> {
    digest(&SHA256, certificate).as_ref().to_vec()
}

/// Verifies what is signed, and requires what must be. Answers the assertion as the signature's reference resolved it.
pub fn verify(document: &Document<'_>, response: &Response, settings: &Settings) -> Result<NodeId, SamlError> {
    if settings.require_signed_response && response.response_signature.is_none() {
        return Err(SamlError::Unsigned {
            element: Signed::Response,
        });
    }
    let assertion_signature = response.assertion_signature.ok_or(SamlError::Unsigned {
        element: Signed::Assertion,
    })?;
    let mut wanted = vec![(assertion_signature, response.assertion, Signed::Assertion)];
    if let Some(signature) = response.response_signature {
        wanted.push((signature, response.root, Signed::Response));
    }
    for (signature, element, _) in &wanted {
        check_form(document, *signature, *element)?;
    }
    let verified = verified(document, settings);
    for (signature, element, what) in &wanted {
        if !verified.contains(&(*signature, *element)) {
            return Err(failure(document, *signature, *what, settings));
        }
    }
    Ok(response.assertion)
}

/// Each signature that a configured key verifies, with the one element that it covers.
fn verified(document: &Document<'_>, settings: &Settings) -> Vec<(NodeId, NodeId)> {
    let mut found = Vec::new();
    for trusted in &settings.keys {
        let mut keys = KeysManager::new();
        keys.add_key(trusted.key.clone());
        // Trusted keys only, strict positions, and each digest computed: the defaults of `new`.
        let context = DsigContext::new(keys);
        for result in verify_all_document(&context, document).unwrap_or_default() {
            let VerifyResult::Valid {
                signature_node,
                references,
                ..
            } = result
            else {
                continue;
            };
            if let [reference] = references.as_slice()
                && reference.digest_verified
                && let Some(covered) = reference.resolved_node
            {
                found.push((signature_node, covered));
            }
        }
    }
    found
}

/// A signature that does not verify was made by somebody else, or its content changed. Which it was is known by the
/// certificate that it names, which is believed for this and for nothing else.
fn failure(document: &Document<'_>, signature: NodeId, element: Signed, settings: &Settings) -> SamlError {
    let Some(named) = named_certificate(document, signature) else {
        return SamlError::Signature { element };
    };
    let named = fingerprint(&named);
    if settings.keys.iter().any(|trusted| trusted.fingerprint == named) {
        return SamlError::Signature { element };
    }
    let sha256 = named.iter().map(|byte| format!("{byte:02x}")).collect();
    SamlError::UnknownCertificate { element, sha256 }
}

fn named_certificate(document: &Document<'_>, signature: NodeId) -> Option<Vec<u8>> {
    let info = dom::only_child(document, signature, dom::SIGNATURE, "KeyInfo")?;
    let data = dom::children(document, info, dom::SIGNATURE, "X509Data")
        .into_iter()
        .next()?;
    let certificate = dom::children(document, data, dom::SIGNATURE, "X509Certificate")
        .into_iter()
        .next()?;
    let text: String = dom::text(document, certificate)?.split_ascii_whitespace().collect();
    STANDARD.decode(text).ok()
}

/// Refuses every form but the profile's.
fn check_form(document: &Document<'_>, signature: NodeId, element: NodeId) -> Result<(), SamlError> {
    for (child, found) in dom::elements(document, signature) {
        let known = ["SignedInfo", "SignatureValue", "KeyInfo"]
            .into_iter()
            .any(|name| found.matches_name_ns(dom::SIGNATURE, name));
        if !known {
            return Err(SamlError::SignatureForm("it has parts that the profile does not know"));
        }
        if found.matches_name_ns(dom::SIGNATURE, "KeyInfo") {
            check_key_info(document, child)?;
        }
    }
    let info = part(document, signature, "SignedInfo")?;
    part(document, signature, "SignatureValue")?;
    let canonicalization = algorithm(document, part(document, info, "CanonicalizationMethod")?);
    if !CANONICALIZATIONS.contains(&canonicalization) {
        return Err(SamlError::SignatureForm(
            "its canonicalization is not the exclusive one",
        ));
    }
    if !SIGNATURE_METHODS.contains(&algorithm(document, part(document, info, "SignatureMethod")?)) {
        return Err(SamlError::Algorithm { what: "signature" });
    }
    check_reference(document, part(document, info, "Reference")?, element)
}

fn check_reference(document: &Document<'_>, reference: NodeId, element: NodeId) -> Result<(), SamlError> {
    if !DIGEST_METHODS.contains(&algorithm(document, part(document, reference, "DigestMethod")?)) {
        return Err(SamlError::Algorithm { what: "digest" });
    }
    let transforms = part(document, reference, "Transforms")?;
    let (mut enveloped, mut canonical) = (0, 0);
    for (transform, _) in dom::elements(document, transforms) {
        match algorithm(document, transform) {
            ENVELOPED => enveloped += 1,
            other if CANONICALIZATIONS.contains(&other) => canonical += 1,
            _ => return Err(SamlError::SignatureForm("it transforms what it signs")),
        }
    }
    if enveloped != 1 || canonical != 1 {
        return Err(SamlError::SignatureForm(
            "it does not say how what it signs is canonicalized",
        ));
    }
    let target = dom::attribute(document, reference, "URI").and_then(|uri| uri.strip_prefix('#'));
    let id = dom::attribute(document, element, "ID");
    if target.is_none_or(str::is_empty) || target != id {
        return Err(SamlError::OtherReference);
    }
    Ok(())
}

fn check_key_info(document: &Document<'_>, info: NodeId) -> Result<(), SamlError> {
    let known = |name: &str| KEY_INFO.contains(&name);
    if dom::elements(document, info).all(|(_, found)| known(found.name.local_name.as_ref())) {
        return Ok(());
    }
    Err(SamlError::SignatureForm("its KeyInfo refers to a key elsewhere"))
}

fn part(document: &Document<'_>, node: NodeId, name: &'static str) -> Result<NodeId, SamlError> {
    dom::only_child(document, node, dom::SIGNATURE, name)
        .ok_or(SamlError::SignatureForm("a part of it is missing or there twice"))
}

fn algorithm<'d>(document: &'d Document<'_>, node: NodeId) -> &'d str {
    dom::attribute(document, node, "Algorithm").unwrap_or_default()
}
