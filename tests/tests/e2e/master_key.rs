//! The master key is rotated while the gateways serve; a rotation that was interrupted goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::cluster::STORE;
use hoop_tests::hoop::{Hoop, Options};
use hoop_tests::record::text;

const ROTATE: &str = "rotate-master-key";

/// Every sealed value in the store, by table and column.
async fn sealed(hoop: &Hoop) -> Result<BTreeMap<String, Vec<Vec<u8>>>> {
    let store = hoop.store_cluster().superuser(STORE).await?;
    let columns = store
        .query(
            "select table_name::text, column_name::text from information_schema.columns where table_schema = 'public' \
             and data_type = 'bytea' and (column_name like '%sealed%' or column_name like '%wrapped%')",
            &[],
        )
        .await?;
    let mut all = BTreeMap::new();
    for row in columns {
        let (table, column): (String, String) = (row.get(0), row.get(1));
        let sql = format!("select {column} from {table} where {column} is not null");
        let values = store.query(&sql, &[]).await?;
        all.insert(
            format!("{table}.{column}"),
            values.iter().map(|row| row.get(0)).collect(),
        );
    }
    Ok(all)
}

fn key_file(hoop: &Hoop) -> PathBuf {
    hoop.scratch.path().join("master.key")
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty()).collect()
}

#[tokio::test]
async fn a_master_key_is_rotated_while_two_replicas_serve_and_the_old_one_opens_nothing_any_more() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        replicas: 2,
        ..Options::default()
    })
    .await?;
    let old = fs::read_to_string(key_file(&hoop))?;
    let me = hoop.person().await?.sslmode("disable");
    me.with("PGAPPNAME", "before").query("select 'said before'").await?;
    hoop.record("before").await?;
    let lasting = me.with("PGAPPNAME", "lasting").connect().await?;
    lasting.simple_query("select 'said first'").await?;
    let before = sealed(&hoop).await?;

    // people come and go at both replicas all the while
    let over = Arc::new(AtomicBool::new(false));
    let ports: Vec<u16> = hoop
        .gateways
        .iter()
        .map(|gateway| gateway.ready.postgres_port())
        .collect();
    let serving = {
        let (me, over) = (me.clone(), over.clone());
        tokio::spawn(async move {
            let mut logins = 0;
            while !over.load(Ordering::Relaxed) {
                for port in &ports {
                    let client = me.port(*port).connect().await.context("a login during the rotation")?;
                    client.simple_query("select 'said meanwhile'").await?;
                    logins += 1;
                }
            }
            anyhow::Ok(logins)
        })
    };
    let said = hoop.gateway()?.tool(&[ROTATE]).await?.success()?;
    over.store(true, Ordering::Relaxed);
    ensure!(serving.await?? > 0);
    ensure!(
        said.out.contains("2 live replicas seal with the new key alone"),
        "{}",
        said.out
    );
    lasting.simple_query("select 'said last'").await?;
    drop(lasting);
    me.with("PGAPPNAME", "after").query("select 'said after'").await?;
    hoop.record("after").await?;
    hoop.record("lasting").await?;

    let new = fs::read_to_string(key_file(&hoop))?;
    ensure!(lines(&new).len() == 1 && new != old, "{} keys", lines(&new).len());
    let after = sealed(&hoop).await?;
    for (column, values) in &before {
        let now = after.get(column).context(column.clone())?;
        ensure!(
            values.iter().all(|value| !now.contains(value)),
            "{column} holds what the old key opens"
        );
    }
    for column in [
        "installation.ca_key_sealed",
        "connections.secret_sealed",
        "sessions.wrapped_key",
    ] {
        ensure!(
            before.get(column).is_some_and(|values| !values.is_empty()),
            "{column} was empty"
        );
    }
    hoop.verify(&["--all"]).await?.success()?;
    let events = hoop.all_events().await?;
    for part in ["before", "first", "meanwhile", "last", "after"] {
        let said = format!("select 'said {part}'");
        ensure!(
            events.iter().any(|event| text(event, "text") == said),
            "{said} cannot be read"
        );
    }

    // the old key opens nothing
    let kept = hoop.scratch.path().join("old.key");
    fs::write(&kept, &old)?;
    let kept = kept.display().to_string();
    let refused = hoop
        .gateway()?
        .tool_with(&[("HOOP_MASTER_KEY_FILE", &kept)], &["events", "--all"])
        .await?;
    ensure!(
        !refused.ok && refused.err.contains("is this the installation's master key?"),
        "{}",
        refused.err
    );
    let status = hoop.gateway()?.tool(&[ROTATE, "--status"]).await?.success()?.out;
    ensure!(status.contains("no rotation is under way"), "{status}");
    let columns: Vec<&str> = status.lines().filter(|line| line.contains("sealed values")).collect();
    ensure!(columns.len() >= before.len(), "{status}");
    ensure!(
        columns.iter().all(|line| line.contains(" 0 under another key")),
        "{status}"
    );

    // a gateway that is started anew needs the new key alone; each replica has recorded that its keys changed
    let gateway = hoop.gateways.get_mut(1).context("a second gateway")?;
    gateway.process.kill_hard()?;
    gateway.start_again().await?;
    me.port(gateway.ready.postgres_port()).query("select 1").await?;
    let store = hoop.store_cluster().superuser(STORE).await?;
    let sql = "select count(distinct writer) from writer_log where kind = 'master_key.changed'";
    ensure!(store.query_one(sql, &[]).await?.get::<_, i64>(0) == 2);
    Ok(())
}

#[tokio::test]
async fn a_rotation_goes_on_after_each_point_at_which_it_was_killed() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.sslmode("disable");
    let gateway = hoop.gateway()?;
    let old = fs::read_to_string(key_file(&hoop))?;
    for point in [
        "rotate_added",
        "rotate_first",
        "rotate_batch",
        "rotate_sealed",
        "rotate_alone",
    ] {
        let fault = format!("{point}:1");
        let said = gateway.tool_with(&[("HOOP_FAULT", &fault)], &[ROTATE]).await?;
        ensure!(
            said.err.contains(&format!("fault point {point} reached")),
            "{point}: {} {}",
            said.out,
            said.err
        );
        me.query(&format!("select '{point}'")).await?;
        hoop.verify(&["--all"]).await?.success()?;
        hoop.all_events().await?;
    }
    gateway.tool(&[ROTATE]).await?.success()?;
    let new = fs::read_to_string(key_file(&hoop))?;
    ensure!(lines(&new).len() == 1 && new != old);
    // and again, to a third key
    gateway.tool(&[ROTATE]).await?.success()?;
    me.query("select 1").await?;
    // the first one does not come back by a line that was left in a file
    let third = fs::read_to_string(key_file(&hoop))?;
    fs::write(key_file(&hoop), format!("{third}{old}"))?;
    let refused = gateway.tool(&[ROTATE]).await?;
    ensure!(
        !refused.ok && refused.err.contains("was rotated away"),
        "{} {}",
        refused.out,
        refused.err
    );
    Ok(())
}

#[tokio::test]
async fn a_rotation_waits_for_a_replica_whose_file_does_not_hold_the_key() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.sslmode("disable");
    let gateway = hoop.gateway()?;
    // the command's host has a file of its own
    let own = hoop.scratch.path().join("own.key");
    fs::copy(key_file(&hoop), &own)?;
    let own_path = own.display().to_string();
    let rotate = async || {
        let over = [("HOOP_MASTER_KEY_FILE", own_path.as_str())];
        gateway.tool_with(&over, &[ROTATE, "--wait", "5"]).await
    };
    let said = rotate().await?;
    ensure!(said.code == Some(3), "{:?} {}", said.code, said.err);
    ensure!(
        said.out.contains(&gateway.ready.replica) && said.out.contains("does not know the new key"),
        "{}",
        said.out
    );
    me.query("select 1").await?;
    fs::copy(&own, key_file(&hoop))?;
    let said = rotate().await?;
    ensure!(
        said.code == Some(3) && said.out.contains("does not seal with the new key alone"),
        "{}",
        said.out
    );
    me.query("select 1").await?;
    fs::copy(&own, key_file(&hoop))?;
    rotate().await?.success()?;
    // a file that holds something else is not taken
    fs::write(key_file(&hoop), "nothing of the kind\n")?;
    me.query("select 1").await?;
    fs::copy(&own, key_file(&hoop))?;
    me.query("select 1").await?;
    hoop.verify(&["--all"]).await?.success()?;
    Ok(())
}
