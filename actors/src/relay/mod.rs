//! The relay: a session's two pumps, between a client's socket and a channel to its target.
//!
//! Owns the order of things: read, scan, judge, record, forward; and every way in which a session ends. Both pumps and
//! the link's reader run in one task, so one wake-up moves a message all the way. Must not know a protocol (that is the
//! `Dialogue`), nor where records go (the `Recorder`), nor what a policy says (the `Chain`).

mod attempt;
mod client;
mod ledger;
mod limits;
mod pumps;
mod stream;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hoop_proto::dialogue::Dialogue;
use hoop_proto::end::{End, Refusal};
use hoop_proto::evidence::{self, event::Body};
use hoop_proto::link::control;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

pub use self::attempt::{ATTEMPT_PARAM_BYTES, ATTEMPT_PARAMS_BYTES, ATTEMPT_TEXT_BYTES, attempt};
pub use self::client::READ_AHEAD_BYTES;
pub use self::ledger::{RecordLimits, RecordMode};
pub use self::limits::{RESULT_OVERRUN_BYTES, SESSION_OVERTIME, SessionLimits};
pub use self::pumps::HELD_AFTER;

use self::client::ClientSide;
use self::ledger::Ledger;
use self::limits::Clocks;
use crate::control::ControlReceiver;
use crate::metrics::Counter;
use crate::mux::{Channel, Drive, LinkError, Mux, MuxEvent};
use crate::recorder::Recorder;
use crate::stage::Chain;

/// One side may talk on for so long after the other has ended.
pub const HALF_CLOSE_LINGER: Duration = Duration::from_secs(5);
/// A client gets so long to take the last message.
pub const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// Of that, so long its connection stays open once the last message is written, if it does not close itself: libpq drops
/// what it has read and not yet looked at when it finds the end right behind it, and closing on unread bytes would have
/// the client's system drop them.
pub const FAREWELL_REST: Duration = Duration::from_millis(250);
/// Bytes moved in one poll before other sessions get their turn.
const POLL_BYTES: usize = 512 * 1024;
/// Bytes moved in one poll before the clock is looked at: what bytes cost depends on what is in them, and rows of a few
/// bytes each cost far more than long ones.
const POLL_UNTIMED_BYTES: usize = 16 * 1024;
/// How long one poll may take once it has moved `POLL_UNTIMED_BYTES`, before other sessions get their turn. The link's
/// own task is among those who wait: one that waits for seconds cannot answer its peer's pings.
const POLL_TIME: Duration = Duration::from_millis(1);

/// How long a statement may be held for a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldLimits {
    pub limit: Duration,
    /// With a transaction open or a pipeline unanswered, for then it holds locks at the target.
    pub in_transaction: Duration,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(3600),
            in_transaction: Duration::from_secs(60),
        }
    }
}

/// A session's figures, as they grow. Shared with the `Session` actor, which tells them.
#[derive(Debug, Default)]
pub struct Counters {
    pub statements: Cell<u64>,
    /// Bytes from the client.
    pub client_bytes: Cell<u64>,
    /// Bytes from the target.
    pub target_bytes: Cell<u64>,
    /// Statements that wait for a reviewer now.
    pub held: Cell<u64>,
}

/// All sessions of the process together.
#[derive(Debug)]
pub struct Traffic {
    pub statements: Counter,
    pub client_bytes: Counter,
    pub target_bytes: Counter,
}

pub static TRAFFIC: Traffic = Traffic {
    statements: Counter::new(),
    client_bytes: Counter::new(),
    target_bytes: Counter::new(),
};

/// Figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub statements: u64,
    pub client_bytes: u64,
    pub target_bytes: u64,
}

impl Counters {
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            statements: self.statements.get(),
            client_bytes: self.client_bytes.get(),
            target_bytes: self.target_bytes.get(),
        }
    }
}

/// What a relay runs with.
pub struct Parts<C, D, R> {
    pub client: C,
    /// What the client sent behind its start-up already.
    pub early: Bytes,
    pub dialogue: D,
    pub channel: Channel,
    pub mux: Mux,
    pub recorder: R,
    pub chain: Chain,
    pub record: RecordLimits,
    pub holds: HoldLimits,
    pub control: ControlReceiver,
    pub counters: Rc<Counters>,
    pub limits: SessionLimits,
}

/// How a relay ended.
pub struct RelayEnd<R> {
    /// Why, in the words that the client was told where it was told anything.
    pub refusal: Refusal,
    pub counts: Counts,
    /// For the caller to append `Ended` to and commit.
    pub recorder: R,
}

/// What the two pumps share. No borrow of these is held across an await.
struct Relay<C, D, R> {
    client: RefCell<ClientSide<C>>,
    dialogue: RefCell<D>,
    ledger: RefCell<Ledger<R>>,
    control: RefCell<ControlReceiver>,
    chain: Chain,
    holds: HoldLimits,
    limits: SessionLimits,
    counters: Rc<Counters>,
    /// Bytes moved in this poll.
    moved: Cell<usize>,
    /// When this poll moved its first bytes.
    moving_since: Cell<Instant>,
    last_activity: Cell<Instant>,
    /// The client has said its last word.
    client_ended: Cell<bool>,
}

/// How one pump stopped.
enum Stop {
    /// The session ends now.
    Now(Refusal),
    /// The link is over; what it still holds goes to the client first.
    Link(LinkError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Now(refusal)
    }
}

/// Runs a session from its first statement to its end; every way of ending gives exactly one `RelayEnd`.
///
/// Each statement's attempt is committed before it is forwarded, each result appended before the client gets it. At the
/// end the client has been told why where its protocol allows it, statements without an answer have the outcome
/// `unknown`, and the link is closed with the reason. Must run within a `LocalSet`.
pub async fn run<C, D, R>(parts: Parts<C, D, R>) -> RelayEnd<R>
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
    D: Dialogue,
    R: Recorder,
{
    let mux = parts.mux;
    let (reader, writer) = parts.channel.split();
    let relay = Relay {
        client: RefCell::new(ClientSide::new(parts.client, parts.early)),
        dialogue: RefCell::new(parts.dialogue),
        ledger: RefCell::new(Ledger::new(parts.recorder, parts.record)),
        control: RefCell::new(parts.control),
        chain: parts.chain,
        holds: parts.holds,
        limits: parts.limits,
        counters: parts.counters,
        moved: Cell::new(0),
        moving_since: Cell::new(Instant::now()),
        last_activity: Cell::new(Instant::now()),
        client_ended: Cell::new(false),
    };
    let (refusal, told) = relay.pump(&mux, reader, writer).await;
    tracing::debug!(end = %refusal.end, "relay over");
    let orderly = match refusal.end {
        End::ClientClosed => relay.client_ended.get(),
        End::TargetClosed => true,
        _ => false,
    };
    mux.close(if orderly { None } else { Some(&refusal) });
    // Before the client is told: its patience is not the record's.
    let refusal = relay.close_record(refusal);
    let farewell = told.then(|| relay.dialogue.borrow().farewell(&refusal));
    if refusal.end != End::ClientClosed || relay.client_ended.get() {
        // A client that takes nothing, or is gone, does not hold up the end.
        let _ = tokio::time::timeout(FAREWELL_LIMIT, relay.part(farewell.unwrap_or_default())).await;
    }
    RelayEnd {
        refusal,
        counts: relay.counters.counts(),
        recorder: relay.ledger.into_inner().into_recorder(),
    }
}

impl<C, D, R> Relay<C, D, R>
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
    D: Dialogue,
    R: Recorder,
{
    /// Runs both pumps until the session ends. Answers why, and whether the client is to be told.
    async fn pump(
        &self,
        mux: &Mux,
        reader: crate::mux::ChannelReader,
        writer: crate::mux::ChannelWriter,
    ) -> (Refusal, bool) {
        let mut drive = mux.drive();
        let mut up = pin!(self.to_target(writer));
        let mut down = pin!(self.to_client(reader));
        let (mut up_over, mut down_over) = (false, false);
        // Set when one side has ended: the other gets until then.
        let mut linger: Option<(Pin<Box<Sleep>>, Refusal)> = None;
        let mut clocks = Clocks::start(&self.limits);
        poll_fn(|cx| {
            self.moved.set(0);
            drive.poll(cx);
            if let Some(refusal) = self.told(&drive, cx) {
                return Poll::Ready((refusal, true));
            }
            if !up_over {
                match up.as_mut().poll(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => up_over = true,
                    Poll::Ready(Err(Stop::Now(refusal))) => return Poll::Ready(with_client(refusal)),
                    Poll::Ready(Err(Stop::Link(error))) => {
                        up_over = true;
                        linger.get_or_insert_with(|| lingering(error.refusal()));
                    }
                }
            }
            if !down_over {
                match down.as_mut().poll(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => down_over = true,
                    Poll::Ready(Err(Stop::Now(refusal))) => return Poll::Ready(with_client(refusal)),
                    Poll::Ready(Err(Stop::Link(error))) => return Poll::Ready(with_client(error.refusal())),
                }
            }
            if down_over {
                // The target has said all, and the client has it.
                if self.client_ended.get() {
                    return Poll::Ready(with_client(client_closed()));
                }
                let closed = LinkError::Finished.refusal();
                if up_over || mux.ended().is_some() {
                    return Poll::Ready(with_client(closed));
                }
                linger.get_or_insert_with(|| lingering(closed));
            } else if linger.is_none() && mux.ended().is_some_and(|ended| ended != LinkError::Finished) {
                linger = mux.ended().map(|ended| lingering(ended.refusal()));
            }
            if let Some((sleep, refusal)) = &mut linger
                && sleep.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(with_client(refusal.clone()));
            }
            if let Poll::Ready(refusal) = self.poll_clocks(&mut clocks, cx) {
                return Poll::Ready((refusal, true));
            }
            Poll::Pending
        })
        .await
    }

    /// Says the last word, if there is one, leaves the client time to read it, and closes.
    async fn part(&self, farewell: Bytes) -> std::io::Result<()> {
        let client = &self.client;
        if !farewell.is_empty() {
            client.borrow_mut().push(farewell);
            poll_fn(|cx| client.borrow_mut().poll_flush(cx)).await?;
            let gone = poll_fn(|cx| client.borrow_mut().poll_discard(cx));
            let _ = tokio::time::timeout(FAREWELL_REST, gone).await;
        }
        poll_fn(|cx| client.borrow_mut().poll_shutdown(cx)).await
    }

    /// What was told to the session from outside: kills, notes for the record, the peer's control frames.
    fn told(&self, drive: &Drive, cx: &mut Context<'_>) -> Option<Refusal> {
        let mut control = self.control.borrow_mut();
        if let Poll::Ready(order) = control.poll_killed(cx) {
            let body = evidence::Control {
                kind: "kill".to_owned(),
                by: order.by,
            };
            let recorded = self.ledger.borrow_mut().append(Body::Control(body));
            return Some(recorded.err().unwrap_or(order.refusal));
        }
        while let Some(note) = control.take_note() {
            if let Err(refusal) = self.ledger.borrow_mut().append(note) {
                return Some(refusal);
            }
        }
        while let Some(event) = drive.mux().take_event() {
            if let MuxEvent::Control(_, message) = event
                && let Some(control::Body::Kill(kill)) = message.body
            {
                return Some(Refusal::new(End::from_code(&kill.code), kill.message, ""));
            }
        }
        None
    }

    /// Appends what became of statements that were not answered. The record's own failure is the stronger reason.
    fn close_record(&self, refusal: Refusal) -> Refusal {
        let unanswered = self.dialogue.borrow_mut().unanswered();
        self.ledger.borrow_mut().close(&unanswered).err().unwrap_or(refusal)
    }
}

fn lingering(refusal: Refusal) -> (Pin<Box<Sleep>>, Refusal) {
    (Box::pin(tokio::time::sleep(HALF_CLOSE_LINGER)), refusal)
}

fn client_closed() -> Refusal {
    Refusal::new(End::ClientClosed, "the client closed the connection", "")
}

/// Whether a client is told why: not where it, or its target, simply closed.
fn with_client(refusal: Refusal) -> (Refusal, bool) {
    let told = !matches!(refusal.end, End::ClientClosed | End::TargetClosed);
    (refusal, told)
}

#[cfg(test)]
mod tests;
