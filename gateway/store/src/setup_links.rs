//! The link with which the first administrator is made: random, kept as SHA-256, good for a day, and for nothing once
//! there is a user.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, get};
use crate::users::{ADMINS_LOCK, NewUser, Role, User, hashed, insert_user};
use crate::{Store, StoreError, names, opaque};

const PREFIX: &str = "hoop_i_";
/// How long a link works.
pub const SETUP_LINK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Links at once, each start making one; the oldest go.
const SETUP_LINKS_MAX: i64 = 16;

/// What is printed at the first start.
pub struct SetupLink {
    /// Not kept: this is the only time it can be read.
    pub token: Zeroizing<String>,
    pub expires_at: DateTime<Utc>,
}

impl Store {
    /// A link, where there is no user yet. Those of other replicas and earlier starts stay good.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn make_setup_link(&self) -> Result<Option<SetupLink>, StoreError> {
        let token = opaque::make(PREFIX)?;
        let sha256 = opaque::kept(PREFIX, &token);
        let life_s = i64::try_from(SETUP_LINK_LIFE.as_secs()).unwrap_or(i64::MAX);
        let sql = format!(
            "with ended as (delete from setup_links where expires_at < now() or sha256 in \
                            (select sha256 from setup_links order by expires_at desc offset {SETUP_LINKS_MAX} - 1)) \
             insert into setup_links (sha256, expires_at) select $1, now() + $2 * interval '1 second' \
             where not exists (select 1 from users where deleted_at is null) returning expires_at"
        );
        let params = &[(&sha256 as _, Type::BYTEA), (&life_s as _, Type::INT8)];
        let row = self.read_opt("making a set-up link", &sql, params).await?;
        let expires_at = row.map(|row| get(&row, "expires_at")).transpose()?;
        Ok(expires_at.map(|expires_at| SetupLink { token, expires_at }))
    }

    /// Whether this is a link that works.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn is_setup_link(&self, token: &str) -> Result<bool, StoreError> {
        let Some(sha256) = opaque::kept(PREFIX, token) else {
            return Ok(false);
        };
        let sql = "select 1 from setup_links where sha256 = $1 and expires_at > now()";
        let found = self
            .read_opt("finding a set-up link", sql, &[(&sha256, Type::BYTEA)])
            .await?;
        Ok(found.is_some())
    }

    /// Makes the first administrator; all links are used up with that. `None` where this is no link that works.
    ///
    /// # Errors
    /// `Invalid` (username, password), `Unrecorded`, or the store is away.
    pub async fn use_setup_link(
        &self,
        token: &str,
        username: &str,
        password: &str,
        witness: &dyn Witness,
    ) -> Result<Option<User>, StoreError> {
        let Some(sha256) = opaque::kept(PREFIX, token) else {
            return Ok(None);
        };
        let username = names::username(username)?;
        let hashed = hashed(password).await?;
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "making the first administrator").await?;
        // one after the other: of two links used at once, one makes the administrator
        let lock = "select pg_advisory_xact_lock($1)";
        change.query(lock, &[(&ADMINS_LOCK, Type::INT8)]).await?;
        let sql = "select 1 from setup_links where sha256 = $1 and expires_at > now() \
                   and not exists (select 1 from users where deleted_at is null)";
        if change.query_opt(sql, &[(&sha256, Type::BYTEA)]).await?.is_none() {
            return Ok(None);
        }
        let new = NewUser {
            username: &username,
            email: "",
            role: Role::Admin,
            groups: Vec::new(),
            service: false,
        };
        let user = insert_user(&change, new, Some(hashed)).await?;
        change.query("delete from setup_links", &[]).await?;
        let after = json!({"id": user.id, "username": username, "role": Role::Admin, "set_up_link": true});
        let payload = json!({"subject": username, "before": null, "after": after});
        change.commit(witness, "user.create", payload).await?;
        Ok(Some(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Unrecorded;
    use crate::testing;

    const PASSWORD: &str = "correct horse battery";

    #[tokio::test]
    async fn of_links_used_at_once_one_makes_the_administrator_and_none_works_after() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let link = async || store.make_setup_link().await.unwrap().unwrap().token;
        let (first, second) = (link().await, link().await);
        assert!(store.is_setup_link(&first).await.unwrap());
        let root = store.use_setup_link(&first, "root", PASSWORD, &Unrecorded);
        let boss = store.use_setup_link(&second, "boss", PASSWORD, &Unrecorded);
        let (root, boss) = tokio::join!(root, boss);
        let made: Vec<User> = [root.unwrap(), boss.unwrap()].into_iter().flatten().collect();
        assert_eq!(made.len(), 1, "{made:?}");
        assert_eq!(made[0].role, Role::Admin);
        assert!(!store.is_setup_link(&first).await.unwrap());
        assert!(!store.is_setup_link(&second).await.unwrap());
        assert!(store.make_setup_link().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_link_is_good_for_a_day() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let link = store.make_setup_link().await.unwrap().unwrap().token;
        let client = store.client().await.unwrap();
        let age = "update setup_links set expires_at = now() - interval '1 second'";
        client.batch_execute(age).await.unwrap();
        drop(client);
        let used = store.use_setup_link(&link, "root", PASSWORD, &Unrecorded).await;
        assert_eq!(used.unwrap(), None);
    }
}
