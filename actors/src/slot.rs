//! Where one task of this thread waits for another: a waker that is kept between waits.

use std::task::{Context, Waker};

/// A waker that is kept between waits, and is only woken while somebody waits.
#[derive(Default)]
pub(crate) struct Slot {
    waker: Option<Waker>,
    armed: bool,
}

impl Slot {
    pub(crate) fn wait(&mut self, cx: &Context<'_>) {
        match &self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.waker = Some(cx.waker().clone()),
        }
        self.armed = true;
    }

    /// Wakes who waits, but not the task that is running now (`running`): it polls its waiters itself.
    pub(crate) fn wake(&mut self, running: Option<&Waker>) {
        if std::mem::take(&mut self.armed)
            && let Some(waker) = &self.waker
            && !running.is_some_and(|running| running.will_wake(waker))
        {
            waker.wake_by_ref();
        }
    }
}
