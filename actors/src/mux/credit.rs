//! Credit accounting of one channel, sending and receiving side. Pure: no clock, no queue, no waker.
//!
//! Credit is in bytes and in frames. Both sides assume the initial window without being told. A `Credit` frame with
//! neither bytes nor frames is the sender's word that it waits for credit: the receiver's window then grows if its
//! consumer has run dry and the way is long (`pace`), and not where the consumer is what is slow.

use std::time::Duration;

use super::pace::Amount;
use crate::budget::{ByteBudget, Reservation};

/// The window that both sides assume at first, in bytes.
pub const INITIAL_WINDOW_BYTES: u64 = 256 * 1024;
/// The window that both sides assume at first, in frames.
pub const INITIAL_WINDOW_FRAMES: u64 = 1024;
/// What a window is doubled to at most, in bytes.
pub const MAX_WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// What a window is doubled to at most, in frames.
pub const MAX_WINDOW_FRAMES: u64 = 16 * 1024;
/// Grants are of half an initial window, or of such a part of a grown one: what is consumed and not yet granted is kept
/// from the sender, so half of a window would be of no use over a long way.
const GRANT_PART: u64 = 8;
/// The largest payload of one Data frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 256 * 1024;
/// A grown window that has not limited its sender for so long is halved, and its bytes go back to the budget.
pub const WINDOW_DECAY: Duration = Duration::from_secs(10);

/// What a receiver tells its sender: so many bytes and frames more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant {
    pub bytes: u32,
    pub frames: u32,
}

/// What this side may still send on a channel.
#[derive(Debug)]
pub(crate) struct SendCredit {
    bytes: u64,
    frames: u64,
    /// The peer was told that we wait, and has not granted since.
    told: bool,
}

impl SendCredit {
    pub(crate) fn new() -> Self {
        Self {
            bytes: INITIAL_WINDOW_BYTES,
            frames: INITIAL_WINDOW_FRAMES,
            told: false,
        }
    }

    /// How much of `want` bytes one frame may carry now; 0 where there is no credit.
    pub(crate) fn offer(&self, want: usize) -> usize {
        if self.frames == 0 {
            return 0;
        }
        let credit = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        want.min(MAX_FRAME_BYTES).min(credit)
    }

    /// Uses up one frame of `bytes`, which `offer` allowed.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
        self.frames = self.frames.saturating_sub(1);
    }

    pub(crate) fn grant(&mut self, grant: Grant) {
        self.bytes = self.bytes.saturating_add(u64::from(grant.bytes));
        self.frames = self.frames.saturating_add(u64::from(grant.frames));
        self.told = false;
    }

    /// True once for each time that credit runs out: the peer is to be told.
    pub(crate) fn tell(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }
}

/// What the peer may still send on a channel, and what has become of what it sent.
#[derive(Debug)]
pub(crate) struct ReceiveCredit {
    // INVARIANT: allowed + queued + delivered + unreported = window, for bytes and (all but queued ones, which the
    // queue counts) for frames alike.
    bytes: Account,
    frames: Account,
    /// The sender waits for credit, as far as is known.
    wanted: bool,
    /// The window no longer limits: grants wait until half of it can be taken away.
    shrinking: bool,
    reservation: Reservation,
}

#[derive(Debug)]
struct Account {
    initial: u64,
    window: u64,
    /// What the sender may still send.
    allowed: u64,
    /// Received, and not yet taken by the consumer.
    queued: u64,
    /// Taken by the consumer, and not yet consumed.
    delivered: u64,
    /// Consumed, and not yet granted again.
    unreported: u64,
}

impl Account {
    fn new(window: u64) -> Self {
        Self {
            initial: window,
            window,
            allowed: window,
            queued: 0,
            delivered: 0,
            unreported: 0,
        }
    }

    fn receive(&mut self, n: u64) -> bool {
        let Some(left) = self.allowed.checked_sub(n) else {
            return false;
        };
        self.allowed = left;
        self.queued += n;
        true
    }

    fn deliver(&mut self, n: u64) {
        let n = n.min(self.queued);
        self.queued -= n;
        self.delivered += n;
    }

    fn consume(&mut self, n: u64) {
        let n = n.min(self.delivered);
        self.delivered -= n;
        self.unreported += n;
    }

    fn due(&self) -> bool {
        self.unreported >= (self.window / GRANT_PART).max(self.initial / 2)
    }

    fn half_unreported(&self) -> bool {
        self.unreported >= self.window / 2
    }

    /// Moves what is unreported back to the sender.
    fn report(&mut self) -> u32 {
        let granted = u32::try_from(self.unreported).unwrap_or(u32::MAX);
        self.unreported -= u64::from(granted);
        self.allowed += u64::from(granted);
        granted
    }

    /// Doubles the window up to `max`; what was added is the sender's at once.
    fn double(&mut self, max: u64) -> u32 {
        let more = self.window.min(max.saturating_sub(self.window));
        self.window += more;
        self.allowed += more;
        u32::try_from(more).unwrap_or(u32::MAX)
    }

    /// Halves the window, down to the initial one, by keeping back what was to be granted. Answers what was taken away.
    fn halve(&mut self) -> u64 {
        let less = (self.window / 2)
            .min(self.window.saturating_sub(self.initial))
            .min(self.unreported);
        self.window -= less;
        self.unreported -= less;
        less
    }
}

impl ReceiveCredit {
    pub(crate) fn new(budget: &ByteBudget) -> Self {
        Self {
            bytes: Account::new(INITIAL_WINDOW_BYTES),
            frames: Account::new(INITIAL_WINDOW_FRAMES),
            wanted: false,
            shrinking: false,
            reservation: budget.reservation(),
        }
    }

    /// A data frame came in. False where the sender had no credit for it.
    pub(crate) fn receive(&mut self, bytes: usize) -> bool {
        if self.bytes.queued > 0 {
            // The sender went on before the consumer ran dry: the window was wide enough.
            self.wanted = false;
        }
        self.frames.receive(1) && self.bytes.receive(bytes as u64)
    }

    /// The consumer took `bytes` that came in `frames` frames.
    pub(crate) fn deliver(&mut self, bytes: usize, frames: u64) {
        self.bytes.deliver(bytes as u64);
        self.frames.deliver(frames);
    }

    /// The far socket took `bytes` of what was delivered. Answers what is to be granted, if it is worth a frame.
    /// `decay` is asked only where a grant is due and the window has grown: has it not limited for `WINDOW_DECAY`?
    pub(crate) fn consume(&mut self, bytes: usize, decay: impl FnOnce() -> bool) -> Option<Grant> {
        let bytes = (bytes as u64).min(self.bytes.delivered);
        // Frames follow their bytes in proportion, and exactly once all bytes are consumed.
        let frames = if bytes == self.bytes.delivered {
            self.frames.delivered
        } else {
            self.frames.delivered.saturating_mul(bytes) / self.bytes.delivered.max(1)
        };
        self.bytes.consume(bytes);
        self.frames.consume(frames);
        if !self.bytes.due() && !self.frames.due() {
            return None;
        }
        if self.bytes.window > INITIAL_WINDOW_BYTES && self.bytes.due() && (self.shrinking || decay()) {
            self.shrinking = true;
            if !self.bytes.half_unreported() && !self.frames.half_unreported() {
                return None;
            }
            self.shrinking = false;
            let less = self.bytes.halve();
            self.reservation.shrink(less);
            self.frames.halve();
        }
        let grant = Grant {
            bytes: self.bytes.report(),
            frames: self.frames.report(),
        };
        (grant != Grant::default()).then_some(grant)
    }

    /// The sender said that it waits for credit.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// The consumer found nothing to take. Answers a larger window where the sender waits for credit, `limited` says
    /// that a larger one is of use, and the limit and the budget allow it; all that is unreported goes with it.
    pub(crate) fn starved(&mut self, limited: impl FnOnce(&Self) -> bool) -> Option<Grant> {
        // What was taken and not consumed means that the far socket is what is slow.
        if !self.wanted || self.bytes.delivered > 0 {
            return None;
        }
        self.wanted = false;
        self.shrinking = false;
        let more = self
            .bytes
            .window
            .min(MAX_WINDOW_BYTES.saturating_sub(self.bytes.window));
        let mut grant = Grant::default();
        if more > 0 && limited(self) && self.reservation.grow(more) {
            grant.bytes = self.bytes.double(MAX_WINDOW_BYTES);
            grant.frames = self.frames.double(MAX_WINDOW_FRAMES);
        }
        grant.bytes = grant.bytes.saturating_add(self.bytes.report());
        grant.frames = grant.frames.saturating_add(self.frames.report());
        (grant != Grant::default()).then_some(grant)
    }

    /// The window now, in bytes.
    pub(crate) fn window_bytes(&self) -> u64 {
        self.bytes.window
    }

    /// The window now.
    pub(crate) fn window(&self) -> Amount {
        Amount {
            bytes: self.bytes.window,
            frames: self.frames.window,
        }
    }

    /// What the sender may still send.
    pub(crate) fn allowed(&self) -> Amount {
        Amount {
            bytes: self.bytes.allowed,
            frames: self.frames.allowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl ReceiveCredit {
        fn check(&self) {
            for account in [&self.bytes, &self.frames] {
                let sum = account.allowed + account.queued + account.delivered + account.unreported;
                assert_eq!(sum, account.window, "credit is neither made nor lost: {account:?}");
            }
            assert!(self.bytes.window <= MAX_WINDOW_BYTES && self.bytes.window >= INITIAL_WINDOW_BYTES);
            assert!(self.frames.window <= MAX_WINDOW_FRAMES && self.frames.window >= INITIAL_WINDOW_FRAMES);
            assert_eq!(self.reservation.bytes(), self.bytes.window - INITIAL_WINDOW_BYTES);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Send(usize),
        Take,
        Consume(usize),
        Want,
        Starve,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1usize..300_000).prop_map(Step::Send),
            2 => (1usize..64).prop_map(Step::Send),
            3 => Just(Step::Take),
            4 => (0usize..300_000).prop_map(Step::Consume),
            1 => Just(Step::Want),
            1 => Just(Step::Starve),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, both sides agree: the sender's credit is the receiver's `allowed` once
        /// all grants have arrived, and the sums hold.
        #[test]
        fn credit_is_neither_made_nor_lost(steps in prop::collection::vec(step(), 1..400), decay: bool) {
            let budget = ByteBudget::new(4 * 1024 * 1024);
            let mut receiver = ReceiveCredit::new(&budget);
            let mut sender = SendCredit::new();
            let mut queue: std::collections::VecDeque<usize> = Default::default();
            for step in steps {
                let grant = match step {
                    Step::Send(want) => {
                        let n = sender.offer(want);
                        if n > 0 {
                            sender.spend(n);
                            prop_assert!(receiver.receive(n), "what the sender may send the receiver accepts");
                            queue.push_back(n);
                        }
                        None
                    }
                    Step::Take => {
                        if let Some(n) = queue.pop_front() {
                            receiver.deliver(n, 1);
                        }
                        None
                    }
                    Step::Consume(n) => receiver.consume(n, || decay),
                    Step::Want => {
                        receiver.want();
                        None
                    }
                    Step::Starve => receiver.starved(|_| true),
                };
                if let Some(grant) = grant {
                    sender.grant(grant);
                }
                receiver.check();
                prop_assert_eq!(sender.bytes, receiver.bytes.allowed);
                prop_assert_eq!(sender.frames, receiver.frames.allowed);
                prop_assert!(budget.used_bytes() <= budget.limit_bytes());
            }
        }

        /// A sender that has used up all its credit gets some again once everything is consumed, in any portions.
        #[test]
        fn a_consumer_that_goes_on_never_leaves_its_sender_without_credit(
            sizes in prop::collection::vec(1usize..70_000, 1..200),
            portion in 1usize..50_000,
            doublings in 0usize..7,
            decay: bool,
        ) {
            let budget = ByteBudget::default();
            let mut receiver = ReceiveCredit::new(&budget);
            let mut sender = SendCredit::new();
            for _ in 0..doublings {
                receiver.want();
                sender.grant(receiver.starved(|_| true).unwrap());
            }
            for mut want in sizes.into_iter().cycle().take(3_000) {
                while want > 0 {
                    let n = sender.offer(want);
                    prop_assert!(n > 0, "stuck: {receiver:?}");
                    sender.spend(n);
                    prop_assert!(receiver.receive(n));
                    receiver.deliver(n, 1);
                    want -= n;
                    let mut left = n;
                    while left > 0 {
                        let now = left.min(portion);
                        if let Some(grant) = receiver.consume(now, || decay) {
                            sender.grant(grant);
                        }
                        left -= now;
                    }
                }
            }
        }
    }

    #[test]
    fn one_byte_too_many_is_overstepping() {
        let mut receiver = ReceiveCredit::new(&ByteBudget::default());
        assert!(receiver.receive(INITIAL_WINDOW_BYTES as usize));
        assert!(!receiver.receive(1));
    }

    #[test]
    fn small_frames_count() {
        let mut receiver = ReceiveCredit::new(&ByteBudget::default());
        let accepted = (0..100_000).take_while(|_| receiver.receive(1)).count();
        assert_eq!(accepted as u64, INITIAL_WINDOW_FRAMES);
    }

    #[test]
    fn the_window_grows_only_while_it_limits_a_consumer_that_has_run_dry() {
        let budget = ByteBudget::default();
        let mut receiver = ReceiveCredit::new(&budget);
        assert!(receiver.starved(|_| true).is_none(), "the sender does not wait");
        let mut seen = vec![];
        for _ in 0..10 {
            receiver.want();
            receiver.starved(|_| true);
            seen.push(receiver.window_bytes() / 1024);
        }
        assert_eq!(seen, [512, 1024, 2048, 4096, 8192, 16384, 16384, 16384, 16384, 16384]);
        receiver.want();
        assert!(receiver.starved(|_| panic!("it is as large as it gets")).is_none());
        let mut near = ReceiveCredit::new(&budget);
        near.want();
        assert!(near.starved(|_| false).is_none(), "the way is short");
        // A slow consumer: the sender waits, and goes on before the consumer has run dry.
        let mut slow = ReceiveCredit::new(&budget);
        assert!(slow.receive(200_000) && slow.receive(10_000));
        slow.want();
        assert!(slow.receive(1_000));
        assert!(slow.starved(|_| true).is_none());
    }

    #[test]
    fn a_window_that_no_longer_limits_goes_back_to_the_budget() {
        let budget = ByteBudget::default();
        let mut receiver = ReceiveCredit::new(&budget);
        for _ in 0..6 {
            receiver.want();
            receiver.starved(|_| true);
        }
        assert_eq!(receiver.window_bytes(), MAX_WINDOW_BYTES);
        for _ in 0..10_000 {
            assert!(receiver.receive(64 * 1024));
            receiver.deliver(64 * 1024, 1);
            receiver.consume(64 * 1024, || true);
        }
        assert_eq!(receiver.window_bytes(), INITIAL_WINDOW_BYTES);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn without_budget_the_window_stays_and_nothing_is_lost() {
        let mut receiver = ReceiveCredit::new(&ByteBudget::new(0));
        assert!(receiver.receive(100));
        receiver.deliver(100, 1);
        assert!(receiver.consume(100, || false).is_none());
        receiver.want();
        assert_eq!(receiver.starved(|_| true), Some(Grant { bytes: 100, frames: 1 }));
        assert_eq!(receiver.window_bytes(), INITIAL_WINDOW_BYTES);
    }
}
