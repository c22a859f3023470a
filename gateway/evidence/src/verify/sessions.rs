//! Checks sessions: their chunks' chains, against what the writers' logs say of them.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use uuid::Uuid;

use super::links::{Flaw, Links};
use super::report::{SessionFinding, SessionReport};
use crate::chain::{ChunkRow, Hash, LogRow};
use crate::log::hash;
use crate::rows::SessionRow;

pub(super) struct Sessions {
    only: Option<Uuid>,
    sessions: BTreeMap<Uuid, Session>,
    /// The chain that is being followed: chunks come session by session.
    current: Option<(Uuid, Links, i64)>,
    chunks: u64,
}

#[derive(Default)]
struct Session {
    /// Writer that logged its start, or took it up last.
    writer: Option<Uuid>,
    /// Chunk heads that the logs name.
    heads: BTreeMap<i64, Hash>,
    ended: bool,
    listed: bool,
    chunks: i64,
    /// Missing events that the writer itself has told.
    told_missing: Vec<(i64, i64)>,
    findings: Vec<SessionFinding>,
}

impl Sessions {
    pub const fn new(only: Option<Uuid>) -> Self {
        Self {
            only,
            sessions: BTreeMap::new(),
            current: None,
            chunks: 0,
        }
    }

    fn session(&mut self, id: Uuid) -> Option<&mut Session> {
        if self.only.is_some_and(|only| only != id) {
            return None;
        }
        Some(self.sessions.entry(id).or_default())
    }

    /// A record of a log that is to be believed.
    pub fn take_log(&mut self, row: &LogRow) {
        if !row.kind.starts_with("session_") {
            return;
        }
        let Ok(payload) = serde_json::from_str::<Value>(&row.payload) else {
            return;
        };
        if row.kind == "session_heads" {
            for head in payload.get("sessions").and_then(Value::as_array).into_iter().flatten() {
                self.take_head(head);
            }
            return;
        }
        let Some(id) = uuid(&payload, "session") else { return };
        let writer = row.writer;
        let Some(session) = self.session(id) else { return };
        match row.kind.as_str() {
            "session_started" => session.writer = Some(writer),
            "session_events_missing" => {
                let number = |name: &str| payload.get(name).and_then(Value::as_i64).unwrap_or(0);
                session.told_missing.push((number("from"), number("to")));
            }
            "session_ended" => {
                session.ended = true;
                session.writer = session.writer.or(Some(writer));
                self.take_head(&payload);
            }
            _ => {}
        }
    }

    fn take_head(&mut self, head: &Value) {
        let Some(id) = uuid(head, "session") else { return };
        let Some(chunks) = head.get("chunks").and_then(Value::as_i64) else {
            return;
        };
        let bytes = head
            .get("head")
            .and_then(Value::as_str)
            .and_then(|head| hex::decode(head).ok())
            .unwrap_or_default();
        if let Some(session) = self.session(id) {
            session.heads.insert(chunks, hash(&bytes));
        }
    }

    pub fn take_listed(&mut self, row: &SessionRow) {
        if let Some(session) = self.session(row.id) {
            session.listed = true;
        }
    }

    pub fn take_chunk(&mut self, row: &ChunkRow) {
        if self.only.is_some_and(|only| only != row.session) {
            return;
        }
        if self.current.as_ref().is_none_or(|(id, ..)| *id != row.session) {
            self.end_chain();
            self.current = Some((row.session, Links::default(), 0));
        }
        let Some((id, links, last_event)) = &mut self.current else {
            return;
        };
        let own = links.take(row.seq, row.computed(), hash(&row.hash), hash(&row.prev_hash));
        self.chunks += 1;
        let session = self.sessions.entry(*id).or_default();
        if own && row.first_event > *last_event + 1 && row.seq == session.chunks + 1 {
            session.findings.push(SessionFinding::EventsMissing {
                from: *last_event + 1,
                to: row.first_event - 1,
            });
        }
        session.chunks = session.chunks.max(row.seq);
        // A chunk that is not what it was says nothing about events.
        *last_event = if own { row.last_event } else { i64::MAX - 1 };
    }

    fn end_chain(&mut self) {
        let Some((id, mut links, _)) = self.current.take() else {
            return;
        };
        let session = self.sessions.entry(id).or_default();
        for (seq, head) in &session.heads {
            links.expect(*seq, *head);
        }
        if session.ended
            && let Some((last, _)) = session.heads.last_key_value()
            && links.last() > *last
        {
            session.findings.push(SessionFinding::ChunksUnexpected {
                from: last + 1,
                to: links.last(),
            });
        }
        session
            .findings
            .extend(links.finish().into_iter().map(|flaw| match flaw {
                Flaw::Changed { seq } => SessionFinding::ChunkChanged { seq },
                Flaw::Reordered { seq, belongs_at } => SessionFinding::ChunkReordered { seq, belongs_at },
                Flaw::Missing { from, to } => SessionFinding::ChunksMissing { from, to },
            }));
    }

    /// Sessions and chunks checked, and the sessions of which there is something to say.
    pub fn finish(mut self, live: &HashSet<Uuid>) -> (u64, u64, Vec<SessionReport>) {
        self.end_chain();
        if let Some(only) = self.only {
            self.sessions.entry(only).or_default();
        }
        let checked = self.sessions.len() as u64;
        let all = self.only.is_some();
        let reports = self.sessions.into_iter().map(|(id, session)| session.finish(id, live));
        (
            checked,
            self.chunks,
            reports.filter(|report| all || !report.findings.is_empty()).collect(),
        )
    }
}

impl Session {
    fn finish(mut self, session: Uuid, live: &HashSet<Uuid>) -> SessionReport {
        for (from, to) in self.told_missing {
            let told = SessionFinding::EventsMissing { from, to };
            if !self.findings.contains(&told) {
                self.findings.push(told);
            }
        }
        match self.writer {
            None if self.heads.is_empty() && self.chunks == 0 && !self.listed => {
                self.findings = vec![SessionFinding::Unknown];
            }
            None => self.findings.push(SessionFinding::NotInAnyLog),
            Some(_) if self.chunks == 0 => self.findings.push(SessionFinding::SessionMissing),
            Some(_) if !self.listed => self.findings.push(SessionFinding::NotListed),
            Some(_) => {}
        }
        if let Some(writer) = self.writer
            && !self.ended
            && !live.contains(&writer)
        {
            self.findings.push(SessionFinding::NotReplayed { writer });
        }
        SessionReport {
            session,
            chunks: self.chunks,
            findings: self.findings,
        }
    }
}

fn uuid(payload: &Value, name: &str) -> Option<Uuid> {
    payload
        .get(name)
        .and_then(Value::as_str)
        .and_then(|text| Uuid::parse_str(text).ok())
}
