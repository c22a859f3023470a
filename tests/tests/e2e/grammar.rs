//! What the grammar reads from statements, against what PostgreSQL itself says that it would do: the relations of its plan,
//! and what they are changed by.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use hoop_sql::{Access, Kind, classify};
use hoop_tests::cluster::{APP, Cluster, Make, scratch};
use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

const SCHEMA: &str = "
    create table t (a int, b text, c int);
    create table u (a int, b text, c int);
    create table k (a int primary key, b text, c int);
    create table p (a int, b text, c int) partition by range (a);
    create table p1 partition of p for values from (0) to (10);
    create table p2 partition of p for values from (10) to (20);
    create schema s;
    create table s.t (a int, b text, c int);
    create table \"Odd \"\"name\" (a int, b text, c int);
    create view tv as select * from t where a > 1;
    create view tuv as select t.a, u.b, u.c from t join u on t.a = u.a;
    create view nested as select a, b, c from tuv union all select * from s.t;";

/// What a view reads, for the target resolves that, not the grammar.
const VIEWS: [(&str, &[&str]); 3] = [
    ("tv", &["public.t"]),
    ("tuv", &["public.t", "public.u"]),
    ("nested", &["public.t", "public.u", "s.t"]),
];

/// Queries of one integer column.
const SOURCES: [&str; 20] = [
    "select a from u",
    "select a from public.u as x where x.b like 'y%'",
    "select t.a from s.t",
    "select a from only t",
    "select a from p",
    "select a from \"Odd \"\"name\"",
    "select a from tv",
    "select a from tuv",
    "select a from nested",
    "select x.a from u x join p y on x.a = y.a",
    "select x.a from t x left join u y using (a) where y.b is null",
    "select a from u natural join s.t",
    "select a from u union all select c from p",
    "select a from u intersect select c from s.t",
    "with w as materialized (select * from u) select a from w",
    "with u as materialized (select * from s.t) select a from u",
    "with recursive w(a) as (select a from u union select w.a + 1 from w, p where p.a = w.a) select a from w",
    "select max(x.a) over (partition by x.b) as a from (select * from u order by c limit 3) x",
    "select count(*)::int as a from u group by b having max(c) > (select min(a) from s.t)",
    "select l.a from t, lateral (select u.a from u where u.c = t.c) l",
];

/// Statements with a query in them.
const PLACES: [&str; 30] = [
    "{}",
    "select ({}) from k",
    "select 1 from k where a in ({})",
    "select 1 from k where a = any ({}) and b = 'x'",
    "select 1 from k where not exists ({})",
    "select case when exists ({}) then 1 else 2 end from k",
    "select coalesce(c, ({})) from k",
    "select array({}) from k",
    "select row(1, ({})) from k",
    "select (array[1, 2, 3])[({})] from k",
    "select * from ({}) q",
    "select * from k cross join ({}) q",
    "select * from k, lateral ({}) q",
    "select a from k order by ({})",
    "select a from k limit ({})",
    "select c, count(*) from k group by c having count(*) > ({})",
    "select count(*) filter (where c > ({})) from k",
    "select sum(c) over (order by ({})) from k",
    "select * from generate_series(1, ({})) g, k",
    "values (1), (({}))",
    "select 1 from k union all ({})",
    "with q as materialized ({}) select * from q, k",
    "insert into k (a) {}",
    "insert into k (a, c) values (1, ({}))",
    "insert into k (a) {} on conflict (a) do update set c = 1",
    "update k set c = ({}) where a = 1",
    "update k set c = q.a from ({}) q where k.a = q.a",
    "delete from k where a in ({}) returning *",
    "merge into k using ({}) q on k.a = q.a when matched then update set c = 2 when not matched then insert (a) values (3)",
    "with gone as (delete from k where c in ({}) returning a) select * from gone",
];

/// Of a plan: relations as `schema.name`, partitions as what they are part of, and what it changes.
#[derive(Debug, PartialEq, Eq, Default)]
struct Seen {
    relations: BTreeSet<String>,
    changes: BTreeSet<String>,
}

fn plan(node: &Value, seen: &mut Seen) {
    let text = |key: &str| node.get(key).and_then(Value::as_str);
    if let (Some(schema), Some(name)) = (text("Schema"), text("Relation Name")) {
        let name = if matches!(name, "p1" | "p2") { "p" } else { name };
        seen.relations.insert(format!("{schema}.{name}"));
    }
    if text("Node Type") == Some("ModifyTable") {
        seen.changes.extend(text("Operation").map(str::to_lowercase));
        if text("Conflict Resolution") == Some("UPDATE") {
            seen.changes.insert("update".to_owned());
        }
    }
    for child in node.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        plan(child, seen);
    }
}

async fn explained(client: &Client, statement: &str) -> Result<Seen> {
    let text = format!("explain (verbose, format json, costs off) {statement}");
    let rows = client.simple_query(&text).await.with_context(|| statement.to_owned())?;
    let json = rows
        .iter()
        .find_map(|row| match row {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .context("no plan")?;
    let plans: Value = serde_json::from_str(json)?;
    let mut seen = Seen::default();
    plan(plans.pointer("/0/Plan").context("no plan in it")?, &mut seen);
    Ok(seen)
}

fn read(statement: &str) -> Result<Seen> {
    let found = classify(statement)?;
    let [found] = found.as_slice() else {
        anyhow::bail!("{} statements", found.len())
    };
    ensure!(found.unclear.is_empty(), "{:?}", found.unclear);
    let mut seen = Seen::default();
    for relation in &found.relations {
        let name = &relation.name;
        match VIEWS.iter().find(|(view, _)| *view == name.name) {
            Some((_, tables)) => seen.relations.extend(tables.iter().map(|&table| table.to_owned())),
            None if name.schema.is_empty() => drop(seen.relations.insert(format!("public.{}", name.name))),
            None => drop(seen.relations.insert(name.to_string())),
        }
        ensure!(
            relation.access == Access::Read || name.name == "k",
            "{:?} of {name}",
            relation.access
        );
    }
    for (kind, name) in [
        (Kind::Insert, "insert"),
        (Kind::Update, "update"),
        (Kind::Delete, "delete"),
        (Kind::Merge, "merge"),
    ] {
        if found.kinds.contains(&kind) {
            seen.changes.insert(name.to_owned());
        }
    }
    Ok(seen)
}

#[tokio::test]
async fn what_is_read_from_a_text_is_what_postgresql_plans_for_it_simple_and_prepared() -> Result<()> {
    let scratch = scratch()?;
    let cluster = Cluster::start(&scratch.path().join("target"), Make::default()).await?;
    let client = cluster.superuser(APP).await?;
    client.batch_execute(SCHEMA).await?;
    let mut compared = 0;
    let mut apart = Vec::new();
    for place in PLACES {
        for source in SOURCES {
            let statement = place.replace("{}", source);
            let prepare = format!("prepare x as {statement}");
            for (text, run) in [(&statement, statement.as_str()), (&prepare, "execute x")] {
                if run != statement {
                    client.batch_execute(&prepare).await?;
                }
                let found = read(text).with_context(|| text.clone())?;
                let planned = explained(&client, run).await?;
                if found != planned {
                    apart.push(format!("{text}\n    read    {found:?}\n    planned {planned:?}"));
                }
                compared += 1;
            }
            client.batch_execute("deallocate x").await?;
        }
    }
    ensure!(apart.is_empty(), "{} of {compared}:\n{}", apart.len(), apart.join("\n"));
    ensure!(compared >= 1_000, "{compared} statements");
    Ok(())
}
