//! Declarations as text that `apply` reads: one member a line, what is in it in YAML's flow style (YAML 1.2.2 §7.4).

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::yaml;

/// Documents, with what is remarked above each.
pub fn document(kind: &str, name: &str, body: &Map<String, Value>, remark: Option<&str>) -> String {
    let mut out = String::new();
    // writing to a text cannot fail
    if let Some(remark) = remark {
        let _ = writeln!(out, "# {remark}");
    }
    let _ = writeln!(out, "kind: {kind}\nname: {}", scalar(name));
    for (member, value) in body.iter().filter(|(member, _)| *member != "name") {
        let _ = writeln!(out, "{member}: {}", flow(value));
    }
    out
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| format!("{name}: {}", flow(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Plain where nobody could misread it, else in double quotes.
fn scalar(text: &str) -> String {
    let simple = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(simple);
    if plain && yaml::is_text(text) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // also what is a line end, a mark or nothing to some readers
            c if c.is_control() || "\u{2028}\u{2029}\u{feff}".contains(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let body = json!({
            "plain": "prod-db.internal", "empty": "", "number": "5432", "yes": "true", "nothing": "null", "bool": false,
            "none": null, "count": 5, "list": ["a", "*", "c, d", "- e", "# f", "g: h", "[i]"], "marks": "\"\\\n\t\u{85}\u{0}ä",
            "schedule": {"days": ["mon"], "from": "08:00", "timezone": "Europe/Berlin"}, "tilde": "~", "no": "no",
            "pem": "-----BEGIN CERTIFICATE-----\nMII=\n", "separator": "\u{2028}",
        });
        let text = document("rule", "a", body.as_object().unwrap(), Some("a remark"));
        let read = yaml::documents(&text).unwrap();
        let mut expected = body;
        expected["kind"] = "rule".into();
        expected["name"] = "a".into();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].json(), expected, "{text}");
        assert!(text.starts_with("# a remark\nkind: rule\nname: a\n") && text.contains("\nplain: prod-db.internal\n"));
    }
}
