//! `saml-rs`: makes metadata and requests, and is the second reader of a response.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bergshamra::xml::uppsala::XmlWriter;
use chrono::{DateTime, Utc};
use saml_rs::{
    AcsEndpoint, AssertionSignaturePolicy, AudienceValidationPolicy, AuthnRequest, AuthnRequestSigningPolicy,
    BrowserInput, CertificatePem, ClockSkew, Credentials, EntityId, FormField, IdpDescriptor, LogoutPolicy,
    MetadataTrustPolicy, NameIdCreationPolicy, Pending as PendingRequest, PendingSnapshot, PrivateKeyPem,
    RelayStateParam, ReplayPolicy, ResponseSignaturePolicy, Saml, SamlError as LibraryError, SamlValidationContext, Sp,
    SpConfig, SpValidationPolicy, SsoResponse, SsoSession, StartSso, XmlSignatureProfile,
};

use super::config::{ConfigError, NameIdFormat, Settings};
use super::dom::{METADATA, PROTOCOL, SIGNATURE};
use super::error::SamlError;
use super::reader::Claims;
use super::{CLOCK_SKEW, Pending};

const REDIRECT: &str = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect";

/// The service provider as `saml-rs` knows it, and its one identity provider.
pub struct Library {
    sp: Saml<Sp>,
    idp: IdpDescriptor,
    acs_url: String,
    groups_attribute: Option<String>,
}

/// A request for the browser.
pub struct Request {
    pub id: String,
    pub redirect_url: String,
}

/// What the second reader read.
pub struct Answer<'a> {
    session: SsoSession,
    groups_attribute: Option<&'a str>,
}

impl Library {
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        saml_rs::initialize_crypto_provider()
            .map_err(|_| ConfigError::new("signing_key", "the cryptographic provider does not start; see the log"))?;
        let refused = |field| move |error: LibraryError| ConfigError::new(field, error.to_string());
        let config = SpConfig::builder(EntityId::new(settings.sp_entity_id.clone()))
            .acs_endpoint(AcsEndpoint::post(settings.acs_url.clone()).map_err(refused("acs_url"))?)
            // Without a format the library asks for an e-mail address.
            .name_id_format(library_format(
                settings.name_id_format.unwrap_or(NameIdFormat::Unspecified),
            ))
            .credentials(credentials(settings))
            .validation(policy(settings));
        let config = config.build().map_err(refused("signing_key"))?;
        let idp = IdpDescriptor::from_metadata_xml_for(
            EntityId::new(settings.idp_entity_id.clone()),
            &idp_metadata(settings),
            // Made by ourselves, from what was configured.
            MetadataTrustPolicy::UnsignedForCompatibility,
        )
        .map_err(refused("identity_provider"))?;
        Ok(Self {
            sp: Saml::sp(config).map_err(refused("sp_entity_id"))?,
            idp,
            acs_url: settings.acs_url.clone(),
            groups_attribute: settings.groups_attribute.clone(),
        })
    }

    pub fn metadata(&self) -> String {
        self.sp.metadata_xml().to_owned()
    }

    pub fn request(&self, relay_state: &str) -> Result<Request, SamlError> {
        let options = StartSso::redirect()
            .relay_state(RelayStateParam::try_from_option(Some(relay_state)).map_err(|_| SamlError::Request)?)
            .apply_web_browser_sso_generation_rules();
        let started = self.sp.start_sso(&self.idp, options).map_err(|_| SamlError::Request)?;
        let redirect_url = started.outbound.redirect_url().map_err(|_| SamlError::Request)?;
        Ok(Request {
            id: started.pending.id().as_str().to_owned(),
            redirect_url: redirect_url.to_owned(),
        })
    }

    /// Judges the response anew. Only responses that our own reader accepted come here, so a refusal is a difference.
    pub fn read(&self, response: &str, pending: Option<&Pending>, now: DateTime<Utc>) -> Result<Answer<'_>, SamlError> {
        let mut fields = vec![FormField::new("SAMLResponse", response)];
        if let Some(pending) = pending {
            fields.push(FormField::new("RelayState", pending.relay_state.as_str()));
        }
        let input = BrowserInput::<SsoResponse>::post(fields);
        // Replays are refused by `Asserted::redeem`, which can wait for a store.
        let skew = CLOCK_SKEW.num_milliseconds();
        let context = SamlValidationContext::new(now.into(), ReplayPolicy::DisabledForCompatibility)
            .with_clock_skew(ClockSkew::from_millis(-skew, skew));
        let session = match pending {
            Some(pending) => {
                let pending = self.pending(pending).map_err(|error| difference(&error))?;
                self.sp.finish_sso(&self.idp, &pending, input, context)
            }
            None => self.sp.accept_unsolicited_sso(&self.idp, input, context),
        };
        let session = session.map_err(|error| difference(&error))?;
        Ok(Answer {
            session,
            groups_attribute: self.groups_attribute.as_deref(),
        })
    }

    fn pending(&self, pending: &Pending) -> Result<PendingRequest<AuthnRequest>, LibraryError> {
        let relay_state = RelayStateParam::try_from_option(Some(pending.relay_state.as_str()))?;
        PendingRequest::<AuthnRequest>::from_snapshot(PendingSnapshot::<AuthnRequest>::authn_request(
            pending.request_id.as_str(),
            relay_state,
            self.idp.entity_id().as_str(),
            "post",
            self.acs_url.as_str(),
            "post",
        ))
    }
}

impl Answer<'_> {
    pub fn subject(&self) -> &str {
        self.session.name_id().value()
    }

    /// Refuses unless this reader saw the same assertion, person and groups.
    pub fn compare(&self, claims: &Claims) -> Result<(), SamlError> {
        if self.session.assertion_id().as_str() != claims.assertion_id {
            return Err(SamlError::Disagreement("assertion"));
        }
        if self.subject() != claims.subject {
            return Err(SamlError::Disagreement("NameID"));
        }
        if self.groups() != claims.groups {
            return Err(SamlError::Disagreement("groups"));
        }
        Ok(())
    }

    fn groups(&self) -> Option<Vec<String>> {
        let name = self.groups_attribute?;
        let values = self
            .session
            .attributes()
            .get(name)
            .map(|attribute| attribute.values())
            .unwrap_or_default();
        Some(
            values
                .iter()
                .map(|value| value.as_str().to_owned())
                .filter(|value| !value.is_empty())
                .collect(),
        )
    }
}

/// The library's own texts quote what the response says, so they are not passed on.
fn difference(error: &LibraryError) -> SamlError {
    SamlError::Disagreement(match error {
        LibraryError::Xml(_) | LibraryError::Invalid(_) | LibraryError::ProtocolProfile(_) => "form",
        LibraryError::IssuerMismatch { .. } | LibraryError::UnmatchIssuer => "issuer",
        LibraryError::DestinationMismatch { .. } | LibraryError::UnmatchDestination => "destination",
        LibraryError::InResponseToMismatch { .. } | LibraryError::InvalidInResponseTo => "InResponseTo",
        LibraryError::AudienceMismatch { .. } | LibraryError::UnmatchAudience => "audience",
        LibraryError::TimeWindowInvalid { .. } | LibraryError::ExpiredSession => "times",
        LibraryError::SubjectConfirmationInvalid { .. } | LibraryError::SubjectUnconfirmed => "confirmation",
        LibraryError::SignatureMissing
        | LibraryError::SignatureVerification { .. }
        | LibraryError::ReferenceResolution { .. }
        | LibraryError::SignedReferenceMismatch
        | LibraryError::AssertionSignatureRequired
        | LibraryError::AlgorithmUnsupported
        | LibraryError::NoTrustedCertificate
        | LibraryError::CertificateMismatch
        | LibraryError::UnmatchCertificate
        | LibraryError::PotentialWrappingAttack
        | LibraryError::FailedMessageSignatureVerification
        | LibraryError::FailedToVerifySignature
        | LibraryError::Crypto(_) => "signature",
        _ => "another rule",
    })
}

fn credentials(settings: &Settings) -> Credentials {
    let Some(key) = &settings.signing_key else {
        return Credentials::default();
    };
    Credentials {
        signing_key: Some(PrivateKeyPem::new(key.private_key_pem.as_str())),
        signing_certificate: Some(CertificatePem::new(key.certificate_pem.as_str())),
        ..Credentials::default()
    }
}

fn policy(settings: &Settings) -> SpValidationPolicy {
    SpValidationPolicy {
        assertions: AssertionSignaturePolicy::RequireSigned,
        responses: match settings.require_signed_response {
            true => ResponseSignaturePolicy::RequireSigned,
            false => ResponseSignaturePolicy::RequireForEncryptedCbc,
        },
        // The strict profile knows RSA only. Our own reader has judged algorithms and references before, ECDSA among them.
        xml_signatures: match settings.keys.iter().all(|key| key.algorithm() == "RSA") {
            true => XmlSignatureProfile::StrictRsaSha2,
            false => XmlSignatureProfile::AllowProviderSupportedForCompatibility,
        },
        authn_requests: match settings.signing_key {
            Some(_) => AuthnRequestSigningPolicy::Sign,
            None => AuthnRequestSigningPolicy::DoNotSignForCompatibility,
        },
        audience: AudienceValidationPolicy::Validate,
        name_id_creation: NameIdCreationPolicy::AllowCreate,
        logout: LogoutPolicy::recommended(),
    }
}

fn library_format(format: NameIdFormat) -> saml_rs::NameIdFormat {
    match format {
        NameIdFormat::Persistent => saml_rs::NameIdFormat::Persistent,
        NameIdFormat::EmailAddress => saml_rs::NameIdFormat::EmailAddress,
        NameIdFormat::Unspecified => saml_rs::NameIdFormat::Unspecified,
    }
}

/// Metadata of the identity provider with nothing in it but what was checked.
fn idp_metadata(settings: &Settings) -> String {
    let mut xml = XmlWriter::new();
    xml.start_element(
        "md:EntityDescriptor",
        &[("xmlns:md", METADATA), ("entityID", &settings.idp_entity_id)],
    );
    let signed = if settings.signing_key.is_some() {
        "true"
    } else {
        "false"
    };
    xml.start_element(
        "md:IDPSSODescriptor",
        &[
            ("protocolSupportEnumeration", PROTOCOL),
            ("WantAuthnRequestsSigned", signed),
        ],
    );
    for certificate in &settings.certificates {
        xml.start_element("md:KeyDescriptor", &[("use", "signing")]);
        xml.start_element("ds:KeyInfo", &[("xmlns:ds", SIGNATURE)]);
        xml.start_element("ds:X509Data", &[]);
        xml.start_element("ds:X509Certificate", &[]);
        xml.text(&STANDARD.encode(certificate));
        xml.end_element("ds:X509Certificate");
        xml.end_element("ds:X509Data");
        xml.end_element("ds:KeyInfo");
        xml.end_element("md:KeyDescriptor");
    }
    xml.empty_element(
        "md:SingleSignOnService",
        &[("Binding", REDIRECT), ("Location", &settings.sso_url)],
    );
    xml.end_element("md:IDPSSODescriptor");
    xml.end_element("md:EntityDescriptor");
    xml.into_string()
}
