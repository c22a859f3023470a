//! `Canceller`: brings a CancelRequest to the session it names, on this replica or another, and limits how often one
//! address may ask.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hoop_store::Store;
use tracing::{debug, warn};

use crate::cancel::CancelKeys;
use crate::links::peer::PeerDialer;

/// Cancels of one address within `WINDOW`, on one arbiter.
const CANCELS_PER_ADDRESS: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);
/// Addresses remembered; with so many at once, new ones are refused until some have been quiet for `WINDOW`.
const ADDRESSES_MAX: usize = 4096;
/// Longest way of a cancel to another replica.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// An IPv4 address, or an IPv6 /64: what one peer has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// One value an arbiter.
pub struct Canceller {
    keys: CancelKeys,
    store: Store,
    peers: PeerDialer,
    recent: RefCell<HashMap<IpAddr, (Instant, u32)>>,
}

impl Canceller {
    #[must_use]
    pub fn new(keys: CancelKeys, store: Store, peers: PeerDialer) -> Self {
        Self {
            keys,
            store,
            peers,
            recent: RefCell::default(),
        }
    }

    fn too_often(&self, address: IpAddr) -> bool {
        let address = network(address);
        let mut recent = self.recent.borrow_mut();
        let now = Instant::now();
        if recent.len() >= ADDRESSES_MAX && !recent.contains_key(&address) {
            recent.retain(|_, (since, _)| now.duration_since(*since) <= WINDOW);
            if recent.len() >= ADDRESSES_MAX {
                return true;
            }
        }
        let (since, count) = recent.entry(address).or_insert((now, 0));
        if now.duration_since(*since) > WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count > CANCELS_PER_ADDRESS
    }

    /// Answers nothing, as PostgreSQL does: the connection just closes.
    pub async fn cancel(&self, client: SocketAddr, process_id: u32, secret: Bytes) {
        if self.too_often(client.ip()) {
            warn!(%client, "too many cancels from one address; this one is dropped");
            return;
        }
        if self.keys.is_ours(process_id) {
            let known = self.keys.cancel(process_id, &secret);
            debug!(%client, known, "cancel");
            return;
        }
        let slot = CancelKeys::replica_slot_of(process_id);
        let found = match self
            .store
            .replica_in_slot(u16::try_from(slot).unwrap_or(u16::MAX))
            .await
        {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "cannot ask the store whose session a cancel names");
                return;
            }
        };
        let Some(replica) = found else {
            debug!(%client, slot, "a cancel names no live replica");
            return;
        };
        match tokio::time::timeout(PEER_TIMEOUT, self.peers.cancel(&replica, process_id, secret)).await {
            Ok(Ok(())) => debug!(%client, replica = %replica.id, "cancel passed on"),
            Ok(Err(error)) => warn!(replica = %replica.id, %error, "cannot pass a cancel on"),
            Err(_) => warn!(replica = %replica.id, "passing a cancel on took over 5 s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancels_are_counted_by_ipv4_address_and_ipv6_64() {
        let net = |text: &str| network(text.parse().unwrap());
        assert_eq!(net("2001:db8::1"), net("2001:db8::ffff:1"));
        assert_ne!(net("2001:db8::1"), net("2001:db8:0:1::1"));
        assert_eq!(net("::ffff:192.0.2.1"), net("192.0.2.1"));
        assert_ne!(net("192.0.2.1"), net("192.0.2.2"));
    }
}
