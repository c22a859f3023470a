//! Why a sign-in by OpenID Connect did not succeed. No text here has a secret, a token or a code in it.

use super::config::ConfigError;

/// Why a sign-in, a refresh or a look at the provider failed. `Display` is for the log; [`OidcError::for_person`] for
/// whoever signs in; [`OidcError::remedy`] for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OidcError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{url} could not be reached: {cause}")]
    Unreachable { url: String, cause: String },
    #[error("{url} did not answer within {deadline_ms} ms")]
    TimedOut { url: String, deadline_ms: u128 },
    #[error("{url} answered with more than {max_bytes} bytes")]
    TooLarge { url: String, max_bytes: usize },
    #[error("{url} answered with status {status}")]
    Status { url: String, status: u16 },
    #[error("{url} answered with what cannot be read: {cause}")]
    Unreadable { url: String, cause: String },
    #[error("the issuer is configured as {configured}, and calls itself {announced}")]
    IssuerDiffers { configured: String, announced: String },
    #[error("the provider announces {endpoint} at {url}, which is not https")]
    InsecureEndpoint { endpoint: &'static str, url: String },
    #[error("the provider announces no {endpoint}")]
    MissingEndpoint { endpoint: &'static str },
    /// The provider's own word on the way back (RFC 6749, section 4.1.2.1).
    #[error("the provider refused: {error} ({description})")]
    Refused { error: String, description: String },
    #[error("the sign-in was begun more than {max_s} s ago")]
    PendingExpired { max_s: i64 },
    #[error("the sign-in was begun with the provider {begun_with}, and came back for {came_back_for}")]
    OtherProvider { begun_with: String, came_back_for: String },
    #[error("the state is missing, or not the one of this browser's sign-in")]
    StateDiffers,
    /// RFC 9207.
    #[error("the answer says that it is by {found}, which is not this issuer")]
    ResponseIssuer { found: String },
    #[error("the answer has neither a code nor an error")]
    CodeMissing,
    /// The token endpoint's own word (RFC 6749, section 5.2).
    #[error("the token endpoint refused: {error} ({description})")]
    TokenRefused { error: String, description: String },
    #[error("the token endpoint gave no ID token, and there is no user info endpoint to ask")]
    NoIdToken,
    #[error("the ID token is refused: {0}")]
    IdToken(#[from] TokenFault),
    #[error("the provider speaks of somebody else than the ID token or the earlier sign-in")]
    SubjectDiffers,
    #[error("the claim {claim} is {found}, not {expected}")]
    Claim {
        claim: String,
        found: &'static str,
        expected: &'static str,
    },
}

/// What is wrong with an ID token (OpenID Connect Core 1.0, section 3.1.3.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    #[error("it is by another issuer")]
    Issuer,
    #[error("it is not for this client")]
    Audience,
    #[error("it was made for another client, or does not say for which of several")]
    AuthorizedParty,
    #[error("it has expired")]
    Expired,
    #[error("it is from the future")]
    NotYetValid,
    #[error("its nonce is missing, or not the one of this sign-in")]
    Nonce,
    #[error("it is not signed")]
    Unsigned,
    #[error("it is signed with an algorithm that is not allowed")]
    Algorithm,
    #[error("no key of the provider fits it")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it does not belong to the access token beside it")]
    AccessTokenHash,
    #[error("it is malformed")]
    Malformed,
}

impl OidcError {
    /// What to show to whoever tried to sign in.
    #[must_use]
    pub fn for_person(&self) -> &'static str {
        match self {
            Self::Refused { error, .. } if error == "access_denied" => {
                "The sign-in was cancelled, or you may not use this application. Try again, or ask your administrator."
            }
            Self::PendingExpired { .. } => "The sign-in took too long. Begin again.",
            Self::StateDiffers | Self::OtherProvider { .. } | Self::CodeMissing | Self::ResponseIssuer { .. } => {
                "This answer does not belong to a sign-in that this browser began. Begin again from the sign-in page."
            }
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                "The identity provider does not answer. Try again in a minute; if it stays so, tell your administrator."
            }
            Self::TokenRefused { error, .. } if error == "invalid_grant" => {
                "The identity provider no longer accepts this sign-in. Begin again."
            }
            Self::IdToken(TokenFault::Expired | TokenFault::Nonce) => {
                "The identity provider's answer is not for this sign-in. Begin again."
            }
            _ => {
                "You could not be signed in: this gateway and the identity provider disagree. Tell your administrator."
            }
        }
    }

    /// What the administrator has to mend.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Config(error) => error.remedy,
            Self::Unreachable { .. } => {
                "Check issuer, name service and firewall from the gateway's machine; for a private authority set ca_pem."
            }
            Self::TimedOut { .. } => "Check the provider's health and the way to it; deadline can be raised to 60 s.",
            Self::TooLarge { .. } => "Check that issuer is the provider's; let it send fewer claims.",
            Self::Status { .. } | Self::Unreadable { .. } => {
                "Check that issuer is the provider's, and that nothing between answers in its place."
            }
            Self::IssuerDiffers { .. } => "Set issuer to what the provider calls itself, letter by letter.",
            Self::InsecureEndpoint { .. } => "Let the provider announce https addresses (its own external address).",
            Self::MissingEndpoint { .. } => "Use a provider with the authorization code flow and discovery.",
            Self::Refused { error, .. } if error == "access_denied" => {
                "Assign the person to this application at the provider, if they should have it."
            }
            Self::Refused { error, .. } if error == "invalid_scope" => "Remove the scopes that the provider lacks.",
            Self::Refused { .. } => "Compare client_id, redirect_uri and scopes with the provider's registration.",
            Self::PendingExpired { .. } | Self::OtherProvider { .. } | Self::StateDiffers | Self::CodeMissing => {
                "Nothing, if it is rare. If it is often: check that the gateway's address is the same throughout, and \
                 that cookies reach it."
            }
            Self::ResponseIssuer { .. } => "Check that no two providers share this redirect_uri.",
            Self::TokenRefused { error, .. } if error == "invalid_client" => {
                "Renew client_secret; if it is right, set client_auth to how the client is registered."
            }
            Self::TokenRefused { error, .. } if error == "invalid_grant" => {
                "Nothing, if it is rare. If it is always: compare redirect_uri with the provider's registration."
            }
            Self::TokenRefused { .. } => {
                "Allow the client the grants authorization_code and refresh_token at the provider."
            }
            Self::NoIdToken => "Let the provider send an ID token on refresh, or offer user info.",
            Self::IdToken(fault) => fault.remedy(),
            Self::SubjectDiffers => "Report it to the provider: its answers for one sign-in name two people.",
            Self::Claim { .. } => "Mend the mapping of this claim at the provider, or name another claim.",
        }
    }

    /// Whether a refresh that failed so is the provider's word that this sign-in is over. Any other failure says nothing
    /// about the person: the provider is away, or the configuration is wrong.
    #[must_use]
    pub fn ends_sign_in(&self) -> bool {
        match self {
            Self::TokenRefused { error, .. } => error == "invalid_grant",
            Self::SubjectDiffers => true,
            _ => false,
        }
    }
}

impl TokenFault {
    fn remedy(self) -> &'static str {
        match self {
            Self::Issuer => "Set issuer to what the provider writes into iss.",
            Self::Audience | Self::AuthorizedParty => "Set client_id to this gateway's own registration.",
            Self::Expired | Self::NotYetValid => "Set the clocks of the gateway and of the provider.",
            Self::Nonce => {
                "Nothing, if it is rare: somebody may have replayed a token. If always: use a provider that keeps the nonce."
            }
            Self::Unsigned | Self::Algorithm => {
                "Let the provider sign ID tokens with one of algorithms, or add its public-key algorithm there."
            }
            Self::UnknownKey | Self::Signature => {
                "Check that the provider publishes the key that it signs with, and that nothing answers in its place."
            }
            Self::AccessTokenHash | Self::Malformed => "Report it to the provider: its tokens break the standard.",
        }
    }

    /// Whether a new set of keys could make the token good.
    pub(super) fn may_be_new_key(self) -> bool {
        matches!(self, Self::UnknownKey | Self::Signature)
    }
}
