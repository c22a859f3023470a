//! How many requests an address and an account may send: a token bucket each, kept as the one instant at which it will be
//! full again (the generic cell rate algorithm, ITU-T I.371).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Buckets that are kept at once; some 5 MB. Whoever is one too many shares one bucket with the others like that.
const BUCKETS_MAX: usize = 65_536;
/// Full buckets are cleared away at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How much one may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second, in the long run.
    pub per_s: u32,
    /// Requests at once.
    pub burst: u32,
}

/// Of one address (IPv6: of one /64).
pub const ADDRESS_RATE: Rate = Rate {
    per_s: 300,
    burst: 3_000,
};
/// Of one account, whatever it comes from.
pub const ACCOUNT_RATE: Rate = Rate {
    per_s: 100,
    burst: 1_000,
};

/// The rates that an API holds its callers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub address: Rate,
    pub account: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            address: ADDRESS_RATE,
            account: ACCOUNT_RATE,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Account(Uuid),
    /// Of all that found no place.
    Crowd,
}

#[derive(Debug)]
struct Buckets {
    /// When each will be full again.
    full_at: HashMap<Key, Instant>,
    swept_at: Option<Instant>,
}

/// The buckets of one process.
#[derive(Debug)]
pub struct Limiter {
    rates: Rates,
    buckets: Mutex<Buckets>,
}

impl Limiter {
    pub fn new(rates: Rates) -> Self {
        let buckets = Buckets {
            full_at: HashMap::new(),
            swept_at: None,
        };
        Self {
            rates,
            buckets: Mutex::new(buckets),
        }
    }

    /// Counts a request of this address.
    ///
    /// # Errors
    /// Seconds after which to try again, rounded up.
    pub fn address(&self, address: IpAddr, now: Instant) -> Result<(), u64> {
        self.take(Key::Address(network(address)), self.rates.address, now)
    }

    /// Counts a request of this account.
    ///
    /// # Errors
    /// Seconds after which to try again, rounded up.
    pub fn account(&self, account: Uuid, now: Instant) -> Result<(), u64> {
        self.take(Key::Account(account), self.rates.account, now)
    }

    fn take(&self, key: Key, rate: Rate, now: Instant) -> Result<(), u64> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = buckets.place(key, now);
        let each = Duration::from_secs(1) / rate.per_s.max(1);
        let full_at = buckets.full_at.get(&key).copied().unwrap_or(now).max(now);
        let after = full_at + each;
        let wait = after.saturating_duration_since(now).saturating_sub(each * rate.burst);
        if wait.is_zero() {
            buckets.full_at.insert(key, after);
            return Ok(());
        }
        Err(u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX))
    }
}

impl Buckets {
    /// The key, or the crowd's where there is no room for another.
    fn place(&mut self, key: Key, now: Instant) -> Key {
        if self.full_at.len() < BUCKETS_MAX || self.full_at.contains_key(&key) {
            return key;
        }
        let due = |at: Instant| now.saturating_duration_since(at) >= SWEEP_EVERY;
        if self.swept_at.is_none_or(due) {
            self.swept_at = Some(now);
            // a full bucket is as good as none
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if self.full_at.len() < BUCKETS_MAX {
            key
        } else {
            Key::Crowd
        }
    }
}

/// IPv6 addresses count by /64: a household has that many.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_s: u32, burst: u32) -> Limiter {
        let rate = Rate { per_s, burst };
        Limiter::new(Rates {
            address: rate,
            account: rate,
        })
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (limiter, mut now) = (limiter(2, 5), Instant::now());
        let passed = |now| (0..20).filter(|_| limiter.address(address(1), now).is_ok()).count();
        assert_eq!(passed(now), 5);
        assert_eq!(limiter.address(address(1), now), Err(1));
        now += Duration::from_secs(1);
        assert_eq!(passed(now), 2);
        now += Duration::from_secs(60);
        assert_eq!(passed(now), 5, "no more than a burst is saved up");
        assert_eq!(limiter.address(address(2), now), Ok(()), "another address has its own");
    }

    #[test]
    fn accounts_and_addresses_are_counted_apart_and_ipv6_by_network() {
        let (limiter, now) = (limiter(1, 1), Instant::now());
        let text = |text: &str| text.parse::<IpAddr>().unwrap();
        limiter.address(text("2001:db8::1"), now).unwrap();
        assert!(limiter.address(text("2001:db8::2"), now).is_err());
        limiter.address(text("2001:db8:0:1::1"), now).unwrap();
        limiter.address(text("192.0.2.1"), now).unwrap();
        assert!(limiter.address(text("::ffff:192.0.2.1"), now).is_err());
        limiter.account(Uuid::nil(), now).unwrap();
        assert!(limiter.account(Uuid::nil(), now).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_the_crowd_shares_a_bucket() {
        let (limiter, mut now) = (limiter(1, 2), Instant::now());
        let each = u32::try_from(BUCKETS_MAX).unwrap();
        for n in 0..each {
            limiter.address(address(n), now).unwrap();
        }
        let newcomers = (each..each + 10)
            .filter(|n| limiter.address(address(*n), now).is_ok())
            .count();
        assert_eq!(newcomers, 2);
        assert!(
            limiter.address(address(0), now).is_ok(),
            "who is known keeps its bucket"
        );
        now += Duration::from_secs(5);
        for n in each..each + 10 {
            limiter.address(address(n), now).unwrap();
        }
        assert!(limiter.buckets.lock().unwrap().full_at.len() <= BUCKETS_MAX + 1);
    }
}
