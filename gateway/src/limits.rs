//! The process's limits: open files are raised to what the system allows, and said.

use tracing::{info, warn};

/// Below this many open files, thousands of sessions will not fit.
const WANTED_OPEN_FILES: u64 = 65_536;

/// Raises the soft limit of open files to the hard one.
pub fn raise_open_files() {
    match rlimit() {
        Ok((was, now)) if now < WANTED_OPEN_FILES => {
            warn!(
                was,
                now, "few open files are allowed; each session takes one: raise the limit (ulimit -n, LimitNOFILE)"
            );
        }
        Ok((was, now)) => info!(was, now, "open files allowed"),
        Err(error) => warn!(%error, "cannot raise the limit of open files"),
    }
}

#[allow(unsafe_code)]
fn rlimit() -> std::io::Result<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let was = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above; the call reads it only.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok((was, limit.rlim_cur))
}
