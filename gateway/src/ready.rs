//! `ready.json` in the data folder: where everything is, once it is. It holds paths of secrets, never secrets.

use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use crate::config::Config;

/// The file's members.
#[derive(Debug, Serialize)]
pub struct Ready {
    pub api: String,
    pub link: String,
    pub postgres: String,
    /// Where `/metrics` is served without a sign-in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// What `hoop-gateway verify --root` takes.
    pub root_key: String,
    pub admin_user: String,
    pub admin_password_file: PathBuf,
    pub agent_key_file: PathBuf,
    pub replica: Uuid,
    pub pid: u32,
}

/// The API's URL for who is on this machine.
#[must_use]
pub fn public_url_of_this_machine(config: &Config, port: u16) -> String {
    format!("{}://127.0.0.1:{port}", if config.api_tls { "https" } else { "http" })
}

fn path(config: &Config) -> PathBuf {
    config.data_dir.join("ready.json")
}

fn write_whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, text)?;
    std::fs::rename(part, path)
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write(config: &Config, ready: &Ready) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(ready)?;
    write_whole(&path(config), &text)
        .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path(config).display()))
}

/// Takes the file away: nothing is ready any more.
pub fn remove(config: &Config) {
    // a file that is not there says the same
    drop(std::fs::remove_file(path(config)));
}
