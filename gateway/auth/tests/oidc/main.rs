//! Signing in by OpenID Connect: against npm's `oidc-provider`, and against a provider that lies.

// What a test needs and has not is a failed test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod browser;
mod faults;
mod liar;
mod provider;
mod real;

use hoop_auth::oidc::{OidcConfig, Secret};

const REDIRECT: &str = "http://localhost:8009/api/sign-in/corp/callback";
const CLIENT: &str = "gateway";
const CLIENT_SECRET: &str = "gateway-s3cret/+:&";

fn config(issuer: &str) -> OidcConfig {
    let mut config = OidcConfig::new("corp", issuer, CLIENT, Secret::new(CLIENT_SECRET), REDIRECT);
    config.scopes.push("groups".into());
    config
}
