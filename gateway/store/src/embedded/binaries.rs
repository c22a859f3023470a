//! Finds the machine's PostgreSQL server programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;

/// The oldest major version that the schema runs on.
const MIN_MAJOR: u32 = 14;
/// Folders that hold one folder a version, each with `bin` (Debian; Red Hat's PGDG packages; source builds).
const VERSIONED: &[&str] = &["/usr/lib/postgresql", "/usr", "/usr/local", "/opt/homebrew/opt"];
const LOOKED: &str = "/usr/lib/postgresql/*/bin, /usr/pgsql-*/bin, PATH";

/// One installed server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    pub bin: PathBuf,
    pub major: u32,
}

impl Binaries {
    /// The installed server of version `major`, or the newest where that is `None`.
    ///
    /// # Errors
    /// `NoBinaries`, saying what to install. `Ok` may be of another version than asked for: the caller knows the folder.
    pub fn find(major: Option<u32>) -> Result<Self, EmbeddedError> {
        let mut found: Vec<Self> = candidates().iter().filter_map(|bin| Self::at(bin)).collect();
        // Stable: of one version, the package's own folder comes before what PATH has.
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
        let wanted = found.iter().find(|binaries| Some(binaries.major) == major);
        wanted
            .or(found.first())
            .cloned()
            .ok_or_else(|| EmbeddedError::NoBinaries {
                looked: LOOKED.to_owned(),
            })
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    fn at(bin: &Path) -> Option<Self> {
        if !bin.join("initdb").is_file() || !bin.join("postgres").is_file() {
            return None;
        }
        let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
        let major = major_of(&String::from_utf8_lossy(&output.stdout))?;
        (major >= MIN_MAJOR).then(|| Self {
            bin: bin.to_owned(),
            major,
        })
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for parent in VERSIONED {
        let Ok(entries) = std::fs::read_dir(parent) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if *parent == "/usr/lib/postgresql" || name.starts_with("pgsql") || name.starts_with("postgresql") {
                out.push(entry.path().join("bin"));
            }
        }
    }
    if let Some(path) = std::env::var_os("PATH") {
        out.extend(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
    }
    out
}

/// From `postgres (PostgreSQL) 15.14 (Debian …)`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL)")?.1.trim_start();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        assert_eq!(
            major_of("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_of("mysqld 8"), None);
    }
}
