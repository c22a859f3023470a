//! `hoop`: signs a person in, lists what they may reach, and starts their own client with a credential of its own.
//!
//! It speaks to the gateway's REST API and to nothing else; what it knows of PostgreSQL is how to start psql.

mod account;
mod browser;
mod connect;
mod secret;
mod server;
mod show;
mod sign_in;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::account::Account;
use crate::server::Server;

/// Reach databases through a Hoop gateway.
#[derive(Parser)]
#[command(name = "hoop", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sign in, with a browser here or anywhere else.
    Login(Login),
    /// Sign out: the token ends, and what is kept here goes.
    Logout,
    /// Who is signed in, where, and until when.
    Status,
    /// What you may reach.
    Connections(Listing),
    /// Start psql on a connection. Its credential ends with it.
    Connect(Connect),
    /// Make a credential for a client of your own.
    Credential(Credential),
    /// Your sessions, the newest first.
    Sessions(Listing),
}

#[derive(Args)]
struct Login {
    /// The gateway, such as https://hoop.example.com:8009. Not needed where one was signed in to before.
    server: Option<String>,
    /// Certificates to trust in place of the system's: the installation's CA, from your administrator.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Show a code to type into a browser on any machine, and open none here.
    #[arg(long, conflicts_with = "user")]
    device: bool,
    /// With this account's local password, which is asked for here, and its second factor. Not for accounts of an
    /// identity provider.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

#[derive(Args)]
struct Listing {
    /// As JSON, an object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Connect {
    /// The connection's name.
    name: String,
    /// The database, where it is not the connection's own.
    #[arg(short, long)]
    database: Option<String>,
    /// What follows is psql's.
    #[arg(last = true)]
    psql: Vec<String>,
}

#[derive(Args)]
struct Credential {
    /// The connection's name.
    name: String,
    /// Seconds that it is valid; else what the gateway gives.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            show::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(async {
        match command {
            Command::Login(login) => self::login(login).await?,
            Command::Logout => logout().await?,
            Command::Status => show::status(&signed_in()?).await?,
            Command::Connections(listing) => show::connections(&signed_in()?, listing.json).await?,
            Command::Sessions(listing) => show::sessions(&signed_in()?, listing.json).await?,
            Command::Credential(asked) => show::credential(&signed_in()?, &asked.name, asked.ttl, asked.json).await?,
            Command::Connect(asked) => {
                return connect::psql(&signed_in()?, &asked.name, asked.database.as_deref(), &asked.psql).await;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `HOOP_SERVER` and `HOOP_TOKEN`, else what `hoop login` kept.
fn signed_in() -> Result<Server> {
    Server::of(&Account::present()?)
}

async fn login(login: Login) -> Result<()> {
    let before = Account::load()?;
    let address = match (&login.server, &before) {
        (Some(server), _) => server.clone(),
        (None, Some(before)) => before.server.clone(),
        (None, None) => anyhow::bail!("Which gateway? hoop login https://HOST:8009"),
    };
    let address = server::address(&address)?;
    let ca_pem = match login.ca {
        Some(file) => Some(std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?),
        None => before
            .filter(|before| before.server == address)
            .and_then(|before| before.ca_pem),
    };
    let server = Server::anonymous(&address, ca_pem.as_deref())?;
    let token = match &login.user {
        Some(user) => sign_in::password::run(&server, user).await?,
        None if login.device || !browser::is_here() => sign_in::device::run(&server).await?,
        None => sign_in::loopback::run(&server).await?,
    };
    let account = Account {
        server: address,
        ca_pem,
        token: token.token,
        expires_at: Some(token.expires_at),
    };
    account.save()?;
    show::status(&Server::of(&account)?).await
}

async fn logout() -> Result<()> {
    let Some(account) = Account::load()? else {
        show::line("Nobody is signed in.");
        return Ok(());
    };
    let ended = match Server::of(&account) {
        Ok(server) => server.post_nothing("/api/logout").await,
        Err(error) => Err(error),
    };
    Account::forget()?;
    match ended {
        Ok(()) => show::line("Signed out."),
        // a token that is no longer good has nothing to end
        Err(error) if server::is_signed_out(&error) => show::line("Signed out; the token had ended before."),
        Err(error) => return Err(error.context("The token is forgotten here, and could not be ended at the gateway")),
    }
    Ok(())
}
