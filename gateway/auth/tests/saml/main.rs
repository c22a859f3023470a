//! The SAML service provider against forged responses, and against two real identity providers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod configuration;
mod forge;
mod forged;
mod harness;
mod mutations;
mod rigs;
mod wrapping;
