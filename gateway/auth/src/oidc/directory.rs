//! What a provider announces about itself: endpoints and keys, fetched when first needed and again when they may have
//! changed.

use super::config::{OidcConfig, is_loopback, printable};
use super::error::OidcError;
use super::http::{Http, shown};
use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreJsonWebKey,
    CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreResponseMode,
    CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{AdditionalProviderMetadata, ProviderMetadata};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use url::Url;

/// How long an announcement is believed. A key that a provider withdrew is trusted no longer than that.
const ANNOUNCEMENT_MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// Least time between two fetches of the keys because a token fits none of them: a provider that signs with a key that it
/// does not publish makes one request in this time, not one a sign-in.
const KEYS_REFETCH_MIN: Duration = Duration::from_secs(30);

/// What of the discovery document is not in OpenID Connect Discovery 1.0 itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Announced {
    /// OpenID Connect RP-Initiated Logout 1.0.
    pub(super) end_session_endpoint: Option<Url>,
    /// RFC 9207.
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for Announced {}

pub(super) type Metadata = ProviderMetadata<
    Announced,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// A provider's endpoints and keys as they were at one time.
#[derive(Debug)]
pub(super) struct Announcement {
    pub(super) metadata: Metadata,
    pub(super) keys: CoreJsonWebKeySet,
    fetched_at: Instant,
}

/// The current announcement of one provider. Whoever needs one while it is being fetched waits for that same fetch, and
/// gets its failure too.
#[derive(Debug)]
pub(super) struct Directory {
    issuer: String,
    loopback: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Arc<Announcement>>,
    failed: Option<(Instant, OidcError)>,
    keys_refetched_at: Option<Instant>,
}

impl Directory {
    pub(super) fn new(config: &OidcConfig) -> Self {
        Self {
            issuer: config.issuer.clone(),
            loopback: config.is_loopback(),
            state: Mutex::default(),
        }
    }

    /// The current announcement, fetched where there is none or it is old.
    ///
    /// # Errors
    /// Where the provider does not answer, or announces what cannot be.
    pub(super) async fn current(&self, http: &Http) -> Result<Arc<Announcement>, OidcError> {
        let asked_at = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(current) = &state.current
            && current.fetched_at.elapsed() < ANNOUNCEMENT_MAX_AGE
        {
            return Ok(Arc::clone(current));
        }
        if let Some((failed_at, why)) = &state.failed
            && *failed_at >= asked_at
        {
            return Err(why.clone());
        }
        match self.fetch(http).await {
            Ok(found) => {
                let found = Arc::new(found);
                state.current = Some(Arc::clone(&found));
                state.failed = None;
                Ok(found)
            }
            Err(why) => {
                state.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Newer keys than those of `seen`; `None` where they were fetched too short a time ago.
    ///
    /// # Errors
    /// Where the provider does not answer.
    pub(super) async fn newer(
        &self,
        http: &Http,
        seen: &Arc<Announcement>,
    ) -> Result<Option<Arc<Announcement>>, OidcError> {
        let mut state = self.state.lock().await;
        if let Some(current) = &state.current
            && !Arc::ptr_eq(current, seen)
        {
            return Ok(Some(Arc::clone(current)));
        }
        if state
            .keys_refetched_at
            .is_some_and(|at| at.elapsed() < KEYS_REFETCH_MIN)
        {
            return Ok(None);
        }
        state.keys_refetched_at = Some(Instant::now());
        let newer = Arc::new(Announcement {
            metadata: seen.metadata.clone(),
            keys: http.get_json(seen.metadata.jwks_uri().url()).await?,
            fetched_at: seen.fetched_at,
        });
        state.current = Some(Arc::clone(&newer));
        tracing::info!(
            issuer = self.issuer,
            "fetched the provider's keys again: a token fitted none of them"
        );
        Ok(Some(newer))
    }

    async fn fetch(&self, http: &Http) -> Result<Announcement, OidcError> {
        let metadata: Metadata = http.get_json(&self.discovery_url()?).await?;
        let announced = metadata.issuer().as_str();
        if announced != self.issuer {
            return Err(OidcError::IssuerDiffers {
                configured: self.issuer.clone(),
                announced: printable(announced),
            });
        }
        self.check_endpoints(&metadata)?;
        Ok(Announcement {
            keys: http.get_json(metadata.jwks_uri().url()).await?,
            metadata,
            fetched_at: Instant::now(),
        })
    }

    /// OpenID Connect Discovery 1.0, section 4.
    fn discovery_url(&self) -> Result<Url, OidcError> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        Url::parse(&url).map_err(|why| OidcError::Unreachable {
            url: printable(&url),
            cause: why.to_string(),
        })
    }

    fn check_endpoints(&self, metadata: &Metadata) -> Result<(), OidcError> {
        let token = metadata.token_endpoint().map(|url| url.url());
        let token = token.ok_or(OidcError::MissingEndpoint {
            endpoint: "token_endpoint",
        })?;
        self.check_endpoint("authorization_endpoint", metadata.authorization_endpoint().url())?;
        self.check_endpoint("token_endpoint", token)?;
        self.check_endpoint("jwks_uri", metadata.jwks_uri().url())?;
        if let Some(url) = metadata.userinfo_endpoint() {
            self.check_endpoint("userinfo_endpoint", url.url())?;
        }
        if let Some(url) = &metadata.additional_metadata().end_session_endpoint {
            self.check_endpoint("end_session_endpoint", url)?;
        }
        Ok(())
    }

    fn check_endpoint(&self, endpoint: &'static str, url: &Url) -> Result<(), OidcError> {
        if url.scheme() == "https" || (self.loopback && url.scheme() == "http" && is_loopback(url)) {
            return Ok(());
        }
        Err(OidcError::InsecureEndpoint {
            endpoint,
            url: shown(url),
        })
    }
}
