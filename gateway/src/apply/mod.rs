//! `hoop-gateway apply`: makes a gateway have what YAML files declare, through its API; `hoop-gateway get` prints what it
//! has in the same form. They need a token and nothing else: no database, no configuration. docs/apply.md describes the
//! files.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod declaration;
mod gateway;
mod get;
mod groups;
mod plan;
mod print;
mod yaml;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hoop_store::names;
use serde_json::{Map, Value, json};

use self::client::{Client, Found};
use self::declaration::{Declaration, Kind};
use self::gateway::Gateway;
pub use self::get::Get;
use self::plan::{Step, managed_by};
use crate::setup::write_secret;

/// A dry run that found a difference.
const DIFFERENT: u8 = 2;

#[derive(Args)]
pub struct Apply {
    /// A YAML file, or a folder of them. May be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    gateway: Gateway,
    /// Show what would be done, and end with exit code 2 if that is anything.
    #[arg(long)]
    dry_run: bool,
    /// Set sealed secrets anew that are there already: they cannot be compared.
    #[arg(long)]
    set_secrets: bool,
    /// The name of this set of declarations, with which what it makes is marked.
    #[arg(long, value_name = "NAME", value_parser = set_name)]
    set: Option<String>,
    /// Remove what this set has made and does not declare any more. What was made otherwise stays.
    #[arg(long, requires = "set")]
    prune: bool,
}

fn set_name(text: &str) -> Result<String, String> {
    let checked = names::check_label("--set", text);
    checked.map(|()| text.to_owned()).map_err(|error| error.to_string())
}

impl Apply {
    /// Runs by itself. Exit code 1: it failed; what had been done by then stays, and a second run goes on.
    pub fn main(self) -> ExitCode {
        gateway::alone(self.run())
    }

    async fn run(self) -> Result<ExitCode> {
        let declared = declaration::read(&self.files)?;
        let client = self.gateway.client()?;
        let agents: HashMap<String, Map<String, Value>> = if declared.iter().any(|one| one.kind == Kind::Agent) {
            client.all(Kind::Agent).await?.into_iter().map(named).collect()
        } else {
            HashMap::new()
        };
        let mut steps = Vec::new();
        for one in &declared {
            let found = match one.kind {
                Kind::Group => {
                    let step = groups::step(&client, one).await;
                    steps.extend(step.with_context(|| one.place.clone())?);
                    continue;
                }
                Kind::Agent => agents.get(&one.name).map(|view| Found {
                    view: view.clone(),
                    tag: None,
                }),
                Kind::Connection | Kind::Rule => client.find(one.kind, &one.name).await?,
            };
            let step = plan::step(one, found, self.set_secrets);
            steps.extend(step.map(|step| self.own(step)).transpose()?);
        }
        let same = declared.len() - steps.len();
        if let (true, Some(set)) = (self.prune, &self.set) {
            steps.extend(left_over(&client, set, &declared).await?);
        }
        for step in &steps {
            println!("{step}");
            if !self.dry_run {
                let done = carry_out(&client, self.set.as_deref(), step).await;
                done.with_context(|| step.place())?;
            }
        }
        let done = if self.dry_run { "to do" } else { "done" };
        println!("{} {done}, {same} as declared", steps.len());
        Ok(if self.dry_run && !steps.is_empty() {
            ExitCode::from(DIFFERENT)
        } else {
            ExitCode::SUCCESS
        })
    }

    /// Two sets that declare one thing would set it back for ever, and each could remove it.
    fn own<'a>(&self, step: Step<'a>) -> Result<Step<'a>> {
        match &step {
            Step::Change {
                managed_by, declared, ..
            } if !managed_by.is_empty() && self.set.as_ref() != Some(managed_by) => {
                let Declaration { kind, name, place, .. } = declared;
                bail!(
                    "{place}: {kind} {name} is the set {managed_by}'s and is other than declared here: use --set \
                     {managed_by}, or declare it in one of them"
                )
            }
            _ => Ok(step),
        }
    }
}

fn named(view: Map<String, Value>) -> (String, Map<String, Value>) {
    let name = view.get("name").and_then(Value::as_str).unwrap_or_default();
    (name.to_owned(), view)
}

/// What the set has made and nobody declares any more: rules before connections, and connections before agents.
async fn left_over(client: &Client, set: &str, declared: &[Declaration]) -> Result<Vec<Step<'static>>> {
    let known: HashSet<(Kind, &str)> = declared.iter().map(|one| (one.kind, one.name.as_str())).collect();
    let mut steps = Vec::new();
    for kind in Kind::REMOVABLE {
        for (name, view) in client.all(kind).await?.into_iter().map(named) {
            if managed_by(&view) != set || known.contains(&(kind, &name)) {
                continue;
            }
            let tag = match kind {
                Kind::Agent | Kind::Group => None,
                Kind::Connection | Kind::Rule => client.find(kind, &name).await?.and_then(|found| found.tag),
            };
            steps.push(Step::Remove { kind, name, tag });
        }
    }
    Ok(steps)
}

async fn carry_out(client: &Client, set: Option<&str>, step: &Step<'_>) -> Result<()> {
    match step {
        Step::Create(declared) if declared.kind == Kind::Agent => register(client, set, declared).await,
        Step::Create(declared) => {
            let body = marked(with_secret(declared, true)?, set.unwrap_or_default());
            client.create(declared.kind, &body).await.map(drop)
        }
        Step::Change {
            declared,
            tag,
            set_secret,
            managed_by,
            ..
        } => {
            let body = marked(with_secret(declared, *set_secret)?, managed_by);
            let path = client::path(declared.kind, &declared.name);
            client.replace(&path, tag.as_deref(), &body).await
        }
        Step::Members { declared, join, leave } => groups::carry_out(client, &declared.name, join, leave).await,
        Step::Remove { kind, name, tag } => client.delete(*kind, name, tag.as_deref()).await,
    }
}

/// The body for the API. A connection without a declared secret keeps what it has.
fn with_secret(declared: &Declaration, set: bool) -> Result<Map<String, Value>> {
    let mut body = declared.body.clone();
    if set && let Some(secret) = &declared.secret {
        body.insert("secret".into(), json!({"value": secret.read()?.as_str()}));
    }
    Ok(body)
}

/// With the set that has made it. What was made by hand stays so.
fn marked(mut body: Map<String, Value>, set: &str) -> Map<String, Value> {
    body.insert("managed_by".into(), set.into());
    body
}

/// An agent's key is told once: it must have somewhere to go before the agent is registered.
async fn register(client: &Client, set: Option<&str>, declared: &Declaration) -> Result<()> {
    let name = &declared.name;
    let Some(file) = &declared.key_file else {
        bail!("agent {name} is not registered: add key_file, to which its HOOP_KEY is written");
    };
    if file.exists() {
        bail!("agent {name} is not registered: {} exists already", file.display());
    }
    writable(file)?;
    let body = marked(declared.body.clone(), set.unwrap_or_default());
    let registered = client.create(Kind::Agent, &body).await?;
    let key = registered.get("key").and_then(Value::as_str);
    let key = key.ok_or_else(|| anyhow!("the gateway answered no key"))?;
    write_secret(file, key)?;
    println!("    its HOOP_KEY is in {}", file.display());
    Ok(())
}

fn writable(file: &Path) -> Result<()> {
    let probe = file.with_extension("part");
    fs::write(&probe, "").with_context(|| probe.display().to_string())?;
    fs::remove_file(&probe).with_context(|| probe.display().to_string())
}
