//! People with a local password: argon2id, checked off the arbiters, in the same time for a name that nobody has.

use std::sync::LazyLock;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use chrono::{DateTime, Utc};
use hoop_access::Subject;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, check_version, conflict, get};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::{self, invalid};
use crate::{Store, StoreError, browser_sessions, changes, personal_tokens, second_factors, ssh_keys, tokens};

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
/// Most groups of one person, and the longest.
pub const GROUPS_MAX: usize = 500;
pub const GROUP_MAX_BYTES: usize = 255;
/// "hoop" in ASCII, then 3: held while an administrator is removed.
pub(crate) const ADMINS_LOCK: i64 = 114_827_820_269_571;

static HASHES: Semaphore = Semaphore::const_new(HASHES_AT_ONCE);
/// Compared with where nobody has the name, so that the answer takes as long.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| hash(b"nobody has this password").ok());

pub use hoop_access::Role;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: Uuid,
    pub username: String,
    pub email: String,
    pub role: Role,
    pub groups: Vec<String>,
    pub active: bool,
    /// A service account: it has no password, and signs in nowhere.
    pub service: bool,
    /// Grows with each change.
    pub version: i64,
    pub created_at: DateTime<Utc>,
}

/// Columns of `users u`, for `User::from_row`.
pub(crate) const USER_COLUMNS: &str = "u.id as u_id, u.username as u_username, u.email as u_email, u.role as u_role, \
     u.groups as u_groups, u.active and u.deleted_at is null as u_active, u.created_at as u_created_at, \
     u.version as u_version, u.service as u_service";

/// How users can be listed.
pub static USERS: Listing = Listing {
    name: "users",
    columns: &[USER_COLUMNS],
    from: "users u",
    whole: "u.deleted_at is null",
    id: SortKey::uuid("id", "u.id"),
    sorts: &[
        SortKey::text("username", "u.username"),
        SortKey::text("email", "u.email"),
        SortKey::time("created_at", "u.created_at"),
    ],
    default_sort: "username",
};

/// Which users.
#[derive(Debug, Clone, Default)]
pub struct UserFilter {
    pub role: Option<Role>,
    /// Who are in it.
    pub group: Option<String>,
    pub active: Option<bool>,
    /// Service accounts, or people.
    pub service: Option<bool>,
    /// Whose groups an identity provider tells, or whose are given here.
    pub provider_groups: Option<bool>,
    /// In the name or the e-mail address.
    pub q: Option<String>,
}

impl User {
    pub(crate) fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "u_id")?,
            username: get(row, "u_username")?,
            email: get(row, "u_email")?,
            role: Role::from_stored(&get::<String>(row, "u_role")?),
            groups: get(row, "u_groups")?,
            active: get(row, "u_active")?,
            service: get(row, "u_service")?,
            version: get(row, "u_version")?,
            created_at: get(row, "u_created_at")?,
        })
    }

    /// As access rules see them.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            username: &self.username,
            role: self.role,
            groups: &self.groups,
            active: self.active,
        }
    }

    /// For the record.
    pub(crate) fn described(&self) -> Value {
        json!({
            "id": self.id, "username": self.username, "email": self.email, "role": self.role, "groups": self.groups,
            "active": self.active, "service": self.service,
        })
    }
}

/// What looking at a password came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordCheck {
    /// The active user whose password this is.
    Right(User),
    /// Nobody signs in with it. Whose name was given, for the record and nobody else.
    Wrong(Option<User>),
}

/// What stays when everything else that a person is signed in with ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept<'a> {
    pub session: Option<Uuid>,
    /// A bearer token.
    pub token: Option<&'a str>,
}

/// What an update sets of a user.
#[derive(Debug, Clone)]
pub struct UserSettings {
    pub email: String,
    pub role: Role,
    pub groups: Vec<String>,
    pub active: bool,
}

/// Somebody new.
#[derive(Debug, Clone)]
pub struct NewUser<'a> {
    pub username: &'a str,
    pub email: &'a str,
    pub role: Role,
    pub groups: Vec<String>,
    /// A service account.
    pub service: bool,
}

impl Store {
    /// A user with a local password, in no group.
    ///
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
        let new = NewUser {
            username,
            email,
            role,
            groups: Vec::new(),
            service: false,
        };
        self.add_user(new, Some(password), witness).await
    }

    /// A user; without a password, one who cannot sign in with one. A service account has none.
    ///
    /// # Errors
    /// `Invalid` (username, password, email, groups), `Conflict` where the name is taken, `Unrecorded`, or the store is
    /// away.
    pub async fn add_user(
        &self,
        new: NewUser<'_>,
        password: Option<&str>,
        witness: &dyn Witness,
    ) -> Result<User, StoreError> {
        let username = names::username(new.username)?;
        let groups = checked_groups(new.groups)?;
        check_email(new.email)?;
        let hashed = match password {
            Some(_) if new.service => return Err(no_password()),
            None => None,
            Some(password) => Some(hashed(password).await?),
        };
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "creating a user").await?;
        let new = NewUser {
            username: &username,
            groups,
            ..new
        };
        let user = insert_user(&change, new, hashed).await?;
        let payload = json!({"subject": username, "before": null, "after": user.described()});
        change.commit(witness, "user.create", payload).await?;
        Ok(user)
    }

    /// Replaces what is set of a user. Sessions, credentials and tokens that it no longer allows end. With `if_version`,
    /// only where the user still has that version.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (email, groups, role where nobody would be left to administer), `Stale`, `Unrecorded`, or
    /// the store is away.
    pub async fn update_user(
        &self,
        username: &str,
        settings: UserSettings,
        if_version: Option<i64>,
        witness: &dyn Witness,
    ) -> Result<User, StoreError> {
        check_email(&settings.email)?;
        let groups = checked_groups(settings.groups)?;
        let username = names::username(username)?;
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "updating a user").await?;
        let before = locked(&change, &username, if_version).await?;
        if before.role == Role::Admin && before.active && !(settings.role == Role::Admin && settings.active) {
            keep_an_admin(&change, before.id).await?;
        }
        let sql = format!(
            "update users u set email = $2, role = $3, groups = $4, active = $5, version = version + 1, \
             updated_at = now() where id = $1 returning {USER_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&before.id, Type::UUID),
                    (&settings.email, Type::TEXT),
                    (&settings.role.as_str(), Type::TEXT),
                    (&groups, Type::TEXT_ARRAY),
                    (&settings.active, Type::BOOL),
                ],
            )
            .await?;
        let after = User::from_row(&row.ok_or_else(|| nobody(&username))?)?;
        if !after.active {
            // sign-ins do not come back with the account; personal tokens and credentials do
            let sql = "delete from api_tokens where user_id = $1";
            change.query(sql, &[(&before.id, Type::UUID)]).await?;
            browser_sessions::end_all(&change, before.id).await?;
        }
        change.announce(changes::USER_CHANGED, before.id.to_string());
        let payload = json!({"subject": username, "before": before.described(), "after": after.described()});
        change.commit(witness, "user.update", payload).await?;
        Ok(after)
    }

    /// Deletes a user: the name is free again, tokens and credentials end, records keep speaking of the person.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (role) where nobody would be left to administer, `Stale`, `Unrecorded`, or the store is
    /// away.
    pub async fn delete_user(
        &self,
        username: &str,
        if_version: Option<i64>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let username = names::username(username)?;
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "deleting a user").await?;
        let before = locked(&change, &username, if_version).await?;
        if before.role == Role::Admin && before.active {
            keep_an_admin(&change, before.id).await?;
        }
        let id = &[(&before.id as _, Type::UUID)];
        let sql = "update users set deleted_at = now(), updated_at = now(), active = false, password_hash = null, \
                   version = version + 1 where id = $1";
        change.query(sql, id).await?;
        change.query("delete from api_tokens where user_id = $1", id).await?;
        personal_tokens::revoke_all(&change, before.id).await?;
        ssh_keys::delete_all(&change, before.id).await?;
        browser_sessions::end_all(&change, before.id).await?;
        second_factors::end_second_factor(&change, before.id).await?;
        change.query("delete from identities where user_id = $1", id).await?;
        change.announce(changes::USER_CHANGED, before.id.to_string());
        let payload = json!({"subject": username, "before": before.described(), "after": null});
        change.commit(witness, "user.delete", payload).await
    }

    /// Sets a password, and ends every token and browser session of its user.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (password), `Unrecorded`, or the store is away.
    pub async fn set_password(&self, username: &str, password: &str, witness: &dyn Witness) -> Result<(), StoreError> {
        let username = names::username(username)?;
        let hashed = hashed(password).await?;
        self.replace_password(&username, &hashed, Kept::default(), witness)
            .await
    }

    /// A person changes the own password: what the change was asked with stays, every other token, personal ones too, and
    /// browser session ends.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (password), `Unrecorded`, or the store is away.
    pub async fn change_own_password(
        &self,
        user: &User,
        password: &str,
        asked_with: Kept<'_>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let hashed = hashed(password).await?;
        self.replace_password(&user.username, &hashed, asked_with, witness)
            .await
    }

    async fn replace_password(
        &self,
        username: &str,
        hashed: &str,
        kept: Kept<'_>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "setting a password").await?;
        let user = locked(&change, username, None).await?;
        if user.service {
            return Err(no_password());
        }
        change
            .query(
                "update users set password_hash = $2, updated_at = now(), version = version + 1 where id = $1",
                &[(&user.id, Type::UUID), (&hashed, Type::TEXT)],
            )
            .await?;
        let token = kept.token.map(tokens::kept);
        change
            .query(
                "delete from api_tokens where user_id = $1 and sha256 is distinct from $2",
                &[(&user.id, Type::UUID), (&token, Type::BYTEA)],
            )
            .await?;
        personal_tokens::revoke_all(&change, user.id).await?;
        browser_sessions::end_all_but(&change, user.id, kept.session).await?;
        let payload = json!({"subject": username, "before": null, "after": {"id": user.id, "password": "replaced"}});
        change.commit(witness, "user.password", payload).await
    }

    /// Those of these users that there are, deleted ones included.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn users_by_id(&self, ids: &[Uuid]) -> Result<Vec<User>, StoreError> {
        let sql = format!("select {USER_COLUMNS} from users u where id = any($1)");
        let rows = self.read("finding users", &sql, &[(&ids, Type::UUID_ARRAY)]).await?;
        rows.iter().map(User::from_row).collect()
    }

    /// Looks at a password, in the forms in which it may have been set (each is compared, whichever fits). For an unknown
    /// name, and for a user without a password or who may not sign in, the same work is done.
    ///
    /// # Errors
    /// `Away` where the store is, or where too many passwords are being checked.
    pub async fn check_password(
        &self,
        username: &str,
        forms: Vec<Zeroizing<String>>,
    ) -> Result<PasswordCheck, StoreError> {
        let name = names::username(username).unwrap_or_default();
        let sql =
            format!("select {USER_COLUMNS}, u.password_hash from users u where username = $1 and deleted_at is null");
        let row = self.read_opt("finding a user", &sql, &[(&name, Type::TEXT)]).await?;
        let (user, stored) = match &row {
            Some(row) => (Some(User::from_row(row)?), get::<Option<String>>(row, "password_hash")?),
            None => (None, None),
        };
        let has_password = stored.is_some();
        let fits = blocking(move || {
            let stored = stored.or_else(|| NOBODY.clone()).unwrap_or_default();
            let fits = |form: &Zeroizing<String>| {
                let bounded = form.len() <= PASSWORD_MAX_BYTES;
                let form = if bounded { form.as_bytes() } else { b"" };
                Argon2::default().verify_password(form, stored.as_str()).is_ok() && bounded
            };
            forms.iter().filter(|form| fits(form)).count() > 0
        })
        .await?;
        Ok(match user {
            Some(user) if fits && has_password && user.active => PasswordCheck::Right(user),
            known => PasswordCheck::Wrong(known),
        })
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

    /// Whether there is anybody, yet.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn has_users(&self) -> Result<bool, StoreError> {
        let sql = "select 1 from users where deleted_at is null limit 1";
        Ok(self.read_opt("looking for users", sql, &[]).await?.is_some())
    }

    /// A page of the users.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_users(&self, filter: &UserFilter, window: &Window) -> Result<Listed<User>, StoreError> {
        let (role, text) = (
            filter.role.map(Role::as_str),
            filter.q.as_ref().map(|q| q.to_lowercase()),
        );
        let conditions = Conditions::default()
            .when(role.as_ref(), Type::TEXT, "u.role = $?")
            .when(filter.group.as_ref(), Type::TEXT, "u.groups @> array[$?]")
            .either(filter.active, "u.active", "not u.active")
            .either(filter.service, "u.service", "not u.service")
            .either(
                filter.provider_groups,
                "exists (select from identities i where i.user_id = u.id and i.groups is not null)",
                "not exists (select from identities i where i.user_id = u.id and i.groups is not null)",
            )
            .when(
                text.as_ref(),
                Type::TEXT,
                "strpos(u.username, $?) > 0 or strpos(lower(u.email), $?) > 0",
            );
        self.list("listing users", &USERS, conditions, window, User::from_row)
            .await
    }
}

pub(crate) fn check_email(email: &str) -> Result<(), StoreError> {
    if email.len() > EMAIL_MAX_BYTES || email.chars().any(char::is_control) {
        return Err(invalid(
            "email",
            format!("must be at most {EMAIL_MAX_BYTES} bytes without control characters"),
        ));
    }
    Ok(())
}

/// Trimmed, sorted, each once.
pub(crate) fn checked_groups(groups: Vec<String>) -> Result<Vec<String>, StoreError> {
    let mut groups: Vec<String> = groups.into_iter().map(|group| group.trim().to_owned()).collect();
    let good =
        |group: &String| !group.is_empty() && group.len() <= GROUP_MAX_BYTES && !group.chars().any(char::is_control);
    if groups.len() > GROUPS_MAX || !groups.iter().all(good) {
        return Err(invalid(
            "groups",
            format!("must be at most {GROUPS_MAX}, each of 1 to {GROUP_MAX_BYTES} bytes without control characters"),
        ));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

pub(crate) async fn locked(change: &Change<'_>, username: &str, wanted: Option<i64>) -> Result<User, StoreError> {
    let sql = format!("select {USER_COLUMNS} from users u where username = $1 and deleted_at is null for update");
    let row = change.query_opt(&sql, &[(&username, Type::TEXT)]).await?;
    let user = User::from_row(&row.ok_or_else(|| nobody(username))?)?;
    check_version(|| format!("user {username}"), user.version, wanted)?;
    Ok(user)
}

/// Refuses what would leave nobody to administer. Serialised, so that two admins cannot remove each other.
async fn keep_an_admin(change: &Change<'_>, but: Uuid) -> Result<(), StoreError> {
    change
        .query("select pg_advisory_xact_lock($1)", &[(&ADMINS_LOCK, Type::INT8)])
        .await?;
    let sql = "select 1 from users where role = 'admin' and active and not service and deleted_at is null and id <> $1 \
               limit 1";
    match change.query_opt(sql, &[(&but, Type::UUID)]).await? {
        Some(_) => Ok(()),
        None => Err(invalid(
            "role",
            "cannot be taken from the last active administrator: make another one first",
        )),
    }
}

/// Within the change that makes a user, whose name and groups were looked at.
pub(crate) async fn insert_user(
    change: &Change<'_>,
    new: NewUser<'_>,
    hashed: Option<String>,
) -> Result<User, StoreError> {
    let sql = format!(
        "insert into users as u (id, username, email, role, password_hash, groups, service) \
         values ($1, $2, $3, $4, $5, $6, $7) returning {USER_COLUMNS}"
    );
    let row = change
        .query_opt(
            &sql,
            &[
                (&Uuid::now_v7(), Type::UUID),
                (&new.username, Type::TEXT),
                (&new.email, Type::TEXT),
                (&new.role.as_str(), Type::TEXT),
                (&hashed, Type::TEXT),
                (&new.groups, Type::TEXT_ARRAY),
                (&new.service, Type::BOOL),
            ],
        )
        .await
        .map_err(|e| conflict(e, || format!("user {}", new.username)))?;
    row.as_ref()
        .map(User::from_row)
        .transpose()?
        .ok_or_else(|| nobody(new.username))
}

/// The verifier of a new password. Callers have looked at it by their own rules; this bounds what is hashed at all.
pub(crate) async fn hashed(password: &str) -> Result<String, StoreError> {
    check_new_password(password)?;
    let password = Zeroizing::new(password.as_bytes().to_vec());
    blocking(move || hash(&password)).await?
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

fn no_password() -> StoreError {
    invalid("password", "cannot be set: a service account has none, but tokens")
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
