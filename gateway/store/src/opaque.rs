//! Random names that open something: 32 bytes in base64url behind a prefix that scanners of source code find. Whoever
//! has one gets in, so only its SHA-256 is kept, and a look-up by that hash says nothing by its time.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::{StoreError, random};

/// Random bytes of one.
const RANDOM_BYTES: usize = 32;
/// The same in base64url.
const RANDOM_CHARS: usize = 43;

/// A fresh one.
pub(crate) fn make(prefix: &str) -> Result<Zeroizing<String>, StoreError> {
    let random = Zeroizing::new(random::bytes::<RANDOM_BYTES>()?);
    Ok(Zeroizing::new(format!(
        "{prefix}{}",
        URL_SAFE_NO_PAD.encode(random.as_ref())
    )))
}

/// What is kept of it; `None` where this cannot be one with that prefix.
pub(crate) fn kept(prefix: &str, given: &str) -> Option<Vec<u8>> {
    let has_its_form = given.len() == prefix.len().saturating_add(RANDOM_CHARS) && given.starts_with(prefix);
    has_its_form.then(|| digest(&SHA256, given.as_bytes()).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_form_is_looked_up() {
        let one = make("hoop_x_").unwrap();
        assert_eq!(kept("hoop_x_", &one).unwrap().len(), 32);
        assert_ne!(*one, *make("hoop_x_").unwrap());
        for other in ["", "hoop_x_", &one[1..], &format!("{}y", one.as_str())] {
            assert_eq!(kept("hoop_x_", other), None, "{other}");
        }
    }
}
