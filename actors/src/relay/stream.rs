//! One direction of a statement's data, its result or its input: how much of it is recorded, and what all of it was.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use hoop_proto::event::StatementId;
use hoop_proto::evidence::Cut;
use smallvec::SmallVec;

use super::ledger::{RecordLimits, RecordMode};

/// Data up to this size is kept until its statement ends rather than hashed, for most is not cut.
const UNHASHED_BYTES: usize = 16 * 1024;
/// And in so many pieces at most.
const UNHASHED_PIECES: usize = 8;

/// Counts, and the hash of everything, for a cut to tell.
pub(super) struct Stream {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    recorded_bytes: u64,
    /// The limit that was hit.
    cut: Option<&'static str>,
    hash: Hash,
}

/// What of a piece is recorded.
pub(super) struct Taken {
    pub(super) kept: Bytes,
    /// The limit that this piece has hit, of those that are told at once.
    pub(super) cut: Option<&'static str>,
    /// Recorded of the statement so far, this piece included.
    pub(super) recorded_bytes: u64,
}

/// All of the bytes, hashed only once there are enough of them that it may matter.
enum Hash {
    Kept { pieces: SmallVec<[Bytes; 2]>, bytes: usize },
    Running(Box<Context>),
}

impl Hash {
    fn update(&mut self, piece: &Bytes) {
        match self {
            Self::Kept { pieces, bytes }
                if *bytes + piece.len() <= UNHASHED_BYTES && pieces.len() < UNHASHED_PIECES =>
            {
                *bytes += piece.len();
                pieces.push(piece.clone());
            }
            Self::Kept { pieces, .. } => {
                let mut context = Box::new(Context::new(&SHA256));
                pieces.iter().for_each(|kept| context.update(kept));
                context.update(piece);
                *self = Self::Running(context);
            }
            Self::Running(context) => context.update(piece),
        }
    }

    fn finish(self) -> Bytes {
        let context = match self {
            Self::Running(context) => *context,
            Self::Kept { pieces, .. } => {
                let mut context = Context::new(&SHA256);
                pieces.iter().for_each(|kept| context.update(kept));
                context
            }
        };
        Bytes::copy_from_slice(context.finish().as_ref())
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            rows: 0,
            bytes: 0,
            recorded_bytes: 0,
            cut: None,
            hash: Hash::Kept {
                pieces: SmallVec::new(),
                bytes: 0,
            },
        }
    }
}

impl Stream {
    /// Counts a piece in which `rows` rows begin, and says what of it is recorded. `session_bytes`: recorded of the
    /// whole session so far.
    pub(super) fn take(&mut self, data: Bytes, rows: u64, limits: RecordLimits, session_bytes: u64) -> Taken {
        self.rows += rows;
        self.bytes += data.len() as u64;
        let taken = |kept, cut, recorded_bytes| Taken {
            kept,
            cut,
            recorded_bytes,
        };
        if limits.mode == RecordMode::Full {
            self.recorded_bytes += data.len() as u64;
            return taken(data, None, self.recorded_bytes);
        }
        self.hash.update(&data);
        if limits.mode == RecordMode::Off {
            self.cut = Some("off");
        }
        if self.cut.is_some() {
            return taken(Bytes::new(), None, self.recorded_bytes);
        }
        let statement_left = limits.statement_bytes.saturating_sub(self.recorded_bytes);
        let session_left = limits.session_bytes.saturating_sub(session_bytes);
        let left = usize::try_from(statement_left.min(session_left)).unwrap_or(usize::MAX);
        let whole = data.len() <= left;
        let kept = if whole { data } else { data.slice(..left) };
        self.recorded_bytes += kept.len() as u64;
        if !whole {
            self.cut = Some(if session_left < statement_left {
                "session"
            } else {
                "statement"
            });
        }
        taken(kept, self.cut, self.recorded_bytes)
    }

    /// The totals, where something was left out.
    pub(super) fn total(self, statement: StatementId) -> Option<Cut> {
        self.cut.map(|limit| Cut {
            statement,
            limit: limit.to_owned(),
            recorded_bytes: self.recorded_bytes,
            total: true,
            rows: self.rows,
            bytes: self.bytes,
            sha256: self.hash.finish(),
        })
    }
}
