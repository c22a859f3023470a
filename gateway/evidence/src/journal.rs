//! The journal's folder: its lock, its budget, what each arbiter has written and what the store has taken over.
//!
//! It must not write events (`arbiter` does) nor read them (`tail` does); it is what those two share across threads.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hoop_store::seal::{KeyId, MasterKey};
use thiserror::Error;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::arbiter::ArbiterJournal;
use crate::segment::SegmentName;

/// Default of `JournalConfig::budget_bytes`.
pub const BUDGET_DEFAULT_BYTES: u64 = 4 << 30;
/// Default of `JournalConfig::segment_bytes`.
pub const SEGMENT_DEFAULT_BYTES: u64 = 64 << 20;
/// Default of `JournalConfig::reserve_wait_ms`.
pub const RESERVE_WAIT_DEFAULT_MS: u64 = 30_000;

/// How safe a statement's attempt is before the statement is forwarded (DESIGN §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditMode {
    /// In the journal file: survives the death of every process.
    #[default]
    Journalled,
    /// And on the disk: survives power loss.
    Synced,
    /// Committed in PostgreSQL.
    Strict,
}

impl AuditMode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Journalled => "journalled",
            Self::Synced => "synced",
            Self::Strict => "strict",
        }
    }
}

impl FromStr for AuditMode {
    type Err = String;

    fn from_str(mode: &str) -> Result<Self, String> {
        match mode {
            "journalled" => Ok(Self::Journalled),
            "synced" => Ok(Self::Synced),
            "strict" => Ok(Self::Strict),
            other => Err(format!("{other:?} is no audit mode; give journalled, synced or strict")),
        }
    }
}

#[derive(Debug, Error)]
pub enum JournalError {
    #[error("cannot {operation} the journal folder {path}")]
    Io {
        operation: &'static str,
        path: String,
        source: std::io::Error,
    },
    #[error("the journal folder {path} is in use by another process")]
    Locked { path: String },
}

#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// Id of this incarnation's writer: its replica's id, or a fresh one.
    pub writer: Uuid,
    /// Made if it is not there, of mode 0700.
    pub dir: PathBuf,
    /// Most bytes that may lie in the journal and not yet in the store.
    pub budget_bytes: u64,
    /// A segment is followed by the next when it would exceed this.
    pub segment_bytes: u64,
    /// How many arbiters write.
    pub arbiters: u32,
    /// How long a commit waits while the budget is used up, or for the store in mode `strict`, before it fails.
    pub reserve_wait_ms: u64,
}

impl JournalConfig {
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, arbiters: u32) -> Self {
        Self {
            writer: Uuid::now_v7(),
            dir: dir.into(),
            budget_bytes: BUDGET_DEFAULT_BYTES,
            segment_bytes: SEGMENT_DEFAULT_BYTES,
            arbiters,
            reserve_wait_ms: RESERVE_WAIT_DEFAULT_MS,
        }
    }
}

/// An open journal. Cheap to clone; the folder stays locked until the last clone is gone.
#[derive(Clone)]
pub struct Journal(pub(crate) Arc<Shared>);

impl Journal {
    /// Locks the folder and finds the segments that earlier incarnations left. They wait for `AuditWriter`.
    ///
    /// # Errors
    /// `JournalError` where the folder cannot be made, read or locked.
    pub fn open(config: JournalConfig, master: MasterKey) -> Result<Self, JournalError> {
        Ok(Self(Arc::new(Shared::open(config, master)?)))
    }

    /// This incarnation's id: that of its writer too.
    #[must_use]
    pub fn writer(&self) -> Uuid {
        self.0.writer
    }

    /// The journal of arbiter `number`. Call it on that arbiter, within its `LocalSet`, once.
    #[must_use]
    pub fn arbiter(&self, number: u32) -> ArbiterJournal {
        let progress = Arc::new(ArbiterProgress::new(number));
        self.0.arbiters().push(Arc::clone(&progress));
        ArbiterJournal::start(Arc::clone(&self.0), progress)
    }

    /// Under which master keys the files lie that are written to, or are not wholly in the store.
    #[must_use]
    pub fn sealed_under(&self) -> Vec<KeyId> {
        let mut keys: Vec<KeyId> = self
            .0
            .arbiters()
            .iter()
            .flat_map(|arbiter| arbiter.needed_keys())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Bytes written and not yet taken over by the store.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.0.config.budget_bytes
    }
}

/// A segment file as it lies in a folder.
#[derive(Debug, Clone)]
pub(crate) struct FoundSegment {
    pub name: SegmentName,
    pub path: PathBuf,
    pub bytes: u64,
}

/// What the arbiters and the writer share.
pub(crate) struct Shared {
    pub config: JournalConfig,
    pub master: MasterKey,
    pub writer: Uuid,
    /// Held for its lock.
    _lock: File,
    used_bytes: AtomicU64,
    /// The writer has read everything and waits to be woken.
    idle: AtomicBool,
    /// Wakes the writer.
    pub wake: Notify,
    /// Tells waiting commits that the store has taken bytes over.
    pub space: Notify,
    arbiters: Mutex<Vec<Arc<ArbiterProgress>>>,
    strict: Mutex<HashMap<Uuid, Arc<StrictProgress>>>,
    /// Segments of earlier incarnations that are still to be replayed.
    pub old: Mutex<Vec<FoundSegment>>,
}

impl Shared {
    fn open(config: JournalConfig, master: MasterKey) -> Result<Self, JournalError> {
        let failed = |operation| {
            let path = config.dir.display().to_string();
            move |source| JournalError::Io {
                operation,
                path,
                source,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.dir)
            .map_err(failed("make"))?;
        let lock = lock(&config.dir)?;
        let old = find_segments(&config.dir).map_err(failed("read"))?;
        let used = old.iter().map(|segment| segment.bytes).sum();
        Ok(Self {
            writer: config.writer,
            config,
            master,
            _lock: lock,
            used_bytes: AtomicU64::new(used),
            idle: AtomicBool::new(false),
            wake: Notify::new(),
            space: Notify::new(),
            arbiters: Mutex::new(Vec::new()),
            strict: Mutex::new(HashMap::new()),
            old: Mutex::new(old),
        })
    }

    /// True where `bytes` more fit into the budget.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.used_bytes.load(Ordering::Acquire) + bytes <= self.config.budget_bytes
    }

    pub fn take_room(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub fn give_room(&self, bytes: u64) {
        if bytes > 0 {
            let _ = self
                .used_bytes
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                    Some(used.saturating_sub(bytes))
                });
            self.space.notify_waiters();
        }
    }

    pub fn reserve_wait(&self) -> Duration {
        Duration::from_millis(self.config.reserve_wait_ms)
    }

    pub fn arbiters(&self) -> MutexGuard<'_, Vec<Arc<ArbiterProgress>>> {
        self.arbiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by an arbiter after each write: wakes the writer if it sleeps.
    pub fn written(&self) {
        if self.idle.load(Ordering::SeqCst) && self.idle.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Called by the writer before it looks a last time and then sleeps.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }

    pub fn add_strict(&self, session: Uuid) -> Arc<StrictProgress> {
        let progress = Arc::new(StrictProgress::default());
        self.strict_map().insert(session, Arc::clone(&progress));
        progress
    }

    pub fn remove_strict(&self, session: &Uuid) {
        self.strict_map().remove(session);
    }

    /// Called by the writer when `session`'s events up to `event` are committed in the store.
    pub fn strict_committed(&self, session: &Uuid, event: u64) {
        if let Some(progress) = self.strict_map().get(session) {
            progress.committed_event.store(event, Ordering::Release);
            progress.moved.notify_waiters();
        }
    }

    fn strict_map(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<StrictProgress>>> {
        self.strict.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a session of mode `strict` is committed in the store.
#[derive(Default)]
pub(crate) struct StrictProgress {
    pub committed_event: AtomicU64,
    pub moved: Notify,
}

/// One arbiter's segments. Positions count all file bytes this arbiter has written, over its segments.
pub(crate) struct ArbiterProgress {
    pub number: u32,
    written: AtomicU64,
    committed: AtomicU64,
    segments: Mutex<Vec<WrittenSegment>>,
    closed: AtomicBool,
}

#[derive(Debug, Clone)]
pub(crate) struct WrittenSegment {
    pub path: PathBuf,
    /// Position of the file's first byte.
    pub base: u64,
    /// The master key that its own key is sealed under.
    pub sealed_under: KeyId,
}

impl ArbiterProgress {
    fn new(number: u32) -> Self {
        Self {
            number,
            written: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            segments: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
        }
    }

    /// Everything below this position is in the files.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    pub fn set_written(&self, position: u64) {
        self.written.store(position, Ordering::SeqCst);
    }

    /// Everything below this position is in the store.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub fn set_committed(&self, position: u64) {
        self.committed.store(position, Ordering::Release);
    }

    /// No more will be written.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn add_segment(&self, segment: WrittenSegment) {
        self.list().push(segment);
    }

    pub fn segments(&self) -> Vec<WrittenSegment> {
        self.list().clone()
    }

    /// Of the segments that are not wholly below the committed position, and of the newest.
    fn needed_keys(&self) -> Vec<KeyId> {
        let committed = self.committed();
        let list = self.list();
        let ends = list.iter().skip(1).map(|next| next.base).chain([u64::MAX]);
        let needed = list.iter().zip(ends).filter(|(_, end)| *end > committed);
        needed.map(|(segment, _)| segment.sealed_under.clone()).collect()
    }

    /// Takes the segments that are wholly below the committed position out of the list: they may be deleted. The newest
    /// stays, until the arbiter is closed.
    pub fn take_committed(&self) -> Vec<WrittenSegment> {
        let committed = self.committed();
        let mut list = self.list();
        let mut done = list.iter().skip(1).take_while(|next| next.base <= committed).count();
        if self.closed() && committed >= self.written() {
            done = list.len();
        }
        list.drain(..done).collect()
    }

    fn list(&self) -> MutexGuard<'_, Vec<WrittenSegment>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a journal folder for this process; the lock goes with the file.
pub(crate) fn lock(dir: &Path) -> Result<File, JournalError> {
    let shown = || dir.display().to_string();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(|source| JournalError::Io {
            operation: "lock",
            path: shown(),
            source,
        })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::Locked { path: shown() }),
        Err(TryLockError::Error(source)) => Err(JournalError::Io {
            operation: "lock",
            path: shown(),
            source,
        }),
    }
}

/// The segments of a folder, each writer's and arbiter's in the order in which they were written.
pub(crate) fn find_segments(dir: &Path) -> std::io::Result<Vec<FoundSegment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().and_then(SegmentName::parse) {
            found.push(FoundSegment {
                name,
                path: entry.path(),
                bytes: entry.metadata()?.len(),
            });
        }
    }
    found.sort_by_key(|segment| segment.name);
    Ok(found)
}
