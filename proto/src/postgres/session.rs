//! One session's two directions after its start-up: what the client's messages ask for, what the target's answer, and
//! which answer belongs to which statement. Bytes pass as they are; only refusals change them.
//!
//! The client's side is in `session_client.rs`, the target's in `session_target.rs`.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use super::error_response::{Severity, error_response, notice_response};
use super::flow::{Flow, FlowError};
use super::names::Names;
use super::pipeline::{Item, Pipeline, Sent, not_run, refused};
use super::refusal;
use super::statement::{Portal, Prepared};
use super::unexecuted::Unexecuted;
use crate::dialogue::{Applied, Batch, Dialogue, Violation};
use crate::end::Refusal;
use crate::event::{Event, Outcome, StatementId, Status};

/// The longest statement message (Query, Parse, Bind, FunctionCall), in bytes.
pub const MAX_STATEMENT_BYTES: usize = 16 * 1024 * 1024;
/// Prepared statements with a name that one session may keep.
pub const MAX_PREPARED: usize = 16_384;
/// Text of prepared statements that one session may keep, in bytes.
pub const MAX_PREPARED_BYTES: usize = 64 * 1024 * 1024;
/// Portals with a name that one session may keep.
pub const MAX_PORTALS: usize = 4_096;
/// Parameters of portals that one session may keep, unanswered ones included, in bytes.
pub const MAX_PORTAL_BYTES: usize = 64 * 1024 * 1024;
/// Messages that may be unanswered. A pipeline is bounded by what the sockets hold long before.
pub const MAX_UNANSWERED: usize = 1_048_576;

/// What one session may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub statement_bytes: usize,
    pub prepared: usize,
    pub prepared_bytes: usize,
    pub portals: usize,
    pub portal_bytes: usize,
    pub unanswered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            statement_bytes: MAX_STATEMENT_BYTES,
            prepared: MAX_PREPARED,
            prepared_bytes: MAX_PREPARED_BYTES,
            portals: MAX_PORTALS,
            portal_bytes: MAX_PORTAL_BYTES,
            unanswered: MAX_UNANSWERED,
        }
    }
}

/// A client's message that waits for its verdict.
pub(super) struct Staged {
    /// Where it begins in its batch.
    pub(super) start: usize,
    pub(super) item: Item,
}

/// What becomes of COPY data after a part of it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusing {
    No,
    /// The rest of a data message of which the target has the beginning: filled with zeros, then CopyFail.
    Filling,
    /// CopyFail is out: nothing more is passed on up to the data's end.
    Dropping,
}

/// The codec. One a session, on one thread.
pub struct Session {
    pub(super) limits: Limits,

    /// Client → target.
    pub(super) up: Flow,
    pub(super) staged: VecDeque<Staged>,
    /// How many of `staged` belong to each batch that waits for its verdict.
    pub(super) batches: VecDeque<usize>,
    pub(super) last_statement: StatementId,
    /// The newest one that runs: data that comes ahead of the target's CopyInResponse belongs to it.
    pub(super) last_run: StatementId,
    /// Counts the client's Syncs.
    pub(super) segment: u64,
    pub(super) statements: Names<Prepared>,
    pub(super) portals: Names<Portal>,
    pub(super) unexecuted: Unexecuted,
    /// After a refused Execute: nothing is passed on up to the next Sync.
    dropping: bool,
    refusing: Refusing,

    /// Target → client.
    pub(super) down: Flow,
    pub(super) pipeline: Pipeline,

    /// The client has said Terminate, or the target FATAL: nobody waits for a last word.
    pub(super) parted: bool,
}

impl Session {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            up: Flow::default(),
            staged: VecDeque::new(),
            batches: VecDeque::new(),
            last_statement: 0,
            last_run: 0,
            segment: 0,
            statements: Names::new(),
            portals: Names::new(),
            unexecuted: Unexecuted::default(),
            dropping: false,
            refusing: Refusing::No,
            down: Flow::default(),
            pipeline: Pipeline::new(),
            parted: false,
        }
    }

    /// The session's first statement gets the number after `statements`: so many were there before (at start-up).
    #[must_use]
    pub fn after(mut self, statements: StatementId) -> Self {
        self.last_statement = statements;
        self
    }

    /// Puts an item on its way, or settles at once what the target will skip.
    fn forward(&mut self, item: Item, outcomes: &mut SmallVec<[Outcome; 1]>) {
        if let Some(skipped) = self.pipeline.push(item) {
            outcomes.extend(self.skip(skipped));
        }
    }

    /// The target does not run this item; gives its outcome where it is a statement.
    pub(super) fn skip(&mut self, item: Item) -> Option<Outcome> {
        match item {
            Item::Parse(defined) => {
                self.statements.discard(defined.number);
                return defined.outcome(Status::Skipped);
            }
            Item::Bind(defined) => {
                self.portals.discard(defined.number);
                return defined.outcome(Status::Skipped);
            }
            Item::CloseStatement(number) => self.statements.discard(number),
            Item::ClosePortal(number) => self.portals.discard(number),
            Item::Execute(sent) | Item::Query(sent) | Item::Function(sent) => {
                return Some(match &sent.refused {
                    Some(why) if !why.of_input => refused(sent.id, &why.refusal),
                    _ => not_run(sent.id, Status::Skipped),
                });
            }
            _ => {}
        }
        None
    }

    /// One item of a batch in which something is refused, or after a refusal. `span` of `bytes` is its message.
    fn judge(&mut self, staged: Staged, end: usize, refusal: Option<&Refusal>, pass: &mut Pass<'_>) {
        let Staged { start, mut item } = staged;
        if matches!(item, Item::Sync | Item::Terminate) {
            self.dropping = false;
        }
        if let Some(refusal) = refusal
            && let Item::Execute(sent) | Item::Query(sent) | Item::Function(sent) = &mut item
        {
            sent.refused = Some(Box::new(super::pipeline::Refused {
                refusal: refusal.clone(),
                of_input: false,
            }));
        }
        if self.dropping || (refusal.is_some() && self.pipeline.skipping) {
            pass.drop_up_to(start, end);
            let outcome = self.skip(item);
            pass.applied.outcomes.extend(outcome);
            return;
        }
        match (item, refusal) {
            (Item::Query(sent) | Item::Function(sent), Some(refusal))
                if self.pipeline.is_idle() && self.down.at_boundary() =>
            {
                pass.drop_up_to(start, end);
                pass.applied.client.push(refusal::answer_alone(refusal));
                pass.applied.outcomes.push(refused(sent.id, refusal));
            }
            (item @ (Item::Query(_) | Item::Function(_)), Some(_)) => {
                pass.replace(start, end, refusal::failing_query());
                self.forward(item, &mut pass.applied.outcomes);
            }
            (item @ Item::Execute(_), Some(_)) => {
                pass.replace(start, end, refusal::failing_parse());
                self.forward(item, &mut pass.applied.outcomes);
                self.dropping = true;
            }
            (Item::Data { lead_bytes, lead_ends }, Some(refusal)) if self.refusing == Refusing::No => {
                self.pipeline.refuse_input(pass.input_of, refusal.clone());
                self.refuse_data(start, end, lead_bytes, lead_ends, pass);
            }
            (Item::Data { lead_bytes, lead_ends }, _) if self.refusing != Refusing::No => {
                self.refuse_data(start, end, lead_bytes, lead_ends, pass);
            }
            // The client ends data that the target was already told to fail.
            (Item::CopyEnd, _) if self.refusing != Refusing::No => {
                self.refusing = Refusing::No;
                pass.drop_up_to(start, end);
                self.forward(Item::CopyEnd, &mut pass.applied.outcomes);
            }
            (item, _) => self.forward(item, &mut pass.applied.outcomes),
        }
    }

    fn refuse_data(&mut self, start: usize, end: usize, lead_bytes: usize, lead_ends: bool, pass: &mut Pass<'_>) {
        if self.refusing == Refusing::Dropping {
            pass.drop_up_to(start, end);
            return;
        }
        pass.replace(start, end, Bytes::from(vec![0; lead_bytes]));
        self.refusing = Refusing::Filling;
        if lead_ends {
            pass.applied.target.push(refusal::copy_fail());
            self.refusing = Refusing::Dropping;
        }
    }
}

/// A batch on its way through `apply`: what of it is kept.
struct Pass<'a> {
    bytes: &'a Bytes,
    applied: Applied,
    /// Up to here everything is passed on, replaced or dropped.
    done: usize,
    /// The statement that the batch's refused COPY data belongs to.
    input_of: StatementId,
}

impl Pass<'_> {
    fn keep_up_to(&mut self, start: usize) {
        if self.done < start {
            self.applied.target.push(self.bytes.slice(self.done..start));
        }
        self.done = start;
    }

    fn drop_up_to(&mut self, start: usize, end: usize) {
        self.keep_up_to(start);
        self.done = end;
    }

    fn replace(&mut self, start: usize, end: usize, with: Bytes) {
        self.drop_up_to(start, end);
        if !with.is_empty() {
            self.applied.target.push(with);
        }
    }
}

impl Dialogue for Session {
    fn client(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        self.scan_client(bytes)
    }

    fn apply(&mut self, batch: Batch, refusals: &[(usize, Refusal)]) -> Applied {
        let mut applied = Applied::default();
        if batch.bytes.is_empty() {
            return applied;
        }
        let count = self.batches.pop_front().unwrap_or(0);
        if refusals.is_empty() && !self.dropping && self.refusing == Refusing::No {
            for _ in 0..count {
                let Some(staged) = self.staged.pop_front() else { break };
                self.forward(staged.item, &mut applied.outcomes);
            }
            applied.target.push(batch.bytes);
            return applied;
        }

        let mut statements = refusals
            .iter()
            .filter_map(|(index, refusal)| match batch.events.get(*index) {
                Some(Event::Statement(statement)) => Some((statement.id, refusal)),
                _ => None,
            });
        let mut inputs = refusals
            .iter()
            .filter_map(|(index, refusal)| match batch.events.get(*index) {
                Some(Event::Input { statement, span, .. }) => Some((*statement, span.start, refusal)),
                _ => None,
            });
        let (mut next_statement, mut next_input) = (statements.next(), inputs.next());
        let mut pass = Pass {
            bytes: &batch.bytes,
            applied,
            done: 0,
            input_of: 0,
        };
        for left in (0..count).rev() {
            let Some(staged) = self.staged.pop_front() else { break };
            let next = if left == 0 { None } else { self.staged.front() };
            let end = next.map_or(batch.bytes.len(), |next| next.start);
            let mut refusal = None;
            if let (Some((id, why)), Some(sent)) = (next_statement, staged.item.sent())
                && id == sent.id
            {
                refusal = Some(why);
                next_statement = statements.next();
            }
            if let (Some((id, start, why)), Item::Data { .. }) = (next_input, &staged.item)
                && start == staged.start
            {
                refusal = Some(why);
                pass.input_of = id;
                next_input = inputs.next();
            }
            self.judge(staged, end, refusal, &mut pass);
        }
        pass.keep_up_to(batch.bytes.len());
        pass.applied
    }

    fn target(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        self.scan_target(bytes)
    }

    fn idle(&self) -> bool {
        self.pipeline.is_idle()
    }

    fn unfinished(&self) -> usize {
        self.down.unfinished()
    }

    fn unanswered(&mut self) -> Vec<Outcome> {
        self.pipeline.unanswered()
    }

    fn notice(&self, text: &str, hint: &str) -> Option<Bytes> {
        self.down.at_boundary().then(|| notice_response(text, hint))
    }

    fn farewell(&self, refusal: &Refusal) -> Bytes {
        if self.down.at_boundary() && !self.parted {
            error_response(Severity::Fatal, refusal)
        } else {
            Bytes::new()
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("statements", &self.last_statement)
            .field("unanswered", &self.pipeline.len())
            .finish_non_exhaustive()
    }
}

/// A new statement's place in the pipeline.
pub(super) fn sent(id: StatementId, text: &[u8]) -> Sent {
    Sent {
        id,
        refused: None,
        deallocates: super::statement::deallocated(text),
    }
}

/// SQLSTATE protocol_violation.
pub(super) const PROTOCOL_VIOLATION: &str = "08P01";
/// SQLSTATE program_limit_exceeded.
pub(super) const LIMIT_EXCEEDED: &str = "54000";

/// What cannot be framed, said of one side.
pub(super) fn framing(side: &str, error: FlowError) -> Violation {
    let code = match error {
        FlowError::TooLong { .. } => LIMIT_EXCEEDED,
        FlowError::Unknown { .. } | FlowError::Length { .. } => PROTOCOL_VIOLATION,
    };
    Violation {
        message: format!("the {side} sent an unacceptable message: {error}"),
        code,
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
