//! Failed sign-ins: a growing delay by (account, address), a slower answer for an account that many addresses try, and
//! a delay for an address that tries many accounts. An account alone is never locked by strangers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Entries kept; the longest untouched ones make way.
const ENTRIES_MAX: usize = 10_000;
/// How many make way at once, so that a flood pays for the search seldom.
const ENTRIES_DROPPED: usize = ENTRIES_MAX / 10;
/// Failures are forgotten this long after the last one, in seconds.
const FORGET_AFTER_S: u64 = 15 * 60;
/// Failures of one account from one address before it must wait.
const PAIR_FREE: u32 = 5;
/// Longest wait, in seconds.
const PAIR_WAIT_MAX_S: u64 = 300;
/// Failures of one address, over all accounts, before it must wait.
const ADDRESS_FREE: u32 = 50;
const ADDRESS_WAIT_MAX_S: u64 = 60;
/// Failures of one account, over all addresses, before its answers are slowed.
const ACCOUNT_FREE: u32 = 20;
/// Slowest answer, in milliseconds.
const ACCOUNT_SLOW_MAX_MS: u64 = 2_000;
const ACCOUNT_SLOW_STEP_MS: u64 = 100;
/// Characters of an account name that are told apart.
const ACCOUNT_MAX_CHARS: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pair(String, Option<IpAddr>),
    Account(String),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    failures: u32,
    last: Instant,
}

/// One process's table of failed sign-ins.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<HashMap<Key, Entry>>);

/// An attempt that may go on, counted as failed until `succeeded` says otherwise.
#[derive(Debug, PartialEq, Eq)]
pub struct Attempt {
    account: String,
    address: Option<IpAddr>,
    /// Wait this long before the password is looked at.
    pub slow: Duration,
}

impl Attempts {
    /// Counts an attempt.
    ///
    /// # Errors
    /// The seconds to wait, where there were too many.
    pub fn begin(&self, account: &str, address: Option<IpAddr>, now: Instant) -> Result<Attempt, u64> {
        let account: String = account.to_lowercase().chars().take(ACCOUNT_MAX_CHARS).collect();
        let address = address.map(network);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = Key::Pair(account.clone(), address);
        let wait = wait_s(&table, &pair, PAIR_FREE, PAIR_WAIT_MAX_S, now);
        let spread = address.map_or(0, |a| {
            wait_s(&table, &Key::Address(a), ADDRESS_FREE, ADDRESS_WAIT_MAX_S, now)
        });
        let wait = wait.max(spread);
        if wait > 0 {
            return Err(wait);
        }
        let others = failures(&table, &Key::Account(account.clone()), now).saturating_sub(ACCOUNT_FREE);
        let slow_ms = u64::from(others)
            .saturating_mul(ACCOUNT_SLOW_STEP_MS)
            .min(ACCOUNT_SLOW_MAX_MS);
        count(&mut table, pair, now);
        count(&mut table, Key::Account(account.clone()), now);
        if let Some(address) = address {
            count(&mut table, Key::Address(address), now);
        }
        Ok(Attempt {
            account,
            address,
            slow: Duration::from_millis(slow_ms),
        })
    }

    /// The password was right: this attempt was no failure, and the pair's failures are forgotten.
    pub fn succeeded(&self, attempt: Attempt) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.remove(&Key::Pair(attempt.account.clone(), attempt.address));
        let shared = [Some(Key::Account(attempt.account)), attempt.address.map(Key::Address)];
        for key in shared.into_iter().flatten() {
            if let Some(entry) = table.get_mut(&key) {
                entry.failures = entry.failures.saturating_sub(1);
            }
        }
    }
}

/// IPv6 addresses count by /64: a household has that many.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(
            || IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            IpAddr::V4,
        ),
    }
}

fn failures(table: &HashMap<Key, Entry>, key: &Key, now: Instant) -> u32 {
    let fresh = |e: &&Entry| now.saturating_duration_since(e.last).as_secs() < FORGET_AFTER_S;
    table.get(key).filter(fresh).map_or(0, |e| e.failures)
}

/// Seconds until the next attempt is looked at: doubled with each failure past the free ones.
fn wait_s(table: &HashMap<Key, Entry>, key: &Key, free: u32, max_s: u64, now: Instant) -> u64 {
    let over = failures(table, key, now).saturating_sub(free);
    if over == 0 && failures(table, key, now) < free {
        return 0;
    }
    let delay = Duration::from_secs(1u64.checked_shl(over).unwrap_or(u64::MAX).min(max_s));
    let Some(entry) = table.get(key) else { return 0 };
    let left = delay.saturating_sub(now.saturating_duration_since(entry.last));
    left.as_millis().div_ceil(1000).try_into().unwrap_or(max_s)
}

fn count(table: &mut HashMap<Key, Entry>, key: Key, now: Instant) {
    if !table.contains_key(&key) && table.len() >= ENTRIES_MAX {
        table.retain(|_, e| now.saturating_duration_since(e.last).as_secs() < FORGET_AFTER_S);
        if table.len() >= ENTRIES_MAX {
            let mut ages: Vec<Instant> = table.values().map(|e| e.last).collect();
            let (_, limit, _) = ages.select_nth_unstable(ENTRIES_DROPPED);
            let limit = *limit;
            let mut left = ENTRIES_DROPPED;
            table.retain(|_, e| {
                let old = e.last <= limit && left > 0;
                left = left.saturating_sub(usize::from(old));
                !old
            });
        }
    }
    let failures = failures(table, &key, now).saturating_add(1);
    table.insert(key, Entry { failures, last: now });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn the_wait_grows_and_is_forgotten() {
        let attempts = Attempts::default();
        let mut now = Instant::now();
        for _ in 0..PAIR_FREE {
            attempts.begin("ada", address(1), now).unwrap();
        }
        assert_eq!(attempts.begin("ada", address(1), now), Err(1));
        now += Duration::from_secs(1);
        attempts.begin("ada", address(1), now).unwrap();
        assert_eq!(attempts.begin("ADA", address(1), now), Err(2));
        now += Duration::from_secs(FORGET_AFTER_S);
        attempts.begin("ada", address(1), now).unwrap();
    }

    #[test]
    fn strangers_slow_an_account_and_never_lock_it() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for n in 0..100 {
            attempts.begin("ada", address(n), now).unwrap();
        }
        let own = attempts.begin("ada", address(200), now).unwrap();
        assert_eq!(own.slow, Duration::from_millis(ACCOUNT_SLOW_MAX_MS));
    }

    #[test]
    fn one_address_cannot_try_every_account() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let refused = (0..200)
            .filter(|n| attempts.begin(&format!("user{n}"), address(1), now).is_err())
            .count();
        assert_eq!(refused, 200 - ADDRESS_FREE as usize);
    }

    #[test]
    fn success_forgets_the_failures() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for _ in 0..50 {
            let attempt = attempts.begin("ada", address(1), now).unwrap();
            attempts.succeeded(attempt);
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for n in 0..=u32::try_from(ENTRIES_MAX).unwrap() {
            let _ = attempts.begin(&format!("user{n}"), Some(IpAddr::from(n.to_be_bytes())), now);
        }
        assert!(attempts.0.lock().unwrap().len() <= ENTRIES_MAX);
    }
}
