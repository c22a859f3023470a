//! Stages judge what passes: one actix actor a stage and session, asked in the chain's order.
//!
//! Owns the asking and the merging of verdicts. Must not touch bytes: verdicts speak events. A stage that is lost, does
//! not answer in time or answers nonsense ends the session (fail closed).

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::LocalBoxFuture;
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::{Event, Interest, Verdict};
use hoop_proto::evidence;
use thiserror::Error;

/// A stage answers within this time. A review is a `Hold`, not a long answer.
pub const JUDGE_DEADLINE: Duration = Duration::from_secs(10);
/// Batches that wait for one stage: one a direction.
const MAILBOX_BATCHES: usize = 2;

/// Which way events travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Client → target.
    ToTarget,
    /// Target → client.
    ToClient,
}

/// One step of a session's policy chain. Made for the session, lives on its arbiter.
pub trait Stage: 'static {
    /// The name that the record shows.
    fn name(&self) -> &'static str;

    /// Which events it wants to see; asked once, when the session starts.
    fn interest(&self) -> Interest;

    /// One verdict for each event, in order; `Forward` for those of no interest. What the future needs of the events it
    /// clones (texts are shared, not copied).
    fn judge(&mut self, direction: Direction, events: &[Event]) -> LocalBoxFuture<'static, Vec<Verdict>>;
}

/// The actor that owns one stage of one session.
pub struct StageActor {
    stage: Box<dyn Stage>,
}

impl Actor for StageActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_BATCHES);
    }
}

/// One batch's events, to be judged. Answered by one verdict an event.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Verdict>")]
pub struct Judge {
    pub direction: Direction,
    pub events: Arc<[Event]>,
}

impl Handler<Judge> for StageActor {
    type Result = ResponseFuture<Vec<Verdict>>;

    fn handle(&mut self, judge: Judge, _: &mut Self::Context) -> Self::Result {
        self.stage.judge(judge.direction, &judge.events)
    }
}

/// A stage did not answer as it must.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("stage {stage} {how}")]
pub struct StageLost {
    pub stage: &'static str,
    pub how: &'static str,
}

impl StageLost {
    /// The session's end that this means.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::new(
            End::StageFailed,
            format!("the policy stage \"{}\" failed, so the session was ended", self.stage),
            "Connect again; if it goes on, ask an administrator.",
        )
    }
}

/// A statement that waits for a reviewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Index of the event in the batch.
    pub event: usize,
    pub stage: &'static str,
    pub review: String,
}

/// What all interested stages said of one batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judgement {
    /// (index of the event, why), ascending, at most one an event: the first stage that refused.
    pub refusals: Vec<(usize, Refusal)>,
    /// In the chain's order; empty where anything was refused, for nobody is asked to review that.
    pub holds: Vec<Held>,
    /// For the record: (index of the event, verdict), in the chain's order.
    pub verdicts: Vec<(usize, evidence::Verdict)>,
}

/// A session's stages, in order. Dropping it ends their actors.
#[derive(Default)]
pub struct Chain {
    links: Vec<ChainLink>,
    interest: Interest,
}

struct ChainLink {
    name: &'static str,
    interest: Interest,
    addr: Addr<StageActor>,
}

impl Chain {
    /// Starts one actor a stage on the current arbiter.
    #[must_use]
    pub fn start(stages: Vec<Box<dyn Stage>>) -> Self {
        let mut interest = Interest::default();
        let links = stages
            .into_iter()
            .map(|stage| {
                let (name, own) = (stage.name(), stage.interest());
                interest.statements |= own.statements;
                interest.input |= own.input;
                interest.output |= own.output;
                ChainLink {
                    name,
                    interest: own,
                    addr: StageActor { stage }.start(),
                }
            })
            .collect();
        Self { links, interest }
    }

    /// What any stage wants to see.
    #[must_use]
    pub fn interest(&self) -> Interest {
        self.interest
    }

    /// True where some stage wants to see one of these events.
    #[must_use]
    pub fn wants(&self, events: &[Event]) -> bool {
        self.interest != Interest::default() && events.iter().any(|event| wants(self.interest, event))
    }

    /// Asks each interested stage in order, all of them, then merges: any refusal wins, then holds.
    ///
    /// # Errors
    /// `StageLost` where a stage is gone, is late, answers for another number of events, or judges one that it did not
    /// ask for.
    pub async fn judge(&self, direction: Direction, events: Arc<[Event]>) -> Result<Judgement, StageLost> {
        let mut judgement = Judgement::default();
        for link in &self.links {
            if !events.iter().any(|event| wants(link.interest, event)) {
                continue;
            }
            let lost = |how| StageLost { stage: link.name, how };
            let answer = link
                .addr
                .send(Judge {
                    direction,
                    events: events.clone(),
                })
                .timeout(JUDGE_DEADLINE)
                .await;
            let verdicts = answer.map_err(|error| match error {
                MailboxError::Closed => lost("is lost"),
                MailboxError::Timeout => lost("did not answer in time"),
            })?;
            if verdicts.len() != events.len() {
                return Err(lost("answered for another number of events"));
            }
            for (event, verdict) in verdicts.into_iter().enumerate() {
                // Nothing would carry it out.
                if verdict != Verdict::Forward && events.get(event).is_none_or(|event| !wants(link.interest, event)) {
                    return Err(lost("judged an event that it did not ask for"));
                }
                judgement.add(link.name, event, verdict);
            }
        }
        judgement.refusals.sort_by_key(|(event, _)| *event);
        judgement.refusals.dedup_by_key(|(event, _)| *event);
        if !judgement.refusals.is_empty() {
            judgement.holds.clear();
        }
        Ok(judgement)
    }
}

impl Judgement {
    /// What the stages said of one event, for the record.
    #[must_use]
    pub fn verdicts_of(&self, event: usize) -> Vec<evidence::Verdict> {
        let of_event = self.verdicts.iter().filter(|(at, _)| *at == event);
        of_event.map(|(_, verdict)| verdict.clone()).collect()
    }

    /// True where a stage refused this event.
    #[must_use]
    pub fn refuses(&self, event: usize) -> bool {
        self.refusals.iter().any(|(at, _)| *at == event)
    }

    fn add(&mut self, stage: &'static str, event: usize, verdict: Verdict) {
        let (name, reason) = match verdict {
            Verdict::Forward => ("forward", String::new()),
            Verdict::Replace(_) => {
                // No codec encodes replacements yet. What cannot be put in place is not forwarded as it was.
                let message = "a policy wants to change this, which this protocol does not support";
                self.refusals
                    .push((event, Refusal::new(End::Refused, message, "Ask an administrator.")));
                ("refuse", message.to_owned())
            }
            Verdict::Refuse(refusal) => {
                let reason = refusal.message.clone();
                self.refusals.push((event, refusal));
                ("refuse", reason)
            }
            Verdict::Hold(review) => {
                self.holds.push(Held {
                    event,
                    stage,
                    review: review.clone(),
                });
                ("hold", review)
            }
        };
        self.verdicts.push((
            event,
            evidence::Verdict {
                stage: stage.to_owned(),
                verdict: name.to_owned(),
                reason,
            },
        ));
    }
}

fn wants(interest: Interest, event: &Event) -> bool {
    match event {
        Event::Statement(_) => interest.statements,
        Event::Input { .. } => interest.input,
        Event::Prepared(_) => false,
        Event::Output { .. } | Event::Outcome(_) | Event::Notice { .. } => interest.output,
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.links.iter().map(|link| link.name)).finish()
    }
}
