//! Why a sign-in did not come about. No text holds anything that the response said, except a certificate's fingerprint.

use std::fmt;

use super::gate::{MAX_ATTRIBUTES, MAX_DEPTH, MAX_RESPONSE_BYTES, MAX_TAGS, Markup};

/// What a signature stands over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    Response,
    Assertion,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Response => "response",
            Self::Assertion => "assertion",
        })
    }
}

/// `Display` says what happened, for the log. [`SamlError::for_person`] is for the page, [`SamlError::remedy`] says what
/// an administrator can mend.
#[derive(Debug, thiserror::Error)]
pub enum SamlError {
    // The exchange.
    #[error("the SAML request could not be made")]
    Request,
    #[error("a SAML response came without a request of ours")]
    Unsolicited,
    #[error("a SAML response came for a sign-in with another provider")]
    OtherProvider,
    #[error("the SAML response came more than ten minutes after the request")]
    PendingExpired,
    #[error("the RelayState is not the one that was sent")]
    RelayState,
    #[error("the identity provider did not sign the person in: {status}")]
    Denied { status: &'static str },

    // The document.
    #[error("the SAML response is larger than {MAX_RESPONSE_BYTES} bytes")]
    TooLarge,
    #[error("the SAML response has more than {MAX_TAGS} tags, or more than {MAX_ATTRIBUTES} attributes in one")]
    TooComplex,
    #[error("the SAML response is not base64")]
    NotBase64,
    #[error("the SAML response is not well-formed XML of at most {MAX_DEPTH} levels")]
    NotXml,
    #[error("the SAML response holds markup that none needs: {0:?}")]
    Markup(Markup),
    #[error("what came is not a SAML 2.0 response")]
    NotAResponse,
    #[error("a SAML response stands inside of the response")]
    Responses,
    #[error("the SAML response holds {found} assertions, not one")]
    Assertions { found: usize },
    #[error("the SAML assertion is not a child of the response")]
    MisplacedAssertion,
    #[error("the SAML assertion is encrypted")]
    Encrypted,

    // Signatures.
    #[error("the SAML {element} is not signed")]
    Unsigned { element: Signed },
    #[error("a signature stands where none belongs")]
    MisplacedSignature,
    #[error("a signature has a form that is not taken: {0}")]
    SignatureForm(&'static str),
    #[error("a signature covers another element than the one it stands in")]
    OtherReference,
    #[error("the {what} algorithm is not one of RSA or ECDSA with SHA-2")]
    Algorithm { what: &'static str },
    #[error("the signature over the SAML {element} is wrong")]
    Signature { element: Signed },
    #[error("the SAML {element} is signed with a certificate that is not configured (SHA-256 {sha256})")]
    UnknownCertificate { element: Signed, sha256: String },

    // What it says.
    #[error("the SAML {element} was issued by somebody else than the configured identity provider")]
    Issuer { element: Signed },
    #[error("the SAML response is meant for another address (Destination)")]
    Destination,
    #[error("the SAML assertion is meant for another service (Audience)")]
    Audience,
    #[error("the SAML assertion is meant for another address (Recipient)")]
    Recipient,
    #[error("the SAML {element} answers another request, or none (InResponseTo)")]
    InResponseTo { element: Signed },
    #[error("the SAML assertion is not yet valid ({attribute})")]
    NotYetValid { attribute: &'static str },
    #[error("the SAML assertion is no longer valid ({attribute})")]
    Expired { attribute: &'static str },
    #[error("the SAML assertion lacks {0}, or has it twice, or in a form that is not taken")]
    Incomplete(&'static str),
    #[error("the SAML assertion has a condition that we do not know")]
    Condition,
    #[error("the SAML assertion's NameID has the format {found}, which does not last or is not the configured one")]
    NameIdFormat { found: &'static str },
    #[error("the two readers of the SAML response differ: {0}")]
    Disagreement(&'static str),

    // Replay.
    #[error("the SAML assertion was used before")]
    Replayed,
    #[error("whether the SAML assertion was used before is not known")]
    ReplayCache(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl SamlError {
    /// What the person at the browser reads. It says whether trying again helps, and nothing of what was looked for.
    pub fn for_person(&self) -> &'static str {
        match self {
            Self::PendingExpired | Self::RelayState | Self::Replayed | Self::OtherProvider => {
                "This sign-in was already used or took too long. Start again from the sign-in page."
            }
            Self::InResponseTo { .. } => {
                "This answer belongs to another sign-in. Start again from the sign-in page, in one window."
            }
            Self::Unsolicited => "Sign-ins begin here, not at the identity provider. Start from the sign-in page.",
            Self::Denied { .. } => {
                "The identity provider did not sign you in. Try again; if it stays so, ask your administrator whether you may use this service."
            }
            Self::NotYetValid { .. } | Self::Expired { .. } => {
                "The identity provider's answer is not valid at this time. Start again; if it stays so, tell your administrator that the clocks may differ."
            }
            Self::Request | Self::ReplayCache(_) => "Signing in does not work at the moment. Try again in a minute.",
            _ => {
                "The identity provider's answer was refused. Trying again is unlikely to help: tell your administrator, who finds the reason in the log."
            }
        }
    }

    /// What an administrator can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Request => "check signing_key: a request could not be signed with it",
            Self::Unsolicited => {
                "let people start at our sign-in page, or set allow_idp_initiated if the identity provider's portal must work"
            }
            Self::OtherProvider | Self::RelayState | Self::PendingExpired | Self::InResponseTo { .. } => {
                "nothing, if it is rare: a back button, a second window or a long pause does this; if it is always so, the identity provider does not return RelayState and InResponseTo"
            }
            Self::Denied { .. } => {
                "look into the identity provider's log; a NameID policy is mended by name_id_format, a request that it cannot verify by importing our metadata again"
            }
            Self::TooLarge | Self::TooComplex => {
                "let the identity provider send fewer groups: those of this application only"
            }
            Self::NotBase64 | Self::NotXml | Self::NotAResponse => {
                "check that the identity provider posts to acs_url by the HTTP-POST binding"
            }
            Self::Markup(_) | Self::Responses | Self::Assertions { .. } | Self::MisplacedAssertion => {
                "identity providers do not send this: find out who did, as it may be an attempt to forge a sign-in"
            }
            Self::MisplacedSignature | Self::OtherReference => {
                "identity providers do not send this: find out who did, as it may be an attempt to forge a sign-in"
            }
            Self::Encrypted => {
                "turn off assertion encryption for this application at the identity provider; TLS protects the response"
            }
            Self::Unsigned {
                element: Signed::Assertion,
            } => "let the identity provider sign assertions, not only responses",
            Self::Unsigned {
                element: Signed::Response,
            } => "let the identity provider sign responses, or unset require_signed_response",
            Self::SignatureForm(_) => {
                "let the identity provider sign by the SAML profile: enveloped, with exclusive canonicalization"
            }
            Self::Algorithm { .. } => "let the identity provider sign with RSA-SHA256 or better; SHA-1 is not taken",
            Self::Signature { .. } => {
                "if nobody tampers with responses, the identity provider's key was changed: import its metadata again"
            }
            Self::UnknownCertificate { .. } => {
                "if the fingerprint is that of the identity provider's new certificate, import its metadata again; if not, somebody tries to forge a sign-in"
            }
            Self::Issuer { .. } => "compare the identity provider's entity id with the configured one",
            Self::Destination | Self::Recipient => {
                "compare the assertion consumer service URL at the identity provider with acs_url, to the letter"
            }
            Self::Audience => {
                "compare the audience (entity id) at the identity provider with sp_entity_id, to the letter"
            }
            Self::NotYetValid { .. } | Self::Expired { .. } => {
                "synchronise the clocks of both sides (NTP); 60 seconds of difference are allowed"
            }
            Self::Incomplete(_) | Self::Condition => {
                "let the identity provider answer by the Web Browser SSO profile, with a NameID and plain attributes"
            }
            Self::NameIdFormat { .. } => {
                "let the identity provider send a lasting NameID (persistent or emailAddress), or mend name_id_format"
            }
            Self::Disagreement(_) => {
                "identity providers do not send this: keep the response and report it to us, in confidence"
            }
            Self::Replayed => "nothing, if it is rare: reloading a page does this; often it means stolen responses",
            Self::ReplayCache(_) => "look after the database: no sign-in is accepted while it cannot be asked",
        }
    }
}
