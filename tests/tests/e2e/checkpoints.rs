//! Somebody who holds the database and the master key: only what was kept elsewhere contradicts them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use hoop_tests::cluster::STORE;
use hoop_tests::hoop::{Hoop, Options, StoreKind};
use hoop_tests::process::{Said, eventually};

/// A writer signs a checkpoint every 10 s.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(40);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

async fn hoop() -> Result<Hoop> {
    Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await
}

/// Stops the gateway in order, which signs a last checkpoint.
async fn stop(hoop: &mut Hoop) -> Result<()> {
    hoop.gateway()?.process.signal("TERM")?;
    let gateway = hoop.gateway_mut()?;
    eventually("the gateway stopped", STOP_DEADLINE, async || {
        Ok((!gateway.process.alive()).then_some(()))
    })
    .await
}

/// A copy of the checkpoint file, somewhere else.
fn keep(hoop: &Hoop) -> Result<PathBuf> {
    let kept = hoop.scratch.path().join("kept.ndjson");
    std::fs::copy(hoop.gateway()?.dir.join("checkpoints.ndjson"), &kept)?;
    Ok(kept)
}

/// What the evidence alone proves, and what it proves against the kept copy.
async fn verify(hoop: &Hoop, kept: &std::path::Path) -> Result<(Said, Said)> {
    let kept = kept.display().to_string();
    let alone = hoop.verify(&["--all"]).await?;
    let against = hoop.verify(&["--all", "--checkpoints", &kept]).await?;
    Ok((alone, against))
}

#[tokio::test]
async fn a_history_written_anew_by_who_holds_every_key_is_named_by_a_kept_checkpoint() -> Result<()> {
    let mut hoop = hoop().await?;
    hoop.person()
        .await?
        .with("PGAPPNAME", "real")
        .query("select 'what happened'")
        .await?;
    hoop.record("real").await?;
    stop(&mut hoop).await?;
    let kept = keep(&hoop)?;
    let (alone, against) = verify(&hoop, &kept).await?;
    ensure!(alone.ok && against.ok, "{}\n{}", alone.out, against.out);
    // The installation's own program writes another history, and signs it under the real root.
    let store = hoop.store_cluster().superuser(STORE).await?;
    store
        .batch_execute("truncate writers, writer_log, checkpoints, sessions, chunks")
        .await?;
    let _ = std::fs::remove_file(hoop.gateway()?.dir.join("checkpoints.ndjson"));
    hoop.gateway_mut()?.start_again().await?;
    hoop.wait_for_agent().await?;
    hoop.person()
        .await?
        .with("PGAPPNAME", "forged")
        .query("select 'what is told'")
        .await?;
    hoop.record("forged").await?;
    stop(&mut hoop).await?;
    let (alone, against) = verify(&hoop, &kept).await?;
    ensure!(alone.ok, "the evidence alone cannot know:\n{}", alone.out);
    ensure!(against.code == Some(1), "{:?}\n{}", against.code, against.out);
    ensure!(against.out.contains("writer missing"), "{}", against.out);
    Ok(())
}

#[tokio::test]
async fn a_tail_cut_together_with_its_checkpoints_is_named_by_a_kept_checkpoint() -> Result<()> {
    let mut hoop = hoop().await?;
    let store = hoop.store_cluster().superuser(STORE).await?;
    // Everything so far is under a checkpoint, and no session runs.
    let anchored: i64 = eventually("all is anchored", CHECKPOINT_DEADLINE, async || {
        let sql = "select (select max(seq) from writer_log) as last, (select max(seq) from checkpoints) as anchored, \
             (select count(*) from sessions where ended_at is null) as running";
        let row = store.query_one(sql, &[]).await?;
        let (last, anchored): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
        Ok((last == anchored && row.get::<_, i64>(2) == 0)
            .then_some(anchored)
            .flatten())
    })
    .await?;
    hoop.person()
        .await?
        .with("PGAPPNAME", "unwanted")
        .query("select 'unwanted'")
        .await?;
    let session = hoop.record("unwanted").await?.session;
    stop(&mut hoop).await?;
    let kept = keep(&hoop)?;
    let (alone, against) = verify(&hoop, &kept).await?;
    ensure!(alone.ok && against.ok, "{}\n{}", alone.out, against.out);
    store
        .batch_execute(&format!(
            "delete from chunks where session = '{session}'; delete from sessions where id = '{session}'; \
             delete from writer_log where seq > {anchored}; delete from checkpoints where seq > {anchored}"
        ))
        .await?;
    let (alone, against) = verify(&hoop, &kept).await?;
    ensure!(alone.ok, "the evidence alone cannot know:\n{}", alone.out);
    ensure!(against.code == Some(1), "{:?}\n{}", against.code, against.out);
    for word in ["checkpoints missing", &format!("missing {}–", anchored + 1)] {
        ensure!(against.out.contains(word), "no {word:?} in\n{}", against.out);
    }
    Ok(())
}

#[tokio::test]
async fn a_log_signed_anew_under_another_root_is_named_by_the_root_that_was_kept() -> Result<()> {
    let (real, other) = (hoop().await?, hoop().await?);
    let export = other.scratch.path().join("export").display().to_string();
    other
        .person()
        .await?
        .with("PGAPPNAME", "other")
        .query("select 1")
        .await?;
    other.record("other").await?;
    other.gateway()?.tool(&["export", "--out", &export]).await?.success()?;
    let said = real.verify(&["--from", &export]).await?;
    ensure!(
        said.code == Some(1) && said.out.contains("not by this root"),
        "{}",
        said.out
    );
    Ok(())
}

#[tokio::test]
async fn a_kept_file_that_cannot_be_read_is_an_error_and_not_a_pass() -> Result<()> {
    let hoop = hoop().await?;
    let file = hoop.scratch.path().join("nonsense");
    std::fs::write(&file, "no checkpoint\nnor this\n")?;
    for path in [file.display().to_string(), "/nowhere/checkpoints".into()] {
        let said = hoop.verify(&["--all", "--checkpoints", &path]).await?;
        ensure!(said.code == Some(2), "{:?}\n{}\n{}", said.code, said.out, said.err);
    }
    Ok(())
}
