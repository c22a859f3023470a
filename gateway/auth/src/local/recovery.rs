//! Recovery codes: what lets somebody in who lost their authenticator.

use super::{NoRandomness, random};
use aws_lc_rs::digest::{SHA256, digest};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Codes in a set.
pub const RECOVERY_CODES: usize = 10;
/// Characters of a code, of five bits each: 60 bits.
const CODE_CHARS: usize = 12;
/// Characters between hyphens.
const GROUP_CHARS: usize = 4;
/// Crockford's base 32: digits and letters without I, L, O and U. What looks like another is read as that one.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A fresh set: shown once, and then forgotten.
pub struct RecoveryCodes(Vec<Zeroizing<String>>);

/// What is stored of a code, its SHA-256. A code is random and long enough that no slow hash is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryHash(pub [u8; 32]);

impl RecoveryCodes {
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        let codes = (0..RECOVERY_CODES).map(|_| random::<CODE_CHARS>().map(|bytes| spell(&bytes)));
        codes.collect::<Result<_, _>>().map(Self)
    }

    /// To show: `xxxx-xxxx-xxxx`.
    pub fn codes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|code| code.as_str())
    }

    /// To store, in the same order.
    #[must_use]
    pub fn hashes(&self) -> Vec<RecoveryHash> {
        self.codes().map(RecoveryHash::of).collect()
    }
}

impl RecoveryHash {
    /// Of a code as somebody typed it: capitals, spaces, hyphens and look-alikes make no difference.
    #[must_use]
    pub fn of(typed: &str) -> Self {
        let hash = digest(&SHA256, plain(typed).as_bytes());
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }

    /// Which of the stored hashes is the typed code's. Delete that one, in a change that sees whether it was still there:
    /// a code is good once.
    #[must_use]
    pub fn find(typed: &str, stored: &[Self]) -> Option<usize> {
        let typed = Self::of(typed);
        // every one is compared, so that the time says nothing
        let fits: Vec<bool> = stored.iter().map(|hash| hash.0.ct_eq(&typed.0).into()).collect();
        fits.into_iter().position(|fits| fits)
    }
}

impl fmt::Debug for RecoveryCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryCodes({})", self.0.len())
    }
}

fn spell(bytes: &[u8; CODE_CHARS]) -> Zeroizing<String> {
    let mut code = Zeroizing::new(String::with_capacity(CODE_CHARS + CODE_CHARS / GROUP_CHARS));
    for (n, byte) in bytes.iter().enumerate() {
        if n > 0 && n % GROUP_CHARS == 0 {
            code.push('-');
        }
        let letter = ALPHABET.get(usize::from(byte % 32)).copied().unwrap_or_default();
        code.push(char::from(letter));
    }
    code
}

fn plain(typed: &str) -> Zeroizing<String> {
    let letters = typed
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .map(|c| match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            other => other,
        });
    Zeroizing::new(letters.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_set_has_ten_different_codes_of_sixty_bits() {
        let codes = RecoveryCodes::generate().unwrap();
        let different: HashSet<String> = codes.codes().map(String::from).collect();
        assert_eq!(different.len(), RECOVERY_CODES);
        for code in &different {
            let groups: Vec<&str> = code.split('-').collect();
            assert_eq!(
                groups.iter().map(|group| group.len()).collect::<Vec<_>>(),
                [4, 4, 4],
                "{code}"
            );
            assert!(code.bytes().all(|b| b == b'-' || ALPHABET.contains(&b)), "{code}");
        }
        assert_eq!(format!("{codes:?}"), "RecoveryCodes(10)");
    }

    #[test]
    fn every_letter_occurs() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut seen = HashSet::new();
        for chunk in bytes.chunks(CODE_CHARS).filter(|chunk| chunk.len() == CODE_CHARS) {
            seen.extend(spell(chunk.try_into().unwrap()).bytes().filter(|b| *b != b'-'));
        }
        assert_eq!(seen.len(), ALPHABET.len());
    }

    #[test]
    fn a_code_is_found_as_it_is_typed_and_once() {
        let codes = RecoveryCodes::generate().unwrap();
        let mut stored = codes.hashes();
        let code = codes.codes().nth(3).unwrap();
        let typed = format!(
            " {} ",
            code.to_uppercase()
                .replace('-', " ")
                .replace('0', "O")
                .replace('1', "l")
        );
        assert_eq!(RecoveryHash::find(&typed, &stored), Some(3));
        stored.remove(3);
        assert_eq!(RecoveryHash::find(&typed, &stored), None);
        for wrong in ["", "-", "0000-0000-0000", &code[..13]] {
            assert_eq!(RecoveryHash::find(wrong, &stored), None, "{wrong}");
        }
    }

    /// FIPS 180-2, appendix B.1: the digest of "abc".
    #[test]
    fn the_stored_form_is_sha_256_of_the_bare_code() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash: String = RecoveryHash::of("A-b C")
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hash, expected);
    }
}
