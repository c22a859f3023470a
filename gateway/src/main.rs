//! `hoop-gateway`: faces people, decides, records. See ARCHITECTURE.md for the map.

mod api;
mod apply;
mod cancel;
mod certificates;
mod commands;
mod config;
mod control;
mod directory;
mod identity_refresh;
mod key_file;
mod key_watch;
mod lease;
mod links;
mod listeners;
mod metrics;
mod opening;
mod policy;
mod ready;
mod rotate;
mod sessions;
mod setup;
mod target;
mod telemetry;
mod tls;
mod tree;
mod trial;
mod vital;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// The secure access gateway.
#[derive(Parser)]
#[command(name = "hoop-gateway", version)]
struct Arguments {
    /// TOML file; `HOOP_*` environment variables override it.
    #[arg(short, long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (the default).
    Serve,
    /// Check the evidence's chains against the audit root's public key. Needs no secret.
    Verify(commands::Verify),
    /// Write all evidence, sealed as it is stored, to a file that `verify --from` checks.
    Export(commands::Export),
    /// Print recorded events, opened with the master key, a JSON object a line.
    Events(commands::Events),
    /// Put a new master key in the place of the present one, while the gateways serve. Run it again where it stopped.
    RotateMasterKey(rotate::RotateMasterKey),
    /// Make connections, access rules, agents and groups as YAML files declare them, through the API.
    Apply(apply::Apply),
    /// Print them as such files, without secrets, through the API.
    Get(apply::Get),
    /// Work with journals.
    #[command(subcommand)]
    Journal(commands::Journal),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let arguments = match arguments {
        Arguments {
            command: Some(Command::Apply(apply)),
            ..
        } => return apply.main(),
        Arguments {
            command: Some(Command::Get(get)),
            ..
        } => return get.main(),
        arguments => arguments,
    };
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return commands::fail(&error.into()),
    };
    if let Err(error) = log_to_stderr(&config) {
        return commands::fail(&error);
    }
    hoop_actors::process::forbid_cores();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return commands::fail(&anyhow::anyhow!("another TLS provider is installed already"));
    }
    let system = actix_rt::System::new();
    let outcome = system.block_on(async move {
        match arguments.command {
            None | Some(Command::Serve) => tree::run(config).await.map(|()| ExitCode::SUCCESS),
            Some(Command::Verify(verify)) => verify.run(&config).await,
            Some(Command::Export(export)) => export.run(&config).await,
            Some(Command::Events(events)) => events.run(&config).await,
            Some(Command::RotateMasterKey(rotate)) => rotate.run(&config).await,
            // have ended above: they need no configuration
            Some(Command::Apply(_) | Command::Get(_)) => Ok(ExitCode::SUCCESS),
            Some(Command::Journal(journal)) => journal.run(&config).await,
        }
    });
    match outcome {
        Ok(code) => code,
        Err(error) => commands::fail(&error),
    }
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).map_err(|error| {
        anyhow::anyhow!(
            "log = {:?}: {error}; for example info or hoop_gateway=debug,info",
            config.log
        )
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if config.log_json {
        subscriber.json().init()
    } else {
        subscriber.init()
    }
    Ok(())
}
