//! What the person types: at a terminal, or line by line from whatever standard input is.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use zeroize::Zeroizing;

/// Longest line.
const LINE_MAX_BYTES: usize = 4096;

pub fn is_person() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks for one line. `hidden`: a terminal does not show what is typed.
///
/// # Errors
/// Where nothing comes, or Ctrl-C; where a terminal cannot hide it.
pub async fn ask(what: &str, hidden: bool) -> Result<Zeroizing<String>> {
    let person = is_person();
    if person {
        let mut out = std::io::stderr().lock();
        write!(out, "{what}: ")?;
        out.flush()?;
    }
    let shown_again = (person && hidden).then(Hidden::begin).transpose()?;
    // a thread of its own, for a read cannot be given up: the process ends with it
    let read = tokio::task::spawn_blocking(line);
    let line = tokio::select! {
        line = read => line.context("reading standard input")?,
        _ = tokio::signal::ctrl_c() => {
            drop(shown_again);
            end_line();
            std::process::exit(INTERRUPTED);
        }
    };
    if shown_again.is_some() {
        end_line();
    }
    line
}

/// As shells tell a program that Ctrl-C ended (128 and SIGINT's number).
const INTERRUPTED: i32 = 130;

/// The line end that was typed and not shown.
fn end_line() {
    let _ = writeln!(std::io::stderr().lock());
}

/// Byte by byte, so that what follows stays for the next question.
fn line() -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(Vec::with_capacity(LINE_MAX_BYTES));
    let mut input = std::io::stdin().lock();
    let mut byte = [0];
    loop {
        let read = input.read(&mut byte).context("reading standard input")?;
        match byte {
            _ if read == 0 && text.is_empty() => bail!("standard input has ended: nothing was typed"),
            _ if read == 0 => break,
            [b'\n'] => break,
            [byte] if text.len() < LINE_MAX_BYTES => text.push(byte),
            _ => bail!("more than {LINE_MAX_BYTES} bytes in one line"),
        }
    }
    let text = std::str::from_utf8(&text).context("what was typed is no UTF-8")?;
    Ok(Zeroizing::new(text.trim_end_matches('\r').to_owned()))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden;

impl Hidden {
    fn begin() -> Result<Self> {
        stty("-echo").context("this terminal cannot hide what is typed: give the password on standard input")?;
        Ok(Self)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // nothing is left to do about a terminal that has gone
        let _ = stty("echo");
    }
}

/// POSIX has this program for what would otherwise be ioctls of our own.
fn stty(mode: &str) -> Result<()> {
    let status = Command::new("stty")
        .arg(mode)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("stty")?;
    if !status.success() {
        bail!("stty {mode} failed");
    }
    Ok(())
}
