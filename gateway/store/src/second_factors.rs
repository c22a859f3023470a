//! One-time codes and recovery codes: what is kept of them, and that each is taken once, whichever replica is asked.
//!
//! What makes a code right is said by the caller (`hoop-auth`); here are the row's lock, the clock that all replicas
//! share, and the wait after wrong codes. That wait is of the account, not of an address: who is asked for a code has
//! proved the password, so no stranger can make somebody wait, and many addresses give no more guesses.

use chrono::{DateTime, Utc};
use serde_json::json;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, get};
use crate::users::User;
use crate::{Store, StoreError};

/// Wrong codes in a row before the next one has to wait.
const CODES_FREE: i32 = 5;
/// Longest wait, in seconds: in the long run 96 guesses a day, of which each fits with 3 in a million.
const WAIT_MAX_S: i64 = 15 * 60;

/// What a person has beside the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondFactor {
    pub confirmed_at: DateTime<Utc>,
    /// Recovery codes that were not used yet.
    pub recovery_codes: i64,
}

/// What came of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeCheck<E> {
    /// It is used up now.
    Right,
    Wrong(E),
    /// It was not looked at, for too many were wrong; seconds.
    Wait(u64),
    /// There is nothing that it could be a code of.
    NotEnrolled,
}

/// Judges a code: the secret, seconds since 1970, the last step that was taken; answers the code's step.
pub trait Judge<E>: FnOnce(&[u8], u64, Option<u64>) -> Result<u64, E> + Send {}
impl<E, F: FnOnce(&[u8], u64, Option<u64>) -> Result<u64, E> + Send> Judge<E> for F {}

fn aad(user: Uuid) -> String {
    format!("user/{user}/totp")
}

impl Store {
    /// # Errors
    /// Where the store is away.
    pub async fn second_factor(&self, user: Uuid) -> Result<Option<SecondFactor>, StoreError> {
        let sql = "select confirmed_at, (select count(*) from recovery_codes r where r.user_id = f.user_id) as codes \
                   from second_factors f where user_id = $1 and confirmed_at is not null";
        let row = self
            .read_opt("finding a second factor", sql, &[(&user, Type::UUID)])
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(SecondFactor {
            confirmed_at: get(&row, "confirmed_at")?,
            recovery_codes: get(&row, "codes")?,
        }))
    }

    /// Begins enrolling with this secret; what was begun before is forgotten. Signing in does not ask for it until it is
    /// confirmed.
    ///
    /// # Errors
    /// `Conflict` where there is a confirmed one, or the store is away.
    pub async fn enrol_second_factor(&self, user: &User, secret: &[u8]) -> Result<(), StoreError> {
        let sealed = self.master().seal(&aad(user.id), secret);
        let sealed = sealed.map_err(|error| StoreError::Setup(error.to_string()))?;
        let sql = "insert into second_factors (user_id, secret_sealed) values ($1, $2) on conflict (user_id) do update \
                   set secret_sealed = excluded.secret_sealed, created_at = now() \
                   where second_factors.confirmed_at is null returning user_id";
        let params = &[(&user.id as _, Type::UUID), (&sealed as _, Type::BYTEA)];
        match self.read_opt("enrolling a second factor", sql, params).await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Conflict {
                what: format!("the second factor of {}", user.username),
            }),
        }
    }

    /// The first code of what was enrolled: from here on, signing in asks for one. The recovery codes' hashes are kept.
    ///
    /// # Errors
    /// `Unrecorded`, `Sealed`, or the store is away.
    pub async fn confirm_second_factor<E>(
        &self,
        user: &User,
        judge: impl Judge<E>,
        recovery: &[[u8; 32]],
        witness: &dyn Witness,
    ) -> Result<CodeCheck<E>, StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "confirming a second factor").await?;
        let checked = self.look(&change, user.id, false, judge).await?;
        if !matches!(checked, CodeCheck::Right) {
            change.commit_unrecorded().await?;
            return Ok(checked);
        }
        let confirm = "update second_factors set confirmed_at = now() where user_id = $1";
        change.query(confirm, &[(&user.id, Type::UUID)]).await?;
        keep_recovery_codes(&change, user.id, recovery).await?;
        let payload = json!({"subject": user.username, "before": null, "after": {"second_factor": "totp"}});
        change.commit(witness, "second_factor.confirm", payload).await?;
        Ok(checked)
    }

    /// Uses a code up, or counts it as wrong.
    ///
    /// # Errors
    /// `Sealed`, or the store is away.
    pub async fn take_code<E>(&self, user: Uuid, judge: impl Judge<E>) -> Result<CodeCheck<E>, StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "checking a code").await?;
        let checked = self.look(&change, user, true, judge).await?;
        change.commit_unrecorded().await?;
        Ok(checked)
    }

    /// Under the row's lock, by the store's clock.
    async fn look<E>(
        &self,
        change: &Change<'_>,
        user: Uuid,
        confirmed: bool,
        judge: impl Judge<E>,
    ) -> Result<CodeCheck<E>, StoreError> {
        let sql = "select secret_sealed, last_step, failures, \
                   floor(extract(epoch from clock_timestamp()))::bigint as now_s, \
                   coalesce(floor(extract(epoch from clock_timestamp() - failed_at))::bigint, 0) as since_s \
                   from second_factors where user_id = $1 and (confirmed_at is not null) = $2 for update";
        let row = change
            .query_opt(sql, &[(&user, Type::UUID), (&confirmed, Type::BOOL)])
            .await?;
        let Some(row) = row else {
            return Ok(CodeCheck::NotEnrolled);
        };
        let wait_s = wait_s(get(&row, "failures")?).saturating_sub(get(&row, "since_s")?);
        if let Some(wait_s) = u64::try_from(wait_s).ok().filter(|wait_s| *wait_s > 0) {
            return Ok(CodeCheck::Wait(wait_s));
        }
        let sealed: Vec<u8> = get(&row, "secret_sealed")?;
        let secret = self.master().open(&aad(user), &sealed).map(Zeroizing::new);
        let secret = secret.map_err(|_| StoreError::Sealed {
            what: "a second factor",
        })?;
        let now_s = u64::try_from(get::<i64>(&row, "now_s")?).unwrap_or_default();
        let last_step = u64::try_from(get::<i64>(&row, "last_step")?).ok();
        match judge(&secret, now_s, last_step) {
            Ok(step) => {
                let sql = "update second_factors set last_step = $2, failures = 0, failed_at = null where user_id = $1";
                let step = i64::try_from(step).unwrap_or(i64::MAX);
                change.query(sql, &[(&user, Type::UUID), (&step, Type::INT8)]).await?;
                Ok(CodeCheck::Right)
            }
            Err(fault) => {
                let sql = "update second_factors set failures = least(failures, 1000) + 1, \
                           failed_at = clock_timestamp() where user_id = $1";
                change.query(sql, &[(&user, Type::UUID)]).await?;
                Ok(CodeCheck::Wrong(fault))
            }
        }
    }

    /// Uses a recovery code up; false where the user has none with this hash (any more).
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn take_recovery_code(&self, user: Uuid, sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let sql = "delete from recovery_codes where user_id = $1 and sha256 = $2 returning user_id";
        let params = &[(&user as _, Type::UUID), (&sha256.as_slice() as _, Type::BYTEA)];
        Ok(self.read_opt("using a recovery code", sql, params).await?.is_some())
    }

    /// Replaces all recovery codes.
    ///
    /// # Errors
    /// `NotFound` where there is no second factor, `Unrecorded`, or the store is away.
    pub async fn replace_recovery_codes(
        &self,
        user: &User,
        recovery: &[[u8; 32]],
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "replacing recovery codes").await?;
        let sql = "select 1 from second_factors where user_id = $1 and confirmed_at is not null for update";
        if change.query_opt(sql, &[(&user.id, Type::UUID)]).await?.is_none() {
            return Err(no_second_factor(user));
        }
        keep_recovery_codes(&change, user.id, recovery).await?;
        let payload = json!({"subject": user.username, "before": null, "after": {"recovery_codes": recovery.len()}});
        change.commit(witness, "second_factor.recovery_codes", payload).await
    }

    /// Takes the second factor away, confirmed or begun.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Unrecorded`, or the store is away.
    pub async fn remove_second_factor(&self, user: &User, witness: &dyn Witness) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "removing a second factor").await?;
        if !end_second_factor(&change, user.id).await? {
            return Err(no_second_factor(user));
        }
        let payload = json!({"subject": user.username, "before": {"second_factor": "totp"}, "after": null});
        change.commit(witness, "second_factor.remove", payload).await
    }
}

/// Whether there was one.
pub(crate) async fn end_second_factor(change: &Change<'_>, user: Uuid) -> Result<bool, StoreError> {
    let sql = "with codes as (delete from recovery_codes where user_id = $1) \
               delete from second_factors where user_id = $1 returning user_id";
    let removed = change.query_opt(sql, &[(&user, Type::UUID)]).await?;
    Ok(removed.is_some())
}

async fn keep_recovery_codes(change: &Change<'_>, user: Uuid, recovery: &[[u8; 32]]) -> Result<(), StoreError> {
    let hashes: Vec<&[u8]> = recovery.iter().map(<[u8; 32]>::as_slice).collect();
    let delete = "delete from recovery_codes where user_id = $1";
    change.query(delete, &[(&user, Type::UUID)]).await?;
    let insert = "insert into recovery_codes (user_id, sha256) select $1, unnest($2)";
    let params = &[(&user as _, Type::UUID), (&hashes as _, Type::BYTEA_ARRAY)];
    change.query(insert, params).await.map(drop)
}

/// Seconds to wait after so many wrong codes: 1, 2, 4, … from the fifth on.
fn wait_s(failures: i32) -> i64 {
    match u32::try_from(failures.saturating_sub(CODES_FREE)) {
        Err(_) => 0,
        Ok(over) => 1i64
            .checked_shl(over)
            .filter(|s| *s > 0)
            .unwrap_or(WAIT_MAX_S)
            .min(WAIT_MAX_S),
    }
}

fn no_second_factor(user: &User) -> StoreError {
    StoreError::NotFound {
        what: format!("a second factor of {}", user.username),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Unrecorded;
    use crate::testing;
    use crate::users::Role;

    const SECRET: &[u8] = b"12345678901234567890";

    async fn enrolled(store: &Store) -> User {
        let made = store
            .create_user("ada", "correct horse battery", Role::Member, "", &Unrecorded)
            .await;
        let ada = made.unwrap();
        store.enrol_second_factor(&ada, SECRET).await.unwrap();
        assert_eq!(store.second_factor(ada.id).await.unwrap(), None);
        let confirmed = store
            .confirm_second_factor(&ada, step_is(1), &[[1; 32], [2; 32]], &Unrecorded)
            .await;
        assert_eq!(confirmed.unwrap(), CodeCheck::Right);
        ada
    }

    /// A code of this step, right where that is later than the last one.
    fn step_is(step: u64) -> impl Judge<&'static str> {
        move |secret: &[u8], _now_s: u64, last: Option<u64>| {
            assert_eq!(secret, SECRET);
            if last.is_none_or(|last| step > last) {
                Ok(step)
            } else {
                Err("used")
            }
        }
    }

    #[test]
    fn the_wait_doubles_to_a_quarter_of_an_hour() {
        let waits: Vec<i64> = [0, 4, 5, 6, 7, 14, 15, 1000, i32::MAX].map(wait_s).to_vec();
        assert_eq!(waits, [0, 0, 1, 2, 4, 512, 900, 900, 900]);
    }

    #[tokio::test]
    async fn a_step_is_taken_once_however_many_ask_at_once() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let ada = enrolled(&store).await;
        let taken = futures_util::future::join_all((0..4).map(|_| store.take_code(ada.id, step_is(7)))).await;
        let right = taken
            .iter()
            .filter(|taken| matches!(taken, Ok(CodeCheck::Right)))
            .count();
        assert_eq!(right, 1, "{taken:?}");
        assert_eq!(
            store.take_code(ada.id, step_is(6)).await.unwrap(),
            CodeCheck::Wrong("used")
        );
        let again = store.enrol_second_factor(&ada, SECRET).await;
        assert!(matches!(again, Err(StoreError::Conflict { .. })));
    }

    #[tokio::test]
    async fn after_some_wrong_codes_even_a_right_one_waits() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let ada = enrolled(&store).await;
        let wrong = || |_: &[u8], _: u64, _: Option<u64>| Err::<u64, _>("wrong");
        let failed_ago = async |seconds: u32| {
            let sql = format!("update second_factors set failed_at = now() - interval '{seconds} seconds'");
            store.client().await.unwrap().batch_execute(&sql).await.unwrap();
        };
        for _ in 0..CODES_FREE + 7 {
            failed_ago(3600).await;
            assert_eq!(
                store.take_code(ada.id, wrong()).await.unwrap(),
                CodeCheck::Wrong("wrong")
            );
        }
        let waits = store.take_code(ada.id, step_is(9)).await.unwrap();
        assert!(matches!(waits, CodeCheck::Wait(100..=128)), "{waits:?}");
        failed_ago(129).await;
        assert_eq!(store.take_code(ada.id, step_is(9)).await.unwrap(), CodeCheck::Right);
        assert_eq!(
            store.take_code(ada.id, wrong()).await.unwrap(),
            CodeCheck::Wrong("wrong")
        );
        assert_eq!(store.take_code(ada.id, step_is(10)).await.unwrap(), CodeCheck::Right);
    }

    #[tokio::test]
    async fn recovery_codes_are_good_once_and_go_with_the_factor() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let ada = enrolled(&store).await;
        let codes = async || store.second_factor(ada.id).await.unwrap().unwrap().recovery_codes;
        assert_eq!(codes().await, 2);
        assert!(store.take_recovery_code(ada.id, &[1; 32]).await.unwrap());
        assert!(!store.take_recovery_code(ada.id, &[1; 32]).await.unwrap());
        assert!(!store.take_recovery_code(Uuid::now_v7(), &[2; 32]).await.unwrap());
        store
            .replace_recovery_codes(&ada, &[[3; 32]], &Unrecorded)
            .await
            .unwrap();
        assert!(!store.take_recovery_code(ada.id, &[2; 32]).await.unwrap());
        assert_eq!(codes().await, 1);
        store.remove_second_factor(&ada, &Unrecorded).await.unwrap();
        assert_eq!(store.second_factor(ada.id).await.unwrap(), None);
        assert!(!store.take_recovery_code(ada.id, &[3; 32]).await.unwrap());
        assert_eq!(
            store.take_code(ada.id, step_is(99)).await.unwrap(),
            CodeCheck::NotEnrolled
        );
    }
}
