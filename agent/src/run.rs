//! The agent's tree, top to bottom: arbiters, sessions, planner; and how it stops.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use hoop_actors::handle::Handle;
use hoop_actors::keeper::{GaveUp, Keeper, Policy};
use tokio::time::timeout;

use crate::config::Config;
use crate::dial::{DialError, Dialer};
use crate::links::{CountHeld, Links, Stop};
use crate::sessions::Sessions;

/// How long ended sessions have to get their last frames out.
const FLUSH: Duration = Duration::from_millis(300);
/// How long sessions that were told to end may take.
const END_GRACE: Duration = Duration::from_secs(3);
/// The planner's answer.
const PLANNER_TIMEOUT: Duration = Duration::from_secs(5);

/// A running agent. Must be made within an actix `System`.
pub struct Agent {
    sessions: Sessions,
    keeper: Keeper,
    links: Handle<Links>,
    arbiters: Vec<Arbiter>,
    drain_deadline: Duration,
}

impl Agent {
    /// Starts everything; the first dial follows at once. `variable` looks a name up in the environment (for a proxy).
    pub fn start(config: Config, variable: impl Fn(&str) -> Option<String>) -> Result<Self, DialError> {
        let dialer = Dialer::new(&config.key, variable)?;
        let arbiters: Vec<Arbiter> = (0..config.arbiters).map(|_| Arbiter::new()).collect();
        let handles = Arc::new(arbiters.iter().map(Arbiter::handle).collect::<Vec<_>>());
        let sessions = Sessions::new(config.max_sessions);
        let drain_deadline = config.drain_deadline;
        let instance = rand::random();
        let keeper = Keeper::new();
        let admitted = sessions.clone();
        let planner = move || {
            Links::new(
                config.clone(),
                dialer.clone(),
                instance,
                admitted.clone(),
                Arc::clone(&handles),
            )
        };
        let links = keeper.keep("links", &Arbiter::current(), Policy::default(), planner);
        Ok(Self {
            sessions,
            keeper,
            links,
            arbiters,
            drain_deadline,
        })
    }

    /// Waits until an actor of the tree is given up; the process should end then.
    pub async fn gave_up(&self) -> GaveUp {
        self.keeper.gave_up().await
    }

    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Links that are held now.
    pub async fn links_held(&self) -> usize {
        self.links.ask(CountHeld, PLANNER_TIMEOUT).await.unwrap_or(0)
    }

    /// Takes no new session, tells the gateways so, waits for the running ones until the deadline or until `hurry` is
    /// done, ends those that are left, and stops the arbiters.
    pub async fn drain(self, hurry: impl Future<Output = ()>) {
        self.sessions.stop();
        if self.links.ask(Stop, PLANNER_TIMEOUT).await.is_err() {
            tracing::warn!("the planner did not answer; gateways were not told that the agent stops");
        }
        let running = self.sessions.count();
        tracing::info!(running, deadline_s = self.drain_deadline.as_secs(), "draining");
        let idle = tokio::select! {
            done = timeout(self.drain_deadline, self.sessions.idle()) => done.is_ok(),
            () = hurry => false,
        };
        if !idle {
            tracing::warn!(running = self.sessions.count(), "ending the sessions that are left");
            self.sessions.end_all();
            if timeout(END_GRACE, self.sessions.idle()).await.is_err() {
                tracing::warn!(running = self.sessions.count(), "some sessions did not end in time");
            }
        }
        tokio::time::sleep(FLUSH).await;
        self.keeper.stop();
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}
