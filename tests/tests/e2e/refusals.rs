//! Refusals: an error of PostgreSQL's own that says what happened and what to do.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hoop_tests::clients::{Login, run_python};
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

impl Told {
    /// All of it, word for word.
    fn is(&self, code: &str, message: &str, hint: &str) -> Result<()> {
        let expected = Self {
            code: code.to_owned(),
            message: message.to_owned(),
            hint: hint.to_owned(),
        };
        ensure!(*self == expected, "told {self:#?}, expected {expected:#?}");
        Ok(())
    }
}

/// Where a person makes a new credential.
fn credentials_url(hoop: &Hoop) -> Result<String> {
    let api = &hoop.gateway()?.ready.api;
    let port = api.rsplit(':').next().context("port")?;
    Ok(format!("http://localhost:{port}/connections"))
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
    let hint = format!(
        "Check the password, or make a new credential in Hoop: {}",
        credentials_url(&hoop)?
    );
    for (told, user) in [(wrong, me.user.as_str()), (unknown, "c22222222")] {
        told.is(
            "28P01",
            &format!("password authentication failed for user \"{user}\""),
            &hint,
        )?;
    }
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
    let hint = format!(
        "Make a new credential at {} and connect with its user and password.",
        credentials_url(&hoop)?
    );
    let message = format!("the credential \"{}\" has expired", short.user);
    expired.is("28000", &message, &hint)?;
    ensure!(told(&short.password("not-it")).await?.code == "28P01");
    let credential = hoop.credential(CONNECTION).await?;
    let me = hoop.login(&credential)?;
    hoop.api
        .delete(&format!("/api/credentials/{}", credential.user))
        .await?;
    let revoked = told(&me).await?;
    let message = format!("the credential \"{}\" was revoked", me.user);
    revoked.is("28000", &message, &hint)?;
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
    offline.is(
        "08001",
        "the agent \"default\" of this connection is not online",
        "Ask the operator to start hoop-agent with this agent's HOOP_KEY; then connect again.",
    )
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
    down.is(
        "08001",
        "agent \"default\" cannot reach the target of connection \"nowhere\"",
        "Check that the target is running and that the agent's network reaches it; the agent's log names the cause.",
    )?;
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
    refused.is(
        "28P01",
        "the target refused the login: password authentication failed for user \"…\"",
        "Ask whoever keeps this connection to check its user, password and database at the target",
    )?;
    hoop.connection("empty", json!({"secret": null})).await?;
    let missing = told(&hoop.login(&hoop.credential("empty").await?)?).await?;
    missing.is(
        "08001",
        "the target asks for a password and the connection has none",
        "Give the connection the target's password, or a reference that the agent can resolve",
    )
}

#[tokio::test]
async fn only_the_connections_databases_may_be_asked_for() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    ensure!(me.database("app").query("select current_database()").await? == "app");
    let other = told(&me.database("postgres")).await?;
    other.is(
        "3D000",
        "the connection \"app\" does not allow the database \"postgres\"",
        "It allows: app. Leave the database out to get the first.",
    )?;
    hoop.connection("any", json!({"databases": ["*"]})).await?;
    let any = hoop.login(&hoop.credential("any").await?)?;
    ensure!(any.database("postgres").query("select current_database()").await? == "postgres");
    let absent = told(&any.database("absent")).await?;
    absent.is(
        "3D000",
        "the target refused the login: database \"absent\" does not exist",
        "Ask whoever keeps this connection to check its user, password and database at the target",
    )
}

#[tokio::test]
async fn replication_is_refused_clearly() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let said = me
        .psql(&["-d", "replication=database", "-c", "IDENTIFY_SYSTEM"])
        .await?;
    let told = "FATAL:  replication connections are not served by Hoop\n\
                HINT:  Use pg_dump or COPY to move data; a replica must connect to the database itself.\n";
    ensure!(!said.ok && said.err.ends_with(told), "{}", said.err);
    // psql shows no SQLSTATE of a refused login.
    let said = run_python(&me.sslmode("disable"), "asyncpg_refusal.py", &[])
        .await?
        .success()?;
    ensure!(
        said.out
            == "0A000\n\
                replication connections are not served by Hoop\n\
                Use pg_dump or COPY to move data; a replica must connect to the database itself.\n",
        "{}",
        said.out
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
    refused.is(
        "08001",
        "agent \"default\" may not connect to this target by its list allow, which has no rule for this target",
        "An administrator of the agent must allow the target in the agent's own configuration.",
    )
}
