//! The libraries that programs use, each over TLS and without.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::{SinkExt as _, TryStreamExt as _};
use hoop_tests::clients::{CLIENT_DEADLINE, Jdbc, Login, run_node, run_python};
use hoop_tests::hoop::Hoop;
use hoop_tests::process::run;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio_postgres_rustls::MakeRustlsConnect;

#[tokio::test]
async fn psycopg_speaks_protocol_3_2_and_direct_tls() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    for (login, arguments) in [
        (me.sslmode("disable"), vec!["3.0"]),
        (me.sslmode("disable"), vec!["3.2"]),
        (me.clone(), vec!["3.0"]),
        (me.clone(), vec!["3.2"]),
        (me.clone(), vec!["3.2", "direct"]),
    ] {
        let said = run_python(&login, "psycopg_client.py", &arguments).await?;
        said.success()
            .with_context(|| format!("{} {arguments:?}", login.sslmode))?;
    }
    Ok(())
}

#[tokio::test]
async fn asyncpg_runs_its_whole_repertoire() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    for login in [me.sslmode("disable"), me] {
        run_python(&login, "asyncpg_client.py", &[])
            .await?
            .success()
            .with_context(|| login.sslmode.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn node_postgres_runs_its_whole_repertoire() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    for login in [me.sslmode("disable"), me] {
        run_node(&login, "node_client.mjs", &[])
            .await?
            .success()
            .with_context(|| login.sslmode.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn jdbc_runs_its_whole_repertoire() -> Result<()> {
    let Some(jdbc) = Jdbc::find() else {
        hoop_tests::skipped(
            "jdbc_runs_its_whole_repertoire",
            "there is no javac or no pgjdbc; Debian's default-jdk-headless and libpostgresql-jdbc-java, or ./dev test --full",
        );
        return Ok(());
    };
    let hoop = Hoop::start().await?;
    let classes = jdbc.compile(&hoop.scratch.path().join("classes")).await?;
    let me = hoop.person().await?;
    for login in [me.sslmode("disable"), me] {
        run(jdbc.command(&login, &classes), CLIENT_DEADLINE)
            .await?
            .success()
            .with_context(|| login.sslmode.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn tokio_postgres_pipelines_copies_and_cancels() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    repertoire(&me.connect().await?).await?;
    let client = connect_tls(&me).await?;
    repertoire(&client).await?;
    let token = client.cancel_token();
    let tls = connector(&me)?;
    let sleep = client.batch_execute("select pg_sleep(60)");
    let cancel = async {
        super::psql::await_active(&hoop, "pg_sleep(60)").await?;
        anyhow::Ok(token.cancel_query(tls).await?)
    };
    let (slept, cancelled) = tokio::join!(sleep, cancel);
    cancelled?;
    let error = slept.err().context("it slept on")?;
    assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error:?}");
    assert_eq!(
        client.query_one("select 7", &[]).await?.get::<_, i32>(0),
        7,
        "the session lives on"
    );
    Ok(())
}

async fn repertoire(client: &tokio_postgres::Client) -> Result<()> {
    client.batch_execute("create temp table t (id int, v text)").await?;
    let insert = client.prepare("insert into t values ($1, $2)").await?;
    // Polled together, these go out as one pipeline.
    let numbers: Vec<i32> = (0..200).collect();
    let sent = numbers.iter().map(|id| {
        let insert = &insert;
        async move { client.execute(insert, &[id, &format!("v{id}")]).await }
    });
    let done = futures_util::future::join_all(sent).await;
    assert!(done.into_iter().all(|rows| matches!(rows, Ok(1))));
    let (good, bad, after) = tokio::join!(
        client.query_one("select count(*) from t", &[]),
        client.query("select 1/0", &[]),
        client.query_one("select max(id) from t where id > $1", &[&3_i32]),
    );
    assert_eq!(good?.get::<_, i64>(0), 200);
    assert_eq!(
        bad.err()
            .as_ref()
            .and_then(|error| error.code())
            .map(|code| code.code()),
        Some("22012")
    );
    assert_eq!(after?.get::<_, i32>(0), 199);
    let sink = client.copy_in("copy t from stdin").await?;
    let mut sink = std::pin::pin!(sink);
    for id in 0..1000 {
        sink.send(bytes::Bytes::from(format!("{id}\tcopied\n"))).await?;
    }
    assert_eq!(sink.finish().await?, 1000);
    let stream = client
        .copy_out("copy (select * from t where v = 'copied') to stdout")
        .await?;
    let copied: Vec<bytes::Bytes> = stream.try_collect().await?;
    assert_eq!(
        copied
            .iter()
            .map(|part| part.iter().filter(|byte| **byte == b'\n').count())
            .sum::<usize>(),
        1000
    );
    Ok(())
}

/// tokio-postgres over TLS, the gateway's certificate checked against the installation's CA.
pub async fn connect_tls(login: &Login) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("localhost")
        .hostaddr(login.address.parse()?)
        .port(login.port)
        .user(&login.user);
    config
        .password(&login.password)
        .dbname(&login.database)
        .ssl_mode(tokio_postgres::config::SslMode::Require);
    config.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    let (client, connection) = config.connect(connector(login)?).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn connector(login: &Login) -> Result<MakeRustlsConnect> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&login.ca_file)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
