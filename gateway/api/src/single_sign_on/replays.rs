//! The store as the memory of used SAML assertions, for all replicas.

use chrono::{DateTime, Utc};
use hoop_auth::saml::ReplayCache;
use hoop_store::{Store, StoreError};

pub struct Replays<'a>(pub &'a Store);

impl ReplayCache for Replays<'_> {
    type Error = StoreError;

    async fn first_use(&self, id: &str, until: DateTime<Utc>) -> Result<bool, StoreError> {
        self.0.use_assertion(id, until).await
    }
}
