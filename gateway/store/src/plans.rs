//! What lists read, counted: a list at size must not look at more rows than its page and its filter need, nor ask more
//! than once. Counted by PostgreSQL itself (`explain analyze`), so that no clock is asked.

mod cases;

use std::cell::RefCell;

use deadpool_postgres::Object;
use serde_json::Value;
use uuid::Uuid;

use crate::change::Params;
use crate::list::{Listed, Listing, PAGE_MAX, Window};
use crate::writer_log::{Kinds, LogFilter, LogPlace};
use crate::{Store, StoreError, testing};

/// Rows of each table.
const ROWS: usize = 6_000;
/// Of which a filter that little matches finds so many.
const FEW: usize = ROWS / 300;
const LIMIT: i64 = 50;
/// Most rows that a page may look at, joins included.
const TOUCHED_MAX: f64 = 600.0;

/// One statement: its text, and how many rows it looked at.
struct Plan {
    sql: String,
    touched: f64,
    whole: String,
}

tokio::task_local! {
    static PLANS: RefCell<Vec<Plan>>;
}

/// Explains a statement that is about to be read, where somebody counts.
pub(crate) async fn note(client: &Object, sql: &str, params: Params<'_>) {
    if PLANS.try_with(|_| ()).is_err() {
        return;
    }
    let explain = format!("explain (analyze, timing off, format json) {sql}");
    let rows = client.query_typed(&explain, params).await.unwrap();
    let plan: Value = rows[0].get(0);
    let plan = Plan {
        sql: sql.to_owned(),
        touched: touched(&plan[0]["Plan"]),
        whole: format!("{plan:#}"),
    };
    PLANS.with(|plans| plans.borrow_mut().push(plan));
}

/// Rows that the scans below a node looked at, kept or not.
fn touched(node: &Value) -> f64 {
    let number = |name: &str| node[name].as_f64().unwrap_or_default();
    let is_scan = node["Relation Name"].is_string();
    let own = match is_scan {
        true => number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Index Recheck"),
        false => 0.0,
    };
    let below = node["Plans"].as_array().into_iter().flatten().map(touched);
    own * number("Actual Loops") + below.sum::<f64>()
}

async fn counted<T>(what: &str, most: f64, list: impl Future<Output = Result<T, StoreError>>) -> T {
    let counting = async {
        let listed = list.await.unwrap();
        (listed, PLANS.with(RefCell::take))
    };
    let (listed, plans) = PLANS.scope(RefCell::default(), counting).await;
    assert_eq!(plans.len(), 1, "{what}: one statement");
    let plan = &plans[0];
    assert!(
        plan.touched <= most,
        "{what} looked at {} rows, {most} are allowed: {}\n{}",
        plan.touched,
        plan.sql,
        plan.whole
    );
    listed
}

/// Every order of a list, its first page and one deep within.
async fn orders<T, F, L>(listing: &'static Listing, what: &str, most: f64, list: F)
where
    F: Fn(Window) -> L,
    L: Future<Output = Result<Listed<T>, StoreError>>,
{
    for name in listing
        .sorts
        .iter()
        .flat_map(|key| [key.name.to_owned(), format!("-{}", key.name)])
    {
        let what = format!("{} {what} by {name}", listing.name);
        let mut window = listing.first(PAGE_MAX);
        window.sort = listing.sort(&name).unwrap();
        let first = Window {
            limit: LIMIT,
            ..window.clone()
        };
        counted(&what, most, list(first)).await;
        for _ in 0..ROWS / 2 / usize::try_from(PAGE_MAX).unwrap() {
            match list(window.clone()).await.unwrap().next {
                Some(next) => window.after = Some(next),
                None => break,
            }
        }
        window.limit = LIMIT;
        counted(&format!("{what}, deep"), most, list(window)).await;
    }
}

/// Row `n` of each table belongs to person and connection `n`; every three hundredth is something rare.
async fn full() -> Option<Store> {
    let store = testing::try_store().await?;
    let last = ROWS - 1;
    let fill = format!(
        "create temporary table n as select n, n % 300 = 0 as rare, lpad(n::text, 5, '0') as text \
             from generate_series(0, {last}) n; \
         insert into users (id, username, email, role, groups, active, service) \
             select md5('u' || n)::uuid, 'user-' || text, '', case when rare then 'admin' else 'member' end, \
             array['all', case when rare then 'few' else 'many' end], n % 300 <> 1, n % 300 = 2 from n; \
         insert into connections (id, name, version, settings) select md5('c' || n)::uuid, 'c-' || text, 1, \
             jsonb_build_object('protocol', 'postgres', 'host', 'h', 'user', 'u', 'allow_members', n % 300 = 3, \
             'agents', jsonb_build_array(case when rare then 'few' else 'many' end), \
             'tags', jsonb_build_array(case when rare then 'few' else 'many' end), \
             'owner', case when rare then 'few' else 'many' end) from n; \
         insert into access_rules (id, name, version, spec) select md5('r' || n)::uuid, 'r-' || text, 1, \
             jsonb_build_object('groups', jsonb_build_array(case when rare then 'few' else 'many' end), \
             'users', jsonb_build_array('user-' || text), 'connections', jsonb_build_array('c-' || text), \
             'tags', jsonb_build_array(case when rare then 'few' else 'many' end), \
             'roles', jsonb_build_array(case when rare then 'admin' else 'member' end), 'enabled', not rare) from n; \
         insert into credentials (id, user_id, connection_id, salt, iterations, stored_key, server_key, expires_at, \
             revoked_at) select 'c' || translate(substr(md5(n::text), 1, 8), 'ilou', 'vwxy'), md5('u' || n)::uuid, \
             md5('c' || n)::uuid, '', 1, sha256('a'), sha256('b'), now() + (n - {ROWS} / 2) * interval '1 minute', \
             case when rare then now() end from n on conflict do nothing; \
         insert into personal_tokens (id, user_id, name, scopes, hint, sha256, expires_at, revoked_at) \
             select md5('t' || n)::uuid, md5('u' || n)::uuid, 't-' || n % 7, '{{}}', '', sha256(text::bytea), \
             now() + (n - {ROWS} / 2) * interval '1 minute', case when rare then now() end from n; \
         insert into ssh_keys (id, user_id, name, algorithm, fingerprint, openssh) \
             select md5('k' || n)::uuid, md5('u' || n)::uuid, 'k-' || n % 7, 'a', text, '' from n; \
         insert into sessions (id, writer, replica, protocol, user_name, user_id, email, groups, connection, agent, \
             client_address, credential, database, application, client_tls, policy_version, audit_mode, started_at, \
             ended_at, end_code) select md5('s' || n)::uuid, md5('w')::uuid, md5('w')::uuid, \
             case when rare then 'few' else 'many' end, 'user-' || n % 300, md5('u' || n % 300)::uuid, '', '{{}}', \
             'c-' || n % 300, case when rare then 'few' else 'many' end, '', '', '', '', true, 1, '', \
             now() + n / 7 * interval '1 second', case when rare then null else now() end, \
             case when n % 300 = 1 then 'killed' else 'client' end from n; \
         insert into writer_log (writer, seq, at_us, kind, payload, prev_hash, hash) select md5('w')::uuid, n, n / 7, \
             case when rare then 'rule.update' when n % 2 = 0 then 'user.update' else 'session_heads' end, \
             json_build_object('by', json_build_object('user', 'user-' || n % 300), 'subject', 's-' || n % 300)::text, \
             '', '' from n; \
         analyze"
    );
    store.client().await.unwrap().batch_execute(&fill).await.unwrap();
    Some(store)
}

#[tokio::test]
async fn the_audit_log_reads_what_it_shows() {
    let Some(store) = full().await else { return };
    let kind = |kinds| LogFilter {
        kinds,
        ..LogFilter::default()
    };
    let filters = [
        ("administrative", LogFilter::default()),
        ("all", kind(Kinds::Beginning(String::new()))),
        ("of a rare kind", kind(Kinds::One("rule.update".into()))),
        ("of a frequent kind", kind(Kinds::One("user.update".into()))),
        ("of no kind", kind(Kinds::One("none".into()))),
        ("of a beginning", kind(Kinds::Beginning("rule.".into()))),
        (
            "of a person",
            LogFilter {
                person: Some("user-8".into()),
                ..LogFilter::default()
            },
        ),
        (
            "of a subject",
            LogFilter {
                subject: Some("s-8".into()),
                ..LogFilter::default()
            },
        ),
        (
            "of a moment",
            LogFilter {
                from_us: Some(100),
                to_us: Some(120),
                ..LogFilter::default()
            },
        ),
        (
            "of no writer",
            LogFilter {
                writer: Some(Uuid::nil()),
                ..LogFilter::default()
            },
        ),
    ];
    let middle = LogPlace {
        at_us: i64::try_from(ROWS).unwrap() / 14,
        writer: Uuid::nil(),
        seq: 0,
    };
    for (what, filter) in &filters {
        for (oldest_first, after) in [(true, None), (false, None), (true, Some(middle)), (false, Some(middle))] {
            let list = store.list_log(filter, oldest_first, after, LIMIT);
            counted(&format!("the log {what}"), TOUCHED_MAX, list).await;
        }
    }
}

/// `Store::current_rules` reads the rules where there is a newer one, and otherwise one row.
#[tokio::test]
async fn the_rules_are_read_anew_where_one_is_newer() {
    let Some(store) = testing::try_store().await else {
        return;
    };
    let known = store.rules();
    let again = counted("asking for newer rules", FEW as f64, store.current_rules()).await;
    assert!(std::sync::Arc::ptr_eq(&known, &again));
    // as another replica would
    let change = "insert into policy_versions (kind, subject) values ('connection.update', 'db'); \
                  with new as (insert into policy_versions (kind, subject) values ('rule.create', 'new') returning version) \
                  insert into access_rules (id, name, version, spec) select gen_random_uuid(), 'new', version, '{}' from new";
    store.client().await.unwrap().batch_execute(change).await.unwrap();
    let newer = store.current_rules().await.unwrap();
    assert_eq!(newer.rules().len(), known.rules().len() + 1);
    assert_eq!(newer.version(), store.policy_version().await.unwrap());
}
