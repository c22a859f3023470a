//! Asking providers again who a person is, without the person: sealed refresh tokens, and which replica uses one now.
//!
//! Many providers take a refresh token once, and end the whole sign-in where one is used twice. So a token is used by
//! whoever claimed its row, and the next one is stored before anything else is done. A replica that dies in between
//! costs that person a new sign-in, and nothing more.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, get};
use crate::identities::{Recorded, Role, apply, end_sign_ins, linked_user};
use crate::users::User;
use crate::{Store, StoreError};

/// What is sealed.
const REFRESH_TOKEN: &str = "a refresh token";

/// A refresh token that this replica may use now.
pub struct Claimed {
    id: Uuid,
    pub provider: String,
    pub subject: String,
    pub user_id: Uuid,
    pub token: Zeroizing<String>,
    generation: i64,
}

impl Store {
    /// Keeps the refresh token of a sign-in, to be used after `interval`; `None`: the provider gave none, and an older
    /// one is forgotten.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn keep_refresh_token(
        &self,
        provider: &str,
        subject: &str,
        token: Option<&str>,
        interval: Duration,
    ) -> Result<(), StoreError> {
        let sql = "select id from identities where provider = $1 and subject = $2";
        let person = [(&provider as _, Type::TEXT), (&subject as _, Type::TEXT)];
        let Some(row) = self.read_opt("finding an identity", sql, &person).await? else {
            return Ok(());
        };
        let id: Uuid = get(&row, "id")?;
        let sealed = token.map(|token| self.seal_refresh(id, token)).transpose()?;
        let sql = "update identities set refresh_sealed = $2, generation = generation + 1, claimed_until = null, \
                   refresh_due_at = now() + $3 * interval '1 second' where id = $1";
        let parameters = [
            (&id as _, Type::UUID),
            (&sealed as _, Type::BYTEA),
            (&seconds(interval) as _, Type::INT8),
        ];
        self.read("keeping a refresh token", sql, &parameters).await.map(drop)
    }

    /// Refresh tokens that are due, of users who are signed in somewhere or have a credential, at `providers`; at most
    /// `limit`. Nobody else gets them for `claim`.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn claim_refreshes(
        &self,
        providers: &[String],
        limit: i64,
        claim: Duration,
    ) -> Result<Vec<Claimed>, StoreError> {
        let sql = format!(
            "with due as (select i.provider, i.subject from identities i join users u on u.id = i.user_id \
             where i.refresh_sealed is not null and i.refresh_due_at <= now() and i.provider = any($1) \
             and (i.claimed_until is null or i.claimed_until < now()) and u.active and u.deleted_at is null \
             and ({SIGNED_IN}) order by i.refresh_due_at limit $2 for update of i skip locked) \
             update identities i set claimed_until = now() + $3 * interval '1 second' from due \
             where i.provider = due.provider and i.subject = due.subject \
             returning i.id, i.provider, i.subject, i.user_id, i.refresh_sealed, i.generation"
        );
        let parameters = [
            (&providers as _, Type::TEXT_ARRAY),
            (&limit as _, Type::INT8),
            (&seconds(claim) as _, Type::INT8),
        ];
        let rows = self.read("claiming refresh tokens", &sql, &parameters).await?;
        rows.iter().map(|row| self.claimed(row)).collect()
    }

    fn claimed(&self, row: &Row) -> Result<Claimed, StoreError> {
        let id: Uuid = get(row, "id")?;
        let sealed: Vec<u8> = get(row, "refresh_sealed")?;
        let wrong = |_| StoreError::Sealed { what: REFRESH_TOKEN };
        let opened = self.master().open(&sealed_name(id), &sealed).map_err(wrong)?;
        let token = String::from_utf8(opened).map_err(|_| StoreError::Sealed { what: REFRESH_TOKEN })?;
        Ok(Claimed {
            id,
            provider: get(row, "provider")?,
            subject: get(row, "subject")?,
            user_id: get(row, "user_id")?,
            token: Zeroizing::new(token),
            generation: get(row, "generation")?,
        })
    }

    /// The provider confirmed the sign-in, and gave `next` to use after `interval`. `false` where the person signed in
    /// anew in between: the newer token stays.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn refreshed(&self, claimed: &Claimed, next: &str, interval: Duration) -> Result<bool, StoreError> {
        let sealed = self.seal_refresh(claimed.id, next)?;
        let sql = "update identities set refresh_sealed = $4, generation = generation + 1, claimed_until = null, \
                   refreshed_at = now(), refresh_due_at = now() + $5 * interval '1 second' \
                   where provider = $1 and subject = $2 and generation = $3 returning 1";
        let parameters = [
            (&claimed.provider as _, Type::TEXT),
            (&claimed.subject as _, Type::TEXT),
            (&claimed.generation as _, Type::INT8),
            (&sealed as _, Type::BYTEA),
            (&seconds(interval) as _, Type::INT8),
        ];
        let kept = self.read_opt("keeping a refresh token", sql, &parameters).await?;
        Ok(kept.is_some())
    }

    /// Nothing is known: the same token is tried again after `interval`.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn refresh_later(&self, claimed: &Claimed, interval: Duration) -> Result<(), StoreError> {
        let sql = "update identities set claimed_until = null, refresh_due_at = now() + $4 * interval '1 second' \
                   where provider = $1 and subject = $2 and generation = $3";
        let parameters = [
            (&claimed.provider as _, Type::TEXT),
            (&claimed.subject as _, Type::TEXT),
            (&claimed.generation as _, Type::INT8),
            (&seconds(interval) as _, Type::INT8),
        ];
        self.read("putting a refresh off", sql, &parameters).await.map(drop)
    }

    /// The provider says that this sign-in is over: the groups that it told go, browser sessions and tokens end, and with
    /// the groups go the sessions that they allowed. `None` where the person signed in anew in between.
    ///
    /// # Errors
    /// `Unrecorded`, or the store is away.
    pub async fn sign_in_is_over(
        &self,
        claimed: &Claimed,
        role: Option<Role>,
        witness: &dyn Witness,
    ) -> Result<Option<User>, StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "ending what a provider ended").await?;
        let Some(user) = linked_user(&change, &claimed.provider, &claimed.subject).await? else {
            return Ok(None);
        };
        let sql = "update identities set refresh_sealed = null, refresh_due_at = null, claimed_until = null, \
                   generation = generation + 1, groups = case when groups is null then null else '{}'::text[] end \
                   where provider = $1 and subject = $2 and generation = $3 returning 1";
        let parameters = [
            (&claimed.provider as _, Type::TEXT),
            (&claimed.subject as _, Type::TEXT),
            (&claimed.generation as _, Type::INT8),
        ];
        if change.query_opt(sql, &parameters).await?.is_none() {
            return Ok(None);
        }
        end_sign_ins(&change, user.id).await?;
        let recorded = Recorded::Always("identity.ended");
        apply(change, user, "", role, recorded, witness).await.map(Some)
    }

    fn seal_refresh(&self, id: Uuid, token: &str) -> Result<Vec<u8>, StoreError> {
        self.master()
            .seal(&sealed_name(id), token.as_bytes())
            .map_err(|_| StoreError::Setup("a refresh token cannot be sealed".into()))
    }
}

/// Of `users u`: whether anything is open that a provider's word could end.
const SIGNED_IN: &str = "exists (select 1 from api_tokens t where t.user_id = u.id and t.expires_at > now()) \
     or exists (select 1 from personal_tokens p where p.user_id = u.id and p.expires_at > now() and p.revoked_at is null) \
     or exists (select 1 from browser_sessions b where b.user_id = u.id and b.expires_at > now()) \
     or exists (select 1 from credentials c where c.user_id = u.id and c.expires_at > now() and c.revoked_at is null)";

/// A token opens for its own person alone.
fn sealed_name(id: Uuid) -> String {
    format!("identity/{id}/refresh")
}

fn seconds(interval: Duration) -> i64 {
    i64::try_from(interval.as_secs()).unwrap_or(i64::MAX)
}
