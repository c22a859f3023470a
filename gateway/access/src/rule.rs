//! One access rule: as it is written, checked and stored.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::schedule::Schedule;

/// Most entries of one list of a rule.
pub const ENTRIES_MAX: usize = 1000;
/// Longest entry.
pub const ENTRY_MAX_BYTES: usize = 255;
/// Longest description.
pub const DESCRIPTION_MAX_BYTES: usize = 4096;
/// The longest life of a credential that a rule can grant, in seconds.
pub const CREDENTIAL_MAX_S: u32 = 48 * 3600;

/// What a person may do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Changes everything; reaches what rules allow.
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
    #[must_use]
    pub fn from_stored(text: &str) -> Self {
        match text {
            "admin" => Self::Admin,
            "auditor" => Self::Auditor,
            _ => Self::Member,
        }
    }
}

/// How a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A client of the connection's own protocol, on the gateway's port.
    Native,
    /// The editor or terminal in the browser.
    Web,
    /// One command through API or command line.
    Exec,
    /// A prepared runbook.
    Runbook,
}

/// Every mode.
pub const MODES: [Mode; 4] = [Mode::Native, Mode::Web, Mode::Exec, Mode::Runbook];

impl Mode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Web => "web",
            Self::Exec => "exec",
            Self::Runbook => "runbook",
        }
    }
}

/// What a rule says: who (any of groups, users, roles) may reach which connections (any of names, tags), under which
/// conditions (all of them). Stored as JSON: a member that is absent has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleSpec {
    pub description: String,
    /// False: the rule stays, and allows nothing.
    pub enabled: bool,
    pub groups: BTreeSet<String>,
    /// User names.
    pub users: BTreeSet<String>,
    /// Everybody with this role. An auditor reaches nothing, whatever a rule says.
    pub roles: BTreeSet<Role>,
    /// Names; a `*` at the end stands for any rest.
    pub connections: BTreeSet<String>,
    pub tags: BTreeSet<String>,
    pub modes: BTreeSet<Mode>,
    /// `None`: always.
    pub schedule: Option<Schedule>,
    /// Networks that the client may come from; empty: any.
    pub networks: BTreeSet<IpNet>,
    /// Longest life of a credential made by this rule, in seconds; 0: no limit of its own.
    pub max_credential_s: u32,
    /// The set of declarations that made it, and may remove it; empty: none. It says nothing of access.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub managed_by: String,
}

impl Default for RuleSpec {
    fn default() -> Self {
        Self {
            description: String::new(),
            enabled: true,
            groups: BTreeSet::new(),
            users: BTreeSet::new(),
            roles: BTreeSet::new(),
            connections: BTreeSet::new(),
            tags: BTreeSet::new(),
            modes: MODES.into(),
            schedule: None,
            networks: BTreeSet::new(),
            max_credential_s: 0,
            managed_by: String::new(),
        }
    }
}

/// A rule with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub id: Uuid,
    pub name: String,
    pub spec: RuleSpec,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub field: &'static str,
    /// Completes "‹field› …".
    pub problem: String,
}

impl Fault {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }
}

impl RuleSpec {
    /// # Errors
    /// `Fault` naming the first field that is wrong.
    pub fn check(&self) -> Result<(), Fault> {
        if self.groups.is_empty() && self.users.is_empty() && self.roles.is_empty() {
            return Err(Fault::new("groups", "must name somebody: give groups, users or roles"));
        }
        if self.roles.contains(&Role::Auditor) {
            return Err(Fault::new(
                "roles",
                "must not name auditor: auditors read, and reach nothing",
            ));
        }
        if self.connections.is_empty() && self.tags.is_empty() {
            return Err(Fault::new(
                "connections",
                "must name something: give connections (\"*\" is all) or tags",
            ));
        }
        if self.modes.is_empty() {
            return Err(Fault::new(
                "modes",
                "must hold at least one of native, web, exec, runbook",
            ));
        }
        entries("groups", &self.groups)?;
        entries("users", &self.users)?;
        entries("connections", &self.connections)?;
        entries("tags", &self.tags)?;
        if self.connections.iter().any(|name| wildcard_inside(name)) {
            return Err(Fault::new("connections", "may hold * only at the end of a name"));
        }
        if self.networks.len() > ENTRIES_MAX {
            return Err(Fault::new("networks", format!("must be at most {ENTRIES_MAX}")));
        }
        if self.max_credential_s > CREDENTIAL_MAX_S {
            return Err(Fault::new(
                "max_credential_s",
                format!("must be at most {CREDENTIAL_MAX_S} seconds (48 hours); 0 is no limit of its own"),
            ));
        }
        if self.description.len() > DESCRIPTION_MAX_BYTES {
            return Err(Fault::new(
                "description",
                format!("must be at most {DESCRIPTION_MAX_BYTES} bytes"),
            ));
        }
        self.schedule.as_ref().map_or(Ok(()), Schedule::check)
    }
}

fn wildcard_inside(name: &str) -> bool {
    name.strip_suffix('*').unwrap_or(name).contains('*')
}

fn entries(field: &'static str, set: &BTreeSet<String>) -> Result<(), Fault> {
    if set.len() > ENTRIES_MAX {
        return Err(Fault::new(field, format!("must be at most {ENTRIES_MAX}")));
    }
    let good = |entry: &String| {
        !entry.trim().is_empty() && entry.len() <= ENTRY_MAX_BYTES && !entry.chars().any(char::is_control)
    };
    if set.iter().all(good) {
        Ok(())
    } else {
        Err(Fault::new(
            field,
            format!("must hold entries of 1 to {ENTRY_MAX_BYTES} bytes without control characters"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> RuleSpec {
        RuleSpec {
            groups: ["sre".to_owned()].into(),
            connections: ["prod-*".to_owned()].into(),
            ..RuleSpec::default()
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        let refused = |change: fn(&mut RuleSpec)| {
            let mut spec = good();
            change(&mut spec);
            spec.check().err().map(|fault| fault.field)
        };
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|spec| spec.groups.clear()), Some("groups"));
        assert_eq!(refused(|spec| spec.roles = [Role::Auditor].into()), Some("roles"));
        assert_eq!(refused(|spec| spec.connections.clear()), Some("connections"));
        assert_eq!(
            refused(|spec| spec.connections = ["a*b".into()].into()),
            Some("connections")
        );
        assert_eq!(refused(|spec| spec.tags = ["".into()].into()), Some("tags"));
        assert_eq!(refused(|spec| spec.modes.clear()), Some("modes"));
        assert_eq!(
            refused(|spec| spec.max_credential_s = 172_801),
            Some("max_credential_s")
        );
        assert_eq!(
            refused(|spec| spec.schedule = Some(Schedule::default())),
            Some("schedule")
        );
    }

    #[test]
    fn a_rule_of_an_earlier_release_gets_defaults() {
        let spec: RuleSpec = serde_json::from_str(r#"{"groups":["a"],"connections":["*"]}"#).unwrap_or_default();
        assert!(spec.enabled && spec.modes.len() == 4 && spec.schedule.is_none());
    }
}
