//! SAML assertions that were used: each is good once, on whichever replica.

use chrono::{DateTime, Utc};
use tokio_postgres::types::Type;

use crate::{Store, StoreError};

impl Store {
    /// Whether this assertion is used for the first time. Remembered until `valid_until`; what is past that is cleared
    /// away.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn use_assertion(&self, id: &str, valid_until: DateTime<Utc>) -> Result<bool, StoreError> {
        let sql = "with past as (delete from saml_assertions where valid_until < now() and id <> $1) \
                   insert into saml_assertions (id, valid_until) values ($1, $2) on conflict do nothing returning id";
        let parameters = [(&id as _, Type::TEXT), (&valid_until as _, Type::TIMESTAMPTZ)];
        let inserted = self.read_opt("using a SAML assertion", sql, &parameters).await?;
        Ok(inserted.is_some())
    }
}
