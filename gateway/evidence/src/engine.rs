//! The writer's work: journal frames in, groups of rows out, in rounds.
//!
//! A round reads a bounded piece of every source, takes its events into their sessions' chunks, and commits all that is
//! due as one group. Nothing is given up in the journal before its group is committed. Everything here can be thrown
//! away and built anew from journal and store, which is what happens after a panic.

mod committing;
mod connection;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoop_proto::evidence::Started;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use hoop_store::Store;

use crate::EvidenceError;
use crate::checkpoint_file::CheckpointFile;
use crate::identity::Identity;
use crate::journal::{ArbiterProgress, FoundSegment, Journal};
use crate::log::{Log, hash};
use crate::replay::Replay;
use crate::segment::{self, ITEM_BEGIN, ITEM_EVENT};
use crate::session::{Full, Place, Session};
use crate::tail::{Damage, Read, Source};

/// A session's events are committed at most this long after they were written, in milliseconds.
const CHUNK_AGE_MS: u64 = 1_000;
/// While there is data, a round starts this long after the one before, in milliseconds.
const TICK_MS: u64 = 100;
/// Most that a round takes from the journal, in bytes after opening.
const ROUND_BYTES: usize = 1 << 20;
/// A checkpoint is signed this often while there is something new, in milliseconds.
pub const CHECKPOINT_INTERVAL_MS: u64 = 10_000;
/// Longest that the store may take for one group, in milliseconds.
const GROUP_TIMEOUT_MS: u64 = 60_000;
/// First and longest pause before the store is asked again, in milliseconds.
const RETRY_FROM_MS: u64 = 50;
const RETRY_MAX_MS: u64 = 2_000;
/// Sessions asked for in one query.
const SESSIONS_A_QUERY: usize = 1_000;

const KNOWN_SESSIONS: &str = "select s.id, s.wrapped_key, s.audit_mode, s.ended_at is not null and not s.end_provisional, \
     coalesce(c.seq, 0), coalesce(c.last_event, 0), c.hash from sessions s left join lateral \
     (select seq, last_event, hash from chunks where session = s.id order by seq desc limit 1) c on true \
     where s.id = any($1)";

const OPEN_SESSIONS_OF_REPLICA: &str = "select id from sessions where replica = $1 and ended_at is null";

/// What the writer is asked for. Answers come when the store has it.
pub(crate) enum Command {
    Flush(oneshot::Sender<()>),
    Log {
        kind: String,
        payload: Value,
        answer: oneshot::Sender<()>,
    },
    GiveUp {
        replica: Uuid,
        answer: oneshot::Sender<u64>,
    },
    Finish(oneshot::Sender<()>),
}

/// How the writer is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The store took the last group.
    pub connected: bool,
    /// Why not, if not.
    pub error: String,
    /// Segments of earlier incarnations are still being carried over.
    pub replaying: bool,
    /// Records in this writer's log.
    pub log_seq: i64,
    /// Sessions with an open record.
    pub sessions: usize,
    /// Bytes in the journal that the store does not have yet.
    pub journal_bytes: u64,
    pub journal_budget_bytes: u64,
}

/// What an engine is made from; outlives it.
pub(crate) struct Parts {
    pub store: Store,
    pub journal: Option<Journal>,
    /// Segments of earlier incarnations, where there is no journal of one's own (import).
    pub old: Vec<FoundSegment>,
    pub identity: Arc<Identity>,
    pub checkpoint_file: Option<PathBuf>,
    pub status: Arc<Mutex<Status>>,
}

pub(crate) struct Engine {
    pub(crate) parts: Parts,
    commands: mpsc::Receiver<Command>,
    pub(crate) client: Option<Client>,
    pub(crate) sources: Vec<Source>,
    pub(crate) replay: Replay,
    pub(crate) sessions: HashMap<Uuid, Session>,
    log: Log,
    groups: i64,
    checkpoint_at: Instant,
    checkpoint_file: CheckpointFile,
    pub(crate) due: Due,
    flushes: Vec<(Vec<Target>, oneshot::Sender<()>)>,
    finish: Option<oneshot::Sender<()>>,
}

/// What the next group must hold.
#[derive(Default)]
pub(crate) struct Due {
    full: Vec<(Uuid, Full)>,
    started: Vec<(Uuid, Started)>,
    ended: Vec<Uuid>,
    urgent: HashSet<Uuid>,
    pub(crate) log: Vec<(String, Value)>,
    given_up: Vec<(Uuid, i64)>,
    answers: Vec<oneshot::Sender<()>>,
    counts: Vec<(u64, oneshot::Sender<u64>)>,
}

/// A position of an arbiter that must be committed.
type Target = (Arc<ArbiterProgress>, u64);

struct Frame {
    source: usize,
    at: u64,
    payload: Vec<u8>,
}

impl Engine {
    pub fn new(parts: Parts, commands: mpsc::Receiver<Command>) -> Self {
        let old = match &parts.journal {
            Some(journal) => journal.0.old.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            None => parts.old.clone(),
        };
        let mut sources: Vec<Source> = Vec::new();
        for segment in old {
            match sources.last_mut() {
                Some(last) if last.continues_with(&segment) => last.add(segment),
                _ => sources.push(Source::old(segment.name.writer, vec![segment])),
            }
        }
        let writer = parts.identity.writer();
        let checkpoint_file = CheckpointFile::new(parts.checkpoint_file.clone());
        Self {
            replay: Replay::new(&sources),
            parts,
            commands,
            client: None,
            sources,
            sessions: HashMap::new(),
            log: Log::new(writer),
            groups: 0,
            checkpoint_at: Instant::now() + Duration::from_millis(CHECKPOINT_INTERVAL_MS),
            checkpoint_file,
            due: Due::default(),
            flushes: Vec::new(),
            finish: None,
        }
    }

    /// Works until it is told to finish, or the store contradicts it.
    pub async fn run(mut self) -> Result<(), EvidenceError> {
        self.register().await?;
        let mut busy = true;
        loop {
            let read = self.round().await?;
            self.replay_what_was_read().await?;
            if self.finish.is_some() && self.all_is_committed() {
                return self.finish().await;
            }
            let quiet = read == 0 && !busy;
            busy = read > 0;
            self.show();
            if self.has_more_now(read) {
                self.take_commands();
                continue;
            }
            self.wait(quiet).await;
        }
    }

    /// Reads and replays old segments until none are left, and finishes: what `import` does.
    pub async fn run_to_the_end_of_replay(mut self) -> Result<Replay, EvidenceError> {
        self.register().await?;
        while self.replay.is_open() {
            self.round().await?;
            self.replay_what_was_read().await?;
        }
        self.force_round().await?;
        let replay = std::mem::take(&mut self.replay);
        self.finish().await?;
        Ok(replay)
    }

    fn writer(&self) -> Uuid {
        self.parts.identity.writer()
    }

    // ---- waiting ----------------------------------------------------------------------------------------------------

    fn has_more_now(&self, read: usize) -> bool {
        read >= ROUND_BYTES
            || self
                .sources
                .iter()
                .any(|source| source.old_writer().is_some() && source.has_more())
    }

    async fn wait(&mut self, quiet: bool) {
        let Some(journal) = self.parts.journal.clone() else {
            return;
        };
        let asked = !self.flushes.is_empty() || self.finish.is_some();
        let tick = if quiet {
            None
        } else {
            Some(Instant::now() + Duration::from_millis(TICK_MS))
        };
        let chunk = self
            .sessions
            .values()
            .filter_map(Session::filling_since)
            .min()
            .map(|since| since + Duration::from_millis(CHUNK_AGE_MS));
        let checkpoint = self.has_news().then_some(self.checkpoint_at);
        let until = [tick, chunk, checkpoint].into_iter().flatten().min();
        let until = if asked {
            Some(Instant::now() + Duration::from_millis(1))
        } else {
            until
        };
        if quiet {
            journal.0.set_idle(true);
            self.find_live_sources();
            if self.sources.iter().any(Source::has_more) {
                journal.0.set_idle(false);
                return;
            }
        }
        tokio::select! {
            command = self.commands.recv() => {
                if let Some(command) = command {
                    self.hear(command);
                } else {
                    // Nobody can ask any more; the journal still has to be carried over.
                    sleep(Duration::from_millis(TICK_MS)).await;
                }
            }
            () = journal.0.wake.notified() => {}
            () = until_instant(until) => {}
        }
        journal.0.set_idle(false);
        self.take_commands();
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.hear(command);
        }
    }

    fn hear(&mut self, command: Command) {
        match command {
            Command::Flush(answer) => {
                self.find_live_sources();
                let targets = self.sources.iter().filter_map(Source::progress);
                let targets = targets
                    .map(|progress| (Arc::clone(progress), progress.written()))
                    .collect();
                self.flushes.push((targets, answer));
            }
            Command::Log { kind, payload, answer } => {
                self.due.log.push((kind, payload));
                self.due.answers.push(answer);
            }
            Command::GiveUp { replica, answer } => self.replay.give_up.push((replica, answer)),
            Command::Finish(answer) => self.finish = Some(answer),
        }
    }

    // ---- a round ----------------------------------------------------------------------------------------------------

    /// Reads, takes and commits. Answers how many bytes were read.
    pub(crate) async fn round(&mut self) -> Result<usize, EvidenceError> {
        self.find_live_sources();
        let frames = self.read_frames();
        let read = frames.iter().map(|frame| frame.payload.len()).sum();
        self.meet(&frames).await?;
        for frame in &frames {
            self.take_frame(frame);
        }
        self.give_up_lost_replicas().await?;
        let force = !self.flushes.is_empty() || self.finish.is_some();
        self.close_chunks(force);
        self.commit_what_is_due(false).await?;
        Ok(read)
    }

    /// Commits everything taken so far.
    pub(crate) async fn force_round(&mut self) -> Result<(), EvidenceError> {
        self.close_chunks(true);
        self.commit_what_is_due(false).await
    }

    fn find_live_sources(&mut self) {
        let Some(journal) = &self.parts.journal else { return };
        let known = self.sources.iter().filter(|source| source.progress().is_some()).count();
        let arbiters = journal.0.arbiters();
        self.sources.extend(
            arbiters
                .iter()
                .skip(known)
                .map(|progress| Source::live(Arc::clone(progress))),
        );
    }

    fn read_frames(&mut self) -> Vec<Frame> {
        let (mut frames, mut bytes) = (Vec::new(), 0);
        let master = self.parts.store.master();
        let fair = ROUND_BYTES / self.sources.len().max(1);
        for (index, source) in self.sources.iter_mut().enumerate() {
            let mut of_source = 0;
            while of_source <= fair && bytes < ROUND_BYTES {
                let mut payload = Vec::new();
                match source.next(master, &mut payload) {
                    Read::Frame { at } => {
                        of_source += payload.len();
                        bytes += payload.len();
                        frames.push(Frame {
                            source: index,
                            at,
                            payload,
                        });
                    }
                    Read::End => break,
                    Read::Damage(damage) => {
                        tracing::error!(
                            file = damage.file,
                            offset = damage.offset,
                            why = damage.why,
                            "journal damaged"
                        );
                        self.replay.damage += 1;
                        self.due
                            .log
                            .push(("journal_damaged".to_owned(), damage_payload(&damage)));
                    }
                }
            }
        }
        frames
    }

    /// Loads what the store knows of sessions that are met for the first time.
    async fn meet(&mut self, frames: &[Frame]) -> Result<(), EvidenceError> {
        let mut unseen: Vec<Uuid> = frames
            .iter()
            .flat_map(|frame| segment::items(&frame.payload))
            .map(|item| item.session)
            .filter(|session| !self.sessions.contains_key(session))
            .collect();
        unseen.sort_unstable();
        unseen.dedup();
        self.load_sessions(&unseen).await
    }

    pub(crate) async fn load_sessions(&mut self, ids: &[Uuid]) -> Result<(), EvidenceError> {
        for ids in ids.chunks(SESSIONS_A_QUERY) {
            let rows = self.query(KNOWN_SESSIONS, &ids.to_vec(), Type::UUID_ARRAY).await?;
            self.sessions.extend(ids.iter().map(|id| (*id, Session::new(*id))));
            for row in rows {
                let id: Uuid = row.get(0);
                let Some(session) = self.sessions.get_mut(&id) else {
                    continue;
                };
                if let Some(wrapped) = row.get::<_, Option<&[u8]>>(1) {
                    session.set_wrapped_key(wrapped);
                }
                session.known = true;
                session.mode = row.get::<_, &str>(2).parse().unwrap_or_default();
                session.over = row.get(3);
                session.chunk_seq = row.get(4);
                session.last_event = u64::try_from(row.get::<_, i64>(5)).unwrap_or(0);
                session.head = row.get::<_, Option<&[u8]>>(6).map_or(crate::chain::NO_HASH, hash);
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: &Frame) {
        for item in segment::items(&frame.payload) {
            match item.kind {
                ITEM_BEGIN => {
                    if let Some(session) = self.sessions.get_mut(&item.session) {
                        session.set_wrapped_key(item.body);
                    }
                }
                ITEM_EVENT => self.take_event(item.session, item.body, Some((frame.source, frame.at))),
                _ => {}
            }
        }
    }

    pub(crate) fn take_event(&mut self, id: Uuid, encoded: &[u8], place: Option<Place>) {
        let session = self.sessions.entry(id).or_insert_with(|| Session::new(id));
        let (before, had_ended) = (session.last_event, session.ended.is_some());
        let taken = session.take(encoded, place);
        if session.last_event == before {
            return;
        }
        self.due.full.extend(taken.full.into_iter().map(|full| (id, full)));
        if !session.known {
            // Where the record of the start was lost, the session is listed all the same.
            session.known = true;
            self.due.started.push((id, taken.started.unwrap_or_default()));
        }
        if let Some((from, to)) = taken.missing {
            tracing::error!(session = %id, from, to, "events are missing from the journal");
            self.due.log.push((
                "session_events_missing".to_owned(),
                json!({"session": id, "from": from, "to": to}),
            ));
        }
        if taken.urgent {
            self.due.urgent.insert(id);
        }
        if session.ended.is_some() && !had_ended {
            self.due.ended.push(id);
        }
    }

    fn close_chunks(&mut self, force: bool) {
        let old_enough = Duration::from_millis(CHUNK_AGE_MS);
        for (id, session) in &mut self.sessions {
            let Some(since) = session.filling_since() else { continue };
            if force || since.elapsed() >= old_enough || self.due.urgent.contains(id) {
                self.due.full.extend(session.take_full().map(|full| (*id, full)));
            }
        }
        self.due.urgent.clear();
    }
}

/// Deletes a segment that is in the store; one that was damaged is kept aside for whoever investigates.
pub(crate) fn discard(path: &PathBuf, damaged: bool) {
    let done = if damaged {
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        fs::rename(path, aside)
    } else {
        fs::remove_file(path)
    };
    if let Err(error) = done {
        tracing::warn!(path = %path.display(), %error, "a journal segment that is not needed any more stays");
    }
}

fn damage_payload(damage: &Damage) -> Value {
    json!({"file": damage.file, "offset": damage.offset, "why": damage.why})
}

async fn until_instant(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Growing pauses between attempts.
struct Retry(u64);

impl Retry {
    const fn new() -> Self {
        Self(RETRY_FROM_MS)
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.0)).await;
        self.0 = (self.0 * 2).min(RETRY_MAX_MS);
    }
}
