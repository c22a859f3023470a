//! `Stop`: why the process should end, told once by whoever finds out: a signal, a lost lease.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Another replica gave this one up: it must claim a new place.
pub const LEASE_LOST: &str = "its lease was lost";

/// Cheap to clone.
#[derive(Clone)]
pub struct Stop {
    why: Arc<watch::Sender<Option<&'static str>>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            why: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Stop {
    /// Asks the process to end. The first reason stands.
    pub fn now(&self, why: &'static str) {
        self.why.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(why);
            first
        });
    }

    /// Waits until somebody asks. Answers why.
    pub async fn asked(&self) -> &'static str {
        let mut seen = self.why.subscribe();
        let why = seen.wait_for(Option::is_some).await.ok().and_then(|why| *why);
        why.unwrap_or("nobody is left to ask")
    }
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// The system's, where handlers cannot be set.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
