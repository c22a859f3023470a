//! First start: the admin, the default agent, and how secrets are written. Secrets go to files of mode 0600, never to the log.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use hoop_api::control::Control;
use hoop_auth::local::{PasswordFault, PasswordRules};
use hoop_store::agents::hoop_key;
use hoop_store::change::Witness;
use hoop_store::users::Role;
use hoop_store::{Store, StoreError};
use rand::Rng;
use serde_json::{Value, json};
use thiserror::Error;
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::config::{Config, FirstAdmin};

/// The agent that the first start registers.
pub const DEFAULT_AGENT: &str = "default";
/// Characters of a password made here: 24 of 32, 120 bits.
const PASSWORD_CHARS: usize = 24;
const PASSWORD_ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";

/// The gateway cannot be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} holds no master key: it must hold one of 64 hexadecimal digits a line, at most four, the one that seals first"
    )]
    MasterKey { path: PathBuf },
    #[error("the password in {path} cannot be the administrator's: {fault}")]
    Password { path: PathBuf, fault: PasswordFault },
    #[error("the system gives no random bytes")]
    Random,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the first start makes, until there is a record to write it to.
#[derive(Debug, Default)]
pub struct FirstStart(Mutex<Vec<(&'static str, Value)>>);

impl Witness for FirstStart {
    fn record<'a>(&'a self, kind: &'static str, mut payload: Value) -> BoxFuture<'a, Result<(), String>> {
        if let Some(members) = payload.as_object_mut() {
            members.insert("by".into(), json!({"cause": "first start"}));
        }
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.push((kind, payload));
        Box::pin(std::future::ready(Ok(())))
    }
}

impl FirstStart {
    /// Writes it to the record. It was made before, and stays where this fails.
    pub async fn settle(self, control: &dyn Control) {
        for (kind, payload) in self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if let Err(why) = control.record(kind, payload).await {
                error!(kind, why, "what the first start made cannot be recorded");
            }
        }
    }
}

/// Makes the data folder, readable by nobody else.
///
/// # Errors
/// `Write` where it cannot be made.
pub fn data_dir(config: &Config) -> Result<(), SetupError> {
    let path = config.data_dir.clone();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&path)
        .map_err(|source| SetupError::Write { path, source })
}

/// Writes a secret to a file of mode 0600, whole or not at all.
///
/// # Errors
/// `Write` where the file cannot be written.
pub fn write_secret(path: &Path, secret: &str) -> Result<(), SetupError> {
    let failed = |source| SetupError::Write {
        path: path.to_owned(),
        source,
    };
    let part = path.with_extension("part");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(failed)?;
    file.write_all(secret.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&part, path).map_err(failed)
}

fn password() -> String {
    let mut bytes = [0u8; PASSWORD_CHARS];
    rand::rng().fill_bytes(&mut bytes);
    bytes
        .iter()
        .filter_map(|byte| PASSWORD_ALPHABET.get(usize::from(*byte % 32)))
        .map(|byte| char::from(*byte))
        .collect()
}

/// Where the first start puts the admin's password.
#[must_use]
pub fn admin_password_file(config: &Config) -> PathBuf {
    config
        .admin_password_file
        .clone()
        .unwrap_or_else(|| config.data_dir.join("admin-password"))
}

/// Where the first start puts the default agent's `HOOP_KEY`.
#[must_use]
pub fn agent_key_file(config: &Config) -> PathBuf {
    config.data_dir.join("agent-key")
}

/// Makes the admin if there is no user yet, or prints the link with which somebody does.
///
/// # Errors
/// The store's, or that of the password's file.
pub async fn admin(config: &Config, store: &Store, public_url: &str, witness: &FirstStart) -> Result<(), SetupError> {
    if store.has_users().await? {
        return Ok(());
    }
    match config.first_admin {
        FirstAdmin::File => admin_by_file(config, store, witness).await,
        FirstAdmin::Link => admin_by_link(store, public_url).await,
    }
}

/// The token stands behind `#`, so that no browser sends it on, and goes to standard output alone, not to the log.
async fn admin_by_link(store: &Store, public_url: &str) -> Result<(), SetupError> {
    let Some(link) = store.make_setup_link().await? else {
        return Ok(());
    };
    let until = link.expires_at.format("%Y-%m-%d %H:%M UTC");
    let text = Zeroizing::new(format!(
        "\nMake the first administrator, until {until}, once, with this link:\n  {public_url}/setup#{}\n\n",
        link.token.as_str()
    ));
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|source| SetupError::Write {
            path: "standard output".into(),
            source,
        })?;
    info!("there is no user yet: a set-up link was printed to standard output");
    Ok(())
}

/// A password file that is there already is used.
async fn admin_by_file(config: &Config, store: &Store, witness: &FirstStart) -> Result<(), SetupError> {
    let path = admin_password_file(config);
    let password = match fs::read_to_string(&path) {
        Ok(given) if !given.trim().is_empty() => given.trim().to_owned(),
        _ => {
            let made = password();
            write_secret(&path, &made)?;
            made
        }
    };
    let password = PasswordRules::default()
        .check(&password, &[&config.admin_user])
        .map_err(|fault| SetupError::Password {
            path: path.clone(),
            fault,
        })?;
    match store
        .create_user(&config.admin_user, &password, Role::Admin, "", witness)
        .await
    {
        Ok(_) => info!(user = config.admin_user, password_file = %path.display(), "made the first administrator"),
        // another replica was faster
        Err(StoreError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Registers the agent `default` if there is no agent yet, and writes its key.
///
/// # Errors
/// The store's, or that of the key's file.
pub async fn default_agent(
    config: &Config,
    store: &Store,
    link_address: &str,
    pin: &str,
    witness: &FirstStart,
) -> Result<(), SetupError> {
    if store.has_agents().await? {
        return Ok(());
    }
    match store.register_agent(DEFAULT_AGENT, witness).await {
        Ok(registered) => {
            let key = hoop_key(DEFAULT_AGENT, &registered.token, link_address, pin);
            let path = agent_key_file(config);
            write_secret(&path, &key)?;
            info!(key_file = %path.display(), "registered the agent \"default\"");
        }
        Err(StoreError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_password_has_24_characters_and_is_not_made_twice() {
        assert_eq!(password().len(), PASSWORD_CHARS);
        assert_ne!(password(), password());
    }

    #[test]
    fn a_secret_file_is_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_secret(&path, "s3cret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "s3cret\n");
    }
}
