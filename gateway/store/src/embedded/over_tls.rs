//! The store over TCP and TLS, with a certificate of our own authority: what each `sslmode` accepts. Tests only.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use base64::Engine;
use uuid::Uuid;

use super::cluster::Cluster;
use super::postmaster::Signal;
use crate::ca::{Ca, Leaf};
use crate::database_url::DatabaseUrl;
use crate::pool::Connector;
use crate::testing::{Folder, postgres_available};

const LIFE: std::time::Duration = std::time::Duration::from_secs(86_400);
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    child: Child,
    folder: Folder,
    port: u16,
}

impl Server {
    /// A server whose certificate is for `localhost` alone, over TLS only (`hba`: its pg_hba lines).
    async fn start(ca: &Ca, tls: bool, hba: &str) -> Self {
        let folder = Folder::new();
        let cluster = Cluster::prepare(folder.path()).await.unwrap();
        let data = cluster.data_dir();
        let mut access = OpenOptions::new().append(true).open(data.join("pg_hba.conf")).unwrap();
        writeln!(access, "{hba}").unwrap();
        let leaf = ca.issue_server(&["localhost".to_owned()], LIFE).unwrap();
        write_leaf(&leaf, &data.join("server.crt"), &data.join("server.key"));
        fs::write(data.join("root.crt"), ca.cert_pem()).unwrap();
        for name in ["server.crt", "server.key", "root.crt"] {
            chown(
                data.join(name),
                Some(cluster.owner.server.uid),
                Some(cluster.owner.server.gid),
            )
            .unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = cluster.command("postgres");
        command
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        command.arg("-c").arg(format!("port={port}"));
        if tls {
            command.args(["-c", "ssl=on", "-c", "ssl_ca_file=root.crt"]);
        }
        let log = OpenOptions::new().append(true).open(cluster.log()).unwrap();
        let child = command.stdout(Stdio::null()).stderr(Stdio::from(log)).spawn().unwrap();
        let server = Self { child, folder, port };
        let probe = server.url("localhost", if tls { "sslmode=require" } else { "sslmode=disable" });
        let up = async {
            // Any answer of PostgreSQL's own will do, a refused log-in too.
            while Connector::new(&probe).unwrap().connect().await.is_err_and(|e| {
                e.as_db_error()
                    .is_none_or(|db| *db.code() == tokio_postgres::error::SqlState::CANNOT_CONNECT_NOW)
            }) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.expect("a server that answers");
        server
    }

    fn url(&self, host: &str, query: &str) -> DatabaseUrl {
        DatabaseUrl::parse(&format!("postgres://hoop@{host}:{}/postgres?{query}", self.port)).unwrap()
    }

    /// Whether a log-in succeeds, and whether it was over TLS.
    async fn answer(&self, host: &str, query: &str) -> Result<bool, String> {
        let connector = Connector::new(&self.url(host, query)).map_err(|error| error.to_string())?;
        let client = connector.client().await.map_err(|error| error.to_string())?;
        let row = client
            .query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[])
            .await
            .unwrap();
        Ok(row.get(0))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        Signal::Immediate.send(self.child.id());
        self.child.wait().unwrap();
    }
}

fn write_leaf(leaf: &Leaf, chain: &Path, key: &Path) {
    let pem = |label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    fs::write(chain, pem("CERTIFICATE", &leaf.chain_der[0])).unwrap();
    fs::write(key, pem("PRIVATE KEY", &leaf.key_der)).unwrap();
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn each_sslmode_accepts_what_libpq_accepts() {
    if !postgres_available() {
        return;
    }
    let (ca, stranger) = (
        Ca::generate(Uuid::now_v7()).unwrap(),
        Ca::generate(Uuid::now_v7()).unwrap(),
    );
    let server = Server::start(&ca, true, "hostssl all hoop 127.0.0.1/32 trust").await;
    let (own, other) = (server.path("own.pem"), server.path("other.pem"));
    fs::write(&own, ca.cert_pem()).unwrap();
    fs::write(&other, stranger.cert_pem()).unwrap();
    let (own, other) = (own.display(), other.display());
    let refused = |answer: Result<bool, String>| answer.unwrap_err();

    assert_eq!(server.answer("localhost", "sslmode=prefer").await, Ok(true));
    assert_eq!(server.answer("localhost", "sslmode=require").await, Ok(true));
    assert_eq!(
        server
            .answer("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={own}"))
            .await,
        Ok(true)
    );
    assert_eq!(
        server.answer("localhost", &format!("sslrootcert={own}")).await,
        Ok(true)
    );
    assert!(refused(server.answer("localhost", "sslmode=disable").await).contains("no encryption"));
    assert!(
        refused(server.answer("localhost", "").await).contains("UnknownIssuer"),
        "verify-full is the default"
    );
    assert!(refused(server.answer("127.0.0.1", &format!("sslrootcert={own}")).await).contains("not valid for name"));
    for mode in ["require", "verify-ca", "verify-full"] {
        let told = refused(
            server
                .answer("localhost", &format!("sslmode={mode}&sslrootcert={other}"))
                .await,
        );
        assert!(told.contains("invalid peer certificate"), "{mode}: {told}");
    }
    assert!(refused(server.answer("localhost", "sslrootcert=/nonexistent.pem").await).contains("/nonexistent.pem"));
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    if !postgres_available() {
        return;
    }
    let ca = Ca::generate(Uuid::now_v7()).unwrap();
    let server = Server::start(&ca, true, "hostssl all hoop 127.0.0.1/32 trust clientcert=verify-ca").await;
    let root = server.path("own.pem");
    fs::write(&root, ca.cert_pem()).unwrap();
    let (chain, key) = (server.path("client.crt"), server.path("client.key"));
    write_leaf(&ca.issue_replica(Uuid::now_v7(), LIFE).unwrap(), &chain, &key);
    let without = format!("sslrootcert={}", root.display());
    assert!(server.answer("localhost", &without).await.is_err());
    let with = format!("{without}&sslcert={}&sslkey={}", chain.display(), key.display());
    assert_eq!(server.answer("localhost", &with).await, Ok(true));
}

#[tokio::test]
async fn prefer_goes_on_in_plain_text_where_the_server_has_no_tls_and_require_does_not() {
    if !postgres_available() {
        return;
    }
    let ca = Ca::generate(Uuid::now_v7()).unwrap();
    let server = Server::start(&ca, false, "host all hoop 127.0.0.1/32 trust").await;
    assert_eq!(server.answer("localhost", "sslmode=prefer").await, Ok(false));
    assert!(
        server
            .answer("localhost", "sslmode=require")
            .await
            .unwrap_err()
            .contains("TLS")
    );
}
