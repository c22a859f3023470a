//! One budget of bytes for the whole process, from which windows grow.
//!
//! Owns the count and nothing else: it never waits, and a refused reservation means "stay as you are".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all grown windows of a process may hold together, in bytes, where the caller names nothing else.
pub const DEFAULT_BUDGET_BYTES: u64 = 256 * 1024 * 1024;

/// A process-wide count of reserved bytes with a limit. Cheap to clone, shared by all arbiters.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit_bytes: u64,
    // INVARIANT: equals the sum of all living reservations, and never exceeds `limit_bytes`.
    used_bytes: AtomicU64,
}

impl ByteBudget {
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Inner {
            limit_bytes,
            used_bytes: AtomicU64::new(0),
        }))
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// An empty reservation, to be grown later.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        Reservation {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

impl Default for ByteBudget {
    fn default() -> Self {
        Self::new(DEFAULT_BUDGET_BYTES)
    }
}

/// Bytes held out of a budget; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: ByteBudget,
    bytes: u64,
}

impl Reservation {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes. False, and nothing taken, where the budget has not that many left.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let limit = self.budget.0.limit_bytes;
        let taken = self
            .budget
            .0
            .used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|sum| *sum <= limit)
            });
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }

    /// Gives back up to `less` bytes.
    pub fn shrink(&mut self, less: u64) {
        let less = less.min(self.bytes);
        self.bytes -= less;
        self.budget.0.used_bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_never_takes_more_than_the_limit_and_gives_back_on_drop() {
        let budget = ByteBudget::new(100);
        let mut first = budget.reservation();
        assert!(first.grow(60));
        let mut second = budget.reservation();
        assert!(!second.grow(41));
        assert!(second.grow(40));
        assert_eq!(budget.used_bytes(), 100);
        drop(first);
        assert_eq!(budget.used_bytes(), 40);
        second.shrink(1_000);
        assert_eq!(budget.used_bytes(), 0);
    }
}
