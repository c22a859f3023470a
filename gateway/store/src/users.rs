//! People with a local password: argon2id, checked off the arbiters, in the same time for a name that nobody has.

use std::sync::LazyLock;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, conflict, get};
use crate::names::{self, invalid};
use crate::{Store, StoreError};

/// Fewest characters of a password that is set.
pub const PASSWORD_MIN_CHARS: usize = 12;
/// Longest password that is looked at.
pub const PASSWORD_MAX_BYTES: usize = 1024;
/// Longest e-mail address (RFC 5321 §4.5.3.1).
pub const EMAIL_MAX_BYTES: usize = 254;
/// Hashes computed at once: each takes 19 MiB and some 25 ms of a core.
const HASHES_AT_ONCE: usize = 2;
/// Longest wait for a turn, in milliseconds.
const HASH_TURN_TIMEOUT_MS: u64 = 5_000;
/// Most rows of one page.
pub const PAGE_MAX: i64 = 200;

static HASHES: Semaphore = Semaphore::const_new(HASHES_AT_ONCE);
/// Compared with where nobody has the name, so that the answer takes as long.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| hash(b"nobody has this password").ok());

/// What a person may do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Admin,
    /// Reads everything, changes and reaches nothing.
    Auditor,
    Member,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Auditor => "auditor",
            Self::Member => "member",
        }
    }

    /// A role that this release does not know is the least one.
    fn from_stored(text: &str) -> Self {
        match text {
            "admin" => Self::Admin,
            "auditor" => Self::Auditor,
            _ => Self::Member,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: Uuid,
    pub username: String,
    pub email: String,
    pub role: Role,
    pub groups: Vec<String>,
    pub active: bool,
    pub created_at: DateTime<Utc>,
}

/// Columns of `users u`, for `User::from_row`.
pub(crate) const USER_COLUMNS: &str = "u.id as u_id, u.username as u_username, u.email as u_email, u.role as u_role, \
     u.groups as u_groups, u.active and u.deleted_at is null as u_active, u.created_at as u_created_at";

impl User {
    pub(crate) fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "u_id")?,
            username: get(row, "u_username")?,
            email: get(row, "u_email")?,
            role: Role::from_stored(&get::<String>(row, "u_role")?),
            groups: get(row, "u_groups")?,
            active: get(row, "u_active")?,
            created_at: get(row, "u_created_at")?,
        })
    }
}

impl Store {
    /// # Errors
    /// `Invalid` (username, password, email), `Conflict` where the name is taken, `Unrecorded`, or the store is away.
    pub async fn create_user(
        &self,
        username: &str,
        password: &str,
        role: Role,
        email: &str,
        witness: &dyn Witness,
    ) -> Result<User, StoreError> {
        let username = names::username(username)?;
        check_new_password(password)?;
        if email.len() > EMAIL_MAX_BYTES || email.chars().any(char::is_control) {
            return Err(invalid(
                "email",
                format!("must be at most {EMAIL_MAX_BYTES} bytes without control characters"),
            ));
        }
        let password = Zeroizing::new(password.as_bytes().to_vec());
        let hashed = blocking(move || hash(&password)).await??;
        let id = Uuid::now_v7();

        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "creating a user").await?;
        let sql = format!(
            "insert into users as u (id, username, email, role, password_hash) values ($1, $2, $3, $4, $5) \
             returning {USER_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::UUID),
                    (&username, Type::TEXT),
                    (&email, Type::TEXT),
                    (&role.as_str(), Type::TEXT),
                    (&hashed, Type::TEXT),
                ],
            )
            .await
            .map_err(|e| conflict(e, || format!("user {username}")))?;
        let user = row
            .as_ref()
            .map(User::from_row)
            .transpose()?
            .ok_or_else(|| nobody(&username))?;
        let after = json!({"id": id, "username": username, "email": email, "role": role});
        change
            .commit(
                witness,
                "user.create",
                json!({"subject": username, "before": null, "after": after}),
            )
            .await?;
        Ok(user)
    }

    /// The active user with this name and password. `None`, after the same work, for a wrong password, an unknown
    /// name, and a user who may not sign in.
    ///
    /// # Errors
    /// `Away` where the store is, or where too many passwords are being checked.
    pub async fn check_password(&self, username: &str, password: &str) -> Result<Option<User>, StoreError> {
        let name = names::username(username).unwrap_or_default();
        let sql =
            format!("select {USER_COLUMNS}, u.password_hash from users u where username = $1 and deleted_at is null");
        let row = self.read_opt("finding a user", &sql, &[(&name, Type::TEXT)]).await?;
        let (user, stored) = match &row {
            Some(row) => (Some(User::from_row(row)?), get::<Option<String>>(row, "password_hash")?),
            None => (None, None),
        };
        let bounded = password.len() <= PASSWORD_MAX_BYTES;
        let password = Zeroizing::new(if bounded {
            password.as_bytes().to_vec()
        } else {
            Vec::new()
        });
        let known = stored.is_some();
        let matches = blocking(move || {
            let stored = stored.or_else(|| NOBODY.clone()).unwrap_or_default();
            Argon2::default().verify_password(&password, stored.as_str()).is_ok()
        })
        .await?;
        Ok(user.filter(|user| matches && known && bounded && user.active))
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_user(&self, username: &str) -> Result<Option<User>, StoreError> {
        let name = names::username(username).unwrap_or_default();
        let sql = format!("select {USER_COLUMNS} from users u where username = $1 and deleted_at is null");
        self.read_opt("finding a user", &sql, &[(&name, Type::TEXT)])
            .await?
            .as_ref()
            .map(User::from_row)
            .transpose()
    }

    /// Users by name, from after `after`; at most `limit` (capped at `PAGE_MAX`) and one more, which tells that there
    /// is a next page.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_users(&self, after: &str, limit: i64) -> Result<Vec<User>, StoreError> {
        let limit = limit.clamp(1, PAGE_MAX).saturating_add(1);
        let sql = format!(
            "select {USER_COLUMNS} from users u where deleted_at is null and username > $1 order by username limit $2"
        );
        let rows = self
            .read("listing users", &sql, &[(&after, Type::TEXT), (&limit, Type::INT8)])
            .await?;
        rows.iter().map(User::from_row).collect()
    }
}

fn check_new_password(password: &str) -> Result<(), StoreError> {
    if password.chars().count() < PASSWORD_MIN_CHARS || password.len() > PASSWORD_MAX_BYTES {
        return Err(invalid(
            "password",
            format!("must be at least {PASSWORD_MIN_CHARS} characters and at most {PASSWORD_MAX_BYTES} bytes"),
        ));
    }
    Ok(())
}

fn nobody(username: &str) -> StoreError {
    StoreError::NotFound {
        what: format!("user {username}"),
    }
}

fn hash(password: &[u8]) -> Result<String, StoreError> {
    let hashed = Argon2::default().hash_password(password);
    Ok(hashed
        .map_err(|e| StoreError::Setup(format!("hashing a password: {e}")))?
        .to_string())
}

/// Runs `work` in the blocking pool, `HASHES_AT_ONCE` at a time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    let permit = tokio::time::timeout(Duration::from_millis(HASH_TURN_TIMEOUT_MS), HASHES.acquire())
        .await
        .map_err(|_| StoreError::Away("too many passwords are being checked, try again in a minute".into()))?
        .map_err(|_| StoreError::Setup("the store is closing".into()))?;
    let done = tokio::task::spawn_blocking(work).await;
    drop(permit);
    done.map_err(|_| StoreError::Setup("checking a password failed".into()))
}
