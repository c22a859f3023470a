//! How fast one channel is received, and how long its credit is under way: together they say how wide a window is of use.
//!
//! Pure: the caller brings the time. A window wider than what is consumed in one round trip of credit makes nothing
//! faster, and is memory that a consumer which stops later leaves filled.

use tokio::time::{Duration, Instant};

/// A window may be so many times what is consumed in a round trip: one part is consumed while the other is under way.
const ROUND_TRIPS: f64 = 2.0;
/// Weight of a new sample in the smoothed round trip (RFC 6298, section 2).
const SMOOTHING: f64 = 1.0 / 8.0;

/// Of what was received: bytes and frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub bytes: u64,
    pub frames: u64,
}

#[derive(Debug)]
pub(super) struct Pace {
    received: Amount,
    /// A grant under way: when it was made, and what the sender could send without it.
    probe: Option<(Instant, Amount)>,
    /// From a grant to the first data that needed it. What the far side takes to go on is part of it.
    round_trip_s: Option<f64>,
    /// Since when, and from how much on, the rate is taken.
    rate_from: (Instant, Amount),
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            received: Amount::default(),
            probe: None,
            round_trip_s: None,
            rate_from: (now, Amount::default()),
        }
    }

    /// One frame came in. `now` is asked only where it ends a round trip.
    pub(super) fn received(&mut self, bytes: usize, now: impl FnOnce() -> Instant) {
        self.received.bytes += bytes as u64;
        self.received.frames += 1;
        let Some((granted_at, edge)) = self.probe else { return };
        if self.received.bytes > edge.bytes || self.received.frames > edge.frames {
            self.probe = None;
            self.sample(now().duration_since(granted_at));
        }
    }

    fn sample(&mut self, round_trip: Duration) {
        let sample = round_trip.as_secs_f64();
        self.round_trip_s = Some(match self.round_trip_s {
            None => sample,
            Some(before) => before + SMOOTHING * (sample - before),
        });
    }

    /// Credit is granted to a sender that may still send `allowed` without it.
    pub(super) fn granted(&mut self, allowed: Amount, now: impl FnOnce() -> Instant) {
        if self.probe.is_none() {
            let edge = Amount {
                bytes: self.received.bytes + allowed.bytes,
                frames: self.received.frames + allowed.frames,
            };
            self.probe = Some((now(), edge));
        }
    }

    /// Whether `window` is less than what may be of use, at the rate since this was last asked. Not before a round trip
    /// has been seen.
    pub(super) fn limited_by(&mut self, window: Amount, now: Instant) -> bool {
        let (since, before) = std::mem::replace(&mut self.rate_from, (now, self.received));
        let elapsed_s = now.duration_since(since).as_secs_f64();
        let Some(round_trip_s) = self.round_trip_s else {
            return false;
        };
        let of_use = |received: u64, before: u64| {
            let consumed = received.saturating_sub(before) as f64;
            // Where no time has passed, all of it came within a round trip.
            let round_trips = (elapsed_s / round_trip_s).max(1.0);
            ROUND_TRIPS * consumed / round_trips
        };
        of_use(self.received.bytes, before.bytes) > window.bytes as f64
            || of_use(self.received.frames, before.frames) > window.frames as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const WINDOW: Amount = Amount {
        bytes: 256 * KIB,
        frames: 1024,
    };

    /// A sender that is held up by its window only: in each round trip it sends one window, in frames of 64 KiB.
    fn asked_after(round_trip_ms: u64, consumed_in_ms: u64) -> bool {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        let mut limited = false;
        for _ in 0..4 {
            limited = pace.limited_by(WINDOW, now);
            pace.granted(Amount::default(), || now);
            now += Duration::from_millis(round_trip_ms);
            for _ in 0..4 {
                pace.received(64 * KIB as usize, || now);
            }
            now += Duration::from_millis(consumed_in_ms);
        }
        limited
    }

    #[tokio::test]
    async fn a_window_limits_where_the_way_is_long_and_not_where_the_consumer_is_slow() {
        assert!(asked_after(50, 0));
        assert!(asked_after(50, 20));
        assert!(!asked_after(1, 50), "a consumer that takes 50 ms for a window");
        assert!(!asked_after(0, 1), "no way at all");
    }

    #[tokio::test]
    async fn many_small_frames_are_limited_by_their_number() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut limited = false;
        for round in 0..3 {
            let now = start + Duration::from_millis(50 * round);
            limited = pace.limited_by(WINDOW, now);
            pace.granted(Amount::default(), || now);
            for _ in 0..1024 {
                pace.received(1, || now + Duration::from_millis(50));
            }
        }
        assert!(limited);
    }

    #[tokio::test]
    async fn before_a_round_trip_was_seen_nothing_is_known() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.received(256 * 1024, || start);
        assert!(!pace.limited_by(WINDOW, start));
    }
}
