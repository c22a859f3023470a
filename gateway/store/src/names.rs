//! What names may be: agents and connections are DNS labels, people have user names.

use crate::StoreError;

/// Longest DNS label (RFC 1035 §2.3.4).
pub const LABEL_MAX_BYTES: usize = 63;
/// Longest user name.
pub const USERNAME_MAX_BYTES: usize = 128;

/// Checks the name of an agent or a connection: `[a-z0-9-]`, 1 to 63 characters, no hyphen at either end.
///
/// # Errors
/// `StoreError::Invalid` naming `field`.
pub fn check_label(field: &'static str, name: &str) -> Result<(), StoreError> {
    let characters = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty() || name.len() > LABEL_MAX_BYTES || !characters || name.starts_with('-') || name.ends_with('-') {
        return Err(invalid(
            field,
            format!("must be 1 to {LABEL_MAX_BYTES} of a-z, 0-9 and hyphens, with no hyphen at either end"),
        ));
    }
    Ok(())
}

/// Checks the name of a set of declarations: a label, or empty.
///
/// # Errors
/// `StoreError::Invalid` naming `managed_by`.
pub fn check_set(name: &str) -> Result<(), StoreError> {
    if name.is_empty() {
        return Ok(());
    }
    check_label("managed_by", name)
}

/// A user name as it is stored: lower case.
///
/// # Errors
/// `StoreError::Invalid` where it is empty, too long, or has characters outside `[a-z0-9._@+-]`.
pub fn username(name: &str) -> Result<String, StoreError> {
    let name = name.to_ascii_lowercase();
    let characters = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._@+-".contains(&b));
    if name.is_empty() || name.len() > USERNAME_MAX_BYTES || !characters {
        return Err(invalid(
            "username",
            format!("must be 1 to {USERNAME_MAX_BYTES} of a-z, 0-9 and . _ @ + -"),
        ));
    }
    Ok(name)
}

pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> StoreError {
    StoreError::Invalid {
        field,
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_what_dns_allows() {
        for good in ["a", "db-1", "0", &"x".repeat(63)] {
            assert!(check_label("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"x".repeat(64)] {
            assert!(check_label("name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_username_is_kept_in_lower_case() {
        assert_eq!(username("Ada@Example.org").unwrap(), "ada@example.org");
        assert!(username("ada lovelace").is_err());
        assert!(username("").is_err());
    }
}
