//! `hoop-gateway apply`: makes a gateway have what YAML files declare, through its API. It needs a token of an admin and
//! nothing else: no database, no configuration. docs/apply.md describes the files.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod declaration;
mod plan;
mod yaml;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use self::client::{Client, Found};
use self::declaration::{Declaration, Kind};
use self::plan::Step;
use crate::setup::write_secret;

/// A dry run that found a difference.
const DIFFERENT: u8 = 2;
/// Something is wrong.
const FAILED: u8 = 1;
const TOKEN_VARIABLE: &str = "HOOP_TOKEN";
const SERVER_VARIABLE: &str = "HOOP_SERVER";

#[derive(Args)]
pub struct Apply {
    /// A YAML file, or a folder of them. May be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The gateway's API, such as https://hoop.example.org:8009; else HOOP_SERVER.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// A file with an admin's token; else HOOP_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates to trust besides the system's, as PEM (GET /api/ca.pem).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Show what would be done, and end with exit code 2 if that is anything.
    #[arg(long)]
    dry_run: bool,
    /// Set sealed secrets anew that are there already: they cannot be compared.
    #[arg(long)]
    set_secrets: bool,
}

impl Apply {
    /// Runs by itself. Exit code 1: it failed; what had been done by then stays, and a second run goes on.
    pub fn main(self) -> ExitCode {
        if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
            eprintln!("hoop-gateway: another TLS provider is installed already");
            return ExitCode::from(FAILED);
        }
        match actix_rt::System::new().block_on(self.run()) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("hoop-gateway: {error:#}");
                ExitCode::from(FAILED)
            }
        }
    }

    async fn run(self) -> Result<ExitCode> {
        let declared = declaration::read(&self.files)?;
        let server = match &self.server {
            Some(server) => server.clone(),
            None => std::env::var(SERVER_VARIABLE).context("give --server, or HOOP_SERVER")?,
        };
        let client = Client::new(&server, self.token()?, self.ca_file.as_deref())?;
        let agents: HashSet<String> = if declared.iter().any(|one| one.kind == Kind::Agent) {
            client.agents().await?.into_iter().collect()
        } else {
            HashSet::new()
        };
        let mut steps = Vec::new();
        for one in &declared {
            let found = match one.kind {
                Kind::Agent => agents.contains(&one.name).then(|| Found {
                    view: one.view.clone(),
                    tag: None,
                }),
                Kind::Connection | Kind::Rule => client.find(one.kind, &one.name).await?,
            };
            steps.extend(plan::step(one, found, self.set_secrets));
        }
        for step in &steps {
            println!("{step}");
            if !self.dry_run {
                carry_out(&client, step)
                    .await
                    .with_context(|| step.declared().place.clone())?;
            }
        }
        let same = declared.len() - steps.len();
        let done = if self.dry_run { "to do" } else { "done" };
        println!("{} {done}, {same} as declared", steps.len());
        Ok(if self.dry_run && !steps.is_empty() {
            ExitCode::from(DIFFERENT)
        } else {
            ExitCode::SUCCESS
        })
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

async fn carry_out(client: &Client, step: &Step<'_>) -> Result<()> {
    match step {
        Step::Create(declared) if declared.kind == Kind::Agent => register(client, declared).await,
        Step::Create(declared) => {
            let body = with_secret(declared, true)?;
            client.create(declared.kind, &body).await.map(drop)
        }
        Step::Change {
            declared,
            tag,
            set_secret,
            ..
        } => {
            let body = with_secret(declared, *set_secret)?;
            client
                .replace(declared.kind, &declared.name, tag.as_deref(), &body)
                .await
        }
    }
}

/// The body for the API. A connection without a declared secret keeps what it has.
fn with_secret(declared: &Declaration, set: bool) -> Result<serde_json::Map<String, Value>> {
    let mut body = declared.body.clone();
    if set && let Some(secret) = &declared.secret {
        body.insert("secret".into(), json!({"value": secret.read()?.as_str()}));
    }
    Ok(body)
}

/// An agent's key is told once: it must have somewhere to go before the agent is registered.
async fn register(client: &Client, declared: &Declaration) -> Result<()> {
    let Some(file) = &declared.key_file else {
        bail!(
            "agent {} is not registered: add key_file, to which its HOOP_KEY is written",
            declared.name
        );
    };
    if file.exists() {
        bail!(
            "agent {} is not registered: {} exists already",
            declared.name,
            file.display()
        );
    }
    writable(file)?;
    let registered = client.create(Kind::Agent, &declared.body).await?;
    let key = registered
        .get("key")
        .and_then(Value::as_str)
        .context("the gateway answered no key")?;
    write_secret(file, key)?;
    println!("    its HOOP_KEY is in {}", file.display());
    Ok(())
}

fn writable(file: &Path) -> Result<()> {
    let probe = file.with_extension("part");
    fs::write(&probe, "").with_context(|| probe.display().to_string())?;
    fs::remove_file(&probe).with_context(|| probe.display().to_string())
}
