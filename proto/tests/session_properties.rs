//! Whatever the split into batches: the same bytes and the same events. Whatever the bytes: no panic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)] // a test: to panic is to fail

mod recording;

use std::collections::BTreeMap;

use bytes::Bytes;
use hoop_proto::dialogue::{Batch, Dialogue};
use hoop_proto::event::Event;
use hoop_proto::postgres::session::{Limits, Session};
use proptest::prelude::*;
use recording::{RECORDINGS, Side, session_records};

/// What a session makes of a stream, whatever the batches: bytes out, and events with the bytes they point at, those of
/// one statement's input and output joined.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    to_target: Vec<u8>,
    to_client: Vec<u8>,
    events: Vec<String>,
    input: BTreeMap<u64, Vec<u8>>,
    output: BTreeMap<u64, (Vec<u8>, u64)>,
}

impl Seen {
    fn take(&mut self, batch: &Batch) {
        for event in &batch.events {
            match event {
                Event::Statement(statement) => {
                    let message = batch.bytes.slice(statement.span.clone());
                    self.events.push(format!(
                        "{:?} {message:?}",
                        (statement.id, statement.kind, &statement.text)
                    ));
                }
                Event::Input { statement, span } => {
                    self.input
                        .entry(*statement)
                        .or_default()
                        .extend_from_slice(&batch.bytes[span.clone()]);
                }
                Event::Output { statement, span, rows } => {
                    let (bytes, all) = self.output.entry(*statement).or_default();
                    bytes.extend_from_slice(&batch.bytes[span.clone()]);
                    *all += rows;
                }
                other => self.events.push(format!("{other:?}")),
            }
        }
    }

    fn batch(&mut self, session: &mut Session, side: Side, bytes: Bytes) {
        match side {
            Side::Client => {
                let batch = session.client(bytes).unwrap();
                self.take(&batch);
                let applied = session.apply(batch, &[]);
                assert!(applied.client.is_empty());
                self.to_target.extend(applied.target.concat());
                self.events
                    .extend(applied.outcomes.iter().map(|outcome| format!("Outcome({outcome:?})")));
            }
            Side::Target => {
                let batch = session.target(bytes).unwrap();
                self.take(&batch);
                self.to_client.extend_from_slice(&batch.bytes);
            }
        }
    }
}

fn bytes_of(records: &[(Side, Bytes)], wanted: Side) -> Vec<u8> {
    records
        .iter()
        .filter(|(side, _)| *side == wanted)
        .flat_map(|(_, bytes)| bytes.to_vec())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_split_gives_the_same_bytes_and_events(
        name in prop::sample::select(RECORDINGS.to_vec()),
        sizes in prop::collection::vec(1usize..60, 1..20),
    ) {
        let records = session_records(name);
        let (mut whole, mut session) = (Seen::default(), Session::new(Limits::default()));
        for (side, bytes) in &records {
            whole.batch(&mut session, *side, bytes.clone());
        }
        prop_assert!(session.idle());
        prop_assert_eq!(&whole.to_target, &bytes_of(&records, Side::Client));
        prop_assert_eq!(&whole.to_client, &bytes_of(&records, Side::Target));

        let (mut split, mut session) = (Seen::default(), Session::new(Limits::default()));
        let mut sizes = sizes.into_iter().cycle();
        for (side, mut bytes) in records {
            while !bytes.is_empty() {
                let size = sizes.next().unwrap().min(bytes.len());
                split.batch(&mut session, side, bytes.split_to(size));
            }
        }
        prop_assert!(session.idle());
        prop_assert_eq!(split, whole);
    }

    #[test]
    fn bytes_with_a_fault_never_panic(
        name in prop::sample::select(RECORDINGS.to_vec()),
        faults in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        size in 1usize..500,
    ) {
        let mut session = Session::new(Limits::default());
        for (side, bytes) in session_records(name) {
            let mut bytes = bytes.to_vec();
            for (index, byte) in &faults {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            for chunk in bytes.chunks(size) {
                let chunk = Bytes::copy_from_slice(chunk);
                let batch = match side {
                    Side::Client => session.client(chunk),
                    Side::Target => session.target(chunk),
                };
                let Ok(batch) = batch else { return Ok(()) };
                for event in &batch.events {
                    if let Event::Input { span, .. } | Event::Output { span, .. } = event {
                        prop_assert!(span.start <= span.end && span.end <= batch.bytes.len());
                    }
                }
                if side == Side::Client {
                    session.apply(batch, &[]);
                }
            }
        }
        session.unanswered();
    }
}
