//! The people's side: one module a protocol, and what they share.

pub mod canceller;
pub mod client_stream;
pub mod port;
pub mod postgres;
