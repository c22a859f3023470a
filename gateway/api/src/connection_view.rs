//! A connection as the API takes and shows it. What is shown has no place for a secret's value.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use hoop_store::connections::{Connection as Stored, SecretKind};
use hoop_store::settings;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::rule_view::{Mode, all_modes};

/// An enum of the API and the store's, value by value.
macro_rules! mirrored {
    ($(#[$meta:meta])* $name:ident = $stored:ty { $($(#[$doc:meta])* $value:ident),+ }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
        $(#[$meta])*
        pub enum $name { $($(#[$doc])* $value),+ }

        impl From<$name> for $stored {
            fn from(value: $name) -> Self {
                match value { $($name::$value => Self::$value),+ }
            }
        }

        impl From<$stored> for $name {
            fn from(value: $stored) -> Self {
                match value { $(<$stored>::$value => Self::$value),+ }
            }
        }
    };
}

mirrored! {
    /// How the agent talks to the target, as libpq names it.
    #[serde(rename_all = "kebab-case")]
    TargetTls = settings::TargetTls { Disable, #[default] Prefer, Require, VerifyFull }
}
mirrored! {
    /// What a statement's record survives before the statement goes on: the death of every process; the loss of power
    /// too; or it is committed in the store.
    #[serde(rename_all = "lowercase")]
    AuditMode = settings::AuditMode { #[default] Journalled, Synced, Strict }
}
mirrored! {
    /// How much of the results is recorded: the first 256 KiB of a statement and 64 MiB of a session, all, or nothing.
    /// Statements always are.
    #[serde(rename_all = "lowercase")]
    Recording = settings::Record { #[default] Default, Full, Off }
}

mirrored! {
    /// What becomes of a running session's statements while the gateway has not reached its own database for longer than
    /// its rules may be old: they are held, or they go on by the rules of the session's start, which its record says.
    #[serde(rename_all = "lowercase")]
    StoreAway = settings::StoreAway { #[default] Refuse, Continue }
}

/// What logs in to the target.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretInput {
    /// A password. It is sealed and never shown.
    #[schema(format = Password)]
    Value(String),
    /// `env:NAME` or `file:PATH`, which the agent resolves.
    Reference(String),
}

/// A connection as it is created or replaced.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionSettings {
    /// A DNS label. A connection keeps its name.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    pub name: String,
    #[serde(default = "postgres")]
    #[schema(pattern = "^postgres$", default = "postgres")]
    pub protocol: String,
    /// Names of the agents that reach the target: any of them serves, the least busy first.
    #[schema(min_items = 1, max_items = 16)]
    pub agents: Vec<String>,
    /// User name of who answers for it; empty: nobody. Nothing hangs on it.
    #[serde(default)]
    #[schema(max_length = 128)]
    pub owner: String,
    /// The ways in which it can be used at all; access rules say by whom.
    #[serde(default = "all_modes")]
    #[schema(min_items = 1, value_type = Vec<Mode>)]
    pub modes: BTreeSet<Mode>,
    /// Host name or address, as the agent sees it.
    #[schema(min_length = 1, max_length = 253)]
    pub host: String,
    #[serde(default = "port")]
    #[schema(minimum = 1, maximum = 65_535, default = 5432)]
    pub port: u16,
    /// Account at the target.
    #[schema(min_length = 1, max_length = 63)]
    pub user: String,
    /// Absent: none at first, and kept by an update. Null: none.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<SecretInput>)]
    pub secret: Option<Option<SecretInput>>,
    #[serde(default)]
    pub tls: TargetTls,
    /// With tls `verify-full`: certificates that the agent trusts; empty: its system's.
    #[serde(default)]
    #[schema(max_length = 262_144)]
    pub tls_ca_pem: String,
    /// With tls `verify-full`: the name in the target's certificate; empty: `host`.
    #[serde(default)]
    #[schema(max_length = 253)]
    pub tls_server_name: String,
    /// Databases beside the default one that may be asked for; `*` is any.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub databases: Vec<String>,
    #[serde(default = "postgres")]
    #[schema(min_length = 1, max_length = 63, default = "postgres")]
    pub default_database: String,
    #[serde(default)]
    pub audit_mode: AuditMode,
    #[serde(default)]
    pub record: Recording,
    #[serde(default)]
    pub store_away: StoreAway,
    /// Sessions at once, over all replicas; 0: no limit of its own.
    #[serde(default)]
    #[schema(maximum = 100_000)]
    pub max_sessions: u32,
    /// A session ends with nothing said and no statement running for so long; 0: never.
    #[serde(default)]
    #[schema(maximum = 604_800)]
    pub idle_timeout_s: u32,
    /// Longest session; 0: no limit.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    pub session_max_s: u32,
    /// Bytes that the target may send in one session; 0: no limit.
    #[serde(default)]
    #[schema(maximum = 1_125_899_906_842_624_u64)]
    pub result_max_bytes: u64,
    /// Lets the agent log in with cleartext or md5 where the target's TLS is not verified.
    #[serde(default)]
    pub allow_cleartext_login: bool,
    /// Members may make credentials for it.
    #[serde(default)]
    pub allow_members: bool,
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub description: String,
    #[serde(default)]
    #[schema(max_items = 64)]
    pub tags: Vec<String>,
    /// The set of declarations (`hoop-gateway apply --set`) that made it, and may remove it; empty: none.
    #[serde(default)]
    #[schema(max_length = 63, pattern = "^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$")]
    pub managed_by: String,
}

fn postgres() -> String {
    "postgres".into()
}

const fn port() -> u16 {
    5432
}

/// Tells null from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<SecretInput>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Which kind of secret a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretIs {
    None,
    Sealed,
    Reference,
}

/// A connection as it is shown. Members see no `target` and no `secret`.
#[derive(Serialize, ToSchema)]
pub struct Connection {
    pub id: Uuid,
    pub name: String,
    pub protocol: String,
    pub owner: String,
    pub modes: BTreeSet<Mode>,
    pub description: String,
    pub tags: Vec<String>,
    pub databases: Vec<String>,
    pub default_database: String,
    pub audit_mode: AuditMode,
    pub record: Recording,
    pub store_away: StoreAway,
    pub max_sessions: u32,
    pub idle_timeout_s: u32,
    pub session_max_s: u32,
    pub result_max_bytes: u64,
    pub allow_members: bool,
    /// The set of declarations that made it, and may remove it; empty: none.
    pub managed_by: String,
    pub version: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub target: Option<Target>,
}

/// Where a connection leads.
#[derive(Serialize, ToSchema)]
pub struct Target {
    pub agents: Vec<String>,
    pub host: String,
    pub port: u16,
    pub user: String,
    pub tls: TargetTls,
    pub tls_ca_pem: String,
    pub tls_server_name: String,
    pub allow_cleartext_login: bool,
    pub secret: SecretIs,
    /// The reference, which is no secret itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub secret_reference: Option<String>,
}

impl Connection {
    /// Without its target.
    pub fn for_member(stored: Stored) -> Self {
        let settings = stored.settings;
        Self {
            id: stored.id,
            name: stored.name,
            protocol: settings.protocol,
            owner: settings.owner,
            modes: settings.modes.into_iter().map(Mode::from).collect(),
            description: settings.description,
            tags: settings.tags,
            databases: settings.databases,
            default_database: settings.default_database,
            audit_mode: settings.audit_mode.into(),
            record: settings.record.into(),
            store_away: settings.store_away.into(),
            max_sessions: settings.max_sessions,
            idle_timeout_s: settings.idle_timeout_s,
            session_max_s: settings.session_max_s,
            result_max_bytes: settings.result_max_bytes,
            allow_members: settings.allow_members,
            managed_by: settings.managed_by,
            version: stored.version,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            target: None,
        }
    }

    pub fn whole(stored: Stored) -> Self {
        let (secret, secret_reference) = match &stored.secret {
            SecretKind::None => (SecretIs::None, None),
            SecretKind::Value => (SecretIs::Sealed, None),
            SecretKind::Reference(reference) => (SecretIs::Reference, Some(reference.clone())),
        };
        let settings = &stored.settings;
        let target = Target {
            agents: settings.agents.clone(),
            host: settings.host.clone(),
            port: settings.port,
            user: settings.user.clone(),
            tls: settings.tls.into(),
            tls_ca_pem: settings.tls_ca_pem.clone(),
            tls_server_name: settings.tls_server_name.clone(),
            allow_cleartext_login: settings.allow_cleartext_login,
            secret,
            secret_reference,
        };
        Self {
            target: Some(target),
            ..Self::for_member(stored)
        }
    }
}
