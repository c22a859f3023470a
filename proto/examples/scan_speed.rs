//! How fast a `Session` scans, alone: `cargo run --release -p hoop-proto --example scan_speed`. Nothing is read or
//! written, so these are upper bounds of a relay, and a tenth of them is already a fault.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program for the terminal

use std::time::Instant;

use bytes::Bytes;
use hoop_proto::dialogue::Dialogue;
use hoop_proto::postgres::encode::query;
use hoop_proto::postgres::sample;
use hoop_proto::postgres::session::{Limits, Session};

/// As a relay reads.
const BATCH_BYTES: usize = 64 * 1024;
const BULK_BYTES: usize = 1 << 30;
const TURNS: u32 = 1_000_000;

fn main() {
    for (what, asked, rows) in [
        ("DataRow of 20 bytes", "select", sample::data_rows(60_000, 9)),
        ("DataRow of 100 bytes", "select", sample::data_rows(12_000, 89)),
        ("DataRow of 8 KiB", "select", sample::data_rows(150, 8181)),
        (
            "CopyData of 100 bytes out",
            "copy t to stdout",
            sample::copy_data(12_000, 95),
        ),
    ] {
        let mut session = Session::new(Limits::default());
        send(&mut session, query(asked));
        bulk(what, &rows, |batch| {
            let events = session.target(batch).unwrap().events.len();
            assert!(events < 3);
        });
    }
    let mut session = Session::new(Limits::default());
    send(&mut session, query("copy t from stdin"));
    bulk("CopyData of 8 KiB in", &sample::copy_data(150, 8187), |batch| {
        send(&mut session, batch)
    });

    let asked = query("SELECT abalance FROM pgbench_accounts WHERE aid = 12345;");
    turns("simple query and answer", &asked, &sample::select_answer(1, 4));
    let text = "SELECT abalance FROM pgbench_accounts WHERE aid = $1;";
    let mut session = Session::new(Limits::default());
    send(&mut session, sample::extended("P_0", text, true, &[Some("1")]));
    session.target(sample::extended_answer(true, 1, 4)).unwrap();
    let asked = sample::extended("P_0", "", false, &[Some("12345")]);
    turns_of(
        &mut session,
        "prepared query and answer",
        &asked,
        &sample::extended_answer(false, 1, 4),
    );
    let asked = sample::extended("", text, true, &[Some("12345")]);
    turns("unnamed query and answer", &asked, &sample::extended_answer(true, 1, 4));
}

fn send(session: &mut Session, bytes: Bytes) {
    let batch = session.client(bytes).unwrap();
    session.apply(batch, &[]);
}

/// The stream again and again, in batches that do not end where messages end.
fn bulk(what: &str, stream: &Bytes, mut scan: impl FnMut(Bytes)) {
    let started = Instant::now();
    let mut done = 0;
    while done < BULK_BYTES {
        let mut rest = stream.clone();
        while !rest.is_empty() {
            scan(rest.split_to(rest.len().min(BATCH_BYTES)));
        }
        done += stream.len();
    }
    println!(
        "{what:28} {:8.2} GB/s",
        done as f64 / started.elapsed().as_secs_f64() / 1e9
    );
}

fn turns(what: &str, asked: &Bytes, answered: &Bytes) {
    turns_of(&mut Session::new(Limits::default()), what, asked, answered);
}

fn turns_of(session: &mut Session, what: &str, asked: &Bytes, answered: &Bytes) {
    let started = Instant::now();
    for _ in 0..TURNS {
        send(session, asked.clone());
        let batch = session.target(answered.clone()).unwrap();
        assert!(batch.bytes.len() == answered.len() && batch.events.len() == 2);
    }
    println!(
        "{what:28} {:8.0} ns a turn",
        started.elapsed().as_nanos() as f64 / f64::from(TURNS)
    );
}
