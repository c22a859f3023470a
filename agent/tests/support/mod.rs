//! What the agent's tests stand on: a private PostgreSQL, a gateway of a few lines, a target that is no database.
#![allow(dead_code)]

pub mod authority;
pub mod gateway;
pub mod server;
pub mod target;
