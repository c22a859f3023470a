//! How callers reach an actor that may be restarted: the current address behind a watch.
//!
//! An actix address dies with its actor, so callers never keep one; they keep a `Handle`.

use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AskError {
    /// No instance was running before the deadline; the message was not delivered.
    #[error("{0} is not running")]
    Down(&'static str),
    /// It failed too often, or was stopped, and will not be started again; the message was not delivered.
    #[error("{0} has been given up")]
    GaveUp(&'static str),
    /// The message was delivered (or waits in a full mailbox), and the deadline passed.
    #[error("{0} did not answer in time")]
    Late(&'static str),
    /// The instance ended before it answered; whether it acted is not known.
    #[error("{0} was lost before it answered")]
    Lost(&'static str),
}

/// What became of the latest instance.
pub(crate) enum Instance<A: Actor> {
    /// Being started, or waiting to be.
    Down,
    Up(Addr<A>),
    /// There will be no other.
    GaveUp,
}

/// A way to an actor, over its restarts. Cheap to clone, may cross threads.
pub struct Handle<A: Actor> {
    name: &'static str,
    instance: watch::Receiver<Instance<A>>,
}

impl<A: Actor> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            instance: self.instance.clone(),
        }
    }
}

impl<A: Actor> Handle<A> {
    pub(crate) fn new(name: &'static str, instance: watch::Receiver<Instance<A>>) -> Self {
        Self { name, instance }
    }

    /// A handle to an actor that nobody restarts.
    #[must_use]
    pub fn fixed(name: &'static str, addr: Addr<A>) -> Self {
        let (_, instance) = watch::channel(Instance::Up(addr));
        Self { name, instance }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The address of the running instance. Not to be kept.
    #[must_use]
    pub fn current(&self) -> Option<Addr<A>> {
        match &*self.instance.borrow() {
            Instance::Up(addr) if addr.connected() => Some(addr.clone()),
            _ => None,
        }
    }

    /// Sends `message` to the running instance, or to the next one if it starts in time, and waits for the answer, at
    /// most for `deadline` in all. Never sent twice.
    ///
    /// # Errors
    /// `AskError`; only `Down` and `GaveUp` mean that nothing was delivered.
    pub async fn ask<M>(&self, message: M, deadline: Duration) -> Result<M::Result, AskError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let until = Instant::now() + deadline;
        let addr = self.running(until).await?;
        match timeout_at(until, addr.send(message)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AskError::Lost(self.name)),
            Err(_) => Err(AskError::Late(self.name)),
        }
    }

    async fn running(&self, until: Instant) -> Result<Addr<A>, AskError> {
        let mut instance = self.instance.clone();
        let waiting = instance.wait_for(|instance| match instance {
            Instance::Up(addr) => addr.connected(),
            Instance::GaveUp => true,
            Instance::Down => false,
        });
        match timeout_at(until, waiting).await {
            Ok(Ok(found)) => match &*found {
                Instance::Up(addr) => Ok(addr.clone()),
                _ => Err(AskError::GaveUp(self.name)),
            },
            // The keeper is gone, and its last instance with it.
            Ok(Err(_)) => Err(AskError::GaveUp(self.name)),
            Err(_) => Err(AskError::Down(self.name)),
        }
    }
}

impl<A: Actor> std::fmt::Debug for Handle<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("name", &self.name)
            .field("up", &self.current().is_some())
            .finish()
    }
}
