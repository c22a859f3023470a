//! Starts npm's `oidc-provider`.

use crate::{CLIENT_SECRET, REDIRECT};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const PACKAGE: &str = "oidc-provider@9.13.3";
pub const RETURN_TO: &str = "http://localhost:8009/signed-out";
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Ends with its value: it is killed, and would exit by itself when its input closes.
pub struct Provider {
    pub issuer: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl Provider {
    /// `None`, loudly, where Node or its package cannot be had.
    pub async fn start(test: &str, mode: &str) -> Option<Self> {
        let modules = match modules() {
            Ok(modules) => modules,
            Err(why) => {
                skipped(test, &why);
                return None;
            }
        };
        let mut child = Command::new("node")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oidc/provider.mjs"))
            .args([
                modules.as_os_str(),
                REDIRECT.as_ref(),
                RETURN_TO.as_ref(),
                CLIENT_SECRET.as_ref(),
                mode.as_ref(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut provider = Self {
            issuer: String::new(),
            input,
            output,
            child,
        };
        let port = provider.answer("ready ").await;
        provider.issuer = format!("http://localhost:{port}");
        Some(provider)
    }

    /// Gives a command and waits until it is done.
    pub async fn tell(&mut self, command: &str) {
        self.input.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        self.answer("done").await;
    }

    pub async fn end(mut self) {
        self.child.kill().await.unwrap();
    }

    /// What follows `prefix` in the next line that begins with it; the provider's own notices come between.
    async fn answer(&mut self, prefix: &str) -> String {
        let read = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(prefix) {
                    return rest.to_owned();
                }
            }
            panic!("oidc-provider ended");
        };
        tokio::time::timeout(ANSWER_DEADLINE, read)
            .await
            .expect("oidc-provider answers")
    }
}

/// Node's modules with the package: those of `./dev setup`, or else some of its own, installed beside.
fn modules() -> Result<PathBuf, String> {
    let is_there = |modules: &Path| modules.join("oidc-provider/package.json").is_file();
    let given = std::env::var_os("HOOP_NODE_MODULES").map(PathBuf::from);
    if let Some(given) = given.filter(|given| is_there(given)) {
        return Ok(given);
    }
    run("node", &["--version"])?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.dev/oidc-provider");
    std::fs::create_dir_all(&folder).map_err(|why| why.to_string())?;
    // tests run in several processes
    let lock = File::create(folder.join("lock")).map_err(|why| why.to_string())?;
    lock.lock().map_err(|why| why.to_string())?;
    let modules = folder.join("node_modules");
    let installed = folder.join(PACKAGE.replace('/', "-"));
    if !is_there(&modules) || !installed.is_file() {
        let prefix = folder.to_string_lossy();
        run(
            "npm",
            &[
                "install",
                "--silent",
                "--no-fund",
                "--no-audit",
                "--prefix",
                &prefix,
                PACKAGE,
            ],
        )?;
        File::create(installed).map_err(|why| why.to_string())?;
    }
    modules.canonicalize().map_err(|why| why.to_string())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.map_err(|why| format!("{program} cannot be run ({why}); install nodejs and npm"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {} failed: {said}", arguments.join(" ")))
}

/// Says that a test did not run and why; `./dev test` repeats it at the end.
fn skipped(test: &str, why: &str) {
    use std::io::Write as _;
    let line = format!("skipped: {test}: {why}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("HOOP_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        // A lost line here only shortens a summary.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
