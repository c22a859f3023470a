//! npm's `oidc-provider`, as the sign-in tests of `gateway/auth` start it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::binaries::checkout;
use crate::browser::{Browser, Page};

/// Of the client that it knows.
pub const CLIENT_ID: &str = "gateway";
pub const CLIENT_SECRET: &str = "gateway-s3cret/+:&";
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Pages between a provider's first and its last, at most.
const PAGES_MAX: usize = 6;

/// A running provider. Ends with its value: it is killed, and would exit by itself when its input closes.
pub struct OpenIdProvider {
    pub issuer: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl OpenIdProvider {
    /// One that sends browsers back to `redirect_uri`, and after a log-out to `return_to`. `None`, said aloud, where Node
    /// or its package is missing.
    ///
    /// # Errors
    /// Where it does not start.
    pub async fn start(test: &str, redirect_uri: &str, return_to: &str) -> Result<Option<Self>> {
        let Some(modules) = modules("oidc-provider") else {
            crate::skipped(test, "npm's oidc-provider is missing; ./dev test installs it");
            return Ok(None);
        };
        let log = File::create(std::env::temp_dir().join("hoop-oidc-provider.log"))?;
        let mut child = Command::new("node")
            .arg(checkout().join("gateway/auth/tests/oidc/provider.mjs"))
            .arg(modules)
            .args([redirect_uri, return_to, CLIENT_SECRET, "rotate"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut provider = Self {
            issuer: String::new(),
            input,
            output,
            child,
        };
        let port = provider.answer("ready ").await?;
        provider.issuer = format!("http://localhost:{port}");
        Ok(Some(provider))
    }

    /// Gives a command of `provider.mjs`, and waits until it is done.
    ///
    /// # Errors
    /// Where it ended.
    pub async fn tell(&mut self, command: &str) -> Result<()> {
        self.input.write_all(format!("{command}\n").as_bytes()).await?;
        self.answer("done").await.map(drop)
    }

    /// Ends it, so that it is away.
    ///
    /// # Errors
    /// Where it cannot be ended.
    pub async fn end(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// What follows `prefix` in the next line that begins with it; the provider's own notices come between.
    async fn answer(&mut self, prefix: &str) -> Result<String> {
        let read = async {
            while let Some(line) = self.output.next_line().await? {
                if let Some(rest) = line.strip_prefix(prefix) {
                    return Ok(rest.to_owned());
                }
            }
            bail!("oidc-provider ended")
        };
        tokio::time::timeout(ANSWER_DEADLINE, read).await?
    }

    /// Goes through its pages as `user`, from `page` until the browser is elsewhere.
    ///
    /// # Errors
    /// Where a page is not as expected.
    pub async fn pass(&self, browser: &mut Browser, mut page: Page, user: &str) -> Result<Page> {
        for _ in 0..PAGES_MAX {
            if !page.url.as_str().starts_with(&self.issuer) {
                return Ok(page);
            }
            let prompt = page.field("prompt")?;
            let fields = [("prompt", prompt.as_str()), ("login", user), ("password", "any")];
            page = browser.submit(&page, page.action()?, &fields).await?;
        }
        bail!("still at {}", page.url)
    }
}

/// The folder of npm packages that `./dev test` installs, where this one is in it.
#[must_use]
pub fn modules(package: &str) -> Option<PathBuf> {
    let given = std::env::var_os("HOOP_NODE_MODULES").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| checkout().join(".dev/node/node_modules"));
    let is_there = |folder: &Path| folder.join(package).join("package.json").is_file();
    is_there(&folder).then(|| folder.canonicalize().unwrap_or(folder))
}
