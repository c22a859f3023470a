//! Places of sessions on connections with a `max_sessions` of their own, counted over all replicas. A place counts while
//! its row is there and its replica lives.

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::change::get;
use crate::replicas::LIVE;
use crate::{Store, StoreError};

/// A place is taken a moment before its session is in the registry, so only older ones can have been left behind.
const LEFT_BEHIND_S: i32 = 30;

/// "hoop" in ASCII, then 4: a connection's lock is its own under this seed.
const LOCK_SEED: i64 = 114_827_820_269_572;

impl Store {
    /// Takes a place for `session`; false where the connection has `most` sessions already. Takers on one connection
    /// follow each other.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn take_place(
        &self,
        connection: Uuid,
        session: Uuid,
        replica: Uuid,
        most: u32,
    ) -> Result<bool, StoreError> {
        let failed = StoreError::query("taking a place on a connection");
        let mut client = self.client().await?;
        let tx = client.transaction().await.map_err(&failed)?;
        let lock = "select pg_advisory_xact_lock(hashtextextended($1, $2))";
        let key = connection.to_string();
        tx.query_typed(lock, &[(&key, Type::TEXT), (&LOCK_SEED, Type::INT8)])
            .await
            .map_err(&failed)?;
        let over = format!(
            "delete from session_places where connection_id = $1 \
             and replica_id not in (select id from replicas where {LIVE})"
        );
        tx.execute_typed(&over, &[(&connection, Type::UUID)])
            .await
            .map_err(&failed)?;
        let sql = "insert into session_places (session, connection_id, replica_id) select $1, $2, $3 \
                   where (select count(*) from session_places where connection_id = $2) < $4";
        let taken = tx
            .execute_typed(
                sql,
                &[
                    (&session, Type::UUID),
                    (&connection, Type::UUID),
                    (&replica, Type::UUID),
                    (&i64::from(most), Type::INT8),
                ],
            )
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(taken == 1)
    }

    /// # Errors
    /// Where the store is away.
    pub async fn give_places_back(&self, sessions: &[Uuid]) -> Result<(), StoreError> {
        let sql = "delete from session_places where session = any($1)";
        self.read("giving places back", sql, &[(&sessions, Type::UUID_ARRAY)])
            .await?;
        Ok(())
    }

    /// Sessions of this replica that hold a place for some while already.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn held_places(&self, replica: Uuid) -> Result<Vec<Uuid>, StoreError> {
        let sql = "select session from session_places where replica_id = $1 \
                   and taken_at < now() - $2 * interval '1 second'";
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
            &[(&replica, Type::UUID), (&LEFT_BEHIND_S, Type::INT4)];
        let rows = self.read("reading places", sql, params).await?;
        rows.iter().map(|row| get(row, "session")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn places_are_counted_over_replicas_and_those_of_dead_ones_are_free() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let one = store.claim_replica("one").await.unwrap();
        let two = store.claim_replica("two").await.unwrap();
        let connection = Uuid::now_v7();
        let (a, b, c) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        assert!(store.take_place(connection, a, one.id, 2).await.unwrap());
        assert!(store.take_place(connection, b, two.id, 2).await.unwrap());
        assert!(!store.take_place(connection, c, one.id, 2).await.unwrap());
        assert!(
            store.take_place(Uuid::now_v7(), c, one.id, 1).await.unwrap(),
            "another connection"
        );
        store.give_places_back(&[c]).await.unwrap();
        store.release_replica(&two).await.unwrap();
        assert!(store.take_place(connection, c, one.id, 2).await.unwrap());
        store.give_places_back(&[a]).await.unwrap();
        assert!(store.take_place(connection, b, one.id, 2).await.unwrap());
        assert_eq!(
            store.held_places(one.id).await.unwrap(),
            Vec::<Uuid>::new(),
            "all are fresh"
        );
    }
}
