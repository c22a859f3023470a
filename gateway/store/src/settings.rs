//! What a connection is set to, and what is allowed: checked before anything is stored, with the field in the error.

use std::collections::BTreeSet;

use hoop_access::{MODES, Mode};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::names::{self, check_label, check_set, invalid};

/// Protocols of this release.
pub const PROTOCOLS: [&str; 1] = ["postgres"];
/// Longest secret.
pub const SECRET_MAX_BYTES: usize = 64 * 1024;
/// Longest reference.
pub const REFERENCE_MAX_BYTES: usize = 1024;
/// Longest host name (RFC 1035 §2.3.4).
pub const HOST_MAX_BYTES: usize = 253;
/// PostgreSQL's NAMEDATALEN, less its zero byte.
pub const NAME_MAX_BYTES: usize = 63;
/// Most agents of one connection.
pub const AGENTS_MAX: usize = 16;
/// Most databases of one connection.
pub const DATABASES_MAX: usize = 256;
/// Largest CA bundle.
pub const CA_MAX_BYTES: usize = 256 * 1024;
/// Longest description.
pub const DESCRIPTION_MAX_BYTES: usize = 4096;
/// Most tags, and the longest.
pub const TAGS_MAX: usize = 64;
pub const TAG_MAX_BYTES: usize = 128;
/// Most sessions of one connection at once.
pub const SESSIONS_MAX: u32 = 100_000;
/// Longest idle time that can be set.
pub const IDLE_TIMEOUT_MAX_S: u32 = 7 * 24 * 3600;
/// Longest session that can be set.
pub const SESSION_MAX_MAX_S: u32 = 30 * 24 * 3600;
/// Largest limit of results that can be set: 1 PiB, far below what JSON's numbers hold exactly.
pub const RESULT_MAX_MAX_BYTES: u64 = 1 << 50;
/// Stands for every database in `Settings::databases`.
pub const ANY_DATABASE: &str = "*";

/// How the agent talks to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetTls {
    Disable,
    #[default]
    Prefer,
    Require,
    VerifyFull,
}

impl TargetTls {
    /// As in `hoop.v1.Target.tls`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// When a statement may go on to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditMode {
    /// Its record survives the death of every process.
    #[default]
    Journalled,
    /// And the loss of power.
    Synced,
    /// And it is committed in PostgreSQL.
    Strict,
}

impl AuditMode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Journalled => "journalled",
            Self::Synced => "synced",
            Self::Strict => "strict",
        }
    }
}

/// What becomes of a running session's statements while the replica cannot confirm the present rules with its store for
/// longer than `policy_stale_max_s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreAway {
    /// They are held until the store is back, and the session ends where that takes too long.
    #[default]
    Refuse,
    /// They go on by the rules of the session's start, which its record says.
    Continue,
}

/// How much of the results is recorded. Statements always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The first 256 KiB of each statement and 64 MiB of a session.
    #[default]
    Default,
    Full,
    Off,
}

impl Record {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Full => "full",
            Self::Off => "off",
        }
    }
}

/// Everything about a connection but its name and its secret. Stored as JSON: a member that is absent has its default,
/// so that the next release can add one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub protocol: String,
    /// Names of the agents that reach the target: any of them serves.
    pub agents: Vec<String>,
    /// User name of who answers for it; empty: nobody. Nothing hangs on it.
    pub owner: String,
    /// The ways in which it can be used at all; rules say by whom.
    pub modes: BTreeSet<Mode>,
    pub host: String,
    pub port: u16,
    /// Account at the target.
    pub user: String,
    pub tls: TargetTls,
    /// Whom the agent believes the target's certificate; empty: its system's roots.
    pub tls_ca_pem: String,
    /// The name expected in the target's certificate; empty: `host`.
    pub tls_server_name: String,
    /// Databases that may be asked for; `*` is any.
    pub databases: Vec<String>,
    pub default_database: String,
    pub audit_mode: AuditMode,
    pub record: Record,
    #[serde(default)]
    pub store_away: StoreAway,
    /// Over all replicas. 0: no limit of its own.
    pub max_sessions: u32,
    /// 0: none.
    pub idle_timeout_s: u32,
    /// Longest session. 0: none.
    pub session_max_s: u32,
    /// Bytes that the target may send in one session. 0: no limit.
    pub result_max_bytes: u64,
    /// Cleartext or md5 login without verified TLS.
    pub allow_cleartext_login: bool,
    /// Every member may use it, in every way; otherwise access rules decide alone.
    pub allow_members: bool,
    pub description: String,
    pub tags: Vec<String>,
    /// The set of declarations that made it, and may remove it; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub managed_by: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protocol: "postgres".into(),
            agents: Vec::new(),
            owner: String::new(),
            modes: MODES.into(),
            host: String::new(),
            port: 5432,
            user: String::new(),
            tls: TargetTls::default(),
            tls_ca_pem: String::new(),
            tls_server_name: String::new(),
            databases: Vec::new(),
            default_database: "postgres".into(),
            audit_mode: AuditMode::default(),
            record: Record::default(),
            store_away: StoreAway::default(),
            max_sessions: 0,
            idle_timeout_s: 0,
            session_max_s: 0,
            result_max_bytes: 0,
            allow_cleartext_login: false,
            allow_members: false,
            description: String::new(),
            tags: Vec::new(),
            managed_by: String::new(),
        }
    }
}

impl Settings {
    /// True where a client may ask for this database.
    #[must_use]
    pub fn allows_database(&self, database: &str) -> bool {
        database == self.default_database || self.databases.iter().any(|d| d == ANY_DATABASE || d == database)
    }

    /// # Errors
    /// `StoreError::Invalid` naming the first field that is wrong.
    pub fn check(&self) -> Result<(), StoreError> {
        if !PROTOCOLS.contains(&self.protocol.as_str()) {
            return Err(invalid("protocol", format!("must be one of: {}", PROTOCOLS.join(", "))));
        }
        self.check_agents()?;
        self.check_owner()?;
        if self.modes.is_empty() {
            return Err(invalid(
                "modes",
                "must hold at least one of native, web, exec and runbook",
            ));
        }
        check_host("host", &self.host)?;
        if self.port == 0 {
            return Err(invalid("port", "must be 1 to 65535"));
        }
        check_name("user", &self.user)?;
        check_name("default_database", &self.default_database)?;
        if self.databases.len() > DATABASES_MAX {
            return Err(invalid(
                "databases",
                format!("must be at most {DATABASES_MAX}; * allows every database"),
            ));
        }
        for database in &self.databases {
            check_name("databases", database)?;
        }
        self.check_tls()?;
        self.check_limits()?;
        check_set(&self.managed_by)?;
        check_text("description", &self.description, DESCRIPTION_MAX_BYTES)?;
        if self.tags.len() > TAGS_MAX {
            return Err(invalid("tags", format!("must be at most {TAGS_MAX}")));
        }
        self.tags.iter().try_for_each(|tag| {
            if tag.is_empty() {
                return Err(invalid("tags", "must not hold an empty tag"));
            }
            check_text("tags", tag, TAG_MAX_BYTES)
        })
    }

    fn check_agents(&self) -> Result<(), StoreError> {
        if self.agents.is_empty() || self.agents.len() > AGENTS_MAX {
            return Err(invalid("agents", format!("must name 1 to {AGENTS_MAX} agents")));
        }
        for (at, agent) in self.agents.iter().enumerate() {
            check_label("agents", agent)?;
            if self.agents.iter().take(at).any(|before| before == agent) {
                return Err(invalid("agents", format!("must name {agent} once")));
            }
        }
        Ok(())
    }

    fn check_owner(&self) -> Result<(), StoreError> {
        match names::username(&self.owner) {
            Ok(name) if name == self.owner => Ok(()),
            _ if self.owner.is_empty() => Ok(()),
            _ => Err(invalid("owner", "must be a user name, in lower case, or empty")),
        }
    }

    fn check_limits(&self) -> Result<(), StoreError> {
        let limits = [
            (
                "max_sessions",
                u64::from(self.max_sessions),
                u64::from(SESSIONS_MAX),
                "",
            ),
            (
                "idle_timeout_s",
                self.idle_timeout_s.into(),
                IDLE_TIMEOUT_MAX_S.into(),
                " seconds",
            ),
            (
                "session_max_s",
                self.session_max_s.into(),
                SESSION_MAX_MAX_S.into(),
                " seconds",
            ),
            (
                "result_max_bytes",
                self.result_max_bytes,
                RESULT_MAX_MAX_BYTES,
                " bytes",
            ),
        ];
        limits.into_iter().try_for_each(|(field, set, most, unit)| {
            if set > most {
                return Err(invalid(field, format!("must be at most {most}{unit}; 0 is no limit")));
            }
            Ok(())
        })
    }

    fn check_tls(&self) -> Result<(), StoreError> {
        if !self.tls_server_name.is_empty() {
            check_host("tls_server_name", &self.tls_server_name)?;
        }
        if self.tls_ca_pem.is_empty() {
            return Ok(());
        }
        if self.tls != TargetTls::VerifyFull {
            return Err(invalid("tls_ca_pem", "is only used with tls \"verify-full\""));
        }
        if self.tls_ca_pem.len() > CA_MAX_BYTES {
            return Err(invalid("tls_ca_pem", format!("must be at most {CA_MAX_BYTES} bytes")));
        }
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.tls_ca_pem.as_bytes()) {
            let added = certificate
                .map_err(|e| e.to_string())
                .and_then(|c| roots.add(c).map_err(|e| e.to_string()));
            added.map_err(|e| invalid("tls_ca_pem", format!("has a certificate that cannot be used: {e}")))?;
        }
        if roots.is_empty() {
            return Err(invalid("tls_ca_pem", "has no certificate: give the CA's in PEM"));
        }
        Ok(())
    }
}

/// A host name or an address, without port, brackets or scheme.
fn check_host(field: &'static str, host: &str) -> Result<(), StoreError> {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let labels = host.strip_suffix('.').unwrap_or(host).split('.').all(|label| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    });
    if host.len() > HOST_MAX_BYTES || !labels {
        return Err(invalid(
            field,
            "must be a host name or an IP address, without scheme, port or brackets",
        ));
    }
    Ok(())
}

fn check_name(field: &'static str, name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.chars().any(char::is_control) {
        return Err(invalid(
            field,
            format!("must be 1 to {NAME_MAX_BYTES} bytes without control characters"),
        ));
    }
    Ok(())
}

fn check_text(field: &'static str, text: &str, max_bytes: usize) -> Result<(), StoreError> {
    if text.len() > max_bytes || text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(invalid(
            field,
            format!("must be at most {max_bytes} bytes without control characters"),
        ));
    }
    Ok(())
}

/// `env:NAME` or `file:PATH`; which of them an agent resolves is the agent's own to say.
pub(crate) fn check_reference(reference: &str) -> Result<(), StoreError> {
    let name = reference
        .strip_prefix("env:")
        .or_else(|| reference.strip_prefix("file:"));
    let good = name.is_some_and(|n| !n.is_empty() && !n.chars().any(|c| c.is_control() || c.is_whitespace()));
    if !good || reference.len() > REFERENCE_MAX_BYTES {
        return Err(invalid(
            "secret",
            "the reference must be env:NAME or file:PATH without white space; the agent resolves it",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Settings {
        Settings {
            agents: vec!["default".into()],
            host: "db.internal".into(),
            user: "app".into(),
            ..Settings::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Settings)) -> &'static str {
        let mut settings = good();
        change(&mut settings);
        match settings.check() {
            Err(StoreError::Invalid { field, .. }) => field,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_refusal_names_its_field() {
        good().check().unwrap();
        assert_eq!(refused(|s| s.protocol = "mysql".into()), "protocol");
        assert_eq!(refused(|s| s.agents = vec!["Default".into()]), "agents");
        assert_eq!(refused(|s| s.agents = Vec::new()), "agents");
        assert_eq!(refused(|s| s.agents = vec!["a".into(), "a".into()]), "agents");
        assert_eq!(refused(|s| s.owner = "Ada".into()), "owner");
        assert_eq!(refused(|s| s.modes = BTreeSet::new()), "modes");
        assert_eq!(refused(|s| s.host = "postgres://db".into()), "host");
        assert_eq!(refused(|s| s.host = "db:5432".into()), "host");
        assert_eq!(refused(|s| s.host = String::new()), "host");
        assert_eq!(refused(|s| s.port = 0), "port");
        assert_eq!(refused(|s| s.user = String::new()), "user");
        assert_eq!(refused(|s| s.databases = vec!["a\0".into()]), "databases");
        assert_eq!(refused(|s| s.default_database = "x".repeat(64)), "default_database");
        assert_eq!(refused(|s| s.tls_ca_pem = "x".into()), "tls_ca_pem");
        assert_eq!(
            refused(|s| {
                s.tls = TargetTls::VerifyFull;
                s.tls_ca_pem = "not PEM".into();
            }),
            "tls_ca_pem"
        );
        assert_eq!(refused(|s| s.idle_timeout_s = u32::MAX), "idle_timeout_s");
        assert_eq!(refused(|s| s.session_max_s = u32::MAX), "session_max_s");
        assert_eq!(refused(|s| s.result_max_bytes = u64::MAX), "result_max_bytes");
        assert_eq!(refused(|s| s.tags = vec![String::new()]), "tags");
    }

    #[test]
    fn only_listed_databases_are_allowed() {
        let mut settings = good();
        assert!(settings.allows_database("postgres") && !settings.allows_database("other"));
        settings.databases = vec!["other".into()];
        assert!(settings.allows_database("other") && !settings.allows_database("third"));
        settings.databases = vec![ANY_DATABASE.into()];
        assert!(settings.allows_database("third"));
    }

    #[test]
    fn settings_of_an_earlier_release_get_defaults() {
        let settings: Settings = serde_json::from_str(r#"{"agents":["a"],"host":"h","user":"u"}"#).unwrap();
        assert_eq!((settings.port, settings.audit_mode), (5432, AuditMode::Journalled));
        assert_eq!(settings.modes, BTreeSet::from(MODES));
    }

    #[test]
    fn references_are_of_the_kinds_that_agents_resolve() {
        for good in ["env:HOOP_TARGET_X", "file:/run/secrets/x"] {
            assert!(check_reference(good).is_ok(), "{good}");
        }
        for bad in ["env:", "vault:x", "plain", "file:/a b"] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
    }
}
