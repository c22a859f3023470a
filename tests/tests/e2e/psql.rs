//! psql, as people use it.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoop_tests::clients::{Login, own_program};
use hoop_tests::cluster::APP;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::{Said, eventually};

#[tokio::test]
async fn a_query_its_errors_and_its_notices_pass_as_they_are() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    assert_eq!(me.query("select 1 + 1").await?, "2");
    assert_eq!(me.query("select current_user, current_database()").await?, "app|app");
    let said = me.psql(&["-c", "select * from nowhere"]).await?;
    assert!(
        said.err
            .contains("ERROR:  relation \"nowhere\" does not exist\nLINE 1:"),
        "{}",
        said.err
    );
    let said = me
        .psql(&["-c", "do $$ begin raise notice 'hello %', 1; end $$"])
        .await?
        .success()?;
    assert_eq!(said.err, "NOTICE:  hello 1\n");
    let said = script(&me, "select 1 as a, 'x' as b \\gx\n", &[]).await?.success()?;
    assert_eq!(said.out, "a|1\nb|x\n");
    Ok(())
}

#[tokio::test]
async fn settings_of_the_client_reach_the_target() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop
        .person()
        .await?
        .with("PGAPPNAME", "tea time")
        .with("PGTZ", "Asia/Tokyo");
    let me = me.with("PGCLIENTENCODING", "LATIN1").with("PGDATESTYLE", "German");
    let shown = me
        .query(
            "select current_setting('application_name'), current_setting('TimeZone'), \
             current_setting('client_encoding'), current_setting('DateStyle')",
        )
        .await?;
    assert_eq!(shown, "tea time|Asia/Tokyo|LATIN1|German, DMY");
    Ok(())
}

#[tokio::test]
async fn copy_moves_rows_both_ways_unchanged() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let rows: String = (0..20_000).map(|i| format!("{i}\tvalue {i} \\\\ ü\n")).collect();
    let (input, output) = (hoop.scratch.path().join("in"), hoop.scratch.path().join("out"));
    std::fs::write(&input, &rows)?;
    let text = format!(
        "create table t (id int, v text);\n\\copy t from '{}'\n\\copy (select * from t order by id) to '{}'\n",
        input.display(),
        output.display()
    );
    script(&me, &text, &[]).await?.success()?;
    assert_eq!(std::fs::read_to_string(&output)?, rows);
    Ok(())
}

#[tokio::test]
async fn ctrl_c_ends_a_watched_query_and_the_session_lives_on() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    // A terminal of its own, so that Ctrl-C is what a person types.
    let psql = own_program("psql".as_ref()).display().to_string();
    let mut command = me.command("script");
    command.args([
        "-q",
        "-e",
        "-c",
        &format!("'{psql}' -X -n -q -A -t -P pager=off"),
        "/dev/null",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut keys = child.stdin.take().context("stdin")?;
    keys.write_all(b"select pg_sleep(60) \\watch 1\n")?;
    await_active(&hoop, "pg_sleep(60)").await?;
    keys.write_all(b"\x03")?;
    keys.write_all(b"select 'the session ' || 'lives on';\n\\q\n")?;
    let said = Said::from(tokio::task::spawn_blocking(move || child.wait_with_output()).await??);
    assert!(
        said.out.contains("canceling statement due to user request"),
        "{}",
        said.out
    );
    assert!(said.out.contains("the session lives on"), "{}", said.out);
    Ok(())
}

#[tokio::test]
async fn notifications_arrive() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let said = script(&me, "listen news;\nnotify news, 'hot';\nselect 1;\n", &[])
        .await?
        .success()?;
    assert!(
        said.out
            .contains("Asynchronous notification \"news\" with payload \"hot\""),
        "{}",
        said.out
    );
    Ok(())
}

#[tokio::test]
async fn many_statements_and_transactions_behave_as_at_the_target() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    me.query("create table t (id int primary key)").await?;
    let said = me
        .psql(&[
            "-c",
            "insert into t values (1); insert into t values (1); insert into t values (2)",
        ])
        .await?;
    assert!(!said.ok && said.err.contains("duplicate key"), "{}", said.err);
    assert_eq!(
        me.query("select count(*) from t").await?,
        "0",
        "a multi-statement string is one transaction"
    );
    let text = "begin;\ninsert into t values (7);\nselect 1/0;\nselect 2;\nrollback;\nselect count(*) from t;\n";
    let said = script(&me, text, &["-v", "ON_ERROR_STOP=0"]).await?;
    assert!(said.err.contains("current transaction is aborted"), "{}", said.err);
    assert!(said.out.ends_with("0\n"), "{}", said.out);
    Ok(())
}

/// psql with a script on its standard input.
pub async fn script(login: &Login, text: &str, more: &[&str]) -> Result<Said> {
    let mut command = login.command("psql");
    command
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
        .args(more)
        .args(["-f", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    let text = text.to_owned();
    let done = tokio::task::spawn_blocking(move || -> Result<Said> {
        input.write_all(text.as_bytes())?;
        drop(input);
        Ok(child.wait_with_output()?.into())
    });
    done.await?
}

/// Waits until the target runs a statement with this in its text.
pub async fn await_active(hoop: &Hoop, part: &str) -> Result<()> {
    let target = hoop.target.superuser(APP).await?;
    eventually(
        &format!("the target runs {part}"),
        Duration::from_secs(20),
        async || {
            let sql = "select 1 from pg_stat_activity where state = 'active' and position($1 in query) > 0 \
                   and pid <> pg_backend_pid()";
            Ok(target.query_opt(&format!("{sql} limit 1"), &[&part]).await?.map(drop))
        },
    )
    .await
}
