//! Ending a process in order: phases one after the other, each with its limit, all under one deadline.
//!
//! The first `begin` drains; a second one hurries.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// What a phase still gets when the deadline has passed or somebody hurries: enough to write what is in memory.
pub const LAST_CHANCE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Draining(&'static str),
    Hurrying(&'static str),
}

/// Begins a shutdown, and tells that one has begun. Cheap to clone, may cross threads.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<watch::Sender<State>>);

impl Default for Trigger {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::Running)))
    }
}

impl Trigger {
    /// Begins the shutdown for this reason, or hurries one that has begun. The first reason stands.
    pub fn begin(&self, why: &'static str) {
        self.0.send_modify(|state| {
            *state = match *state {
                State::Running => State::Draining(why),
                State::Draining(first) | State::Hurrying(first) => State::Hurrying(first),
            };
        });
    }

    /// Waits until a shutdown has begun; answers why.
    pub async fn begun(&self) -> &'static str {
        let mut seen = self.0.subscribe();
        let state = seen
            .wait_for(|state| *state != State::Running)
            .await
            .map_or(State::Running, |state| *state);
        match state {
            State::Draining(why) | State::Hurrying(why) => why,
            // Unreachable while `self` holds the sender.
            State::Running => std::future::pending().await,
        }
    }

    /// Waits until somebody hurries.
    pub async fn hurried(&self) {
        let mut seen = self.0.subscribe();
        let _ = seen.wait_for(|state| matches!(state, State::Hurrying(_))).await;
    }

    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() != State::Running
    }

    /// Begins on SIGTERM and SIGINT, hurries on the next. Must be called within a runtime; ends with the trigger's use.
    ///
    /// # Errors
    /// The system's, where handlers cannot be set.
    #[cfg(unix)]
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let trigger = self.clone();
        tokio::spawn(async move {
            loop {
                let why = tokio::select! {
                    Some(()) = terminate.recv() => "SIGTERM",
                    Some(()) = interrupt.recv() => "SIGINT",
                    else => return,
                };
                tracing::info!(why, "signal");
                trigger.begin(why);
            }
        });
        Ok(())
    }
}

/// How a phase ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseEnd {
    Done,
    /// Its limit, or the deadline, passed.
    Late,
    /// Somebody hurried, and it was not done within `LAST_CHANCE`.
    Hurried,
}

struct Phase {
    name: &'static str,
    limit: Duration,
    work: LocalBoxFuture<'static, ()>,
}

/// The phases of one shutdown, in order.
pub struct Shutdown {
    trigger: Trigger,
    deadline: Duration,
    phases: Vec<Phase>,
}

impl Shutdown {
    /// `deadline` bounds all phases together, from `run` on; a phase that begins later gets `LAST_CHANCE`.
    #[must_use]
    pub fn new(trigger: Trigger, deadline: Duration) -> Self {
        Self {
            trigger,
            deadline,
            phases: Vec::new(),
        }
    }

    /// Adds a phase after those added before. Its work is not polled before its turn.
    #[must_use]
    pub fn phase(mut self, name: &'static str, limit: Duration, work: impl Future<Output = ()> + 'static) -> Self {
        self.phases.push(Phase {
            name,
            limit,
            work: Box::pin(work),
        });
        self
    }

    /// Runs the phases one after the other. A phase that is late is left behind, and the next begins.
    pub async fn run(self) -> Vec<(&'static str, PhaseEnd)> {
        let until = Instant::now() + self.deadline;
        let mut ends = Vec::with_capacity(self.phases.len());
        for Phase { name, limit, mut work } in self.phases {
            let started = Instant::now();
            let limit = limit.min(until.saturating_duration_since(started)).max(LAST_CHANCE);
            let end = tokio::select! {
                done = timeout(limit, &mut work) => if done.is_ok() { PhaseEnd::Done } else { PhaseEnd::Late },
                () = self.trigger.hurried() => match timeout(LAST_CHANCE, &mut work).await {
                    Ok(()) => PhaseEnd::Done,
                    Err(_) => PhaseEnd::Hurried,
                },
            };
            tracing::info!(
                phase = name,
                ?end,
                took_ms = started.elapsed().as_millis() as u64,
                "shutdown"
            );
            ends.push((name, end));
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn phases_run_one_after_the_other_and_a_late_one_is_left_behind() {
        let order = Rc::new(RefCell::new(vec![]));
        let note = |name, time| {
            let order = order.clone();
            async move {
                order.borrow_mut().push(name);
                sleep(time).await;
            }
        };
        let ends = Shutdown::new(Trigger::default(), 60 * SECOND)
            .phase("accept", SECOND, note("accept", Duration::ZERO))
            .phase("drain", 5 * SECOND, note("drain", 100 * SECOND))
            .phase("flush", SECOND, note("flush", SECOND / 2))
            .run()
            .await;
        assert_eq!(
            ends,
            [
                ("accept", PhaseEnd::Done),
                ("drain", PhaseEnd::Late),
                ("flush", PhaseEnd::Done)
            ]
        );
        assert_eq!(*order.borrow(), ["accept", "drain", "flush"]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_deadline_each_phase_still_gets_a_last_chance() {
        let start = Instant::now();
        let ends = Shutdown::new(Trigger::default(), SECOND)
            .phase("drain", 5 * SECOND, sleep(100 * SECOND))
            .phase("flush", 5 * SECOND, sleep(LAST_CHANCE / 2))
            .run()
            .await;
        assert_eq!(ends, [("drain", PhaseEnd::Late), ("flush", PhaseEnd::Done)]);
        assert!(start.elapsed() < 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_hurries() {
        let trigger = Trigger::default();
        assert!(!trigger.has_begun());
        trigger.begin("SIGTERM");
        assert_eq!(trigger.begun().await, "SIGTERM");
        let shutdown = Shutdown::new(trigger.clone(), 60 * SECOND)
            .phase("drain", 50 * SECOND, sleep(100 * SECOND))
            .phase("flush", 5 * SECOND, sleep(LAST_CHANCE / 2));
        let hurry = async {
            sleep(3 * SECOND).await;
            trigger.begin("SIGINT");
        };
        let start = Instant::now();
        let (ends, ()) = tokio::join!(shutdown.run(), hurry);
        assert_eq!(ends, [("drain", PhaseEnd::Hurried), ("flush", PhaseEnd::Done)]);
        assert!(start.elapsed() < 5 * SECOND);
        assert_eq!(trigger.begun().await, "SIGTERM", "the first reason stands");
    }
}
