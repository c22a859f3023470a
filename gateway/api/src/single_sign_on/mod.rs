//! Signing in at providers outside: OpenID Connect and SAML, from a browser and from a command line.
//!
//! ```text
//! GET  /api/sign-in                       a page with the ways in          GET /api/sign-in/providers   the same for an app
//! GET  /api/sign-in/{provider}            to the provider, with what its answer is checked against sealed in a cookie
//! GET  /api/sign-in/{provider}/callback   back from an OpenID provider
//! POST /api/sign-in/{provider}/acs        back from a SAML provider        GET …/metadata               what it imports
//! POST /api/sign-in/device, …/token       a command line asks and waits    GET …/device, POST …/answer the person says yes
//! GET  /api/sign-in/loopback, …           the same for one on the browser's own machine
//! ```
//!
//! Somebody is known by provider and subject (`hoop_store::identities`), and gets what any sign-in gets (`sign_in::start`).

mod account;
pub mod device;
mod form;
mod html;
pub mod identities;
mod journey;
pub mod log_out;
pub mod loopback;
pub mod oidc;
mod providers;
mod replays;
pub mod routes;
pub mod saml;

pub use account::ProviderWitness;
pub use providers::{Policy, Protocol, Provider, Providers};

/// Names in addresses that no provider may have.
pub const RESERVED_NAMES: [&str; 4] = ["providers", "device", "loopback", "log-out-address"];
