//! Who somebody is. Each provider turns what a browser brings back into an [`Identity`]; what that person may do is
//! decided elsewhere. No SQL and no routes: what must be remembered between two requests is handed out as a value and
//! handed in again.

pub mod identity;
pub mod local;
pub mod oidc;
pub mod saml;

pub use identity::Identity;
