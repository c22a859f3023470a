//! Carries over what an earlier incarnation left: once its segments have been read and committed, its sessions that have
//! no end get one, and the files go.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Ended, Event, Outcome};
use prost::Message;
use serde_json::json;
use tokio::sync::oneshot;
use tokio_postgres::types::Type;
use uuid::Uuid;

use hoop_proto::end::End;

use crate::EvidenceError;
use crate::engine::{Engine, discard};
use crate::read;
use crate::tail::Source;

const OPEN_SESSIONS: &str = "select id from sessions where writer = $1 and (ended_at is null or end_provisional)";

/// What is being carried over, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Writers whose segments are not all carried over.
    open: HashSet<Uuid>,
    /// Lost replicas whose sessions are to be given a provisional end.
    pub give_up: Vec<(Uuid, oneshot::Sender<u64>)>,
    pub damage: u64,
    pub writers: Vec<Replayed>,
}

/// One writer, carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    pub writer: Uuid,
    pub segments: usize,
    /// Sessions that had no end and were given one.
    pub ended: usize,
    /// Files could not be read (another master key?) and were left where they are.
    pub unreadable: bool,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            writer,
            segments,
            ended,
            unreadable,
        } = self;
        if *unreadable {
            write!(
                f,
                "writer {writer}: {segments} segments, not all of which can be read; they stay where they are"
            )
        } else {
            write!(
                f,
                "writer {writer}: {segments} segments carried over, {ended} sessions given their end"
            )
        }
    }
}

impl Replay {
    pub fn new(sources: &[Source]) -> Self {
        Self {
            open: sources.iter().filter_map(Source::old_writer).collect(),
            ..Self::default()
        }
    }

    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

impl Engine {
    /// Ends the replay of every writer whose segments have been read to their end.
    pub(crate) async fn replay_what_was_read(&mut self) -> Result<(), EvidenceError> {
        let read: Vec<Uuid> = (self.replay.open.iter().copied())
            .filter(|writer| {
                let mut of_writer = self
                    .sources
                    .iter()
                    .filter(|source| source.old_writer() == Some(*writer));
                !of_writer.any(Source::has_more)
            })
            .collect();
        for writer in read {
            self.end_replay(writer).await?;
            self.replay.open.remove(&writer);
        }
        Ok(())
    }

    async fn end_replay(&mut self, writer: Uuid) -> Result<(), EvidenceError> {
        self.force_round().await?;
        let sources: Vec<usize> = (self.sources.iter().enumerate())
            .filter(|(_, source)| source.old_writer() == Some(writer))
            .map(|(index, _)| index)
            .collect();
        let files: Vec<_> = self
            .sources
            .iter()
            .filter(|s| s.old_writer() == Some(writer))
            .flat_map(Source::old_files)
            .collect();
        let unreadable = self
            .sources
            .iter()
            .any(|source| source.old_writer() == Some(writer) && source.unreadable);
        let mut replayed = Replayed {
            writer,
            segments: files.len(),
            ended: 0,
            unreadable,
        };
        if !unreadable {
            let rows = self.query(OPEN_SESSIONS, &writer, Type::UUID).await?;
            let mut open: BTreeSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
            open.extend(
                self.sessions
                    .values()
                    .filter(|session| {
                        session.ended.is_none()
                            && !session.over
                            && session.source.is_some_and(|from| sources.contains(&from))
                    })
                    .map(|session| session.id),
            );
            for session in open {
                replayed.ended += usize::from(self.end_lost(session).await?);
            }
        }
        self.due.log.push((
            "writer_replayed".to_owned(),
            json!({"writer": writer, "segments": replayed.segments, "sessions_ended": replayed.ended,
                "unreadable": replayed.unreadable}),
        ));
        self.force_round().await?;
        if !unreadable {
            self.give_files_up(&files, writer);
        }
        tracing::info!(%writer, segments = replayed.segments, ended = replayed.ended, unreadable, "journal replayed");
        self.replay.writers.push(replayed);
        Ok(())
    }

    fn give_files_up(&self, files: &[(std::path::PathBuf, u64, bool)], writer: Uuid) {
        for (path, bytes, damaged) in files {
            discard(path, *damaged);
            if let Some(journal) = &self.parts.journal {
                journal.0.give_room(*bytes);
            }
        }
        if let Some(journal) = &self.parts.journal {
            let mut old = journal.0.old.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            old.retain(|segment| segment.name.writer != writer);
        }
    }

    /// Appends an unknown outcome for each attempt that has none, and the end of the session.
    async fn end_lost(&mut self, id: Uuid) -> Result<bool, EvidenceError> {
        if !self.sessions.contains_key(&id) {
            self.load_sessions(&[id]).await?;
        }
        let Some(session) = self.sessions.get(&id) else {
            return Ok(false);
        };
        if session.over || session.ended.is_some() || session.last_event == 0 {
            return Ok(false);
        }
        let told = self.told(id).await?;
        let mut seq = self.sessions.get(&id).map_or(0, |session| session.last_event);
        let mut append = |engine: &mut Self, body| {
            seq += 1;
            let event = Event {
                seq,
                offset_us: told.offset_us,
                body: Some(body),
            };
            engine.take_event(id, &event.encode_to_vec(), None);
        };
        for statement in &told.unanswered {
            let outcome = Outcome {
                statement: *statement,
                status: "unknown".to_owned(),
                ..Outcome::default()
            };
            append(self, Body::Outcome(outcome));
        }
        let ended = Ended {
            code: End::ReplicaLost.code().to_owned(),
            message: "the gateway was lost while the session ran".to_owned(),
            statements: told.statements,
            client_bytes: 0,
            target_bytes: told.target_bytes,
        };
        append(self, Body::Ended(ended));
        Ok(true)
    }

    /// What a session's record tells so far.
    async fn told(&mut self, id: Uuid) -> Result<Told, EvidenceError> {
        let store = self.parts.store.clone();
        loop {
            let mut told = Told::default();
            let client = self.connected().await;
            match read::each_of(client, store.master(), id, |event| told.take(&event)).await {
                Ok(()) => return Ok(told),
                Err(EvidenceError::KeyDestroyed { .. }) => return Ok(told),
                Err(EvidenceError::Query { source, .. }) if source.is_closed() => self.client = None,
                Err(error) => return Err(error),
            }
        }
    }
}

#[derive(Default)]
struct Told {
    statements: u64,
    target_bytes: u64,
    offset_us: u64,
    unanswered: BTreeSet<u64>,
}

impl Told {
    fn take(&mut self, event: &Event) {
        self.offset_us = self.offset_us.max(event.offset_us);
        match &event.body {
            Some(Body::Attempt(attempt)) => {
                self.statements += 1;
                self.unanswered.insert(attempt.statement);
            }
            Some(Body::Prepared(prepared)) => {
                self.unanswered.insert(prepared.statement);
            }
            Some(Body::Outcome(outcome)) => {
                self.target_bytes = self.target_bytes.saturating_add(outcome.bytes);
                self.unanswered.remove(&outcome.statement);
            }
            _ => {}
        }
    }
}
