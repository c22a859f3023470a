//! The SAML service provider against forged responses, and against two real identity providers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod accepted;
mod configuration;
mod exchange;
mod forge;
mod harness;
mod markup;
mod mutations;
mod rigs;
mod signatures;
mod statements;
mod wrapping;
