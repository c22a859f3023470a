//! A sign-in between its two steps: the password was right, the second factor is asked for. What names it is known to
//! the browser alone, good for a few minutes and a few attempts.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use crate::change::get;
use crate::users::{USER_COLUMNS, User};
use crate::{Store, StoreError, opaque};

const PREFIX: &str = "hoop_2_";
/// Between the two steps.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(5 * 60);
/// Codes that one challenge takes; after that the password is asked for again.
pub const CHALLENGE_ATTEMPTS_MAX: i32 = 5;
/// Challenges of one person; one more ends the oldest.
const CHALLENGES_MAX: i64 = 10;

/// What is handed out after the first step.
pub struct Challenge {
    /// Not kept: this is the only time it can be read.
    pub name: Zeroizing<String>,
    pub expires_at: DateTime<Utc>,
}

impl Store {
    /// The first step is done. `hold`: `cookie` or `token`. `None` where the user was changed since the password was
    /// looked at.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn begin_challenge(&self, user: &User, hold: &str) -> Result<Option<Challenge>, StoreError> {
        let name = opaque::make(PREFIX)?;
        let sha256 = opaque::kept(PREFIX, &name);
        let life_s = i64::try_from(CHALLENGE_LIFE.as_secs()).unwrap_or(i64::MAX);
        let sql = format!(
            "with owner as (select u.id, u.version from users u where u.id = $1 and u.version = $2 and u.active \
                            and u.deleted_at is null for share), \
             ended as (delete from sign_in_challenges where expires_at < now() or sha256 in \
                       (select sha256 from sign_in_challenges where user_id = $1 \
                        order by expires_at desc offset {CHALLENGES_MAX} - 1)) \
             insert into sign_in_challenges (sha256, user_id, user_version, hold, expires_at) \
             select $3, owner.id, owner.version, $4, now() + $5 * interval '1 second' from owner returning expires_at"
        );
        let params = &[
            (&user.id as _, Type::UUID),
            (&user.version as _, Type::INT8),
            (&sha256 as _, Type::BYTEA),
            (&hold as _, Type::TEXT),
            (&life_s as _, Type::INT8),
        ];
        let row = self.read_opt("beginning the second step", &sql, params).await?;
        let expires_at = row.map(|row| get(&row, "expires_at")).transpose()?;
        Ok(expires_at.map(|expires_at| Challenge { name, expires_at }))
    }

    /// Counts one attempt at the second step, and answers whose it is and what is to be held. `None` where there is no
    /// such challenge, it is too old, its attempts are used up, or its user was changed.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn attempt_challenge(&self, name: &str) -> Result<Option<(User, String)>, StoreError> {
        let Some(sha256) = opaque::kept(PREFIX, name) else {
            return Ok(None);
        };
        let sql = format!(
            "update sign_in_challenges c set attempts = attempts + 1 from users u where c.sha256 = $1 \
             and c.expires_at > now() and c.attempts < {CHALLENGE_ATTEMPTS_MAX} and u.id = c.user_id \
             and u.version = c.user_version and u.active and u.deleted_at is null \
             returning c.hold as c_hold, {USER_COLUMNS}"
        );
        let row = self
            .read_opt("attempting the second step", &sql, &[(&sha256, Type::BYTEA)])
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some((User::from_row(&row)?, get(&row, "c_hold")?)))
    }

    /// The second step is done: the challenge is good for nothing any more. False where it was used already.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn end_challenge(&self, name: &str) -> Result<bool, StoreError> {
        let Some(sha256) = opaque::kept(PREFIX, name) else {
            return Ok(false);
        };
        let sql = "delete from sign_in_challenges where sha256 = $1 returning user_id";
        let ended = self
            .read_opt("ending the second step", sql, &[(&sha256, Type::BYTEA)])
            .await?;
        Ok(ended.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Unrecorded;
    use crate::testing;
    use crate::users::Role;

    #[tokio::test]
    async fn a_challenge_takes_a_few_attempts_for_a_few_minutes_and_ends_with_a_new_password() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let made = store
            .create_user("ada", "correct horse battery", Role::Member, "", &Unrecorded)
            .await;
        let ada = made.unwrap();
        let begin = async || store.begin_challenge(&ada, "cookie").await.unwrap().unwrap().name;
        let works = async |name: &str| store.attempt_challenge(name).await.unwrap().is_some();
        let first = begin().await;
        for _ in 0..CHALLENGE_ATTEMPTS_MAX {
            let attempt = store.attempt_challenge(&first).await.unwrap().unwrap();
            assert_eq!(attempt, (ada.clone(), "cookie".to_owned()));
        }
        assert!(!works(&first).await);

        let second = begin().await;
        assert!(store.end_challenge(&second).await.unwrap());
        assert!(!store.end_challenge(&second).await.unwrap());
        assert!(!works(&second).await);

        let third = begin().await;
        let client = store.client().await.unwrap();
        let age = "update sign_in_challenges set expires_at = now() - interval '1 second'";
        client.batch_execute(age).await.unwrap();
        drop(client);
        assert!(!works(&third).await);

        let fourth = begin().await;
        store
            .set_password("ada", "another good one", &Unrecorded)
            .await
            .unwrap();
        assert!(!works(&fourth).await);
        assert!(store.begin_challenge(&ada, "token").await.unwrap().is_none());
    }
}
