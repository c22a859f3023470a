//! Ways to read or change a table `salaries` without being seen to. Each must be seen: by the table's name, or by something
//! that has to be resolved at the target before anything may be said, or as unclear.

#![allow(clippy::unwrap_used, reason = "a test")]

use hoop_sql::{Kind, Statement, classify};

/// What is known not to reach a table, so that there is something for the attempts to hide among.
const KNOWN_FUNCTIONS: [&str; 6] = ["count", "lower", "upper", "now", "pg_catalog.lower", "coalesce"];
const KNOWN_RELATIONS: [&str; 2] = ["t", "public.t"];
const KNOWN_KINDS: [Kind; 7] = [
    Kind::Select,
    Kind::Insert,
    Kind::Update,
    Kind::Transaction,
    Kind::Show,
    Kind::Explain,
    Kind::ExplainAnalyze,
];
const KNOWN_OPERATORS: [&str; 4] = ["=", "+", "||", "<"];
const KNOWN_TYPES: [&str; 2] = ["pg_catalog.int4", "text"];

/// Whether a rule that knows only the above would let it pass.
fn harmless(text: &str) -> bool {
    let one = |found: &Statement| {
        let known = |names: &std::collections::BTreeSet<hoop_sql::Name>, all: &[&str]| {
            names.iter().all(|name| all.contains(&name.to_string().as_str()))
        };
        found.unclear.is_empty()
            && found.prepared.is_empty()
            && found.cursors.is_empty()
            && found.settings.is_empty()
            && found.kinds.iter().all(|kind| KNOWN_KINDS.contains(kind))
            && found
                .relations
                .iter()
                .all(|relation| KNOWN_RELATIONS.contains(&relation.name.to_string().as_str()))
            && known(&found.functions, &KNOWN_FUNCTIONS)
            && known(&found.operators, &KNOWN_OPERATORS)
            && known(&found.types, &KNOWN_TYPES)
    };
    classify(text).is_ok_and(|found| found.iter().all(one))
}

const ATTEMPTS: [&str; 90] = [
    // names
    "select * from salaries",
    "SELECT * FROM SALARIES",
    "select * from \"salaries\"",
    "select * from public.salaries",
    "select * from prod.public.salaries",
    "select * from U&\"s\\0061laries\"",
    "select * from U&\"s!0061laries\" uescape '!'",
    "select * from only salaries",
    "select * from (salaries)",
    "select * from salaries*",
    "table salaries",
    "select * from t, salaries",
    "select * from t cross join salaries",
    "select * from t left join lateral (select * from salaries) x on true",
    // comments and white space
    "select/**/*/**/from/**/salaries",
    "select * from -- t\nsalaries",
    "select * from /* t */ salaries /* where false */",
    "select * from /* /* */ t */ salaries",
    "select\t*\x0cfrom\rsalaries",
    "select '--', * from salaries",
    "select $$--$$, * from salaries",
    "select E'\\'', * from salaries --'",
    // several statements
    "select 1; select * from salaries",
    "select 1;; ; table salaries;",
    "select ';'; select * from salaries",
    "begin; delete from salaries; commit",
    // where queries may stand
    "select (select max(amount) from salaries)",
    "select 1 where exists (table salaries)",
    "select 1 order by (select 1 from salaries)",
    "select 1 limit (select 1 from salaries)",
    "select 1 offset (select 1 from salaries)",
    "select count(*) filter (where exists (select from salaries))",
    "select count(*) over (partition by (select 1 from salaries))",
    "select 1 group by (select 1 from salaries)",
    "select 1 having exists (select from salaries)",
    "select array(select amount from salaries)",
    "select row((select 1 from salaries))",
    "select case when exists (select from salaries) then 1 end",
    "select coalesce(null, (select 1 from salaries))",
    "select greatest(1, (select 1 from salaries))",
    "select 1 = any (select amount from salaries)",
    "select (1, 2) in (select a, b from salaries)",
    "values ((select 1 from salaries))",
    "select * from (values ((select 1 from salaries))) v",
    "select 1 union select 2 from salaries",
    "select 1 except (select 2 intersect (select 3 from salaries))",
    "select ('{1}'::int[])[(select 1 from salaries)]",
    "select xmlelement(name x, (select amount from salaries))",
    "select json_object('a': (select amount from salaries))",
    "select json_array(select amount from salaries)",
    "select json_query('{}', '$' default (select amount from salaries) on empty)",
    "select * from json_table((select j from salaries), '$' columns (a int path '$'))",
    "select * from xmltable('/x' passing (select x from salaries) columns a int)",
    "select * from t tablesample system ((select 1 from salaries))",
    "select 1 window w as (order by (select 1 from salaries))",
    "select * from t for update of t nowait; select from salaries for share",
    // common table expressions
    "with t as (select * from salaries) select * from t",
    "with salaries as (select * from salaries) select * from salaries",
    "with salaries as (select 1) select * from public.salaries",
    "select * from (with salaries as (select 1) table salaries) x, salaries",
    "with x as (with salaries as (select 1) table salaries) select * from x, salaries",
    "with x as (delete from salaries returning *) select 1",
    "with x as (insert into salaries values (1) returning *) select 1",
    "with salaries as (select 1) update salaries set a = 1",
    "with recursive x as (select 1 union all select 1 from salaries, x) select * from x",
    // other statements that read or write
    "insert into t select * from salaries",
    "insert into t values (1) on conflict (a) do update set b = (select 1 from salaries)",
    "insert into t values (1) returning (select 1 from salaries)",
    "update t set a = (select 1 from salaries)",
    "update t set a = 1 from salaries",
    "merge into t using salaries on true when matched then do nothing",
    "copy salaries to stdout",
    "copy (select * from salaries) to stdout",
    "copy t from program 'psql -c \"table salaries\"'",
    "create table x as table salaries",
    "create table x (like salaries including all)",
    "create view v as table salaries",
    "select * into x from salaries",
    "explain analyze table salaries",
    "explain (analyze false) table salaries",
    "declare c cursor for table salaries",
    "prepare p as table salaries",
    "lock table salaries",
    // what the text does not show
    "execute p",
    "fetch all from c",
    "do $x$ begin perform * from salaries; end $x$",
    "select query_to_xml('table sal' || 'aries', true, true, '')",
    "select dblink('', 'table salaries')",
    "select lo_export(1, '/x'), pg_read_file('base/1/2')",
    "set search_path = elsewhere; select * from t",
];

const MORE: [&str; 14] = [
    "select set_config('search_path', 'elsewhere', false)",
    "set role owner",
    "create function f() returns int language sql as 'select 1 from salaries'",
    "create rule r as on insert to t do also delete from salaries",
    "create trigger g before insert on t execute function steal()",
    "call steal()",
    "select steal from steal()",
    "select 1 operator(elsewhere.+) 2",
    "select 'x'::elsewhere.stealing",
    "select * from salaries_view",
    "alter table salaries rename to t",
    "select (t).steal from t, elsewhere.t as t2",
    "refresh materialized view salaries_copy",
    "alter default privileges grant all on tables to me",
];

#[test]
fn no_attempt_passes_for_harmless() {
    for text in ATTEMPTS.iter().chain(&MORE) {
        assert!(!harmless(text), "{text}\n{:?}", classify(text));
    }
}

#[test]
fn what_is_harmless_passes() {
    for text in [
        "select 1",
        "select 'table salaries'",
        "select $$; drop table salaries$$",
        "select 1 -- from salaries",
        "select \"salaries\" from t",
        "select count(*), lower(a) from t where b = 'salaries' and c < 1",
        "with salaries as (select 1) select * from salaries",
        "with x as (select * from t) select x.* from x, public.t",
        "insert into t (a) values (1) returning *",
        "update t set a = a + 1 where b = 2",
        "begin; select 1; commit",
        "explain analyze select * from t",
        "select a::int, b::text from t as salaries",
    ] {
        assert!(harmless(text), "{text}\n{:?}", classify(text));
    }
}
