//! What is read from statements, as a table: `kinds | relations | what else`.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;

use hoop_sql::{Access, Statement, Unclear, classify};

/// One line for a statement: kinds; relations with what is done to them; then functions (`f:`), settings (`set:`), prepared
/// names (`prepared:`), cursors (`cursor:`), `no-where`, `unclear`.
fn line(statement: &Statement) -> String {
    let kinds: Vec<String> = statement
        .kinds
        .iter()
        .map(|kind| format!("{kind:?}").to_lowercase())
        .collect();
    let relations: Vec<String> = statement
        .relations
        .iter()
        .map(|relation| {
            let access = format!("{:?}", relation.access).to_lowercase();
            let written = match relation.written.as_slice() {
                [] => String::new(),
                columns => format!("({})", columns.join(",")),
            };
            format!("{access} {}{written}", relation.name)
        })
        .collect();
    let mut rest: Vec<String> = Vec::new();
    rest.extend(statement.functions.iter().map(|name| format!("f:{name}")));
    rest.extend(
        statement
            .settings
            .iter()
            .map(|setting| format!("set:{}={}", setting.name, setting.value.as_deref().unwrap_or("default"))),
    );
    rest.extend(statement.prepared.iter().map(|name| format!("prepared:{name}")));
    rest.extend(statement.cursors.iter().map(|name| format!("cursor:{name}")));
    rest.extend(statement.without_where.then(|| "no-where".to_owned()));
    rest.extend((!statement.unclear.is_empty()).then(|| "unclear".to_owned()));
    [kinds.join("+"), relations.join(", "), rest.join(" ")]
        .join(" | ")
        .trim_end_matches([' ', '|'])
        .to_owned()
}

/// The same, in no order.
type Parts = (BTreeSet<String>, BTreeSet<String>, BTreeSet<String>);

fn parts(line: &str) -> Parts {
    let mut parts = line.split('|').map(str::trim);
    let mut next = |by: &str| -> BTreeSet<String> {
        let part = parts.next().unwrap_or_default();
        part.split(by)
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    };
    (next("+"), next(", "), next(" "))
}

fn check(text: &str, expect: &[&str]) {
    let found: Vec<Parts> = classify(text)
        .unwrap()
        .iter()
        .map(|found| parts(&line(found)))
        .collect();
    let expect: Vec<Parts> = expect.iter().map(|line| parts(line)).collect();
    assert_eq!(found, expect, "{text}");
}

#[test]
fn queries() {
    for (text, expect) in [
        ("select 1", "select"),
        ("table t", "select | read t"),
        ("values (1), (2)", "select"),
        ("select a, b from t where c = 1", "select | read t"),
        ("select * from only s.t", "select | read s.t"),
        ("select * from d.s.t", "select | read d.s.t"),
        (r#"select * from "Weird ""name""""#, r#"select | read Weird "name""#),
        (r#"select * from U&"\0074""#, "select | read t"),
        ("select * from T, S.\"T\"", "select | read t, read s.T"),
        (
            "select * from a join b using (x) natural join c",
            "select | read a, read b, read c",
        ),
        (
            "select (select max(x) from u) from t",
            "select | read t, read u | f:max",
        ),
        (
            "select 1 where exists (select from u) and 1 in (select y from v)",
            "select | read u, read v",
        ),
        ("select array(select x from u)", "select | read u"),
        (
            "select * from t order by (select 1 from u) limit (select 2 from v)",
            "select | read t, read u, read v",
        ),
        (
            "select count(*) filter (where x in (select y from u)) over (order by (select 1 from v)) from t",
            "select | read t, read u, read v | f:count",
        ),
        ("select * from f(1) with ordinality", "select | | f:f"),
        (
            "select * from rows from (f(1), pg_catalog.g(2)) as x(a int, b text)",
            "select | | f:f f:pg_catalog.g",
        ),
        (
            "select * from t tablesample bernoulli (10)",
            "select | read t | f:bernoulli",
        ),
        ("select * from lateral (select * from u) x", "select | read u"),
        (
            "select x from t union all (select y from u except select z from v)",
            "select | read t, read u, read v",
        ),
        ("select * from t for update of t", "select+lock | read t"),
        ("select * into n from t", "select+create | read t, create n"),
        (
            "select * from xmltable('/a' passing (select d from u) columns b text path 'c')",
            "select | read u",
        ),
        (
            "select * from json_table((select d from u), '$' columns (a int path '$.a'))",
            "select | read u",
        ),
        ("select json_object('a': (select 1 from u))", "select | read u"),
        (
            "select json_value((select d from u), '$.a' default (select 1 from v) on empty)",
            "select | read u, read v",
        ),
        ("select json_array(select a from u)", "select | read u"),
        (
            "select json_arrayagg(a order by (select 1 from v)) from t",
            "select | read t, read v",
        ),
        (
            "select case when (select true from u) then (select 1 from v) else (select 2 from w) end",
            "select | read u, read v, read w",
        ),
        ("select (select row(1, (select 2 from u))).*", "select | read u"),
        ("select ('{1,2}'::int[])[(select 1 from u)]", "select | read u"),
        (
            "select extract(year from now()), current_user, 'x' like 'y'",
            "select | | f:now f:pg_catalog.extract",
        ),
        (
            "select grouping(a) from t group by grouping sets ((a), ((select 1 from u)))",
            "select | read t, read u",
        ),
        ("select xmlelement(name a, (select b from u))", "select | read u"),
    ] {
        check(text, &[expect]);
    }
}

#[test]
fn common_table_expressions_hide_relations_only_where_they_are_seen() {
    for (text, expect) in [
        ("with t as (select 1) select * from t", "select"),
        ("with t as (select * from t) select * from t", "select | read t"),
        ("with recursive t as (select * from t) select * from t", "select"),
        ("with t as (select 1) select * from public.t", "select | read public.t"),
        (
            "with a as (select * from b), b as (select 1) select * from a",
            "select | read b",
        ),
        ("with a as (select 1), b as (select * from a) select * from b", "select"),
        (
            "select * from (with t as (select 1) select * from t) x, t",
            "select | read t",
        ),
        (
            "with t as (select 1) insert into t select * from t",
            "select+insert | insert t",
        ),
        (
            "with t as (select 1) update t set a = 1 where true",
            "select+update | update t(a) | no-where",
        ),
        (
            "with gone as (delete from t where a = 1 returning *) select * from gone",
            "select+delete | delete t",
        ),
        (
            "with w as (with v as (select 1) select * from v, x) select * from w, v",
            "select | read v, read x",
        ),
        (
            "with recursive t(n) as (values (1) union all select n + 1 from t) cycle n set c to (select true from u) default false using p select * from t",
            "select | read u",
        ),
    ] {
        // A subquery is no constant, and the grammar says so.
        match classify(text) {
            Ok(_) => check(text, &[expect]),
            Err(why) => assert!(text.contains("cycle"), "{text}: {why}"),
        }
    }
}

#[test]
fn changes() {
    for (text, expect) in [
        ("insert into t values (1)", "insert | insert t"),
        (
            "insert into t (a, b) select x, y from u",
            "select+insert | read u, insert t(a,b)",
        ),
        ("insert into t default values", "insert | insert t"),
        (
            "insert into t values ((select x from u))",
            "select+insert | read u, insert t",
        ),
        (
            "insert into t values (1) on conflict (a) do update set b = excluded.b",
            "insert+update | insert t, update t(b)",
        ),
        (
            "insert into t values (1) on conflict do nothing returning (select 1 from u)",
            "select+insert | read u, insert t",
        ),
        ("update t set a = 1", "update | update t(a) | no-where"),
        ("update t set a = 1 where true", "update | update t(a) | no-where"),
        ("update t set a = 1 where 1 = 1", "update | update t(a) | no-where"),
        ("update t set a = 1 where 'x' = 'x'", "update | update t(a) | no-where"),
        ("update t set a = 1 where 1 = 2", "update | update t(a)"),
        (
            "update t set (a, b) = (select x, y from u) where c = 1",
            "select+update | read u, update t(a,b)",
        ),
        (
            "update t set a = u.x from u where t.i = u.i",
            "update | read u, update t(a)",
        ),
        (
            "update t set a[1] = 2 where current of c",
            "update | update t(a) | cursor:c",
        ),
        ("delete from t", "delete | delete t | no-where"),
        ("delete from t using u where t.i = u.i", "delete | read u, delete t"),
        (
            "delete from t where i in (select i from u) returning *",
            "select+delete | read u, delete t",
        ),
        (
            "merge into t using u on t.i = u.i when matched then update set a = 1 when not matched then insert (b) values (1)",
            "merge | read t, read u, insert t(b), update t(a)",
        ),
        (
            "merge into t using (select * from u) s on true when matched then delete",
            "select+merge | read t, read u, delete t",
        ),
        ("truncate t, s.u", "truncate | truncate t, truncate s.u"),
    ] {
        check(text, &[expect]);
    }
}

#[test]
fn what_runs_other_statements() {
    for (text, expect) in [
        ("explain delete from t", "explain | delete t | no-where"),
        (
            "explain analyze delete from t where a = 1",
            "delete+explainanalyze | delete t",
        ),
        ("explain (analyze) select * from t", "select+explainanalyze | read t"),
        ("explain (analyze on, verbose) select 1", "select+explainanalyze"),
        (
            "explain (ANALYZE false) delete from t where a = 1",
            "explain | delete t",
        ),
        (
            "explain (analyze false, analyze true) select 1",
            "select+explainanalyze",
        ),
        ("explain (\"analyze\" 1) select 1", "select+explainanalyze"),
        (
            "explain analyze create table n as select * from t",
            "select+create+explainanalyze | read t, create n",
        ),
        ("explain analyze execute p(1)", "execute+explainanalyze | | prepared:p"),
        ("prepare p as delete from t where a = $1", "delete+prepare | delete t"),
        ("execute p(1, (select 2))", "select+execute | | prepared:p"),
        ("deallocate all", "deallocate"),
        ("declare c cursor for select * from t", "select+cursor | read t"),
        ("fetch all in c", "cursor | | cursor:c"),
        ("move next c", "cursor | | cursor:c"),
        ("close c", "cursor"),
        ("create table n as execute p", "create+execute | create n | prepared:p"),
        (
            "create materialized view m as select * from t",
            "select+create | read t, create m",
        ),
        (
            "create or replace view v as select * from t",
            "select+create | read t, create v",
        ),
        ("do $$ begin delete from t; end $$", "do | | unclear"),
        ("call p((select 1 from t))", "select+call | read t | f:p"),
        ("copy t to stdout", "copyto | read t"),
        ("copy t (a, b) from stdin", "copyfrom | insert t(a,b)"),
        (
            "copy (delete from t returning *) to stdout",
            "delete+copyto | delete t | no-where",
        ),
        ("copy t from '/etc/passwd'", "copyfrom+copyfile | insert t"),
        ("copy t to program 'sh'", "copyto+copyprogram | read t"),
        (
            "copy (select * from t) to program 'curl x'",
            "select+copyto+copyprogram | read t",
        ),
    ] {
        check(text, &[expect]);
    }
}

#[test]
fn settings_and_roles() {
    for (text, expect) in [
        ("set role admin", "setrole | | set:role=admin"),
        ("SET ROLE NONE", "setrole | | set:role=none"),
        ("reset role", "setrole | | set:role=default"),
        (
            "set session authorization 'x'",
            "setrole | | set:session_authorization=x",
        ),
        ("set local role to x", "setrole | | set:role=x"),
        ("set \"role\" = x", "setrole | | set:role=x"),
        ("set search_path to a, \"B\"", "set | | set:search_path=a,B"),
        ("set local statement_timeout = 5", "set | | set:statement_timeout=5"),
        ("set time zone 'UTC'", "set | | set:timezone=UTC"),
        ("reset all", "set | | set:all=default"),
        ("show all", "show"),
        ("select set_config('role', 'x', false)", "select | | f:set_config"),
        ("discard all", "discard"),
    ] {
        check(text, &[expect]);
    }
}

#[test]
fn definitions() {
    for (text, expect) in [
        (
            "create table s.t (a int references u default f())",
            "create | create s.t, refer u | f:f",
        ),
        (
            "create table t (like u including all) inherits (v)",
            "create | create t, refer u, refer v",
        ),
        ("create temp table t (a int)", "create | create t"),
        ("create index on t (f(a)) where b > (1)", "create | alter t | f:f"),
        ("alter table t add column a int default g()", "alter | alter t | f:g"),
        ("alter table t rename to u", "alter | alter t"),
        ("alter table t owner to x", "alter | alter t"),
        ("drop table a, s.b cascade", "drop | drop a, drop s.b"),
        ("drop view v", "drop | drop v"),
        ("drop trigger g on s.t", "drop | alter s.t"),
        ("drop function f(int)", "drop | | f:f"),
        ("drop schema s cascade", "drop"),
        (
            "create function f() returns int language sql as 'delete from t'",
            "create | | f:f",
        ),
        (
            "create trigger g before insert on t execute function f()",
            "create | alter t | f:f",
        ),
        (
            "create rule r as on select to t do instead select * from u",
            "create | read u, alter t | unclear",
        ),
        ("grant select on t to x", "grant | grant t"),
        ("revoke admin from x", "grant"),
        ("create role r", "role"),
        ("alter role r set search_path = x", "role"),
        ("reassign owned by a to b", "role"),
        ("comment on table t is 'x'", "comment"),
        ("create extension e", "create"),
        ("create publication p for table t", "create | create t"),
        ("create subscription s connection 'host=x' publication p", "create"),
        ("alter system set a = 1", "system"),
        ("load 'x'", "system"),
        ("vacuum full t", "maintain | maintain t"),
        ("analyze", "maintain"),
        ("reindex table t", "maintain | maintain t"),
        ("cluster t", "maintain | maintain t"),
        ("refresh materialized view m", "maintain | maintain m"),
        ("checkpoint", "maintain"),
        ("lock table t in exclusive mode", "lock | lock t"),
        ("listen c", "notify"),
        ("notify c, 'x'", "notify"),
        ("begin isolation level serializable", "transaction"),
        ("savepoint a", "transaction"),
        ("prepare transaction 'x'", "transaction"),
        ("set constraints all deferred", "transaction"),
        ("import foreign schema s from server x into y", "create"),
        (
            "create event trigger e on ddl_command_end execute function f()",
            "create | | f:f",
        ),
        (
            "create policy p on t using (a in (select b from u))",
            "create | read u, alter t",
        ),
    ] {
        check(text, &[expect]);
    }
}

#[test]
fn a_string_of_statements_is_read_one_by_one() {
    check(
        "select 1; delete from t where a = 1;; drop table u",
        &["select", "delete | delete t", "drop | drop u"],
    );
    check("", &[]);
    check(" -- nothing\n ; /* at /* all */ */ ;", &[]);
    let text = "select 1 ; select 'a;b' from t";
    let spans: Vec<&str> = classify(text)
        .unwrap()
        .iter()
        .map(|statement| &text[statement.span.0..statement.span.1.min(text.len())])
        .collect();
    assert_eq!(spans, ["select 1 ", "select 'a;b' from t"]);
}

#[test]
fn columns_are_told_as_they_are_written() {
    let found = classify("select a, t.b, s.t.c, t.*, * from s.t as t where d = 1 order by e").unwrap();
    let columns: Vec<String> = found[0]
        .columns
        .iter()
        .map(|column| {
            let mut parts = column.of.clone();
            parts.push(column.name.clone().unwrap_or_else(|| "*".to_owned()));
            parts.join(".")
        })
        .collect();
    assert_eq!(columns, ["*", "a", "d", "e", "s.t.c", "t.*", "t.b"]);
    assert_eq!(found[0].relations.first().unwrap().alias.as_deref(), Some("t"));
    // The columns of COPY are read; without a list all are.
    let all = |text| {
        classify(text).unwrap()[0]
            .columns
            .iter()
            .any(|column| column.name.is_none())
    };
    assert!(all("copy t to stdout") && !all("copy t (a) to stdout"));
    assert!(all("select * from a natural join b"));
}

#[test]
fn operators_and_types_are_functions_too() {
    let found = classify("select a operator(s.<<) b, a + 1, x::s.kind, cast(y as int) from t").unwrap();
    let names = |set: &BTreeSet<hoop_sql::Name>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&found[0].operators), ["+", "s.<<"]);
    assert_eq!(names(&found[0].types), ["pg_catalog.int4", "s.kind"]);
}

#[test]
fn what_cannot_be_read_is_unclear_and_nothing_crashes() {
    assert!(matches!(classify("selec 1"), Err(Unclear::Grammar(_))));
    assert!(matches!(classify("select 'open"), Err(Unclear::Grammar(_))));
    assert!(classify("select \0 1").is_err());
    let many = |text: &str, times: usize| classify(&format!("select {}1", text.repeat(times)));
    for (text, times) in [
        ("not ", 50_000),
        ("- ", 90_000),
        ("1 + ", 40_000),
        ("'a' || ", 40_000),
        ("f(", 199),
    ] {
        let deep = many(text, times);
        let told = match &deep {
            Err(_) => true,
            Ok(found) => !found[0].unclear.is_empty(),
        };
        assert!(told, "{text} × {times}: {deep:?}");
    }
    let unions = classify(&format!("select 1 {}", "union select 1 ".repeat(20_000)));
    assert!(unions.is_err(), "{unions:?}");
    // Many parts side by side are no depth.
    let wide = format!("select {} from t", vec!["a"; 40_000].join(","));
    assert_eq!(classify(&wide).unwrap()[0].relations.len(), 1);
    let list = format!("select 1 from t where a in ({})", vec!["1"; 40_000].join(","));
    assert!(classify(&list).unwrap()[0].unclear.is_empty());
    let parameters = (1..10_000).map(|n| format!("${n}")).collect::<Vec<_>>().join(",");
    assert!(classify(&format!("insert into t values ({parameters})")).unwrap()[0].uses(Access::Insert, "", "t"));
}
