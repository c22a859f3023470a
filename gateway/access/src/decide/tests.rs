//! The whole matrix, as tables.

use proptest::prelude::*;

use super::*;
use crate::rule::{MODES, RuleSpec};
use crate::schedule::{Day, Schedule};

fn strings(entries: &[&str]) -> BTreeSet<String> {
    entries.iter().map(|&entry| entry.to_owned()).collect()
}

fn rule(name: &str, spec: RuleSpec) -> Rule {
    Rule {
        id: Uuid::from_u128(name.bytes().fold(1, |hash, byte| hash * 257 + u128::from(byte))),
        name: name.into(),
        spec,
    }
}

fn sre() -> RuleSpec {
    RuleSpec {
        groups: strings(&["sre"]),
        connections: strings(&["prod-*", "billing"]),
        ..RuleSpec::default()
    }
}

struct Case {
    role: Role,
    groups: Vec<String>,
    active: bool,
    name: &'static str,
    tags: Vec<String>,
    open: bool,
    offered: BTreeSet<Mode>,
    deleted: bool,
    mode: Mode,
    using: Option<(DateTime<Utc>, IpAddr)>,
}

impl Case {
    fn new() -> Self {
        Self {
            role: Role::Member,
            groups: vec!["sre".into()],
            active: true,
            name: "prod-db",
            tags: vec![],
            open: false,
            offered: MODES.into(),
            deleted: false,
            mode: Mode::Native,
            using: Some((at("2026-11-24T10:00:00Z"), "192.0.2.7".parse().expect("address"))),
        }
    }

    fn explain(&self, rules: Vec<Rule>) -> Explanation {
        let subject = Subject {
            username: "ada",
            role: self.role,
            groups: &self.groups,
            active: self.active,
        };
        let object = Object {
            name: self.name,
            tags: &self.tags,
            open_to_members: self.open,
            modes: &self.offered,
            deleted: self.deleted,
        };
        let circumstances = Circumstances {
            mode: self.mode,
            using: self.using,
        };
        RuleSet::new(rules, 1).explain(&subject, &object, &circumstances)
    }

    fn allowed(&self, rules: Vec<Rule>) -> bool {
        self.explain(rules).decision.is_allowed()
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

fn with(change: impl FnOnce(&mut Case)) -> Case {
    let mut case = Case::new();
    change(&mut case);
    case
}

#[test]
fn nothing_is_allowed_without_a_rule() {
    for role in [Role::Admin, Role::Auditor, Role::Member] {
        assert!(!with(|case| case.role = role).allowed(vec![]));
    }
}

/// Person × connection × what no rule overcomes.
#[test]
fn a_rule_allows_whom_and_what_it_names() {
    let rules = || vec![rule("sre-prod", sre())];
    let table: [(&str, bool, Case); 11] = [
        ("its group, a name with a star", true, Case::new()),
        ("its group, a whole name", true, with(|case| case.name = "billing")),
        (
            "a name that only begins alike",
            false,
            with(|case| case.name = "billing2"),
        ),
        ("another name", false, with(|case| case.name = "stage-db")),
        ("another group", false, with(|case| case.groups = vec!["dev".into()])),
        ("no group", false, with(|case| case.groups.clear())),
        (
            "one of several groups",
            true,
            with(|case| case.groups.push("dev".into())),
        ),
        ("an admin of the group", true, with(|case| case.role = Role::Admin)),
        ("an auditor of the group", false, with(|case| case.role = Role::Auditor)),
        ("somebody who was shut out", false, with(|case| case.active = false)),
        ("a connection that is gone", false, with(|case| case.deleted = true)),
    ];
    for (what, allowed, case) in table {
        assert_eq!(case.allowed(rules()), allowed, "{what}");
    }
}

#[test]
fn users_roles_and_tags_are_other_ways_to_name() {
    let by_user = RuleSpec {
        groups: BTreeSet::new(),
        users: strings(&["ada"]),
        ..sre()
    };
    let by_role = RuleSpec {
        groups: BTreeSet::new(),
        roles: [Role::Admin].into(),
        ..sre()
    };
    let by_tag = RuleSpec {
        connections: BTreeSet::new(),
        tags: strings(&["env:prod"]),
        ..sre()
    };
    let nobody = |case: &mut Case| case.groups.clear();
    assert!(with(nobody).allowed(vec![rule("r", by_user)]));
    assert!(!with(nobody).allowed(vec![rule("r", by_role.clone())]));
    assert!(
        with(|case| {
            nobody(case);
            case.role = Role::Admin;
        })
        .allowed(vec![rule("r", by_role)])
    );
    assert!(!Case::new().allowed(vec![rule("r", by_tag.clone())]));
    assert!(with(|case| case.tags = vec!["env:prod".into(), "eu".into()]).allowed(vec![rule("r", by_tag)]));
}

/// Each condition alone denies, and its obstacle is named.
#[test]
fn every_condition_must_hold() {
    let office = Schedule {
        days: [Day::Tue].into(),
        from: "09:00".into(),
        until: "17:00".into(),
        timezone: "UTC".into(),
    };
    let strict = || RuleSpec {
        modes: [Mode::Native].into(),
        schedule: Some(office.clone()),
        networks: ["192.0.2.0/24".parse().expect("network")].into(),
        ..sre()
    };
    let table: [(Option<Obstacle>, Case); 6] = [
        (None, Case::new()),
        (Some(Obstacle::Mode), with(|case| case.mode = Mode::Web)),
        (Some(Obstacle::Person), with(|case| case.groups.clear())),
        (Some(Obstacle::Connection), with(|case| case.name = "other")),
        (
            Some(Obstacle::Schedule),
            with(|case| case.using = case.using.map(|(_, from)| (at("2026-11-24T17:00:00Z"), from))),
        ),
        (
            Some(Obstacle::Network),
            with(|case| {
                case.using = case
                    .using
                    .map(|(now, _)| (now, "198.51.100.1".parse().expect("address")))
            }),
        ),
    ];
    for (obstacle, case) in table {
        let explained = case.explain(vec![rule("strict", strict())]);
        assert_eq!(explained.decision.is_allowed(), obstacle.is_none(), "{obstacle:?}");
        let tried = explained.tried.first().expect("the rule");
        assert_eq!(tried.obstacles, Vec::from_iter(obstacle), "{}", explained.summary);
    }
    let disabled = RuleSpec {
        enabled: false,
        ..strict()
    };
    let explained = Case::new().explain(vec![rule("strict", disabled)]);
    assert!(
        !explained.decision.is_allowed() && explained.summary.contains("disabled"),
        "{}",
        explained.summary
    );
    // A credential is made at any time from anywhere; its use is asked again.
    assert!(with(|case| case.using = None).allowed(vec![rule("strict", strict())]));
    let mapped = with(|case| {
        case.using = case
            .using
            .map(|(now, _)| (now, "::ffff:192.0.2.9".parse().expect("address")))
    });
    assert!(
        mapped.allowed(vec![rule("strict", strict())]),
        "IPv4 in IPv6 is the same address"
    );
}

#[test]
fn several_rules_give_the_most_generous_of_each() {
    let short = RuleSpec {
        max_credential_s: 600,
        ..sre()
    };
    let until = Schedule {
        days: [Day::Tue].into(),
        from: "09:00".into(),
        until: "17:00".into(),
        timezone: "UTC".into(),
    };
    let longer = RuleSpec {
        max_credential_s: 3600,
        schedule: Some(until),
        ..sre()
    };
    let both = Case::new().explain(vec![rule("short", short), rule("longer", longer.clone())]);
    let Decision::Allowed {
        by,
        max_credential_s,
        until,
    } = both.decision
    else {
        panic!("denied");
    };
    assert_eq!((by.len(), max_credential_s, until), (2, Some(3600), None));
    let alone = Case::new().explain(vec![rule("longer", longer)]);
    assert!(matches!(alone.decision, Decision::Allowed { until: Some(end), .. } if end == at("2026-11-24T17:00:00Z")));
}

#[test]
fn a_connection_that_is_open_to_members_is_open_to_members_alone() {
    let open = |role| {
        with(|case| {
            case.open = true;
            case.groups.clear();
            case.role = role;
        })
        .allowed(vec![])
    };
    assert!(open(Role::Member));
    assert!(!open(Role::Auditor) && !open(Role::Admin));
}

#[test]
fn a_mode_that_the_connection_does_not_offer_is_allowed_by_no_rule() {
    let web_only = with(|case| case.offered = [Mode::Web].into());
    let explained = web_only.explain(vec![rule("sre", sre())]);
    assert!(!explained.decision.is_allowed());
    assert!(
        explained.summary.contains("does not offer this mode"),
        "{}",
        explained.summary
    );
    let in_the_browser = with(|case| {
        case.offered = [Mode::Web].into();
        case.mode = Mode::Web;
    });
    assert!(in_the_browser.allowed(vec![rule("sre", sre())]));
}

#[test]
fn a_summary_says_what_would_change_it() {
    let outside = with(|case| case.groups.clear()).explain(vec![rule("sre-prod", sre())]);
    assert_eq!(
        outside.summary,
        "ada may not use prod-db: the rule sre-prod allows it to the groups sre."
    );
    let auditor = with(|case| case.role = Role::Auditor).explain(vec![rule("sre-prod", sre())]);
    assert_eq!(
        auditor.summary,
        "ada may not use prod-db: auditors read, and reach nothing."
    );
    let none = with(|case| case.name = "x").explain(vec![]);
    assert!(none.summary.contains("no rule speaks of both"), "{}", none.summary);
}

fn spec() -> impl Strategy<Value = RuleSpec> {
    let names = prop::collection::btree_set("[ab]", 0..3);
    let connections = prop::collection::btree_set(prop_oneof!["[xy]", Just("*".to_owned()), "x\\*"], 0..3);
    let modes = prop::collection::btree_set(prop::sample::select(MODES.to_vec()), 0..4);
    (any::<bool>(), names.clone(), names, connections, modes).prop_map(|(enabled, groups, tags, connections, modes)| {
        RuleSpec {
            enabled,
            groups,
            tags,
            connections,
            modes,
            ..RuleSpec::default()
        }
    })
}

proptest! {
    /// What may be used is within the reach, so that a list narrowed to it misses nothing.
    #[test]
    fn whatever_is_allowed_is_within_reach(
        specs in prop::collection::vec(spec(), 0..12), group in "[abc]", name in "[xyz]", open in any::<bool>(),
        role in prop::sample::select(vec![Role::Admin, Role::Auditor, Role::Member]),
    ) {
        let rules = specs.into_iter().enumerate().map(|(number, spec)| rule(&format!("r{number}"), spec));
        let rules = RuleSet::new(rules.collect(), 1);
        let (groups, tags, modes) = ([group], ["a".to_owned()], MODES.into());
        let subject = Subject { username: "ada", role, groups: &groups, active: true };
        let object = Object { name: &name, tags: &tags, modes: &modes, open_to_members: open, deleted: false };
        let reach = rules.reach(&subject);
        let within = reach.names.contains(&name)
            || reach.beginnings.iter().any(|beginning| name.starts_with(beginning))
            || tags.iter().any(|tag| reach.tags.contains(tag))
            || (open && reach.open_to_members);
        let ever = |mode| Circumstances { mode, using: None };
        let allowed = MODES.iter().any(|mode| rules.decide(&subject, &object, &ever(*mode)).is_allowed());
        prop_assert!(within || !allowed);
        prop_assert!(!reach.is_everything() || within);
        let nobody = rules.reach(&Subject { active: false, ..subject });
        prop_assert_eq!(nobody, crate::Reach::default());
    }

    /// The index and the plain reading of each rule agree: something is allowed exactly where a rule has no obstacle.
    #[test]
    fn a_decision_and_its_explanation_agree(specs in prop::collection::vec(spec(), 0..12), group in "[abc]", name in "[xyz]") {
        let rules: Vec<Rule> = specs
            .into_iter()
            .enumerate()
            .map(|(number, spec)| rule(&format!("r{number}"), spec))
            .collect();
        let case = with(|case| {
            case.groups = vec![group];
            case.name = if name == "x" { "x" } else { "y" };
            case.tags = vec!["a".into()];
        });
        let explained = case.explain(rules);
        let free = explained.tried.iter().any(|tried| tried.obstacles.is_empty());
        prop_assert_eq!(explained.decision.is_allowed(), free);
    }
}
