//! The end-to-end tests' own programs against PostgreSQL itself: where these fail, the gateway is not to blame.

use anyhow::{Context as _, Result};
use hoop_tests::clients::{Login, run_node, run_python};
use hoop_tests::cluster::{APP, Cluster, Make, scratch};
use hoop_tests::pgbouncer::{Account, Pgbouncer};

const PASSWORD: &str = "control";

#[tokio::test]
async fn the_client_programs_pass_without_a_gateway() -> Result<()> {
    let scratch = scratch()?;
    let target = Cluster::start(
        &scratch.path().join("target"),
        Make {
            tls: true,
            ..Make::default()
        },
    )
    .await?;
    target.set_password(APP, PASSWORD, "scram-sha-256").await?;
    let plain = Login::plain(target.port, APP, PASSWORD, APP);
    let mut tls = plain.sslmode("verify-full");
    tls.ca_file = scratch.path().join("ca.pem");
    std::fs::write(&tls.ca_file, &target.ca_pem)?;
    for login in [plain.clone(), tls] {
        let mode = || login.sslmode.clone();
        assert_eq!(login.query("select 1").await.with_context(mode)?, "1");
        run_python(&login, "psycopg_client.py", &["3.0"])
            .await?
            .success()
            .with_context(mode)?;
        run_python(&login, "asyncpg_client.py", &[])
            .await?
            .success()
            .with_context(mode)?;
        run_node(&login, "node_client.mjs", &[])
            .await?
            .success()
            .with_context(mode)?;
    }
    assert!(target.log().contains("statement: select 1"), "the oracle hears nothing");
    let account = Account {
        user: APP,
        password: PASSWORD,
        database: APP,
    };
    let bouncer = Pgbouncer::start(&scratch.path().join("pgbouncer"), &target, &account, "session", true).await?;
    assert_eq!(plain.port(bouncer.port).query("select 2").await?, "2");
    Ok(())
}
