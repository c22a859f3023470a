//! Which database the configuration means.

use anyhow::{Context, Result};
use hoop_store::Store;
use hoop_store::database_url::DatabaseUrl;
use hoop_store::embedded::Embedded;

use crate::config::{Config, StoreChoice};

/// The store's URL, and the embedded server where there is one.
pub(super) async fn database(config: &Config) -> Result<(DatabaseUrl, Option<Embedded>)> {
    match &config.store {
        StoreChoice::Url(url) => Ok((DatabaseUrl::parse(&url.0).context("DATABASE_URL")?, None)),
        StoreChoice::Embedded => {
            let embedded = Embedded::start(&config.data_dir).await?;
            Ok((embedded.url().clone(), Some(embedded)))
        }
    }
}

/// Where LISTEN works: past a pooler, where there is one.
pub(super) fn listen_url(config: &Config, store: &Store) -> Result<DatabaseUrl> {
    match &config.database_direct_url {
        Some(url) => DatabaseUrl::parse(&url.0).context("DATABASE_DIRECT_URL"),
        None => Ok(store.url().clone()),
    }
}
