//! Live updates (`GET /api/events`): one feed a replica reads what is new while somebody listens, a bounded buffer
//! hands it to every listener, and each listener's stream shows only what its person may read.

mod feed;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoop_store::Store;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use self::feed::Feed;
pub use self::stream::{__path_live_events, live_events};
use crate::control::Control;
use crate::problem::Problem;

/// Events that wait for a listener at most, and that are kept for one that comes back.
const KEPT_EVENTS: usize = 1024;
/// Streams of one person at once, on one replica.
const STREAMS_PER_PERSON: usize = 16;
/// Streams at once, on one replica.
const STREAMS_MAX: usize = 1000;

/// Whom an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Who reads everything.
    Readers,
    /// Who reads everything, and this person.
    Owner(Uuid),
    /// Who does not read everything: one, or all of them.
    Member(Option<Uuid>),
}

/// One thing that happened.
#[derive(Debug)]
pub(crate) struct Happened {
    pub name: &'static str,
    /// JSON on one line.
    pub data: String,
    pub audience: Audience,
    /// Who this person is, and may read, is another question now.
    pub changes_person: Option<Uuid>,
}

/// With its number in the feed.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub number: u64,
    pub happened: Happened,
}

/// The replica's one hub of live updates. Cheap to clone.
#[derive(Clone)]
pub struct Live {
    shared: Arc<Mutex<Hub>>,
    /// Held while a feed begins, so that there is one.
    beginning: Arc<tokio::sync::Mutex<()>>,
    news: broadcast::Sender<Arc<Numbered>>,
    closing: watch::Sender<bool>,
}

struct Hub {
    /// Of the feed that runs: event ids of another one mean nothing here.
    feed: Uuid,
    running: bool,
    next: u64,
    kept: VecDeque<Arc<Numbered>>,
    streams: usize,
    streams_of: HashMap<Uuid, usize>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            shared: Arc::new(Mutex::new(Hub {
                feed: Uuid::nil(),
                running: false,
                next: 1,
                kept: VecDeque::new(),
                streams: 0,
                streams_of: HashMap::new(),
            })),
            beginning: Arc::default(),
            news: broadcast::channel(KEPT_EVENTS).0,
            closing: watch::channel(false).0,
        }
    }
}

/// A listener's place: what it missed, and what comes.
struct Subscription {
    feed: Uuid,
    /// Number of the last event before `missed`.
    at: u64,
    /// `None`: what it missed is not known any more.
    missed: Option<Vec<Arc<Numbered>>>,
    news: broadcast::Receiver<Arc<Numbered>>,
    closing: watch::Receiver<bool>,
    seat: Seat,
}

impl Live {
    /// Ends every stream: the server stops.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.hub().streams
    }

    /// Ends the feed where nobody listens. Who takes a seat after this begins another.
    fn ends_unheard(&self) -> bool {
        let mut hub = self.hub();
        if hub.streams == 0 {
            hub.running = false;
        }
        !hub.running
    }

    /// The feed that a stream began with runs.
    fn runs(&self, feed: Uuid) -> bool {
        let hub = self.hub();
        hub.running && hub.feed == feed
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `last` is the id of an event that was seen, with what came after it.
    async fn subscribe(
        &self,
        person: Uuid,
        last: Option<(Uuid, u64)>,
        store: &Store,
        control: &Arc<dyn Control>,
    ) -> Result<Subscription, Problem> {
        let seat = self.take_seat(person)?;
        let beginning = self.beginning.lock().await;
        if !self.hub().running {
            let feed = Feed::begin(store.clone(), Arc::clone(control)).await?;
            let mut hub = self.hub();
            hub.feed = Uuid::now_v7();
            hub.next = 1;
            hub.kept.clear();
            hub.running = true;
            let running = Running {
                live: self.clone(),
                feed: hub.feed,
            };
            drop(hub);
            actix_web::rt::spawn(feed.run(running));
        }
        drop(beginning);
        let hub = self.hub();
        let (missed, at) = hub.since(last);
        Ok(Subscription {
            feed: hub.feed,
            at,
            missed,
            news: self.news.subscribe(),
            closing: self.closing.subscribe(),
            seat,
        })
    }

    fn take_seat(&self, person: Uuid) -> Result<Seat, Problem> {
        let mut hub = self.hub();
        let own = hub.streams_of.get(&person).copied().unwrap_or_default();
        if hub.streams >= STREAMS_MAX || own >= STREAMS_PER_PERSON {
            return Err(Problem::too_many_streams(STREAMS_PER_PERSON));
        }
        hub.streams += 1;
        hub.streams_of.insert(person, own + 1);
        Ok(Seat {
            live: self.clone(),
            person,
        })
    }

    /// Hands events to every listener. A listener that is `KEPT_EVENTS` behind is told to read everything anew.
    pub(crate) fn publish(&self, happened: impl IntoIterator<Item = Happened>) {
        let mut hub = self.hub();
        for happened in happened {
            let event = Arc::new(Numbered {
                number: hub.next,
                happened,
            });
            hub.next += 1;
            if hub.kept.len() == KEPT_EVENTS {
                hub.kept.pop_front();
            }
            hub.kept.push_back(Arc::clone(&event));
            // an error says that nobody listens now
            drop(self.news.send(event));
        }
    }
}

impl Hub {
    /// What came after this event, and the number of the last one before that.
    fn since(&self, last: Option<(Uuid, u64)>) -> (Option<Vec<Arc<Numbered>>>, u64) {
        let newest = self.next - 1;
        let Some((feed, number)) = last else {
            return (Some(Vec::new()), newest);
        };
        let first_kept = self.kept.front().map_or(self.next, |event| event.number);
        if feed != self.feed || number > newest || number.saturating_add(1) < first_kept {
            return (None, newest);
        }
        let missed = self.kept.iter().filter(|event| event.number > number);
        (Some(missed.cloned().collect()), number)
    }
}

/// The running feed; dropping it, however it ends, lets the next listener begin another.
struct Running {
    live: Live,
    feed: Uuid,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut hub = self.live.hub();
        if hub.feed == self.feed {
            hub.running = false;
        }
    }
}

/// A stream's share of the limits.
struct Seat {
    live: Live,
    person: Uuid,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut hub = self.live.hub();
        hub.streams = hub.streams.saturating_sub(1);
        if let Some(own) = hub.streams_of.get_mut(&self.person) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                hub.streams_of.remove(&self.person);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(name: &'static str) -> Happened {
        Happened {
            name,
            data: "{}".into(),
            audience: Audience::Readers,
            changes_person: None,
        }
    }

    #[test]
    fn what_was_missed_is_told_again_while_it_is_kept() {
        let live = Live::default();
        let feed = Uuid::now_v7();
        live.hub().feed = feed;
        live.publish(["a", "b", "c"].map(happened));
        let since = |last| {
            let (missed, at) = live.hub().since(last);
            (missed.map(|m| m.iter().map(|e| e.number).collect::<Vec<_>>()), at)
        };
        assert_eq!(since(None), (Some(vec![]), 3));
        assert_eq!(since(Some((feed, 1))), (Some(vec![2, 3]), 1));
        assert_eq!(since(Some((feed, 3))), (Some(vec![]), 3));
        assert_eq!(since(Some((feed, 4))), (None, 3), "not told yet");
        assert_eq!(since(Some((Uuid::nil(), 1))), (None, 3), "another replica's");
        live.publish(std::iter::repeat_with(|| happened("d")).take(KEPT_EVENTS));
        let newest = KEPT_EVENTS as u64 + 3;
        assert_eq!(since(Some((feed, 2))), (None, newest), "too old");
        assert_eq!(since(Some((feed, 3))).0.map(|missed| missed.len()), Some(KEPT_EVENTS));
        assert_eq!(live.hub().kept.len(), KEPT_EVENTS);
    }

    #[test]
    fn one_person_cannot_take_every_seat() {
        let live = Live::default();
        let person = Uuid::now_v7();
        let seats: Vec<Seat> = (0..STREAMS_PER_PERSON)
            .map(|_| live.take_seat(person).unwrap())
            .collect();
        assert!(live.take_seat(person).is_err());
        let other = live.take_seat(Uuid::now_v7()).unwrap();
        drop(seats);
        drop(live.take_seat(person).unwrap());
        drop(other);
        assert_eq!((live.streams(), live.hub().streams_of.len()), (0, 0));
    }
}
