//! PostgreSQL's frontend/backend protocol 3.0 and 3.2 (manual, chapter "Frontend/Backend Protocol").
//!
//! `accept` faces the client until it has proved its credential, `connect` logs in to the target, `session` scans both
//! directions afterwards. No socket, no clock: drivers own those.

pub mod accept;
pub mod connect;
pub mod encode;
pub mod error_response;
mod fields;
mod flow;
pub mod greeting;
mod md5;
mod names;
mod pipeline;
mod refusal;
pub mod sample;
pub mod scram;
pub mod session;
mod session_client;
mod session_target;
pub mod settings;
pub mod startup;
mod statement;
mod unexecuted;

pub use fields::Malformed;
