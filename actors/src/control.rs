//! What may be told to a running session: end, go on after a hold, note something in the record.
//!
//! The sending half is held by the `Session` actor, the receiving half by the session's life, on the same thread. What
//! is told is kept until it is asked for, so nothing is lost between two waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use hoop_proto::end::Refusal;
use hoop_proto::evidence::event::Body;

use crate::slot::Slot;

/// Releases and notes that wait for the session at most, each.
pub const CONTROL_MAX: usize = 64;

/// The session is to end now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub refusal: Refusal,
    /// Who ended it: a user's name, or the part of the gateway that did.
    pub by: String,
}

/// A review was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The review's id, as the stage's `Hold` gave it.
    pub review: String,
    /// Go on, or refuse the statement.
    pub decision: Result<(), Refusal>,
}

#[derive(Default)]
struct Inner {
    order: Option<Order>,
    releases: VecDeque<Release>,
    notes: VecDeque<Body>,
    waiter: Slot,
}

/// The telling half. Cheap to clone.
#[derive(Clone, Default)]
pub struct ControlSender(Rc<RefCell<Inner>>);

/// The listening half: one for a session.
pub struct ControlReceiver(Rc<RefCell<Inner>>);

/// The two halves of one session's control.
#[must_use]
pub fn control() -> (ControlSender, ControlReceiver) {
    let sender = ControlSender::default();
    let receiver = ControlReceiver(sender.0.clone());
    (sender, receiver)
}

impl ControlSender {
    /// Tells the session to end. The first order stands.
    pub fn kill(&self, order: Order) {
        let mut inner = self.0.borrow_mut();
        inner.order.get_or_insert(order);
        inner.waiter.wake(None);
    }

    /// Tells that a review was decided. False where too many wait already.
    #[must_use]
    pub fn release(&self, release: Release) -> bool {
        let mut inner = self.0.borrow_mut();
        let room = inner.releases.len() < CONTROL_MAX;
        if room {
            inner.releases.push_back(release);
            inner.waiter.wake(None);
        }
        room
    }

    /// Adds something that happened to the session (a cancel) to its record. False where too many wait already.
    #[must_use]
    pub fn note(&self, body: Body) -> bool {
        let mut inner = self.0.borrow_mut();
        let room = inner.notes.len() < CONTROL_MAX;
        if room {
            inner.notes.push_back(body);
            inner.waiter.wake(None);
        }
        room
    }
}

impl ControlReceiver {
    /// Waits until the session is to end. May be asked again: the order stays.
    pub async fn killed(&mut self) -> Order {
        poll_fn(|cx| self.poll_killed(cx)).await
    }

    /// See [`ControlReceiver::killed`]. The waker is also woken by releases and notes.
    pub fn poll_killed(&mut self, cx: &mut Context<'_>) -> Poll<Order> {
        let mut inner = self.0.borrow_mut();
        match &inner.order {
            Some(order) => Poll::Ready(order.clone()),
            None => {
                inner.waiter.wait(cx);
                Poll::Pending
            }
        }
    }

    /// The decision over `review`, once it was told; others are kept.
    pub(crate) fn take_release(&self, review: &str) -> Option<Result<(), Refusal>> {
        let mut inner = self.0.borrow_mut();
        let at = inner.releases.iter().position(|release| release.review == review)?;
        inner.releases.remove(at).map(|release| release.decision)
    }

    pub(crate) fn take_note(&self) -> Option<Body> {
        self.0.borrow_mut().notes.pop_front()
    }
}

impl std::fmt::Debug for ControlSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlSender")
            .field("order", &self.0.borrow().order)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ControlReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlReceiver")
            .field("order", &self.0.borrow().order)
            .finish_non_exhaustive()
    }
}
