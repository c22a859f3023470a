//! Where the binaries under test are, and that they are not older than their sources.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

/// The gateway's binary: `HOOP_BIN_GATEWAY`, or the one beside this program's own.
///
/// # Errors
/// Where it is missing or older than one of its sources.
pub fn gateway() -> Result<PathBuf> {
    checked("HOOP_BIN_GATEWAY", "hoop-gateway")
}

/// The agent's binary: `HOOP_BIN_AGENT`, or the one beside this program's own.
///
/// # Errors
/// Where it is missing or older than one of its sources.
pub fn agent() -> Result<PathBuf> {
    checked("HOOP_BIN_AGENT", "hoop-agent")
}

/// The person's own `hoop`.
///
/// # Errors
/// Where it is missing or older than one of its sources.
pub fn client() -> Result<PathBuf> {
    checked("HOOP_BIN_CLIENT", "hoop")
}

/// The bare TCP relay's binary.
///
/// # Errors
/// Where it is missing or older than one of its sources.
pub fn relay() -> Result<PathBuf> {
    checked("HOOP_BIN_RELAY", "hoop-relay")
}

/// `target/<profile>`: the folder that this program, or the folder of this test, was built into.
///
/// # Errors
/// Where the program's own path cannot be told.
pub fn profile_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    let folder = own.parent().context("own folder")?;
    let folder = if folder.ends_with("deps") {
        folder.parent().context("folder above deps")?
    } else {
        folder
    };
    Ok(folder.to_path_buf())
}

/// The root of the checkout that this program was built from.
#[must_use]
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

fn checked(variable: &str, name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => profile_dir()?.join(name),
    };
    let built = modified(&path).with_context(|| {
        format!(
            "{name} is not built at {}: run ./dev test, or cargo build --bins and set {variable}",
            path.display()
        )
    })?;
    // cargo writes what a binary was made of beside it, in make's format.
    let list = path.with_extension("d");
    let text = std::fs::read_to_string(&list)
        .with_context(|| format!("{}: cannot tell whether {name} is up to date", list.display()))?;
    for source in sources(&text) {
        let Ok(changed) = modified(&source) else {
            bail!(
                "{name} is stale: its source {} is gone; build it again",
                source.display()
            );
        };
        if changed > built {
            bail!("{name} is stale: {} is newer; build it again", source.display());
        }
    }
    Ok(path)
}

fn modified(path: &Path) -> Result<SystemTime> {
    let data = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    data.modified().with_context(|| path.display().to_string())
}

/// The prerequisites of a make rule; a blank within a path is written as `\ `.
fn sources(rule: &str) -> Vec<PathBuf> {
    let (_, list) = rule.split_once(": ").unwrap_or_default();
    list.trim_end()
        .replace("\\ ", "\0")
        .split(' ')
        .filter(|path| !path.is_empty())
        .map(|path| PathBuf::from(path.replace('\0', " ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_blank_is_one_source() {
        let found = sources("/t/debug/x: /a/b.rs /a/with\\ blank/c.rs\n");
        assert_eq!(found, [PathBuf::from("/a/b.rs"), PathBuf::from("/a/with blank/c.rs")]);
    }
}
