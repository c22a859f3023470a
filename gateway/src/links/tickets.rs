//! One-time tickets: a session waits here for the Attach that its agent opens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hoop_proto::end::{End, Refusal};
use rand::Rng;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::FrameStream;

/// A ticket's length, in bytes.
pub const TICKET_BYTES: usize = 32;

/// What an Attach brings: the agent's frames, and where to put the stream of ours.
pub struct Attached {
    pub inbound: FrameStream,
    pub outbound: oneshot::Sender<FrameStream>,
}

type Answer = oneshot::Sender<Result<Attached, Refusal>>;

struct Waiting {
    session: Uuid,
    link: u64,
    answer: Answer,
}

/// All sessions of this replica that wait for their agent. Bounded by the number of sessions.
#[derive(Clone, Default)]
pub struct Tickets {
    waiting: Arc<Mutex<HashMap<[u8; TICKET_BYTES], Waiting>>>,
}

/// A ticket on its way. Dropping it takes it back.
pub struct Ticket {
    pub bytes: [u8; TICKET_BYTES],
    pub answer: oneshot::Receiver<Result<Attached, Refusal>>,
    tickets: Tickets,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tickets.lock().remove(&self.bytes);
    }
}

impl Tickets {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; TICKET_BYTES], Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for `session`, to be sent over the link `link`.
    #[must_use]
    pub fn issue(&self, session: Uuid, link: u64) -> Ticket {
        let mut bytes = [0u8; TICKET_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        let (sender, answer) = oneshot::channel();
        self.lock().insert(
            bytes,
            Waiting {
                session,
                link,
                answer: sender,
            },
        );
        Ticket {
            bytes,
            answer,
            tickets: self.clone(),
        }
    }

    /// Takes a ticket, once. A map keyed by 256 random bits tells an attacker nothing by its timing.
    #[must_use]
    pub fn redeem(&self, ticket: &[u8]) -> Option<(Uuid, Answer)> {
        let key: [u8; TICKET_BYTES] = ticket.try_into().ok()?;
        self.lock()
            .remove(&key)
            .map(|waiting| (waiting.session, waiting.answer))
    }

    /// The agent of this link will not serve this session.
    pub fn refuse(&self, link: u64, session: Uuid, refusal: Refusal) {
        let mut waiting = self.lock();
        let key = waiting
            .iter()
            .find(|(_, w)| w.session == session && w.link == link)
            .map(|(key, _)| *key);
        if let Some(waiting) = key.and_then(|key| waiting.remove(&key)) {
            drop(waiting.answer.send(Err(refusal)));
        }
    }

    /// A link is gone: whoever waits for it is told.
    pub fn link_lost(&self, link: u64) {
        let lost: Vec<Waiting> = self.lock().extract_if(|_, w| w.link == link).map(|(_, w)| w).collect();
        for waiting in lost {
            let refusal = Refusal::new(
                End::LinkLost,
                "the agent was lost before it reached the target",
                "Try again: another agent, or this one once it is back, will serve you.",
            );
            drop(waiting.answer.send(Err(refusal)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ticket_is_good_once_and_only_while_its_session_waits() {
        let tickets = Tickets::default();
        let session = Uuid::now_v7();
        let ticket = tickets.issue(session, 1);
        let bytes = ticket.bytes;
        assert_eq!(tickets.redeem(&bytes).map(|(id, _)| id), Some(session));
        assert!(tickets.redeem(&bytes).is_none());
        let second = tickets.issue(session, 1);
        let bytes = second.bytes;
        drop(second);
        assert!(tickets.redeem(&bytes).is_none());
        assert!(tickets.redeem(b"short").is_none());
    }

    #[tokio::test]
    async fn a_lost_link_fails_only_its_own_waiting_sessions() {
        let tickets = Tickets::default();
        let mut one = tickets.issue(Uuid::now_v7(), 1);
        let mut two = tickets.issue(Uuid::now_v7(), 2);
        tickets.link_lost(1);
        assert!(matches!(one.answer.try_recv(), Ok(Err(refusal)) if refusal.end == End::LinkLost));
        assert!(two.answer.try_recv().is_err());
    }
}
