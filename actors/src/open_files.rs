//! The process's open-file limit: each session needs a socket or two, and the default of 1,024 is soon used up.

use std::io;

use tracing::{info, warn};

/// Below this many open files, thousands of sessions do not fit.
const WANTED_OPEN_FILES: u64 = 65_536;

/// Raises the soft limit of open files to the hard one, and says what it is then.
pub fn raise() {
    match raise_to_hard() {
        Ok((soft, _)) if soft < WANTED_OPEN_FILES => warn!(
            allowed = soft,
            "few open files are allowed, and each session takes one or two: raise the limit (ulimit -n, LimitNOFILE)"
        ),
        Ok((soft, _)) => info!(allowed = soft, "open files"),
        Err(error) => warn!(%error, "the limit of open files could not be raised"),
    }
}

/// The soft and the hard limit as they are then.
#[allow(unsafe_code)]
fn raise_to_hard() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one rlimit through a pointer to one that lives on this stack.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        let wanted = libc::rlimit {
            rlim_cur: limit.rlim_max,
            rlim_max: limit.rlim_max,
        };
        // SAFETY: setrlimit only reads through the pointer, which is valid for the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } != 0 {
            return Err(io::Error::last_os_error());
        }
        limit = wanted;
    }
    Ok((limit.rlim_cur, limit.rlim_max))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let (soft, hard) = super::raise_to_hard().unwrap();
        assert_eq!(soft, hard);
    }
}
