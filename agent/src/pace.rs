//! When the gateway may be dialled: at once for what is known to be missing, at most ten times a minute in search of
//! more, and with jittered exponential backoff while it does not answer. No timer, no socket: times are given.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Dials in search of a replica or arbiter that the balancer has not given yet, at most so many a minute.
pub const SEARCHES_PER_MINUTE: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// Between two searches at first; doubled after each duplicate that follows another, to a minute.
const SEARCH_GAP: Duration = Duration::from_secs(6);
/// Duplicates in a row before searching slows down: a fair balancer over a few replicas needs some.
const PATIENCE: u32 = 20;
/// The first wait after a failure; doubled with each that follows.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// No longer than this: a gateway that is back has its agents within five seconds, jitter spreading them.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After the gateway refused the key or the agent: only a person changes that.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
/// A link that held so long makes its loss a first failure.
const SETTLED: Duration = Duration::from_secs(10);

/// The state of dialling.
#[derive(Debug)]
pub struct Pace {
    /// Dials that may be made at once: the first, and one for each place that became known.
    free: usize,
    searches: VecDeque<Instant>,
    duplicates: u32,
    search_at: Instant,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Pace {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            free: 1,
            searches: VecDeque::new(),
            duplicates: 0,
            search_at: now,
            failures: 0,
            retry_at: None,
        }
    }

    /// May one more dial be made now, beside `dialling` others? Otherwise when to ask again; `None`: after the next
    /// event.
    pub fn take(&mut self, now: Instant, dialling: usize) -> Result<(), Option<Instant>> {
        if let Some(at) = self.retry_at {
            if now < at {
                return Err(Some(at));
            }
            // While the gateway does not answer, one dial at a time finds out whether it does.
            if dialling > 0 {
                return Err(None);
            }
            self.free = self.free.saturating_sub(1);
            return Ok(());
        }
        if self.free > 0 {
            self.free -= 1;
            return Ok(());
        }
        // Searching one by one: the answer to one decides about the next.
        if dialling > 0 {
            return Err(None);
        }
        while self
            .searches
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            self.searches.pop_front();
        }
        if now < self.search_at {
            return Err(Some(self.search_at));
        }
        if self.searches.len() >= SEARCHES_PER_MINUTE {
            return Err(self.searches.front().map(|oldest| *oldest + MINUTE));
        }
        self.searches.push_back(now);
        self.search_at = now + self.gap();
        Ok(())
    }

    fn gap(&self) -> Duration {
        let doublings = self.duplicates.saturating_sub(PATIENCE).min(4);
        (SEARCH_GAP * 2_u32.pow(doublings)).min(MINUTE)
    }

    /// So many more places are known to be missing.
    pub fn grown(&mut self, places: usize) {
        self.free += places;
        if places > 0 {
            self.duplicates = 0;
        }
    }

    /// A dial gave a link that was wanted.
    pub fn held(&mut self) {
        self.failures = 0;
        self.retry_at = None;
        self.duplicates = 0;
    }

    /// A dial gave a link that is held already; the gateway answers, though.
    pub fn duplicate(&mut self, now: Instant) {
        self.failures = 0;
        self.retry_at = None;
        self.duplicates = self.duplicates.saturating_add(1);
        self.search_at = self.search_at.max(now + self.gap().min(SEARCH_GAP));
    }

    /// A held link was lost: it may be dialled for again, after a moment that differs between agents. Links that are
    /// lost together are one failure.
    pub fn lost(&mut self, now: Instant, held_for: Duration) {
        self.free += 1;
        if self.retry_at.is_some() {
            return;
        }
        if held_for >= SETTLED {
            self.failures = 0;
        }
        self.retry_at = Some(now + self.next_wait());
    }

    /// A dial failed; `refused` where the gateway said that it does not want this agent. Gives how long the next waits.
    pub fn failed(&mut self, now: Instant, refused: bool) -> Duration {
        self.free = self.free.max(1);
        let wait = if refused {
            jitter(REFUSED_WAIT)
        } else {
            self.next_wait()
        };
        self.retry_at = Some(now + wait);
        wait
    }

    fn next_wait(&mut self) -> Duration {
        let full = (BACKOFF_FIRST * 2_u32.pow(self.failures.min(10))).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        jitter(full)
    }
}

/// Between a quarter and the whole, so that five hundred agents spread and none comes back at once.
fn jitter(full: Duration) -> Duration {
    full.mul_f64(0.25 + 0.75 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_dial_and_those_for_known_places_are_free() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.take(now, 0).unwrap();
        pace.held();
        pace.grown(7);
        for dialling in 0..7 {
            pace.take(now, dialling).unwrap();
        }
        assert_eq!(pace.take(now, 7), Err(None), "an eighth waits for the seven");
    }

    #[test]
    fn searching_makes_at_most_ten_dials_in_any_minute() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.take(now, 0).unwrap();
        let mut dials = Vec::new();
        for _ in 0..600 {
            if pace.take(now, 0).is_ok() {
                dials.push(now);
                pace.duplicate(now);
            }
            now += Duration::from_secs(1);
        }
        for start in &dials {
            let within = dials
                .iter()
                .filter(|at| **at >= *start && at.duration_since(*start) < MINUTE)
                .count();
            assert!(within <= SEARCHES_PER_MINUTE, "{within}");
        }
        assert!(dials.len() > 20, "{}", dials.len());
        let last = dials.windows(2).last().unwrap();
        assert!(
            last[1].duration_since(last[0]) >= Duration::from_secs(30),
            "searching slows down"
        );
    }

    #[test]
    fn failures_back_off_with_jitter_and_one_dial_at_a_time() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut last = Duration::ZERO;
        for attempt in 0..12_u32 {
            pace.take(now, 0).unwrap();
            assert!(pace.take(now, 1).is_err() || attempt == 0);
            let wait = pace.failed(now, false);
            let full = (BACKOFF_FIRST * 2_u32.pow(attempt.min(10))).min(BACKOFF_MAX);
            assert!(wait >= full / 4 && wait <= full, "{attempt}: {wait:?}");
            assert_eq!(pace.take(now, 0), Err(Some(now + wait)));
            now += wait;
            last = wait;
        }
        assert!(last <= BACKOFF_MAX);
        pace.held();
        pace.grown(1);
        pace.take(now, 0).unwrap();
    }

    #[test]
    fn links_that_are_lost_together_are_one_failure() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.held();
        for _ in 0..8 {
            pace.lost(now, Duration::from_secs(100));
        }
        let Err(Some(at)) = pace.take(now, 0) else {
            panic!("no wait")
        };
        assert!(at.duration_since(now) <= BACKOFF_FIRST);
        pace.take(at, 0).unwrap();
        assert!(pace.failed(at, false) <= BACKOFF_FIRST * 2);
    }

    #[test]
    fn a_refused_key_is_not_tried_in_a_hurry() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.take(now, 0).unwrap();
        assert!(pace.failed(now, true) >= REFUSED_WAIT / 4);
    }

    #[test]
    fn a_drained_link_is_replaced_at_once_and_a_lost_one_after_a_moment() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.take(now, 0).unwrap();
        pace.held();
        pace.grown(1);
        pace.take(now, 0).unwrap();
        pace.held();
        pace.lost(now, Duration::from_secs(100));
        let Err(Some(at)) = pace.take(now, 0) else {
            panic!("no wait")
        };
        assert!(at.duration_since(now) <= BACKOFF_FIRST);
        pace.take(at, 0).unwrap();
    }
}
