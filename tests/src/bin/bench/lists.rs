//! Which lists the benchmark asks for: each order, first and deep within, each filter, by who may ask.

use anyhow::Result;
use hoop_tests::http::Api;

/// Of each list.
pub const REQUESTS: usize = 40;
/// Pages before a deep one.
const DEEP_PAGES: usize = 20;
/// Credentials, tokens and keys.
const HELD: usize = 50_000;
const SESSIONS: usize = 100_000;

/// A list, its orders, its filters, and whether members may ask for it.
struct List {
    path: &'static str,
    sorts: &'static [&'static str],
    filters: &'static [&'static str],
    members: bool,
}

const LISTS: [List; 9] = [
    List {
        path: "/api/users",
        sorts: &["username", "email", "created_at"],
        filters: &[
            "role=admin",
            "role=member",
            "group=group-7",
            "group=none",
            "active=true",
            "active=false",
            "service=true",
            "service=false",
            "provider_groups=true",
            "provider_groups=false",
            "q=user-00042",
            "q=nobody",
        ],
        members: false,
    },
    List {
        path: "/api/connections",
        sorts: &["name", "created_at", "updated_at"],
        filters: &[
            "owner=ada",
            "tag=team-7",
            "protocol=postgres",
            "protocol=none",
            "q=c-00042",
            "q=nothing",
        ],
        members: true,
    },
    List {
        path: "/api/access/rules",
        sorts: &["name", "created_at", "updated_at"],
        filters: &[
            "group=group-7",
            "user=ada",
            "role=admin",
            "connection=c-00031",
            "tag=team-7",
            "enabled=true",
            "enabled=false",
            "q=rule-00042",
            "q=nothing",
        ],
        members: false,
    },
    List {
        path: "/api/sessions",
        sorts: &["started_at", "user", "connection"],
        filters: &[
            "user=user-00007",
            "connection=c-00007",
            "agent=edge",
            "agent=none",
            "protocol=postgres",
            "protocol=none",
            "end=client",
            "end=killed",
            "live=true",
            "live=false",
            "from=2026-01-01T00:00:00Z",
            "to=2000-01-01T00:00:00Z",
        ],
        members: true,
    },
    List {
        path: "/api/credentials",
        sorts: &["created_at", "expires_at", "id"],
        filters: &[
            "user=user-00007",
            "connection=c-00007",
            "state=active",
            "state=expired",
            "state=revoked",
        ],
        members: true,
    },
    List {
        path: "/api/tokens",
        sorts: &["created_at", "expires_at", "name"],
        filters: &["user=user-00007", "state=active", "state=expired", "state=revoked"],
        members: true,
    },
    List {
        path: "/api/ssh-keys",
        sorts: &["created_at", "name"],
        filters: &["user=user-00007", "fingerprint=7"],
        members: true,
    },
    List {
        path: "/api/agents",
        sorts: &["name", "created_at"],
        filters: &["q=a", "online=true", "online=false"],
        members: false,
    },
    List {
        path: "/api/audit",
        sorts: &["at"],
        filters: &[
            "kind=user.update",
            "kind=rule.none",
            "kind=rule.*",
            "kind=*",
            "person=user-7",
            "subject=user-7",
            "from=2026-01-01T00:00:00Z",
            "to=1970-01-01T00:00:01Z",
            "writer=00000000-0000-0000-0000-000000000001",
        ],
        members: false,
    },
];

/// What this person may ask for.
pub async fn paths(api: &Api, who: &str) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for list in LISTS.iter().filter(|list| list.members || who != "member") {
        for sort in list
            .sorts
            .iter()
            .flat_map(|sort| [(*sort).to_owned(), format!("-{sort}")])
        {
            let first = format!("{}?limit=200&sort={sort}", list.path);
            let deep = deep(api, &first).await?;
            paths.extend([Some(first), deep].into_iter().flatten());
        }
        // members may not filter by whom something is
        let own = |filter: &&&str| who != "member" || !filter.starts_with("user=");
        paths.extend(
            list.filters
                .iter()
                .filter(own)
                .map(|filter| format!("{}?limit=200&{filter}", list.path)),
        );
    }
    Ok(paths)
}

/// The page some thousand rows in; `None` where the list is shorter.
async fn deep(api: &Api, first: &str) -> Result<Option<String>> {
    let mut path = first.to_owned();
    for _ in 0..DEEP_PAGES {
        match api.get(&path).await?.get("next").and_then(|next| next.as_str()) {
            Some(next) => path = format!("{first}&cursor={next}"),
            None => return Ok(None),
        }
    }
    Ok(Some(path))
}

/// What people hold and did: one thing in a thousand is revoked, or was killed.
pub fn held() -> String {
    format!(
        "create temporary table held on commit drop as \
             select u.id as user_id, u.username, c.id as connection_id, c.name as connection, n \
             from (select id, username, row_number() over () as n from users limit {HELD}) u join \
             (select id, name, row_number() over () as c from connections) c on c.c = 1 + u.n % 5000; \
         insert into credentials (id, user_id, connection_id, salt, iterations, stored_key, server_key, created_at, \
             expires_at, revoked_at) select 'c' || translate(lpad(to_hex(n), 8, '0'), 'ilou', 'vwxy'), user_id, connection_id, '', 1, \
             sha256('a'), sha256('b'), now() - n * interval '10 seconds', \
             now() - (n - 2880) * interval '10 seconds', case when n % 1000 = 0 then now() end from held; \
         insert into personal_tokens (id, user_id, name, scopes, hint, sha256, expires_at, revoked_at) \
             select gen_random_uuid(), user_id, 'token-' || n % 100, '{{read}}', '', sha256(username::bytea), \
             now() + (n - {HELD} / 10) * interval '1 minute', case when n % 1000 = 0 then now() end from held; \
         insert into ssh_keys (id, user_id, name, algorithm, fingerprint, openssh) \
             select gen_random_uuid(), user_id, 'key-' || n % 100, 'ssh-ed25519', n::text, '' from held; \
         insert into sessions (id, writer, replica, protocol, user_name, user_id, email, groups, connection, \
             connection_id, agent, client_address, credential, database, application, client_tls, policy_version, \
             audit_mode, started_at, ended_at, end_code) select gen_random_uuid(), gen_random_uuid(), \
             gen_random_uuid(), 'postgres', username, user_id, '', '{{}}', connection, connection_id, 'edge', \
             '192.0.2.7', '', 'app', 'psql', true, 1, 'journalled', now() - n * k * interval '1 second', \
             case when n % 1000 > 0 then now() end, case when n % 1000 = 1 then 'killed' when n % 1000 > 0 then 'client' end \
             from held, generate_series(1, {}) k",
        SESSIONS / HELD
    )
}
