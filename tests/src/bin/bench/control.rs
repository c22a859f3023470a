//! `./dev bench control`: how long decisions and lists take with 50,000 users, 5,000 connections and 5,000 rules.
//!
//! The rows are written straight into a store of its own, for making them through the API would measure that. Decisions
//! are measured by themselves, over the rules as the gateway reads them, and through the API with all that surrounds one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hoop_access::{Circumstances, MODES, Mode, Object, Role, Rule, RuleSet, RuleSpec, Subject};
use hoop_tests::cluster::{Make, STORE};
use hoop_tests::hoop::{Hoop, Options, StoreKind};
use hoop_tests::http::Api;
use hoop_tests::process::eventually;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::lists;

/// Limits that are not what is measured, and the most that they may be.
const RATES: [&str; 4] = [
    "HOOP_ADDRESS_REQUESTS_PER_S",
    "HOOP_ADDRESS_REQUESTS_BURST",
    "HOOP_ACCOUNT_REQUESTS_PER_S",
    "HOOP_ACCOUNT_REQUESTS_BURST",
];
const RATE: &str = "1000000";

const USERS: usize = 50_000;
const CONNECTIONS: usize = 5_000;
const RULES: usize = 5_000;
const GROUPS: usize = 2_000;
const GROUPS_OF_USER: usize = 5;
const DECISIONS: usize = 200_000;
/// Questions of why somebody may use something.
const REQUESTS: usize = 200;
/// How long the gateway may take to know the rules.
const KNOWN: Duration = Duration::from_secs(60);
/// What issue 3 asks for.
const DECISION_GOAL_US: f64 = 1_000.0;
const LIST_GOAL_US: f64 = 100_000.0;

/// Groups follow from the number by primes, so that a person's are spread over the rules.
fn group(user: usize, nth: usize) -> usize {
    (user * 7 + nth * 613) % GROUPS
}

/// Connection `n` has the tag of its hundred. A rule gives a group one connection, ten by a pattern, or a tag.
fn spec(rule: usize) -> RuleSpec {
    let connection = (rule * 31) % CONNECTIONS;
    let mut spec = RuleSpec {
        groups: [format!("group-{}", rule % GROUPS)].into(),
        ..RuleSpec::default()
    };
    match rule % 3 {
        0 => spec.connections = [format!("c-{connection:05}")].into(),
        1 => spec.connections = [format!("c-{:04}*", connection / 10)].into(),
        _ => spec.tags = [format!("team-{}", connection / 100)].into(),
    }
    spec
}

async fn fill(hoop: &Hoop) -> Result<()> {
    let store = hoop.store.as_ref().context("no store of its own")?;
    let mut client = store.superuser(STORE).await?;
    let tx = client.transaction().await?;
    let users = format!(
        "insert into users (id, username, role, groups) select gen_random_uuid(), 'user-' || lpad(u::text, 5, '0'), \
         'member', (select array_agg('group-' || ((u * 7 + n * 613) % {GROUPS})) from generate_series(0, {}) n) \
         from generate_series(0, {}) u",
        GROUPS_OF_USER - 1,
        USERS - 1
    );
    tx.batch_execute(&users).await?;
    let connections = format!(
        "insert into connections (id, name, version, settings) select gen_random_uuid(), \
         'c-' || lpad(c::text, 5, '0'), 1, (select settings from connections limit 1) || \
         jsonb_build_object('tags', jsonb_build_array('team-' || c / 100), 'allow_members', false) \
         from generate_series(0, {}) c",
        CONNECTIONS - 1
    );
    tx.batch_execute(&connections).await?;
    let insert = tx
        .prepare("insert into access_rules (id, name, version, spec) values ($1, $2, 1, $3)")
        .await?;
    for rule in 0..RULES {
        let (id, name) = (Uuid::new_v4(), format!("rule-{rule:05}"));
        tx.execute(&insert, &[&id, &name, &serde_json::to_value(spec(rule))?])
            .await?;
    }
    let records = "insert into writer_log (writer, seq, at_us, kind, payload, prev_hash, hash) \
        select '00000000-0000-0000-0000-000000000001', n, n, case n % 3 when 0 then 'user.update' else 'session_heads' \
        end, json_build_object('by', json_build_object('user', 'user-' || n % 500), 'subject', 'user-' || n)::text, \
        '\\x00', '\\x00' from generate_series(1, 300000) n";
    tx.batch_execute(records).await?;
    tx.batch_execute(&lists::held()).await?;
    // one more version than the gateway knows, so that it takes these rules for newer ones
    tx.batch_execute("insert into policy_versions (kind, subject) values ('rule.create', 'bench')")
        .await?;
    tx.batch_execute("select publish_change('rules_changed', 'bench')")
        .await?;
    tx.commit().await?;
    client.batch_execute("analyze").await?;
    let known = format!(
        "/api/access/explain?user=user-00000&connection=c-{:05}",
        CONNECTIONS - 1
    );
    let whole = format!("/api/access/rules/rule-{:05}", RULES - 1);
    hoop.api.get(&whole).await?;
    eventually("the gateway knows the rules", KNOWN, async || {
        Ok(hoop.api.get(&known).await.ok())
    })
    .await?;
    Ok(())
}

const PASSWORD: &str = "correct horse battery";

/// One of each role; the member has the groups of `user-00000`.
async fn people(hoop: &Hoop) -> Result<Vec<(&'static str, Api)>> {
    let groups: Vec<String> = (0..GROUPS_OF_USER)
        .map(|nth| format!("group-{}", group(0, nth)))
        .collect();
    let base = &hoop.gateway()?.ready.api;
    let mut people = vec![("admin", hoop.api.clone())];
    for role in ["auditor", "member"] {
        let user = json!({"username": role, "password": PASSWORD, "role": role, "groups": groups});
        hoop.api.post("/api/users", user).await?;
        people.push((role, Api::login(base, role, PASSWORD).await?));
    }
    Ok(people)
}

/// Microseconds of what was measured, sorted.
struct Figures(Vec<f64>);

impl Figures {
    fn new(mut took_us: Vec<f64>) -> Self {
        took_us.sort_by(f64::total_cmp);
        Self(took_us)
    }

    fn at(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1) as f64;
        self.0.get((last * share).round() as usize).copied().unwrap_or_default()
    }
}

fn micros(took: Duration) -> f64 {
    took.as_secs_f64() * 1e6
}

/// Decisions about pairs of people and connections, half of which are allowed or could be.
fn decisions() -> Result<Figures> {
    let rule = |n| Rule {
        id: Uuid::from_u128(n as u128),
        name: format!("rule-{n:05}"),
        spec: spec(n),
    };
    let rules = RuleSet::new((0..RULES).map(rule).collect(), 1);
    let circumstances = Circumstances {
        mode: Mode::Native,
        using: None,
    };
    let modes = MODES.into();
    let (mut took, mut allowed) = (Vec::with_capacity(DECISIONS), 0);
    for n in 0..DECISIONS {
        let user = (n * 7919) % USERS;
        let groups: Vec<String> = (0..GROUPS_OF_USER)
            .map(|nth| format!("group-{}", group(user, nth)))
            .collect();
        // every second question is about a connection that a rule of the person's first group names
        let connection = match n % 2 {
            0 => (group(user, 0) * 31) % CONNECTIONS,
            _ => (n * 104_729) % CONNECTIONS,
        };
        let (username, name) = (format!("user-{user:05}"), format!("c-{connection:05}"));
        let tags = [format!("team-{}", connection / 100)];
        let subject = Subject {
            username: &username,
            role: Role::Member,
            groups: &groups,
            active: true,
        };
        let object = Object {
            name: &name,
            tags: &tags,
            modes: &modes,
            open_to_members: false,
            deleted: false,
        };
        let began = Instant::now();
        let decision = rules.decide(&subject, &object, &circumstances);
        took.push(micros(began.elapsed()));
        allowed += usize::from(decision.is_allowed());
    }
    ensure!(
        allowed > DECISIONS / 3 && allowed < DECISIONS,
        "{allowed} of {DECISIONS} were allowed"
    );
    Ok(Figures::new(took))
}

async fn requests(api: &Api, path: impl Fn(usize) -> String, many: usize) -> Result<Figures> {
    let mut took = Vec::new();
    for n in 0..many {
        let path = path(n);
        let began = Instant::now();
        let answer = api.send("GET", &path, None).await?;
        took.push(micros(began.elapsed()));
        if answer.status != 200 {
            bail!("{path}: {}", answer.text());
        }
    }
    Ok(Figures::new(took))
}

/// Measures, prints and writes all of it.
pub async fn measure(out: Option<&Path>) -> Result<()> {
    let mut rows = vec![("decision".to_owned(), decisions()?, DECISION_GOAL_US)];
    let hoop = Hoop::with(Options {
        store: StoreKind::Own,
        store_make: Make::default(),
        agents: 0,
        // One account asks, as fast as it is answered.
        gateway_env: RATES.map(|name| (name.to_owned(), RATE.to_owned())).to_vec(),
        ..Options::default()
    })
    .await?;
    fill(&hoop).await?;
    let spread = |n: usize, of: usize| (n * 7919) % of;
    let explain = |n| {
        format!(
            "/api/access/explain?user=user-{:05}&connection=c-{:05}",
            spread(n, USERS),
            spread(n, CONNECTIONS)
        )
    };
    let explained = requests(&hoop.api, explain, REQUESTS).await?;
    rows.push(("GET explain".to_owned(), explained, LIST_GOAL_US));
    for (who, api) in people(&hoop).await? {
        for path in lists::paths(&api, who).await? {
            let figures = requests(&api, |_| path.clone(), lists::REQUESTS).await?;
            rows.push((format!("{who} {path}"), figures, LIST_GOAL_US));
        }
    }

    println!(
        "{:<72} {:>10} {:>10} {:>10} {:>10}",
        "µs", "p50", "p99", "max", "goal p99"
    );
    let mut written = Vec::new();
    for (name, figures, goal) in &rows {
        let (p50, p99, max) = (figures.at(0.5), figures.at(0.99), figures.at(1.0));
        println!("{name:<72} {p50:>10.1} {p99:>10.1} {max:>10.1} {goal:>10}");
        written.push(json!({"case": name, "unit": "us", "p50": p50, "p99": p99, "max": max, "goal_p99": goal, "met": p99 < *goal}));
    }
    if let Some(out) = out {
        let report =
            json!({"users": USERS, "connections": CONNECTIONS, "rules": RULES, "cases": Value::Array(written)});
        fs::write(out, serde_json::to_vec_pretty(&report)?)?;
        println!("written: {}", out.display());
    }
    Ok(())
}
