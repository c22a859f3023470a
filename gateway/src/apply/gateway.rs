//! Which gateway, and as whom: the options that every command has which works through the API.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use zeroize::Zeroizing;

use super::client::Client;

/// Something is wrong.
pub const FAILED: u8 = 1;
const TOKEN_VARIABLE: &str = "HOOP_TOKEN";
const SERVER_VARIABLE: &str = "HOOP_SERVER";

#[derive(Args)]
pub struct Gateway {
    /// The gateway's API, such as https://hoop.example.org:8009; else HOOP_SERVER.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// A file with an admin's token; else HOOP_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates to trust besides the system's, as PEM (GET /api/ca.pem).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Gateway {
    pub fn client(&self) -> Result<Client> {
        let server = match &self.server {
            Some(server) => server.clone(),
            None => std::env::var(SERVER_VARIABLE).context("give --server, or HOOP_SERVER")?,
        };
        Client::new(&server, self.token()?, self.ca_file.as_deref())
    }

    fn token(&self) -> Result<Zeroizing<String>> {
        let text = match &self.token_file {
            Some(file) => Zeroizing::new(fs::read_to_string(file).with_context(|| file.display().to_string())?),
            None => Zeroizing::new(std::env::var(TOKEN_VARIABLE).context("give --token-file, or HOOP_TOKEN")?),
        };
        let token = Zeroizing::new(text.trim().to_owned());
        if token.is_empty() {
            bail!("the token is empty");
        }
        Ok(token)
    }
}

/// Runs a command by itself: without a configuration, a database or the tree.
pub fn alone(command: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("hoop-gateway: another TLS provider is installed already");
        return ExitCode::from(FAILED);
    }
    match actix_rt::System::new().block_on(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hoop-gateway: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
