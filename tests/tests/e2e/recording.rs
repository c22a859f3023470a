//! What is recorded of a session beside its statements and their results: texts that are only prepared, the input of
//! COPY, and the settings of a login.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::SinkExt as _;
use hoop_tests::clients::Login;
use hoop_tests::hoop::Hoop;
use hoop_tests::record::{Record, number, text};
use serde_json::{Value, json};

/// What is recorded of one statement's input by default.
const INPUT_RECORD_BYTES: u64 = 256 * 1024;

/// tokio-postgres without TLS, with a name and `options`.
fn config(me: &Login, application: &str, options: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&me.address)
        .port(me.port)
        .user(&me.user)
        .password(&me.password)
        .application_name(application);
    if !options.is_empty() {
        config.options(options);
    }
    config
}

/// What became of this event's statement.
fn outcome<'a>(record: &'a Record, event: &Value) -> Result<&'a Value> {
    let statement = number(event, "statement");
    let outcomes = record.of("outcome");
    let found = outcomes.into_iter().find(|it| number(it, "statement") == statement);
    found.with_context(|| format!("no outcome of {event}"))
}

#[tokio::test]
async fn a_text_that_is_prepared_and_never_run_is_recorded_with_its_parameters_and_its_error() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let mut client = hoop_tests::cluster::connect(&config(&me, "prepared", "")).await?;
    let statement = client.prepare("select $1::text as only_bound").await?;
    let refused = client.prepare("selec 'not sql'").await;
    ensure!(refused.is_err(), "the target took it");
    let transaction = client.transaction().await?;
    transaction.bind(&statement, &[&"bound-value"]).await?;
    transaction.rollback().await?;
    for value in ["one", "two"] {
        client.query_one(&statement, &[&value]).await?;
    }
    drop((statement, client));
    let record = hoop.record("prepared").await?;
    let prepared = record.of("prepared");
    let kinds: Vec<_> = prepared
        .iter()
        .map(|it| (text(it, "statement_kind"), text(it, "text")))
        .collect();
    let (bound, wrong) = ("select $1::text as only_bound", "selec 'not sql'");
    let expected = [("parse", bound), ("parse", wrong), ("bind", bound)];
    ensure!(
        kinds == expected.map(|(kind, text)| (kind.to_owned(), text.to_owned())),
        "{kinds:?}"
    );
    let (parse, failed, bind) = (prepared[0], prepared[1], prepared[2]);
    ensure!(text(outcome(&record, parse)?, "status") == "ok");
    let failure = outcome(&record, failed)?;
    ensure!(
        text(failure, "status") == "error" && text(failure, "sqlstate") == "42601",
        "{failure}"
    );
    ensure!(bind.pointer("/params/0/text") == Some(&json!("bound-value")), "{bind}");
    let run: Vec<_> = record
        .of("attempt")
        .into_iter()
        .filter(|it| text(it, "text") == bound)
        .map(|it| it.pointer("/params/0/text").cloned())
        .collect();
    ensure!(run == [Some(json!("one")), Some(json!("two"))], "{run:?}");
    let ended = record.of("ended");
    let statements = ended.first().map(|ended| number(ended, "statements"));
    ensure!(
        statements == Some(record.of("attempt").len() as u64),
        "what is only prepared was counted: {ended:?}"
    );
    hoop.verify(&["--all"]).await?.success()?;
    Ok(())
}

#[tokio::test]
async fn what_is_run_with_its_parse_and_its_bind_is_one_attempt() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let client = hoop_tests::cluster::connect(&config(&me, "at-once", "")).await?;
    // It sends Parse, Bind, Describe, Execute and Sync together.
    client.query_typed("select 1", &[]).await?;
    drop(client);
    let record = hoop.record("at-once").await?;
    record.statement("select 1")?;
    ensure!(record.of("prepared").is_empty(), "{:?}", record.of("prepared"));
    Ok(())
}

/// Copies rows in through a connection of this name; gives them, and the record.
async fn copied(hoop: &Hoop, connection: &str) -> Result<(String, Record)> {
    let me = hoop.login(&hoop.credential(connection).await?)?;
    let client = hoop_tests::cluster::connect(&config(&me, connection, "")).await?;
    client
        .batch_execute("create table if not exists copied (id int, v text); truncate copied")
        .await?;
    let sink = client.copy_in("copy copied from stdin").await?;
    let mut sink = std::pin::pin!(sink);
    let mut rows = String::new();
    for id in 0..5_000 {
        let row = format!("{id}\t{}\n", "v".repeat(100));
        rows.push_str(&row);
        sink.send(Bytes::from(row)).await?;
    }
    ensure!(sink.finish().await? == 5_000);
    drop(client);
    Ok((rows, hoop.record(connection).await?))
}

/// What these CopyData messages carry.
fn bodies(mut messages: &[u8]) -> Vec<u8> {
    let mut bodies = Vec::new();
    while let Some((b"d", rest)) = messages.split_at_checked(1) {
        let length = rest
            .first_chunk()
            .map_or(4, |length| u32::from_be_bytes(*length) as usize);
        bodies.extend_from_slice(rest.get(4..length).unwrap_or_default());
        messages = rest.get(length..).unwrap_or_default();
    }
    bodies
}

#[tokio::test]
async fn the_input_of_copy_is_recorded_and_its_cut_says_what_was_sent() -> Result<()> {
    let hoop = Hoop::start().await?;
    for setting in ["default", "full", "off"] {
        hoop.connection(&format!("copy-{setting}"), json!({"record": setting}))
            .await?;
    }
    let texts = |record: &Record| {
        record
            .of("input")
            .into_iter()
            .map(|it| text(it, "text"))
            .collect::<String>()
    };
    let (rows, full) = copied(&hoop, "copy-full").await?;
    ensure!(full.of("input_cut").is_empty(), "{:?}", full.of("input_cut"));
    let (attempt, outcome) = full.statement("copy copied")?;
    ensure!(text(outcome, "tag") == "COPY 5000", "{outcome}");
    let place = |wanted: &Value| full.events.iter().position(|it| it == wanted);
    let first = full.of("input").into_iter().next().context("no input")?;
    ensure!(place(attempt) < place(first) && place(first) < place(outcome));
    ensure!(number(first, "statement") == number(attempt, "statement"), "{first}");

    // The same client sends the same bytes each time.
    let parts: Vec<String> = full.of("input").into_iter().map(|it| text(it, "base64")).collect();
    let sql = "select encode(sha256(all_of), 'hex'), all_of from (select string_agg(decode(part, 'base64'), '' order by at) \
               as all_of from unnest($1::text[]) with ordinality as parts (part, at)) as joined";
    let sent = hoop
        .target
        .superuser("postgres")
        .await?
        .query_one(sql, &[&parts])
        .await?;
    let (sha256, messages): (String, Vec<u8>) = (sent.get(0), sent.get(1));
    ensure!(bodies(&messages) == rows.as_bytes(), "not what was sent");
    let bytes = messages.len() as u64;

    let (_, cut) = copied(&hoop, "copy-default").await?;
    ensure!(rows.starts_with(&texts(&cut)), "not the beginning of what was sent");
    for (record, limit, recorded) in [
        (&cut, "statement", INPUT_RECORD_BYTES),
        (&copied(&hoop, "copy-off").await?.1, "off", 0),
    ] {
        let cuts = record.of("input_cut");
        let total = cuts.iter().find(|it| text(it, "total") == "true").context("no total")?;
        ensure!(text(total, "limit") == limit, "{total}");
        ensure!(number(total, "recorded_bytes") == recorded, "{total}");
        ensure!(
            text(total, "sha256") == sha256 && number(total, "bytes") == bytes,
            "{total} {sha256} {bytes}"
        );
        ensure!(number(total, "rows") > 0, "{total}");
    }
    hoop.verify(&["--all"]).await?.success()?;
    Ok(())
}

#[tokio::test]
async fn the_settings_of_a_login_are_attempts_with_an_outcome_and_count_as_statements() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let options = "-c geqo=off --search-path=pg_catalog,\\ public -c role=app";
    let client = hoop_tests::cluster::connect(&config(&me, "settings", options)).await?;
    let row = client
        .query_one(
            "select current_setting('geqo'), current_setting('search_path'), current_user::text",
            &[],
        )
        .await?;
    let seen: [String; 3] = [row.get(0), row.get(1), row.get(2)];
    ensure!(seen == ["off", "pg_catalog, public", "app"], "{seen:?}");
    drop(client);
    let record = hoop.record("settings").await?;
    let attempts = record.of("attempt");
    let startup: Vec<_> = attempts
        .iter()
        .filter(|it| text(it, "statement_kind") == "startup")
        .map(|it| (number(it, "statement"), text(it, "text")))
        .collect();
    let expected = [
        "SET geqo TO 'off'",
        "SET search_path TO 'pg_catalog, public'",
        "SET role TO 'app'",
    ];
    ensure!(
        startup.iter().map(|(_, text)| text.as_str()).eq(expected) && startup.iter().map(|(at, _)| *at).eq(1..=3),
        "{startup:?}"
    );
    for attempt in &attempts {
        ensure!(text(outcome(&record, attempt)?, "status") == "ok", "{attempt}");
    }
    let ended = record.of("ended");
    ensure!(
        ended.first().map(|it| number(it, "statements")) == Some(attempts.len() as u64),
        "{ended:?}"
    );
    Ok(())
}

/// The refusal of a login with these options: SQLSTATE, message, hint.
async fn told(me: &Login, application: &str, options: &str) -> Result<[String; 3]> {
    let Err(error) = hoop_tests::cluster::connect(&config(me, application, options)).await else {
        bail!("it was let in with {options:?}")
    };
    let error = error
        .downcast_ref::<tokio_postgres::Error>()
        .and_then(tokio_postgres::Error::as_db_error)
        .with_context(|| format!("not an ErrorResponse: {error:?}"))?;
    ensure!(error.severity() == "FATAL", "{error:?}");
    let hint = error.hint().unwrap_or_default();
    Ok([error.code().code(), error.message(), hint].map(str::to_owned))
}

#[tokio::test]
async fn a_setting_that_the_target_refuses_has_its_error_on_record() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let [code, message, _] = told(&me, "no-role", "-c role=nobody_at_all").await?;
    ensure!(
        code == "22023" && message.contains("does not exist"),
        "{code} {message}"
    );
    let record = hoop.record("no-role").await?;
    let (_, outcome) = record.statement("SET role TO 'nobody_at_all'")?;
    ensure!(
        text(outcome, "status") == "error" && text(outcome, "sqlstate") == "22023",
        "{outcome}"
    );
    Ok(())
}

#[tokio::test]
async fn options_that_are_no_settings_are_refused_before_the_target_is_reached() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let [code, message, hint] = told(&me, "switch", "-c geqo=off -F").await?;
    ensure!(
        code == "42501" && message.contains("-F") && !hint.is_empty(),
        "{code} {message} {hint}"
    );
    let record = hoop.record("switch").await?;
    ensure!(record.end() == "parameter_refused", "{:#?}", record.events);
    ensure!(record.of("attempt").is_empty(), "{:#?}", record.events);
    Ok(())
}
