//! An arbiter's side of the journal: buffers what its sessions append and writes it, one `write` a commit.
//!
//! Everything here stays on one thread. It must not talk to the store: `AuditWriter` reads the files behind it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;
use hoop_actors::recorder::{Commit, FLUSH_INTERVAL_MS, RecordError, Recorder};
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Ended, Event, Started};
use hoop_store::seal::{AesKey, KEY_BYTES, KeyId, MasterKey};
use prost::Message;
use tokio::sync::Notify;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::timeout;
use uuid::Uuid;

use crate::journal::{ArbiterProgress, AuditMode, Shared, StrictProgress, WrittenSegment};
use crate::metrics::{JOURNAL_BYTES, JOURNAL_WRITE};
use crate::segment::{self, HEADER_BYTES, ITEM_BEGIN, ITEM_EVENT, Sealer, SegmentKey, SegmentName};

/// A buffer that has grown to this is written without waiting for a commit or the flush.
const WRITE_FROM_BYTES: usize = 256 * 1024;
/// Most that may be buffered while nothing can be written; then appending fails.
const BUFFER_MAX_BYTES: usize = 8 << 20;
/// On top of `BUFFER_MAX_BYTES`, for how sessions ended.
const BUFFER_ENDS_BYTES: usize = 1 << 20;
/// Largest event: its frame must stay well below `segment::FRAME_MAX_BYTES`.
const EVENT_MAX_BYTES: usize = 16 << 20;
/// After a failed write, how long before another segment is tried, in milliseconds.
const REOPEN_AFTER_MS: u64 = 1_000;
/// A buffer that has grown beyond this is given back when it is empty.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

/// The journal of one arbiter. Cheap to clone; not `Send`.
#[derive(Clone)]
pub struct ArbiterJournal(Rc<Local>);

struct Local {
    state: RefCell<State>,
    shared: Arc<Shared>,
    /// Tells waiting commits that an `fdatasync` has ended.
    synced: Notify,
}

struct State {
    shared: Arc<Shared>,
    progress: Arc<ArbiterProgress>,
    /// Items not yet written.
    payload: Vec<u8>,
    sealer: Sealer,
    open: Option<OpenSegment>,
    next_segment: u32,
    /// Position behind the last frame written, over all segments.
    position: u64,
    /// Why nothing can be written now, and when to try again.
    poisoned: Option<(RecordError, Instant)>,
    flusher_awake: bool,
    /// Wakes the flusher when the first event is buffered.
    buffered: Rc<Notify>,
    sessions: HashMap<Uuid, Rc<Numbering>>,
    sync: Sync,
}

struct OpenSegment {
    file: Arc<File>,
    path: PathBuf,
    key: SegmentKey,
    /// The master key that `key` is sealed under.
    sealed_under: KeyId,
    bytes: u64,
}

/// What has reached the disk itself.
#[derive(Default)]
struct Sync {
    /// Sessions of mode `synced`: only while there are some are rotated files kept for their `fdatasync`.
    sessions: usize,
    rotated: Vec<Arc<File>>,
    /// The folder's entry of the newest file has not been synced.
    folder_stale: bool,
    running: bool,
    /// Everything below this position is on the disk.
    position: u64,
    /// Positions below this one were lost to a failed `fdatasync`.
    failed: Option<(u64, RecordError)>,
}

/// A session's own count of events and time.
struct Numbering {
    next_seq: Cell<u64>,
    started: Instant,
    ended: Cell<bool>,
}

/// Why a write did not happen.
enum WriteError {
    /// The journal's byte budget is used up: wait for the store.
    Full,
    Failed(RecordError),
}

impl ArbiterJournal {
    pub(crate) fn start(shared: Arc<Shared>, progress: Arc<ArbiterProgress>) -> Self {
        let buffered = Rc::new(Notify::new());
        let state = State {
            shared: Arc::clone(&shared),
            progress,
            payload: Vec::new(),
            sealer: Sealer::default(),
            open: None,
            next_segment: 1,
            position: 0,
            poisoned: None,
            flusher_awake: false,
            buffered: Rc::clone(&buffered),
            sessions: HashMap::new(),
            sync: Sync::default(),
        };
        let local = Rc::new(Local {
            state: RefCell::new(state),
            shared,
            synced: Notify::new(),
        });
        spawn_local(flush_behind(Rc::downgrade(&local), buffered));
        Self(local)
    }

    /// Starts a session's record: makes its data key and appends `Started`. `started.session` must be the session's
    /// UUID; an absent start time is set to now, and `audit_mode` to `mode`. Nothing is written before the next commit.
    ///
    /// # Errors
    /// `RecordError` where the session has no id, is known already, or the journal takes nothing.
    pub fn begin(&self, mut started: Started, mode: AuditMode) -> Result<SessionRecorder, RecordError> {
        let session = Uuid::from_slice(&started.session)
            .map_err(|_| RecordError("a session's record needs the session's UUID".to_owned()))?;
        if started.started_at_us == 0 {
            started.started_at_us = now_us();
        }
        mode.as_str().clone_into(&mut started.audit_mode);
        let numbering = Rc::new(Numbering {
            next_seq: Cell::new(1),
            started: Instant::now(),
            ended: Cell::new(false),
        });
        {
            let mut state = self.0.state.borrow_mut();
            state.accepts(false)?;
            if state.sessions.contains_key(&session) {
                return Err(RecordError(format!("session {session} is being recorded already")));
            }
            let wrapped = wrapped_data_key(&self.0.shared.master, &session)?;
            segment::push_item(&mut state.payload, ITEM_BEGIN, &session, |out| {
                out.extend_from_slice(&wrapped)
            });
            state.push_event(&session, &numbering, Body::Started(started))?;
            state.sessions.insert(session, Rc::clone(&numbering));
            if mode == AuditMode::Synced {
                state.sync.sessions += 1;
            }
        }
        let strict = (mode == AuditMode::Strict).then(|| self.0.shared.add_strict(session));
        Ok(SessionRecorder {
            local: Rc::clone(&self.0),
            session,
            numbering,
            mode,
            strict,
        })
    }

    /// Appends a session's end, whether or not its recorder still lives. `Ok(false)`: it had ended already, or is not
    /// one of this arbiter's.
    ///
    /// # Errors
    /// `RecordError` where the journal takes nothing more.
    pub fn end(&self, session: &Uuid, ended: Ended) -> Result<bool, RecordError> {
        let mut state = self.0.state.borrow_mut();
        let Some(numbering) = state.sessions.get(session).cloned() else {
            return Ok(false);
        };
        state.accepts(true)?;
        state.push_event(session, &numbering, Body::Ended(ended))?;
        numbering.ended.set(true);
        state.sessions.remove(session);
        Ok(true)
    }

    /// Goes on in a new segment where the open one lies under another master key than the one that seals now. What is
    /// buffered, with data keys under the old one in it, goes to the old segment first.
    ///
    /// # Errors
    /// `RecordError` where what is buffered, or the new segment, cannot be written: ask again.
    pub fn follow_master_key(&self) -> Result<(), RecordError> {
        let mut state = self.0.state.borrow_mut();
        let sealing = self.0.shared.master.sealing();
        if state.open.as_ref().is_none_or(|open| open.sealed_under == sealing) {
            return Ok(());
        }
        state.write().map_err(WriteError::into_record_error)?;
        state.close_segment();
        state.ensure_open(0).map_err(WriteError::into_record_error)
    }

    /// Writes what is buffered now.
    ///
    /// # Errors
    /// `RecordError` where it cannot be written.
    pub fn flush(&self) -> Result<(), RecordError> {
        self.0.state.borrow_mut().write().map_err(WriteError::into_record_error)
    }
}

/// One session's record, on its arbiter.
pub struct SessionRecorder {
    local: Rc<Local>,
    session: Uuid,
    numbering: Rc<Numbering>,
    mode: AuditMode,
    strict: Option<Arc<StrictProgress>>,
}

impl SessionRecorder {
    #[must_use]
    pub const fn session(&self) -> Uuid {
        self.session
    }

    /// Appends the session's end.
    ///
    /// # Errors
    /// `RecordError` where the journal takes nothing more.
    pub fn end(&mut self, ended: Ended) -> Result<bool, RecordError> {
        ArbiterJournal(Rc::clone(&self.local)).end(&self.session, ended)
    }
}

impl Recorder for SessionRecorder {
    fn append(&mut self, body: Body) -> Result<(), RecordError> {
        if let Body::Ended(ended) = body {
            return self.end(ended).map(|_| ());
        }
        if self.numbering.ended.get() {
            return Err(RecordError("the session has ended".to_owned()));
        }
        let mut state = self.local.state.borrow_mut();
        state.accepts(false)?;
        state.push_event(&self.session, &self.numbering, body)?;
        if state.payload.len() >= WRITE_FROM_BYTES {
            match state.write() {
                Ok(()) | Err(WriteError::Full) => {}
                Err(WriteError::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<Commit, RecordError> {
        let written = self.local.state.borrow_mut().write();
        match written {
            Ok(()) if self.mode == AuditMode::Journalled => Ok(Commit::Done),
            Ok(()) => Ok(Commit::Wait(self.safe_as_asked())),
            Err(WriteError::Full) => {
                let local = Rc::clone(&self.local);
                let then = self.safe_as_asked();
                Ok(Commit::Wait(Box::pin(async move {
                    written_when_there_is_room(&local).await?;
                    then.await
                })))
            }
            Err(WriteError::Failed(error)) => Err(error),
        }
    }
}

impl SessionRecorder {
    /// Answers when all that was appended, once written, is as safe as the mode asks. The position is taken when the
    /// future is first polled.
    fn safe_as_asked(&self) -> LocalBoxFuture<'static, Result<(), RecordError>> {
        let local = Rc::clone(&self.local);
        match (self.mode, &self.strict) {
            (AuditMode::Strict, Some(strict)) => {
                let (strict, event) = (Arc::clone(strict), self.numbering.next_seq.get() - 1);
                Box::pin(async move { committed_in_the_store(&local.shared, &strict, event).await })
            }
            (AuditMode::Synced, _) => Box::pin(async move { on_the_disk(&local).await }),
            _ => Box::pin(async { Ok(()) }),
        }
    }
}

impl Drop for SessionRecorder {
    fn drop(&mut self) {
        if self.mode == AuditMode::Synced
            && let Ok(mut state) = self.local.state.try_borrow_mut()
        {
            state.sync.sessions = state.sync.sessions.saturating_sub(1);
            if state.sync.sessions == 0 {
                state.sync.rotated.clear();
            }
        }
        if self.strict.is_some() {
            self.local.shared.remove_strict(&self.session);
        }
    }
}

impl State {
    /// Whether another event may be buffered.
    fn accepts(&self, ends: bool) -> Result<(), RecordError> {
        if let Some((why, _)) = &self.poisoned
            && !ends
        {
            return Err(why.clone());
        }
        let room = if ends {
            BUFFER_MAX_BYTES + BUFFER_ENDS_BYTES
        } else {
            BUFFER_MAX_BYTES
        };
        if self.payload.len() >= room {
            return Err(RecordError(
                "the journal's buffer is full, for its byte budget is used up".to_owned(),
            ));
        }
        Ok(())
    }

    fn push_event(&mut self, session: &Uuid, numbering: &Numbering, body: Body) -> Result<(), RecordError> {
        let before = self.payload.len();
        let seq = numbering.next_seq.get();
        numbering.next_seq.set(seq + 1);
        let offset_us = u64::try_from(numbering.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let event = Event {
            seq,
            offset_us,
            body: Some(body),
        };
        segment::push_item(&mut self.payload, ITEM_EVENT, session, |out| {
            // A Vec grows as needed, so that this cannot fail.
            let _ = event.encode(out);
        });
        if self.payload.len() - before > EVENT_MAX_BYTES {
            self.payload.truncate(before);
            numbering.next_seq.set(seq);
            return Err(RecordError(format!("an event is larger than {EVENT_MAX_BYTES} bytes")));
        }
        if !self.flusher_awake {
            self.flusher_awake = true;
            self.buffered.notify_one();
        }
        Ok(())
    }

    /// Writes everything buffered as one frame with one `write`.
    fn write(&mut self) -> Result<(), WriteError> {
        if self.payload.is_empty() {
            return Ok(());
        }
        let estimate = self.payload.len() as u64;
        if !self.shared.has_room(estimate) {
            return Err(WriteError::Full);
        }
        self.ensure_open(estimate)?;
        let Some(open) = &mut self.open else {
            return Err(WriteError::Failed(closed()));
        };
        let began = Instant::now();
        let frame = self
            .sealer
            .frame(&open.key, open.bytes, &self.payload)
            .map_err(|error| WriteError::Failed(failed(&error)))?;
        let mut file = &*open.file;
        match file.write_all(frame) {
            Ok(()) => {
                let bytes = frame.len() as u64;
                JOURNAL_WRITE.observe(began.elapsed());
                JOURNAL_BYTES.add(bytes);
                open.bytes += bytes;
                self.position += bytes;
                self.shared.take_room(bytes);
                self.payload.clear();
                if self.payload.capacity() > BUFFER_KEEP_BYTES {
                    self.payload.shrink_to(BUFFER_KEEP_BYTES);
                }
                self.progress.set_written(self.position);
                self.shared.written();
                Ok(())
            }
            Err(error) => {
                // What was written of the frame is cut off again, so that the segment still ends with a whole frame; if
                // even that fails, its reader reports the rest as damaged.
                let _ = open.file.set_len(open.bytes);
                Err(WriteError::Failed(self.poison(&error)))
            }
        }
    }

    /// Sees that a segment is open that has room for `bytes`.
    fn ensure_open(&mut self, bytes: u64) -> Result<(), WriteError> {
        if let Some((why, retry_at)) = &self.poisoned {
            if Instant::now() < *retry_at {
                return Err(WriteError::Failed(why.clone()));
            }
            self.poisoned = None;
        }
        let full = self.open.as_ref().is_some_and(|open| {
            open.bytes > HEADER_BYTES as u64 && open.bytes + bytes > self.shared.config.segment_bytes
        });
        if full {
            self.close_segment();
        }
        if self.open.is_none() {
            match self.create() {
                Ok(open) => {
                    self.progress.add_segment(WrittenSegment {
                        path: open.path.clone(),
                        base: self.position,
                        sealed_under: open.sealed_under.clone(),
                    });
                    self.position += open.bytes;
                    self.shared.take_room(open.bytes);
                    self.sync.folder_stale = true;
                    self.open = Some(open);
                }
                Err(error) => return Err(WriteError::Failed(self.poison(&error))),
            }
        }
        Ok(())
    }

    fn close_segment(&mut self) {
        if let Some(old) = self.open.take()
            && self.sync.sessions > 0
        {
            self.sync.rotated.push(old.file);
        }
    }

    fn create(&mut self) -> io::Result<OpenSegment> {
        let name = SegmentName {
            writer: self.shared.writer,
            arbiter: self.progress.number,
            number: self.next_segment,
        };
        // A number is never used twice: a half-made file of it may be lying there.
        self.next_segment += 1;
        let path = self.shared.config.dir.join(name.file_name());
        // a key that is replaced in between is noticed: the segment is taken for one of the older key
        let sealed_under = self.shared.master.sealing();
        let (header, key) = segment::make_header(&name, now_us(), &self.shared.master).map_err(io::Error::other)?;
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all(&header) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(OpenSegment {
            file: Arc::new(file),
            path,
            key,
            sealed_under,
            bytes: header.len() as u64,
        })
    }

    /// Gives the open segment up. What is buffered stays, and goes to the next segment that can be opened.
    fn poison(&mut self, error: &io::Error) -> RecordError {
        let why = failed(error);
        tracing::error!(arbiter = self.progress.number, %error, "the journal cannot be written");
        // what was written to it before still has to reach the disk
        if let Some(open) = self.open.take() {
            self.sync.rotated.push(open.file);
        }
        self.poisoned = Some((why.clone(), Instant::now() + Duration::from_millis(REOPEN_AFTER_MS)));
        why
    }

    /// What has to be synced so that everything below the answered position is on the disk.
    fn start_sync(&mut self) -> (u64, Vec<Arc<File>>, Option<PathBuf>) {
        self.sync.running = true;
        let mut files = std::mem::take(&mut self.sync.rotated);
        files.extend(self.open.as_ref().map(|open| Arc::clone(&open.file)));
        let folder = std::mem::take(&mut self.sync.folder_stale).then(|| self.shared.config.dir.clone());
        (self.position, files, folder)
    }

    fn end_sync(&mut self, position: u64, result: io::Result<()>) {
        self.sync.running = false;
        match result {
            Ok(()) => self.sync.position = self.sync.position.max(position),
            Err(error) => {
                // After a failed fdatasync the kernel may have dropped the pages: the file is not asked again.
                let why = self.poison(&error);
                self.sync.rotated.clear();
                // frames that were written to it meanwhile are lost with it
                self.sync.failed = Some((self.position, why));
                self.sync.position = self.sync.position.max(self.position);
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Err(error) = self.write().map_err(WriteError::into_record_error) {
            tracing::error!(arbiter = self.progress.number, %error, "what was still buffered is lost");
        }
        self.progress.close();
        self.shared.wake.notify_one();
    }
}

impl WriteError {
    fn into_record_error(self) -> RecordError {
        match self {
            Self::Full => RecordError("the journal's byte budget is used up, for the store is away".to_owned()),
            Self::Failed(error) => error,
        }
    }
}

/// Writes what was appended and not committed, `FLUSH_INTERVAL_MS` after the first of it. Sleeps while nothing is
/// buffered.
async fn flush_behind(local: Weak<Local>, buffered: Rc<Notify>) {
    loop {
        buffered.notified().await;
        loop {
            tokio::time::sleep(Duration::from_millis(FLUSH_INTERVAL_MS)).await;
            let Some(local) = local.upgrade() else { return };
            let mut state = local.state.borrow_mut();
            // A failure has been logged; the sessions learn of it at their next append or commit.
            let _ = state.write();
            if state.payload.is_empty() {
                state.flusher_awake = false;
                break;
            }
        }
    }
}

/// Waits until the byte budget has room again, and writes.
async fn written_when_there_is_room(local: &Rc<Local>) -> Result<(), RecordError> {
    let waited = timeout(local.shared.reserve_wait(), async {
        loop {
            let space = local.shared.space.notified();
            tokio::pin!(space);
            space.as_mut().enable();
            let written = local.state.borrow_mut().write();
            match written {
                Ok(()) => return Ok(()),
                Err(WriteError::Failed(error)) => return Err(error),
                Err(WriteError::Full) => space.await,
            }
        }
    })
    .await;
    waited.unwrap_or_else(|_| Err(WriteError::Full.into_record_error()))
}

async fn committed_in_the_store(shared: &Shared, strict: &StrictProgress, event: u64) -> Result<(), RecordError> {
    shared.wake.notify_one();
    let waited = timeout(shared.reserve_wait(), async {
        loop {
            let moved = strict.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if strict.committed_event.load(Ordering::Acquire) >= event {
                return;
            }
            moved.await;
        }
    })
    .await;
    waited.map_err(|_| RecordError("the store does not take the record, and the connection asks for it".to_owned()))
}

/// Waits until everything written so far is on the disk. One `fdatasync` serves all that wait.
async fn on_the_disk(local: &Rc<Local>) -> Result<(), RecordError> {
    let wanted = local.state.borrow().position;
    loop {
        let synced = local.synced.notified();
        tokio::pin!(synced);
        synced.as_mut().enable();
        let start = {
            let mut state = local.state.borrow_mut();
            if let Some((position, why)) = &state.sync.failed
                && wanted <= *position
            {
                return Err(why.clone());
            }
            if state.sync.position >= wanted {
                return Ok(());
            }
            (!state.sync.running).then(|| state.start_sync())
        };
        if let Some((position, files, folder)) = start {
            let local = Rc::clone(local);
            // A task of its own: the session that waits first may be ended while the disk works for all.
            spawn_local(async move {
                let result = spawn_blocking(move || sync_all(&files, folder)).await;
                let result = result.unwrap_or_else(|error| Err(io::Error::other(error)));
                local.state.borrow_mut().end_sync(position, result);
                local.synced.notify_waiters();
            });
        }
        synced.await;
    }
}

fn sync_all(files: &[Arc<File>], folder: Option<PathBuf>) -> io::Result<()> {
    for file in files {
        file.sync_data()?;
    }
    match folder {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// A fresh data key for `session`, wrapped by the master key.
fn wrapped_data_key(master: &MasterKey, session: &Uuid) -> Result<Vec<u8>, RecordError> {
    let no_key = |_| RecordError("no data key could be made for the session".to_owned());
    let raw = MasterKey::generate().map_err(no_key)?;
    master.seal(&data_key_name(session), &raw).map_err(no_key)
}

/// The session's data key, opened.
pub(crate) fn open_data_key(master: &MasterKey, session: &Uuid, wrapped: &[u8]) -> Option<AesKey> {
    let raw = master.open(&data_key_name(session), wrapped).ok()?;
    debug_assert_eq!(raw.len(), KEY_BYTES);
    AesKey::new(&raw).ok()
}

fn data_key_name(session: &Uuid) -> String {
    format!("session/{session}")
}

pub(crate) fn now_us() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_micros()).unwrap_or(0)
}

fn failed(error: &io::Error) -> RecordError {
    RecordError(format!("the journal cannot be written: {error}"))
}

fn closed() -> RecordError {
    RecordError("the journal is closed".to_owned())
}
