//! Replicas: who is live, in which slot, at which address, with links to which agents.
//!
//! A lease is judged by the store's clock alone. This file must not end sessions: it tells whose lease ran out
//! (`expired`) and lets exactly one replica take that up (`mark_lost`).

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::{Store, StoreError};

/// How long a lease holds without renewal.
pub const LEASE_MS: i64 = 10_000;
/// How often a replica renews it.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// Slots of an installation: 12 bits of a PostgreSQL cancel key.
pub const SLOTS: i32 = 4_096;
/// Advisory lock: claims exclude each other and renewals ("hoop" in ASCII, then 3).
const REPLICAS_LOCK: i64 = 0x686f_6f70_0003;
/// Links one replica may report.
const MAX_LINKS: usize = 100_000;

/// A claimed place: one incarnation of a gateway process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replica {
    /// UUIDv7, new for each incarnation: also the id of its audit writer.
    pub id: Uuid,
    /// Rises with each claim of the installation.
    pub incarnation: i64,
    /// 0 to 4095, unique among live replicas.
    pub slot: u16,
}

/// A replica as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRow {
    pub id: Uuid,
    pub incarnation: i64,
    pub slot: u16,
    /// Where its `Peer` service listens, `host:port`.
    pub address: String,
    pub lease_until: DateTime<Utc>,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    Held,
    /// Another replica gave this one up, or its slot is taken: it must claim anew (and end what it still carries).
    Lost,
}

pub(crate) const LIVE: &str = "released_at is null and lost_at is null and lease_until > clock_timestamp()";

impl Store {
    /// Takes a free slot for this process. The slot that has been free longest is taken first.
    ///
    /// # Errors
    /// `Setup` where all slots are taken, `Query`, `Away`.
    pub async fn claim_replica(&self, address: &str) -> Result<Replica, StoreError> {
        let failed = StoreError::query("claim a replica's place");
        let mut client = self.client().await?;
        let tx = client.transaction().await.map_err(&failed)?;
        tx.query_typed("select pg_advisory_xact_lock($1)", &[(&REPLICAS_LOCK, Type::INT8)])
            .await
            .map_err(&failed)?;
        let free = format!(
            "select s.slot from generate_series(0, $1 - 1) as s (slot) \
             where not exists (select from replicas r where r.slot = s.slot and {LIVE}) \
             order by (select max(r.lease_until) from replicas r where r.slot = s.slot) nulls first, s.slot limit 1"
        );
        let Some(free) = tx
            .query_typed_opt(&free, &[(&SLOTS, Type::INT4)])
            .await
            .map_err(&failed)?
        else {
            return Err(StoreError::Setup(format!("all {SLOTS} places for replicas are taken")));
        };
        let (id, slot): (Uuid, i32) = (Uuid::now_v7(), free.get(0));
        let row = tx
            .query_typed_one(
                "insert into replicas (id, slot, address, lease_until) \
                 values ($1, $2, $3, clock_timestamp() + $4 * interval '1 millisecond') returning incarnation",
                &[
                    (&id, Type::UUID),
                    (&slot, Type::INT4),
                    (&address, Type::TEXT),
                    (&LEASE_MS, Type::INT8),
                ],
            )
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(Replica {
            id,
            incarnation: row.get(0),
            slot: slot_of(slot),
        })
    }

    /// Renews a lease, every `RENEW_INTERVAL`. After a gap (the store was away) the place is kept unless it was given
    /// up or taken.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn renew_replica(&self, replica: &Replica) -> Result<Renewal, StoreError> {
        let failed = StoreError::query("renew a replica's lease");
        let mut client = self.client().await?;
        let tx = client.transaction().await.map_err(&failed)?;
        tx.query_typed(
            "select pg_advisory_xact_lock_shared($1)",
            &[(&REPLICAS_LOCK, Type::INT8)],
        )
        .await
        .map_err(&failed)?;
        let renewed = tx
            .execute_typed(
                "update replicas set \
                 held_since = case when lease_until < clock_timestamp() then clock_timestamp() else held_since end, \
                 lease_until = clock_timestamp() + $2 * interval '1 millisecond' \
                 where id = $1 and released_at is null and lost_at is null and not exists ( \
                    select from replicas o where o.slot = replicas.slot and o.id <> replicas.id \
                    and o.incarnation > replicas.incarnation \
                    and o.released_at is null and o.lost_at is null and o.lease_until > clock_timestamp())",
                &[(&replica.id, Type::UUID), (&LEASE_MS, Type::INT8)],
            )
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(if renewed == 1 { Renewal::Held } else { Renewal::Lost })
    }

    /// Gives a place up in good order, at the end of a shutdown.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn release_replica(&self, replica: &Replica) -> Result<(), StoreError> {
        let client = self.client().await?;
        client
            .execute_typed(
                "with gone as (delete from replica_links where replica_id = $1) \
                 update replicas set released_at = clock_timestamp() \
                 where id = $1 and released_at is null and lost_at is null",
                &[(&replica.id, Type::UUID)],
            )
            .await
            .map_err(StoreError::query("release a replica's place"))?;
        Ok(())
    }

    /// All live replicas, the oldest first.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn live_replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        let sql = format!("select {COLUMNS} from replicas where {LIVE} order by incarnation");
        self.replica_rows(&sql, &[]).await
    }

    /// The live replica in a slot, for a cancel that belongs there.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn replica_in_slot(&self, slot: u16) -> Result<Option<ReplicaRow>, StoreError> {
        let sql =
            format!("select {COLUMNS} from replicas where slot = $1 and {LIVE} order by incarnation desc limit 1");
        Ok(self.replica_rows(&sql, &[(&i32::from(slot), Type::INT4)]).await?.pop())
    }

    /// Replicas whose lease ran out and whom nobody has given up yet. Empty until the asker has itself held its lease
    /// for a whole `LEASE_MS`: when the store comes back, all leases have run out and all replicas live.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn expired_replicas(&self, asker: &Replica) -> Result<Vec<ReplicaRow>, StoreError> {
        let sql = format!(
            "select {COLUMNS} from replicas where released_at is null and lost_at is null \
             and lease_until <= clock_timestamp() and exists (select from replicas me where me.id = $1 \
             and me.released_at is null and me.lost_at is null and me.lease_until > clock_timestamp() \
             and me.held_since < clock_timestamp() - $2 * interval '1 millisecond') order by incarnation"
        );
        self.replica_rows(&sql, &[(&asker.id, Type::UUID), (&LEASE_MS, Type::INT8)])
            .await
    }

    /// Gives an expired replica up. True for the one caller that is to give its sessions their provisional end; false
    /// where it came back, or another was quicker.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn mark_replica_lost(&self, id: Uuid) -> Result<bool, StoreError> {
        let failed = StoreError::query("give a replica up");
        let mut client = self.client().await?;
        let tx = client.transaction().await.map_err(&failed)?;
        tx.query_typed("select pg_advisory_xact_lock($1)", &[(&REPLICAS_LOCK, Type::INT8)])
            .await
            .map_err(&failed)?;
        let marked = tx
            .execute_typed(
                "update replicas set lost_at = clock_timestamp() where id = $1 and released_at is null \
                 and lost_at is null and lease_until <= clock_timestamp()",
                &[(&id, Type::UUID)],
            )
            .await
            .map_err(&failed)?;
        if marked == 1 {
            tx.execute_typed("delete from replica_links where replica_id = $1", &[(&id, Type::UUID)])
                .await
                .map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)?;
        Ok(marked == 1)
    }

    /// Reports the agents that a replica holds links to, in place of its last report.
    ///
    /// # Errors
    /// `Invalid` for too many, `Query`, `Away`.
    pub async fn replace_links(&self, replica: &Replica, agents: &[Uuid]) -> Result<(), StoreError> {
        if agents.len() > MAX_LINKS {
            return Err(StoreError::Invalid {
                field: "agents",
                problem: format!("more than {MAX_LINKS}"),
            });
        }
        let failed = StoreError::query("report a replica's links");
        let mut client = self.client().await?;
        let tx = client.transaction().await.map_err(&failed)?;
        // Reports of one replica follow each other: the row lock orders them.
        tx.query_typed(
            "select from replicas where id = $1 for update",
            &[(&replica.id, Type::UUID)],
        )
        .await
        .map_err(&failed)?;
        tx.execute_typed(
            "delete from replica_links where replica_id = $1 and agent_id <> all ($2)",
            &[(&replica.id, Type::UUID), (&agents, Type::UUID_ARRAY)],
        )
        .await
        .map_err(&failed)?;
        tx.execute_typed(
            "insert into replica_links (replica_id, agent_id) select $1, unnest($2::uuid[]) on conflict do nothing",
            &[(&replica.id, Type::UUID), (&agents, Type::UUID_ARRAY)],
        )
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)
    }

    /// The live replicas that hold a link to an agent.
    ///
    /// # Errors
    /// `Query`, `Away`.
    pub async fn linked_replicas(&self, agent: Uuid) -> Result<Vec<ReplicaRow>, StoreError> {
        let sql = format!(
            "select {COLUMNS} from replicas where {LIVE} \
             and id in (select replica_id from replica_links where agent_id = $1) order by incarnation"
        );
        self.replica_rows(&sql, &[(&agent, Type::UUID)]).await
    }

    async fn replica_rows(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<ReplicaRow>, StoreError> {
        let client = self.client().await?;
        let rows = client
            .query_typed(sql, parameters)
            .await
            .map_err(StoreError::query("read replicas"))?;
        Ok(rows
            .iter()
            .map(|row| ReplicaRow {
                id: row.get(0),
                incarnation: row.get(1),
                slot: slot_of(row.get(2)),
                address: row.get(3),
                lease_until: row.get(4),
            })
            .collect())
    }
}

const COLUMNS: &str = "id, incarnation, slot, address, lease_until";

/// The table's check keeps slots within 0 to 4095.
fn slot_of(slot: i32) -> u16 {
    u16::try_from(slot).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves a replica's lease, as if so many seconds had passed for it.
    async fn age(store: &Store, replica: &Replica, seconds: f64) {
        let sql = "update replicas set lease_until = lease_until - $2 * interval '1 second', \
                   held_since = held_since - $2 * interval '1 second' where id = $1";
        store
            .client()
            .await
            .unwrap()
            .execute(sql, &[&replica.id, &seconds])
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn replicas_that_claim_at_once_get_different_slots() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let claims = (0..8).map(|n| {
            let store = store.clone();
            async move { store.claim_replica(&format!("127.0.0.1:{n}")).await.unwrap() }
        });
        let claimed = futures_util::future::join_all(claims).await;
        let mut slots: Vec<u16> = claimed.iter().map(|replica| replica.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..8).collect::<Vec<u16>>());
        let live = store.live_replicas().await.unwrap();
        assert_eq!(live.len(), 8);
        assert!(live.windows(2).all(|pair| pair[0].incarnation < pair[1].incarnation));
        let third = store.replica_in_slot(3).await.unwrap().unwrap();
        assert!(
            claimed
                .iter()
                .any(|replica| replica.id == third.id && replica.slot == 3)
        );
    }

    #[tokio::test]
    async fn a_released_slot_is_taken_again_only_after_the_unused_ones() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let first = store.claim_replica("a").await.unwrap();
        store.release_replica(&first).await.unwrap();
        assert!(store.live_replicas().await.unwrap().is_empty());
        let second = store.claim_replica("a").await.unwrap();
        assert_eq!((first.slot, second.slot), (0, 1));
        assert_ne!(first.id, second.id);
        assert_eq!(store.renew_replica(&first).await.unwrap(), Renewal::Lost);
        assert_eq!(store.renew_replica(&second).await.unwrap(), Renewal::Held);
    }

    #[tokio::test]
    async fn an_expired_replica_is_given_up_by_one_other_that_held_its_own_lease() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let (dead, me) = (
            store.claim_replica("dead").await.unwrap(),
            store.claim_replica("me").await.unwrap(),
        );
        assert!(store.expired_replicas(&me).await.unwrap().is_empty());
        age(&store, &dead, 11.0).await;
        assert!(
            store.expired_replicas(&me).await.unwrap().is_empty(),
            "I have not held my lease for long enough"
        );
        age(&store, &me, 11.0).await;
        assert!(
            store.expired_replicas(&me).await.unwrap().is_empty(),
            "my own lease ran out"
        );
        let sql = "update replicas set lease_until = clock_timestamp() + interval '10 s' where id = $1";
        store.client().await.unwrap().execute(sql, &[&me.id]).await.unwrap();
        let expired = store.expired_replicas(&me).await.unwrap();
        assert_eq!(expired.iter().map(|row| row.id).collect::<Vec<_>>(), [dead.id]);

        let (one, two) = tokio::join!(store.mark_replica_lost(dead.id), store.mark_replica_lost(dead.id));
        assert!(one.unwrap() != two.unwrap(), "exactly one takes it up");
        assert_eq!(store.renew_replica(&dead).await.unwrap(), Renewal::Lost);
        assert!(
            !store.mark_replica_lost(me.id).await.unwrap(),
            "a live replica is not given up"
        );
    }

    #[tokio::test]
    async fn a_lease_with_a_gap_is_held_again_unless_the_slot_was_taken() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let (kept, robbed) = (
            store.claim_replica("kept").await.unwrap(),
            store.claim_replica("robbed").await.unwrap(),
        );
        age(&store, &kept, 11.0).await;
        assert_eq!(store.renew_replica(&kept).await.unwrap(), Renewal::Held);

        age(&store, &robbed, 11.0).await;
        let sql = "insert into replicas (id, slot, address, lease_until) \
                   values ($1, $2, 'thief', clock_timestamp() + interval '10 s')";
        let client = store.client().await.unwrap();
        client
            .execute(sql, &[&Uuid::now_v7(), &i32::from(robbed.slot)])
            .await
            .unwrap();
        assert_eq!(store.renew_replica(&robbed).await.unwrap(), Renewal::Lost);
    }

    #[tokio::test]
    async fn links_are_replaced_and_told_of_live_replicas_only() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let (one, two) = (
            store.claim_replica("one").await.unwrap(),
            store.claim_replica("two").await.unwrap(),
        );
        let (a, b) = (Uuid::now_v7(), Uuid::now_v7());
        store.replace_links(&one, &[a, b]).await.unwrap();
        store.replace_links(&two, &[b, b]).await.unwrap();
        let linked = |agent| {
            let store = store.clone();
            async move {
                let rows = store.linked_replicas(agent).await.unwrap();
                rows.into_iter().map(|row| row.address).collect::<Vec<_>>()
            }
        };
        assert_eq!(linked(a).await, ["one"]);
        assert_eq!(linked(b).await, ["one", "two"]);
        store.replace_links(&one, &[a]).await.unwrap();
        assert_eq!(linked(b).await, ["two"]);
        store.release_replica(&two).await.unwrap();
        assert_eq!(linked(b).await, Vec::<String>::new());
        age(&store, &one, 11.0).await;
        assert_eq!(linked(a).await, Vec::<String>::new());
    }
}
