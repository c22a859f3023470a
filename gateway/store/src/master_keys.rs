//! Which master keys the replicas have, and the rotation that is under way. Key ids alone; no key is ever here.

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::change::get;
use crate::replicas::LIVE;
use crate::seal::KeyId;
use crate::{Store, StoreError};

/// What a live replica has reported; nothing yet where both lists are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaKeys {
    pub replica: Uuid,
    pub address: String,
    /// Of its key file, the one that seals first.
    pub keys: Vec<KeyId>,
    /// Under which the files of its journal lie that are not wholly in the store.
    pub journal_keys: Vec<KeyId>,
}

/// A rotation that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    pub old_key: KeyId,
    pub new_key: KeyId,
}

impl Store {
    /// Tells which keys this replica has, and its journal needs.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn report_keys(&self, replica: Uuid, keys: &[KeyId], journal_keys: &[KeyId]) -> Result<(), StoreError> {
        let sql = "insert into replica_keys (replica_id, keys, journal_keys) values ($1, $2, $3) \
                   on conflict (replica_id) do update set keys = excluded.keys, \
                   journal_keys = excluded.journal_keys, reported_at = now()";
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[
            (&replica, Type::UUID),
            (&keys, Type::TEXT_ARRAY),
            (&journal_keys, Type::TEXT_ARRAY),
        ];
        self.read("reporting keys", sql, params).await.map(drop)
    }

    /// Of all live replicas.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn replica_keys(&self) -> Result<Vec<ReplicaKeys>, StoreError> {
        let sql = format!(
            "select r.id, r.address, coalesce(k.keys, '{{}}') as keys, coalesce(k.journal_keys, '{{}}') as journal_keys \
             from (select * from replicas where {LIVE}) r left join replica_keys k on k.replica_id = r.id \
             order by r.incarnation"
        );
        let rows = self.read("reading the replicas' keys", &sql, &[]).await?;
        let each = rows.iter().map(|row| {
            Ok(ReplicaKeys {
                replica: get(row, "id")?,
                address: get(row, "address")?,
                keys: get(row, "keys")?,
                journal_keys: get(row, "journal_keys")?,
            })
        });
        each.collect()
    }

    /// # Errors
    /// Where the store is away.
    pub async fn rotation(&self) -> Result<Option<Rotation>, StoreError> {
        let sql = "select old_key, new_key from master_key_rotations where finished_at is null";
        let row = self.read_opt("reading the rotation", sql, &[]).await?;
        let rotation = row.map(|row| {
            Ok(Rotation {
                old_key: get(&row, "old_key")?,
                new_key: get(&row, "new_key")?,
            })
        });
        rotation.transpose()
    }

    /// False where the new key was in use before.
    ///
    /// # Errors
    /// Where another one is under way, or the store is away.
    pub async fn begin_rotation(&self, rotation: &Rotation) -> Result<bool, StoreError> {
        let sql = "insert into master_key_rotations (old_key, new_key) select $1, $2 where not exists \
                   (select from master_key_rotations where old_key = $2 or new_key = $2) returning new_key";
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
            &[(&rotation.old_key, Type::TEXT), (&rotation.new_key, Type::TEXT)];
        Ok(self.read_opt("beginning a rotation", sql, params).await?.is_some())
    }

    /// # Errors
    /// Where the store is away.
    pub async fn finish_rotation(&self, rotation: &Rotation) -> Result<(), StoreError> {
        let sql = "update master_key_rotations set finished_at = now() where new_key = $1 and finished_at is null";
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[(&rotation.new_key, Type::TEXT)];
        self.read("finishing a rotation", sql, params).await.map(drop)
    }

    /// Sessions of replicas that are gone and whose last word is in a journal that nobody has read yet, if anywhere. Such
    /// a journal needs the key that it was sealed under.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn sessions_without_their_journal(&self) -> Result<i64, StoreError> {
        let sql = format!(
            "select count(*) as sessions from sessions where (ended_at is null or end_provisional) \
             and writer not in (select id from replicas where {LIVE})"
        );
        let row = self.read_opt("looking for journals", &sql, &[]).await?;
        row.as_ref().map_or(Ok(0), |row| get(row, "sessions"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn live_replicas_are_told_with_their_keys_and_one_rotation_is_under_way_at_most() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let one = store.claim_replica("one").await.unwrap();
        let two = store.claim_replica("two").await.unwrap();
        let ids = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<KeyId>>();
        store.report_keys(one.id, &ids(&["a"]), &ids(&["a"])).await.unwrap();
        store
            .report_keys(one.id, &ids(&["b", "a"]), &ids(&["a", "b"]))
            .await
            .unwrap();
        let told = store.replica_keys().await.unwrap();
        assert_eq!(told.len(), 2);
        assert_eq!(
            (told[0].keys.clone(), told[0].journal_keys.clone()),
            (ids(&["b", "a"]), ids(&["a", "b"]))
        );
        assert_eq!((told[1].address.as_str(), told[1].keys.is_empty()), ("two", true));
        store.release_replica(&two).await.unwrap();
        assert_eq!(store.replica_keys().await.unwrap().len(), 1);

        let rotation = |old: &str, new: &str| Rotation {
            old_key: old.into(),
            new_key: new.into(),
        };
        assert_eq!(store.rotation().await.unwrap(), None);
        assert!(store.begin_rotation(&rotation("a", "b")).await.unwrap());
        assert!(store.begin_rotation(&rotation("a", "c")).await.is_err());
        assert_eq!(store.rotation().await.unwrap(), Some(rotation("a", "b")));
        store.finish_rotation(&rotation("a", "b")).await.unwrap();
        assert_eq!(store.rotation().await.unwrap(), None);
        assert!(
            !store.begin_rotation(&rotation("b", "a")).await.unwrap(),
            "it was rotated away"
        );
        assert!(store.begin_rotation(&rotation("b", "c")).await.unwrap());
    }
}
