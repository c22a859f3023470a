//! Keeps actors running: makes each anew from its factory when it has ended, also by a panic.
//!
//! actix's own `Supervisor` restarts the same value, at once, and not after a panic; hence this. An ended instance is
//! noticed by a guard that its context holds and drops.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::prelude::*;
use actix_rt::ArbiterHandle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::handle::{Handle, Instance};

/// When to restart and when to stop trying.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Waiting times; started anew after an instance that lived for `window`.
    pub backoff: Backoff,
    /// Given up at this many ends within `window`.
    pub give_up_at: usize,
    pub window: Duration,
}

impl Default for Policy {
    /// Ten ends within a minute.
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            give_up_at: 10,
            window: Duration::from_secs(60),
        }
    }
}

/// An actor ended too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GaveUp {
    pub name: &'static str,
    /// Ends within the policy's window.
    pub ends: usize,
}

/// Keeps actors. Cheap to clone, may cross threads.
#[derive(Clone, Debug)]
pub struct Keeper {
    stopping: Arc<watch::Sender<bool>>,
    gave_up: Arc<watch::Sender<Option<GaveUp>>>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self::new()
    }
}

impl Keeper {
    #[must_use]
    pub fn new() -> Self {
        Self {
            stopping: Arc::new(watch::Sender::new(false)),
            gave_up: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Starts an actor on `arbiter` and keeps it running. `factory` runs there, once an instance; a panic in it counts
    /// as an end.
    pub fn keep<A, F>(&self, name: &'static str, arbiter: &ArbiterHandle, policy: Policy, factory: F) -> Handle<A>
    where
        A: Actor<Context = Context<A>>,
        F: FnMut() -> A + Send + 'static,
    {
        let (instance, seen) = watch::channel(Instance::Down);
        let kept = Kept {
            name,
            policy,
            factory,
            instance,
            stopping: self.stopping.subscribe(),
        };
        let gave_up = self.gave_up.clone();
        let spawned = arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                if let Some(lost) = kept.run().await {
                    gave_up.send_replace(Some(lost));
                }
            });
        });
        if !spawned {
            tracing::error!(name, "its arbiter has stopped");
            self.gave_up.send_replace(Some(GaveUp { name, ends: 0 }));
        }
        Handle::new(name, seen)
    }

    /// Waits until some actor is given up. The tree decides what that means; mostly the end of the process.
    pub async fn gave_up(&self) -> GaveUp {
        let mut seen = self.gave_up.subscribe();
        let found = seen.wait_for(Option::is_some).await.ok().and_then(|found| *found);
        match found {
            Some(lost) => lost,
            // This keeper holds the sending half, so it cannot be gone.
            None => std::future::pending().await,
        }
    }

    /// Restarts nothing from now on. Each actor works off its mailbox and ends when nobody holds its address.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}

struct Kept<A: Actor, F> {
    name: &'static str,
    policy: Policy,
    factory: F,
    instance: watch::Sender<Instance<A>>,
    stopping: watch::Receiver<bool>,
}

impl<A, F> Kept<A, F>
where
    A: Actor<Context = Context<A>>,
    F: FnMut() -> A + Send + 'static,
{
    /// Until it is given up (then `Some`) or the keeper stops.
    async fn run(mut self) -> Option<GaveUp> {
        let mut ends: Vec<Instant> = Vec::new();
        loop {
            let started = Instant::now();
            if let Some(ended) = self.start() {
                tokio::select! {
                    () = stopped(self.stopping.clone()) => break,
                    () = ended => {}
                }
            }
            self.instance.send_replace(Instance::Down);
            if *self.stopping.borrow() {
                break;
            }
            let now = Instant::now();
            if now.duration_since(started) >= self.policy.window {
                self.policy.backoff.reset();
            }
            ends.retain(|end| now.duration_since(*end) < self.policy.window);
            ends.push(now);
            if ends.len() >= self.policy.give_up_at {
                tracing::error!(name = self.name, ends = ends.len(), "given up");
                self.instance.send_replace(Instance::GaveUp);
                return Some(GaveUp {
                    name: self.name,
                    ends: ends.len(),
                });
            }
            let delay = self.policy.backoff.next_delay();
            tracing::warn!(
                name = self.name,
                delay_ms = delay.as_millis() as u64,
                "ended, to be started again"
            );
            tokio::select! {
                () = stopped(self.stopping.clone()) => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.instance.send_replace(Instance::GaveUp);
        None
    }

    /// Starts an instance. The future answers when it has ended; `None` where the factory panicked.
    fn start(&mut self) -> Option<impl Future<Output = ()> + use<A, F>> {
        let (guard, ended) = oneshot::channel::<()>();
        let stopping = self.stopping.clone();
        let factory = &mut self.factory;
        let addr = catch_unwind(AssertUnwindSafe(|| {
            A::create(|ctx| {
                let actor = factory();
                // Dropped with the context, however that ends.
                ctx.spawn(wrap_future::<_, A>(async move {
                    let _guard = guard;
                    stopped(stopping).await;
                }));
                actor
            })
        }))
        .ok()?;
        self.instance.send_replace(Instance::Up(addr));
        Some(async move {
            let _ = ended.await;
        })
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    if stopping.wait_for(|stopping| *stopping).await.is_err() {
        // The last keeper was dropped without a word: go on keeping.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::handle::AskError;

    /// Says which instance it is; ends or panics on demand.
    struct Frail(usize);

    impl Actor for Frail {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "usize")]
    struct Which;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Stop;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Hang;

    impl Handler<Which> for Frail {
        type Result = usize;
        fn handle(&mut self, _: Which, _: &mut Self::Context) -> usize {
            self.0
        }
    }

    impl Handler<Panic> for Frail {
        type Result = ();
        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("on purpose");
        }
    }

    impl Handler<Stop> for Frail {
        type Result = ();
        fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
            ctx.stop();
        }
    }

    impl Handler<Hang> for Frail {
        type Result = ResponseFuture<()>;
        fn handle(&mut self, _: Hang, _: &mut Self::Context) -> Self::Result {
            Box::pin(std::future::pending())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn frail(keeper: &Keeper, give_up_at: usize) -> Handle<Frail> {
        let made = AtomicUsize::new(0);
        let policy = Policy {
            give_up_at,
            ..Policy::default()
        };
        keeper.keep("frail", &actix_rt::Arbiter::current(), policy, move || {
            Frail(made.fetch_add(1, Ordering::Relaxed) + 1)
        })
    }

    #[actix::test]
    async fn an_actor_comes_back_new_after_a_panic_and_after_a_stop() {
        tokio::time::pause();
        let handle = frail(&Keeper::new(), 10);
        assert_eq!(handle.ask(Which, SECOND).await, Ok(1));
        assert_eq!(handle.ask(Panic, SECOND).await, Err(AskError::Lost("frail")));
        assert_eq!(handle.ask(Which, SECOND).await, Ok(2));
        handle.ask(Stop, SECOND).await.unwrap();
        assert_eq!(handle.ask(Which, SECOND).await, Ok(3));
    }

    #[actix::test]
    async fn restarts_wait_longer_each_time() {
        tokio::time::pause();
        let handle = frail(&Keeper::new(), 10);
        let mut waits = vec![];
        for _ in 0..5 {
            let before = Instant::now();
            let _ = handle.ask(Panic, SECOND * 60).await;
            handle.ask(Which, SECOND * 60).await.unwrap();
            waits.push(before.elapsed());
        }
        assert!(
            waits[0] <= Duration::from_millis(120) && waits[4] >= Duration::from_millis(800),
            "{waits:?}"
        );
    }

    #[actix::test]
    async fn what_ends_too_often_is_given_up_and_the_tree_is_told() {
        tokio::time::pause();
        let keeper = Keeper::new();
        let handle = frail(&keeper, 3);
        for _ in 0..3 {
            let _ = handle.ask(Panic, SECOND).await;
        }
        assert_eq!(keeper.gave_up().await, GaveUp { name: "frail", ends: 3 });
        assert_eq!(handle.ask(Which, SECOND).await, Err(AskError::GaveUp("frail")));
    }

    #[actix::test]
    async fn rare_ends_are_never_too_many() {
        tokio::time::pause();
        let handle = frail(&Keeper::new(), 3);
        for n in 1..10 {
            assert_eq!(handle.ask(Which, SECOND).await, Ok(n));
            let _ = handle.ask(Panic, SECOND).await;
            tokio::time::sleep(SECOND * 31).await;
        }
    }

    #[actix::test]
    async fn a_factory_that_panics_counts_as_an_end() {
        tokio::time::pause();
        let keeper = Keeper::new();
        let policy = Policy {
            give_up_at: 2,
            ..Policy::default()
        };
        let handle = keeper.keep::<Frail, _>("broken", &actix_rt::Arbiter::current(), policy, || panic!("on purpose"));
        assert_eq!(handle.ask(Which, SECOND).await, Err(AskError::GaveUp("broken")));
        assert_eq!(keeper.gave_up().await.name, "broken");
    }

    #[actix::test]
    async fn an_ask_has_a_deadline() {
        tokio::time::pause();
        let handle = frail(&Keeper::new(), 3);
        let before = Instant::now();
        assert_eq!(handle.ask(Hang, SECOND).await, Err(AskError::Late("frail")));
        assert_eq!(before.elapsed().as_secs(), 1);
    }

    #[actix::test]
    async fn a_stopped_keeper_restarts_nothing() {
        tokio::time::pause();
        let keeper = Keeper::new();
        let handle = frail(&keeper, 3);
        handle.ask(Which, SECOND).await.unwrap();
        keeper.stop();
        tokio::time::sleep(SECOND).await;
        assert_eq!(handle.ask(Which, SECOND).await, Err(AskError::GaveUp("frail")));
    }

    #[actix::test]
    async fn a_handle_works_from_another_thread() {
        let handle = frail(&Keeper::new(), 3);
        let (answer, got) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            answer.send(runtime.block_on(handle.ask(Which, SECOND * 10))).unwrap();
        });
        assert_eq!(got.await.unwrap(), Ok(1));
    }
}
