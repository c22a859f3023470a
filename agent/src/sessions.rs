//! How many sessions run in this process, over all links, and how they are told to end when the agent stops.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{AbortHandle, AbortRegistration, Abortable, Aborted};
use tokio::sync::Notify;

/// Why a session was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// As many run as the agent's configuration allows.
    Full(usize),
    /// The agent is stopping.
    Stopping,
}

/// The process-wide count. Cheap to clone; touched only when a session begins or ends.
#[derive(Debug, Clone)]
pub struct Sessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    next: AtomicU64,
    running: Mutex<Running>,
    idle: Notify,
}

#[derive(Debug, Default)]
struct Running {
    stopping: bool,
    sessions: HashMap<u64, AbortHandle>,
}

impl Sessions {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let running = Mutex::default();
        Self(Arc::new(Inner {
            limit,
            next: AtomicU64::new(0),
            running,
            idle: Notify::new(),
        }))
    }

    /// Lets one more session in; it counts until the admission is dropped.
    pub fn admit(&self) -> Result<Admission, NotAdmitted> {
        let mut running = self.0.lock();
        if running.stopping {
            return Err(NotAdmitted::Stopping);
        }
        if running.sessions.len() >= self.0.limit {
            return Err(NotAdmitted::Full(self.0.limit));
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (handle, registration) = AbortHandle::new_pair();
        running.sessions.insert(id, handle);
        Ok(Admission {
            id,
            registration: Some(registration),
            sessions: self.clone(),
        })
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().sessions.len()
    }

    /// No session is let in from now on.
    pub fn stop(&self) {
        self.0.lock().stopping = true;
        self.0.idle.notify_waiters();
    }

    /// Waits until no session runs.
    pub async fn idle(&self) {
        loop {
            let notified = self.0.idle.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Ends every session: each tells its peer and goes.
    pub fn end_all(&self) {
        for handle in self.0.lock().sessions.values() {
            handle.abort();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Running> {
        // Every change is a single insert or removal, so a panic elsewhere leaves nothing half done.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One admitted session.
#[derive(Debug)]
pub struct Admission {
    id: u64,
    registration: Option<AbortRegistration>,
    sessions: Sessions,
}

impl Admission {
    /// Runs `life` until it ends or every session is told to end. Costs a few atomic operations a poll and no lock.
    pub async fn until_stopped<F: Future>(&mut self, life: F) -> Result<F::Output, Aborted> {
        match self.registration.take() {
            Some(registration) => Abortable::new(life, registration).await,
            None => Ok(life.await),
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut running = self.sessions.0.lock();
        running.sessions.remove(&self.id);
        if running.sessions.is_empty() {
            self.sessions.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_holds_and_a_place_is_free_again_when_a_session_ends() {
        let sessions = Sessions::new(1);
        let first = sessions.admit().unwrap();
        assert_eq!(sessions.admit().unwrap_err(), NotAdmitted::Full(1));
        drop(first);
        sessions.admit().unwrap();
    }

    #[tokio::test]
    async fn stopping_lets_nobody_in_waits_for_those_inside_and_can_end_them() {
        let sessions = Sessions::new(10);
        let mut inside = sessions.admit().unwrap();
        sessions.stop();
        assert_eq!(sessions.admit().unwrap_err(), NotAdmitted::Stopping);
        let life = async move { inside.until_stopped(std::future::pending::<()>()).await };
        let waiting = async {
            assert_eq!(sessions.count(), 1);
            sessions.end_all();
            sessions.idle().await;
        };
        let (ended, ()) = tokio::join!(life, waiting);
        assert_eq!(ended, Err(Aborted));
    }
}
