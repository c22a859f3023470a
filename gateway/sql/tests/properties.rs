//! Whatever is sent, reading it ends, and says where it stands.

#[path = "../../../tests/fuzz/src/sql.rs"]
mod entry;

use proptest::prelude::*;

/// What statements are made of, and what breaks them.
const PARTS: [&str; 48] = [
    "select",
    "from",
    "where",
    "t",
    "s.t",
    "\"Odd\"",
    "(",
    ")",
    ",",
    "*",
    "1",
    "'x'",
    "E'\\''",
    "$$ x $$",
    "$1",
    ";",
    "with",
    "as",
    "recursive",
    "insert into",
    "values",
    "update",
    "set",
    "delete from",
    "merge into",
    "using",
    "on",
    "union all",
    "copy",
    "to stdout",
    "explain",
    "analyze",
    "do",
    "call",
    "execute",
    "declare c cursor for",
    "--",
    "/*",
    "*/",
    "'",
    "\"",
    "::",
    "int",
    "[",
    "]",
    "é",
    "\u{0}",
    "case when",
];

proptest! {
    #[test]
    fn any_string_of_parts(parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..60)) {
        entry::sql_classify(parts.join(" ").as_bytes());
    }

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        entry::sql_classify(text.as_bytes());
    }
}
