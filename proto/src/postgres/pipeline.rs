//! What was forwarded to the target and is not yet answered, in order, and the statement that is being answered.

use std::collections::VecDeque;

use crate::end::Refusal;
use crate::event::{Outcome, StatementId, Status};

/// Above this many items an emptied queue gives its memory back.
const KEPT_CAPACITY: usize = 1_024;

/// A client's message, as far as its answer matters.
#[derive(Debug)]
pub(crate) enum Item {
    Parse(Defined),
    Bind(Defined),
    // These two carry their definition's number in `Names`.
    CloseStatement(u64),
    ClosePortal(u64),
    Describe,
    Execute(Sent),
    Query(Sent),
    Function(Sent),
    Sync,
    /// CopyDone or CopyFail. Matters only where the target has not yet said that it is copying.
    CopyEnd,
    // These three are never answered, and are never in the pipeline.
    /// COPY data: how many of its bytes end an earlier message, and whether that message ends here.
    Data {
        lead_bytes: usize,
        lead_ends: bool,
    },
    Flush,
    Terminate,
}

/// A Parse or Bind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defined {
    /// Its definition's number in `Names`.
    pub(crate) number: u64,
    /// What the record calls it, where it has an event of its own; 0: an Execute of its batch tells of it.
    pub(crate) prepared: StatementId,
}

impl Defined {
    /// What came of it, where it has an event of its own.
    pub(crate) fn outcome(self, status: Status) -> Option<Outcome> {
        (self.prepared != 0).then(|| not_run(self.prepared, status))
    }
}

/// A statement that was forwarded, or stands for a refused one.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) id: StatementId,
    pub(crate) refused: Option<Box<Refused>>,
    /// The prepared statement that its text drops, where the text says no more than that.
    pub(crate) deallocates: Option<Box<[u8]>>,
}

/// Why the target was given something that fails.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    /// Of its COPY data, not of the statement itself.
    pub(crate) of_input: bool,
}

impl Item {
    pub(crate) fn sent(&self) -> Option<&Sent> {
        match self {
            Self::Execute(sent) | Self::Query(sent) | Self::Function(sent) => Some(sent),
            _ => None,
        }
    }

    /// A Parse or Bind with an event of its own.
    pub(crate) fn prepared(&self) -> Option<Defined> {
        match self {
            Self::Parse(defined) | Self::Bind(defined) if defined.prepared != 0 => Some(*defined),
            _ => None,
        }
    }

    fn sent_mut(&mut self) -> Option<&mut Sent> {
        match self {
            Self::Execute(sent) | Self::Query(sent) | Self::Function(sent) => Some(sent),
            _ => None,
        }
    }
}

/// What is known of the statement that is being answered.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) tag: String,
    /// SQLSTATE and message.
    pub(crate) error: Option<(String, String)>,
}

#[derive(Debug)]
pub(crate) struct Pipeline {
    /// INVARIANT: never begins with `CopyEnd`.
    items: VecDeque<Item>,
    pub(crate) progress: Progress,
    /// Extended messages were answered since the last ReadyForQuery: a transaction may be open that it did not tell of.
    unsynced: bool,
    /// The target skips what it gets, up to a Sync that it has not yet got.
    pub(crate) skipping: bool,
    /// The statement whose COPY data the target takes, until the client has ended it.
    pub(crate) copying: Option<StatementId>,
    /// The last ReadyForQuery's status.
    status: u8,
}

impl Pipeline {
    /// As after the first ReadyForQuery.
    pub(crate) fn new() -> Self {
        Self {
            items: VecDeque::new(),
            progress: Progress::default(),
            unsynced: false,
            skipping: false,
            copying: None,
            status: b'I',
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing is unanswered and no transaction is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.items.is_empty() && !self.unsynced && !self.skipping && self.status == b'I'
    }

    pub(crate) fn front(&self) -> Option<&Item> {
        self.items.front()
    }

    /// The statement that is being answered; 0: none.
    #[inline]
    pub(crate) fn answering(&self) -> StatementId {
        self.items.front().and_then(Item::sent).map_or(0, |sent| sent.id)
    }

    /// The item is on its way to the target; given back where the target will skip it.
    pub(crate) fn push(&mut self, item: Item) -> Option<Item> {
        match item {
            Item::Data { .. } | Item::Flush => {}
            Item::Terminate => self.skipping = false,
            // The target ignores a Sync while it copies (manual, "COPY Operations").
            Item::Sync if self.copying.is_some() => {}
            Item::Sync => {
                self.skipping = false;
                self.items.push_back(item);
            }
            Item::CopyEnd => {
                if self.copying.take().is_none() && !self.items.is_empty() {
                    self.items.push_back(item);
                }
            }
            item if self.skipping => return Some(item),
            item => self.items.push_back(item),
        }
        None
    }

    /// The target is in this transaction status, and all that it answered is settled.
    pub(crate) fn ready(&mut self, status: u8) {
        self.status = status;
        self.copying = None;
        self.unsynced = false;
    }

    pub(crate) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        self.unsynced |= matches!(
            item,
            Some(
                Item::Parse(_)
                    | Item::Bind(_)
                    | Item::CloseStatement(_)
                    | Item::ClosePortal(_)
                    | Item::Describe
                    | Item::Execute(_)
            )
        );
        while matches!(self.items.front(), Some(Item::CopyEnd)) {
            self.items.pop_front();
        }
        if self.items.is_empty() && self.items.capacity() > KEPT_CAPACITY {
            self.items = VecDeque::new();
        }
        item
    }

    /// The target has begun to take COPY data for the front statement: it ignores every Sync up to the end of the data.
    pub(crate) fn copy_in(&mut self) {
        let id = self.answering();
        let mut index = 1;
        while let Some(item) = self.items.get(index) {
            match item {
                Item::Sync => {
                    self.items.remove(index);
                }
                Item::CopyEnd => {
                    self.items.remove(index);
                    return;
                }
                _ => index += 1,
            }
        }
        self.copying = Some(id);
    }

    /// This statement's COPY data was refused.
    pub(crate) fn refuse_input(&mut self, id: StatementId, refusal: Refusal) {
        let sent = self
            .items
            .iter_mut()
            .filter_map(Item::sent_mut)
            .find(|sent| sent.id == id);
        if let Some(sent) = sent
            && sent.refused.is_none()
        {
            sent.refused = Some(Box::new(Refused {
                refusal,
                of_input: true,
            }));
        }
    }

    /// The statement is over: what came of it.
    pub(crate) fn outcome(&mut self, sent: &Sent) -> Outcome {
        let progress = std::mem::take(&mut self.progress);
        let (status, (sqlstate, message)) = match (&sent.refused, progress.error) {
            (Some(refused), _) if !refused.of_input => (Status::Refused, told(&refused.refusal)),
            (_, Some(error)) => (Status::Error, error),
            (_, None) => (Status::Ok, <(String, String)>::default()),
        };
        Outcome {
            statement: sent.id,
            status,
            sqlstate,
            message,
            tag: progress.tag,
            rows: progress.rows,
            bytes: progress.bytes,
        }
    }

    /// Everything unanswered, as unknown.
    pub(crate) fn unanswered(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(item) = self.items.pop_front() {
            outcomes.extend(item.prepared().and_then(|defined| defined.outcome(Status::Unknown)));
            if let Some(sent) = item.sent() {
                let outcome = self.outcome(sent);
                let refused = outcome.status == Status::Refused;
                outcomes.push(if refused {
                    outcome
                } else {
                    Outcome {
                        status: Status::Unknown,
                        ..outcome
                    }
                });
            }
        }
        outcomes
    }
}

/// A statement without a result.
pub(crate) fn not_run(id: StatementId, status: Status) -> Outcome {
    Outcome {
        statement: id,
        status,
        sqlstate: String::new(),
        message: String::new(),
        tag: String::new(),
        rows: 0,
        bytes: 0,
    }
}

/// A statement that was refused.
pub(crate) fn refused(id: StatementId, refusal: &Refusal) -> Outcome {
    let (sqlstate, message) = told(refusal);
    Outcome {
        sqlstate,
        message,
        ..not_run(id, Status::Refused)
    }
}

fn told(refusal: &Refusal) -> (String, String) {
    (refusal.sqlstate().to_owned(), refusal.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(id: StatementId) -> Sent {
        Sent {
            id,
            refused: None,
            deallocates: None,
        }
    }

    #[test]
    fn a_sync_before_the_copy_data_is_not_awaited() {
        // libpq: Execute, Sync; then, after CopyInResponse: data, CopyDone, Sync.
        let mut pipeline = Pipeline::new();
        pipeline.push(Item::Execute(sent(1)));
        pipeline.push(Item::Sync);
        pipeline.copy_in();
        assert_eq!((pipeline.len(), pipeline.copying), (1, Some(1)));
        pipeline.push(Item::Sync);
        assert_eq!(pipeline.len(), 1);
        pipeline.push(Item::CopyEnd);
        pipeline.push(Item::Sync);
        assert_eq!((pipeline.len(), pipeline.copying), (2, None));
    }

    #[test]
    fn copy_data_sent_ahead_of_the_answer_is_ended_already() {
        let mut pipeline = Pipeline::new();
        pipeline.push(Item::Query(sent(1)));
        pipeline.push(Item::CopyEnd);
        pipeline.push(Item::Query(sent(2)));
        pipeline.copy_in();
        assert_eq!((pipeline.len(), pipeline.copying), (2, None));
    }

    #[test]
    fn an_item_is_small() {
        assert!(size_of::<Item>() <= 40, "{}", size_of::<Item>());
    }
}
