//! Connections: what people may reach, through which agents, as which account. The account's secret is sealed, and is
//! read by nobody but `connection_secret`.

use std::fmt;
use std::ops::Deref;

use chrono::{DateTime, Utc};
use hoop_access::{Object, Reach};
use serde_json::{Value, json};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, check_version, conflict, get, policy_change};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::check_label;
use crate::names::invalid;
pub use crate::settings::{AuditMode, Record, Settings, StoreAway, TargetTls};
use crate::settings::{SECRET_MAX_BYTES, check_reference};
use crate::within::Within;
use crate::{Store, StoreError, changes};

#[derive(Debug, Clone, PartialEq)]
pub struct Connection {
    pub id: Uuid,
    pub name: String,
    /// Of the policy: numbers every change of any connection, so it only grows.
    pub version: i64,
    pub settings: Settings,
    pub secret: SecretKind,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// Set where it exists only for what still speaks of it.
    pub deleted: bool,
}

impl Deref for Connection {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.settings
    }
}

/// Which kind of secret a connection has; never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretKind {
    None,
    Value,
    Reference(String),
}

/// What logs in to the target.
pub enum Secret {
    Value(Zeroizing<String>),
    /// `env:NAME` or `file:PATH`, resolved by the agent.
    Reference(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Secret::Value(…)"),
            Self::Reference(reference) => write!(f, "Secret::Reference({reference})"),
        }
    }
}

/// What an update does with the secret.
#[derive(Debug)]
pub enum SecretChange {
    Keep,
    Remove,
    Set(Secret),
}

/// Columns of `connections c`, for `Connection::from_row`.
pub(crate) const CONNECTION_COLUMNS: &str = "c.id as c_id, c.name as c_name, c.version as c_version, \
     c.settings as c_settings, c.secret_sealed is not null as c_sealed, c.secret_reference as c_reference, \
     c.created_at as c_created_at, c.updated_at as c_updated_at, c.deleted_at is not null as c_deleted";

/// How connections can be listed.
pub static CONNECTIONS: Listing = Listing {
    name: "connections",
    columns: &[CONNECTION_COLUMNS],
    from: "connections c",
    whole: "c.deleted_at is null",
    id: SortKey::uuid("id", "c.id"),
    sorts: &[
        SortKey::text("name", "c.name"),
        SortKey::time("created_at", "c.created_at"),
        SortKey::time("updated_at", "c.updated_at"),
    ],
    default_sort: "name",
};

/// Which connections.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFilter {
    /// One of its agents.
    pub agent: Option<String>,
    pub owner: Option<String>,
    pub tag: Option<String>,
    pub protocol: Option<String>,
    /// In the name or the description.
    pub q: Option<String>,
}

impl Connection {
    pub(crate) fn from_row(row: &Row) -> Result<Self, StoreError> {
        let secret = match (
            get::<bool>(row, "c_sealed")?,
            get::<Option<String>>(row, "c_reference")?,
        ) {
            (true, _) => SecretKind::Value,
            (false, Some(reference)) => SecretKind::Reference(reference),
            (false, None) => SecretKind::None,
        };
        let name: String = get(row, "c_name")?;
        let settings = serde_json::from_value(get::<Value>(row, "c_settings")?)
            .map_err(|e| StoreError::Setup(format!("the settings of connection {name} cannot be read: {e}")))?;
        Ok(Self {
            id: get(row, "c_id")?,
            name,
            version: get(row, "c_version")?,
            settings,
            secret,
            created_at: get(row, "c_created_at")?,
            updated_at: get(row, "c_updated_at")?,
            deleted: get(row, "c_deleted")?,
        })
    }

    /// As access rules see it.
    #[must_use]
    pub fn object(&self) -> Object<'_> {
        Object {
            name: &self.name,
            tags: &self.settings.tags,
            open_to_members: self.settings.allow_members,
            modes: &self.settings.modes,
            deleted: self.deleted,
        }
    }

    /// For the record: everything but the secret.
    fn described(&self) -> Value {
        let secret = match &self.secret {
            SecretKind::None => json!(null),
            SecretKind::Value => json!("sealed"),
            SecretKind::Reference(reference) => json!(reference),
        };
        json!({"id": self.id, "name": self.name, "version": self.version, "settings": self.settings, "secret": secret})
    }
}

impl Store {
    /// # Errors
    /// `Invalid` naming the field, `Conflict` where the name is taken, `Unrecorded`, or the store is away.
    pub async fn create_connection(
        &self,
        name: &str,
        settings: Settings,
        secret: Option<Secret>,
        witness: &dyn Witness,
    ) -> Result<Connection, StoreError> {
        check_label("name", name)?;
        settings.check()?;
        let id = Uuid::now_v7();
        let (sealed, reference) = self.kept(id, secret)?;

        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "creating a connection").await?;
        check_agents(&change, &settings.agents).await?;
        let (version, stored) = new_version(&change, "create", name, Some(&settings)).await?;
        let sql = format!(
            "insert into connections as c (id, name, version, settings, secret_sealed, secret_reference) \
             values ($1, $2, $3, $4, $5, $6) returning {CONNECTION_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::UUID),
                    (&name, Type::TEXT),
                    (&version, Type::INT8),
                    (&stored, Type::JSONB),
                    (&sealed, Type::BYTEA),
                    (&reference, Type::TEXT),
                ],
            )
            .await
            .map_err(|e| conflict(e, || format!("connection {name}")))?
            .ok_or_else(|| unknown(name))?;
        let connection = Connection::from_row(&row)?;
        change.announce(changes::CONNECTION_CHANGED, name);
        let payload = json!({"subject": name, "before": null, "after": connection.described()});
        change.commit(witness, "connection.create", payload).await?;
        Ok(connection)
    }

    /// Replaces a connection's settings. With `if_version`, only where it still has that version.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Stale` where the version is another, `Unrecorded`, or the store is away.
    pub async fn update_connection(
        &self,
        name: &str,
        settings: Settings,
        secret: SecretChange,
        if_version: Option<i64>,
        witness: &dyn Witness,
    ) -> Result<Connection, StoreError> {
        settings.check()?;
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "updating a connection").await?;
        let before = locked(&change, name).await?;
        check_version(|| described_as(name), before.version, if_version)?;
        // one that was revoked since may stay: the connection waits for another of that name
        let new: Vec<String> = (settings.agents.iter())
            .filter(|agent| !before.agents.contains(agent))
            .cloned()
            .collect();
        check_agents(&change, &new).await?;
        let (keep, new) = match secret {
            SecretChange::Keep => (true, None),
            SecretChange::Remove => (false, None),
            SecretChange::Set(secret) => (false, Some(secret)),
        };
        let (sealed, reference) = self.kept(before.id, new)?;
        let (version, stored) = new_version(&change, "update", name, Some(&settings)).await?;
        let sql = format!(
            "update connections c set version = $2, settings = $3, updated_at = now(), \
             secret_sealed = case when $4 then secret_sealed else $5 end, \
             secret_reference = case when $4 then secret_reference else $6 end \
             where id = $1 returning {CONNECTION_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&before.id, Type::UUID),
                    (&version, Type::INT8),
                    (&stored, Type::JSONB),
                    (&keep, Type::BOOL),
                    (&sealed, Type::BYTEA),
                    (&reference, Type::TEXT),
                ],
            )
            .await?
            .ok_or_else(|| unknown(name))?;
        let after = Connection::from_row(&row)?;
        change.announce(changes::CONNECTION_CHANGED, name);
        let payload = json!({
            "subject": name, "before": before.described(), "after": after.described(), "secret_replaced": !keep,
        });
        change.commit(witness, "connection.update", payload).await?;
        Ok(after)
    }

    /// Deletes a connection and destroys its sealed secret. Its credentials end with it.
    ///
    /// # Errors
    /// `NotFound`, `Stale` where the version is another, `Unrecorded`, or the store is away.
    pub async fn delete_connection(
        &self,
        name: &str,
        if_version: Option<i64>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "deleting a connection").await?;
        let before = locked(&change, name).await?;
        check_version(|| described_as(name), before.version, if_version)?;
        let (version, _) = new_version(&change, "delete", name, None).await?;
        change
            .query(
                "update connections set version = $2, deleted_at = now(), updated_at = now(), secret_sealed = null, \
                 secret_reference = null where id = $1",
                &[(&before.id, Type::UUID), (&version, Type::INT8)],
            )
            .await?;
        change.announce(changes::CONNECTION_CHANGED, name);
        let payload = json!({"subject": name, "before": before.described(), "after": null});
        change.commit(witness, "connection.delete", payload).await
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_connection(&self, name: &str) -> Result<Option<Connection>, StoreError> {
        let sql = format!("select {CONNECTION_COLUMNS} from connections c where name = $1 and deleted_at is null");
        let row = self
            .read_opt("finding a connection", &sql, &[(&name, Type::TEXT)])
            .await?;
        row.as_ref().map(Connection::from_row).transpose()
    }

    /// Those of these connections that there are, deleted ones included.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn connections_by_id(&self, ids: &[Uuid]) -> Result<Vec<Connection>, StoreError> {
        let sql = format!("select {CONNECTION_COLUMNS} from connections c where id = any($1)");
        let rows = self
            .read("finding connections", &sql, &[(&ids, Type::UUID_ARRAY)])
            .await?;
        rows.iter().map(Connection::from_row).collect()
    }

    /// A page of the connections that `keep` keeps. It keeps none beyond `reach`, where there is one.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_connections(
        &self,
        filter: &ConnectionFilter,
        window: &Window,
        reach: Option<&Reach>,
        keep: impl Fn(&Connection) -> bool,
    ) -> Result<Listed<Connection>, StoreError> {
        let within = reach.filter(|reach| !reach.is_everything()).map(Within::new);
        let text = filter.q.as_ref().map(|q| q.to_lowercase());
        let conditions = Conditions::default()
            .when(
                filter.agent.as_ref(),
                Type::TEXT,
                "c.settings -> 'agents' @> to_jsonb($?)",
            )
            .when(filter.owner.as_ref(), Type::TEXT, "c.settings ->> 'owner' = $?")
            .when(filter.tag.as_ref(), Type::TEXT, "c.settings -> 'tags' @> to_jsonb($?)")
            .when(filter.protocol.as_ref(), Type::TEXT, "c.settings ->> 'protocol' = $?")
            .when(
                text.as_ref(),
                Type::TEXT,
                "strpos(c.name, $?) > 0 or strpos(lower(c.settings ->> 'description'), $?) > 0",
            );
        let conditions = match &within {
            Some(within) => within.narrow(conditions),
            None => conditions,
        };
        let (listing, read) = (&CONNECTIONS, Connection::from_row);
        self.list_kept("listing connections", listing, &conditions, window, read, keep)
            .await
    }

    /// What logs in to the target; `None` where the connection has no secret (trust).
    ///
    /// # Errors
    /// `NotFound`, `Sealed` where the master key is not the one that sealed it, or the store is away.
    pub async fn connection_secret(&self, id: Uuid) -> Result<Option<Secret>, StoreError> {
        let sql = "select secret_sealed, secret_reference from connections where id = $1 and deleted_at is null";
        let row = self.read_opt("reading a secret", sql, &[(&id, Type::UUID)]).await?;
        let row = row.ok_or_else(|| unknown(&id.to_string()))?;
        if let Some(sealed) = get::<Option<Vec<u8>>>(&row, "secret_sealed")? {
            let plain = self.master().open(&aad(id), &sealed).map(Zeroizing::new);
            let plain = plain.map_err(|_| StoreError::Sealed { what: "a connection" })?;
            let text = std::str::from_utf8(&plain).map_err(|_| StoreError::Sealed { what: "a connection" })?;
            return Ok(Some(Secret::Value(Zeroizing::new(text.to_owned()))));
        }
        Ok(get::<Option<String>>(&row, "secret_reference")?.map(Secret::Reference))
    }

    /// The number of the last policy change; 0 before the first.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn policy_version(&self) -> Result<i64, StoreError> {
        let sql = "select coalesce(max(version), 0) as version from policy_versions";
        let row = self.read_opt("reading the policy's version", sql, &[]).await?;
        row.as_ref().map_or(Ok(0), |row| get(row, "version"))
    }

    fn kept(&self, id: Uuid, secret: Option<Secret>) -> Result<(Option<Vec<u8>>, Option<String>), StoreError> {
        match secret {
            None => Ok((None, None)),
            Some(Secret::Reference(reference)) => {
                check_reference(&reference)?;
                Ok((None, Some(reference)))
            }
            Some(Secret::Value(value)) => {
                if value.is_empty() || value.len() > SECRET_MAX_BYTES || value.contains('\0') {
                    return Err(invalid(
                        "secret",
                        format!("must be 1 to {SECRET_MAX_BYTES} bytes without a zero byte"),
                    ));
                }
                let sealed = self.master().seal(&aad(id), value.as_bytes());
                Ok((
                    Some(sealed.map_err(|e| StoreError::Setup(format!("sealing a secret: {e}")))?),
                    None,
                ))
            }
        }
    }
}

fn aad(id: Uuid) -> String {
    format!("connection/{id}/secret")
}

fn described_as(name: &str) -> String {
    format!("connection {name}")
}

fn unknown(name: &str) -> StoreError {
    StoreError::NotFound {
        what: described_as(name),
    }
}

async fn locked(change: &Change<'_>, name: &str) -> Result<Connection, StoreError> {
    let sql =
        format!("select {CONNECTION_COLUMNS} from connections c where name = $1 and deleted_at is null for update");
    let row = change
        .query_opt(&sql, &[(&name, Type::TEXT)])
        .await?
        .ok_or_else(|| unknown(name))?;
    Connection::from_row(&row)
}

async fn check_agents(change: &Change<'_>, agents: &[String]) -> Result<(), StoreError> {
    let sql = "select wanted from unnest($1::text[]) wanted \
               where not exists (select 1 from agents where name = wanted and revoked_at is null) limit 1";
    match change.query_opt(sql, &[(&agents, Type::TEXT_ARRAY)]).await? {
        None => Ok(()),
        Some(row) => {
            let agent: String = get(&row, "wanted")?;
            Err(invalid(
                "agents",
                format!("must name agents that there are: register {agent} first"),
            ))
        }
    }
}

async fn new_version(
    change: &Change<'_>,
    kind: &'static str,
    name: &str,
    settings: Option<&Settings>,
) -> Result<(i64, Option<Value>), StoreError> {
    let stored = settings.map(serde_json::to_value).transpose();
    let stored = stored.map_err(|e| StoreError::Setup(format!("a connection's settings: {e}")))?;
    let version = policy_change(change, &format!("connection.{kind}"), name, stored.as_ref()).await?;
    Ok((version, stored))
}
