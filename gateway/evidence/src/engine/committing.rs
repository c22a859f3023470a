//! The second half of a round: what is due becomes a group, the group is committed, and the journal is given back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{CHECKPOINT_INTERVAL_MS, Due, Engine, GROUP_TIMEOUT_MS, Retry, discard};
use crate::EvidenceError;
use crate::group::{EndedRow, Failure, Group};
use crate::metrics::{STORE_COMMIT, STORE_COMMIT_FAILURES};
use crate::session::{Session, as_i64, text};
use crate::tail::Source;

impl Engine {
    pub(super) async fn commit_what_is_due(&mut self, finishing: bool) -> Result<(), EvidenceError> {
        let mut due = std::mem::take(&mut self.due);
        let mut group = Group {
            number: self.groups + 1,
            stopped: finishing,
            ..Group::default()
        };
        let writer = self.writer();
        let replica = self.parts.identity.row.replica;
        let master = self.parts.store.master().clone();
        for (id, started) in &due.started {
            let Some(session) = self.sessions.get_mut(id) else {
                continue;
            };
            session.ensure_key(&master)?;
            let row = session.row(started, writer, replica);
            group
                .log
                .push(self.log.append("session_started", &Session::started_payload(&row)));
            group.started.push(row);
        }
        for (id, full) in std::mem::take(&mut due.full) {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            group.chunks.push(session.seal(full, &master).await?);
            let statements = std::mem::take(&mut session.new_statements);
            if statements > 0 && session.ended.is_none() {
                group.statements.push((id, statements));
            }
        }
        for (kind, payload) in &due.log {
            group.log.push(self.log.append(kind, payload));
        }
        for id in &due.ended {
            let Some(session) = self.sessions.get_mut(id) else {
                continue;
            };
            let Some((ended, offset_us)) = &session.ended else {
                continue;
            };
            let mut payload = session.head_payload();
            if let Some(payload) = payload.as_object_mut() {
                payload.insert("code".to_owned(), json!(text(&ended.code)));
                payload.insert("events".to_owned(), json!(session.last_event));
            }
            group.log.push(self.log.append("session_ended", &payload));
            group.ended.push(EndedRow {
                session: *id,
                offset_us: as_i64(*offset_us),
                code: text(&ended.code),
                message: text(&ended.message),
                statements: as_i64(ended.statements),
                client_bytes: as_i64(ended.client_bytes),
                target_bytes: as_i64(ended.target_bytes),
            });
            session.grown = false;
        }
        for (session, at_us) in std::mem::take(&mut due.given_up) {
            group.log.push(
                self.log
                    .append("session_given_up", &json!({"session": session, "code": "replica_lost"})),
            );
            group.given_up.push((session, at_us));
        }
        if finishing {
            group.log.push(self.log.append("writer_stopped", &json!({})));
        }
        if finishing || (self.has_news() && Instant::now() >= self.checkpoint_at) {
            self.add_checkpoint(&mut group).await;
        }
        if !group.is_empty() {
            self.commit(&group).await?;
        }
        self.settle(&group, due);
        Ok(())
    }

    /// Whether a checkpoint would say anything new.
    pub(super) fn has_news(&self) -> bool {
        self.log.has_grown() || self.sessions.values().any(|session| session.grown)
    }

    /// Puts the heads of all chains that have grown into the log, and signs the log's head.
    pub(super) async fn add_checkpoint(&mut self, group: &mut Group) {
        // Without the store's answer the checkpoint names no new ones of others; the next does.
        let others = match &self.client {
            Some(client) => self.log.others(client).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let grown: Vec<Value> = self
            .sessions
            .values_mut()
            .filter_map(|session| std::mem::take(&mut session.grown).then(|| session.head_payload()))
            .collect();
        if !grown.is_empty() {
            group
                .log
                .push(self.log.append("session_heads", &json!({"sessions": grown})));
        }
        group.checkpoint = Some(self.log.checkpoint(&self.parts.identity, &others));
        self.checkpoint_at = Instant::now() + Duration::from_millis(CHECKPOINT_INTERVAL_MS);
    }

    /// Commits the group, however long the store is away.
    pub(super) async fn commit(&mut self, group: &Group) -> Result<(), EvidenceError> {
        let writer = self.writer();
        let mut retry = Retry::new();
        loop {
            let client = self.connected().await;
            let began = Instant::now();
            let sent = timeout(Duration::from_millis(GROUP_TIMEOUT_MS), group.commit(client, writer)).await;
            let why = match sent {
                Ok(Ok(())) => {
                    STORE_COMMIT.observe(began.elapsed());
                    return Ok(());
                }
                Ok(Err(Failure::Contradicted(why))) => return Err(EvidenceError::Contradicted(why)),
                Ok(Err(Failure::Away(why))) => why,
                Err(_) => format!("no answer within {GROUP_TIMEOUT_MS} ms"),
            };
            STORE_COMMIT_FAILURES.inc();
            self.lost(why);
            retry.pause().await;
        }
    }

    /// After a commit: gives up in the journal what the store has, and answers who waited for it.
    pub(super) fn settle(&mut self, group: &Group, due: Due) {
        if !group.is_empty() {
            self.groups = group.number;
        }
        if let Some(checkpoint) = &group.checkpoint {
            self.checkpoint_file.append(checkpoint);
        }
        for ended in &group.ended {
            self.sessions.remove(&ended.session);
        }
        // Sessions of which old segments told nothing new are let go as well.
        self.sessions.retain(|_, session| !session.over);
        if let Some(journal) = &self.parts.journal {
            for chunk in &group.chunks {
                journal
                    .0
                    .strict_committed(&chunk.session, u64::try_from(chunk.last_event).unwrap_or(0));
            }
        }
        self.release_journal();
        for answer in due.answers {
            let _ = answer.send(());
        }
        for (count, answer) in due.counts {
            let _ = answer.send(count);
        }
        let flushes = std::mem::take(&mut self.flushes);
        for (targets, answer) in flushes {
            if targets.iter().all(|(progress, target)| progress.committed() >= *target) {
                let _ = answer.send(());
            } else {
                self.flushes.push((targets, answer));
            }
        }
    }

    /// Publishes how far each live source is committed, and deletes its files that are not needed any more.
    pub(super) fn release_journal(&self) {
        let Some(journal) = &self.parts.journal else { return };
        let mut lowest: Vec<u64> = self.sources.iter().map(Source::read_position).collect();
        for (source, at) in self.sessions.values().filter_map(Session::filling_place) {
            if let Some(lowest) = lowest.get_mut(source) {
                *lowest = at.min(*lowest);
            }
        }
        for (source, lowest) in self.sources.iter().zip(lowest) {
            let Some(progress) = source.progress() else { continue };
            let before = progress.committed();
            if lowest > before {
                progress.set_committed(lowest);
                journal.0.give_room(lowest - before);
            }
            if source.unreadable {
                continue;
            }
            for segment in progress.take_committed() {
                discard(&segment.path, source.was_damaged(&segment.path));
            }
        }
    }

    pub(super) fn all_is_committed(&self) -> bool {
        let live = self.sources.iter().filter_map(Source::progress);
        live.into_iter()
            .all(|progress| progress.committed() >= progress.written())
    }

    pub(super) async fn finish(&mut self) -> Result<(), EvidenceError> {
        self.commit_what_is_due(true).await?;
        self.show();
        if let Some(answer) = self.finish.take() {
            let _ = answer.send(());
        }
        Ok(())
    }
}
