//! Caps on connections that have not proved who they are: in all, and per address.
//!
//! A connection over a cap is not refused: it closes the oldest unauthenticated one (of its address, or of all), silent
//! ones first. So a crowd of silent sockets never keeps anybody out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What counts as one address: an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

/// Silent ones come first, then the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    spoke: bool,
    number: u64,
}

#[derive(Default)]
struct Entries {
    next: u64,
    // INVARIANT: both hold the same entries.
    all: BTreeMap<Rank, Network>,
    by_network: HashMap<Network, BTreeMap<Rank, watch::Sender<bool>>>,
}

struct Shared {
    total_max: usize,
    per_address_max: usize,
    entries: Mutex<Entries>,
}

/// The door. Cheap to clone, shared by all listeners that shall count together.
#[derive(Clone)]
pub struct Gate(Arc<Shared>);

/// One connection's place before it has proved who it is; dropping it gives the place up.
pub struct GateTicket {
    gate: Gate,
    network: Network,
    rank: Mutex<Rank>,
    evicted: watch::Receiver<bool>,
}

impl Gate {
    /// Caps are counts of connections.
    #[must_use]
    pub fn new(total_max: usize, per_address_max: usize) -> Self {
        Self(Arc::new(Shared {
            total_max,
            per_address_max,
            entries: Mutex::new(Entries::default()),
        }))
    }

    /// Lets a connection in, at another's cost where a cap is reached. `None` only where a cap is zero.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<GateTicket> {
        if self.0.total_max == 0 || self.0.per_address_max == 0 {
            return None;
        }
        let network = Network::from(address);
        let mut entries = self.lock();
        if entries
            .by_network
            .get(&network)
            .is_some_and(|own| own.len() >= self.0.per_address_max)
        {
            let oldest = entries
                .by_network
                .get(&network)
                .and_then(|own| own.keys().next().copied());
            entries.evict(network, oldest);
        } else if entries.all.len() >= self.0.total_max
            && let Some((rank, of)) = entries.all.iter().next().map(|(rank, of)| (*rank, *of))
        {
            entries.evict(of, Some(rank));
        }
        let rank = Rank {
            spoke: false,
            number: entries.next,
        };
        entries.next += 1;
        let (evict, evicted) = watch::channel(false);
        entries.all.insert(rank, network);
        entries.by_network.entry(network).or_default().insert(rank, evict);
        Some(GateTicket {
            gate: self.clone(),
            network,
            rank: Mutex::new(rank),
            evicted,
        })
    }

    /// Unauthenticated connections now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().all.len()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn remove(&mut self, network: Network, rank: Rank) -> Option<watch::Sender<bool>> {
        self.all.remove(&rank)?;
        let own = self.by_network.get_mut(&network)?;
        let evict = own.remove(&rank);
        if own.is_empty() {
            self.by_network.remove(&network);
        }
        evict
    }

    fn evict(&mut self, network: Network, rank: Option<Rank>) {
        if let Some(evict) = rank.and_then(|rank| self.remove(network, rank)) {
            evict.send_replace(true);
        }
    }
}

impl GateTicket {
    /// The connection has said something: silent ones go before it.
    pub fn spoke(&self) {
        let mut rank = self.rank.lock().unwrap_or_else(PoisonError::into_inner);
        if rank.spoke {
            return;
        }
        let mut entries = self.gate.lock();
        if let Some(evict) = entries.remove(self.network, *rank) {
            rank.spoke = true;
            entries.all.insert(*rank, self.network);
            entries.by_network.entry(self.network).or_default().insert(*rank, evict);
        }
    }

    /// Waits until the place was given to another: the connection is to be closed.
    pub async fn evicted(&self) {
        let mut evicted = self.evicted.clone();
        if evicted.wait_for(|evicted| *evicted).await.is_err() && !*evicted.borrow() {
            // Only this ticket's own drop removes the sender otherwise.
            std::future::pending::<()>().await;
        }
    }

    /// The connection has proved who it is and counts no more. The same as dropping the ticket.
    pub fn authenticated(self) {}
}

impl Drop for GateTicket {
    fn drop(&mut self) {
        let rank = *self.rank.lock().unwrap_or_else(PoisonError::into_inner);
        self.gate.lock().remove(self.network, rank);
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("waiting", &self.waiting()).finish()
    }
}

impl std::fmt::Debug for GateTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GateTicket")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn from(gate: &Gate, address: &str) -> GateTicket {
        gate.enter(address.parse().unwrap()).unwrap()
    }

    fn evicted(tickets: &[GateTicket]) -> Vec<usize> {
        let gone = |ticket: &GateTicket| ticket.evicted().now_or_never().is_some();
        tickets
            .iter()
            .enumerate()
            .filter(|(_, ticket)| gone(ticket))
            .map(|(at, _)| at)
            .collect()
    }

    #[test]
    fn over_its_cap_an_address_loses_its_oldest_silent_connection() {
        let gate = Gate::new(100, 3);
        let mut tickets: Vec<_> = (0..3).map(|_| from(&gate, "10.0.0.1")).collect();
        tickets[0].spoke();
        tickets.push(from(&gate, "10.0.0.1"));
        assert_eq!(evicted(&tickets), [1], "the oldest has spoken");
        tickets.push(from(&gate, "10.0.0.1"));
        assert_eq!(evicted(&tickets), [1, 2]);
        assert_eq!(gate.waiting(), 3);
        let other = from(&gate, "10.0.0.2");
        assert_eq!(evicted(&[other]), []);
    }

    #[test]
    fn where_all_have_spoken_the_oldest_goes() {
        let gate = Gate::new(100, 2);
        let mut tickets: Vec<_> = (0..2).map(|_| from(&gate, "10.0.0.1")).collect();
        tickets.iter().for_each(GateTicket::spoke);
        tickets.push(from(&gate, "10.0.0.1"));
        assert_eq!(evicted(&tickets), [0]);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address_and_a_mapped_address_as_ipv4() {
        let gate = Gate::new(100, 1);
        let tickets = [
            from(&gate, "2001:db8::1"),
            from(&gate, "2001:db8::ffff:2"),
            from(&gate, "2001:db8:0:1::1"),
        ];
        assert_eq!(evicted(&tickets), [0]);
        let tickets = [from(&gate, "10.1.1.1"), from(&gate, "::ffff:10.1.1.1")];
        assert_eq!(evicted(&tickets), [0]);
    }

    #[test]
    fn over_the_cap_of_all_the_oldest_silent_one_of_all_goes() {
        let gate = Gate::new(3, 3);
        let tickets: Vec<_> = (1..=5).map(|n| from(&gate, &format!("10.0.0.{n}"))).collect();
        assert_eq!(evicted(&tickets), [0, 1]);
        assert_eq!(gate.waiting(), 3);
    }

    #[test]
    fn a_place_is_given_back_by_drop_and_only_once() {
        let gate = Gate::new(10, 1);
        let first = from(&gate, "10.0.0.1");
        let second = from(&gate, "10.0.0.1");
        drop(first);
        assert_eq!(gate.waiting(), 1);
        second.spoke();
        second.authenticated();
        assert_eq!(gate.waiting(), 0);
        assert_eq!(gate.lock().by_network.len(), 0);
    }

    #[test]
    fn two_thousand_silent_sockets_keep_nobody_out() {
        let gate = Gate::new(500, 100);
        let silent: Vec<_> = (0..2_000).map(|n| from(&gate, &format!("10.0.{}.1", n % 20))).collect();
        let person = from(&gate, "10.0.0.1");
        person.spoke();
        let more: Vec<_> = (0..2_000).map(|n| from(&gate, &format!("10.1.{}.1", n % 20))).collect();
        assert_eq!(evicted(&[person]), []);
        assert!(gate.waiting() <= 500);
        drop((silent, more));
    }

    #[test]
    fn a_ticket_may_cross_threads() {
        fn send<T: Send + Sync>() {}
        send::<GateTicket>();
        send::<Gate>();
    }
}
