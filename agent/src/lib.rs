//! The agent: dials out to the gateway, logs in to targets, carries bytes. It alone knows a target's secret, and after
//! the login it looks at no byte any more.

pub mod attach;
pub mod config;
pub mod dial;
pub mod key;
pub mod link;
pub mod links;
pub mod net;
pub mod pace;
pub mod pins;
pub mod proxy;
pub mod run;
pub mod secrets;
pub mod sessions;
pub mod splice;
pub mod targets;
pub mod trial;
