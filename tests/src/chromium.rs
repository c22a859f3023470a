//! A person in headless Chromium, step by step (`tests/rigs/chromium.mjs`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::binaries::checkout;
use crate::oidc::modules;
use crate::record::text;

const STEP_DEADLINE: Duration = Duration::from_secs(90);

/// Ends with its value: the script ends Chromium when its input closes, or both are killed.
pub struct Chromium {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// Where it is and what it shows.
#[derive(Debug, Clone)]
pub struct Shown {
    pub url: String,
    pub text: String,
}

fn program() -> Option<PathBuf> {
    let known = [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
    ];
    known
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .map(Path::to_path_buf)
}

impl Chromium {
    /// `None`, said aloud, where it or what drives it is missing.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(test: &str) -> Result<Option<Self>> {
        let (Some(chromium), Some(modules)) = (program(), modules("playwright-core")) else {
            crate::skipped(
                test,
                "chromium (Debian) or npm's playwright-core is missing; ./dev test --full installs them",
            );
            return Ok(None);
        };
        let mut child = Command::new("node")
            .arg(checkout().join("tests/rigs/chromium.mjs"))
            .arg(modules)
            .arg(chromium)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Some(Self {
            input,
            output,
            _child: child,
        }))
    }

    /// # Errors
    /// Where the step cannot be done within its time.
    pub async fn step(&mut self, step: Value) -> Result<Shown> {
        self.input.write_all(format!("{step}\n").as_bytes()).await?;
        let line = tokio::time::timeout(STEP_DEADLINE, self.output.next_line()).await??;
        let answer: Value = serde_json::from_str(&line.context("Chromium ended")?)?;
        if let Some(error) = answer.get("error") {
            bail!(
                "{step}: {error}, at {}: {}",
                text(&answer, "url"),
                text(&answer, "text")
            );
        }
        Ok(Shown {
            url: text(&answer, "url"),
            text: text(&answer, "text"),
        })
    }

    /// # Errors
    /// Where the address does not answer.
    pub async fn open(&mut self, url: &str) -> Result<Shown> {
        self.step(json!({"open": url})).await
    }

    /// # Errors
    /// Where there is no such element, or it leads nowhere.
    pub async fn click(&mut self, selector: &str) -> Result<Shown> {
        self.step(json!({"click": selector})).await
    }
}
