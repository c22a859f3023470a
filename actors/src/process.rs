//! What the kernel holds for the whole process: how many files it may open, and whether it may leave a core behind.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tracing::{info, warn};

/// Below this many open files, thousands of sessions do not fit.
const WANTED_OPEN_FILES: u64 = 65_536;

/// Raises the soft limit of open files to the hard one, and says what it is then. Each session needs a socket or two,
/// and the default of 1,024 is soon used up.
pub fn raise_open_files() {
    match raise_to_hard() {
        Ok(Some(soft)) if soft < WANTED_OPEN_FILES => warn!(
            allowed = soft,
            "few open files are allowed, and each session takes one or two: raise the limit (ulimit -n, LimitNOFILE)"
        ),
        Ok(soft) => info!(allowed = soft, "open files"),
        Err(error) => warn!(%error, "the limit of open files could not be raised"),
    }
}

/// The soft limit as it is then; `None`: there is none.
fn raise_to_hard() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(limit.maximum)
}

/// Set to `1`, lets the process leave cores and be looked into, for a developer's debugger.
pub const ALLOW_CORES: &str = "HOOP_ALLOW_CORES";

/// Unless `ALLOW_CORES` says otherwise, no core of this process is ever written, to a file or to a collector, and nobody
/// but root may read its memory: keys and target secrets pass through it (prctl(2), `PR_SET_DUMPABLE`; core(5)).
/// Processes that it executes are not covered.
pub fn forbid_cores() {
    if std::env::var_os(ALLOW_CORES).is_some_and(|value| value == "1") {
        warn!("{ALLOW_CORES} is set: a core of this process would hold keys and secrets");
    } else {
        refuse_cores();
    }
}

fn refuse_cores() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let forbidden = setrlimit(Resource::Core, none).and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = forbidden {
        warn!(%error, "cores could not be forbidden: one of this process would hold keys and secrets");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let soft = raise_to_hard().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((limit.current, limit.maximum), (soft, soft));
    }

    #[test]
    fn a_core_is_neither_written_nor_handed_to_a_collector() {
        refuse_cores();
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
