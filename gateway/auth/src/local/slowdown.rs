//! How guessing is slowed: who may try now, and who has to wait. It has no clock: every time is handed in.
//!
//! Failures are counted thrice. By *(account, network)*: after a few, each next one doubles the wait. By *network* over all
//! accounts, more patiently, against whoever tries one password on every account. By *account* over all networks: that one
//! makes an answer slower, by two seconds at most, and never refuses one, or strangers could lock a person out. A count
//! shrinks by one for each while without a failure, so that patience earns no new burst.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use unicode_normalization::UnicodeNormalization;

/// When a count makes its owner wait, and how long.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// Failures before the first wait.
    free: u32,
    /// Longest wait. Not above `forgive`, so that a wait is over before its failure is forgiven.
    wait_max: Duration,
    /// The while without a failure for which one is forgiven.
    forgive: Duration,
}

/// One account from everywhere: it never waits. Past the free failures its answers are slowed.
const ACCOUNT: Budget = Budget {
    free: 20,
    wait_max: Duration::ZERO,
    forgive: Duration::from_secs(60),
};
const ACCOUNT_SLOW_STEP: Duration = Duration::from_millis(100);
const ACCOUNT_SLOW_MAX: Duration = Duration::from_secs(2);

/// One account from one network: 5 at once, and in the long run one in 15 minutes.
const PAIR: Budget = Budget {
    free: 5,
    wait_max: Duration::from_secs(15 * 60),
    forgive: Duration::from_secs(15 * 60),
};
/// All accounts from one address, which may be that of an office: 50 at once, and in the long run one a minute.
const HOST: Budget = Budget {
    free: 50,
    wait_max: Duration::from_secs(60),
    forgive: Duration::from_secs(60),
};
/// All accounts from one IPv6 /48, within which its owner makes addresses at will.
const SITE: Budget = Budget {
    free: 400,
    wait_max: Duration::from_secs(60),
    forgive: Duration::from_secs(10),
};
/// Counts kept of each kind, at about 50 bytes.
const COUNTS_MAX: usize = 65_536;
/// The part of them that makes way at once, so that a flood pays for the search seldom.
const DROPPED_PART: usize = 8;
/// Characters of an account's name that are told apart.
const ACCOUNT_MAX_CHARS: usize = 128;
/// IPv6 prefixes, in bits: what one subscriber has at least, and at most.
const HOST_BITS: u32 = 64;
const SITE_BITS: u32 = 48;

/// One process's account of failed attempts.
///
/// Memory is bounded. What makes way for something new are the lowest counts, the oldest of them first: to have a count of
/// *n* forgotten before its time, somebody has to fail *n* times in each of tens of thousands of other places, with which
/// they could have had far more than *n* guesses.
#[derive(Debug)]
pub struct Slowdown {
    /// Keys are hashed with a random key: what is typed as an account's name, at times a password, is not kept.
    hasher: RandomState,
    counts: Mutex<Counts>,
}

/// An attempt that may go on. It counts as failed until [`Slowdown::succeeded`] or [`Slowdown::withdrawn`] takes it back:
/// so attempts at the same time do not get past the count, and one that is lost is no gift.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Attempt {
    /// Wait this long before the password is looked at.
    pub slow: Duration,
    pair: Counted,
    account: Counted,
    host: Counted,
    site: Option<Counted>,
}

/// Too many failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many failed attempts; wait {} s", self.retry_after_s())]
pub struct TooMany {
    pub wait: Duration,
}

impl TooMany {
    /// For the header `Retry-After`.
    #[must_use]
    pub fn retry_after_s(&self) -> u64 {
        self.wait
            .as_secs()
            .saturating_add(u64::from(self.wait.subsec_nanos() > 0))
    }
}

/// What counting did to one count, to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    key: u64,
    at: Instant,
    before: Option<Instant>,
}

#[derive(Debug)]
struct Counts {
    pairs: Table,
    accounts: Table,
    hosts: Table,
    sites: Table,
}

/// Counts with one budget.
#[derive(Debug)]
struct Table {
    budget: Budget,
    max: usize,
    counts: HashMap<u64, Count>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    failures: u32,
    last: Instant,
}

impl Default for Slowdown {
    fn default() -> Self {
        Self::with_max(COUNTS_MAX)
    }
}

impl Slowdown {
    fn with_max(max: usize) -> Self {
        let table = |budget| Table {
            budget,
            max,
            counts: HashMap::new(),
        };
        let counts = Counts {
            pairs: table(PAIR),
            accounts: table(ACCOUNT),
            hosts: table(HOST),
            sites: table(SITE),
        };
        Self {
            hasher: RandomState::new(),
            counts: Mutex::new(counts),
        }
    }

    /// May somebody at `address` try to sign in to `account` at `now`? Ask for accounts that do not exist too, by the name
    /// that was typed. Without an address everybody is in one network.
    ///
    /// # Errors
    /// How long they have to wait. Nothing is counted then.
    pub fn begin(&self, account: &str, address: Option<IpAddr>, now: Instant) -> Result<Attempt, TooMany> {
        let account = fold(account);
        let (host, site) = networks(address);
        let pair = self.hasher.hash_one(("pair", &account, host));
        let account = self.hasher.hash_one(("account", &account));
        let host = self.hasher.hash_one(("host", host));
        let site = site.map(|site| self.hasher.hash_one(("site", site)));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = [
            counts.pairs.wait(pair, now),
            counts.hosts.wait(host, now),
            site.map_or(Duration::ZERO, |site| counts.sites.wait(site, now)),
        ];
        let wait = waits.into_iter().max().unwrap_or_default();
        if !wait.is_zero() {
            return Err(TooMany { wait });
        }
        Ok(Attempt {
            slow: slow(counts.accounts.level(account, now)),
            pair: counts.pairs.count(pair, now),
            account: counts.accounts.count(account, now),
            host: counts.hosts.count(host, now),
            site: site.map(|site| counts.sites.count(site, now)),
        })
    }

    /// The password, or the code, was wrong. The attempt stays counted.
    pub fn failed(&self, attempt: Attempt) {
        drop(attempt);
    }

    /// It was right: this was no failure, and those of this account from this network are forgotten. What strangers did to
    /// the account, and what the network did to others, stays.
    pub fn succeeded(&self, attempt: Attempt) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.pairs.counts.remove(&attempt.pair.key);
        counts.take_back_shared(&attempt);
    }

    /// It was never judged, because something of ours failed.
    pub fn withdrawn(&self, attempt: Attempt) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.pairs.take_back(attempt.pair);
        counts.take_back_shared(&attempt);
    }
}

impl Counts {
    fn take_back_shared(&mut self, attempt: &Attempt) {
        self.accounts.take_back(attempt.account);
        self.hosts.take_back(attempt.host);
        if let Some(site) = attempt.site {
            self.sites.take_back(site);
        }
    }
}

impl Table {
    /// Failures of `key` that are not forgiven yet.
    fn level(&self, key: u64, now: Instant) -> u32 {
        self.counts
            .get(&key)
            .map_or(0, |count| count.level(self.budget.forgive, now))
    }

    /// How long `key` still has to wait.
    fn wait(&self, key: u64, now: Instant) -> Duration {
        let Budget {
            free,
            wait_max,
            forgive,
        } = self.budget;
        let Some(count) = self.counts.get(&key) else {
            return Duration::ZERO;
        };
        let Some(over) = count.level(forgive, now).checked_sub(free) else {
            return Duration::ZERO;
        };
        let doubled = 1u64.checked_shl(over).map_or(wait_max, Duration::from_secs);
        doubled
            .min(wait_max)
            .saturating_sub(now.saturating_duration_since(count.last))
    }

    fn count(&mut self, key: u64, now: Instant) -> Counted {
        self.make_room(key, now);
        let count = self.counts.entry(key).or_insert(Count { failures: 0, last: now });
        let before = (count.failures > 0).then_some(count.last);
        count.failures = count.level(self.budget.forgive, now).saturating_add(1);
        count.last = count.last.max(now);
        Counted {
            key,
            at: count.last,
            before,
        }
    }

    /// Takes one failure back, and its wait with it, unless a later one set another.
    fn take_back(&mut self, counted: Counted) {
        let Some(count) = self.counts.get_mut(&counted.key) else {
            return;
        };
        count.failures = count.failures.saturating_sub(1);
        if count.failures == 0 {
            self.counts.remove(&counted.key);
        } else if let Some(before) = counted.before.filter(|_| count.last == counted.at) {
            count.last = before;
        }
    }

    /// Lets what is forgiven go, and then the lowest counts, the oldest of them first, where `key` would be one too many.
    fn make_room(&mut self, key: u64, now: Instant) {
        if self.counts.len() < self.max || self.counts.contains_key(&key) {
            return;
        }
        let forgive = self.budget.forgive;
        self.counts.retain(|_, count| count.level(forgive, now) > 0);
        let kept = self.max.saturating_sub((self.max / DROPPED_PART).max(1));
        let dropped = self.counts.len().saturating_sub(kept);
        let ranked = self
            .counts
            .iter()
            .map(|(key, count)| (count.level(forgive, now), count.last, *key));
        let mut ranked: Vec<(u32, Instant, u64)> = ranked.collect();
        if dropped < ranked.len() {
            ranked.select_nth_unstable(dropped);
        }
        for (_, _, key) in ranked.into_iter().take(dropped) {
            self.counts.remove(&key);
        }
    }
}

impl Count {
    fn level(&self, forgive: Duration, now: Instant) -> u32 {
        let quiet = now.saturating_duration_since(self.last).as_secs();
        let forgiven = quiet / forgive.as_secs().max(1);
        self.failures
            .saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

fn slow(failures: u32) -> Duration {
    ACCOUNT_SLOW_STEP
        .saturating_mul(failures.saturating_sub(ACCOUNT.free))
        .min(ACCOUNT_SLOW_MAX)
}

/// Names that a person would take for the same count as the same.
fn fold(account: &str) -> String {
    let account = account.chars().take(ACCOUNT_MAX_CHARS).nfkc();
    account.flat_map(char::to_lowercase).take(ACCOUNT_MAX_CHARS).collect()
}

/// The network that one subscriber has at least, and for IPv6 the one that they may have at most.
fn networks(address: Option<IpAddr>) -> (Option<IpAddr>, Option<IpAddr>) {
    match address.map(|address| address.to_canonical()) {
        None => (None, None),
        Some(v4 @ IpAddr::V4(_)) => (Some(v4), None),
        Some(IpAddr::V6(v6)) => {
            let prefix = |bits: u32| {
                let mask = u128::MAX.checked_shl(u128::BITS.saturating_sub(bits)).unwrap_or(0);
                Some(IpAddr::V6((u128::from(v6) & mask).into()))
            };
            (prefix(HOST_BITS), prefix(SITE_BITS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(n: u32) -> Option<IpAddr> {
        Some(IpAddr::V4((0x0a00_0000 | n).into()))
    }

    fn v6(site: u16, host: u16, interface: u16) -> Option<IpAddr> {
        Some(IpAddr::from([0x2001, 0xdb8, site, host, 0, 0, 0, interface]))
    }

    /// Fails until told to wait; how long then.
    fn exhaust(slowdown: &Slowdown, account: &str, address: Option<IpAddr>, now: Instant) -> Duration {
        for _ in 0..1_000 {
            match slowdown.begin(account, address, now) {
                Ok(attempt) => slowdown.failed(attempt),
                Err(too_many) => return too_many.wait,
            }
        }
        panic!("never told to wait");
    }

    #[test]
    fn each_failure_past_the_free_ones_doubles_the_wait() {
        let slowdown = Slowdown::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = exhaust(&slowdown, "ada", v4(1), now);
            waits.push(wait.as_secs());
            let early = slowdown
                .begin("ADA", v4(1), now + wait - Duration::from_millis(1))
                .unwrap_err();
            assert_eq!(early.retry_after_s(), 1);
            now += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
    }

    #[test]
    fn quiet_forgives_one_failure_at_a_time() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        exhaust(&slowdown, "ada", v4(1), now);
        let later = now + PAIR.forgive;
        slowdown.failed(slowdown.begin("ada", v4(1), later).unwrap());
        assert!(
            slowdown.begin("ada", v4(1), later).is_err(),
            "one was forgiven, not all"
        );
    }

    #[test]
    fn success_forgets_the_pair_and_nothing_of_others() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        for _ in 0..3 * HOST.free {
            for _ in 0..PAIR.free - 1 {
                let attempt = slowdown.begin("ada", v4(1), now).unwrap();
                slowdown.withdrawn(attempt);
            }
            let attempt = slowdown.begin("ada", v4(1), now).unwrap();
            slowdown.succeeded(attempt);
        }
        let mut guessed = 0;
        for n in 0..2 * HOST.free {
            // an attacker's own account, with which he succeeds, earns him no guess at another
            if let Ok(own) = slowdown.begin("mallory", v4(1), now) {
                slowdown.succeeded(own);
            }
            if let Ok(guess) = slowdown.begin(&format!("user{n}"), v4(1), now) {
                slowdown.failed(guess);
                guessed += 1;
            }
        }
        assert_eq!(guessed, HOST.free);
    }

    #[test]
    fn a_success_does_not_prolong_the_wait_of_its_network() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        for n in 0..HOST.free {
            slowdown.failed(slowdown.begin(&format!("user{n}"), v4(1), now).unwrap());
        }
        let later = now + Duration::from_secs(5);
        for _ in 0..10 {
            slowdown.succeeded(slowdown.begin("ada", v4(1), later).unwrap());
        }
    }

    #[test]
    fn ipv6_counts_by_the_subscriber_and_by_the_site() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        exhaust(&slowdown, "ada", v6(1, 1, 1), now);
        assert!(
            slowdown.begin("ada", v6(1, 1, 99), now).is_err(),
            "another address of the same /64"
        );
        let guessed = (0..1_000)
            .filter(|n| slowdown.begin("bob", v6(2, *n, 1), now).is_ok())
            .count();
        assert_eq!(guessed, SITE.free as usize, "one /48 makes addresses at will");
        assert!(slowdown.begin("bob", v6(3, 1, 1), now).is_ok());
        let mapped = Some("::ffff:10.0.0.1".parse().unwrap());
        exhaust(&slowdown, "eve", mapped, now);
        assert!(
            slowdown.begin("eve", v4(1), now).is_err(),
            "a mapped address is the IPv4 one"
        );
    }

    #[test]
    fn without_an_address_all_share_one_network() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        let guessed = (0..1_000)
            .filter(|n| slowdown.begin(&format!("user{n}"), None, now).is_ok())
            .count();
        assert_eq!(guessed, HOST.free as usize);
    }

    #[test]
    fn a_flood_forgets_the_flood_and_not_what_it_came_to_hide() {
        let max = 64;
        let slowdown = Slowdown::with_max(max);
        let mut now = Instant::now();
        exhaust(&slowdown, "ada", v4(1), now);
        now += Duration::from_secs(1);
        slowdown.failed(slowdown.begin("ada", v4(1), now).unwrap());
        for n in 0..50 * u32::try_from(max).unwrap() {
            for account in ["bob", "carol"] {
                slowdown.failed(slowdown.begin(account, v4(1_000 + n), now).unwrap());
            }
        }
        assert_eq!(
            slowdown.begin("ada", v4(1), now),
            Err(TooMany {
                wait: Duration::from_secs(2)
            })
        );
    }

    /// Somebody tries `account` from `address` after `pause_ms`; 0 fails, 1 succeeds, 2 is withdrawn.
    fn steps() -> impl Strategy<Value = Vec<(u8, u32, u64, u8)>> {
        prop::collection::vec((0u8..6, 0u32..40, 0u64..90_000, 0u8..3), 1..400)
    }

    proptest! {
        #[test]
        fn memory_is_bounded(steps in steps()) {
            let max = 16;
            let slowdown = Slowdown::with_max(max);
            let mut now = Instant::now();
            for (account, address, pause_ms, outcome) in steps {
                now += Duration::from_millis(pause_ms);
                if let Ok(attempt) = slowdown.begin(&account.to_string(), v4(address), now) {
                    match outcome {
                        0 => slowdown.failed(attempt),
                        1 => slowdown.succeeded(attempt),
                        _ => slowdown.withdrawn(attempt),
                    }
                }
                let counts = slowdown.counts.lock().unwrap();
                for table in [&counts.pairs, &counts.accounts, &counts.hosts, &counts.sites] {
                    prop_assert!(table.counts.len() <= max);
                }
            }
        }

        #[test]
        fn guesses_of_a_pair_are_a_burst_and_then_one_in_fifteen_minutes(
            pauses_s in prop::collection::vec(0u64..2_000, 1..300)
        ) {
            let slowdown = Slowdown::default();
            let start = Instant::now();
            let mut now = start;
            let mut guesses = 0;
            for pause_s in pauses_s {
                now += Duration::from_secs(pause_s);
                while let Ok(attempt) = slowdown.begin("ada", v4(1), now) {
                    slowdown.failed(attempt);
                    guesses += 1;
                }
                // up to the longest wait, 2^10 s cut to 900 s, there are 10 doublings
                let burst = u64::from(PAIR.free) + 11;
                prop_assert!(guesses <= burst + (now - start).as_secs() / PAIR.forgive.as_secs());
            }
        }

        #[test]
        fn strangers_slow_an_account_and_never_lock_it(
            failures in prop::collection::vec((1u32..500, 0u64..5_000), 0..600)
        ) {
            let slowdown = Slowdown::with_max(128);
            let mut now = Instant::now();
            for (stranger, pause_ms) in failures {
                now += Duration::from_millis(pause_ms);
                if let Ok(attempt) = slowdown.begin("ada", v4(stranger), now) {
                    slowdown.failed(attempt);
                }
                let own = slowdown.begin("ada", v4(0), now);
                prop_assert!(own.is_ok(), "{own:?}");
                let own = own.unwrap();
                prop_assert!(own.slow <= ACCOUNT_SLOW_MAX);
                slowdown.succeeded(own);
            }
        }

        #[test]
        fn what_is_withdrawn_leaves_no_trace(others in 0u32..10, times in 1u32..200) {
            let slowdown = Slowdown::default();
            let now = Instant::now();
            for _ in 0..others.min(PAIR.free - 1) {
                slowdown.failed(slowdown.begin("ada", v4(1), now).unwrap());
            }
            for n in 0..times {
                let at = now + Duration::from_millis(u64::from(n));
                slowdown.withdrawn(slowdown.begin("ada", v4(1), at).unwrap());
            }
            let left = PAIR.free - others.min(PAIR.free - 1);
            for _ in 0..left {
                slowdown.failed(slowdown.begin("ada", v4(1), now).unwrap());
            }
            prop_assert!(slowdown.begin("ada", v4(1), now).is_err());
        }
    }

    #[test]
    fn a_full_table_is_searched_seldom() {
        let max = 64;
        let slowdown = Slowdown::with_max(max);
        let mut now = Instant::now();
        for n in 0..10 * u32::try_from(max).unwrap() {
            // one a minute is forgiven just as the next comes
            now += HOST.forgive / u32::try_from(max).unwrap();
            slowdown.failed(slowdown.begin("ada", v4(n), now).unwrap());
            let counts = slowdown.counts.lock().unwrap();
            if counts.hosts.counts.len() == max {
                let mut hosts = counts.hosts.counts.clone();
                let mut table = Table {
                    budget: HOST,
                    max,
                    counts: std::mem::take(&mut hosts),
                };
                table.make_room(0, now);
                assert!(table.counts.len() <= max - max / DROPPED_PART);
            }
        }
    }

    #[test]
    fn an_account_that_many_try_answers_slower() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        let slow: Vec<Duration> = (0..100)
            .map(|n| slowdown.begin("ada", v4(n), now).unwrap().slow)
            .collect();
        assert_eq!(slow[20], Duration::ZERO);
        assert_eq!(slow[21], ACCOUNT_SLOW_STEP);
        assert_eq!(slow[99], ACCOUNT_SLOW_MAX);
    }
}
