//! Cancel keys: which session a PostgreSQL CancelRequest means. A key's process id is this replica's slot (12 bits) and
//! the session's slot (19 bits), always positive, so that any replica knows whose it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rand::Rng;
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;

/// Bits of a session's slot within its replica.
const SESSION_SLOT_BITS: u32 = 19;
const SESSION_SLOT_MASK: u32 = (1 << SESSION_SLOT_BITS) - 1;
/// Secret bytes under protocol 3.0 and 3.2.
const SECRET_BYTES_3_0: usize = 4;
const SECRET_BYTES_3_2: usize = 32;
/// Cancels of one session that may wait to be passed on; more add nothing.
const WAITING_CANCELS: usize = 2;

struct Entry {
    secret: Bytes,
    cancels: mpsc::Sender<()>,
}

#[derive(Default)]
struct Slots {
    entries: HashMap<u32, Entry>,
    next: u32,
}

/// This replica's keys. Cheap to clone.
#[derive(Clone)]
pub struct CancelKeys {
    replica_slot: u32,
    slots: Arc<Mutex<Slots>>,
}

/// One session's key. Dropping it frees the slot.
pub struct CancelKey {
    pub process_id: u32,
    pub secret: Bytes,
    /// A message for each cancel that named this key.
    pub cancels: mpsc::Receiver<()>,
    keys: CancelKeys,
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.keys.lock().entries.remove(&(self.process_id & SESSION_SLOT_MASK));
    }
}

impl CancelKeys {
    /// `replica_slot` below 4,096.
    #[must_use]
    pub fn new(replica_slot: u32) -> Self {
        Self {
            replica_slot: replica_slot & 0xfff,
            slots: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key for a session of protocol 3.`minor`; `None` where all 524,287 slots are taken.
    #[must_use]
    pub fn take(&self, minor: u32) -> Option<CancelKey> {
        let mut secret = vec![0u8; if minor >= 2 { SECRET_BYTES_3_2 } else { SECRET_BYTES_3_0 }];
        rand::rng().fill_bytes(&mut secret);
        let secret = Bytes::from(secret);
        let (sender, cancels) = mpsc::channel(WAITING_CANCELS);
        let mut slots = self.lock();
        if slots.entries.len() >= SESSION_SLOT_MASK as usize {
            return None;
        }
        // a freed slot is used again as late as possible, so that a late cancel meets nobody else's session
        let slot = loop {
            slots.next = if slots.next >= SESSION_SLOT_MASK {
                1
            } else {
                slots.next + 1
            };
            if !slots.entries.contains_key(&slots.next) {
                break slots.next;
            }
        };
        slots.entries.insert(
            slot,
            Entry {
                secret: secret.clone(),
                cancels: sender,
            },
        );
        let process_id = (self.replica_slot << SESSION_SLOT_BITS) | slot;
        Some(CancelKey {
            process_id,
            secret,
            cancels,
            keys: self.clone(),
        })
    }

    /// The slot of the replica that gave out this process id.
    #[must_use]
    pub const fn replica_slot_of(process_id: u32) -> u32 {
        process_id >> SESSION_SLOT_BITS
    }

    /// True where this replica gave out this process id.
    #[must_use]
    pub const fn is_ours(&self, process_id: u32) -> bool {
        Self::replica_slot_of(process_id) == self.replica_slot
    }

    /// Cancels the session with this key, if there is one. Answers whether there is.
    pub fn cancel(&self, process_id: u32, secret: &[u8]) -> bool {
        let slots = self.lock();
        let Some(entry) = slots.entries.get(&(process_id & SESSION_SLOT_MASK)) else {
            return false;
        };
        if !self.is_ours(process_id) || !bool::from(entry.secret.as_ref().ct_eq(secret)) {
            return false;
        }
        // full: two cancels wait already
        let _ = entry.cancels.try_send(());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_needs_the_whole_secret_and_its_own_replica() {
        let keys = CancelKeys::new(5);
        let mut key = keys.take(0).unwrap();
        assert_eq!(key.secret.len(), 4);
        assert_eq!(CancelKeys::replica_slot_of(key.process_id), 5);
        assert!(i32::try_from(key.process_id).unwrap() > 0);
        assert!(!keys.cancel(key.process_id, &key.secret[..3]));
        assert!(!keys.cancel(key.process_id ^ (1 << 20), &key.secret));
        assert!(key.cancels.try_recv().is_err());
        assert!(keys.cancel(key.process_id, &key.secret.clone()));
        assert!(key.cancels.try_recv().is_ok());
    }

    #[test]
    fn the_highest_slot_is_still_a_positive_process_id() {
        let keys = CancelKeys::new(4095);
        keys.lock().next = SESSION_SLOT_MASK - 1;
        let key = keys.take(2).unwrap();
        assert_eq!(key.process_id, 0x7fff_ffff);
        assert_eq!(key.secret.len(), 32);
    }

    #[test]
    fn a_freed_slot_is_not_used_again_at_once() {
        let keys = CancelKeys::new(1);
        let first = keys.take(0).unwrap().process_id;
        assert_ne!(keys.take(0).unwrap().process_id, first);
    }
}
