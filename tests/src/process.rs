//! Child processes: started with their output in a file, stopped by their own id, never left behind.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a process may take to end after its stop signal, before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Pause between two looks at something awaited.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How much of a log an error shows, in bytes.
const LOG_TAIL_BYTES: usize = 4096;

/// A running child. Dropping it stops it: first by its stop signal, then by SIGKILL.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stop_signal: &'static str,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path, stop_signal: &'static str) -> Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}: {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_path_buf(),
            stop_signal,
        })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by name (`TERM`, `KILL`, `STOP`, …).
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.pid(), name)
    }

    /// Kills it at once and takes its status.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill_hard(&mut self) -> Result<ExitStatus> {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        Ok(self.child.wait()?)
    }

    /// Waits, up to the deadline of a stop, until it has ended.
    ///
    /// # Errors
    /// Where it does not; it is killed then.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < STOP_DEADLINE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.kill_hard()?;
        bail!(
            "{} did not stop within {STOP_DEADLINE:?}; its log ends:\n{}",
            self.name,
            self.log_tail()
        )
    }

    /// Stops it by its stop signal and waits.
    ///
    /// # Errors
    /// Where it does not end within 15 s; it is killed then.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(self.stop_signal)?;
        self.wait()
    }

    /// Everything it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// The end of what it has written.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let start = text.len().saturating_sub(LOG_TAIL_BYTES);
        let start = (start..=text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(text.len());
        text.get(start..).unwrap_or_default().to_owned()
    }

    /// Waits for `ready` to answer something, failing as soon as the process has ended.
    ///
    /// # Errors
    /// Where it ended or the deadline passed.
    pub async fn until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut ready: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = ready().await {
                return Ok(value);
            }
            if !self.alive() {
                bail!(
                    "{} ended before it was {what}; its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if start.elapsed() > deadline {
                bail!(
                    "{} was not {what} within {deadline:?}; its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing more can be done about a failure here.
        let _ = self.stop();
    }
}

/// Whether this process is root's.
#[must_use]
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Sends a signal to a process by its id.
///
/// # Errors
/// Where the process is gone.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("process {pid} cannot be sent {name}");
    }
    Ok(())
}

/// A process's resident memory, in KiB.
///
/// # Errors
/// Where the process is gone.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no VmRSS")?.parse()?)
}

/// A file's text; what is no UTF-8 is replaced, and a missing file is empty.
#[must_use]
pub fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// What a finished program said.
#[derive(Debug, Clone)]
pub struct Said {
    pub ok: bool,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// # Errors
    /// Where the program failed; the error holds all that it said.
    pub fn success(self) -> Result<Self> {
        if !self.ok {
            bail!("it failed ({:?}):\n{}\n{}", self.code, self.out, self.err);
        }
        Ok(self)
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a program to its end without blocking the runtime.
///
/// # Errors
/// Where it cannot be started or runs longer than `deadline`.
pub async fn run(command: Command, deadline: Duration) -> Result<Said> {
    let name = command.get_program().display().to_string();
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdin(Stdio::null());
    let output = tokio::time::timeout(deadline, command.output())
        .await
        .with_context(|| format!("{name} did not end within {deadline:?}"))?
        .with_context(|| format!("starting {name}"))?;
    Ok(output.into())
}

/// Waits until `check` answers something.
///
/// # Errors
/// Where the deadline passes; `what` says what was awaited.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut check: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = check().await;
        if let Ok(Some(value)) = last {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            return match last {
                Err(why) => Err(why.context(format!("not within {deadline:?}: {what}"))),
                Ok(_) => bail!("not within {deadline:?}: {what}"),
            };
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
