//! Personal tokens of the API, of people and of service accounts: shown once, kept as SHA-256, scoped, always expiring.
//!
//! A token is `hoop_pat_`, 40 random characters and 7 of a checksum over all before them (CRC-32), in lower-case base32
//! without look-alikes, so that scanners of source code know a leaked one without asking.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, get};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::invalid;
use crate::random;
use crate::users::{Role, USER_COLUMNS, User};
use crate::{Store, StoreError};

/// What a token begins with.
pub const PREFIX: &str = "hoop_pat_";
/// Random characters, five bits each.
const RANDOM_CHARS: usize = 40;
/// Characters of the checksum.
const CHECKSUM_CHARS: usize = 7;
/// Characters of a token that are kept in clear, to tell tokens apart: the prefix and four more (20 of 200 random bits).
const HINT_CHARS: usize = PREFIX.len() + 4;
/// How long a token is valid where nothing is said, in seconds: 90 days.
pub const TTL_DEFAULT_S: u64 = 90 * 86_400;
/// How long one is valid at most, in seconds: 366 days.
pub const TTL_MAX_S: u64 = 366 * 86_400;
/// The shortest life that can be asked for, in seconds.
pub const TTL_MIN_S: u64 = 60;
/// Most valid tokens of one account.
pub const TOKENS_MAX: i64 = 100;
/// Longest name of a token.
pub const NAME_MAX_BYTES: usize = 128;
/// A token's last use is kept to so many seconds: it costs no write a request.
pub const USED_STEP_S: i64 = 600;
/// How long an expired or revoked one stays listed.
const KEPT_DAYS: i32 = 90;

/// What a token may do; never more than its owner may. Which routes that is, the API says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Reads what its owner reads.
    Read,
    /// Makes, lists and revokes its owner's credentials.
    Connect,
    /// Whatever its owner, an administrator, may do, but for what needs a sign-in.
    Admin,
}

impl Scope {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Connect => "connect",
            Self::Admin => "admin",
        }
    }

    /// A scope that this release does not know gives nothing.
    fn from_stored(text: &str) -> Option<Self> {
        match text {
            "read" => Some(Self::Read),
            "connect" => Some(Self::Connect),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    Active,
    Expired,
    /// Itself or its owner.
    Revoked,
}

impl TokenState {
    fn from_stored(text: &str) -> Self {
        match text {
            "active" => Self::Active,
            "expired" => Self::Expired,
            _ => Self::Revoked,
        }
    }
}

/// A token as it may be listed.
#[derive(Debug, Clone, PartialEq)]
pub struct PersonalToken {
    pub id: Uuid,
    pub user_id: Uuid,
    pub username: String,
    pub name: String,
    /// The first characters, to tell it by.
    pub hint: String,
    pub scopes: BTreeSet<Scope>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    /// To `USED_STEP_S`.
    pub last_used_at: Option<DateTime<Utc>>,
    pub state: TokenState,
}

/// A new token; `secret` is not kept: this is the only time it can be read.
pub struct MadeToken {
    pub token: PersonalToken,
    pub secret: Zeroizing<String>,
}

/// What a new token is to be.
#[derive(Debug)]
pub struct NewToken<'a> {
    pub name: &'a str,
    pub scopes: &'a BTreeSet<Scope>,
    pub ttl_s: u64,
}

/// Whose token was shown, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOwner {
    pub user: User,
    pub token_id: Uuid,
    pub scopes: BTreeSet<Scope>,
}

const TOKEN_COLUMNS: &str = "t.id as t_id, t.user_id as t_user_id, u.username as u_username, t.name as t_name, \
     t.hint as t_hint, t.scopes as t_scopes, t.created_at as t_created_at, t.expires_at as t_expires_at, \
     t.last_used_at as t_last_used_at";
/// By the store's clock.
const STATE: &str = "case when t.revoked_at is not null or u.deleted_at is not null or not u.active then 'revoked' \
     when t.expires_at <= now() then 'expired' else 'active' end as t_state";
/// `STATE`, as conditions.
/// By what revokes, of which there is little, so that not every token is looked at.
const REVOKED: &str = "t.id = any (array(select id from personal_tokens where revoked_at is not null \
     union all select of.id from users gone join personal_tokens of on of.user_id = gone.id \
     where gone.deleted_at is not null or not gone.active))";
const EXPIRED: &str = "t.revoked_at is null and u.deleted_at is null and u.active and t.expires_at <= now()";
const ACTIVE: &str = "t.revoked_at is null and u.deleted_at is null and u.active and t.expires_at > now()";
const TOKEN_TABLES: &str = "personal_tokens t join users u on u.id = t.user_id";

/// How tokens can be listed.
pub static PERSONAL_TOKENS: Listing = Listing {
    name: "tokens",
    columns: &[TOKEN_COLUMNS, STATE],
    from: TOKEN_TABLES,
    whole: "true",
    id: SortKey::uuid("id", "t.id"),
    sorts: &[
        SortKey::time("created_at", "t.created_at"),
        SortKey::time("expires_at", "t.expires_at"),
        SortKey::text("name", "t.name"),
    ],
    default_sort: "-created_at",
};

/// Which tokens.
#[derive(Debug, Clone, Default)]
pub struct TokenFilter {
    pub user_id: Option<Uuid>,
    pub user: Option<String>,
    pub state: Option<TokenState>,
}

impl PersonalToken {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "t_id")?,
            user_id: get(row, "t_user_id")?,
            username: get(row, "u_username")?,
            name: get(row, "t_name")?,
            hint: get(row, "t_hint")?,
            scopes: scopes(row)?,
            created_at: get(row, "t_created_at")?,
            expires_at: get(row, "t_expires_at")?,
            last_used_at: get(row, "t_last_used_at")?,
            state: TokenState::from_stored(&get::<String>(row, "t_state")?),
        })
    }

    /// For the record.
    fn described(&self) -> Value {
        let scopes = words(&self.scopes);
        json!({
            "id": self.id, "user": self.username, "name": self.name, "scopes": scopes, "expires_at": self.expires_at,
        })
    }
}

fn scopes(row: &Row) -> Result<BTreeSet<Scope>, StoreError> {
    let stored: Vec<String> = get(row, "t_scopes")?;
    Ok(stored.iter().filter_map(|scope| Scope::from_stored(scope)).collect())
}

fn words(scopes: &BTreeSet<Scope>) -> Vec<&'static str> {
    scopes.iter().map(|scope| scope.as_str()).collect()
}

impl Store {
    /// A token of this account.
    ///
    /// # Errors
    /// `Invalid` (`name`, `scopes` that the owner's role does not have, `ttl_seconds`, too many tokens), `NotFound` where
    /// the owner is gone, `Unrecorded`, or the store is away.
    pub async fn make_personal_token(
        &self,
        owner: &User,
        new: &NewToken<'_>,
        witness: &dyn Witness,
    ) -> Result<MadeToken, StoreError> {
        check(owner, new)?;
        let secret = generate()?;
        let hint: String = secret.chars().take(HINT_CHARS).collect();
        let sha256 = digest(&SHA256, secret.as_bytes());
        let (id, ttl) = (Uuid::now_v7(), i64::try_from(new.ttl_s).unwrap_or(i64::MAX));
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "making a token").await?;
        make_room(&change, owner).await?;
        let sql = format!(
            "with t as (insert into personal_tokens (id, user_id, name, scopes, hint, sha256, expires_at) \
             select $1, u.id, $3, $4, $5, $6, now() + $7 * interval '1 second' from users u \
             where u.id = $2 and u.active and u.deleted_at is null returning *) \
             select {TOKEN_COLUMNS}, 'active' as t_state from t join users u on u.id = t.user_id"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::UUID),
                    (&owner.id, Type::UUID),
                    (&new.name, Type::TEXT),
                    (&words(new.scopes), Type::TEXT_ARRAY),
                    (&hint, Type::TEXT),
                    (&sha256.as_ref(), Type::BYTEA),
                    (&ttl, Type::INT8),
                ],
            )
            .await?
            .ok_or_else(|| StoreError::NotFound {
                what: format!("user {}", owner.username),
            })?;
        let token = PersonalToken::from_row(&row)?;
        let payload = json!({"subject": id.to_string(), "before": null, "after": token.described()});
        change.commit(witness, "token.make", payload).await?;
        Ok(MadeToken { token, secret })
    }

    /// The active account whose valid token this is. The look-up is by the token's hash, so its time tells nothing.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn personal_token_owner(&self, secret: &str) -> Result<Option<TokenOwner>, StoreError> {
        if !is_well_formed(secret) {
            return Ok(None);
        }
        let sha256 = digest(&SHA256, secret.as_bytes());
        let sql = format!(
            "select t.id as t_id, t.scopes as t_scopes, \
             t.last_used_at is null or t.last_used_at < now() - $2 * interval '1 second' as t_unused, {USER_COLUMNS} \
             from {TOKEN_TABLES} where t.sha256 = $1 and {ACTIVE}"
        );
        let params = &[
            (&sha256.as_ref() as _, Type::BYTEA),
            (&USED_STEP_S as &(dyn tokio_postgres::types::ToSql + Sync), Type::INT8),
        ];
        let Some(row) = self.read_opt("checking a token", &sql, params).await? else {
            return Ok(None);
        };
        let token_id: Uuid = get(&row, "t_id")?;
        if get::<bool>(&row, "t_unused")? {
            let sql = "update personal_tokens set last_used_at = now() where id = $1";
            self.read("noting a token's use", sql, &[(&token_id, Type::UUID)])
                .await?;
        }
        Ok(Some(TokenOwner {
            user: User::from_row(&row)?,
            token_id,
            scopes: scopes(&row)?,
        }))
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_personal_token(&self, id: Uuid) -> Result<Option<PersonalToken>, StoreError> {
        let sql = format!("select {TOKEN_COLUMNS}, {STATE} from {TOKEN_TABLES} where t.id = $1");
        let row = self.read_opt("finding a token", &sql, &[(&id, Type::UUID)]).await?;
        row.as_ref().map(PersonalToken::from_row).transpose()
    }

    /// A page of the tokens, expired and revoked ones included while they are kept.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_personal_tokens(
        &self,
        filter: &TokenFilter,
        window: &Window,
    ) -> Result<Listed<PersonalToken>, StoreError> {
        let conditions = Conditions::default()
            .when(filter.user_id.as_ref(), Type::UUID, "t.user_id = $?")
            .when(filter.user.as_ref(), Type::TEXT, "u.username = lower($?)")
            .also(filter.state.map(|state| match state {
                TokenState::Active => ACTIVE,
                TokenState::Expired => EXPIRED,
                TokenState::Revoked => REVOKED,
            }));
        let listing = &PERSONAL_TOKENS;
        self.list("listing tokens", listing, conditions, window, PersonalToken::from_row)
            .await
    }

    /// Ends a token at once. Credentials that were made with it stay: they are their owner's. One that is revoked already
    /// stays so.
    ///
    /// # Errors
    /// `NotFound`, `Unrecorded`, or the store is away.
    pub async fn revoke_personal_token(&self, id: Uuid, witness: &dyn Witness) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "revoking a token").await?;
        let sql = format!("select {TOKEN_COLUMNS}, {STATE} from {TOKEN_TABLES} where t.id = $1 for update of t");
        let row = change.query_opt(&sql, &[(&id, Type::UUID)]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound {
            what: format!("token {id}"),
        })?;
        let before = PersonalToken::from_row(&row)?;
        let sql = "update personal_tokens set revoked_at = coalesce(revoked_at, now()) where id = $1";
        change.query(sql, &[(&id, Type::UUID)]).await?;
        let payload = json!({
            "subject": id.to_string(), "before": before.described(), "after": {"state": "revoked"},
        });
        change.commit(witness, "token.revoke", payload).await
    }
}

/// Ends every token of an account, as part of another change.
pub(crate) async fn revoke_all(change: &Change<'_>, user: Uuid) -> Result<(), StoreError> {
    let sql = "update personal_tokens set revoked_at = now() where user_id = $1 and revoked_at is null";
    change.query(sql, &[(&user, Type::UUID)]).await.map(drop)
}

/// Clears away what ended long ago; refuses one token too many.
async fn make_room(change: &Change<'_>, owner: &User) -> Result<(), StoreError> {
    let sql = "delete from personal_tokens where least(expires_at, coalesce(revoked_at, expires_at)) \
               < now() - $1 * interval '1 day'";
    change.query(sql, &[(&KEPT_DAYS, Type::INT4)]).await?;
    // the account's row is locked, so that two requests do not count the same
    let lock = "select 1 from users where id = $1 for update";
    change.query(lock, &[(&owner.id, Type::UUID)]).await?;
    let sql =
        "select count(*) as n from personal_tokens where user_id = $1 and revoked_at is null and expires_at > now()";
    let row = change.query_opt(sql, &[(&owner.id, Type::UUID)]).await?;
    let count = row.map_or(Ok(0), |row| get::<i64>(&row, "n"))?;
    if count >= TOKENS_MAX {
        let problem = format!("is one too many: an account has at most {TOKENS_MAX} valid tokens. Revoke one first");
        return Err(invalid("name", problem));
    }
    Ok(())
}

fn check(owner: &User, new: &NewToken<'_>) -> Result<(), StoreError> {
    if new.name.trim().is_empty() || new.name.len() > NAME_MAX_BYTES || new.name.chars().any(char::is_control) {
        let problem = format!("must be 1 to {NAME_MAX_BYTES} bytes without control characters, and not blank");
        return Err(invalid("name", problem));
    }
    if !(TTL_MIN_S..=TTL_MAX_S).contains(&new.ttl_s) {
        let problem = format!("must be {TTL_MIN_S} to {TTL_MAX_S} seconds (366 days)");
        return Err(invalid("ttl_seconds", problem));
    }
    if new.scopes.is_empty() {
        return Err(invalid("scopes", "must name one of read, connect, admin at least"));
    }
    if new.scopes.contains(&Scope::Admin) && owner.role != Role::Admin {
        return Err(invalid("scopes", "cannot hold admin: the token's owner is no admin"));
    }
    if new.scopes.contains(&Scope::Connect) && owner.role == Role::Auditor {
        return Err(invalid("scopes", "cannot hold connect: an auditor reaches nothing"));
    }
    Ok(())
}

fn generate() -> Result<Zeroizing<String>, StoreError> {
    let mut token = Zeroizing::new(String::with_capacity(PREFIX.len() + RANDOM_CHARS + CHECKSUM_CHARS));
    token.push_str(PREFIX);
    token.push_str(&random::base32::<RANDOM_CHARS>()?);
    let sum = checksum(&token);
    token.push_str(&sum);
    Ok(token)
}

/// CRC-32 (ISO-HDLC) of the text, five bits a character, the highest first.
fn checksum(text: &str) -> String {
    let crc = u64::from(crc32fast::hash(text.as_bytes()));
    let group = |at: usize| random::digit(crc >> (5 * at));
    (0..CHECKSUM_CHARS).rev().map(group).collect()
}

/// Whether this can be a token: what is not costs no question to the store.
fn is_well_formed(text: &str) -> bool {
    let Some((body, sum)) = text.split_at_checked(PREFIX.len() + RANDOM_CHARS) else {
        return false;
    };
    text.is_ascii() && body.starts_with(PREFIX) && sum == checksum(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_prefix_and_a_checksum_that_a_scanner_can_check() {
        let token = generate().unwrap();
        assert_eq!(token.len(), 56);
        assert!(is_well_formed(&token), "{}", token.as_str());
        assert_ne!(*token, *generate().unwrap());
        for at in 0..token.len() {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert!(!is_well_formed(std::str::from_utf8(&bytes).unwrap()), "changed at {at}");
        }
        for other in [
            "",
            PREFIX,
            &token[1..],
            &format!("{}0", token.as_str()),
            &"ä".repeat(28),
        ] {
            assert!(!is_well_formed(other), "{other}");
        }
    }

    /// What docs/api.md tells scanners.
    #[test]
    fn the_checksum_is_crc_32_in_base32() {
        let body = format!("{PREFIX}{}", "0".repeat(RANDOM_CHARS));
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
        assert_eq!(checksum("123456789"), "35z8e96");
        assert!(is_well_formed(&format!("{body}{}", checksum(&body))));
    }
}
