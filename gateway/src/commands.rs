//! The commands that are not `serve`: they look at evidence and print. Standard output is theirs.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use hoop_api::events::{EventView, Rows};
use hoop_evidence::verify::{self, Source};
use hoop_evidence::{export, import, read};
use hoop_proto::evidence::Event;
use hoop_store::database_url::DatabaseUrl;
use hoop_store::embedded::Embedded;
use hoop_store::{Store, StoreConfig};
use uuid::Uuid;

use crate::config::{Config, StoreChoice};
use crate::key_file;

/// Exit code of a verification that found something.
const FOUND: u8 = 1;

/// Says why on standard error, with every cause. Exit code 2.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("hoop-gateway: {error:#}");
    ExitCode::from(2)
}

/// A store for a command, beside a gateway that may be running.
pub(crate) async fn open(config: &Config) -> Result<(Store, Option<Embedded>)> {
    let master = key_file::load(config)?;
    let (url, embedded) = match &config.store {
        StoreChoice::Url(url) => (DatabaseUrl::parse(&url.0).context("DATABASE_URL")?, None),
        StoreChoice::Embedded => match Embedded::running(&config.data_dir) {
            Some(url) => (url, None),
            None => {
                let embedded = Embedded::start(&config.data_dir).await?;
                (embedded.url().clone(), Some(embedded))
            }
        },
    };
    Ok((Store::open(&StoreConfig { url, pool_size: 2 }, master).await?, embedded))
}

pub(crate) async fn close(embedded: Option<Embedded>) {
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
}

#[derive(Args)]
pub struct Verify {
    /// The audit root's public key, 64 hexadecimal digits; the gateway prints it at its first start. Keep it elsewhere.
    #[arg(long)]
    root: String,
    /// One session only.
    #[arg(long, conflicts_with = "all")]
    session: Option<Uuid>,
    /// Everything (the default).
    #[arg(long)]
    all: bool,
    /// An export file instead of the database.
    #[arg(long)]
    from: Option<PathBuf>,
    /// A copy of checkpoints.ndjson that was kept elsewhere: what it holds must be in the evidence. May be given
    /// several times.
    #[arg(long, value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// Machine-readable.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let root = hex::decode(&self.root)
            .ok()
            .and_then(|key| <[u8; 32]>::try_from(key).ok());
        let root = root.ok_or_else(|| anyhow!("--root must be 64 hexadecimal digits"))?;
        let mut kept = Vec::new();
        for file in &self.checkpoints {
            kept.extend(verify::checkpoints(file)?);
        }
        let (source, embedded) = match &self.from {
            Some(file) => (Source::File(file.clone()), None),
            None => {
                let (store, embedded) = open(config).await?;
                (Source::Database(store), embedded)
            }
        };
        let report = verify::verify_with(source, &root, self.session, &kept).await?;
        close(embedded).await;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(if report.ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(FOUND)
        })
    }
}

#[derive(Args)]
pub struct Export {
    /// The file to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
}

impl Export {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let (store, embedded) = open(config).await?;
        let summary = export::export(&store, &self.out).await?;
        close(embedded).await;
        println!("{summary}");
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub struct Events {
    /// One session's.
    #[arg(long, conflicts_with = "all", required_unless_present = "all")]
    session: Option<Uuid>,
    /// Every session's.
    #[arg(long)]
    all: bool,
    /// An export file instead of the database's rows. Its sessions' keys are opened with this gateway's master key.
    #[arg(long)]
    from: Option<PathBuf>,
}

impl Events {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let (store, embedded) = open(config).await?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut written = Ok(());
        let (mut of, mut rows) = (Uuid::nil(), Rows::default());
        let mut line = |session: Uuid, event: Event| {
            if written.is_err() {
                return;
            }
            if std::mem::replace(&mut of, session) != session {
                rows = Rows::default();
            }
            written = serde_json::to_value(EventView::new(event, &mut rows))
                .and_then(|mut json| {
                    if let Some(members) = json.as_object_mut() {
                        members.insert("session".into(), session.to_string().into());
                    }
                    serde_json::to_writer(&mut out, &json)
                })
                .map_err(std::io::Error::from)
                .and_then(|()| out.write_all(b"\n"));
        };
        match (&self.from, self.session) {
            (Some(file), wanted) => read::exported(file, store.master(), |session, event| {
                if wanted.is_none_or(|wanted| wanted == session) {
                    line(session, event);
                }
            })?,
            (None, Some(session)) => read::each(&store, session, |event| line(session, event)).await?,
            (None, None) => read::all(&store, line).await?,
        }
        written?;
        out.flush()?;
        drop(out);
        close(embedded).await;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Subcommand)]
pub enum Journal {
    /// Take in the journal folder of a replica that never came back.
    Import {
        /// Its `journal` folder.
        dir: PathBuf,
    },
}

impl Journal {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let Self::Import { dir } = self;
        let (store, embedded) = open(config).await?;
        let checkpoints = config.data_dir.join("checkpoints.ndjson");
        let imported = import::import(&dir, &store, &store.installation().audit_root, Some(&checkpoints)).await?;
        close(embedded).await;
        for replayed in &imported.writers {
            println!("{replayed}");
        }
        println!(
            "written by writer {}, {} damaged places",
            imported.writer, imported.damage
        );
        Ok(ExitCode::SUCCESS)
    }
}
