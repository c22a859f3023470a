//! Waiting times between attempts: doubled, capped, jittered.

use std::time::Duration;

/// Half of each waiting time is fixed and half random, so that many that failed together do not come back together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// `first` is the longest first wait, `cap` the longest of all.
    #[must_use]
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            failures: 0,
        }
    }

    /// How long to wait after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let longest = doubled.min(self.cap);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// It went well: the next failure is a first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

impl Default for Backoff {
    /// 100 ms to 10 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_are_jittered_by_half() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for longest_ms in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_delay().as_millis();
            assert!((longest_ms / 2..=longest_ms).contains(&wait), "{wait} of {longest_ms}");
        }
        backoff.reset();
        assert!(backoff.next_delay().as_millis() <= 100);
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        (0..100).for_each(|_| assert!(backoff.next_delay() <= Duration::from_secs(60)));
    }
}
