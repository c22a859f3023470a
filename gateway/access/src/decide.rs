//! The one decision: may this person use this connection, in this way, now, from here?

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::rule::{Mode, Role, Rule};

/// Rules that an explanation shows at most, the nearest first.
pub const EXPLAINED_RULES_MAX: usize = 50;
/// Names of allowing rules that a decision carries at most.
const NAMED_RULES_MAX: usize = 8;
/// How a connection that is open to all members is named where a rule would be.
const OPEN_TO_MEMBERS: &str = "open to members";

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub username: &'a str,
    pub role: Role,
    pub groups: &'a [String],
    pub active: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a> {
    pub name: &'a str,
    pub tags: &'a [String],
    /// The connection's own setting: every member may use it, in every way.
    pub open_to_members: bool,
    /// The ways in which it can be used at all.
    pub modes: &'a BTreeSet<Mode>,
    pub deleted: bool,
}

/// How, when and from where.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    pub mode: Mode,
    /// The moment of use and the client's address. `None` asks whether it may be at *some* time from *somewhere*, as
    /// when a credential is made that will be used later; schedules and networks are asked at its use.
    pub using: Option<(DateTime<Utc>, IpAddr)>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allowed {
        /// Names of rules that allow it, at most eight.
        by: Vec<String>,
        /// Longest life of a credential, in seconds; `None`: no limit but the gateway's own.
        max_credential_s: Option<u32>,
        /// When the last of the allowing rules' windows closes; `None`: never.
        until: Option<DateTime<Utc>>,
    },
    Denied,
}

impl Decision {
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

/// Why a rule does not allow something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    Disabled,
    /// It is about other people.
    Person,
    /// It is about other connections.
    Connection,
    Mode,
    /// Its schedule is shut now.
    Schedule,
    Network,
}

/// A rule and what keeps it from allowing; nothing where it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    pub id: Uuid,
    pub rule: String,
    pub obstacles: Vec<Obstacle>,
}

/// A decision with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub decision: Decision,
    /// For a person: one sentence that says why, and what would change it.
    pub summary: String,
    /// The nearest rules, those that allow first.
    pub tried: Vec<Tried>,
}

/// All rules, ready to be asked.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
    by_group: HashMap<String, Vec<usize>>,
    by_user: HashMap<String, Vec<usize>>,
    by_role: HashMap<Role, Vec<usize>>,
    /// Of the policy: the number of the change that this is the state after.
    version: i64,
}

impl RuleSet {
    #[must_use]
    pub fn new(rules: Vec<Rule>, version: i64) -> Self {
        let mut set = Self {
            version,
            ..Self::default()
        };
        for (at, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.spec.enabled) {
            for group in &rule.spec.groups {
                set.by_group.entry(group.clone()).or_default().push(at);
            }
            for user in &rule.spec.users {
                set.by_user.entry(user.clone()).or_default().push(at);
            }
            for role in &rule.spec.roles {
                set.by_role.entry(*role).or_default().push(at);
            }
        }
        set.rules = rules;
        set
    }

    #[must_use]
    pub const fn version(&self) -> i64 {
        self.version
    }

    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Rules that speak of this person, each once.
    pub(crate) fn of_person(&self, subject: &Subject<'_>) -> impl Iterator<Item = &Rule> {
        let groups = subject.groups.iter().filter_map(|group| self.by_group.get(group));
        let lists = groups
            .chain(self.by_user.get(subject.username))
            .chain(self.by_role.get(&subject.role));
        let mut found: Vec<usize> = lists.flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().filter_map(|at| self.rules.get(at))
    }

    /// Deny by default; a person who is not active, an auditor, and a mode that the connection does not offer are denied
    /// whatever rules say.
    #[must_use]
    pub fn decide(&self, subject: &Subject<'_>, object: &Object<'_>, circumstances: &Circumstances) -> Decision {
        if barred(subject, object, circumstances.mode).is_some() {
            return Decision::Denied;
        }
        let mut leave = Leave::default();
        if object.open_to_members && subject.role == Role::Member {
            leave.add(OPEN_TO_MEMBERS, None, None);
        }
        for rule in self.of_person(subject) {
            if reaches(rule, object) && allows_mode(rule, circumstances.mode) && from_network(rule, circumstances) {
                match window(rule, circumstances) {
                    Window::Open => leave.add(&rule.name, limit(rule), None),
                    Window::OpenUntil(end) => leave.add(&rule.name, limit(rule), Some(end)),
                    Window::Shut => {}
                }
            }
        }
        leave.decision()
    }

    /// The same decision, with the reasons.
    #[must_use]
    pub fn explain(&self, subject: &Subject<'_>, object: &Object<'_>, circumstances: &Circumstances) -> Explanation {
        let decision = self.decide(subject, object, circumstances);
        let tried: Vec<Tried> = self
            .nearest(subject, object, circumstances)
            .into_iter()
            .map(|(_, rule)| Tried {
                id: rule.id,
                rule: rule.name.clone(),
                obstacles: obstacles(rule, subject, object, circumstances).collect(),
            })
            .collect();
        let summary = self.summary(&decision, subject, object, circumstances.mode, &tried);
        Explanation {
            decision,
            summary,
            tried,
        }
    }

    /// At most `EXPLAINED_RULES_MAX`, each with its distance, the nearest first. Only those are put in order.
    fn nearest(&self, subject: &Subject<'_>, object: &Object<'_>, circumstances: &Circumstances) -> Vec<(u32, &Rule)> {
        let far = |rule| {
            let met = obstacles(rule, subject, object, circumstances);
            met.map(|obstacle| distance(obstacle, rule)).sum()
        };
        let mut near: Vec<(u32, &Rule)> = self.rules.iter().map(|rule| (far(rule), rule)).collect();
        let order = |(far, a): &(u32, &Rule), (farther, b): &(u32, &Rule)| far.cmp(farther).then(a.name.cmp(&b.name));
        if near.len() > EXPLAINED_RULES_MAX {
            near.select_nth_unstable_by(EXPLAINED_RULES_MAX, order);
            near.truncate(EXPLAINED_RULES_MAX);
        }
        near.sort_unstable_by(order);
        near
    }

    fn summary(
        &self,
        decision: &Decision,
        subject: &Subject<'_>,
        object: &Object<'_>,
        mode: Mode,
        tried: &[Tried],
    ) -> String {
        let (who, what) = (subject.username, object.name);
        if let Decision::Allowed { by, .. } = decision {
            return format!("{who} may use {what}: allowed by {}.", by.join(", "));
        }
        if let Some(bar) = barred(subject, object, mode) {
            return format!("{who} may not use {what}: {bar}.");
        }
        let Some(nearest) = tried.first().filter(|tried| tried.obstacles.len() == 1) else {
            return format!(
                "{who} may not use {what}: no rule speaks of both. Add one, or put {who} into a group of one."
            );
        };
        let rule = &nearest.rule;
        let why = match nearest.obstacles.first() {
            Some(Obstacle::Person) => format!("the rule {rule} allows it to {}", self.people(nearest.id)),
            Some(Obstacle::Disabled) => format!("the rule {rule} would allow it, but is disabled"),
            Some(Obstacle::Mode) => format!("the rule {rule} allows other modes only"),
            Some(Obstacle::Schedule) => format!("the rule {rule} allows it at other times only"),
            Some(Obstacle::Network) => format!("the rule {rule} allows it from other networks only"),
            Some(Obstacle::Connection) | None => "no rule speaks of this connection".to_owned(),
        };
        format!("{who} may not use {what}: {why}.")
    }

    fn people(&self, id: Uuid) -> String {
        let Some(rule) = self.rules.iter().find(|rule| rule.id == id) else {
            return "others".to_owned();
        };
        let list = |what: &str, names: &BTreeSet<String>| {
            let some: Vec<&str> = names.iter().take(NAMED_RULES_MAX).map(String::as_str).collect();
            (!some.is_empty()).then(|| format!("the {what} {}", some.join(", ")))
        };
        let roles: BTreeSet<String> = rule.spec.roles.iter().map(|role| role.as_str().to_owned()).collect();
        let parts: Vec<String> = [
            list("groups", &rule.spec.groups),
            list("users", &rule.spec.users),
            list("roles", &roles),
        ]
        .into_iter()
        .flatten()
        .collect();
        parts.join(" and ")
    }
}

/// What no rule can overcome.
fn barred(subject: &Subject<'_>, object: &Object<'_>, mode: Mode) -> Option<&'static str> {
    if object.deleted {
        Some("the connection was deleted")
    } else if !subject.active {
        Some("the account is not active")
    } else if subject.role == Role::Auditor {
        Some("auditors read, and reach nothing")
    } else if !object.modes.contains(&mode) {
        Some("the connection itself does not offer this mode")
    } else {
        None
    }
}

fn speaks_of(rule: &Rule, subject: &Subject<'_>) -> bool {
    let spec = &rule.spec;
    spec.roles.contains(&subject.role)
        || spec.users.contains(subject.username)
        || subject.groups.iter().any(|group| spec.groups.contains(group))
}

fn reaches(rule: &Rule, object: &Object<'_>) -> bool {
    let spec = &rule.spec;
    spec.connections.contains(object.name)
        || object.tags.iter().any(|tag| spec.tags.contains(tag))
        || spec
            .connections
            .iter()
            .filter_map(|name| name.strip_suffix('*'))
            .any(|start| object.name.starts_with(start))
}

fn allows_mode(rule: &Rule, mode: Mode) -> bool {
    rule.spec.modes.contains(&mode)
}

/// IPv4 addresses count the same when they come mapped into IPv6.
fn from_network(rule: &Rule, circumstances: &Circumstances) -> bool {
    let networks = &rule.spec.networks;
    match circumstances.using {
        Some((_, address)) if !networks.is_empty() => {
            let address = address.to_canonical();
            networks.iter().any(|network| network.contains(&address))
        }
        _ => true,
    }
}

enum Window {
    Open,
    OpenUntil(DateTime<Utc>),
    Shut,
}

fn window(rule: &Rule, circumstances: &Circumstances) -> Window {
    match (&rule.spec.schedule, circumstances.using) {
        (Some(schedule), Some((now, _))) => schedule.open_until(now).map_or(Window::Shut, Window::OpenUntil),
        _ => Window::Open,
    }
}

const fn limit(rule: &Rule) -> Option<u32> {
    match rule.spec.max_credential_s {
        0 => None,
        seconds => Some(seconds),
    }
}

fn obstacles(
    rule: &Rule,
    subject: &Subject<'_>,
    object: &Object<'_>,
    circumstances: &Circumstances,
) -> impl Iterator<Item = Obstacle> + use<> {
    let shut = matches!(window(rule, circumstances), Window::Shut);
    let checks = [
        (!rule.spec.enabled, Obstacle::Disabled),
        (!speaks_of(rule, subject), Obstacle::Person),
        (!reaches(rule, object), Obstacle::Connection),
        (!allows_mode(rule, circumstances.mode), Obstacle::Mode),
        (shut, Obstacle::Schedule),
        (!from_network(rule, circumstances), Obstacle::Network),
    ];
    checks
        .into_iter()
        .filter_map(|(stands, obstacle)| stands.then_some(obstacle))
}

/// How far an obstacle keeps a rule from allowing, for the order of an explanation: another hour or network is nearer than
/// another group, a group nearer than another role.
fn distance(obstacle: Obstacle, rule: &Rule) -> u32 {
    match obstacle {
        Obstacle::Disabled | Obstacle::Mode | Obstacle::Schedule | Obstacle::Network => 1,
        Obstacle::Person if rule.spec.groups.is_empty() => 3,
        Obstacle::Person => 2,
        Obstacle::Connection => 6,
    }
}

/// What all allowing rules together give: the most generous of each.
#[derive(Default)]
struct Leave {
    by: Vec<String>,
    allowed: bool,
    unlimited: bool,
    max_credential_s: u32,
    unbounded: bool,
    until: Option<DateTime<Utc>>,
}

impl Leave {
    fn add(&mut self, rule: &str, max_credential_s: Option<u32>, until: Option<DateTime<Utc>>) {
        self.allowed = true;
        if self.by.len() < NAMED_RULES_MAX {
            self.by.push(rule.to_owned());
        }
        match max_credential_s {
            None => self.unlimited = true,
            Some(seconds) => self.max_credential_s = self.max_credential_s.max(seconds),
        }
        match until {
            None => self.unbounded = true,
            Some(end) => self.until = self.until.max(Some(end)),
        }
    }

    fn decision(self) -> Decision {
        if !self.allowed {
            return Decision::Denied;
        }
        Decision::Allowed {
            by: self.by,
            max_credential_s: (!self.unlimited).then_some(self.max_credential_s),
            until: if self.unbounded { None } else { self.until },
        }
    }
}

#[cfg(test)]
mod tests;
