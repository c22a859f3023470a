//! Makes responses: good ones, and what an attacker makes of them.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bergshamra::{DsigContext, KeysManager};
use rcgen::{CertificateParams, DnType, KeyPair, RsaKeySize};

pub const IDP: &str = "https://idp.example.test/metadata";
pub const SP: &str = "https://hoop.example.test/api/saml/metadata";
pub const ACS: &str = "https://hoop.example.test/api/saml/callback";
/// When everything happens.
pub const NOW: &str = "2026-03-01T12:00:00Z";
pub const VICTIM: &str = "alice@example.test";
pub const ATTACKER: &str = "mallory@example.test";

pub const RSA_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256";
pub const ECDSA_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256";
pub const SHA256: &str = "http://www.w3.org/2001/04/xmlenc#sha256";
pub const SHA1: &str = "http://www.w3.org/2000/09/xmldsig#sha1";
const EXCLUSIVE: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";

/// A key that signs.
pub struct Signer {
    pub key_pem: String,
    pub certificate_pem: String,
}

impl Signer {
    pub fn new(key: &KeyPair) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test idp");
        Self {
            certificate_pem: params.self_signed(key).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }

    fn rsa(size: RsaKeySize) -> Self {
        Self::new(&KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap())
    }

    fn certificate_base64(&self) -> String {
        self.certificate_pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect()
    }

    /// Keys with which `bergshamra` verifies this one's signatures.
    pub fn trusted(&self) -> KeysManager {
        let mut keys = KeysManager::new();
        keys.add_key(bergshamra::keys::loader::load_x509_cert_pem(self.certificate_pem.as_bytes()).unwrap());
        keys
    }
}

/// The identity provider's key, and that of somebody else.
pub static TRUSTED: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(RsaKeySize::_2048));
pub static STRANGER: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(RsaKeySize::_2048));
pub static ECDSA: LazyLock<Signer> =
    LazyLock::new(|| Signer::new(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()));

/// A response as an identity provider makes it. Fields are what tests vary.
#[derive(Clone)]
pub struct Forge {
    pub signer: &'static Signer,
    pub sign_assertion: bool,
    pub sign_response: bool,
    pub signature_method: &'static str,
    pub digest_method: &'static str,
    /// Whose certificate the signature names.
    pub named: Option<&'static Signer>,
    pub issuer: String,
    pub destination: Option<String>,
    pub recipient: String,
    pub audience: String,
    pub in_response_to: Option<String>,
    pub name_id: String,
    pub name_id_format: &'static str,
    pub not_before: String,
    pub not_on_or_after: String,
    pub confirmed_until: String,
    pub attributes: String,
    pub status: &'static str,
}

impl Default for Forge {
    fn default() -> Self {
        let signer = &*TRUSTED;
        Self {
            signer,
            sign_assertion: true,
            sign_response: false,
            signature_method: RSA_SHA256,
            digest_method: SHA256,
            named: Some(signer),
            issuer: IDP.into(),
            destination: Some(ACS.into()),
            recipient: ACS.into(),
            audience: SP.into(),
            in_response_to: Some("_request".into()),
            name_id: VICTIM.into(),
            name_id_format: "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress",
            not_before: "2026-03-01T11:59:30Z".into(),
            not_on_or_after: "2026-03-01T12:05:00Z".into(),
            confirmed_until: "2026-03-01T12:05:00Z".into(),
            attributes: attribute("groups", &["sre", "admin"]),
            status: "Success",
        }
    }
}

pub fn attribute(name: &str, values: &[&str]) -> String {
    let values: String = values
        .iter()
        .map(|value| format!("<saml:AttributeValue>{value}</saml:AttributeValue>"))
        .collect();
    format!(r#"<saml:Attribute Name="{name}">{values}</saml:Attribute>"#)
}

fn answers(request: &Option<String>) -> String {
    request
        .as_ref()
        .map(|id| format!(r#" InResponseTo="{id}""#))
        .unwrap_or_default()
}

impl Forge {
    /// The response, signed.
    pub fn xml(&self) -> String {
        let assertion = self.assertion();
        let response = self.response("_response", &self.template("_response", self.sign_response), &assertion);
        if self.sign_response {
            sign(&response, self.signer)
        } else {
            response
        }
    }

    pub fn form(&self) -> String {
        encode(&self.xml())
    }

    /// The assertion, signed.
    pub fn assertion(&self) -> String {
        let assertion = self.assertion_with(&self.template("_assertion", self.sign_assertion));
        if self.sign_assertion {
            sign(&assertion, self.signer)
        } else {
            assertion
        }
    }

    pub fn assertion_with(&self, signature: &str) -> String {
        let Self {
            issuer,
            recipient,
            audience,
            name_id,
            name_id_format,
            not_before,
            not_on_or_after,
            ..
        } = self;
        let (until, attributes) = (&self.confirmed_until, &self.attributes);
        let answers = answers(&self.in_response_to);
        format!(
            r#"<saml:Assertion xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" ID="_assertion" IssueInstant="{NOW}" Version="2.0"><saml:Issuer>{issuer}</saml:Issuer>{signature}<saml:Subject><saml:NameID Format="{name_id_format}">{name_id}</saml:NameID><saml:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer"><saml:SubjectConfirmationData NotOnOrAfter="{until}" Recipient="{recipient}"{answers}/></saml:SubjectConfirmation></saml:Subject><saml:Conditions NotBefore="{not_before}" NotOnOrAfter="{not_on_or_after}"><saml:AudienceRestriction><saml:Audience>{audience}</saml:Audience></saml:AudienceRestriction></saml:Conditions><saml:AuthnStatement AuthnInstant="{NOW}" SessionIndex="_session"><saml:AuthnContext><saml:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:Password</saml:AuthnContextClassRef></saml:AuthnContext></saml:AuthnStatement><saml:AttributeStatement>{attributes}</saml:AttributeStatement></saml:Assertion>"#
        )
    }

    pub fn response(&self, id: &str, signature: &str, content: &str) -> String {
        let destination = self
            .destination
            .as_ref()
            .map(|url| format!(r#" Destination="{url}""#))
            .unwrap_or_default();
        let (issuer, status, answers) = (&self.issuer, self.status, answers(&self.in_response_to));
        format!(
            r#"<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" ID="{id}" Version="2.0" IssueInstant="{NOW}"{destination}{answers}><saml:Issuer>{issuer}</saml:Issuer>{signature}<samlp:Status><samlp:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:{status}"/></samlp:Status>{content}</samlp:Response>"#
        )
    }

    fn template(&self, id: &str, wanted: bool) -> String {
        if wanted { self.signature(id) } else { String::new() }
    }

    /// A signature without values yet.
    pub fn signature(&self, id: &str) -> String {
        let (method, digest) = (self.signature_method, self.digest_method);
        let key_info = self.named.map_or(String::new(), |named| {
            let certificate = named.certificate_base64();
            format!(
                "<ds:KeyInfo><ds:X509Data><ds:X509Certificate>{certificate}</ds:X509Certificate></ds:X509Data></ds:KeyInfo>"
            )
        });
        format!(
            r##"<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{EXCLUSIVE}"/><ds:SignatureMethod Algorithm="{method}"/><ds:Reference URI="#{id}"><ds:Transforms><ds:Transform Algorithm="{ENVELOPED}"/><ds:Transform Algorithm="{EXCLUSIVE}"/></ds:Transforms><ds:DigestMethod Algorithm="{digest}"/><ds:DigestValue></ds:DigestValue></ds:Reference></ds:SignedInfo><ds:SignatureValue></ds:SignatureValue>{key_info}</ds:Signature>"##
        )
    }
}

/// Fills the values of the first signature in.
pub fn sign(template: &str, signer: &Signer) -> String {
    let mut keys = KeysManager::new();
    keys.add_key(bergshamra::keys::loader::load_pem_auto(signer.key_pem.as_bytes(), None).unwrap());
    bergshamra::sign(&DsigContext::new_permissive(keys), template).unwrap()
}

pub fn encode(xml: &str) -> String {
    STANDARD.encode(xml)
}

/// `xml` with its first signature taken out, and that signature.
pub fn split_signature(xml: &str) -> (String, String) {
    let start = xml.find("<ds:Signature ").unwrap();
    let end = xml.find("</ds:Signature>").unwrap() + "</ds:Signature>".len();
    (format!("{}{}", &xml[..start], &xml[end..]), xml[start..end].to_owned())
}

/// The attacker's copy of an assertion.
pub fn evil(assertion: &str) -> String {
    assertion
        .replace(VICTIM, ATTACKER)
        .replace(r#"ID="_assertion""#, r#"ID="_evil""#)
}

/// Puts `content` into a signature, at its end.
fn into_signature(signature: &str, content: &str) -> String {
    signature.replace("</ds:Signature>", &format!("{content}</ds:Signature>"))
}

/// The eight wrappings of "On Breaking SAML: Be Whoever You Want to Be" as SAML Raider numbers them.
pub fn wrapped() -> Vec<(&'static str, String)> {
    let forge = Forge::default();
    let signed = forge.assertion();
    let (bare, signature) = split_signature(&signed);
    let evil_bare = evil(&bare);
    let evil_signed = evil(&signed);
    let respond = |content: &str| forge.response("_response", "", content);

    let whole = Forge {
        sign_response: true,
        ..Forge::default()
    }
    .xml();
    let (original, response_signature) = split_signature(&whole);
    let evil_response = |signature: &str| forge.response("_evil_response", signature, &evil_bare);

    let object = format!("<ds:Object>{bare}</ds:Object>");
    let extensions = format!("<samlp:Extensions>{evil_bare}</samlp:Extensions>");
    vec![
        ("XSW1", evil_response(&into_signature(&response_signature, &original))),
        ("XSW2", evil_response(&format!("{original}{response_signature}"))),
        ("XSW3", respond(&format!("{evil_bare}{signed}"))),
        (
            "XSW4",
            respond(&evil_bare.replace("</saml:Assertion>", &format!("{signed}</saml:Assertion>"))),
        ),
        ("XSW5", respond(&format!("{evil_signed}{bare}"))),
        (
            "XSW6",
            respond(&evil_signed.replace(&signature, &into_signature(&signature, &bare))),
        ),
        (
            "XSW7",
            respond(&signed).replace("<samlp:Status>", &format!("{extensions}<samlp:Status>")),
        ),
        (
            "XSW8",
            respond(&evil_signed.replace(&signature, &into_signature(&signature, &object))),
        ),
    ]
}
