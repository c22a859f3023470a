//! SSH public keys of people and service accounts, for listeners that know somebody by one. A key is one account's.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::change::{Change, Witness, conflict, get};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::invalid;
use crate::ssh_public_key::SshPublicKey;
use crate::users::User;
use crate::{Store, StoreError};

/// Most keys of one account.
pub const KEYS_MAX: i64 = 50;
/// Longest name of a key.
pub const NAME_MAX_BYTES: usize = 128;

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct SshKey {
    pub id: Uuid,
    pub user_id: Uuid,
    pub username: String,
    pub name: String,
    pub algorithm: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// Without a comment.
    pub openssh: String,
    pub created_at: DateTime<Utc>,
}

const KEY_COLUMNS: &str = "k.id as k_id, k.user_id as k_user_id, u.username as u_username, k.name as k_name, \
     k.algorithm as k_algorithm, k.fingerprint as k_fingerprint, k.openssh as k_openssh, k.created_at as k_created_at";
const KEY_TABLES: &str = "ssh_keys k join users u on u.id = k.user_id";

/// How keys can be listed.
pub static SSH_KEYS: Listing = Listing {
    name: "ssh-keys",
    columns: &[KEY_COLUMNS],
    from: KEY_TABLES,
    whole: "true",
    id: SortKey::uuid("id", "k.id"),
    sorts: &[
        SortKey::time("created_at", "k.created_at"),
        SortKey::text("name", "k.name"),
    ],
    default_sort: "-created_at",
};

/// Which keys.
#[derive(Debug, Clone, Default)]
pub struct SshKeyFilter {
    pub user_id: Option<Uuid>,
    pub user: Option<String>,
    /// `SHA256:…`
    pub fingerprint: Option<String>,
}

impl SshKey {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "k_id")?,
            user_id: get(row, "k_user_id")?,
            username: get(row, "u_username")?,
            name: get(row, "k_name")?,
            algorithm: get(row, "k_algorithm")?,
            fingerprint: get(row, "k_fingerprint")?,
            openssh: get(row, "k_openssh")?,
            created_at: get(row, "k_created_at")?,
        })
    }

    /// For the record.
    fn described(&self) -> Value {
        json!({
            "id": self.id, "user": self.username, "name": self.name, "algorithm": self.algorithm,
            "fingerprint": self.fingerprint,
        })
    }
}

impl Store {
    /// # Errors
    /// `Invalid` (`name`, too many keys), `Conflict` where an account has the key, `NotFound` where the owner is gone,
    /// `Unrecorded`, or the store is away.
    pub async fn add_ssh_key(
        &self,
        owner: &User,
        name: &str,
        key: &SshPublicKey,
        witness: &dyn Witness,
    ) -> Result<SshKey, StoreError> {
        if name.trim().is_empty() || name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control) {
            let problem = format!("must be 1 to {NAME_MAX_BYTES} bytes without control characters, and not blank");
            return Err(invalid("name", problem));
        }
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "adding an SSH key").await?;
        check_room(&change, owner).await?;
        let sql = format!(
            "with k as (insert into ssh_keys (id, user_id, name, algorithm, fingerprint, openssh) \
             values ($1, $2, $3, $4, $5, $6) returning *) select {KEY_COLUMNS} from k join users u on u.id = k.user_id"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&Uuid::now_v7(), Type::UUID),
                    (&owner.id, Type::UUID),
                    (&name, Type::TEXT),
                    (&key.algorithm, Type::TEXT),
                    (&key.fingerprint, Type::TEXT),
                    (&key.openssh, Type::TEXT),
                ],
            )
            .await
            .map_err(|e| conflict(e, || format!("the SSH key {}", key.fingerprint)))?
            .ok_or_else(|| gone(owner))?;
        let added = SshKey::from_row(&row)?;
        let payload = json!({"subject": key.fingerprint, "before": null, "after": added.described()});
        change.commit(witness, "ssh_key.add", payload).await?;
        Ok(added)
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_ssh_key(&self, id: Uuid) -> Result<Option<SshKey>, StoreError> {
        let sql = format!("select {KEY_COLUMNS} from {KEY_TABLES} where k.id = $1");
        let row = self.read_opt("finding an SSH key", &sql, &[(&id, Type::UUID)]).await?;
        row.as_ref().map(SshKey::from_row).transpose()
    }

    /// A page of the keys.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_ssh_keys(&self, filter: &SshKeyFilter, window: &Window) -> Result<Listed<SshKey>, StoreError> {
        let conditions = Conditions::default()
            .when(filter.user_id.as_ref(), Type::UUID, "k.user_id = $?")
            .when(filter.user.as_ref(), Type::TEXT, "u.username = lower($?)")
            .when(filter.fingerprint.as_ref(), Type::TEXT, "k.fingerprint = $?");
        self.list("listing SSH keys", &SSH_KEYS, conditions, window, SshKey::from_row)
            .await
    }

    /// # Errors
    /// `NotFound`, `Unrecorded`, or the store is away.
    pub async fn delete_ssh_key(&self, id: Uuid, witness: &dyn Witness) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "deleting an SSH key").await?;
        let sql = format!(
            "with k as (delete from ssh_keys where id = $1 returning *) \
             select {KEY_COLUMNS} from k join users u on u.id = k.user_id"
        );
        let row = change.query_opt(&sql, &[(&id, Type::UUID)]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound {
            what: format!("SSH key {id}"),
        })?;
        let before = SshKey::from_row(&row)?;
        let payload = json!({"subject": before.fingerprint, "before": before.described(), "after": null});
        change.commit(witness, "ssh_key.delete", payload).await
    }
}

/// Deletes every key of an account, as part of another change.
pub(crate) async fn delete_all(change: &Change<'_>, user: Uuid) -> Result<(), StoreError> {
    let sql = "delete from ssh_keys where user_id = $1";
    change.query(sql, &[(&user, Type::UUID)]).await.map(drop)
}

/// Locks the owner's row, so that two requests do not count the same, and refuses one key too many.
async fn check_room(change: &Change<'_>, owner: &User) -> Result<(), StoreError> {
    let lock = "select 1 from users where id = $1 and deleted_at is null for update";
    let owned = change.query_opt(lock, &[(&owner.id, Type::UUID)]).await?;
    owned.ok_or_else(|| gone(owner))?;
    let sql = "select count(*) as n from ssh_keys where user_id = $1";
    let row = change.query_opt(sql, &[(&owner.id, Type::UUID)]).await?;
    if row.map_or(Ok(0), |row| get::<i64>(&row, "n"))? >= KEYS_MAX {
        let problem = format!("is one too many: an account has at most {KEYS_MAX} SSH keys. Delete one first");
        return Err(invalid("name", problem));
    }
    Ok(())
}

fn gone(owner: &User) -> StoreError {
    StoreError::NotFound {
        what: format!("user {}", owner.username),
    }
}
