//! What of a session goes into its record: attempts, input and results within limits, cuts, outcomes.
//!
//! Owns the session's limits. Writes through a `Recorder`; decides nothing about what passes.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use hoop_proto::dialogue::Batch;
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::{Event, Outcome, Statement, StatementId, Status};
use hoop_proto::evidence::{self, Cut, Input, Notice, Output, event::Body};
use tokio::time::Instant;

use super::attempt::attempt;
use super::stream::{Stream, Taken};
use crate::recorder::{Commit, RecordError, Recorder};
use crate::stage::Judgement;

/// How much of the results and of the input (COPY data) is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordMode {
    /// Within the limits.
    #[default]
    Default,
    /// Everything.
    Full,
    /// Nothing; each statement's result, and each one's input, leaves one cut.
    Off,
}

/// Limits of recorded results and input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLimits {
    /// First bytes of each statement's result, and of its input.
    pub statement_bytes: u64,
    /// All results and input of the session together.
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
    /// Input of no open statement: sent on after its statement was over, which a target ignores.
    stray: Option<Box<Stream>>,
}

struct Open {
    id: StatementId,
    started: Instant,
    output: Stream,
    /// Boxed, for few statements have any.
    input: Option<Box<Stream>>,
    /// A part of its input was refused: the target gets none of what follows.
    input_refused: bool,
}

impl Open {
    fn new(id: StatementId) -> Self {
        Self {
            id,
            started: Instant::now(),
            output: Stream::default(),
            input: None,
            input_refused: false,
        }
    }
}

/// Which way a statement's data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Client → target.
    Input,
    /// Target → client.
    Output,
}

impl Way {
    fn data(self, statement: StatementId, data: Bytes) -> Body {
        match self {
            Self::Input => Body::Input(Input { statement, data }),
            Self::Output => Body::Output(Output { statement, data }),
        }
    }

    fn cut(self, cut: Cut) -> Body {
        match self {
            Self::Input => Body::InputCut(cut),
            Self::Output => Body::Cut(cut),
        }
    }
}

/// What a client batch has put into the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// Statements that are about to run.
    pub(super) statements: u64,
    /// Something was appended that must be safe before the batch is forwarded.
    pub(super) to_commit: bool,
}

impl<R: Recorder> Ledger<R> {
    pub(super) fn new(recorder: R, limits: RecordLimits) -> Self {
        Self {
            recorder,
            limits,
            session_bytes: 0,
            session_cut: false,
            open: VecDeque::new(),
            stray: None,
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

    /// Appends what a client batch is about to do.
    pub(super) fn attempts(&mut self, batch: &Batch, judgement: Option<&Judgement>) -> Result<Noted, Refusal> {
        let mut noted = Noted::default();
        for (at, event) in batch.events.iter().enumerate() {
            match event {
                Event::Statement(statement) => {
                    let verdicts = judgement.map_or_else(Vec::new, |judgement| judgement.verdicts_of(at));
                    self.open(statement, Body::Attempt(attempt(statement, verdicts)))?;
                    noted.statements += 1;
                    noted.to_commit = true;
                }
                Event::Prepared(statement) => {
                    self.open(statement, Body::Prepared(attempt(statement, Vec::new())))?;
                    noted.to_commit = true;
                }
                Event::Input { statement, span, rows } => {
                    let refused = judgement.is_some_and(|judgement| judgement.refuses(at));
                    noted.to_commit |= self.input(*statement, batch, span.clone(), *rows, refused)?;
                }
                _ => {}
            }
        }
        Ok(noted)
    }

    fn open(&mut self, statement: &Statement, body: Body) -> Result<(), Refusal> {
        self.append(body)?;
        self.open.push_back(Open::new(statement.id));
        Ok(())
    }

    /// Data for the target. What was refused never gets there, nor does the rest of its statement's. True where
    /// something was appended.
    fn input(
        &mut self,
        id: StatementId,
        batch: &Batch,
        span: Range<usize>,
        rows: u64,
        refused: bool,
    ) -> Result<bool, Refusal> {
        let open = self.open.iter_mut().find(|open| open.id == id);
        let (id, stream) = match open {
            Some(open) => {
                open.input_refused |= refused;
                if open.input_refused {
                    return Ok(false);
                }
                (id, open.input.get_or_insert_default())
            }
            None if refused => return Ok(false),
            None => (0, self.stray.get_or_insert_default()),
        };
        let data = slice(batch, span);
        let taken = stream.take(data, rows, self.limits, self.session_bytes);
        self.record(Way::Input, id, taken)
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
                    self.output(*statement, slice(batch, start..end), rows)?;
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
        let Some(open) = self.open.get_mut(at) else {
            return Ok(());
        };
        let taken = open.output.take(data, rows, self.limits, self.session_bytes);
        self.record(Way::Output, id, taken)?;
        Ok(())
    }

    /// Appends what is kept of a piece, and that it was cut. True where there was anything to append.
    fn record(&mut self, way: Way, id: StatementId, taken: Taken) -> Result<bool, Refusal> {
        let Taken {
            kept,
            cut,
            recorded_bytes,
        } = taken;
        let appends = !kept.is_empty() || cut.is_some();
        if !kept.is_empty() {
            if self.limits.mode == RecordMode::Default {
                self.session_bytes += kept.len() as u64;
            }
            self.append(way.data(id, kept))?;
        }
        let Some(limit) = cut else { return Ok(appends) };
        if limit == "session" && !std::mem::replace(&mut self.session_cut, true) {
            let recorded_bytes = self.session_bytes;
            self.append(way.cut(Cut {
                limit: limit.to_owned(),
                recorded_bytes,
                ..Cut::default()
            }))?;
        }
        self.append(way.cut(Cut {
            statement: id,
            limit: limit.to_owned(),
            recorded_bytes,
            ..Cut::default()
        }))?;
        Ok(appends)
    }

    fn total(&mut self, way: Way, id: StatementId, stream: Stream) -> Result<(), Refusal> {
        match stream.total(id) {
            Some(total) => self.append(way.cut(total)),
            None => Ok(()),
        }
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
                rows: open.output.rows,
                bytes: open.output.bytes,
            })?;
        }
        match self.stray.take() {
            Some(stray) => self.total(Way::Input, 0, *stray),
            None => Ok(()),
        }
    }

    /// A statement is over: its last cuts, where it had any, then its outcome.
    pub(super) fn outcome(&mut self, outcome: &Outcome) -> Result<(), Refusal> {
        let at = self.position(outcome.statement);
        let Some(open) = self.open.remove(at) else {
            return Ok(());
        };
        let duration_us = u64::try_from(open.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(input) = open.input {
            self.total(Way::Input, open.id, *input)?;
        }
        self.total(Way::Output, open.id, open.output)?;
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

/// What of the batch's bytes lies in this span.
fn slice(batch: &Batch, span: Range<usize>) -> Bytes {
    let end = span.end.min(batch.bytes.len());
    batch.bytes.slice(span.start.min(end)..end)
}

fn failed(error: RecordError) -> Refusal {
    tracing::error!(%error, "session ended");
    Refusal::new(
        End::RecordFailed,
        "this session cannot be recorded, so it was ended",
        "Connect again; if it goes on, ask an administrator.",
    )
}
