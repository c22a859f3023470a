//! Targets: which may be reached, how they are dialled and logged in to. One file per protocol.

pub mod allow;
pub mod postgres;
pub mod progress;
pub mod tls;
