//! How fuzzed bytes enter the reader of statements. Shared by the fuzz target and by `gateway/sql/tests/properties.rs`.

/// A string of statements, as a client sends it.
pub fn sql_classify(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(found) = hoop_sql::classify(text) else { return };
    let mut before = 0;
    for statement in found {
        let (start, end) = statement.span;
        assert!(before <= start, "statements stand one behind the other");
        assert!(
            text.get(start..end.min(text.len())).is_some(),
            "a place within the text"
        );
        before = start;
    }
}
