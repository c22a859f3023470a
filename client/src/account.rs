//! What `hoop login` keeps: the gateway, whom its certificate must be of, and the token, in a file for this user alone.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The file in the folder.
const FILE: &str = "account.json";
/// Larger is none of ours.
const FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Bits of a file's mode that let others read or change it.
const OTHERS: u32 = 0o077;

/// A gateway and who is signed in to it.
#[derive(Serialize, Deserialize)]
pub struct Account {
    /// Scheme, host and port, without a slash at the end.
    pub server: String,
    /// Trusted in place of the system's authorities.
    pub ca_pem: Option<String>,
    pub token: Secret,
    /// `None`: not known here.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Account {
    /// The one of the environment (`HOOP_SERVER`, `HOOP_TOKEN`, `HOOP_CA_FILE`), else the one that was kept.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn present() -> Result<Self> {
        let Ok(token) = std::env::var("HOOP_TOKEN") else {
            return Self::load()?.context("You are not signed in. hoop login https://HOST:8009 does it.");
        };
        let server =
            std::env::var("HOOP_SERVER").context("HOOP_TOKEN is set and HOOP_SERVER is not: whose token is it?")?;
        let ca_pem = match std::env::var_os("HOOP_CA_FILE") {
            Some(file) => Some(std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?),
            None => None,
        };
        Ok(Self {
            server: crate::server::address(&server)?,
            ca_pem,
            token: Secret::new(token),
            expires_at: None,
        })
    }

    /// # Errors
    /// Where it cannot be read, or others can read it too.
    pub fn load() -> Result<Option<Self>> {
        let file = folder()?.join(FILE);
        let metadata = match std::fs::metadata(&file) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| file.display().to_string()),
        };
        if metadata.permissions().mode() & OTHERS != 0 {
            bail!(
                "{} can be read by others and holds your token: chmod 600 it, and sign in anew if somebody may have read it",
                file.display()
            );
        }
        if metadata.len() > FILE_MAX_BYTES {
            bail!(
                "{} is not what hoop login wrote: remove it and sign in anew",
                file.display()
            );
        }
        let text = Zeroizing::new(std::fs::read(&file).with_context(|| file.display().to_string())?);
        let account = serde_json::from_slice(&text)
            .map_err(|_| anyhow::anyhow!("{} cannot be read: remove it and sign in anew", file.display()))?;
        Ok(Some(account))
    }

    /// Keeps it, in place of what was kept, wholly or not at all.
    ///
    /// # Errors
    /// Where the folder or the file cannot be written.
    pub fn save(&self) -> Result<()> {
        let folder = folder()?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| folder.display().to_string())?;
        let failed = || format!("writing to {}", folder.display());
        // of mode 600 from the start
        let mut file = tempfile::NamedTempFile::new_in(&folder).with_context(failed)?;
        file.write_all(&Zeroizing::new(serde_json::to_vec(self)?))
            .with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(folder.join(FILE)).with_context(failed)?;
        Ok(())
    }

    /// # Errors
    /// Where it is there and stays.
    pub fn forget() -> Result<()> {
        let file = folder()?.join(FILE);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| file.display().to_string()),
            _ => Ok(()),
        }
    }
}

/// `HOOP_HOME`, else `hoop` in the user's folder of configuration (XDG Base Directory Specification).
pub fn folder() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("HOOP_HOME")
        .or_else(|| variable("XDG_CONFIG_HOME").map(|folder| folder.join("hoop")))
        .or_else(|| variable("HOME").map(|home| home.join(".config/hoop")))
        .context("Neither HOOP_HOME nor HOME is set: where may the sign-in be kept?")
}
