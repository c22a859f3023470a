//! PostgreSQL's md5 password answer. Weak: `connect` gives it only over verified TLS or where the connection allows it.

use md5::{Digest, Md5};
use zeroize::Zeroizing;

/// `"md5" + hex(md5(hex(md5(password + user)) + salt))` (manual, "Message Flow", AuthenticationMD5Password).
pub(crate) fn answer(user: &str, password: &str, salt: [u8; 4]) -> Zeroizing<String> {
    let inner = Zeroizing::new(hex(&Md5::new().chain_update(password).chain_update(user).finalize()));
    let outer = hex(&Md5::new().chain_update(inner.as_bytes()).chain_update(salt).finalize());
    Zeroizing::new(format!("md5{outer}"))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|&byte| [digit(byte >> 4), digit(byte & 0xf)])
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_is_postgresqls() {
        // Computed with Python's hashlib: md5(md5("secretpostgres").hexdigest() + salt).
        let answer = super::answer("postgres", "secret", [1, 2, 3, 4]);
        assert_eq!(answer.as_str(), "md5bb41a296aab6baccb36ff243a562abff");
    }
}
