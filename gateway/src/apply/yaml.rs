//! YAML as declarations use it: documents of plain values, each with its line. Anchors, aliases and tags are refused, and
//! so is a key that is there twice: a reader must see what a file says.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value as Json};

/// Deepest nesting.
const DEPTH_MAX: usize = 16;
/// Most documents of one file.
const DOCUMENTS_MAX: usize = 10_000;

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Scalar(Json),
    List(Vec<Node>),
    /// Keys with their lines.
    Map(Vec<(String, usize, Node)>),
}

/// A file that cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub problem: String,
}

fn fault<T>(line: usize, problem: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        line,
        problem: problem.into(),
    })
}

impl Node {
    pub fn json(&self) -> Json {
        match &self.value {
            Value::Scalar(json) => json.clone(),
            Value::List(nodes) => nodes.iter().map(Self::json).collect(),
            Value::Map(members) => {
                let members = members.iter().map(|(name, _, node)| (name.clone(), node.json()));
                Json::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    /// The line of this key, the outermost first.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        match &self.value {
            Value::Map(members) => {
                let own = members.iter().find(|(name, ..)| name == key).map(|(_, line, _)| *line);
                own.or_else(|| members.iter().find_map(|(_, _, node)| node.line_of(key)))
            }
            Value::List(nodes) => nodes.iter().find_map(|node| node.line_of(key)),
            Value::Scalar(_) => None,
        }
    }
}

/// The documents of a file; empty ones are left out.
///
/// # Errors
/// `Fault` with the line.
pub fn documents(text: &str) -> Result<Vec<Node>, Fault> {
    let mut events = Events(Parser::new_from_str(text));
    let mut documents = Vec::new();
    loop {
        let (event, _) = events.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::DocumentStart(_) => {
                let (event, line) = events.next()?;
                if matches!(event, Event::DocumentEnd) {
                    continue;
                }
                let node = events.node(event, line, 0)?;
                if node.value != Value::Scalar(Json::Null) {
                    documents.push(node);
                }
                if documents.len() > DOCUMENTS_MAX {
                    return fault(line, format!("more than {DOCUMENTS_MAX} documents in one file"));
                }
            }
            _ => {}
        }
    }
}

struct Events<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), Fault> {
        match self.0.next() {
            Some(Ok((event, Span { start, .. }))) => Ok((event, start.line())),
            Some(Err(error)) => fault(error.marker().line(), error.info()),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Fault> {
        if depth > DEPTH_MAX {
            return fault(line, format!("nested deeper than {DEPTH_MAX} levels"));
        }
        let value = match event {
            Event::Scalar(text, style, 0, None) => Value::Scalar(scalar(&text, style)),
            Event::SequenceStart(0, None) => Value::List(self.list(depth)?),
            Event::MappingStart(0, None) => Value::Map(self.map(depth)?),
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) | Event::Alias(_) => {
                return fault(
                    line,
                    "anchors, aliases and tags are not read here: write the value itself",
                );
            }
            _ => return fault(line, "a value is missing"),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Fault> {
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(nodes),
                (event, line) => nodes.push(self.node(event, line, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(String, usize, Node)>, Fault> {
        let mut members: Vec<(String, usize, Node)> = Vec::new();
        loop {
            let (name, line) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(members),
                (Event::Scalar(name, _, 0, None), line) => (name.into_owned(), line),
                (_, line) => return fault(line, "a key must be plain text"),
            };
            if members.iter().any(|(known, ..)| *known == name) {
                return fault(line, format!("the key {name} is there twice"));
            }
            let (event, value_line) = self.next()?;
            let node = self.node(event, value_line, depth + 1)?;
            members.push((name, line, node));
        }
    }
}

/// YAML 1.2.2 §10.3, the core schema, without octal, hexadecimal, `.inf` and `.nan`.
fn scalar(text: &str, style: ScalarStyle) -> Json {
    if style != ScalarStyle::Plain {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Json::Null,
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number_like = digits.starts_with(|c: char| c.is_ascii_digit());
    if number_like && digits.bytes().all(|b| b.is_ascii_digit()) {
        if let Ok(number) = text.parse::<i64>() {
            return number.into();
        }
    } else if number_like
        && digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b))
        && let Some(number) = text.parse().ok().and_then(Number::from_f64)
    {
        return Json::Number(number);
    }
    text.into()
}

/// Whether a plain scalar is this text, and no number, truth value or null.
pub fn is_text(plain: &str) -> bool {
    scalar(plain, ScalarStyle::Plain).is_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_become_values_with_their_lines() {
        let text = "# first\n---\nkind: rule\nport: 5432\nratio: 1.5\nno: no\nquoted: \"5\"\nempty:\nlist: [a, 1]\n\
                    schedule:\n  from: 08:00\n---\n---\nkind: agent\n";
        let documents = documents(text).unwrap();
        assert_eq!(documents.len(), 2);
        let expected = json!({
            "kind": "rule", "port": 5432, "ratio": 1.5, "no": "no", "quoted": "5", "empty": null, "list": ["a", 1],
            "schedule": {"from": "08:00"},
        });
        assert_eq!(documents[0].json(), expected);
        assert_eq!(documents[0].line_of("port"), Some(4));
        assert_eq!(documents[0].line_of("from"), Some(11));
        assert_eq!(documents[1].line_of("kind"), Some(14));
    }

    #[test]
    fn what_a_reader_could_misread_is_refused_with_its_line() {
        for (text, line) in [
            ("a: &x 1\nb: *x\n", 1),
            ("a: 1\nb: *x\n", 2),
            ("a: 1\nb: !!str 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: 1\n[b]: 2\n", 2),
            ("a: [1\nb: 2\n", 2),
        ] {
            assert_eq!(documents(text).map_err(|fault| fault.line), Err(line), "{text}");
        }
        let deep = "[".repeat(DEPTH_MAX + 2) + &"]".repeat(DEPTH_MAX + 2);
        assert_eq!(documents(&deep).map_err(|fault| fault.line), Err(1));
    }
}
