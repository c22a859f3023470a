//! The protocol-neutral event vocabulary: what stages judge and what the record keeps.

use std::ops::Range;

use bytes::Bytes;

use crate::end::Refusal;

/// Number of a statement within its session, from 1: a name, unique but not the order of events. Its outcome, its input
/// and its output carry it.
pub type StatementId = u64;

/// Something a batch contains. Spans are byte ranges of the batch's `bytes`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Client → target. A statement about to run; its whole message lies within the batch.
    Statement(Statement),
    /// Client → target. A text, or a text with its parameters, that the target gets to know without running it in this
    /// batch. No stage is asked: its execution is judged, where there is one.
    Prepared(Statement),
    /// Client → target. Bytes that belong to a statement already judged (COPY data). `rows` counts the messages that
    /// begin here. Statement 0: the session's client has run none.
    Input {
        statement: StatementId,
        span: Range<usize>,
        rows: u64,
    },
    /// Target → client. Bytes of a statement's result, as they will be sent. `rows` counts the rows that begin here.
    Output {
        statement: StatementId,
        span: Range<usize>,
        rows: u64,
    },
    /// Target → client. A statement is over.
    Outcome(Outcome),
    /// Target → client. Something told outside of any statement (NOTICE, NOTIFY, ParameterStatus).
    Notice { kind: &'static str, text: String },
}

/// A statement as the client sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    pub id: StatementId,
    pub kind: StatementKind,
    /// In the client's encoding, without the terminating zero.
    pub text: Bytes,
    pub params: Vec<Param>,
    /// The prepared statement's name; empty where it has none.
    pub name: Bytes,
    /// Where its message lies in the batch; empty where it has none (a start-up parameter).
    pub span: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementKind {
    /// A simple Query, possibly of several statements.
    Query,
    /// Extended protocol: the text of Parse with the parameters of Bind, at each Execute.
    Execute,
    FunctionCall,
    /// A start-up parameter, as the `SET` it stands for.
    Startup,
    /// Extended protocol, in `Event::Prepared`: a Parse without its Execute.
    Parse,
    /// Extended protocol, in `Event::Prepared`: a Bind, with the text of its Parse, without its Execute.
    Bind,
}

impl StatementKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Execute => "execute",
            Self::FunctionCall => "function_call",
            Self::Startup => "startup",
            Self::Parse => "parse",
            Self::Bind => "bind",
        }
    }
}

/// A bound parameter; `data` is `None` for NULL.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// 0 text, 1 binary.
    pub format: u16,
    pub data: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub statement: StatementId,
    pub status: Status,
    /// Five characters, empty where the statement succeeded.
    pub sqlstate: String,
    /// The target's error message, empty where the statement succeeded.
    pub message: String,
    /// The last command tag, e.g. `SELECT 3`.
    pub tag: String,
    /// Rows sent to the client.
    pub rows: u64,
    /// Bytes of result sent to the client.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Error,
    /// A stage refused it: the target never saw it.
    Refused,
    /// Skipped by the target after an earlier error in the same pipeline.
    Skipped,
    /// The session ended before the target answered.
    Unknown,
}

impl Status {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Refused => "refused",
            Self::Skipped => "skipped",
            Self::Unknown => "unknown",
        }
    }
}

/// Which events a stage asks to see. Where no stage wants a direction's events, none are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    pub statements: bool,
    pub input: bool,
    pub output: bool,
}

/// What a stage says of one event. Verdicts speak events, never bytes; the codec encodes them.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Forward,
    /// Put this event in the place of the judged one.
    Replace(Box<Event>),
    Refuse(Refusal),
    /// Wait until a reviewer has decided. The value is the review's id.
    Hold(String),
}
