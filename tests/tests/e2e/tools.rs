//! PostgreSQL's own tools: pgbench, pg_dump, pg_restore.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use hoop_tests::clients::own_program;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::run;
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn pgbench_runs_in_all_three_query_modes() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let mut init = me.command("pgbench");
    init.args(["-i", "-q", "-s", "1"]);
    run(init, DEADLINE).await?.success()?;
    for mode in ["simple", "extended", "prepared"] {
        let mut bench = me.command("pgbench");
        bench.args(["-n", "-M", mode, "-c", "4", "-j", "2", "-t", "50"]);
        let said = run(bench, DEADLINE).await?.success()?;
        assert!(
            said.out.contains("number of transactions actually processed: 200/200"),
            "{mode}: {}",
            said.out
        );
        assert!(
            said.out.contains("number of failed transactions: 0"),
            "{mode}: {}",
            said.out
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_dump_is_restored_through_the_gateway() -> Result<()> {
    let hoop = Hoop::start().await?;
    hoop.target
        .superuser("postgres")
        .await?
        .batch_execute("create database copied owner app")
        .await?;
    hoop.connection("dump", json!({"databases": ["app", "copied"]})).await?;
    let me = hoop.login(&hoop.credential("dump").await?)?;
    me.query(
        "create table t as select i as id, md5(i::text) as v, ('{\"n\": ' || i || '}')::jsonb as j \
         from generate_series(1, 20000) as i; create index on t (v)",
    )
    .await?;
    let mut pipe = me.command("sh");
    pipe.args(["-c", "\"$1\" -Fc | \"$2\" -e -d copied", "sh"]);
    pipe.arg(own_program("pg_dump".as_ref()))
        .arg(own_program("pg_restore".as_ref()));
    run(pipe, DEADLINE).await?.success()?;
    let sum = "select count(*), md5(string_agg(id || v || j, ',' order by id)) from t";
    assert_eq!(me.query(sum).await?, me.database("copied").query(sum).await?);
    Ok(())
}

/// `./dev run` uses the default ports, so this has a network of its own.
const OWN_NETWORK: &str = "ip link set lo up && exec \"$@\"";

#[tokio::test]
async fn the_demo_runs_one_query_shows_its_record_and_ends_well() -> Result<()> {
    let allowed = Command::new("unshare").args(["-n", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        hoop_tests::skipped(
            "the_demo_runs_one_query_shows_its_record_and_ends_well",
            "this user may not make a network namespace (unshare -n), and the default ports belong to whoever works here",
        );
        return Ok(());
    }
    let scratch = hoop_tests::cluster::scratch()?;
    let mut demo = Command::new("unshare");
    demo.args(["-n", "sh", "-c", OWN_NETWORK, "sh"]);
    demo.arg(hoop_tests::binaries::profile_dir()?.join("hoop-demo"));
    demo.arg("--dev-dir").arg(scratch.path()).arg("--once");
    let said = run(demo, DEADLINE).await?.success()?;
    for shown in ["SELECT id, name, email FROM customers", "attempt", "outcome", "ended"] {
        assert!(said.out.contains(shown), "{shown} is not in:\n{}", said.out);
    }
    Ok(())
}
