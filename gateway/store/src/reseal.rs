//! Everything that the store keeps sealed under the master key, in one list, and how it comes under another key: in
//! bounded batches, while the gateways serve, and again from the start after an interruption.
//!
//! A table with a sealed column adds one line to `SEALED_COLUMNS`; a test compares the list with the schema.

use serde::Serialize;
use tokio_postgres::types::Type;

use crate::change::get;
use crate::seal::MasterKey;
use crate::{Store, StoreError};

/// Rows that are read, and at most written, at once.
pub const RESEAL_BATCH_ROWS: i64 = 500;

/// A column whose values are sealed under the master key. `bytea`; null is nothing sealed.
pub struct SealedColumn {
    pub table: &'static str,
    pub column: &'static str,
    /// The row's key: a unique column, by whose order the table is read.
    pub key: &'static str,
    /// The key's type in SQL.
    pub key_type: &'static str,
    /// The name that a row's value is sealed under, from its key as text.
    pub name: fn(&str) -> String,
}

const fn column(
    table: &'static str,
    column: &'static str,
    key: (&'static str, &'static str),
    name: fn(&str) -> String,
) -> SealedColumn {
    let (key, key_type) = key;
    SealedColumn {
        table,
        column,
        key,
        key_type,
        name,
    }
}

const BY_ID: (&str, &str) = ("id", "uuid");

/// All of them.
pub const SEALED_COLUMNS: &[SealedColumn] = &[
    column("installation", "ca_key_sealed", BY_ID, |id| {
        format!("installation/{id}/the installation's CA key")
    }),
    column("installation", "audit_root_sealed", BY_ID, |id| {
        format!("installation/{id}/the installation's audit root key")
    }),
    column("installation", "token_key_sealed", BY_ID, |id| {
        format!("installation/{id}/the installation's token key")
    }),
    column("installation", "mock_key_sealed", BY_ID, |id| {
        format!("installation/{id}/the installation's mock key")
    }),
    column("connections", "secret_sealed", BY_ID, |id| {
        format!("connection/{id}/secret")
    }),
    column("identities", "refresh_sealed", BY_ID, |id| {
        format!("identity/{id}/refresh")
    }),
    column("second_factors", "secret_sealed", ("user_id", "uuid"), |id| {
        format!("user/{id}/totp")
    }),
    column("sessions", "wrapped_key", BY_ID, |id| format!("session/{id}")),
];

/// What a pass over one column found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Resealed {
    pub table: &'static str,
    pub column: &'static str,
    /// Values that there are.
    pub values: u64,
    /// Of them, those that were under another key than the one that seals.
    pub under_other_keys: u64,
    /// Of these, those that no key of this gateway opens. They stay as they are.
    pub unopened: u64,
}

/// One row of a batch.
struct Sealed {
    key: String,
    value: Vec<u8>,
}

impl SealedColumn {
    fn batch_sql(&self) -> String {
        let Self {
            table,
            column,
            key,
            key_type,
            ..
        } = self;
        format!(
            "select {key}::text as key, {column} as value from {table} where {column} is not null \
             and ($1::text is null or {key} > $1::text::{key_type}) order by {key} limit $2"
        )
    }

    /// Writes a batch where the values are still those that were read: what was changed in between was sealed anew.
    fn write_sql(&self) -> String {
        let Self {
            table,
            column,
            key,
            key_type,
            ..
        } = self;
        format!(
            "update {table} t set {column} = r.new_value \
             from unnest($1::text[], $2::bytea[], $3::bytea[]) as r (key, old_value, new_value) \
             where t.{key} = r.key::{key_type} and t.{column} = r.old_value"
        )
    }
}

impl Store {
    /// Reads every sealed value, and with `write` seals those anew that are under another key than the one that seals.
    /// `after_batch` is told what was found so far. What is sealed under another key while this runs may be missed: run
    /// it until nothing is found.
    ///
    /// # Errors
    /// Where the store is away. What was sealed anew before stays so.
    pub async fn reseal(
        &self,
        write: bool,
        mut after_batch: impl FnMut(&Resealed),
    ) -> Result<Vec<Resealed>, StoreError> {
        let mut all = Vec::new();
        for column in SEALED_COLUMNS {
            let mut found = Resealed {
                table: column.table,
                column: column.column,
                ..Resealed::default()
            };
            let mut after = None;
            loop {
                let batch = self.sealed_batch(column, after.as_deref()).await?;
                let Some(last) = batch.last() else { break };
                after = Some(last.key.clone());
                let changed = sealed_anew(self.master(), column, &batch, &mut found);
                if write && !changed.is_empty() {
                    self.write_batch(column, &changed).await?;
                }
                after_batch(&found);
                if i64::try_from(batch.len()).unwrap_or(i64::MAX) < RESEAL_BATCH_ROWS {
                    break;
                }
            }
            all.push(found);
        }
        Ok(all)
    }

    async fn sealed_batch(&self, column: &SealedColumn, after: Option<&str>) -> Result<Vec<Sealed>, StoreError> {
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
            &[(&after, Type::TEXT), (&RESEAL_BATCH_ROWS, Type::INT8)];
        let rows = self.read("reading sealed values", &column.batch_sql(), params).await?;
        let sealed = rows.iter().map(|row| {
            Ok(Sealed {
                key: get(row, "key")?,
                value: get(row, "value")?,
            })
        });
        sealed.collect()
    }

    async fn write_batch(&self, column: &SealedColumn, changed: &[(&Sealed, Vec<u8>)]) -> Result<(), StoreError> {
        let keys: Vec<&str> = changed.iter().map(|(sealed, _)| sealed.key.as_str()).collect();
        let old: Vec<&[u8]> = changed.iter().map(|(sealed, _)| sealed.value.as_slice()).collect();
        let new: Vec<&[u8]> = changed.iter().map(|(_, new)| new.as_slice()).collect();
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[
            (&keys, Type::TEXT_ARRAY),
            (&old, Type::BYTEA_ARRAY),
            (&new, Type::BYTEA_ARRAY),
        ];
        self.read("writing sealed values", &column.write_sql(), params).await?;
        Ok(())
    }
}

fn sealed_anew<'a>(
    master: &MasterKey,
    column: &SealedColumn,
    batch: &'a [Sealed],
    found: &mut Resealed,
) -> Vec<(&'a Sealed, Vec<u8>)> {
    let mut changed = Vec::new();
    for sealed in batch {
        found.values += 1;
        match master.reseal(&(column.name)(&sealed.key), &sealed.value) {
            Ok(None) => {}
            Ok(Some(new)) => {
                found.under_other_keys += 1;
                changed.push((sealed, new));
            }
            Err(_) => {
                found.under_other_keys += 1;
                found.unopened += 1;
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;

    use super::*;
    use crate::{StoreConfig, testing};

    #[tokio::test]
    async fn every_sealed_column_of_the_schema_is_listed() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let sql = "select table_name::text, column_name::text from information_schema.columns \
                   where table_schema = current_schema() and data_type = 'bytea' \
                   and (column_name like '%sealed%' or column_name like '%wrapped%')";
        let rows = store.client().await.unwrap().query(sql, &[]).await.unwrap();
        let there: BTreeSet<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let listed: BTreeSet<(String, String)> = (SEALED_COLUMNS.iter())
            .map(|column| (column.table.to_owned(), column.column.to_owned()))
            .collect();
        assert_eq!(there, listed, "each sealed column needs its line in SEALED_COLUMNS");
    }

    #[tokio::test]
    async fn every_value_comes_under_the_new_key_however_many_there_are_and_the_old_one_opens_none() {
        let Some(url) = testing::fresh_database().await else {
            return;
        };
        let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        let config = StoreConfig { url, pool_size: 2 };
        let store = Store::open(&config, MasterKey::new(&old).unwrap()).await.unwrap();
        let client = store.client().await.unwrap();
        let sessions = RESEAL_BATCH_ROWS + 7;
        for _ in 0..sessions {
            let id = Uuid::now_v7();
            let wrapped = store.master().seal(&format!("session/{id}"), b"key").unwrap();
            let sql = "insert into sessions (id, writer, replica, protocol, user_name, email, groups, connection, agent, \
                       client_address, credential, database, application, client_tls, policy_version, audit_mode, \
                       started_at, wrapped_key) \
                       values ($1, $1, $1, '', '', '', '{}', '', '', '', '', '', '', false, 0, '', now(), $2)";
            client.execute(sql, &[&id, &wrapped]).await.unwrap();
        }
        // destroyed, and of a key that nobody has
        client
            .execute(
                "update sessions set wrapped_key = null where id = (select min(id::text)::uuid from sessions)",
                &[],
            )
            .await
            .unwrap();
        client
            .execute(
                "update sessions set wrapped_key = '\\x00' where id = (select max(id::text)::uuid from sessions)",
                &[],
            )
            .await
            .unwrap();
        store.master().replace(&[new, old]).unwrap();

        let looked = store.reseal(false, |_| {}).await.unwrap();
        let resealed = store.reseal(true, |_| {}).await.unwrap();
        assert_eq!(looked, resealed, "a look finds what a pass changes");
        let of = |all: &[Resealed], table: &str| all.iter().find(|found| found.table == table).cloned().unwrap();
        let found = of(&resealed, "sessions");
        let values = u64::try_from(sessions - 1).unwrap();
        assert_eq!(
            (found.values, found.under_other_keys, found.unopened),
            (values, values, 1)
        );
        assert_eq!(of(&resealed, "installation").under_other_keys, 1);
        let again = store.reseal(true, |_| {}).await.unwrap();
        assert_eq!(of(&again, "sessions").under_other_keys, 1, "the one that nobody opens");
        assert_eq!(of(&again, "installation").under_other_keys, 0);
        store.master().replace(&[old]).unwrap();
        let with_old = store.reseal(false, |_| {}).await.unwrap();
        assert!(
            with_old.iter().all(|found| found.unopened == found.values),
            "{with_old:?}"
        );
    }
}
