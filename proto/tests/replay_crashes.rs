//! Replays what fuzzing has found (tests/fuzz/crashes/<target>/), and seeds made from recordings, through the fuzz targets'
//! own entry points. An ordinary test: needs neither cargo-fuzz nor a nightly toolchain.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)] // a test: to panic is to fail

#[path = "../../tests/fuzz/src/postgres.rs"]
mod entry;
#[path = "../../tests/fuzz/src/proxy.rs"]
mod proxy;
mod recording;

use std::fs;
use std::path::Path;

use hoop_proto::postgres::startup;
use proptest::prelude::*;
use recording::{RECORDINGS, Side, records, session_records};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 5] = [
    ("pg_accept", entry::pg_accept),
    ("pg_connect", entry::pg_connect),
    ("pg_session_client", entry::pg_session_client),
    ("pg_session_target", entry::pg_session_target),
    ("proxy_protocol", proxy::proxy_protocol),
];

/// Inputs that reach deep: what clients and targets really say.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let joined = |records: Vec<(_, bytes::Bytes)>, wanted| {
        records
            .into_iter()
            .filter(|(side, _)| *side == wanted)
            .flat_map(|(_, bytes)| bytes.to_vec())
            .collect::<Vec<_>>()
    };
    let all = |wanted| {
        RECORDINGS
            .iter()
            .map(|name| joined(session_records(name), wanted))
            .collect::<Vec<_>>()
    };
    match name {
        "pg_session_client" => all(Side::Client),
        "pg_session_target" => all(Side::Target),
        "pg_connect" => ["simple", "md5", "wrong_password"]
            .map(|name| joined(records(name), Side::Target))
            .into(),
        "proxy_protocol" => [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 15432\r\n".as_slice(),
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x03\xe8\x3c\x48",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        ]
        .map(<[u8]>::to_vec)
        .into(),
        _ => {
            let login = joined(records("simple"), Side::Client);
            let requests = [
                startup::ssl_request(),
                startup::gssenc_request(),
                startup::cancel_request(1, &[1; 32]),
            ];
            let mut seeds: Vec<_> = requests.iter().map(|request| request.to_vec()).collect();
            seeds.push(login);
            seeds.push(startup::startup_message(7, [("user", "x"), ("_pq_.y", "z"), ("replication", "1")]).to_vec());
            seeds
        }
    }
}

#[test]
fn every_crash_found_stays_mended() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fuzz/crashes")
            .join(name);
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            target(&fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_seed_passes_under_every_choice() {
    for (name, target) in TARGETS {
        for seed in seeds(name) {
            for choice in 0..=u8::MAX {
                target(&[&[choice][..], &seed].concat());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }

    #[test]
    fn seeds_with_faults_never_panic(
        target in prop::sample::select(TARGETS.to_vec()),
        seed in any::<prop::sample::Index>(),
        choice in any::<u8>(),
        faults in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let seeds = seeds(target.0);
        let mut data = seeds[seed.index(seeds.len())].clone();
        for (index, byte, cut) in faults {
            let index = index.index(data.len());
            if cut {
                data.drain(index..(index + usize::from(byte)).min(data.len()));
                data.push(byte);
            } else {
                data[index] = byte;
            }
        }
        data.insert(0, choice);
        target.1(&data);
    }
}
