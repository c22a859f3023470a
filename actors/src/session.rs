//! The actor that owns one session: its mailbox carries only control, so a kill always gets through.
//!
//! The session's life (handshake, decision, relay) is one local future, which the actor starts and, if it must, aborts.
//! The actor must not touch bytes. Never restarted; however it ends, its parent is told exactly once.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use actix::prelude::*;
use hoop_proto::end::{End, Refusal};
use hoop_proto::evidence::event::Body;
use tokio::task::AbortHandle;
use uuid::Uuid;

pub use crate::control::Release;
use crate::control::{ControlReceiver, ControlSender, Order, control};
use crate::relay::{Counters, Counts};

/// A session that was told to end gets so long to say farewell and close its record; then its life is aborted, in
/// milliseconds.
pub const KILL_GRACE_MS: u64 = 2_000;
/// Control messages that wait for one session at most.
const MAILBOX_MESSAGES: usize = 64;

/// What a life is given.
pub struct Ties {
    /// Kills, releases and notes for this session.
    pub control: ControlReceiver,
    /// The same from the telling side, for what the life itself hands on (a key's cancel, an expiring credential).
    pub sender: ControlSender,
    /// The figures that `Describe` and `Ended` tell.
    pub counters: Rc<Counters>,
}

/// One session.
pub struct Session {
    id: Uuid,
    control: ControlSender,
    counters: Rc<Counters>,
    life: Life,
    parent: Recipient<Ended>,
    /// The order to end, once there was one.
    killed: Option<Refusal>,
    reported: bool,
}

enum Life {
    Unborn(futures_util::future::LocalBoxFuture<'static, Refusal>),
    Running(AbortHandle),
    Over,
}

/// How a session's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By itself: it has told its client and closed its record.
    Finished,
    /// It panicked: its record is not closed.
    Panicked,
    /// It did not end within `KILL_GRACE_MS`, or its arbiter stopped: its record is not closed.
    Aborted,
}

/// Report to the parent: a session is over. Told exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Ended {
    pub session: Uuid,
    pub refusal: Refusal,
    pub counts: Counts,
    pub how: How,
}

/// Ends the session. Answered when the order was handed on, not when it was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Kill {
    pub end: End,
    /// Who ended it, for the record.
    pub by: String,
    /// For the client, one sentence.
    pub message: String,
}

/// Asks for the session's figures.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Description")]
pub struct Describe;

/// A session's figures now.
#[derive(Debug, Clone, PartialEq, Eq, MessageResponse)]
pub struct Description {
    pub session: Uuid,
    pub counts: Counts,
    /// Statements that wait for a reviewer.
    pub held: u64,
    /// The reason for which it was told to end, while it has not.
    pub ending: Option<End>,
}

impl Message for Release {
    /// False where too many decisions wait for this session already.
    type Result = bool;
}

/// Adds something that happened to the session from outside (a cancel) to its record. False where too many wait.
#[derive(Debug, Clone, PartialEq, Message)]
#[rtype(result = "bool")]
pub struct Note(pub Body);

impl Session {
    /// Starts a session on the current arbiter. `life` is made with the session's ties and answers why it ended.
    pub fn begin<F>(id: Uuid, parent: Recipient<Ended>, life: impl FnOnce(Ties) -> F) -> Addr<Self>
    where
        F: Future<Output = Refusal> + 'static,
    {
        let (sender, receiver) = control();
        let counters = Rc::new(Counters::default());
        let life = life(Ties {
            control: receiver,
            sender: sender.clone(),
            counters: counters.clone(),
        });
        Self {
            id,
            control: sender,
            counters,
            life: Life::Unborn(Box::pin(life)),
            parent,
            killed: None,
            reported: false,
        }
        .start()
    }

    fn report(&mut self, refusal: Refusal, how: How) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        if how != How::Finished {
            tracing::error!(session = %self.id, ?how, "session's life did not end by itself");
        }
        let ended = Ended {
            session: self.id,
            refusal,
            counts: self.counters.counts(),
            how,
        };
        let parent = self.parent.clone();
        // The parent's mailbox is bounded and may be full: wait for room without holding this actor up.
        if let Some(arbiter) = Arbiter::try_current() {
            let waiting = parent.clone();
            let copy = ended.clone();
            let spawned = arbiter.spawn_fn(move || {
                actix_rt::spawn(async move {
                    if waiting.send(copy).await.is_err() {
                        tracing::error!("a session's parent is lost");
                    }
                });
            });
            if spawned {
                return;
            }
        }
        if let Err(error) = parent.try_send(ended) {
            tracing::error!(session = %self.id, %error, "session's end not reported");
        }
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MESSAGES);
        let Life::Unborn(life) = std::mem::replace(&mut self.life, Life::Over) else {
            return;
        };
        // A task of its own: its polls do not pass through the actor's context, and a panic in it is caught there.
        let task = tokio::task::spawn_local(life);
        self.life = Life::Running(task.abort_handle());
        ctx.spawn(task.into_actor(self).map(|result, session, ctx| {
            session.life = Life::Over;
            let (refusal, how) = match result {
                Ok(refusal) => (refusal, How::Finished),
                Err(error) => {
                    let how = if error.is_panic() { How::Panicked } else { How::Aborted };
                    (session.killed.take().unwrap_or_else(internal), how)
                }
            };
            session.report(refusal, how);
            ctx.stop();
        }));
    }
}

impl Handler<Kill> for Session {
    type Result = ();

    fn handle(&mut self, kill: Kill, ctx: &mut Self::Context) {
        if self.killed.is_some() {
            return;
        }
        let refusal = Refusal::new(kill.end, kill.message, "");
        self.killed = Some(refusal.clone());
        self.control.kill(Order { refusal, by: kill.by });
        ctx.run_later(Duration::from_millis(KILL_GRACE_MS), |session, _| {
            if let Life::Running(life) = &session.life {
                life.abort();
            }
        });
    }
}

impl Handler<Describe> for Session {
    type Result = Description;

    fn handle(&mut self, _: Describe, _: &mut Self::Context) -> Description {
        Description {
            session: self.id,
            counts: self.counters.counts(),
            held: self.counters.held.get(),
            ending: self.killed.as_ref().map(|refusal| refusal.end),
        }
    }
}

impl Handler<Release> for Session {
    type Result = bool;

    fn handle(&mut self, release: Release, _: &mut Self::Context) -> bool {
        self.control.release(release)
    }
}

impl Handler<Note> for Session {
    type Result = bool;

    fn handle(&mut self, note: Note, _: &mut Self::Context) -> bool {
        self.control.note(note.0)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Life::Running(life) = &self.life {
            life.abort();
        }
        let refusal = self.killed.take().unwrap_or_else(internal);
        self.report(refusal, How::Aborted);
    }
}

fn internal() -> Refusal {
    Refusal::new(
        End::Internal,
        "the gateway failed while it served this session",
        "Connect again.",
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A parent that keeps what it is told.
    struct Parent(Rc<RefCell<Vec<Ended>>>);

    impl Actor for Parent {
        type Context = Context<Self>;
    }

    impl Handler<Ended> for Parent {
        type Result = ();
        fn handle(&mut self, ended: Ended, _: &mut Self::Context) {
            self.0.borrow_mut().push(ended);
        }
    }

    fn parent() -> (Recipient<Ended>, Rc<RefCell<Vec<Ended>>>) {
        let told = Rc::new(RefCell::new(vec![]));
        (Parent(told.clone()).start().recipient(), told)
    }

    async fn until_told(told: &Rc<RefCell<Vec<Ended>>>) -> Ended {
        for _ in 0..10_000 {
            if let Some(ended) = told.borrow().first() {
                return ended.clone();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the parent was never told");
    }

    fn closed() -> Refusal {
        Refusal::new(End::ClientClosed, "bye", "")
    }

    fn kill() -> Kill {
        Kill {
            end: End::Killed,
            by: "admin".into(),
            message: "ended by an administrator".into(),
        }
    }

    #[actix::test]
    async fn a_life_that_ends_is_reported_once_with_its_figures() {
        let (to, told) = parent();
        let id = Uuid::nil();
        Session::begin(id, to, |ties| async move {
            ties.counters.statements.set(3);
            closed()
        });
        let ended = until_told(&told).await;
        let counts = Counts {
            statements: 3,
            ..Counts::default()
        };
        assert_eq!(
            ended,
            Ended {
                session: id,
                refusal: closed(),
                counts,
                how: How::Finished
            }
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(told.borrow().len(), 1);
    }

    #[actix::test]
    async fn a_panic_in_a_life_is_reported_and_the_arbiter_lives_on() {
        let (to, told) = parent();
        Session::begin(Uuid::nil(), to, |_| async { panic!("on purpose") });
        let ended = until_told(&told).await;
        assert_eq!((ended.how, ended.refusal.end), (How::Panicked, End::Internal));
    }

    #[actix::test]
    async fn a_kill_reaches_a_life_and_the_session_can_be_described_meanwhile() {
        let (to, told) = parent();
        let addr = Session::begin(Uuid::nil(), to, |mut ties| async move {
            let order = ties.control.killed().await;
            assert_eq!(order.by, "admin");
            tokio::time::sleep(Duration::from_millis(20)).await;
            order.refusal
        });
        assert_eq!(addr.send(Describe).await.unwrap().ending, None);
        addr.send(kill()).await.unwrap();
        assert_eq!(addr.send(Describe).await.unwrap().ending, Some(End::Killed));
        let ended = until_told(&told).await;
        assert_eq!((ended.how, ended.refusal.end), (How::Finished, End::Killed));
        assert!(addr.send(Describe).await.is_err(), "the actor is gone with its session");
    }

    #[actix::test]
    async fn a_life_that_does_not_listen_is_aborted_after_the_grace() {
        tokio::time::pause();
        let (to, told) = parent();
        let start = tokio::time::Instant::now();
        let addr = Session::begin(Uuid::nil(), to, |_ties| std::future::pending());
        addr.send(kill()).await.unwrap();
        let ended = until_told(&told).await;
        assert_eq!((ended.how, ended.refusal.end), (How::Aborted, End::Killed));
        let took = start.elapsed().as_millis() as u64;
        assert!((KILL_GRACE_MS..KILL_GRACE_MS + 50).contains(&took), "{took} ms");
    }

    #[actix::test]
    async fn a_session_whose_addresses_are_dropped_lives_on() {
        let (to, told) = parent();
        drop(Session::begin(Uuid::nil(), to, |_| async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            closed()
        }));
        assert_eq!(until_told(&told).await.how, How::Finished);
    }
}
