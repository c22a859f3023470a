//! Whatever the split into batches: the same bytes and the same events. Whatever the bytes: no panic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)] // a test: to panic is to fail

mod recording;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hoop_proto::dialogue::{Batch, Dialogue};
use hoop_proto::event::{Event, Outcome, Status};
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
    input: BTreeMap<u64, (Vec<u8>, u64)>,
    output: BTreeMap<u64, (Vec<u8>, u64)>,
    /// The numbers of statements, by their order: which number they get depends on the split.
    order: BTreeMap<u64, u64>,
    /// Numbers of what was only prepared, which depends on the split too.
    prepared: BTreeSet<u64>,
    /// The error of such a one. Where it has no event of its own, the statement that it keeps from running has the error.
    error: Option<Outcome>,
}

impl Seen {
    fn take(&mut self, batch: &Batch) {
        for event in &batch.events {
            match event {
                Event::Statement(statement) => {
                    let message = batch.bytes.slice(statement.span.clone());
                    let number = self.order.len() as u64 + 1;
                    self.order.insert(statement.id, number);
                    self.events
                        .push(format!("{:?} {message:?}", (number, statement.kind, &statement.text)));
                }
                Event::Prepared(statement) => {
                    self.prepared.insert(statement.id);
                }
                Event::Input { statement, span, rows } => {
                    let (bytes, all) = self.input.entry(self.order[statement]).or_default();
                    bytes.extend_from_slice(&batch.bytes[span.clone()]);
                    *all += rows;
                }
                Event::Output { statement, span, rows } => {
                    let (bytes, all) = self.output.entry(self.order[statement]).or_default();
                    bytes.extend_from_slice(&batch.bytes[span.clone()]);
                    *all += rows;
                }
                Event::Outcome(outcome) => self.outcome(outcome),
                other => self.events.push(format!("{other:?}")),
            }
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        if self.prepared.contains(&outcome.statement) {
            if outcome.status == Status::Error {
                self.error = Some(outcome.clone());
            }
            return;
        }
        let statement = self.order[&outcome.statement];
        let mut outcome = outcome.clone();
        if outcome.status == Status::Skipped
            && let Some(error) = self.error.take()
        {
            outcome = error;
        }
        outcome.statement = statement;
        self.events.push(format!("{outcome:?}"));
    }

    /// Leaves what does not depend on the split.
    fn settled(mut self) -> Self {
        self.order.clear();
        self.prepared.clear();
        self
    }

    fn batch(&mut self, session: &mut Session, side: Side, bytes: Bytes) {
        match side {
            Side::Client => {
                let batch = session.client(bytes).unwrap();
                self.take(&batch);
                let applied = session.apply(batch, &[]);
                assert!(applied.client.is_empty());
                self.to_target.extend(applied.target.concat());
                applied.outcomes.iter().for_each(|outcome| self.outcome(outcome));
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

/// The texts of the Parse messages and the values of the Bind messages in these whole messages.
fn texts_and_values(mut bytes: &[u8]) -> Vec<Bytes> {
    let string = |body: &[u8]| body.iter().position(|byte| *byte == 0).unwrap();
    let number = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut found = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let (body, after) = rest.split_at(length);
        let body = &body[4..];
        match kind {
            b'P' | b'B' => {}
            _ => {
                bytes = after;
                continue;
            }
        }
        let mut rest = &body[string(body) + 1..];
        match kind {
            b'P' => found.push(Bytes::copy_from_slice(&rest[..string(rest)])),
            b'B' => {
                rest = &rest[string(rest) + 1..];
                rest = &rest[2 + 2 * number(rest)..];
                let count = number(rest);
                rest = &rest[2..];
                for _ in 0..count {
                    let value = i32::from_be_bytes(rest[..4].try_into().unwrap());
                    rest = &rest[4..];
                    if let Ok(value) = usize::try_from(value) {
                        found.push(Bytes::copy_from_slice(&rest[..value]));
                        rest = &rest[value..];
                    }
                }
            }
            _ => {}
        }
        bytes = after;
    }
    found
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
        prop_assert_eq!(split.settled(), whole.settled());
    }

    /// Whatever the split, a Parse's text and a Bind's values are in an event of their own batch or of an earlier one.
    #[test]
    fn no_text_and_no_parameter_is_forwarded_untold(
        name in prop::sample::select(vec!["prepared", "extended", "pipeline"]),
        sizes in prop::collection::vec(1usize..200, 1..20),
    ) {
        let mut session = Session::new(Limits::default());
        let mut sizes = sizes.into_iter().cycle();
        let mut told = BTreeSet::new();
        for (side, mut bytes) in session_records(name) {
            while !bytes.is_empty() {
                let size = sizes.next().unwrap().min(bytes.len());
                let part = bytes.split_to(size);
                if side == Side::Target {
                    session.target(part).unwrap();
                    continue;
                }
                let batch = session.client(part).unwrap();
                for event in &batch.events {
                    if let Event::Statement(it) | Event::Prepared(it) = event {
                        told.insert(it.text.clone());
                        told.extend(it.params.iter().filter_map(|param| param.data.clone()));
                    }
                }
                for field in texts_and_values(&batch.bytes) {
                    prop_assert!(told.contains(&field), "{:?} was forwarded untold", field);
                }
                session.apply(batch, &[]);
            }
        }
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
