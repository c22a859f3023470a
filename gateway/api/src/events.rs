//! Recorded events as JSON. Bytes are shown as text where they are UTF-8, and in base64 where they are not.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hoop_proto::evidence;
use hoop_proto::evidence::event::Body;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// Unfinished bytes of a backend message kept to read the next chunk; more is not read as rows.
const CARRY_MAX_BYTES: usize = 1024 * 1024;
/// Statements whose results are followed at once.
const FOLLOWED_MAX: usize = 64;

/// One event. `kind` says which of the other members it has.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    /// From 1, without gaps.
    pub seq: u64,
    /// Microseconds since the session's start.
    pub offset_us: u64,
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    Started(Started),
    Attempt(Attempt),
    Outcome(Outcome),
    Output(Data),
    Cut(Cut),
    /// A text that went to the target without being run with it; `statement_kind` is `parse` or `bind`.
    Prepared(Attempt),
    /// Bytes that the client sent for a statement (COPY).
    Input(Data),
    /// The recording of a statement's input stopped here; `rows` counts CopyData messages.
    InputCut(Cut),
    Notice {
        notice: String,
        text: String,
    },
    Control {
        control: String,
        by: String,
    },
    Ended(Ended),
    /// Written by a newer release.
    Unknown,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Started {
    #[schema(required)]
    pub session: Option<Uuid>,
    /// UTC, microseconds since 1970.
    pub started_at_us: u64,
    pub protocol: String,
    pub user: String,
    #[schema(required)]
    pub user_id: Option<Uuid>,
    pub email: String,
    pub groups: Vec<String>,
    pub connection: String,
    #[schema(required)]
    pub connection_id: Option<Uuid>,
    pub agent: String,
    pub client_address: String,
    pub credential: String,
    pub policy_version: u64,
    #[schema(required)]
    pub replica: Option<Uuid>,
    pub database: String,
    pub application: String,
    pub client_tls: bool,
    pub audit_mode: String,
}

/// A statement that is about to go to the target.
#[derive(Debug, Serialize, ToSchema)]
pub struct Attempt {
    pub statement: u64,
    pub statement_kind: String,
    pub text: String,
    /// The exact bytes, where they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub text_base64: Option<String>,
    pub params: Vec<BoundValue>,
    pub verdicts: Vec<Verdict>,
    /// The prepared statement's name, where it has one.
    pub name: String,
    /// The text is longer than what is kept of it.
    pub text_cut: bool,
    pub text_bytes: u64,
    pub text_sha256: String,
}

/// A bound parameter.
#[derive(Debug, Serialize, ToSchema)]
pub struct BoundValue {
    pub null: bool,
    /// 0 text, 1 binary.
    pub format: u32,
    #[schema(required)]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub base64: Option<String>,
    pub cut_bytes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Verdict {
    pub stage: String,
    pub verdict: String,
    pub reason: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Outcome {
    pub statement: u64,
    pub status: String,
    pub sqlstate: String,
    pub message: String,
    pub tag: String,
    pub rows: u64,
    pub bytes: u64,
    pub duration_us: u64,
}

/// Result bytes as the client saw them, or input as it sent it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Data {
    pub statement: u64,
    pub base64: String,
    /// The rows that end in these bytes, a line each, cells parted by tabs, NULL as `\N`; of COPY the data as it is. Null
    /// where it cannot be read as that.
    #[schema(required)]
    pub text: Option<String>,
}

/// The recording of results, or of input, stopped here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cut {
    pub statement: u64,
    pub limit: String,
    pub recorded_bytes: u64,
    pub total: bool,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Ended {
    pub code: String,
    pub message: String,
    pub statements: u64,
    pub client_bytes: u64,
    pub target_bytes: u64,
}

impl EventView {
    pub fn new(event: evidence::Event, rows: &mut Rows) -> Self {
        let body = event.body.map_or(EventBody::Unknown, |body| view(body, rows));
        Self {
            seq: event.seq,
            offset_us: event.offset_us,
            body,
        }
    }
}

fn view(body: Body, rows: &mut Rows) -> EventBody {
    match body {
        Body::Started(e) => EventBody::Started(started(e)),
        Body::Attempt(e) => EventBody::Attempt(attempt(e)),
        Body::Outcome(e) => EventBody::Outcome(Outcome {
            statement: e.statement,
            status: e.status,
            sqlstate: e.sqlstate,
            message: e.message,
            tag: e.tag,
            rows: e.rows,
            bytes: e.bytes,
            duration_us: e.duration_us,
        }),
        Body::Output(e) => EventBody::Output(data(Way::Output, e.statement, &e.data, rows)),
        Body::Input(e) => EventBody::Input(data(Way::Input, e.statement, &e.data, rows)),
        Body::Prepared(e) => EventBody::Prepared(attempt(e)),
        Body::Cut(e) => EventBody::Cut(cut(e)),
        Body::InputCut(e) => EventBody::InputCut(cut(e)),
        Body::Notice(e) => EventBody::Notice {
            notice: e.kind,
            text: e.text,
        },
        Body::Control(e) => EventBody::Control {
            control: e.kind,
            by: e.by,
        },
        Body::Ended(e) => EventBody::Ended(Ended {
            code: e.code,
            message: e.message,
            statements: e.statements,
            client_bytes: e.client_bytes,
            target_bytes: e.target_bytes,
        }),
    }
}

fn data(way: Way, statement: u64, bytes: &[u8], rows: &mut Rows) -> Data {
    Data {
        statement,
        text: rows.read(way, statement, bytes),
        base64: STANDARD.encode(bytes),
    }
}

fn cut(e: evidence::Cut) -> Cut {
    Cut {
        statement: e.statement,
        limit: e.limit,
        recorded_bytes: e.recorded_bytes,
        total: e.total,
        rows: e.rows,
        bytes: e.bytes,
        sha256: hexadecimal(&e.sha256),
    }
}

fn started(e: evidence::Started) -> Started {
    Started {
        session: Uuid::from_slice(&e.session).ok(),
        started_at_us: e.started_at_us,
        protocol: e.protocol,
        user: e.user,
        user_id: Uuid::from_slice(&e.user_id).ok(),
        email: e.email,
        groups: e.groups,
        connection: e.connection,
        connection_id: Uuid::from_slice(&e.connection_id).ok(),
        agent: e.agent,
        client_address: e.client_address,
        credential: e.credential,
        policy_version: e.policy_version,
        replica: Uuid::from_slice(&e.replica).ok(),
        database: e.database,
        application: e.application,
        client_tls: e.client_tls,
        audit_mode: e.audit_mode,
    }
}

fn attempt(e: evidence::Attempt) -> Attempt {
    let (text, text_base64) = shown(&e.text);
    let value = |v: evidence::Value| {
        let (text, base64) = shown(&v.data);
        let text = if v.null { None } else { Some(text) };
        BoundValue {
            null: v.null,
            format: v.format,
            text,
            base64,
            cut_bytes: v.cut_bytes,
        }
    };
    let verdict = |v: evidence::Verdict| Verdict {
        stage: v.stage,
        verdict: v.verdict,
        reason: v.reason,
    };
    Attempt {
        statement: e.statement,
        statement_kind: e.kind,
        text,
        text_base64,
        params: e.params.into_iter().map(value).collect(),
        verdicts: e.verdicts.into_iter().map(verdict).collect(),
        name: e.name,
        text_cut: e.text_cut,
        text_bytes: e.text_bytes,
        text_sha256: hexadecimal(&e.text_sha256),
    }
}

/// As text, and the exact bytes where that loses something.
fn shown(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            String::from_utf8_lossy(bytes).into_owned(),
            Some(STANDARD.encode(bytes)),
        ),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut out, b| {
            let _ = write!(out, "{b:02x}");
            out
        })
}

/// Which way recorded data went.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Input,
    Output,
}

/// Reads DataRow and CopyData messages (PostgreSQL manual, "Message Formats") out of recorded results and input, across
/// chunks of one page. Where a page begins in the middle of a message, that statement's rows are not read.
#[derive(Default)]
pub struct Rows {
    /// What is left of each statement's last chunk; `None` once it could not be read.
    carried: HashMap<(Way, u64), Option<Vec<u8>>>,
}

impl Rows {
    fn read(&mut self, way: Way, statement: u64, data: &[u8]) -> Option<String> {
        let key = (way, statement);
        if !self.carried.contains_key(&key) && self.carried.len() >= FOLLOWED_MAX {
            self.carried.clear();
        }
        let carried = self.carried.entry(key).or_insert_with(|| Some(Vec::new()));
        let mut bytes = carried.take()?;
        bytes.extend_from_slice(data);
        let mut text = String::new();
        let mut rest = bytes.as_slice();
        loop {
            match message(rest)? {
                Some((kind, body, after)) => {
                    match kind {
                        b'D' => {
                            text.push_str(&row(body)?);
                            text.push('\n');
                        }
                        b'd' => text.push_str(&String::from_utf8_lossy(body)),
                        _ => {}
                    }
                    rest = after;
                }
                None if rest.len() <= CARRY_MAX_BYTES => {
                    *carried = Some(rest.to_vec());
                    return Some(text);
                }
                None => return None,
            }
        }
    }
}

/// A message's type, its body and what follows; `Some(None)` where it is not whole; `None` where it is no message.
#[allow(clippy::option_option, clippy::type_complexity)]
fn message(bytes: &[u8]) -> Option<Option<(u8, &[u8], &[u8])>> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Some(None);
    };
    if !kind.is_ascii_alphanumeric() {
        return None;
    }
    let Some((length, rest)) = rest.split_first_chunk::<4>() else {
        return Some(None);
    };
    let body_bytes = usize::try_from(u32::from_be_bytes(*length)).ok()?.checked_sub(4)?;
    if body_bytes > 1 << 30 {
        return None;
    }
    Some(
        rest.split_at_checked(body_bytes)
            .map(|(body, after)| (kind, body, after)),
    )
}

fn row(body: &[u8]) -> Option<String> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut line = String::new();
    for cell in 0..u16::from_be_bytes(*count) {
        if cell > 0 {
            line.push('\t');
        }
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let Ok(cell_bytes) = usize::try_from(i32::from_be_bytes(*length)) else {
            line.push_str("\\N");
            continue;
        };
        let (data, after) = rest.split_at_checked(cell_bytes)?;
        line.push_str(&String::from_utf8_lossy(data));
        rest = after;
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_row(cells: &[Option<&str>]) -> Vec<u8> {
        let mut body = u16::try_from(cells.len()).unwrap().to_be_bytes().to_vec();
        for cell in cells {
            match cell {
                Some(text) => {
                    body.extend(i32::try_from(text.len()).unwrap().to_be_bytes());
                    body.extend(text.as_bytes());
                }
                None => body.extend((-1i32).to_be_bytes()),
            }
        }
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [b"D".as_slice(), &length, &body].concat()
    }

    #[test]
    fn rows_are_read_across_chunks() {
        let bytes = [data_row(&[Some("1"), None]), data_row(&[Some("ä"), Some("")])].concat();
        let (first, second) = bytes.split_at(bytes.len() - 3);
        let mut rows = Rows::default();
        assert_eq!(rows.read(Way::Output, 1, first).unwrap(), "1\t\\N\n");
        assert_eq!(rows.read(Way::Output, 1, second).unwrap(), "ä\t\n");
    }

    #[test]
    fn copied_data_is_read_as_it_is_and_input_apart_from_output() {
        let bytes = b"d\0\0\0\x06a\nd\0\0\0\x05b";
        let mut rows = Rows::default();
        assert_eq!(rows.read(Way::Input, 1, &bytes[..9]).unwrap(), "a\n");
        assert_eq!(rows.read(Way::Output, 1, bytes).unwrap(), "a\nb");
        assert_eq!(rows.read(Way::Input, 1, &bytes[9..]).unwrap(), "b");
    }

    #[test]
    fn what_is_no_message_is_shown_as_bytes_only() {
        let mut rows = Rows::default();
        assert_eq!(rows.read(Way::Output, 1, b"\0\0\0"), None);
        assert_eq!(rows.read(Way::Output, 1, &data_row(&[Some("x")])), None);
        assert_eq!(rows.read(Way::Output, 2, b"D\0\0\0\x01"), None);
        assert_eq!(rows.read(Way::Output, 3, b"D\0\0\0\x08\0\x05\0\0"), None);
    }

    #[test]
    fn text_that_is_not_utf8_keeps_its_bytes() {
        assert_eq!(shown(b"select 1"), ("select 1".into(), None));
        assert_eq!(shown(b"\xff").1.unwrap(), "/w==");
    }
}
