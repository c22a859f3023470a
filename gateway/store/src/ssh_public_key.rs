//! One SSH public key, as a line of an OpenSSH `.pub` file (sshd(8), "AUTHORIZED_KEYS FILE FORMAT", without options).

use ssh_key::{Algorithm, HashAlg, PublicKey};

use crate::StoreError;
use crate::names::invalid;

/// Longest line that is looked at: an RSA key of 16,384 bits has some 2,800 characters.
pub const LINE_MAX_BYTES: usize = 8 * 1024;
/// The shortest and longest RSA keys that are taken, in bits (NIST SP 800-57: 3,072 beyond 2030).
pub const RSA_MIN_BITS: u32 = 3072;
pub const RSA_MAX_BITS: u32 = 16_384;

/// A key that may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshPublicKey {
    /// As in the line.
    pub algorithm: String,
    /// Algorithm and key in base64, without the comment.
    pub openssh: String,
    /// `SHA256:` and base64, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// What stood behind the key.
    pub comment: String,
}

impl SshPublicKey {
    /// # Errors
    /// `Invalid` (`public_key`): not such a line, or a key of another or too weak a kind.
    pub fn parse(line: &str) -> Result<Self, StoreError> {
        let line = line.trim();
        if line.contains("PRIVATE KEY") {
            return Err(refused(
                "is a private key, which must not leave its machine: make another one, and give its .pub file",
            ));
        }
        if line.len() > LINE_MAX_BYTES || line.chars().any(char::is_control) {
            return Err(not_a_key());
        }
        let key = PublicKey::from_openssh(line).map_err(|_| not_a_key())?;
        if key.key_data().is_certificate() {
            return Err(refused("is a certificate: give the key that it is about"));
        }
        let algorithm = key.algorithm();
        match (&algorithm, key.key_data().rsa()) {
            (Algorithm::Rsa { .. }, Some(rsa)) => check_rsa(rsa.key_size())?,
            (
                Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256,
                _,
            ) => {}
            _ => {
                return Err(refused(
                    "is of a kind that is not taken: make one with ssh-keygen -t ed25519",
                ));
            }
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(base64)) = (words.next(), words.next()) else {
            return Err(not_a_key());
        };
        Ok(Self {
            algorithm: name.to_owned(),
            openssh: format!("{name} {base64}"),
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
            comment: words.collect::<Vec<_>>().join(" "),
        })
    }
}

fn check_rsa(bits: u32) -> Result<(), StoreError> {
    if (RSA_MIN_BITS..=RSA_MAX_BITS).contains(&bits) {
        return Ok(());
    }
    Err(refused(format!(
        "is an RSA key of {bits} bits: it must have {RSA_MIN_BITS} to {RSA_MAX_BITS}, or make one with ssh-keygen -t ed25519"
    )))
}

fn not_a_key() -> StoreError {
    refused("must be one line of an OpenSSH .pub file, as ssh-ed25519 AAAA…")
}

fn refused(problem: impl Into<String>) -> StoreError {
    invalid("public_key", problem)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What ssh-keygen makes of these arguments, and the fingerprint that it shows; `None` where there is none.
    fn made(arguments: &[&str]) -> Option<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-N", "", "-C", "ada@laptop of hers", "-f"])
            .arg(&path)
            .args(arguments);
        let Ok(output) = keygen.output() else {
            eprintln!("skipped: there is no ssh-keygen");
            return None;
        };
        assert!(output.status.success(), "{output:?}");
        let public = path.with_extension("pub");
        let shown = Command::new("ssh-keygen").arg("-lf").arg(&public).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let fingerprint = shown.split(' ').nth(1).unwrap().to_owned();
        Some((std::fs::read_to_string(public).unwrap(), fingerprint))
    }

    #[test]
    fn keys_of_ssh_keygen_are_taken_with_its_fingerprint() {
        for (arguments, algorithm) in [
            (["-t", "ed25519"].as_slice(), "ssh-ed25519"),
            (&["-t", "ecdsa", "-b", "256"], "ecdsa-sha2-nistp256"),
            (&["-t", "ecdsa", "-b", "384"], "ecdsa-sha2-nistp384"),
            (&["-t", "ecdsa", "-b", "521"], "ecdsa-sha2-nistp521"),
            (&["-t", "rsa", "-b", "3072"], "ssh-rsa"),
        ] {
            let Some((line, fingerprint)) = made(arguments) else {
                return;
            };
            let key = SshPublicKey::parse(&line).unwrap();
            assert_eq!((key.algorithm.as_str(), &key.fingerprint), (algorithm, &fingerprint));
            assert_eq!(key.comment, "ada@laptop of hers");
            assert!(line.starts_with(&key.openssh));
            assert_eq!(SshPublicKey::parse(&key.openssh).unwrap().fingerprint, fingerprint);
        }
    }

    #[test]
    fn a_weak_key_is_refused() {
        let Some((line, _)) = made(&["-t", "rsa", "-b", "2048"]) else {
            return;
        };
        let refusal = SshPublicKey::parse(&line).unwrap_err().to_string();
        assert!(refusal.contains("2048 bits"), "{refusal}");
    }

    #[test]
    fn what_is_no_key_of_these_kinds_is_refused() {
        let Some((line, _)) = made(&["-t", "ed25519"]) else {
            return;
        };
        let line = line.trim();
        for bad in [
            String::new(),
            "ssh-ed25519".into(),
            "ssh-ed25519 AAAA".into(),
            line.replace("ssh-ed25519", "ssh-rsa"),
            format!("command=\"rm\" {line}"),
            format!("{line}\n{line}"),
            line.chars().take(50).collect(),
            "-----BEGIN OPENSSH PRIVATE KEY-----".into(),
            format!("ssh-ed25519 {}", "A".repeat(LINE_MAX_BYTES)),
        ] {
            let refusal = SshPublicKey::parse(&bad);
            assert!(
                matches!(
                    refusal,
                    Err(StoreError::Invalid {
                        field: "public_key",
                        ..
                    })
                ),
                "{bad}: {refusal:?}"
            );
        }
    }
}
