//! Sealing with the master key: AES-256-GCM, a random 96-bit nonce in front, the value's name as associated data.
//!
//! The master key never enters the database. `AesKey` serves the data keys of sessions and journals too.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use thiserror::Error;
use zeroize::Zeroizing;

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

/// Most master keys that are known at once: the one that seals, and those that a rotation comes from or goes to.
pub const MASTER_KEYS_MAX: usize = 4;

/// Which master key: the first eight bytes of a SHA-256 over it, in hexadecimal. Tells two keys apart and nothing of
/// either.
pub type KeyId = String;

/// What a key's id is the hash of, before the key.
const KEY_ID_LABEL: &[u8] = b"hoop master key";
const KEY_ID_BYTES: usize = 8;

fn key_id(key: &[u8]) -> KeyId {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(KEY_ID_LABEL);
    hash.update(key);
    let hash = hash.finish();
    hex::encode(hash.as_ref().get(..KEY_ID_BYTES).unwrap_or_default())
}

/// The keys of one moment. The first seals, all open.
struct Ring(Vec<(KeyId, AesKey)>);

/// The installation's master key: it seals target secrets, private keys, and the data keys of sessions and journals.
/// While it is rotated there are several; the first seals, and each opens what it sealed. Cheap to clone: every clone
/// sees a replacement.
#[derive(Clone)]
pub struct MasterKey(Arc<RwLock<Arc<Ring>>>);

impl MasterKey {
    /// # Errors
    /// `SealError` where `key` is not of `KEY_BYTES`.
    pub fn new(key: &[u8]) -> Result<Self, SealError> {
        Self::ring(&[key])
    }

    /// Several keys, the one that seals first.
    ///
    /// # Errors
    /// `SealError` where there is none, or more than `MASTER_KEYS_MAX`, or one is not of `KEY_BYTES`.
    pub fn ring<K: AsRef<[u8]>>(keys: &[K]) -> Result<Self, SealError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(Ring::new(keys)?)))))
    }

    /// Replaces all keys, in every clone.
    ///
    /// # Errors
    /// As `ring`; then nothing is replaced.
    pub fn replace<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<(), SealError> {
        let ring = Arc::new(Ring::new(keys)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }

    fn load(&self) -> Arc<Ring> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of all keys, the one that seals first.
    #[must_use]
    pub fn ids(&self) -> Vec<KeyId> {
        self.load().0.iter().map(|(id, _)| id.clone()).collect()
    }

    /// Of the key that seals now.
    #[must_use]
    pub fn sealing(&self) -> KeyId {
        self.load().0.first().map(|(id, _)| id.clone()).unwrap_or_default()
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
        let ring = self.load();
        let (_, key) = ring.0.first().ok_or(SealError)?;
        key.seal(aad.as_bytes(), plain)
    }

    /// # Errors
    /// `SealError` where no key, or not the name or the bytes, are those of `seal`.
    pub fn open(&self, aad: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let ring = self.load();
        let opened = ring.0.iter().find_map(|(_, key)| key.open(aad.as_bytes(), sealed).ok());
        opened.ok_or(SealError)
    }

    /// The same value under the key that seals now; `None` where it is that already.
    ///
    /// # Errors
    /// `SealError` where no key opens it.
    pub fn reseal(&self, aad: &str, sealed: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
        let ring = self.load();
        let (_, first) = ring.0.first().ok_or(SealError)?;
        if first.open(aad.as_bytes(), sealed).map(Zeroizing::new).is_ok() {
            return Ok(None);
        }
        let others = ring.0.iter().skip(1);
        let plain = others
            .into_iter()
            .find_map(|(_, key)| key.open(aad.as_bytes(), sealed).ok());
        let plain = Zeroizing::new(plain.ok_or(SealError)?);
        first.seal(aad.as_bytes(), &plain).map(Some)
    }
}

impl Ring {
    fn new<K: AsRef<[u8]>>(keys: &[K]) -> Result<Self, SealError> {
        if keys.is_empty() || keys.len() > MASTER_KEYS_MAX {
            return Err(SealError);
        }
        let keys = keys.iter().map(AsRef::as_ref);
        let ring: Result<Vec<_>, _> = keys.map(|key| Ok((key_id(key), AesKey::new(key)?))).collect();
        ring.map(Self)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MasterKey").field(&self.ids()).finish()
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

    #[test]
    fn of_several_keys_the_first_seals_all_open_and_a_replacement_reaches_every_clone() {
        let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        let master = MasterKey::new(&old).unwrap();
        let clone = master.clone();
        let sealed = master.seal("a", b"secret").unwrap();
        assert_eq!(clone.reseal("a", &sealed), Ok(None));
        master.replace(&[new, old]).unwrap();
        assert_eq!(clone.ids(), [key_id(&new), key_id(&old)]);
        assert_eq!(clone.open("a", &sealed).unwrap(), b"secret");
        let resealed = clone.reseal("a", &sealed).unwrap().unwrap();
        assert_eq!(clone.reseal("a", &resealed), Ok(None));
        assert_eq!(clone.reseal("b", &sealed), Err(SealError), "another name");
        master.replace(&[new]).unwrap();
        assert_eq!(clone.open("a", &sealed), Err(SealError));
        assert_eq!(clone.open("a", &resealed).unwrap(), b"secret");
        assert!(master.replace::<[u8; 32]>(&[]).is_err());
        assert_eq!(master.sealing(), key_id(&new), "nothing was replaced");
        assert!(!format!("{master:?}").contains(&hex::encode(new)));
    }
}
