//! Signing in: the person says yes in a browser, where every way of signing in works, and this program gets a token; or
//! types a local password here.

pub mod device;
pub mod loopback;
pub mod password;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::secret::Secret;

/// What a sign-in ends in.
#[derive(Deserialize)]
pub struct Token {
    pub token: Secret,
    pub expires_at: DateTime<Utc>,
}

/// What the person is shown of who asks: letters, digits and a few marks, 64 characters at most.
fn client_name() -> String {
    const MAX_CHARS: usize = 64;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .collect();
    let name = if host.is_empty() {
        "hoop".to_owned()
    } else {
        format!("hoop on {host}")
    };
    name.chars().take(MAX_CHARS).collect()
}
