//! `file:NAME`: a file below the one folder that the agent's configuration names.
//!
//! Both paths are made canonical before they are compared, so neither `..` nor a symbolic link leads out. Links that
//! stay inside are followed: Kubernetes mounts its secrets so.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use super::{SECRET_MAX_BYTES, SecretError};

pub(super) fn read(dir: &Path, name: &str) -> Result<Zeroizing<String>, SecretError> {
    if name.is_empty() || name.contains('\0') {
        return Err(SecretError::Malformed);
    }
    let dir = dir.canonicalize().map_err(|_| SecretError::FileMissing)?;
    // `join` takes an absolute name as it is: the check below decides about it all the same.
    let path = dir.join(name).canonicalize().map_err(|_| SecretError::FileMissing)?;
    if !path.starts_with(&dir) {
        return Err(SecretError::FileOutside);
    }
    let file = open(&path)?;
    let mut text = Zeroizing::new(Vec::with_capacity(SECRET_MAX_BYTES + 2));
    file.take(SECRET_MAX_BYTES as u64 + 2)
        .read_to_end(&mut text)
        .map_err(|_| SecretError::FileMissing)?;
    // Editors end a file with a line feed that is no part of the secret.
    for ending in [b'\n', b'\r'] {
        if text.last() == Some(&ending) {
            text.pop();
        }
    }
    if text.len() > SECRET_MAX_BYTES {
        return Err(SecretError::TooLong);
    }
    let text = std::str::from_utf8(&text).map_err(|_| SecretError::NotText)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Opens a regular file; the last component is no link any more, and a pipe does not block.
fn open(path: &Path) -> Result<File, SecretError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|_| SecretError::FileMissing)?;
    let file = File::from(file);
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        _ => Err(SecretError::FileMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("secrets")).unwrap();
        std::fs::write(root.path().join("secrets/db"), "s3cret\n").unwrap();
        std::fs::write(root.path().join("outside"), "not yours").unwrap();
        root
    }

    #[test]
    fn a_file_below_the_folder_is_read_without_its_last_line_feed() {
        let root = folder();
        let dir = root.path().join("secrets");
        assert_eq!(read(&dir, "db").unwrap().as_str(), "s3cret");
        assert_eq!(read(&dir, dir.join("db").to_str().unwrap()).unwrap().as_str(), "s3cret");
    }

    #[test]
    fn neither_dots_nor_links_nor_absolute_names_lead_out() {
        let root = folder();
        let dir = root.path().join("secrets");
        symlink(root.path().join("outside"), dir.join("link")).unwrap();
        symlink(root.path(), dir.join("up")).unwrap();
        for name in ["../outside", "link", "up/outside", "/etc/hostname", "../secrets-other"] {
            let error = read(&dir, name).unwrap_err();
            assert!(
                matches!(error, SecretError::FileOutside | SecretError::FileMissing),
                "{name}: {error:?}"
            );
        }
        assert_eq!(read(&dir, "link").unwrap_err(), SecretError::FileOutside);
    }

    #[test]
    fn a_link_that_stays_inside_is_followed_as_kubernetes_needs() {
        let root = folder();
        let dir = root.path().join("secrets");
        symlink("db", dir.join("alias")).unwrap();
        assert_eq!(read(&dir, "alias").unwrap().as_str(), "s3cret");
    }

    #[test]
    fn folders_and_oversized_files_are_refused() {
        let root = folder();
        let dir = root.path().join("secrets");
        std::fs::create_dir(dir.join("sub")).unwrap();
        assert_eq!(read(&dir, "sub").unwrap_err(), SecretError::FileMissing);
        std::fs::write(dir.join("big"), vec![b'x'; SECRET_MAX_BYTES + 10]).unwrap();
        assert_eq!(read(&dir, "big").unwrap_err(), SecretError::TooLong);
    }
}
