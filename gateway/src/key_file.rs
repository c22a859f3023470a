//! The file of the master key: a key a line, 64 hexadecimal digits each. The first seals, all open. Outside a rotation it
//! has one line.

use std::fs;
use std::io;
use std::path::Path;

use hoop_store::seal::{KEY_BYTES, MASTER_KEYS_MAX, MasterKey};
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::setup::{SetupError, write_secret};

/// The bytes of a key.
pub type Key = Zeroizing<[u8; KEY_BYTES]>;

/// The keys in a file.
///
/// # Errors
/// `Read`, or `MasterKey` where the file holds something else.
pub fn read(path: &Path) -> Result<Vec<Key>, SetupError> {
    let text = fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| SetupError::Read {
            path: path.to_owned(),
            source,
        })?;
    let wrong = || SetupError::MasterKey { path: path.to_owned() };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Vec<Key> = lines
        .map(|line| key(line).ok_or_else(wrong))
        .collect::<Result<_, _>>()?;
    if keys.is_empty() || keys.len() > MASTER_KEYS_MAX {
        return Err(wrong());
    }
    Ok(keys)
}

fn key(line: &str) -> Option<Key> {
    let mut key = Key::default();
    hex::decode_to_slice(line, key.as_mut_slice()).ok()?;
    Some(key)
}

/// Writes the file anew, whole or not at all.
///
/// # Errors
/// `Write`.
pub fn write(path: &Path, keys: &[Key]) -> Result<(), SetupError> {
    let lines: Vec<String> = keys.iter().map(|key| hex::encode(key.as_slice())).collect();
    write_secret(path, &Zeroizing::new(lines.join("\n")))
}

/// A fresh key.
///
/// # Errors
/// `Random`.
pub fn fresh() -> Result<Key, SetupError> {
    MasterKey::generate().map(Key::new).map_err(|_| SetupError::Random)
}

/// As `MasterKey` takes them.
#[must_use]
pub fn bytes(keys: &[Key]) -> Vec<&[u8]> {
    keys.iter().map(|key| key.as_slice()).collect()
}

/// The gateway's master key: reads its file, or makes it at the first start.
///
/// # Errors
/// `MasterKey` where the file holds something else.
pub fn load(config: &Config) -> Result<MasterKey, SetupError> {
    let path = &config.master_key_file;
    let keys = match read(path) {
        Ok(keys) => keys,
        Err(SetupError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let keys = vec![fresh()?];
            write(path, &keys)?;
            info!(path = %path.display(), "made the master key; keep a copy of it away from the database");
            keys
        }
        Err(error) => return Err(error),
    };
    MasterKey::ring(&bytes(&keys)).map_err(|_| SetupError::MasterKey { path: path.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_to_four_keys_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let keys = vec![fresh().unwrap(), fresh().unwrap()];
        write(&path, &keys).unwrap();
        assert_eq!(bytes(&read(&path).unwrap()), bytes(&keys));
        let line = hex::encode(keys[0].as_slice());
        fs::write(&path, format!("\n {line} \n\n")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        for wrong in [
            String::new(),
            "xyz".into(),
            format!("{line}\n{}", &line[2..]),
            format!("{line}\n").repeat(5),
        ] {
            fs::write(&path, &wrong).unwrap();
            assert!(matches!(read(&path), Err(SetupError::MasterKey { .. })), "{wrong}");
        }
    }
}
