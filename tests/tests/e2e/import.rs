//! The journal of a gateway whose machine never came back, taken in elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use hoop_tests::hoop::{Hoop, Options, StoreKind};
use hoop_tests::process::eventually;
use hoop_tests::record::text;

/// A lease runs for 10 s.
const LEASE_DEADLINE: Duration = Duration::from_secs(40);

#[tokio::test]
async fn an_imported_journal_completes_the_record_of_a_gateway_that_never_came_back() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    let client = hoop
        .person()
        .await?
        .with("PGAPPNAME", "lost")
        .sslmode("disable")
        .connect()
        .await?;
    client.simple_query("select 'before the store went away'").await?;
    let session = text(&hoop.session("lost").await?, "id");
    // What follows is in the journal alone, and then its machine is gone.
    let mut store = hoop.store.take();
    if let Some(store) = &mut store {
        store.stop()?;
    }
    client.simple_query("select 'only in the journal'").await?;
    hoop.gateway_mut()?.process.kill_hard()?;
    if let Some(store) = &mut store {
        store.start_again().await?;
    }
    hoop.store = store;
    let journal = hoop.scratch.path().join("journal of the dead");
    std::fs::rename(hoop.gateway()?.dir.join("journal"), &journal)?;
    eventually("verify lists the session as not replayed", LEASE_DEADLINE, async || {
        let said = hoop.verify(&["--all"]).await?;
        ensure!(said.ok, "{}", said.out);
        let told = said.out.lines().any(|line| line.contains("not replayed"));
        Ok((told && said.out.contains(&session)).then_some(()))
    })
    .await?;
    let statements = async || -> Result<Vec<String>> {
        let events = hoop.all_events().await?;
        let attempts = events
            .iter()
            .filter(|event| text(event, "session") == session && text(event, "kind") == "attempt");
        Ok(attempts.map(|event| text(event, "text")).collect())
    };
    ensure!(
        !statements()
            .await?
            .iter()
            .any(|text| text.contains("only in the journal"))
    );
    let folder = journal.display().to_string();
    hoop.gateway()?.tool(&["journal", "import", &folder]).await?.success()?;
    let said = hoop.verify(&["--all"]).await?.success()?;
    ensure!(!said.out.contains("not replayed"), "{}", said.out);
    let statements = statements().await?;
    for text in ["before the store went away", "only in the journal"] {
        let times = statements.iter().filter(|statement| statement.contains(text)).count();
        ensure!(times == 1, "{text:?} is recorded {times} times: {statements:?}");
    }
    // Taken in once: a second time there is nothing left.
    let again = hoop.gateway()?.tool(&["journal", "import", &folder]).await?;
    ensure!(
        again.ok && hoop.verify(&["--all"]).await?.ok,
        "{}\n{}",
        again.out,
        again.err
    );
    Ok(())
}
