//! Rigs: how each real server that the end-to-end tests, the benchmarks and `./dev run` need is started, driven and
//! stopped. Nothing here is part of the product, and nothing here stands in for a part of it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these are command-line tools and test output"
)]

pub mod binaries;
pub mod browser;
pub mod chromium;
pub mod clients;
pub mod cluster;
pub mod collector;
pub mod events;
pub mod hoop;
pub mod http;
pub mod oidc;
pub mod pgbouncer;
pub mod process;
pub mod record;
pub mod saml;
pub mod tcp;
pub mod tls;

use std::io::Write as _;

/// True under `./dev test --full`.
#[must_use]
pub fn full() -> bool {
    std::env::var_os("HOOP_TEST_FULL").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Says that a test did not run and why; `./dev test` repeats it at the end.
pub fn skipped(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("HOOP_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        // A lost line here only shortens a summary.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Ends the test here, saying so, unless this is `./dev test --full`.
#[macro_export]
macro_rules! full_only {
    ($test:expr) => {
        if !$crate::full() {
            $crate::skipped($test, "slow; ./dev test --full runs it");
            return Ok(());
        }
    };
}
