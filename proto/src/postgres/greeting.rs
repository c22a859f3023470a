//! What a target says between its login and its first ReadyForQuery, as `connect` gives it.

use super::fields::Fields;

/// The last value that the greeting gives a parameter (manual, "ParameterStatus").
#[must_use]
pub fn parameter(greeting: &[u8], name: &str) -> Option<String> {
    let mut messages = Fields(greeting);
    let mut found = None;
    while let Ok(kind) = messages.u8("type") {
        let length = messages.u32("length").ok()?;
        let bytes = usize::try_from(length).ok()?.checked_sub(4)?;
        let mut body = Fields(messages.take(bytes, "body").ok()?);
        if kind == b'S' && body.string("name").ok()? == name.as_bytes() {
            found = Some(String::from_utf8_lossy(body.string("value").ok()?).into_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_among_others_and_a_cut_greeting_gives_none() {
        let whole = b"S\0\0\0\x0eTimeZone\0\0N\0\0\0\x05\0S\0\0\0\x16server_version\x0017\0";
        assert_eq!(parameter(whole, "server_version").as_deref(), Some("17"));
        assert_eq!(parameter(whole, "TimeZone").as_deref(), Some(""));
        assert_eq!(parameter(whole, "other"), None);
        for length in 1..whole.len() {
            assert_eq!(parameter(&whole[..length], "server_version"), None, "{length}");
        }
    }
}
