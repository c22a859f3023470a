//! The API over a real PostgreSQL, with a gateway that only remembers what it was asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod audit;
mod browsers;
mod change;
mod description;
mod lists;
mod live;
mod login;
mod matrix;
mod rates;
mod rig;
mod rules;
mod sessions;
mod ssh_keys;
mod tokens;
