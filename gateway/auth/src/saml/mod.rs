//! SAML 2.0 service provider: the Web Browser SSO profile, request by HTTP-Redirect, response by HTTP-POST.
//!
//! ```text
//! SamlProvider::new(config)            once, and again when the configuration changes
//!   .metadata()                        what the identity provider's administrator imports
//!   .begin(now)                        -> where to send the browser, and what to remember for ten minutes
//!   .finish(pending, form, now)        -> Asserted: everything is checked but the replay
//! Asserted::redeem(replay_cache).await -> SignedIn: the identity, once
//! ```
//!
//! Verifying takes milliseconds of CPU and grows with the response: **callers run [`SamlProvider::finish`] (and
//! [`SamlProvider::begin`], which signs) in a blocking pool**, never on a thread that serves sockets. The replay check is
//! a step of its own because it asks a store, and so is asynchronous; an [`Asserted`] gives nothing away before it.
//!
//! # Two readers
//!
//! A response is read twice, by parsers that know nothing of each other, and must mean the same to both:
//!
//! 1. Ours: `gate` refuses by bytes what confuses parsers (document types, comments, instructions, CDATA) and by
//!    structure what wrapping needs (a second assertion, a signature elsewhere); `signature` verifies with bergshamra on
//!    that very tree; `reader` reads only below the node that the signature resolved to.
//! 2. `saml-rs`, with a parser of its own, in `library`: it makes metadata and requests, and judges the response again.
//!
//! Differences between the parser that verifies and the one that reads are how signature wrapping got past other
//! service providers; here a difference is a refusal ([`SamlError::Disagreement`]).

mod config;
mod dom;
mod error;
mod gate;
mod library;
#[cfg(test)]
mod lines;
mod metadata;
mod reader;
mod replay;
mod signature;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

pub use config::{ConfigError, IdentityProvider, NameIdFormat, SamlConfig, SigningKey};
pub use error::{SamlError, Signed};
pub use gate::{MAX_ATTRIBUTES, MAX_DEPTH, MAX_RESPONSE_BYTES, MAX_TAGS, Markup};
pub use metadata::MAX_METADATA_BYTES;
pub use replay::{Asserted, ReplayCache, SignedIn};

use config::Settings;
use library::Library;
use reader::Expected;

/// How long a person has between [`SamlProvider::begin`] and [`SamlProvider::finish`].
pub const PENDING_LIFETIME: TimeDelta = TimeDelta::minutes(10);

/// How far the identity provider's clock may be from ours, either way.
pub const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(60);

/// 256 random bits; as text 43 bytes, of the 80 that the binding allows (saml-bindings 3.4.3).
const RELAY_STATE_BYTES: usize = 32;

/// A sign-in that has begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Where to send the browser.
    pub redirect_url: String,
    /// What [`SamlProvider::finish`] needs. Keep it for [`PENDING_LIFETIME`] under its `relay_state`, tied to the browser
    /// (a cookie), and take it out when it is used: it must not serve twice.
    pub pending: Pending,
}

/// What is remembered between request and response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The provider's name in our configuration.
    pub provider: String,
    /// The request's `ID`, which the response must name.
    pub request_id: String,
    /// A random value that comes back beside the response.
    pub relay_state: String,
    pub made_at: DateTime<Utc>,
}

/// What the browser posts to the assertion consumer service.
#[derive(Clone, Deserialize)]
pub struct SamlForm {
    #[serde(rename = "SAMLResponse")]
    pub saml_response: String,
    #[serde(rename = "RelayState")]
    pub relay_state: Option<String>,
}

/// One identity provider and we, its service provider.
pub struct SamlProvider {
    settings: Settings,
    library: Library,
}

impl SamlProvider {
    /// Parses certificates, keys and metadata.
    pub fn new(config: SamlConfig) -> Result<Self, ConfigError> {
        let settings = Settings::new(config)?;
        let library = Library::new(&settings)?;
        Ok(Self { settings, library })
    }

    /// The provider's name in our configuration.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Our metadata, for the identity provider's administrator.
    pub fn metadata(&self) -> String {
        self.library.metadata()
    }

    /// Makes an `AuthnRequest`, signed if a key is configured.
    pub fn begin(&self, now: DateTime<Utc>) -> Result<Begun, SamlError> {
        let mut random = [0; RELAY_STATE_BYTES];
        rand::fill(&mut random).map_err(|_| SamlError::Request)?;
        let relay_state = URL_SAFE_NO_PAD.encode(random);
        let request = self.library.request(&relay_state)?;
        Ok(Begun {
            redirect_url: request.redirect_url,
            pending: Pending {
                provider: self.settings.name.clone(),
                request_id: request.id,
                relay_state,
                made_at: now,
            },
        })
    }

    /// Checks everything about a response but whether it was used before, which [`Asserted::redeem`] does.
    ///
    /// Without `pending` the response is taken for one that the identity provider began, and refused unless
    /// [`SamlConfig::allow_idp_initiated`].
    pub fn finish(
        &self,
        pending: Option<&Pending>,
        form: &SamlForm,
        now: DateTime<Utc>,
    ) -> Result<Asserted, SamlError> {
        self.check_pending(pending, form, now)?;
        let xml = gate::decode(&form.saml_response)?;
        let document = gate::parse(&xml)?;
        let response = gate::inspect(&document)?;
        let signed = signature::verify(&document, &response, &self.settings)?;
        let expected = Expected {
            settings: &self.settings,
            request_id: pending.map(|pending| pending.request_id.as_str()),
            now,
        };
        let claims = reader::read(&document, &response, signed, &expected)?;
        // Both readers get the same bytes, whatever white space the base64 had.
        let again = self.library.read(&STANDARD.encode(xml.as_bytes()), pending, now)?;
        again.compare(&claims)?;
        Ok(Asserted::new(claims, &self.settings))
    }

    fn check_pending(&self, pending: Option<&Pending>, form: &SamlForm, now: DateTime<Utc>) -> Result<(), SamlError> {
        let Some(pending) = pending else {
            return match self.settings.allow_idp_initiated {
                true => Ok(()),
                false => Err(SamlError::Unsolicited),
            };
        };
        if pending.provider != self.settings.name {
            return Err(SamlError::OtherProvider);
        }
        if now.signed_duration_since(pending.made_at) > PENDING_LIFETIME {
            return Err(SamlError::PendingExpired);
        }
        if form.relay_state.as_deref() != Some(pending.relay_state.as_str()) {
            return Err(SamlError::RelayState);
        }
        Ok(())
    }
}
