//! Reads the recordings in golden/ and tells events as text.
#![allow(dead_code, reason = "each test binary uses a part")]

use bytes::Bytes;
use hoop_proto::dialogue::Batch;
use hoop_proto::event::Event;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Target,
}

/// What was passed on, in order.
pub fn records(name: &str) -> Vec<(Side, Bytes)> {
    let path = format!("{}/tests/golden/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    let mut rest = Bytes::from(std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")));
    let mut records = Vec::new();
    while !rest.is_empty() {
        let side = match rest[0] {
            b'F' => Side::Client,
            b'B' => Side::Target,
            other => panic!("{path}: record type {other}"),
        };
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        records.push((side, rest.slice(5..5 + length)));
        rest = rest.slice(5 + length..);
    }
    records
}

/// The records behind the login.
pub fn session_records(name: &str) -> Vec<(Side, Bytes)> {
    let mut records = records(name);
    let ready = |bytes: &Bytes| bytes.windows(5).any(|window| window == b"Z\0\0\0\x05");
    let login = records
        .iter()
        .position(|(side, bytes)| *side == Side::Target && ready(bytes))
        .unwrap();
    records.split_off(login + 1)
}

pub const RECORDINGS: [&str; 5] = ["simple", "copy", "prepared", "extended", "pipeline"];

/// A batch's events, one a line.
pub fn told(batch: &Batch) -> Vec<String> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    batch
        .events
        .iter()
        .map(|event| match event {
            Event::Statement(it) | Event::Prepared(it) => {
                let name = if it.name.is_empty() {
                    String::new()
                } else {
                    format!(" {}", lossy(&it.name))
                };
                let params: Vec<_> = it
                    .params
                    .iter()
                    .map(|param| param.data.as_ref().map_or("null".to_owned(), |data| lossy(data)))
                    .collect();
                let params = if params.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", params.join(", "))
                };
                let kind = it.kind.as_str();
                let what = match event {
                    Event::Prepared(_) => "prepared",
                    _ => "statement",
                };
                format!("{what} {} {kind}{name}: {}{params}", it.id, lossy(&it.text))
            }
            Event::Input { statement, span, rows } => {
                format!("input {statement}: {} bytes, {rows} rows", span.len())
            }
            Event::Output { statement, span, rows } => {
                format!("output {statement}: {} bytes, {rows} rows", span.len())
            }
            Event::Outcome(it) => {
                let error = if it.sqlstate.is_empty() {
                    String::new()
                } else {
                    format!(", {} {}", it.sqlstate, it.message)
                };
                let status = it.status.as_str();
                format!(
                    "outcome {} {status}: {}, {} rows, {} bytes{error}",
                    it.statement, it.tag, it.rows, it.bytes
                )
            }
            // Process ids differ between recordings.
            Event::Notice {
                kind: kind @ "notify",
                text,
            } => {
                let (channel, rest) = text.split_once(" from ").unwrap();
                format!("{kind}: {channel} from N: {}", rest.split_once(": ").unwrap().1)
            }
            Event::Notice { kind, text } => format!("{kind}: {text}"),
        })
        .collect()
}
