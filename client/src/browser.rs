//! The browser of this machine, where a person sits before it.

use std::process::{Command, Stdio};

/// Whether one can be expected to open before the person: not over ssh, and not without a display.
pub fn is_here() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("SSH_CONNECTION") || is_set("SSH_TTY") {
        return false;
    }
    cfg!(target_os = "macos") || is_set("BROWSER") || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY")
}

/// Opens an address. Whether that helped is not known: the address is shown as well.
pub fn open(address: &str) {
    let default = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let program = std::env::var_os("BROWSER").filter(|value| !value.is_empty());
    let opened = Command::new(program.unwrap_or_else(|| default.into()))
        .arg(address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // the person has the address
    drop(opened);
}
