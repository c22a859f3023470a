//! Attempts that are refused without being looked at, for there were too many before: they are in the record all the same,
//! one entry for each account and network in a window, with how many there were. However many come from however many
//! places, the record grows no faster than that.
//!
//! INVARIANT: what was typed as a name that nobody has is kept as a hash under a key of this process alone.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hoop_store::users::User;
use serde_json::json;

use crate::AppState;
use crate::control::Control;
use crate::rate::network;
use crate::sign_in::{Method, by};

/// What one entry of the record stands for.
const WINDOW: Duration = Duration::from_secs(5 * 60);
/// Accounts and networks that are told apart at once. The others share one entry.
const PLACES_MAX: usize = 128;

/// Whose account it is about, for the record.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// Whoever has this name, if anybody.
    Typed(&'a str),
    Of(&'a User),
    Nobody,
}

/// An attempt to prove something.
#[derive(Debug, Clone, Copy)]
pub struct Guess<'a> {
    /// What failures are counted by.
    pub account: &'a str,
    pub whose: Whose<'a>,
    pub address: Option<IpAddr>,
    pub method: &'a Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Of { account: u64, network: Option<IpAddr> },
    Others,
}

/// The windows that are open, of one process.
#[derive(Debug, Default)]
pub struct Refusals {
    hasher: RandomState,
    /// How many were refused since the last entry.
    open: Mutex<HashMap<Place, u64>>,
}

impl Refusals {
    fn open(&self) -> MutexGuard<'_, HashMap<Place, u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one. Where it opens a window, it is to be recorded at once, and what follows with `since_last`.
    fn count(&self, account: &str, address: Option<IpAddr>) -> Option<Place> {
        let place = Place::Of {
            account: self.hasher.hash_one(account.to_lowercase()),
            network: address.map(network),
        };
        let mut open = self.open();
        let has_room = open.len() < PLACES_MAX || open.contains_key(&place);
        let place = if has_room { place } else { Place::Others };
        if let Some(count) = open.get_mut(&place) {
            *count = count.saturating_add(1);
            return None;
        }
        open.insert(place, 0);
        Some(place)
    }

    /// At a window's end: how many came in it. Where none did, it is closed, else the next one begins.
    fn since_last(&self, place: Place) -> Option<u64> {
        let mut open = self.open();
        let count = open.get_mut(&place).map(std::mem::take).filter(|count| *count > 0);
        if count.is_none() {
            open.remove(&place);
        }
        count
    }
}

/// One entry of the record, but for the count.
struct Entry {
    control: Arc<dyn Control>,
    username: Option<String>,
    address: Option<IpAddr>,
    method: String,
}

impl Entry {
    async fn record(&self, attempts: u64) {
        let (username, address) = (&self.username, self.address);
        let payload = json!({
            "by": by(None, address), "subject": username, "before": null,
            "after": {"method": self.method, "why": "too many failed attempts before", "attempts": attempts},
        });
        tracing::info!(?address, method = self.method, attempts, "sign-ins were refused unseen");
        if let Err(error) = self.control.record("login.refused", payload).await {
            tracing::error!(error, "a record is missing of refused sign-ins");
        }
    }
}

/// Has a refused attempt in the record, by itself or in a sum.
pub async fn refused(state: &AppState, guess: &Guess<'_>) {
    let Some(place) = state.refusals.count(guess.account, guess.address) else {
        return;
    };
    let entry = entry(state, place, guess).await;
    entry.record(1).await;
    let refusals = Arc::clone(&state.refusals);
    actix_web::rt::spawn(async move {
        loop {
            tokio::time::sleep(WINDOW).await;
            match refusals.since_last(place) {
                Some(attempts) => entry.record(attempts).await,
                None => break,
            }
        }
    });
}

async fn entry(state: &AppState, place: Place, guess: &Guess<'_>) -> Entry {
    let is_one_place = place != Place::Others;
    let username = match guess.whose {
        Whose::Of(user) => Some(user.username.clone()),
        // what cannot be asked is left open
        Whose::Typed(name) => (state.store.find_user(name).await.ok().flatten()).map(|user| user.username),
        Whose::Nobody => None,
    };
    Entry {
        control: Arc::clone(&state.control),
        username: username.filter(|_| is_one_place),
        address: guess.address.filter(|_| is_one_place),
        method: guess.method.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some([192, 0, 2, n].into())
    }

    #[test]
    fn a_window_has_one_entry_for_an_account_and_a_network() {
        let refusals = Refusals::default();
        let ada = refusals.count("ada", address(1)).unwrap();
        for name in ["ada", "ADA", "Ada"] {
            assert_eq!(refusals.count(name, address(1)), None);
        }
        let elsewhere = refusals.count("ada", address(2)).unwrap();
        assert!(refusals.count("bob", address(1)).is_some());
        assert_eq!(refusals.since_last(elsewhere), None);
        assert_eq!(refusals.since_last(ada), Some(3));
        assert_eq!(
            refusals.count("ada", address(1)),
            None,
            "the next window is open already"
        );
        assert_eq!(refusals.since_last(ada), Some(1));
        assert_eq!(refusals.since_last(ada), None);
        assert_eq!(
            refusals.count("ada", address(1)),
            Some(ada),
            "a closed window opens again"
        );
    }

    #[test]
    fn an_ipv6_household_is_one_network() {
        let refusals = Refusals::default();
        let of = |text: &str| Some(text.parse().unwrap());
        assert!(refusals.count("ada", of("2001:db8::1")).is_some());
        assert!(refusals.count("ada", of("2001:db8::2")).is_none());
        assert!(refusals.count("ada", of("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn a_flood_from_everywhere_shares_one_entry() {
        let refusals = Refusals::default();
        let opened: Vec<Place> = (0..10 * PLACES_MAX)
            .filter_map(|n| refusals.count(&n.to_string(), address(1)))
            .collect();
        assert_eq!(opened.len(), PLACES_MAX + 1);
        assert_eq!(refusals.open().len(), PLACES_MAX + 1);
        let others = u64::try_from(9 * PLACES_MAX).unwrap() - 1;
        assert_eq!(refusals.since_last(Place::Others), Some(others));
    }
}
