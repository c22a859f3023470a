//! What a process that dies leaves behind: nothing that holds a key.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Result, ensure};
use hoop_tests::hoop::Hoop;
use hoop_tests::process::{Process, is_root};

const SIGABRT: i32 = 6;

/// Ends as if it had aborted, and says whether it left a core.
fn abort(process: &mut Process) -> Result<()> {
    process.signal("ABRT")?;
    let status = process.wait()?;
    ensure!(status.signal() == Some(SIGABRT), "it ended otherwise: {status}");
    ensure!(!status.core_dumped(), "it left a core");
    Ok(())
}

#[tokio::test]
async fn gateway_and_agent_leave_no_core() -> Result<()> {
    if !is_root() {
        hoop_tests::skipped("no cores", "only root's tests may look into processes that forbid them");
        return Ok(());
    }
    let mut hoop = Hoop::start().await?;
    for pid in [hoop.gateway()?.process.pid(), hoop.agents[0].process.pid()] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let allowed = core.map(|line| line.split_whitespace().skip(4).take(2).collect::<Vec<_>>());
        ensure!(allowed == Some(vec!["0", "0"]), "a core may have {core:?}");
    }
    abort(&mut hoop.agents[0].process)?;
    abort(&mut hoop.gateways[0].process)
}
