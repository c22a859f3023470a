//! Native credentials: one person, one connection, always expiring. Kept is what checks the password, never the
//! password.

use aws_lc_rs::digest::SHA256_OUTPUT_LEN;
use chrono::{DateTime, Utc};
use hoop_proto::postgres::accept::Verifier;
use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, conflict, get};
use crate::connections::{CONNECTION_COLUMNS, Connection};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::invalid;
use crate::random;
use crate::users::{USER_COLUMNS, User};
use crate::{Store, StoreError, changes};

/// How long a credential is valid where nothing is said, in seconds.
pub const TTL_DEFAULT_S: u64 = 8 * 3600;
/// How long one is valid at most, in seconds.
pub const TTL_MAX_S: u64 = 48 * 3600;
/// The shortest life that can be asked for, in seconds.
pub const TTL_MIN_S: u64 = 1;
/// How long an expired or revoked one is kept, so that whoever proves its password is told what became of it.
const KEPT_DAYS: i32 = 7;
/// Characters of an id: `c` and eight random ones. mstsc cuts its cookie at nine.
pub const ID_CHARS: usize = 9;
/// Random characters of an id.
const ID_RANDOM_CHARS: usize = ID_CHARS - 1;
/// Characters of a password: 130 random bits.
const PASSWORD_CHARS: usize = 26;
/// Rounds of SCRAM-SHA-256 (PostgreSQL's own default): the password is random, so more would only cost time.
const SCRAM_ROUNDS: u32 = 4096;
const SALT_BYTES: usize = 16;
/// Tries to find an id that nobody has.
const ID_TRIES: usize = 4;

/// A credential as it may be listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Credential {
    pub id: String,
    pub user_id: Uuid,
    pub username: String,
    pub connection_id: Uuid,
    pub connection: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub state: CredentialState,
}

/// A new credential and its password, which is not kept: this is the only time it can be read.
pub struct MadeCredential {
    pub credential: Credential,
    pub password: Zeroizing<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialState {
    Active,
    Expired,
    /// Itself, its person or its connection.
    Revoked,
}

impl CredentialState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }

    fn from_stored(text: &str) -> Self {
        match text {
            "active" => Self::Active,
            "expired" => Self::Expired,
            _ => Self::Revoked,
        }
    }
}

/// All that a listener needs to judge who proves a password.
pub struct CredentialRecord {
    pub id: String,
    pub verifier: Verifier,
    pub state: CredentialState,
    pub expires_at: DateTime<Utc>,
    /// Seconds until it expires, by the store's clock; 0 where it has.
    pub expires_in_s: u64,
    pub user: User,
    pub connection: Connection,
}

/// By the store's clock.
const STATE: &str = "case when k.revoked_at is not null or c.deleted_at is not null or u.deleted_at is not null \
     or not u.active then 'revoked' when k.expires_at <= now() then 'expired' else 'active' end as k_state";
/// `STATE`, as conditions.
/// By what revokes, of which there is little, so that not every credential is looked at.
const REVOKED: &str = "k.id = any (array(select id from credentials where revoked_at is not null \
     union all select of.id from connections gone join credentials of on of.connection_id = gone.id \
     where gone.deleted_at is not null \
     union all select of.id from users gone join credentials of on of.user_id = gone.id \
     where gone.deleted_at is not null or not gone.active))";
const EXPIRED: &str = "k.revoked_at is null and c.deleted_at is null and u.deleted_at is null and u.active \
     and k.expires_at <= now()";
const ACTIVE: &str = "k.revoked_at is null and c.deleted_at is null and u.deleted_at is null and u.active \
     and k.expires_at > now()";
const CREDENTIAL_COLUMNS: &str = "k.id as k_id, k.user_id as k_user_id, u.username as u_username, \
     k.connection_id as k_connection_id, c.name as c_name, k.created_at as k_created_at, k.expires_at as k_expires_at";
const CREDENTIAL_TABLES: &str =
    "credentials k join users u on u.id = k.user_id join connections c on c.id = k.connection_id";

/// How credentials can be listed.
pub static CREDENTIALS: Listing = Listing {
    name: "credentials",
    columns: &[CREDENTIAL_COLUMNS, STATE],
    from: CREDENTIAL_TABLES,
    whole: "true",
    id: SortKey::text("id", "k.id"),
    sorts: &[
        SortKey::time("created_at", "k.created_at"),
        SortKey::time("expires_at", "k.expires_at"),
        SortKey::text("id", "k.id"),
    ],
    default_sort: "-created_at",
};

/// Which credentials.
#[derive(Debug, Clone, Default)]
pub struct CredentialFilter {
    pub user_id: Option<Uuid>,
    pub user: Option<String>,
    /// By name.
    pub connection: Option<String>,
    pub state: Option<CredentialState>,
}

impl Credential {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "k_id")?,
            user_id: get(row, "k_user_id")?,
            username: get(row, "u_username")?,
            connection_id: get(row, "k_connection_id")?,
            connection: get(row, "c_name")?,
            created_at: get(row, "k_created_at")?,
            expires_at: get(row, "k_expires_at")?,
            state: CredentialState::from_stored(&get::<String>(row, "k_state")?),
        })
    }
}

impl Store {
    /// Makes a credential for this person and connection. Whether the person may use the connection is the caller's to
    /// ask (`Store::rules`); it is asked again when the credential is used.
    ///
    /// # Errors
    /// `Invalid` (`ttl_seconds`), `NotFound` where person or connection are gone, `Unrecorded`, or the store is away.
    pub async fn make_credential(
        &self,
        user: &User,
        connection: &Connection,
        ttl_s: u64,
        witness: &dyn Witness,
    ) -> Result<MadeCredential, StoreError> {
        if !(TTL_MIN_S..=TTL_MAX_S).contains(&ttl_s) {
            return Err(invalid(
                "ttl_seconds",
                format!("must be {TTL_MIN_S} to {TTL_MAX_S} seconds (48 hours)"),
            ));
        }
        let password = random::base32::<PASSWORD_CHARS>()?;
        let verifier = verifier(password.clone()).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            let id = format!("c{}", *random::base32::<ID_RANDOM_CHARS>()?);
            match self
                .keep_credential(&id, user, connection, ttl_s, &verifier, witness)
                .await
            {
                Ok(credential) => return Ok(MadeCredential { credential, password }),
                Err(StoreError::Conflict { .. }) if tries < ID_TRIES => {}
                Err(e) => return Err(e),
            }
        }
    }

    async fn keep_credential(
        &self,
        id: &str,
        user: &User,
        connection: &Connection,
        ttl_s: u64,
        verifier: &Verifier,
        witness: &dyn Witness,
    ) -> Result<Credential, StoreError> {
        let iterations = i32::try_from(verifier.iterations).unwrap_or(i32::MAX);
        let ttl = i64::try_from(ttl_s).unwrap_or(i64::MAX);
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "making a credential").await?;
        change
            .query(
                "delete from credentials where expires_at < now() - $1 * interval '1 day'",
                &[(&KEPT_DAYS, Type::INT4)],
            )
            .await?;
        let sql = format!(
            "with k as (insert into credentials \
             (id, user_id, connection_id, salt, iterations, stored_key, server_key, expires_at) \
             select $1, u.id, c.id, $4, $5, $6, $7, now() + $8 * interval '1 second' from users u, connections c \
             where u.id = $2 and u.active and u.deleted_at is null and c.id = $3 and c.deleted_at is null \
             returning *) select {CREDENTIAL_COLUMNS}, 'active' as k_state from k \
             join users u on u.id = k.user_id join connections c on c.id = k.connection_id"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::TEXT),
                    (&user.id, Type::UUID),
                    (&connection.id, Type::UUID),
                    (&verifier.salt, Type::BYTEA),
                    (&iterations, Type::INT4),
                    (&verifier.stored_key.as_slice(), Type::BYTEA),
                    (&verifier.server_key.as_slice(), Type::BYTEA),
                    (&ttl, Type::INT8),
                ],
            )
            .await
            .map_err(|e| conflict(e, || format!("credential {id}")))?
            .ok_or_else(|| StoreError::NotFound {
                what: format!("connection {} or its user", connection.name),
            })?;
        let credential = Credential::from_row(&row)?;
        let after = json!({
            "id": id, "user": user.username, "connection": connection.name, "expires_at": credential.expires_at,
        });
        change
            .commit(
                witness,
                "credential.make",
                json!({"subject": id, "before": null, "after": after}),
            )
            .await?;
        Ok(credential)
    }

    /// The credential with this id, expired and revoked ones included while they are kept.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn lookup_credential(&self, id: &str) -> Result<Option<CredentialRecord>, StoreError> {
        if id.len() != ID_CHARS {
            return Ok(None);
        }
        let sql = format!(
            "select k.id as k_id, k.salt as k_salt, k.iterations as k_iterations, k.stored_key as k_stored_key, \
             k.server_key as k_server_key, k.expires_at as k_expires_at, \
             greatest(0, floor(extract(epoch from k.expires_at - now())))::bigint as k_expires_in_s, \
             {STATE}, {USER_COLUMNS}, {CONNECTION_COLUMNS} from {CREDENTIAL_TABLES} \
             where k.id = $1 and least(k.expires_at, coalesce(k.revoked_at, k.expires_at)) > now() - $2 * interval '1 day'"
        );
        let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
            &[(&id, Type::TEXT), (&KEPT_DAYS, Type::INT4)];
        let Some(row) = self.read_opt("finding a credential", &sql, params).await? else {
            return Ok(None);
        };
        let iterations: i32 = get(&row, "k_iterations")?;
        Ok(Some(CredentialRecord {
            id: get(&row, "k_id")?,
            verifier: Verifier {
                salt: get(&row, "k_salt")?,
                iterations: u32::try_from(iterations).unwrap_or(SCRAM_ROUNDS),
                stored_key: key(get(&row, "k_stored_key")?)?,
                server_key: key(get(&row, "k_server_key")?)?,
            },
            state: CredentialState::from_stored(&get::<String>(&row, "k_state")?),
            expires_at: get(&row, "k_expires_at")?,
            expires_in_s: u64::try_from(get::<i64>(&row, "k_expires_in_s")?).unwrap_or(0),
            user: User::from_row(&row)?,
            connection: Connection::from_row(&row)?,
        }))
    }

    /// One credential as it may be listed.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn find_credential(&self, id: &str) -> Result<Option<Credential>, StoreError> {
        let sql = format!("select {CREDENTIAL_COLUMNS}, {STATE} from {CREDENTIAL_TABLES} where k.id = $1");
        let row = self
            .read_opt("finding a credential", &sql, &[(&id, Type::TEXT)])
            .await?;
        row.as_ref().map(Credential::from_row).transpose()
    }

    /// A page of the credentials, expired and revoked ones included while they are kept.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_credentials(
        &self,
        filter: &CredentialFilter,
        window: &Window,
    ) -> Result<Listed<Credential>, StoreError> {
        let conditions = Conditions::default()
            .when(filter.user_id.as_ref(), Type::UUID, "k.user_id = $?")
            .when(filter.user.as_ref(), Type::TEXT, "u.username = lower($?)")
            .when(filter.connection.as_ref(), Type::TEXT, "c.name = $?")
            .also(filter.state.map(|state| match state {
                CredentialState::Active => ACTIVE,
                CredentialState::Expired => EXPIRED,
                CredentialState::Revoked => REVOKED,
            }));
        self.list(
            "listing credentials",
            &CREDENTIALS,
            conditions,
            window,
            Credential::from_row,
        )
        .await
    }

    /// Ends a credential; every replica hears of it and ends its sessions. One that is revoked already stays so.
    ///
    /// # Errors
    /// `NotFound`, `Unrecorded`, or the store is away.
    pub async fn revoke_credential(&self, id: &str, witness: &dyn Witness) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "revoking a credential").await?;
        let sql =
            format!("select {CREDENTIAL_COLUMNS}, {STATE} from {CREDENTIAL_TABLES} where k.id = $1 for update of k");
        let row = change.query_opt(&sql, &[(&id, Type::TEXT)]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound {
            what: format!("credential {id}"),
        })?;
        let before = Credential::from_row(&row)?;
        let sql = "update credentials set revoked_at = coalesce(revoked_at, now()) where id = $1";
        change.query(sql, &[(&id, Type::TEXT)]).await?;
        change.announce(changes::CREDENTIAL_REVOKED, id);
        let payload = json!({
            "subject": id,
            "before": {
                "user": before.username, "connection": before.connection, "expires_at": before.expires_at,
                "state": before.state.as_str(),
            },
            "after": {"state": "revoked"},
        });
        change.commit(witness, "credential.revoke", payload).await
    }
}

/// PBKDF2 takes some milliseconds: off the arbiter.
async fn verifier(password: Zeroizing<String>) -> Result<Verifier, StoreError> {
    let salt = random::bytes::<SALT_BYTES>()?;
    tokio::task::spawn_blocking(move || Verifier::make(&password, &salt, SCRAM_ROUNDS))
        .await
        .map_err(|_| StoreError::Setup("making a verifier failed".into()))
}

fn key(bytes: Vec<u8>) -> Result<[u8; SHA256_OUTPUT_LEN], StoreError> {
    bytes
        .try_into()
        .map_err(|_| StoreError::Setup("a credential's key has another length".into()))
}
