//! An access rule as the API takes and shows it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use hoop_access::RuleSpec;
use hoop_store::rules::StoredRule;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::problem::Problem;

/// How a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A client of the connection's own protocol.
    Native,
    /// The editor or terminal in the browser.
    Web,
    /// One command through API or command line.
    Exec,
    /// A prepared runbook.
    Runbook,
}

impl From<Mode> for hoop_access::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Native,
            Mode::Web => Self::Web,
            Mode::Exec => Self::Exec,
            Mode::Runbook => Self::Runbook,
        }
    }
}

impl From<hoop_access::Mode> for Mode {
    fn from(mode: hoop_access::Mode) -> Self {
        match mode {
            hoop_access::Mode::Native => Self::Native,
            hoop_access::Mode::Web => Self::Web,
            hoop_access::Mode::Exec => Self::Exec,
            hoop_access::Mode::Runbook => Self::Runbook,
        }
    }
}

/// Whose every holder a rule may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleRole {
    Admin,
    Member,
}

impl From<RuleRole> for hoop_access::Role {
    fn from(role: RuleRole) -> Self {
        match role {
            RuleRole::Admin => Self::Admin,
            RuleRole::Member => Self::Member,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// A window that opens on each of `days` at `from` and closes at `until`, on the next day where that is not later.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[schema(min_items = 1, value_type = Vec<Day>)]
    pub days: BTreeSet<Day>,
    #[schema(example = "08:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub from: String,
    #[schema(example = "18:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub until: String,
    /// IANA name.
    #[schema(example = "Europe/Berlin")]
    pub timezone: String,
}

/// What a rule says: who (any of groups, users, roles) may use which connections (any of connections, tags), under which
/// conditions (all of them).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// A DNS label.
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    pub name: String,
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub description: String,
    /// False: the rule stays, and allows nothing.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    /// A set, as all of these: what is there twice is there once.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub groups: BTreeSet<String>,
    /// User names.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub users: BTreeSet<String>,
    /// Everybody with this role.
    #[serde(default)]
    #[schema(value_type = Vec<RuleRole>)]
    pub roles: BTreeSet<RuleRole>,
    /// Names of connections; a `*` at the end stands for any rest.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub connections: BTreeSet<String>,
    /// Connections with one of these tags.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub tags: BTreeSet<String>,
    /// All four where absent.
    #[serde(default = "all_modes")]
    #[schema(min_items = 1, value_type = Vec<Mode>)]
    pub modes: BTreeSet<Mode>,
    /// Always where absent.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// Networks that the client must come from, as 10.0.0.0/8; any where empty.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub networks: BTreeSet<String>,
    /// Longest life of a credential, in seconds; 0: no limit of its own.
    #[serde(default)]
    #[schema(maximum = 172_800)]
    pub max_credential_s: u32,
    /// The set of declarations (`hoop-gateway apply --set`) that made it, and may remove it; empty: none.
    #[serde(default)]
    #[schema(max_length = 63, pattern = "^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$")]
    pub managed_by: String,
}

const fn yes() -> bool {
    true
}

pub(crate) fn all_modes() -> BTreeSet<Mode> {
    [Mode::Native, Mode::Web, Mode::Exec, Mode::Runbook].into()
}

/// A rule.
#[derive(Serialize, ToSchema)]
pub struct Rule {
    pub id: Uuid,
    pub version: i64,
    pub name: String,
    pub description: String,
    pub enabled: bool,
    pub groups: BTreeSet<String>,
    pub users: BTreeSet<String>,
    pub roles: BTreeSet<RuleRole>,
    pub connections: BTreeSet<String>,
    pub tags: BTreeSet<String>,
    pub modes: BTreeSet<Mode>,
    #[schema(required)]
    pub schedule: Option<Schedule>,
    pub networks: BTreeSet<String>,
    pub max_credential_s: u32,
    /// The set of declarations that made it, and may remove it; empty: none.
    pub managed_by: String,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<StoredRule> for Rule {
    fn from(stored: StoredRule) -> Self {
        let spec = stored.rule.spec;
        Self {
            id: stored.rule.id,
            version: stored.version,
            name: stored.rule.name,
            description: spec.description,
            enabled: spec.enabled,
            groups: spec.groups,
            users: spec.users,
            roles: spec.roles.into_iter().filter_map(rule_role).collect(),
            connections: spec.connections,
            tags: spec.tags,
            modes: spec.modes.into_iter().map(Mode::from).collect(),
            schedule: spec.schedule.map(|schedule| Schedule {
                days: schedule.days.into_iter().map(day).collect(),
                from: schedule.from,
                until: schedule.until,
                timezone: schedule.timezone,
            }),
            networks: spec.networks.iter().map(ToString::to_string).collect(),
            max_credential_s: spec.max_credential_s,
            managed_by: spec.managed_by,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }
}

const fn rule_role(role: hoop_access::Role) -> Option<RuleRole> {
    match role {
        hoop_access::Role::Admin => Some(RuleRole::Admin),
        hoop_access::Role::Member => Some(RuleRole::Member),
        hoop_access::Role::Auditor => None,
    }
}

const fn day(day: hoop_access::Day) -> Day {
    match day {
        hoop_access::Day::Mon => Day::Mon,
        hoop_access::Day::Tue => Day::Tue,
        hoop_access::Day::Wed => Day::Wed,
        hoop_access::Day::Thu => Day::Thu,
        hoop_access::Day::Fri => Day::Fri,
        hoop_access::Day::Sat => Day::Sat,
        hoop_access::Day::Sun => Day::Sun,
    }
}

const fn stored_day(day: Day) -> hoop_access::Day {
    match day {
        Day::Mon => hoop_access::Day::Mon,
        Day::Tue => hoop_access::Day::Tue,
        Day::Wed => hoop_access::Day::Wed,
        Day::Thu => hoop_access::Day::Thu,
        Day::Fri => hoop_access::Day::Fri,
        Day::Sat => hoop_access::Day::Sat,
        Day::Sun => hoop_access::Day::Sun,
    }
}

/// Name and spec. A network is an address with a prefix length, or an address alone.
pub(crate) fn parts(new: RuleSettings) -> Result<(String, RuleSpec), Problem> {
    let network = |text: String| {
        let whole = text.parse().ok();
        let one = || text.parse::<std::net::IpAddr>().ok().map(Into::into);
        whole
            .or_else(one)
            .map(|network: ipnet::IpNet| network.trunc())
            .ok_or_else(|| {
                Problem::field(
                    "networks",
                    "networks must hold networks as 10.0.0.0/8 or 2001:db8::/32.",
                )
            })
    };
    let spec = RuleSpec {
        description: new.description,
        enabled: new.enabled,
        groups: new.groups,
        users: new.users.into_iter().map(|user| user.to_ascii_lowercase()).collect(),
        roles: new.roles.into_iter().map(Into::into).collect(),
        connections: new.connections,
        tags: new.tags,
        modes: new.modes.into_iter().map(Into::into).collect(),
        schedule: new.schedule.map(|schedule| hoop_access::Schedule {
            days: schedule.days.into_iter().map(stored_day).collect(),
            from: schedule.from,
            until: schedule.until,
            timezone: schedule.timezone,
        }),
        networks: new.networks.into_iter().map(network).collect::<Result<_, _>>()?,
        max_credential_s: new.max_credential_s,
        managed_by: new.managed_by,
    };
    Ok((new.name, spec))
}
