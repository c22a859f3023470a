//! pgbouncer before a cluster: what people measure a gateway against.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cluster::{Cluster, as_unprivileged, connect, free_port, hand_over};
use crate::process::Process;

const START_DEADLINE: Duration = Duration::from_secs(10);

/// A running pgbouncer.
#[derive(Debug)]
pub struct Pgbouncer {
    pub port: u16,
    process: Process,
}

/// Whom it lets in, and how it logs in to the cluster.
#[derive(Debug, Clone)]
pub struct Account<'a> {
    pub user: &'a str,
    pub password: &'a str,
    pub database: &'a str,
}

impl Pgbouncer {
    /// Starts it in `dir` with SCRAM towards the client. `pool` is `session` or `transaction`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub async fn start(dir: &Path, target: &Cluster, account: &Account<'_>, pool: &str, tls: bool) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let port = free_port()?;
        let Account {
            user,
            password,
            database,
        } = account;
        let users = dir.join("users.txt");
        fs::write(&users, format!("\"{user}\" \"{password}\"\n"))?;
        let mut text = format!(
            "[databases]\n{database} = host=127.0.0.1 port={} dbname={database}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = {pool}\n\
             max_client_conn = 1000\ndefault_pool_size = 600\nignore_startup_parameters = extra_float_digits\n",
            target.port,
            users.display(),
        );
        if tls {
            let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
            fs::write(&certificate, made.cert.pem())?;
            fs::write(&key, made.signing_key.serialize_pem())?;
            text += &format!(
                "client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n",
                certificate.display(),
                key.display()
            );
        }
        let ini = dir.join("pgbouncer.ini");
        fs::write(&ini, text)?;
        hand_over(dir)?;
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let mut command = as_unprivileged(program.context("no pgbouncer: ./dev setup installs it")?)?;
        command.arg(&ini);
        let mut process = Process::spawn("pgbouncer", command, &dir.join("log"), "INT")?;
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(port)
            .user(*user)
            .password(*password)
            .dbname(*database);
        process
            .until("ready", START_DEADLINE, async || connect(&config).await.ok())
            .await?;
        Ok(Self { port, process })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
