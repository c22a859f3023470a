//! The last check, the one that needs a memory: an assertion is good for one sign-in.

use std::error::Error;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};

use super::CLOCK_SKEW;
use super::config::Settings;
use super::error::SamlError;
use super::reader::Claims;
use crate::Identity;

/// Remembers which assertions were used, for all replicas.
pub trait ReplayCache {
    type Error: Error + Send + Sync + 'static;

    /// Whether `id` is seen for the first time; keeps it until `until`, after which the assertion is no longer valid
    /// anyway. Must be atomic (in SQL: `insert … on conflict do nothing`, and true if a row was inserted). `id` is 64
    /// hexadecimal digits.
    fn first_use(&self, id: &str, until: DateTime<Utc>) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

/// A person whom a response vouches for, if it was not used before.
#[must_use = "nobody is signed in before the assertion is redeemed"]
pub struct Asserted {
    signed_in: SignedIn,
    id: String,
    until: DateTime<Utc>,
}

/// A person who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    pub identity: Identity,
    /// The identity provider's name for its session, for logout; empty where it gave none.
    pub session_index: String,
    /// When the identity provider wants our session to end (`SessionNotOnOrAfter`).
    pub session_ends: Option<DateTime<Utc>>,
}

impl Asserted {
    pub(super) fn new(claims: Claims, settings: &Settings) -> Self {
        // Identity providers choose ids on their own, so the issuer belongs to the key; its length is data, too.
        let key = format!(
            "{}:{}{}",
            settings.idp_entity_id.len(),
            settings.idp_entity_id,
            claims.assertion_id
        );
        let id = digest(&SHA256, key.as_bytes())
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            id,
            until: claims
                .valid_until
                .checked_add_signed(CLOCK_SKEW)
                .unwrap_or(DateTime::<Utc>::MAX_UTC),
            signed_in: SignedIn {
                identity: Identity {
                    provider: settings.name.clone(),
                    subject: claims.subject,
                    email: claims.email,
                    display_name: claims.display_name,
                    groups: claims.groups,
                },
                session_index: claims.session_index,
                session_ends: claims.session_ends,
            },
        }
    }

    /// Uses the assertion up. A cache that cannot be asked refuses.
    pub async fn redeem<C: ReplayCache>(self, cache: &C) -> Result<SignedIn, SamlError> {
        match cache.first_use(&self.id, self.until).await {
            Ok(true) => Ok(self.signed_in),
            Ok(false) => Err(SamlError::Replayed),
            Err(error) => Err(SamlError::ReplayCache(Box::new(error))),
        }
    }
}

impl fmt::Debug for Asserted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asserted")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
