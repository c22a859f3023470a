//! What a client's statement messages say: the text, and the parameters that go with it.

use bytes::Bytes;
use smallvec::SmallVec;

use super::fields::{Fields, Malformed};
use super::names::Definition;
use crate::event::Param;

/// A prepared statement: the text of its Parse. Its own allocation, so that it pins no batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) text: Bytes,
}

impl Definition for Prepared {
    fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// A portal: a prepared statement's text and name, and its Bind's body behind the names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Portal {
    pub(crate) text: Bytes,
    pub(crate) statement: Bytes,
    pub(crate) arguments: Bytes,
}

impl Definition for Portal {
    fn bytes(&self) -> usize {
        self.arguments.len()
    }
}

/// The text of a Query: one zero, at its end.
pub(crate) fn query_text(body: &[u8]) -> Result<usize, Malformed> {
    match body.split_last() {
        Some((0, text)) if memchr::memchr(0, text).is_none() => Ok(text.len()),
        _ => Err(Malformed("text")),
    }
}

/// The parameters of a Bind, from its format codes on.
pub(crate) fn bind_params(arguments: &Bytes) -> Result<Vec<Param>, Malformed> {
    params(arguments, &mut Fields(arguments))
}

/// The function's object id and arguments, from a FunctionCall's body.
pub(crate) fn function_call(body: &Bytes) -> Result<(u32, Vec<Param>), Malformed> {
    let mut fields = Fields(body);
    let oid = fields.u32("function id")?;
    Ok((oid, params(body, &mut fields)?))
}

/// Format codes (none: all text; one: for all; or one each), then values. `fields` reads from `body`.
fn params(body: &Bytes, fields: &mut Fields<'_>) -> Result<Vec<Param>, Malformed> {
    let count = fields.u16("number of format codes")?;
    let mut formats = SmallVec::<[u16; 16]>::new();
    for _ in 0..count {
        formats.push(fields.u16("format code")?);
    }
    let count = fields.u16("number of parameters")?;
    // A value has at least its length field: what is not there is not reserved for.
    let mut params = Vec::with_capacity(usize::from(count).min(fields.0.len() / 4));
    for index in 0..usize::from(count) {
        let format = match formats.as_slice() {
            [] => 0,
            [all] => *all,
            each => *each.get(index).ok_or(Malformed("format code"))?,
        };
        let data = match fields.length("parameter length")? {
            Some(length) => {
                let start = body.len() - fields.0.len();
                fields.take(length, "parameter")?;
                Some(body.slice(start..start + length))
            }
            None => None,
        };
        params.push(Param { format, data });
    }
    Ok(params)
}

/// Stands for the text of a statement that was prepared by SQL (`PREPARE`), not by the protocol.
pub(crate) fn unknown_statement(name: &[u8]) -> Bytes {
    format!("EXECUTE {}", quoted(name)).into()
}

/// Stands for the text of a portal that was opened by SQL (`DECLARE`), not by the protocol.
pub(crate) fn unknown_portal(name: &[u8], max_rows: u32) -> Bytes {
    match max_rows {
        0 => format!("FETCH ALL FROM {}", quoted(name)).into(),
        rows => format!("FETCH {rows} FROM {}", quoted(name)).into(),
    }
}

fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(name).replace('"', "\"\""))
}

/// The one name that a text of exactly the form `DEALLOCATE [PREPARE] name` drops.
pub(crate) fn deallocated(text: &[u8]) -> Option<Box<[u8]>> {
    let text = text.trim_ascii();
    if !text
        .first_chunk::<10>()
        .is_some_and(|word| word.eq_ignore_ascii_case(b"deallocate"))
    {
        return None;
    }
    let text = text.strip_suffix(b";").unwrap_or(text);
    let mut rest = text.get(10..)?;
    let mut name = word(&mut rest)?;
    if name.eq_ignore_ascii_case(b"prepare") && !rest.trim_ascii().is_empty() {
        name = word(&mut rest)?;
    }
    if !rest.trim_ascii().is_empty() {
        return None;
    }
    if let Some(inner) = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")) {
        // A doubled quote inside is rare enough to be treated as not understood.
        return (!inner.is_empty() && !inner.contains(&b'"')).then(|| inner.into());
    }
    let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    (plain && !name.eq_ignore_ascii_case(b"all")).then(|| name.to_ascii_lowercase().into())
}

/// The next word, which white space must precede.
fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let trimmed = rest.trim_ascii_start();
    if trimmed.len() == rest.len() {
        return None;
    }
    let quoted = trimmed.first() == Some(&b'"');
    let end = if quoted {
        memchr::memchr(b'"', trimmed.get(1..)?)? + 2
    } else {
        trimmed
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(trimmed.len())
    };
    let (head, tail) = trimmed.split_at_checked(end)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_take_their_format_from_none_one_or_each() {
        let value: &[u8] = &[0, 2, 0, 0, 0, 1, b'x', 0xff, 0xff, 0xff, 0xff];
        let read = |formats: &[u8]| bind_params(&Bytes::from([formats, value].concat()));
        let params = |first, second| {
            let null = Param {
                format: second,
                data: None,
            };
            Ok(vec![
                Param {
                    format: first,
                    data: Some(Bytes::from_static(b"x")),
                },
                null,
            ])
        };
        assert_eq!(read(&[0, 0]), params(0, 0));
        assert_eq!(read(&[0, 1, 0, 1]), params(1, 1));
        assert_eq!(read(&[0, 2, 0, 0, 0, 1]), params(0, 1));
        assert_eq!(
            bind_params(&Bytes::from_static(&[0, 0, 0, 1, 0, 0, 0, 9])),
            Err(Malformed("parameter"))
        );
    }

    #[test]
    fn a_query_has_one_zero_at_its_end() {
        assert_eq!(query_text(b"select 1\0"), Ok(8));
        assert_eq!(query_text(b"\0"), Ok(0));
        for body in [&b""[..], b"select 1", b"a\0b\0"] {
            assert_eq!(query_text(body), Err(Malformed("text")));
        }
    }

    #[test]
    fn only_a_plain_deallocate_names_what_it_drops() {
        let cases: [(&str, Option<&str>); 12] = [
            ("DEALLOCATE s1", Some("s1")),
            (" deallocate  PREPARE S1 ; ", Some("s1")),
            ("DEALLOCATE \"S 1\"", Some("S 1")),
            ("DEALLOCATE prepare", Some("prepare")),
            ("DEALLOCATE ALL", None),
            ("DEALLOCATE PREPARE ALL", None),
            ("DEALLOCATE s1; select 1", None),
            ("DEALLOCATE s1 -- x", None),
            ("DEALLOCATE \"a\"\"b\"", None),
            ("DEALLOCATEs1", None),
            ("DEALLOCATE", None),
            ("select 1", None),
        ];
        for (text, name) in cases {
            assert_eq!(
                deallocated(text.as_bytes()).as_deref(),
                name.map(str::as_bytes),
                "{text}"
            );
        }
    }

    #[test]
    fn what_sql_prepared_is_told_as_sql() {
        assert_eq!(unknown_statement(b"a\"b"), "EXECUTE \"a\"\"b\"");
        assert_eq!(unknown_portal(b"c", 0), "FETCH ALL FROM \"c\"");
        assert_eq!(unknown_portal(b"c", 10), "FETCH 10 FROM \"c\"");
    }
}
