//! Every list, in each of its orders and by each of its filters.

use hoop_access::{Role, Rule, RuleSet, RuleSpec, Subject};
use uuid::Uuid;

use super::{FEW, ROWS, TOUCHED_MAX, full, orders};
use crate::connections::{CONNECTIONS, ConnectionFilter};
use crate::credentials::{CREDENTIALS, CredentialFilter, CredentialState};
use crate::list::PAGE_MAX;
use crate::personal_tokens::{PERSONAL_TOKENS, TokenFilter, TokenState};
use crate::rules::{RULES, RuleFilter};
use crate::sessions::{SESSIONS, SessionFilter};
use crate::ssh_keys::{SSH_KEYS, SshKeyFilter};
use crate::users::{USERS, UserFilter};

fn few() -> Option<String> {
    Some("few".into())
}

#[tokio::test]
async fn lists_of_users_read_what_they_show() {
    let Some(store) = full().await else { return };
    let filters = [
        ("all", UserFilter::default()),
        (
            "admins",
            UserFilter {
                role: Some(Role::Admin),
                ..UserFilter::default()
            },
        ),
        (
            "members",
            UserFilter {
                role: Some(Role::Member),
                ..UserFilter::default()
            },
        ),
        (
            "auditors",
            UserFilter {
                role: Some(Role::Auditor),
                ..UserFilter::default()
            },
        ),
        (
            "a small group",
            UserFilter {
                group: few(),
                ..UserFilter::default()
            },
        ),
        (
            "a large group",
            UserFilter {
                group: Some("all".into()),
                ..UserFilter::default()
            },
        ),
        (
            "no group",
            UserFilter {
                group: Some("none".into()),
                ..UserFilter::default()
            },
        ),
        (
            "active",
            UserFilter {
                active: Some(true),
                ..UserFilter::default()
            },
        ),
        (
            "inactive",
            UserFilter {
                active: Some(false),
                ..UserFilter::default()
            },
        ),
        (
            "services",
            UserFilter {
                service: Some(true),
                ..UserFilter::default()
            },
        ),
        (
            "people",
            UserFilter {
                service: Some(false),
                ..UserFilter::default()
            },
        ),
    ];
    for (what, filter) in &filters {
        orders(&USERS, what, TOUCHED_MAX, async |window| {
            store.list_users(filter, &window).await
        })
        .await;
    }
    // a text may stand anywhere: each user is looked at, once
    let filter = UserFilter {
        q: Some("zzz".into()),
        ..UserFilter::default()
    };
    orders(&USERS, "with a text", (ROWS + FEW) as f64, async |window| {
        store.list_users(&filter, &window).await
    })
    .await;
}

#[tokio::test]
async fn lists_of_connections_read_what_they_show() {
    let Some(store) = full().await else { return };
    let filters = [
        ("all", ConnectionFilter::default()),
        (
            "of an agent",
            ConnectionFilter {
                agent: few(),
                ..ConnectionFilter::default()
            },
        ),
        (
            "of an owner",
            ConnectionFilter {
                owner: few(),
                ..ConnectionFilter::default()
            },
        ),
        (
            "with a tag",
            ConnectionFilter {
                tag: few(),
                ..ConnectionFilter::default()
            },
        ),
        (
            "of a protocol",
            ConnectionFilter {
                protocol: Some("postgres".into()),
                ..ConnectionFilter::default()
            },
        ),
        (
            "of no protocol",
            ConnectionFilter {
                protocol: Some("none".into()),
                ..ConnectionFilter::default()
            },
        ),
    ];
    for (what, filter) in &filters {
        let list = async |window| store.list_connections(filter, &window, None, |_| true).await;
        orders(&CONNECTIONS, what, TOUCHED_MAX, list).await;
    }
    let filter = ConnectionFilter {
        q: Some("zzz".into()),
        ..ConnectionFilter::default()
    };
    let list = async |window| store.list_connections(&filter, &window, None, |_| true).await;
    orders(&CONNECTIONS, "with a text", (ROWS + FEW) as f64, list).await;
}

/// By name, by beginning, by tag and by being open to members; and everything.
#[tokio::test]
async fn a_members_list_of_connections_reads_what_the_rules_speak_of() {
    let Some(store) = full().await else { return };
    let entries = |entries: &[&str]| entries.iter().map(|&entry| entry.to_owned()).collect();
    let rules = |connections: &[&str], tags: &[&str]| {
        let spec = RuleSpec {
            groups: entries(&["sre"]),
            connections: connections.iter().map(|&entry| entry.to_owned()).collect(),
            tags: tags.iter().map(|&entry| entry.to_owned()).collect(),
            ..RuleSpec::default()
        };
        let rule = Rule {
            id: Uuid::nil(),
            name: "sre".into(),
            spec,
        };
        RuleSet::new(vec![rule], 1)
    };
    let subject = Subject {
        username: "ada",
        role: Role::Member,
        groups: &["sre".into()],
        active: true,
    };
    let cases = [
        (
            rules(&["c-00007", "c-0041*", "nothing"], &[]),
            vec!["c-00007", "c-00410", "c-00419"],
        ),
        (rules(&[], &["few"]), vec!["c-00300", "c-05700"]),
        (rules(&[], &[]), vec!["c-00003", "c-05703"]),
        (rules(&["*"], &[]), vec!["c-00000", "c-00001"]),
    ];
    for (rules, seen) in &cases {
        let reach = rules.reach(&subject);
        let filter = ConnectionFilter::default();
        let list = async |window| store.list_connections(&filter, &window, Some(&reach), |_| true).await;
        orders(&CONNECTIONS, &format!("within {reach:?}"), TOUCHED_MAX, list).await;
        let whole = list(CONNECTIONS.first(PAGE_MAX)).await.unwrap().rows;
        for name in seen {
            assert!(
                whole.iter().any(|connection| connection.name == *name),
                "{name}: {reach:?}"
            );
        }
        assert!(
            reach.is_everything() || whole.len() <= 2 * FEW,
            "{}: {reach:?}",
            whole.len()
        );
    }
}

#[tokio::test]
async fn lists_of_rules_read_what_they_show() {
    let Some(store) = full().await else { return };
    let filters = [
        ("all", RuleFilter::default()),
        (
            "of a group",
            RuleFilter {
                group: few(),
                ..RuleFilter::default()
            },
        ),
        (
            "of a user",
            RuleFilter {
                user: Some("USER-00007".into()),
                ..RuleFilter::default()
            },
        ),
        (
            "of a role",
            RuleFilter {
                role: Some(Role::Admin),
                ..RuleFilter::default()
            },
        ),
        (
            "of a connection",
            RuleFilter {
                connection: Some("c-00007".into()),
                ..RuleFilter::default()
            },
        ),
        (
            "with a tag",
            RuleFilter {
                tag: few(),
                ..RuleFilter::default()
            },
        ),
        (
            "enabled",
            RuleFilter {
                enabled: Some(true),
                ..RuleFilter::default()
            },
        ),
        (
            "disabled",
            RuleFilter {
                enabled: Some(false),
                ..RuleFilter::default()
            },
        ),
    ];
    for (what, filter) in &filters {
        orders(&RULES, what, TOUCHED_MAX, async |window| {
            store.list_rules(filter, &window).await
        })
        .await;
    }
    let filter = RuleFilter {
        q: Some("zzz".into()),
        ..RuleFilter::default()
    };
    orders(&RULES, "with a text", (ROWS + FEW) as f64, async |window| {
        store.list_rules(&filter, &window).await
    })
    .await;
}

#[tokio::test]
async fn lists_of_what_people_hold_read_what_they_show() {
    let Some(store) = full().await else { return };
    let id = store.find_user("user-00007").await.unwrap().map(|user| user.id);
    let user = || Some("user-00007".to_owned());
    let of_states = |state| CredentialFilter {
        state: Some(state),
        ..CredentialFilter::default()
    };
    let credentials = [
        ("all", CredentialFilter::default()),
        (
            "of a person",
            CredentialFilter {
                user: user(),
                ..CredentialFilter::default()
            },
        ),
        (
            "of a member",
            CredentialFilter {
                user_id: id,
                ..CredentialFilter::default()
            },
        ),
        (
            "of a connection",
            CredentialFilter {
                connection: Some("c-00007".into()),
                ..CredentialFilter::default()
            },
        ),
        ("revoked", of_states(CredentialState::Revoked)),
    ];
    for (what, filter) in &credentials {
        orders(&CREDENTIALS, what, TOUCHED_MAX, async |window| {
            store.list_credentials(filter, &window).await
        })
        .await;
    }
    let of_state = |state| TokenFilter {
        state: Some(state),
        ..TokenFilter::default()
    };
    let tokens = [
        ("all", TokenFilter::default()),
        (
            "of a person",
            TokenFilter {
                user: user(),
                ..TokenFilter::default()
            },
        ),
        (
            "of a member",
            TokenFilter {
                user_id: id,
                ..TokenFilter::default()
            },
        ),
        ("revoked", of_state(TokenState::Revoked)),
    ];
    for (what, filter) in &tokens {
        let list = async |window| store.list_personal_tokens(filter, &window).await;
        orders(&PERSONAL_TOKENS, what, TOUCHED_MAX, list).await;
    }
    let keys = [
        ("all", SshKeyFilter::default()),
        (
            "of a person",
            SshKeyFilter {
                user: user(),
                ..SshKeyFilter::default()
            },
        ),
        (
            "of a member",
            SshKeyFilter {
                user_id: id,
                ..SshKeyFilter::default()
            },
        ),
        (
            "by fingerprint",
            SshKeyFilter {
                fingerprint: Some("00007".into()),
                ..SshKeyFilter::default()
            },
        ),
    ];
    for (what, filter) in &keys {
        orders(&SSH_KEYS, what, TOUCHED_MAX, async |window| {
            store.list_ssh_keys(filter, &window).await
        })
        .await;
    }
}

#[tokio::test]
async fn lists_of_sessions_read_what_they_show() {
    let Some(store) = full().await else { return };
    let now = chrono::Utc::now();
    let filters = [
        ("all", SessionFilter::default()),
        (
            "of a person",
            SessionFilter {
                user: Some("user-7".into()),
                ..SessionFilter::default()
            },
        ),
        (
            "of a connection",
            SessionFilter {
                connection: Some("c-7".into()),
                ..SessionFilter::default()
            },
        ),
        (
            "through an agent",
            SessionFilter {
                agent: few(),
                ..SessionFilter::default()
            },
        ),
        (
            "of a protocol",
            SessionFilter {
                protocol: few(),
                ..SessionFilter::default()
            },
        ),
        (
            "with an end",
            SessionFilter {
                end: Some("killed".into()),
                ..SessionFilter::default()
            },
        ),
        (
            "running",
            SessionFilter {
                live: Some(true),
                ..SessionFilter::default()
            },
        ),
        (
            "over",
            SessionFilter {
                live: Some(false),
                ..SessionFilter::default()
            },
        ),
        (
            "of a moment",
            SessionFilter {
                to: Some(now),
                ..SessionFilter::default()
            },
        ),
    ];
    for (what, filter) in &filters {
        orders(&SESSIONS, what, TOUCHED_MAX, async |window| {
            store.list_sessions(filter, &window).await
        })
        .await;
    }
}
