//! Refusals: an error of PostgreSQL's own that says what happened and what to do.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hoop_tests::clients::Login;
use hoop_tests::hoop::{CONNECTION, Hoop, Options};
use hoop_tests::process::eventually;
use serde_json::json;

/// What a client is told.
#[derive(Debug, PartialEq)]
struct Told {
    code: String,
    message: String,
    hint: String,
}

/// The refusal of a login.
async fn told(login: &Login) -> Result<Told> {
    let login = login.sslmode("disable");
    let Err(error) = login.connect().await else {
        bail!("it was let in")
    };
    let error = error
        .downcast_ref::<tokio_postgres::Error>()
        .context("no error of PostgreSQL")?;
    let error = error
        .as_db_error()
        .with_context(|| format!("not an ErrorResponse: {error:?}"))?;
    ensure!(error.severity() == "FATAL", "{error:?}");
    Ok(Told {
        code: error.code().code().to_owned(),
        message: error.message().to_owned(),
        hint: error.hint().unwrap_or_default().to_owned(),
    })
}

#[tokio::test]
async fn a_wrong_and_an_unknown_credential_are_told_alike() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let wrong = told(&me.password("not-it")).await?;
    let unknown = told(&me.user("c22222222")).await?;
    ensure!(wrong.code == "28P01" && !wrong.hint.is_empty(), "{wrong:?}");
    ensure!(
        unknown.message.replace("c22222222", &me.user) == wrong.message,
        "{unknown:?} {wrong:?}"
    );
    ensure!(
        (&unknown.code, &unknown.hint) == (&wrong.code, &wrong.hint),
        "{unknown:?} {wrong:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_expired_and_a_revoked_credential_say_so_to_their_owner_only() -> Result<()> {
    let hoop = Hoop::start().await?;
    let short = hoop.login(&hoop.credential_for(CONNECTION, json!({"ttl_seconds": 1})).await?)?;
    let expired = eventually("it has expired", Duration::from_secs(15), async || {
        let told = told(&short).await?;
        Ok(Some(told))
    })
    .await?;
    ensure!(
        expired.code == "28000" && expired.message.contains("expired"),
        "{expired:?}"
    );
    ensure!(!expired.hint.is_empty(), "{expired:?}");
    ensure!(told(&short.password("not-it")).await?.code == "28P01");
    let credential = hoop.credential(CONNECTION).await?;
    let me = hoop.login(&credential)?;
    hoop.api
        .delete(&format!("/api/credentials/{}", credential.user))
        .await?;
    let revoked = told(&me).await?;
    ensure!(
        revoked.code == "28000" && revoked.message.contains("revoked"),
        "{revoked:?}"
    );
    ensure!(told(&me.password("not-it")).await?.code == "28P01");
    Ok(())
}

#[tokio::test]
async fn without_its_agent_a_connection_says_which_one_is_missing() -> Result<()> {
    let hoop = Hoop::with(Options {
        agents: 0,
        ..Options::default()
    })
    .await?;
    let offline = told(&hoop.person().await?).await?;
    ensure!(
        offline.code == "08001" && offline.message.contains("default"),
        "{offline:?}"
    );
    ensure!(!offline.hint.is_empty(), "{offline:?}");
    Ok(())
}

#[tokio::test]
async fn an_unreachable_target_is_told_without_its_address() -> Result<()> {
    let mut hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    hoop.target
        .superuser("postgres")
        .await?
        .batch_execute("checkpoint")
        .await?;
    // The store lives in the same cluster here, so another target is used that nobody listens at.
    let port = hoop_tests::cluster::free_port()?;
    hoop.connection("nowhere", json!({"port": port})).await?;
    let down = told(&hoop.login(&hoop.credential("nowhere").await?)?).await?;
    ensure!(down.code == "08001" && !down.hint.is_empty(), "{down:?}");
    ensure!(!format!("{down:?}").contains(&port.to_string()), "{down:?}");
    ensure!(
        me.query("select 1").await? == "1",
        "other connections are not concerned"
    );
    hoop.agents.clear();
    Ok(())
}

#[tokio::test]
async fn a_login_that_the_target_refuses_is_told_without_its_account() -> Result<()> {
    let hoop = Hoop::start().await?;
    hoop.connection("wrong", json!({"secret": {"value": "not-it"}})).await?;
    let refused = told(&hoop.login(&hoop.credential("wrong").await?)?).await?;
    ensure!(refused.code.starts_with("28"), "{refused:?}");
    ensure!(
        !refused.message.contains("\"app\""),
        "the target's account was told: {refused:?}"
    );
    hoop.connection("empty", json!({"secret": null})).await?;
    let missing = told(&hoop.login(&hoop.credential("empty").await?)?).await?;
    ensure!(
        missing.code.starts_with("28") || missing.code.starts_with("08"),
        "{missing:?}"
    );
    Ok(())
}

#[tokio::test]
async fn only_the_connections_databases_may_be_asked_for() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    ensure!(me.database("app").query("select current_database()").await? == "app");
    let other = told(&me.database("postgres")).await?;
    ensure!(other.code == "3D000" && other.message.contains("postgres"), "{other:?}");
    hoop.connection("any", json!({"databases": ["*"]})).await?;
    let any = hoop.login(&hoop.credential("any").await?)?;
    ensure!(any.database("postgres").query("select current_database()").await? == "postgres");
    let absent = told(&any.database("absent")).await?;
    ensure!(absent.code == "3D000", "{absent:?}");
    Ok(())
}

#[tokio::test]
async fn replication_is_refused_clearly() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let said = me
        .psql(&["-d", "replication=database", "-c", "IDENTIFY_SYSTEM"])
        .await?;
    ensure!(
        !said.ok && said.err.contains("FATAL") && said.err.to_lowercase().contains("replication"),
        "{}",
        said.err
    );
    Ok(())
}

#[tokio::test]
async fn a_target_that_the_agent_does_not_allow_is_refused_by_rule_and_name() -> Result<()> {
    let allow = ("HOOP_AGENT_ALLOW".to_owned(), "10.0.0.0/8:5432".to_owned());
    let options = Options {
        agent_env: vec![allow],
        first_login: false,
        ..Options::default()
    };
    let hoop = Hoop::with(options).await?;
    let me = hoop.person().await?;
    let refused = eventually("the agent answers", Duration::from_secs(20), async || {
        let told = told(&me).await?;
        Ok((!told.message.contains("offline") && !told.message.contains("not connected")).then_some(told))
    })
    .await?;
    ensure!(
        refused.code == "08001" && refused.message.contains("default"),
        "{refused:?}"
    );
    Ok(())
}
