//! `hoop-bench`: how fast PostgreSQL is directly, through two bare relays, through pgbouncer and through Hoop.
//!
//! Rounds are interleaved (each lane once a round) and a figure is the median of its rounds, so that a busy machine
//! hits all lanes alike. The target runs on the same machine; gateway and agent are processes of their own.

#![allow(clippy::print_stdout, reason = "a command-line tool")]

mod cases;
mod control;
mod lanes;
mod lists;
mod memory;
mod report;
mod wan;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::cases::{CASES, Case};
use crate::lanes::{Lane, Lanes};
use crate::report::{Report, Row};

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these cases (a name, or the beginning of one); `--list` names them.
    #[arg(long = "case")]
    cases: Vec<String>,
    /// Only these lanes: direct, relay2, pgbouncer, hoop.
    #[arg(long, value_delimiter = ',')]
    lanes: Vec<String>,
    /// Length of one pgbench run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the table that COPY and SELECT read.
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// Where the JSON goes.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Measures decisions and lists instead, with 50,000 users, 5,000 connections and 5,000 rules.
    #[arg(long)]
    control: bool,
    /// Names the cases and ends.
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for case in CASES {
            println!("{:<28} {}", case.name, case.says);
        }
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.control {
        return runtime.block_on(control::measure(arguments.out.as_deref()));
    }
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let named = |case: &&Case| {
        let exact = |name: &String| CASES.iter().any(|case| case.name == name);
        arguments.cases.is_empty()
            || arguments.cases.iter().any(|name| {
                if exact(name) {
                    case.name == name
                } else {
                    case.name.starts_with(name.as_str())
                }
            })
    };
    let chosen: Vec<&Case> = CASES.iter().filter(named).collect();
    if chosen.is_empty() {
        bail!("no case is named so; --list names them");
    }
    let mut wanted = Vec::new();
    for lane in Lane::ALL {
        if arguments.lanes.is_empty() || arguments.lanes.iter().any(|name| name == lane.name()) {
            wanted.push(lane);
        }
    }
    let lanes = Lanes::start(&wanted, &chosen, arguments.megabytes).await?;
    let mut report = Report::default();
    report.head();
    let mut failed = 0;
    for case in chosen {
        let mut row = Row::new(case);
        // One case's failure does not take the others' figures with it.
        if let Err(why) = rounds(case, &wanted, &lanes, arguments, &mut row).await {
            row.note = format!("failed: {why:#}").replace('\n', " ");
            failed += 1;
        }
        report.push(row);
    }
    if let Some(out) = &arguments.out {
        report.write(out)?;
        println!("written: {}", out.display());
    }
    if failed > 0 {
        bail!("{failed} cases failed");
    }
    Ok(())
}

async fn rounds(case: &Case, wanted: &[Lane], lanes: &Lanes, arguments: &Arguments, row: &mut Row) -> Result<()> {
    if let Some(wan) = case.wan {
        return wan::run(lanes, arguments, wan.bytes_per_second, row).await;
    }
    for _ in 0..arguments.rounds.max(1) {
        for lane in wanted {
            let figure = cases::run_once(case, *lane, lanes, arguments.seconds).await;
            if let Some(value) = figure.with_context(|| lane.name())? {
                row.add(*lane, value);
            }
        }
    }
    Ok(())
}
