//! Configuration of one identity provider, and what it becomes once it is checked.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use super::metadata;
use super::signature::TrustedKey;

/// Certificates of one identity provider: one, and one more while it changes its key.
const MAX_CERTIFICATES: usize = 8;

/// saml-core 8.3.6: an entity id has at most 1024 characters.
const MAX_ENTITY_ID_CHARS: usize = 1024;

/// A `SubjectPublicKeyInfo` with an RSA key of 2,048 bits has 294 bytes; with one of 1,024 bits 162.
const MIN_RSA_PUBLIC_KEY_BYTES: usize = 290;

/// One SAML identity provider.
#[derive(Debug, Clone)]
pub struct SamlConfig {
    /// Ours, lasting: together with the NameID it is a person's key.
    pub name: String,
    /// Our entity id: the audience that assertions must name. By custom the URL of our metadata.
    pub sp_entity_id: String,
    /// Where browsers bring responses (assertion consumer service, HTTP-POST). Compared to the letter.
    pub acs_url: String,
    pub identity_provider: IdentityProvider,
    /// The `Name` of the attribute with groups. Where it is set, an assertion without the attribute says that the person
    /// is in **no** group, as identity providers leave an empty attribute out. Where it is not set, groups are `None`.
    pub groups_attribute: Option<String>,
    /// The `Name` of the attribute with the e-mail address; without it a NameID of the format `emailAddress` is taken.
    pub email_attribute: Option<String>,
    /// The `Name` of the attribute with a name for people to read.
    pub display_name_attribute: Option<String>,
    /// What is asked for and must come. `None` takes every format but `transient`, which names a person anew each time.
    pub name_id_format: Option<NameIdFormat>,
    /// Assertions must be signed, always; this asks for a signature over the response as well. One that is there is
    /// verified either way.
    pub require_signed_response: bool,
    /// Whether to take responses that answer no request of ours. They let anybody sign a browser in as somebody of their
    /// choice (login CSRF), so leave it off if nobody needs the identity provider's portal.
    pub allow_idp_initiated: bool,
    /// Signs our requests.
    pub signing_key: Option<SigningKey>,
}

/// Whom to trust.
#[derive(Debug, Clone)]
pub enum IdentityProvider {
    /// Its metadata: an `EntityDescriptor`. Fetch it once over a way that is trusted, and keep it: with it comes the key.
    Metadata { xml: String },
    /// The same by hand.
    Manual {
        entity_id: String,
        /// Of the HTTP-Redirect binding.
        sso_url: String,
        /// PEM, one certificate each.
        certificates: Vec<String>,
    },
}

/// A key of ours, with a certificate for our metadata.
#[derive(Clone)]
pub struct SigningKey {
    /// RSA, PKCS#8 in PEM, not encrypted.
    pub private_key_pem: Zeroizing<String>,
    /// PEM; may be signed by itself.
    pub certificate_pem: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").finish_non_exhaustive()
    }
}

/// Name identifier formats that last (saml-core 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameIdFormat {
    Persistent,
    EmailAddress,
    Unspecified,
}

impl NameIdFormat {
    pub(super) const UNSPECIFIED: &'static str = "urn:oasis:names:tc:SAML:1.1:nameid-format:unspecified";
    pub(super) const TRANSIENT: &'static str = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient";

    pub(super) fn from_uri(uri: &str) -> Option<Self> {
        match uri {
            "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent" => Some(Self::Persistent),
            "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress" => Some(Self::EmailAddress),
            Self::UNSPECIFIED => Some(Self::Unspecified),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Persistent => "persistent",
            Self::EmailAddress => "emailAddress",
            Self::Unspecified => "unspecified",
        }
    }
}

/// Names the field and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {remedy}")]
pub struct ConfigError {
    pub field: &'static str,
    pub remedy: String,
}

impl ConfigError {
    pub(super) fn new(field: &'static str, remedy: impl Into<String>) -> Self {
        Self {
            field,
            remedy: remedy.into(),
        }
    }
}

/// A configuration that was checked.
pub struct Settings {
    pub name: String,
    pub sp_entity_id: String,
    pub acs_url: String,
    pub idp_entity_id: String,
    pub sso_url: String,
    /// DER, in the order of `keys`.
    pub certificates: Vec<Vec<u8>>,
    pub keys: Vec<TrustedKey>,
    pub groups_attribute: Option<String>,
    pub email_attribute: Option<String>,
    pub display_name_attribute: Option<String>,
    pub name_id_format: Option<NameIdFormat>,
    pub require_signed_response: bool,
    pub allow_idp_initiated: bool,
    pub signing_key: Option<SigningKey>,
}

impl Settings {
    pub fn new(config: SamlConfig) -> Result<Self, ConfigError> {
        if config.name.is_empty() {
            return Err(ConfigError::new("name", "give the provider a name"));
        }
        entity_id("sp_entity_id", &config.sp_entity_id)?;
        http_url("acs_url", &config.acs_url)?;
        for (field, attribute) in [
            ("groups_attribute", &config.groups_attribute),
            ("email_attribute", &config.email_attribute),
            ("display_name_attribute", &config.display_name_attribute),
        ] {
            if attribute.as_deref() == Some("") {
                return Err(ConfigError::new(
                    field,
                    "write the attribute's Name as the identity provider sends it, or leave the field out",
                ));
            }
        }
        let trusted = trusted(&config)?;
        entity_id("identity_provider.entity_id", &trusted.entity_id)?;
        http_url("identity_provider.sso_url", &trusted.sso_url)?;
        if trusted.entity_id == config.sp_entity_id {
            return Err(ConfigError::new(
                "sp_entity_id",
                "it is the identity provider's own entity id; choose one for this service, such as the URL of its metadata",
            ));
        }
        if trusted.wants_signed_requests && config.signing_key.is_none() {
            return Err(ConfigError::new(
                "signing_key",
                "the identity provider's metadata asks for signed requests; give a key and a certificate",
            ));
        }
        if let Some(key) = &config.signing_key {
            check_signing_key(key)?;
        }
        Ok(Self {
            name: config.name,
            sp_entity_id: config.sp_entity_id,
            acs_url: config.acs_url,
            idp_entity_id: trusted.entity_id,
            sso_url: trusted.sso_url,
            keys: trusted_keys(&trusted.certificates)?,
            certificates: trusted.certificates,
            groups_attribute: config.groups_attribute,
            email_attribute: config.email_attribute,
            display_name_attribute: config.display_name_attribute,
            name_id_format: config.name_id_format,
            require_signed_response: config.require_signed_response,
            allow_idp_initiated: config.allow_idp_initiated,
            signing_key: config.signing_key,
        })
    }
}

/// What is known of an identity provider.
pub struct Trusted {
    pub entity_id: String,
    pub sso_url: String,
    /// DER.
    pub certificates: Vec<Vec<u8>>,
    pub wants_signed_requests: bool,
}

fn trusted(config: &SamlConfig) -> Result<Trusted, ConfigError> {
    match &config.identity_provider {
        IdentityProvider::Metadata { xml } => metadata::read(xml),
        IdentityProvider::Manual {
            entity_id,
            sso_url,
            certificates,
        } => Ok(Trusted {
            entity_id: entity_id.clone(),
            sso_url: sso_url.clone(),
            certificates: certificates
                .iter()
                .map(|pem| certificate("identity_provider.certificates", pem))
                .collect::<Result<_, _>>()?,
            wants_signed_requests: false,
        }),
    }
}

fn trusted_keys(certificates: &[Vec<u8>]) -> Result<Vec<TrustedKey>, ConfigError> {
    const FIELD: &str = "identity_provider.certificates";
    if certificates.is_empty() {
        return Err(ConfigError::new(
            FIELD,
            "give the certificate with which the identity provider signs",
        ));
    }
    if certificates.len() > MAX_CERTIFICATES {
        return Err(ConfigError::new(
            FIELD,
            format!("give at most {MAX_CERTIFICATES} certificates"),
        ));
    }
    let mut keys = Vec::with_capacity(certificates.len());
    for der in certificates {
        let key = TrustedKey::new(der)
            .map_err(|_| ConfigError::new(FIELD, "one is not an X.509 certificate with an RSA or ECDSA key"))?;
        match key.algorithm() {
            "RSA"
                if key
                    .public_key()
                    .is_none_or(|spki| spki.len() < MIN_RSA_PUBLIC_KEY_BYTES) =>
            {
                return Err(ConfigError::new(
                    FIELD,
                    "an RSA key has less than 2,048 bits; let the identity provider make a new one",
                ));
            }
            "RSA" | "EC-P256" | "EC-P384" | "EC-P521" => keys.push(key),
            _ => {
                return Err(ConfigError::new(
                    FIELD,
                    "a key is neither RSA nor ECDSA; let the identity provider sign with one of these",
                ));
            }
        }
    }
    Ok(keys)
}

fn check_signing_key(key: &SigningKey) -> Result<(), ConfigError> {
    const FIELD: &str = "signing_key";
    let private = bergshamra::keys::loader::load_pem_auto(key.private_key_pem.as_bytes(), None).map_err(|_| {
        ConfigError::new(
            FIELD,
            "give an RSA key as PKCS#8 in PEM (BEGIN PRIVATE KEY); `openssl pkcs8 -topk8 -nocrypt` converts others",
        )
    })?;
    if !private.has_private_key() || private.algorithm_name() != "RSA" {
        return Err(ConfigError::new(FIELD, "give an RSA private key"));
    }
    let der = certificate("signing_key.certificate", &key.certificate_pem)?;
    let public = TrustedKey::new(&der)
        .map_err(|_| ConfigError::new("signing_key.certificate", "give an X.509 certificate with an RSA key"))?;
    if public.public_key() != private.to_spki_der() {
        return Err(ConfigError::new(
            "signing_key.certificate",
            "it is not for the private key; give the two that belong together",
        ));
    }
    Ok(())
}

/// DER from PEM.
fn certificate(field: &'static str, pem: &str) -> Result<Vec<u8>, ConfigError> {
    let body = pem
        .trim()
        .strip_prefix("-----BEGIN CERTIFICATE-----")
        .and_then(|rest| rest.strip_suffix("-----END CERTIFICATE-----"))
        .ok_or_else(|| ConfigError::new(field, "give one certificate in PEM (BEGIN CERTIFICATE) each"))?;
    let compact: String = body.split_ascii_whitespace().collect();
    STANDARD
        .decode(compact)
        .map_err(|_| ConfigError::new(field, "the PEM of a certificate is damaged; copy it again"))
}

fn entity_id(field: &'static str, id: &str) -> Result<(), ConfigError> {
    let bad = id.is_empty() || id.trim() != id || id.chars().count() > MAX_ENTITY_ID_CHARS;
    if bad || id.chars().any(char::is_control) {
        return Err(ConfigError::new(
            field,
            format!("write a URI of 1 to {MAX_ENTITY_ID_CHARS} characters without white space around it"),
        ));
    }
    Ok(())
}

fn http_url(field: &'static str, url: &str) -> Result<(), ConfigError> {
    let parsed =
        Url::parse(url).map_err(|_| ConfigError::new(field, "write a whole URL, such as https://host/path"))?;
    if !matches!(parsed.scheme(), "https" | "http") || parsed.fragment().is_some() {
        return Err(ConfigError::new(field, "write an https URL without a fragment"));
    }
    Ok(())
}
