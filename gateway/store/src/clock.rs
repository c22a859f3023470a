//! How far this machine's clock is from the store's, by which expiry is judged.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::{Store, StoreError};

/// An offset above this deserves a warning and shows in `/readyz`.
pub const CLOCK_OFFSET_WARN_MS: i64 = 2_000;
/// The quickest of so many answers counts.
const SAMPLES: usize = 3;

/// What a measurement found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// The store's clock minus ours, in microseconds.
    pub offset_us: i64,
    /// The round trip of the answer that it was read from: the error is at most half of it.
    pub round_trip_us: i64,
}

impl ClockOffset {
    #[must_use]
    pub const fn is_large(&self) -> bool {
        self.offset_us.abs() > CLOCK_OFFSET_WARN_MS * 1_000
    }
}

impl Store {
    /// Measures the store's clock against this machine's.
    ///
    /// # Errors
    /// `Away`, `Query`.
    pub async fn clock_offset(&self) -> Result<ClockOffset, StoreError> {
        let client = self.client().await?;
        let mut best: Option<ClockOffset> = None;
        for _ in 0..SAMPLES {
            let asked_us = unix_us(SystemTime::now());
            let started = Instant::now();
            let row = client
                .query_typed_one("select (extract(epoch from clock_timestamp()) * 1000000)::bigint", &[])
                .await
                .map_err(StoreError::query("read the clock"))?;
            let round_trip_us = i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX);
            let store_us: i64 = row.get(0);
            let offset_us = store_us.saturating_sub(asked_us.saturating_add(round_trip_us / 2));
            if best.is_none_or(|best| round_trip_us < best.round_trip_us) {
                best = Some(ClockOffset {
                    offset_us,
                    round_trip_us,
                });
            }
        }
        best.ok_or_else(|| StoreError::Away("the clock was not read".to_owned()))
    }
}

fn unix_us(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn a_store_on_this_machine_has_this_machines_clock() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let offset = store.clock_offset().await.unwrap();
        assert!(!offset.is_large(), "{offset:?}");
        assert!(offset.round_trip_us > 0);
    }
}
