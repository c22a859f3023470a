//! What of a session goes into its record: attempts, results within limits, cuts, outcomes.
//!
//! Owns the limits and the count of what was left out. Writes through a `Recorder`; decides nothing about what passes.

use std::collections::VecDeque;

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use hoop_proto::dialogue::Batch;
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::{Event, Outcome, Param, Statement, StatementId, Status};
use hoop_proto::evidence::{self, Attempt, Cut, Notice, Output, Value, event::Body};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::recorder::{Commit, RecordError, Recorder};
use crate::stage::Judgement;

/// Text of one statement kept in the record at most, in bytes.
pub const ATTEMPT_TEXT_BYTES: usize = 256 * 1024;
/// One parameter kept in the record at most, in bytes.
pub const ATTEMPT_PARAM_BYTES: usize = 16 * 1024;
/// All parameters of one statement kept in the record at most, in bytes.
pub const ATTEMPT_PARAMS_BYTES: usize = 256 * 1024;
/// Results up to this size are kept until their statement ends rather than hashed, for most are not cut.
const UNHASHED_BYTES: usize = 16 * 1024;
/// And in so many pieces at most.
const UNHASHED_PIECES: usize = 8;

/// How much of the results is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordMode {
    /// Within the limits.
    #[default]
    Default,
    /// Everything.
    Full,
    /// Nothing; each statement with a result leaves one cut.
    Off,
}

/// Limits of recorded results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLimits {
    /// First bytes of each statement's result.
    pub statement_bytes: u64,
    /// All results of the session together.
    pub session_bytes: u64,
    pub mode: RecordMode,
}

impl Default for RecordLimits {
    fn default() -> Self {
        Self {
            statement_bytes: 256 * 1024,
            session_bytes: 64 * 1024 * 1024,
            mode: RecordMode::Default,
        }
    }
}

/// A session's record, as the pumps see it.
pub(super) struct Ledger<R> {
    recorder: R,
    limits: RecordLimits,
    session_bytes: u64,
    session_cut: bool,
    /// Forwarded and not yet over, in the order of their attempts.
    open: VecDeque<Open>,
}

struct Open {
    id: StatementId,
    started: Instant,
    rows: u64,
    bytes: u64,
    recorded_bytes: u64,
    /// The limit that was hit.
    cut: Option<&'static str>,
    hash: Hash,
}

/// All result bytes of a statement, hashed only once there are enough of them that it may matter.
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

impl Open {
    fn new(id: StatementId) -> Self {
        let hash = Hash::Kept {
            pieces: SmallVec::new(),
            bytes: 0,
        };
        Self {
            id,
            started: Instant::now(),
            rows: 0,
            bytes: 0,
            recorded_bytes: 0,
            cut: None,
            hash,
        }
    }
}

impl<R: Recorder> Ledger<R> {
    pub(super) fn new(recorder: R, limits: RecordLimits) -> Self {
        Self {
            recorder,
            limits,
            session_bytes: 0,
            session_cut: false,
            open: VecDeque::new(),
        }
    }

    pub(super) fn into_recorder(self) -> R {
        self.recorder
    }

    pub(super) fn append(&mut self, body: Body) -> Result<(), Refusal> {
        self.recorder.append(body).map_err(failed)
    }

    pub(super) fn commit(&mut self) -> Result<Commit, Refusal> {
        self.recorder.commit().map_err(failed)
    }

    /// Statements forwarded and not yet over.
    pub(super) fn open_statements(&self) -> usize {
        self.open.len()
    }

    /// Appends what a client batch is about to do. Answers the number of attempts: with none, nothing needs a commit.
    pub(super) fn attempts(&mut self, batch: &Batch, judgement: Option<&Judgement>) -> Result<usize, Refusal> {
        let mut attempts = 0;
        for (at, event) in batch.events.iter().enumerate() {
            match event {
                Event::Statement(statement) => {
                    let verdicts = judgement.map_or_else(Vec::new, |judgement| {
                        judgement
                            .verdicts
                            .iter()
                            .filter(|(event, _)| *event == at)
                            .map(|(_, v)| v.clone())
                            .collect()
                    });
                    self.append(Body::Attempt(attempt(statement, verdicts)))?;
                    self.open.push_back(Open::new(statement.id));
                    attempts += 1;
                }
                Event::Setting { name, value } => {
                    let text = format!("{name}={value}");
                    self.append(Body::Notice(Notice {
                        kind: "parameter".to_owned(),
                        text,
                    }))?;
                }
                _ => {}
            }
        }
        Ok(attempts)
    }

    /// Appends what a target batch says, as the client will see it. Adjacent output of one statement is one event.
    pub(super) fn results(&mut self, batch: &Batch) -> Result<(), Refusal> {
        let mut events = batch.events.iter().peekable();
        while let Some(event) = events.next() {
            match event {
                Event::Output { statement, span, rows } => {
                    let (start, mut end, mut rows) = (span.start, span.end, *rows);
                    while let Some(Event::Output {
                        statement: next,
                        span,
                        rows: more,
                    }) = events.peek()
                        && next == statement
                        && span.start == end
                    {
                        end = span.end;
                        rows += more;
                        events.next();
                    }
                    let end = end.min(batch.bytes.len());
                    self.output(*statement, batch.bytes.slice(start.min(end)..end), rows)?;
                }
                Event::Outcome(outcome) => self.outcome(outcome)?,
                Event::Notice { kind, text } => {
                    self.append(Body::Notice(Notice {
                        kind: (*kind).to_owned(),
                        text: text.clone(),
                    }))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn position(&mut self, id: StatementId) -> usize {
        // Targets answer in order, so it is almost always the first.
        match self.open.iter().position(|open| open.id == id) {
            Some(at) => at,
            None => {
                self.open.push_back(Open::new(id));
                self.open.len() - 1
            }
        }
    }

    fn output(&mut self, id: StatementId, data: Bytes, rows: u64) -> Result<(), Refusal> {
        let at = self.position(id);
        let limits = self.limits;
        let Some(open) = self.open.get_mut(at) else {
            return Ok(());
        };
        open.rows += rows;
        open.bytes += data.len() as u64;
        if limits.mode == RecordMode::Full {
            open.recorded_bytes += data.len() as u64;
            return self.append(Body::Output(Output { statement: id, data }));
        }
        open.hash.update(&data);
        if limits.mode == RecordMode::Off {
            open.cut = Some("off");
            return Ok(());
        }
        if open.cut.is_some() {
            return Ok(());
        }
        let statement_left = limits.statement_bytes.saturating_sub(open.recorded_bytes);
        let session_left = limits.session_bytes.saturating_sub(self.session_bytes);
        let left = usize::try_from(statement_left.min(session_left)).unwrap_or(usize::MAX);
        let whole = data.len() <= left;
        let kept = if whole { data } else { data.slice(..left) };
        open.recorded_bytes += kept.len() as u64;
        self.session_bytes += kept.len() as u64;
        let recorded_bytes = open.recorded_bytes;
        if !whole {
            open.cut = Some(if session_left < statement_left {
                "session"
            } else {
                "statement"
            });
        }
        let cut = open.cut;
        if !kept.is_empty() {
            self.append(Body::Output(Output {
                statement: id,
                data: kept,
            }))?;
        }
        let Some(limit) = cut else { return Ok(()) };
        if limit == "session" && !std::mem::replace(&mut self.session_cut, true) {
            let recorded_bytes = self.session_bytes;
            self.append(Body::Cut(Cut {
                limit: limit.to_owned(),
                recorded_bytes,
                ..Cut::default()
            }))?;
        }
        self.append(Body::Cut(Cut {
            statement: id,
            limit: limit.to_owned(),
            recorded_bytes,
            ..Cut::default()
        }))
    }

    /// The session is over: what is still open has the outcome that the codec gives it, or `unknown`.
    pub(super) fn close(&mut self, unanswered: &[Outcome]) -> Result<(), Refusal> {
        for outcome in unanswered {
            self.outcome(outcome)?;
        }
        // Attempted, and the session ended before the codec had them.
        while let Some(open) = self.open.front() {
            self.outcome(&Outcome {
                statement: open.id,
                status: Status::Unknown,
                sqlstate: String::new(),
                message: String::new(),
                tag: String::new(),
                rows: open.rows,
                bytes: open.bytes,
            })?;
        }
        Ok(())
    }

    /// A statement is over: its last cut, where it had one, then its outcome.
    pub(super) fn outcome(&mut self, outcome: &Outcome) -> Result<(), Refusal> {
        let at = self.position(outcome.statement);
        let Some(open) = self.open.remove(at) else {
            return Ok(());
        };
        let duration_us = u64::try_from(open.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(limit) = open.cut {
            self.append(Body::Cut(Cut {
                statement: open.id,
                limit: limit.to_owned(),
                recorded_bytes: open.recorded_bytes,
                total: true,
                rows: open.rows,
                bytes: open.bytes,
                sha256: open.hash.finish(),
            }))?;
        }
        self.append(Body::Outcome(evidence::Outcome {
            statement: outcome.statement,
            status: outcome.status.as_str().to_owned(),
            sqlstate: outcome.sqlstate.clone(),
            message: outcome.message.clone(),
            tag: outcome.tag.clone(),
            rows: outcome.rows,
            bytes: outcome.bytes,
            duration_us,
        }))
    }
}

fn attempt(statement: &Statement, verdicts: Vec<evidence::Verdict>) -> Attempt {
    let text_cut = statement.text.len() > ATTEMPT_TEXT_BYTES;
    let mut left = ATTEMPT_PARAMS_BYTES;
    let params = statement
        .params
        .iter()
        .map(|param| {
            let value = value(param, left.min(ATTEMPT_PARAM_BYTES));
            left -= value.data.len().min(left);
            value
        })
        .collect();
    Attempt {
        statement: statement.id,
        kind: statement.kind.as_str().to_owned(),
        text: if text_cut {
            statement.text.slice(..ATTEMPT_TEXT_BYTES)
        } else {
            statement.text.clone()
        },
        params,
        verdicts,
        name: String::from_utf8_lossy(&statement.name).into_owned(),
        text_cut,
        text_bytes: statement.text.len() as u64,
        text_sha256: if text_cut {
            Bytes::copy_from_slice(digest(&SHA256, &statement.text).as_ref())
        } else {
            Bytes::new()
        },
    }
}

fn value(param: &Param, limit: usize) -> Value {
    let format = u32::from(param.format);
    match &param.data {
        None => Value {
            null: true,
            format,
            ..Value::default()
        },
        Some(data) => {
            let kept = data.len().min(limit);
            Value {
                null: false,
                format,
                data: data.slice(..kept),
                cut_bytes: (data.len() - kept) as u64,
            }
        }
    }
}

fn failed(error: RecordError) -> Refusal {
    tracing::error!(%error, "session ended");
    Refusal::new(
        End::RecordFailed,
        "this session cannot be recorded, so it was ended",
        "Connect again; if it goes on, ask an administrator.",
    )
}
