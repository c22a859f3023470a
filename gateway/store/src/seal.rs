//! Sealing with the master key: AES-256-GCM, a random 96-bit nonce in front, the value's name as associated data.
//!
//! The master key never enters the database. `AesKey` serves the data keys of sessions and journals too.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use thiserror::Error;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// What sealing adds: nonce and tag.
pub const OVERHEAD_BYTES: usize = NONCE_LEN + 16;

/// A value could not be sealed or opened. Says no more, for more would help only an attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a sealed value cannot be opened with this key")]
pub struct SealError;

/// One AES-256-GCM key, ready for use. Cheap to clone.
#[derive(Clone)]
pub struct AesKey(Arc<LessSafeKey>);

impl AesKey {
    /// # Errors
    /// `SealError` where `key` is not of `KEY_BYTES`.
    pub fn new(key: &[u8]) -> Result<Self, SealError> {
        let unbound = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError)?;
        Ok(Self(Arc::new(LessSafeKey::new(unbound))))
    }

    /// Nonce, ciphertext, tag.
    ///
    /// # Errors
    /// `SealError` where the system gives no random bytes.
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0u8; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError)?;
        self.seal_with_nonce(nonce, aad, plain)
    }

    /// As `seal`, under a nonce that the caller guarantees to be used once with this key (a counter).
    ///
    /// # Errors
    /// `SealError` where the plain text is too long for GCM.
    pub fn seal_with_nonce(&self, nonce: [u8; NONCE_LEN], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        out.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
            .map_err(|_| SealError)?;
        out.extend_from_slice(&body);
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// # Errors
    /// `SealError` where key, associated data or bytes are not those of `seal`.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError)?;
        let mut body = body.to_vec();
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(aad), &mut body)
            .map_err(|_| SealError)?;
        let plain_bytes = plain.len();
        body.truncate(plain_bytes);
        Ok(body)
    }
}

impl fmt::Debug for AesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AesKey(…)")
    }
}

/// The installation's master key: it seals target secrets, private keys, and the data keys of sessions and journals.
#[derive(Clone, Debug)]
pub struct MasterKey(AesKey);

impl MasterKey {
    /// # Errors
    /// `SealError` where `key` is not of `KEY_BYTES`.
    pub fn new(key: &[u8]) -> Result<Self, SealError> {
        Ok(Self(AesKey::new(key)?))
    }

    /// A fresh key's bytes.
    ///
    /// # Errors
    /// `SealError` where the system gives no random bytes.
    pub fn generate() -> Result<[u8; KEY_BYTES], SealError> {
        let mut key = [0u8; KEY_BYTES];
        rand::fill(&mut key).map_err(|_| SealError)?;
        Ok(key)
    }

    /// Seals `plain` as the value named `aad` (e.g. `connection/<id>/secret`): it opens under no other name.
    ///
    /// # Errors
    /// `SealError` where the system gives no random bytes.
    pub fn seal(&self, aad: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0.seal(aad.as_bytes(), plain)
    }

    /// # Errors
    /// `SealError` where the key, the name or the bytes are not those of `seal`.
    pub fn open(&self, aad: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0.open(aad.as_bytes(), sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_under_its_own_name_and_key() {
        let key = MasterKey::new(&MasterKey::generate().unwrap()).unwrap();
        let other = MasterKey::new(&MasterKey::generate().unwrap()).unwrap();
        let sealed = key.seal("a", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + OVERHEAD_BYTES);
        assert_eq!(key.open("a", &sealed).unwrap(), b"secret");
        assert_eq!(key.open("b", &sealed), Err(SealError));
        assert_eq!(other.open("a", &sealed), Err(SealError));
        assert_eq!(key.open("a", &sealed[..10]), Err(SealError));
    }
}
