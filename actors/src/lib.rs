//! The runtime: supervision, sessions, stages, pumps, the credit-controlled link. No SQL, no HTTP, no wire details.

pub mod budget;
pub mod mux;
pub mod recorder;
