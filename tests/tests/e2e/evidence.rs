//! Evidence: every statement is in the record, the record is whole, changes to it are named, nothing is in clear.

use anyhow::{Context as _, Result, ensure};
use hoop_tests::cluster::STORE;
use hoop_tests::full_only;
use hoop_tests::hoop::{Hoop, Options, StoreKind};
use hoop_tests::process::{Said, read_lossy};
use hoop_tests::record::{number, text};
use serde_json::json;

use super::psql::script;

const STATEMENT_RECORD_BYTES: u64 = 256 * 1024;

#[tokio::test]
async fn every_statement_is_attempt_and_outcome() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "simple");
    let text_of = "create table t (id int);\nselect 'seen-by-all' as a, 1 as b;\nselect * from nowhere;\n\
                   \\copy t from pstdin\n1\n2\n\\.\n";
    script(&me, text_of, &["-v", "ON_ERROR_STOP=0"]).await?;
    let record = hoop.record("simple").await?;
    let started = record.events.first().context("started")?;
    ensure!(
        text(started, "connection") == "app" && text(started, "user") == "admin",
        "{started}"
    );
    let (attempt, outcome) = record.statement("seen-by-all")?;
    ensure!(text(attempt, "statement_kind") == "query", "{attempt}");
    ensure!(
        text(outcome, "status") == "ok" && text(outcome, "tag") == "SELECT 1",
        "{outcome}"
    );
    ensure!(number(outcome, "rows") == 1, "{outcome}");
    let shown: String = record
        .of("output")
        .into_iter()
        .map(|event| text(event, "text"))
        .collect();
    ensure!(shown.contains("seen-by-all\t1"), "{shown}");
    let (_, outcome) = record.statement("nowhere")?;
    ensure!(
        text(outcome, "status") == "error" && text(outcome, "sqlstate") == "42P01",
        "{outcome}"
    );
    let (_, outcome) = record.statement("COPY")?;
    ensure!(text(outcome, "tag") == "COPY 2", "{outcome}");
    Ok(())
}

#[tokio::test]
async fn bound_parameters_are_recorded_with_their_statement() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.sslmode("disable");
    let mut config = tokio_postgres::Config::new();
    config
        .host(&me.address)
        .port(me.port)
        .user(&me.user)
        .password(&me.password)
        .application_name("bound");
    let client = hoop_tests::cluster::connect(&config).await?;
    let statement = client.prepare("select $1::text || $2::text").await?;
    for value in ["first", "second"] {
        client.query_one(&statement, &[&value, &"-param"]).await?;
    }
    client.query_one("select $1::int4", &[&None::<i32>]).await?;
    drop((statement, client));
    let record = hoop.record("bound").await?;
    let params = |attempt: &serde_json::Value| {
        let params = attempt
            .get("params")
            .and_then(|params| params.as_array())
            .cloned()
            .unwrap_or_default();
        params.iter().map(|param| text(param, "text")).collect::<Vec<_>>()
    };
    let seen: Vec<_> = record
        .of("attempt")
        .into_iter()
        .filter(|a| text(a, "text").contains("||"))
        .map(params)
        .collect();
    ensure!(seen == [["first", "-param"], ["second", "-param"]], "{seen:?}");
    let (attempt, _) = record.statement("$1::int4")?;
    ensure!(attempt.pointer("/params/0/null") == Some(&json!(true)), "{attempt}");
    Ok(())
}

#[tokio::test]
async fn a_function_call_is_a_statement() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "fastpath");
    let file = hoop.scratch.path().join("object");
    std::fs::write(&file, "large object")?;
    script(&me, &format!("\\lo_import '{}'\n", file.display()), &[])
        .await?
        .success()?;
    let record = hoop.record("fastpath").await?;
    ensure!(
        record
            .of("attempt")
            .iter()
            .any(|a| text(a, "statement_kind") == "function_call"),
        "{:#?}",
        record.events
    );
    Ok(())
}

#[tokio::test]
async fn a_large_result_is_cut_and_the_cut_says_what_was_sent() -> Result<()> {
    let hoop = Hoop::start().await?;
    let sql = "select repeat('x', 1000) from generate_series(1, 2000)";
    let me = hoop.person().await?.with("PGAPPNAME", "large");
    me.query(sql).await?;
    let record = hoop.record("large").await?;
    let total = *record
        .of("cut")
        .iter()
        .find(|cut| text(cut, "total") == "true")
        .context("no total")?;
    ensure!(
        text(total, "limit") == "statement" && number(total, "rows") == 2000,
        "{total}"
    );
    ensure!(
        number(total, "bytes") > 2_000_000 && text(total, "sha256").len() == 64,
        "{total}"
    );
    ensure!(number(total, "recorded_bytes") <= STATEMENT_RECORD_BYTES, "{total}");
    for (name, setting) in [("off", "off"), ("full", "full")] {
        hoop.connection(name, json!({"record": setting})).await?;
        let me = hoop.login(&hoop.credential(name).await?)?.with("PGAPPNAME", name);
        me.query(sql).await?;
    }
    let off = hoop.record("off").await?;
    ensure!(
        off.of("output").is_empty() && !off.of("cut").is_empty(),
        "{:?}",
        off.of("cut")
    );
    let (_, outcome) = off.statement("repeat")?;
    ensure!(number(outcome, "rows") == 2000, "{outcome}");
    let full = hoop.record("full").await?;
    ensure!(full.of("cut").is_empty(), "{:?}", full.of("cut"));
    let rows: usize = full
        .of("output")
        .into_iter()
        .map(|event| text(event, "text").lines().count())
        .sum();
    ensure!(rows == 2000, "{rows}");
    Ok(())
}

/// What a session's results are recorded up to by default.
const SESSION_RECORD_BYTES: u64 = 64 * 1024 * 1024;

#[tokio::test]
async fn a_session_with_many_results_is_cut_once_and_says_so() -> Result<()> {
    full_only!("a_session_with_many_results_is_cut_once_and_says_so");
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "talkative");
    // Each result just within its statement's own limit.
    let one = "select repeat('y', 1000) from generate_series(1, 250);\n";
    let file = hoop.scratch.path().join("many.sql");
    std::fs::write(&file, one.repeat(300))?;
    let said = me.psql(&["-o", "/dev/null", "-f", &file.display().to_string()]).await?;
    said.success()?;
    let record = hoop.record("talkative").await?;
    let cuts: Vec<_> = record
        .of("cut")
        .into_iter()
        .filter(|cut| text(cut, "limit") == "session")
        .collect();
    let session: Vec<_> = cuts.iter().filter(|cut| number(cut, "statement") == 0).collect();
    ensure!(session.len() == 1, "{cuts:#?}");
    ensure!(
        number(session[0], "recorded_bytes") == SESSION_RECORD_BYTES,
        "{session:#?}"
    );
    let recorded: u64 = record
        .of("output")
        .into_iter()
        .map(|event| text(event, "text").len() as u64)
        .sum();
    ensure!(recorded <= SESSION_RECORD_BYTES, "{recorded}");
    // All statements are on record, also those whose results are not, with what was sent.
    ensure!(record.of("attempt").len() == 300 && record.of("outcome").len() == 300);
    let totals: Vec<_> = cuts.iter().filter(|cut| text(cut, "total") == "true").collect();
    ensure!(totals.len() > 20, "{}", totals.len());
    for total in totals {
        ensure!(
            number(total, "rows") == 250 && text(total, "sha256").len() == 64,
            "{total}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn each_audit_mode_serves_and_is_recorded() -> Result<()> {
    let hoop = Hoop::start().await?;
    for mode in ["synced", "strict"] {
        hoop.connection(mode, json!({"audit_mode": mode})).await?;
        let me = hoop.login(&hoop.credential(mode).await?)?.with("PGAPPNAME", mode);
        ensure!(me.query("select 'kept'").await? == "kept");
        let record = hoop.record(mode).await?;
        ensure!(record.events.first().map(|event| text(event, "audit_mode")).as_deref() == Some(mode));
        record.statement("kept")?;
    }
    Ok(())
}

#[tokio::test]
async fn verify_passes_on_what_was_left_alone_from_the_database_and_from_an_export() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?.with("PGAPPNAME", "honest");
    me.query("select 1").await?;
    let session = hoop.record("honest").await?.session;
    hoop.verify(&["--all"]).await?.success()?;
    hoop.verify(&["--session", &session]).await?.success()?;
    let export = hoop.scratch.path().join("export").display().to_string();
    hoop.gateway()?.tool(&["export", "--out", &export]).await?.success()?;
    hoop.verify(&["--from", &export]).await?.success()?;
    ensure!(
        !read_or_empty(&export).contains("select 1"),
        "an export is sealed as the store is"
    );
    let other = "11".repeat(32);
    let said = hoop.gateway()?.tool(&["verify", "--root", &other, "--all"]).await?;
    ensure!(
        !said.ok,
        "a key that is not the installation's root was believed:\n{}",
        said.out
    );
    Ok(())
}

/// Runs `verify --all` on a copy of the store that `sql` has changed.
async fn tampered(hoop: &Hoop, name: &str, sql: &str) -> Result<Said> {
    let store = hoop.store_cluster();
    let superuser = store.superuser("postgres").await?;
    superuser
        .batch_execute(&format!("create database {name} template {STORE}"))
        .await?;
    store
        .superuser(name)
        .await?
        .batch_execute(sql)
        .await
        .with_context(|| sql.to_owned())?;
    let gateway = hoop.gateway()?;
    let url = store.url(name);
    gateway
        .tool_with(
            &[("DATABASE_URL", &url)],
            &["verify", "--root", &gateway.ready.root_key, "--all"],
        )
        .await
}

#[tokio::test]
async fn each_change_to_the_record_is_named() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        store: StoreKind::Own,
        ..Options::default()
    })
    .await?;
    for application in ["first", "second"] {
        let me = hoop.person().await?.with("PGAPPNAME", application);
        me.query("select repeat('y', 300) from generate_series(1, 500)").await?;
        hoop.record(application).await?;
        // Each incarnation of the gateway is a writer of its own; a clean stop signs a last checkpoint.
        hoop.gateway()?.process.signal("TERM")?;
        let gateway = hoop.gateway_mut()?;
        hoop_tests::process::eventually("the gateway stopped", std::time::Duration::from_secs(30), async || {
            Ok((!gateway.process.alive()).then_some(()))
        })
        .await?;
        hoop.gateway_mut()?.start_again().await?;
        hoop.wait_for_agent().await?;
    }
    hoop.gateway_mut()?.process.kill_hard()?;
    let untouched = tampered(&hoop, "untouched", "select 1").await?;
    ensure!(untouched.ok, "{}\n{}", untouched.out, untouched.err);
    let first_session = "(select id from sessions where application = 'first' limit 1)";
    let first_writer = "(select id from writers order by started_at_us limit 1)";
    let cases = [
        (
            "swapped",
            "update writer_log a set payload = b.payload from writer_log b \
             where a.writer = b.writer and ((a.seq = 2 and b.seq = 3) or (a.seq = 3 and b.seq = 2))"
                .to_owned(),
            "changed",
        ),
        (
            "tail_cut",
            format!(
                "delete from writer_log where writer = {first_writer} and seq = \
                 (select max(seq) from writer_log where writer = {first_writer})"
            ),
            "missing",
        ),
        (
            "session_deleted",
            format!(
                "create temp table s as select {first_session} as id; \
                 delete from chunks where session in (select id from s); \
                 delete from sessions where id in (select id from s); \
                 delete from writer_log where payload like '%' || (select id::text from s) || '%'"
            ),
            "missing",
        ),
        (
            "chunks_deleted",
            format!("delete from chunks where session = {first_session}"),
            "missing",
        ),
        (
            "chunk_changed",
            format!(
                "update chunks set stored = set_byte(stored, 20, get_byte(stored, 20) # 1) where session = {first_session}"
            ),
            "changed",
        ),
        (
            "writer_deleted",
            format!(
                "create temp table w as select {first_writer} as id; \
                 delete from chunks where session in (select id from sessions where writer in (select id from w)); \
                 delete from sessions where writer in (select id from w); \
                 delete from checkpoints where writer in (select id from w); \
                 delete from writer_log where writer in (select id from w); \
                 delete from writers where id in (select id from w)"
            ),
            "missing",
        ),
    ];
    for (name, sql, word) in cases {
        let said = tampered(&hoop, name, &sql).await?;
        ensure!(!said.ok, "{name} was not noticed:\n{}", said.out);
        ensure!(said.out.contains(word), "{name}: no {word:?} in\n{}", said.out);
    }
    Ok(())
}

#[tokio::test]
async fn neither_database_nor_journal_nor_logs_hold_anything_in_clear() -> Result<()> {
    let hoop = Hoop::start().await?;
    let credential = hoop.credential("app").await?;
    let me = hoop.login(&credential)?.with("PGAPPNAME", "secretive");
    let (statement, result) = ("statement_marker_5x1", "result-marker-7Q");
    me.query(&format!("select 'result-' || 'marker-7Q' as {statement}"))
        .await?;
    hoop.record("secretive").await?;
    let gateway = hoop.gateway()?;
    let key = std::fs::read_to_string(&gateway.ready.agent_key_file)?;
    let token = key.split(['@', ':']).nth(2).context("the agent's token")?.to_owned();
    let admin = std::fs::read_to_string(&gateway.ready.admin_password_file)?;
    let master = std::fs::read_to_string(hoop.scratch.path().join("master.key"))?;
    let secrets = [
        ("statement", statement),
        ("result", result),
        ("target's password", hoop.target_password.as_str()),
        ("credential's password", credential.password.as_str()),
        ("admin's password", admin.trim()),
        ("agent's token", token.as_str()),
        ("master key", master.trim()),
    ];
    let mut places: Vec<(String, String)> = vec![("database".into(), hoop.store_cluster().dump(STORE).await?)];
    for file in files(&gateway.dir.join("journal"))? {
        places.push((file.display().to_string(), read_lossy(&file)));
    }
    ensure!(places.len() > 1, "no journal was looked at");
    places.push(("gateway's log".into(), gateway.process.log()));
    places.push((
        "agent's log".into(),
        hoop.agents.first().context("agent")?.process.log(),
    ));
    places.push(("the API's lists".into(), {
        let mut all = String::new();
        for path in [
            "/api/connections",
            "/api/credentials",
            "/api/agents",
            "/api/users",
            "/api/sessions",
        ] {
            all += &hoop.api.get(path).await?.to_string();
        }
        all
    }));
    let pids: Vec<u32> = hoop.pids().collect();
    for pid in pids {
        places.push((
            "a command line".into(),
            read_lossy(std::path::Path::new(&format!("/proc/{pid}/cmdline"))),
        ));
    }
    for (place, content) in &places {
        for (what, secret) in &secrets {
            ensure!(!content.contains(secret), "the {what} is in clear in the {place}");
        }
    }
    Ok(())
}

fn files(folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?)
        } else {
            found.push(path)
        }
    }
    Ok(found)
}

fn read_or_empty(path: &str) -> String {
    read_lossy(std::path::Path::new(path))
}
