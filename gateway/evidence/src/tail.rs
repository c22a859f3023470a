//! Reads what arbiters have written, frame by frame, behind them: a live arbiter's segments up to what it has published,
//! or the segments that an earlier incarnation left.
//!
//! It must not know what the frames mean, nor delete anything that is not taken over.

use std::path::PathBuf;
use std::sync::Arc;

use hoop_store::seal::MasterKey;
use uuid::Uuid;

use crate::journal::{ArbiterProgress, FoundSegment, WrittenSegment};
use crate::segment::{Met, SegmentError, SegmentReader};

/// What reading one frame came to.
pub(crate) enum Read {
    /// A frame; its payload is in the buffer. `at` is its position in the source.
    Frame { at: u64 },
    /// Nothing more now (a live source), or ever (an old one).
    End,
    /// Evidence is missing here. Reading can go on.
    Damage(Damage),
}

#[derive(Debug, Clone)]
pub(crate) struct Damage {
    pub file: String,
    pub offset: u64,
    pub why: String,
}

/// One arbiter's frames, in order. Positions count the bytes of its files, one after the other.
pub(crate) struct Source {
    kind: Kind,
    reader: Option<Current>,
    read: u64,
    /// Files that are not what was written; they are kept aside instead of deleted.
    damaged: Vec<PathBuf>,
    /// A file could not be read at all (another master key, say): nothing of this source may be given up.
    pub unreadable: bool,
}

enum Kind {
    Live(Arc<ArbiterProgress>),
    Old {
        writer: Uuid,
        segments: Vec<FoundSegment>,
        next: usize,
    },
}

struct Current {
    reader: SegmentReader,
    path: PathBuf,
    base: u64,
}

impl Source {
    /// Goes on where the store has got to.
    pub fn live(progress: Arc<ArbiterProgress>) -> Self {
        let read = progress.committed();
        Self {
            kind: Kind::Live(progress),
            reader: None,
            read,
            damaged: Vec::new(),
            unreadable: false,
        }
    }

    /// `segments`: all of one writer and arbiter, in order.
    pub const fn old(writer: Uuid, segments: Vec<FoundSegment>) -> Self {
        let kind = Kind::Old {
            writer,
            segments,
            next: 0,
        };
        Self {
            kind,
            reader: None,
            read: 0,
            damaged: Vec::new(),
            unreadable: false,
        }
    }

    /// Whether `segment` is of the same earlier writer and arbiter.
    pub fn continues_with(&self, segment: &FoundSegment) -> bool {
        match &self.kind {
            Kind::Live(_) => false,
            Kind::Old { segments, .. } => segments.last().is_some_and(|last| {
                (last.name.writer, last.name.arbiter) == (segment.name.writer, segment.name.arbiter)
            }),
        }
    }

    /// Adds an old source's next segment.
    pub fn add(&mut self, segment: FoundSegment) {
        if let Kind::Old { segments, .. } = &mut self.kind {
            segments.push(segment);
        }
    }

    pub const fn progress(&self) -> Option<&Arc<ArbiterProgress>> {
        match &self.kind {
            Kind::Live(progress) => Some(progress),
            Kind::Old { .. } => None,
        }
    }

    pub const fn old_writer(&self) -> Option<Uuid> {
        match &self.kind {
            Kind::Live(_) => None,
            Kind::Old { writer, .. } => Some(*writer),
        }
    }

    /// Everything below this position has been read.
    pub const fn read_position(&self) -> u64 {
        self.read
    }

    pub fn has_more(&self) -> bool {
        match &self.kind {
            Kind::Live(progress) => progress.written() > self.read,
            Kind::Old { segments, next, .. } => self.reader.is_some() || *next < segments.len(),
        }
    }

    /// An old source's files, and whether each was damaged.
    pub fn old_files(&self) -> Vec<(PathBuf, u64, bool)> {
        match &self.kind {
            Kind::Live(_) => Vec::new(),
            Kind::Old { segments, .. } => segments
                .iter()
                .map(|segment| {
                    (
                        segment.path.clone(),
                        segment.bytes,
                        self.damaged.contains(&segment.path),
                    )
                })
                .collect(),
        }
    }

    /// Whether a live source's file was found damaged.
    pub fn was_damaged(&self, path: &PathBuf) -> bool {
        self.damaged.contains(path)
    }

    /// The next frame.
    pub fn next(&mut self, master: &MasterKey, payload: &mut Vec<u8>) -> Read {
        loop {
            let (limit, last) = match &self.kind {
                Kind::Live(progress) => {
                    let written = progress.written();
                    if written <= self.read {
                        return Read::End;
                    }
                    match self.live_segment(progress, written, master) {
                        Ok(Some((current, limit))) => {
                            self.reader = Some(current);
                            (limit, false)
                        }
                        Ok(None) => (self.live_limit(progress, written), false),
                        Err(damage) => {
                            self.unreadable = true;
                            self.read = written;
                            return Read::Damage(damage);
                        }
                    }
                }
                Kind::Old { segments, next, .. } => {
                    if self.reader.is_none() {
                        let Some(segment) = segments.get(*next).cloned() else {
                            return Read::End;
                        };
                        let base = segments.iter().take(*next).map(|segment| segment.bytes).sum();
                        self.advance_old();
                        match SegmentReader::open(&segment.path, master) {
                            Ok(Some(reader)) => {
                                self.reader = Some(Current {
                                    reader,
                                    path: segment.path,
                                    base,
                                })
                            }
                            // No whole header: nothing in it was ever acknowledged.
                            Ok(None) => continue,
                            Err(error) => {
                                self.unreadable = true;
                                return Read::Damage(Damage::of(&segment.path, &error));
                            }
                        }
                        continue;
                    }
                    let read_now = next.saturating_sub(1);
                    (
                        segments.get(read_now).map_or(0, |segment| segment.bytes),
                        *next >= segments.len(),
                    )
                }
            };
            let live = matches!(self.kind, Kind::Live(_));
            let Some(current) = &mut self.reader else {
                return Read::End;
            };
            let at = current.base + current.reader.offset();
            match current.reader.next(limit, last, payload) {
                Ok(Met::Frame) => {
                    self.read = current.base + current.reader.offset();
                    return Read::Frame { at };
                }
                Ok(Met::End | Met::Torn) => {
                    self.read = current.base + limit;
                    if live && self.read >= self.progress().map_or(0, |progress| progress.written()) {
                        return Read::End;
                    }
                    self.reader = None;
                }
                Ok(Met::Damaged { offset, why }) => {
                    self.read = current.base + current.reader.offset();
                    let damage = Damage {
                        file: current.path.display().to_string(),
                        offset,
                        why: why.to_owned(),
                    };
                    let path = current.path.clone();
                    if !self.damaged.contains(&path) {
                        self.damaged.push(path);
                    }
                    return Read::Damage(damage);
                }
                Err(error) => {
                    let damage = Damage::of(&current.path, &error);
                    self.unreadable = true;
                    self.read = current.base + limit;
                    self.reader = None;
                    return Read::Damage(damage);
                }
            }
        }
    }

    fn advance_old(&mut self) {
        if let Kind::Old { next, .. } = &mut self.kind {
            *next += 1;
        }
    }

    /// The file that holds the read position, opened there, if it is not the current one.
    fn live_segment(
        &self,
        progress: &ArbiterProgress,
        written: u64,
        master: &MasterKey,
    ) -> Result<Option<(Current, u64)>, Damage> {
        let segments = progress.segments();
        let Some((segment, end)) = segment_at(&segments, self.read, written) else {
            return Ok(None);
        };
        if self.reader.as_ref().is_some_and(|current| current.base == segment.base) {
            return Ok(None);
        }
        match SegmentReader::open(&segment.path, master) {
            Ok(Some(mut reader)) => {
                reader.seek(self.read - segment.base);
                let current = Current {
                    reader,
                    path: segment.path.clone(),
                    base: segment.base,
                };
                Ok(Some((current, end - segment.base)))
            }
            Ok(None) => Err(Damage {
                file: segment.path.display().to_string(),
                offset: 0,
                why: "its header is gone".to_owned(),
            }),
            Err(error) => Err(Damage::of(&segment.path, &error)),
        }
    }

    fn live_limit(&self, progress: &ArbiterProgress, written: u64) -> u64 {
        let segments = progress.segments();
        segment_at(&segments, self.read, written).map_or(0, |(segment, end)| end - segment.base)
    }
}

/// The segment that holds `position`, and where its bytes end.
fn segment_at(segments: &[WrittenSegment], position: u64, written: u64) -> Option<(&WrittenSegment, u64)> {
    let index = segments.iter().rposition(|segment| segment.base <= position)?;
    let end = segments.get(index + 1).map_or(written, |next| next.base.min(written));
    Some((segments.get(index)?, end))
}

impl Damage {
    fn of(path: &std::path::Path, error: &SegmentError) -> Self {
        Self {
            file: path.display().to_string(),
            offset: 0,
            why: error.to_string(),
        }
    }
}
