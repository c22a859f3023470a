//! The runtime: supervision, sessions, stages, pumps, the credit-controlled link. No SQL, no HTTP, no wire details.

pub mod budget;
pub mod control;
pub mod mux;
pub mod recorder;
pub mod relay;
pub mod scratch;
pub mod session;
mod slot;
pub mod stage;
