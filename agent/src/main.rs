//! `hoop-agent`: reads its configuration, runs the agent, stops it on a signal. Everything else is the library's.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use hoop_agent::config::Config;
use hoop_agent::run::Agent;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Connects this network's targets to a Hoop gateway. Only dials out. The key comes from HOOP_KEY or HOOP_KEY_FILE.
#[derive(Parser)]
#[command(name = "hoop-agent", version)]
struct Arguments {
    /// The configuration file (TOML); also HOOP_AGENT_CONFIG.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and stop.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log();
    hoop_actors::process::forbid_cores();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let config = Config::load(arguments.config.as_deref(), variable)?;
    if arguments.check {
        tracing::info!("the configuration is good");
        return Ok(());
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a cryptographic provider was installed already");
    }
    hoop_actors::process::raise_open_files();
    tracing::info!(
        agent = config.key.agent, gateway = config.key.host, port = config.key.port, mode = ?config.key.mode,
        pins = config.key.pins.len(), arbiters = config.arbiters, max_sessions = config.max_sessions,
        version = env!("CARGO_PKG_VERSION"), "hoop-agent starts"
    );
    actix_rt::System::new().block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be heard")?;
    let agent = Agent::start(config, |name| std::env::var(name).ok())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        lost = agent.gave_up() => anyhow::bail!("{} ended {} times within a minute", lost.name, lost.ends),
    }
    agent
        .drain(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    tracing::info!("hoop-agent stopped");
    Ok(())
}

/// Lines for people, or JSON with `HOOP_LOG_FORMAT=json`; what is logged by `HOOP_LOG` (default `info`).
fn log() {
    let filter = EnvFilter::try_from_env("HOOP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var("HOOP_LOG_FORMAT").is_ok_and(|format| format == "json") {
        lines.json().init();
    } else {
        lines.init();
    }
}
