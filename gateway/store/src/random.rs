//! Random names and passwords in lower-case base32 without look-alikes (Crockford's alphabet).

use aws_lc_rs::rand;
use zeroize::{Zeroize, Zeroizing};

use crate::StoreError;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut out = [0u8; N];
    rand::fill(&mut out).map_err(|_| StoreError::Setup("the system gives no random bytes".into()))?;
    Ok(out)
}

/// The character of the lowest five bits.
pub(crate) fn digit(bits: u64) -> char {
    let at = usize::try_from(bits & 31).unwrap_or_default();
    char::from(ALPHABET.get(at).copied().unwrap_or(b'0'))
}

/// `N` random characters, five bits each.
pub(crate) fn base32<const N: usize>() -> Result<Zeroizing<String>, StoreError> {
    let mut random = bytes::<N>()?;
    let text = random.iter().map(|b| digit(u64::from(*b))).collect();
    random.zeroize();
    Ok(Zeroizing::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_of_the_alphabet_and_differs() {
        let a = base32::<26>().unwrap();
        assert_eq!(a.len(), 26);
        assert!(a.bytes().all(|b| ALPHABET.contains(&b)));
        assert_ne!(*a, *base32::<26>().unwrap());
    }
}
