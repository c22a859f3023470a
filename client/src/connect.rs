//! psql on a connection, with a credential that is made for it and ends with it.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::server::Server;

/// A credential as the gateway makes it.
#[derive(Deserialize)]
pub struct Made {
    pub id: String,
    pub user: String,
    pub password: Secret,
    pub host: String,
    pub port: u16,
    pub database: String,
}

/// Makes a credential for a connection. `database` is the connection's own.
///
/// # Errors
/// As the gateway says.
pub async fn make(server: &Server, name: &str, ttl_s: Option<u64>) -> Result<Value> {
    let body = ttl_s.map_or_else(|| json!({}), |ttl_s| json!({"ttl_seconds": ttl_s}));
    server
        .post(&format!("/api/connections/{}/credentials", segment(name)), &body)
        .await
}

/// Part of a path.
fn segment(name: &str) -> String {
    url::form_urlencoded::byte_serialize(name.as_bytes())
        .collect::<String>()
        .replace('+', "%20")
}

/// Runs psql, and answers its exit status. Ctrl-C is psql's.
///
/// # Errors
/// Where no credential can be made or psql cannot be started.
pub async fn psql(server: &Server, name: &str, database: Option<&str>, arguments: &[String]) -> Result<ExitCode> {
    let made: Made = serde_json::from_value(make(server, name, None).await?).context("the gateway's answer")?;
    let ran = run(server, &made, database, arguments).await;
    // it expires where it cannot be ended
    let ended = server.delete(&format!("/api/credentials/{}", segment(&made.id))).await;
    let code = ran?;
    if let Err(error) = ended {
        crate::show::error(&error.context("The credential of this session could not be ended; it expires by itself"));
    }
    Ok(code)
}

async fn run(server: &Server, made: &Made, database: Option<&str>, arguments: &[String]) -> Result<ExitCode> {
    let folder = tempfile::Builder::new()
        .prefix("hoop-")
        .tempdir()
        .context("a temporary folder")?;
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, server.text("/api/ca.pem").await?)?;
    let mut passwords = tempfile::NamedTempFile::new_in(folder.path())?;
    let entry = Zeroizing::new(format!("*:*:*:{}:{}\n", passfile(&made.user), passfile(&made.password)));
    passwords.write_all(entry.as_bytes())?;
    let port = made.port.to_string();
    let database = database.unwrap_or(&made.database);
    let mut command = Command::new("psql");
    command
        .args(arguments)
        .envs([
            ("PGHOST", made.host.as_str()),
            ("PGPORT", &port),
            ("PGUSER", &made.user),
            ("PGDATABASE", database),
            ("PGSSLMODE", "verify-full"),
        ])
        .env("PGSSLROOTCERT", &ca_file)
        .env("PGPASSFILE", passwords.path());
    for other in ["PGPASSWORD", "PGHOSTADDR", "PGSERVICE", "HOOP_TOKEN"] {
        command.env_remove(other);
    }
    // psql cancels the statement by them; this waits for it to end
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut child = command.spawn().context("psql cannot be started: is it installed?")?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = interrupts.recv() => {}
            _ = terminations.recv() => child.start_kill()?,
        }
    };
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        None => bail!("psql was ended: {status}"),
    }
}

/// A field of a password file (libpq, "The Password File").
fn passfile(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_in_a_password_file_or_a_path_is_escaped() {
        assert_eq!(passfile(r"a:b\c"), r"a\:b\\c");
        assert_eq!(segment("a/b c?"), "a%2Fb%20c%3F");
    }
}
