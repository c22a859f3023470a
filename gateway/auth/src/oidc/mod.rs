//! OpenID Connect 1.0: authorization code with PKCE, refresh, and logout begun here.
//!
//! A sign-in has two halves. [`OidcProvider::begin`] gives the address to send the browser to, and a [`Pending`] to keep
//! for its return; [`OidcProvider::finish`] takes both that and what the browser brought back. What is checked on the way
//! stands with the errors, [`OidcError`] and [`TokenFault`].

mod claims;
mod config;
mod directory;
mod error;
mod http;
mod pending;
mod provider;
mod secret;

pub use config::{Algorithm, ClientAuth, ConfigError, DEADLINE_DEFAULT, OidcConfig};
pub use error::{OidcError, TokenFault};
pub use pending::{Callback, PENDING_MAX_S, Pending};
pub use provider::{Begun, OidcProvider, SignedIn};
pub use secret::Secret;
