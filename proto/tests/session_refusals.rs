//! A refused statement must look to the client like one that PostgreSQL itself refused: the same messages in the same
//! order, the same transaction status, the same statements run and not run.
//!
//! A small model of PostgreSQL's main loop (postgres.c: skipping up to Sync after an error, implicit and explicit
//! transactions) answers twice: once told to fail the forbidden statements itself, once behind a `Session` that refuses
//! them. Both clients must see the same, and both models must have run the same. Two differences are meant and not looked
//! at: why a statement failed (a refusal wins over an error that the target would have found, such as a portal that is
//! gone), and that a Query answered by the gateway alone leaves the target's unnamed statement.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)] // a test: to panic is to fail

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::{BufMut, Bytes, BytesMut};
use hoop_proto::dialogue::Dialogue;
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::{Event, Outcome, Status};
use hoop_proto::postgres::encode::{query, ready_for_query};
use hoop_proto::postgres::error_response::{Severity, error_response};
use hoop_proto::postgres::session::{Limits, Session};
use proptest::prelude::*;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn refusal() -> Refusal {
    Refusal::new(End::Refused, "not allowed here", "Ask for a review")
}

fn error(code: &str) -> Bytes {
    let told = Refusal {
        code: code.into(),
        ..Refusal::new(End::Internal, "at fault", "")
    };
    error_response(Severity::Error, &told)
}

fn is_forbidden(text: &str) -> bool {
    text.starts_with("forbidden")
}

/// What a client sends.
#[derive(Debug, Clone)]
enum Sent {
    Query(&'static str),
    Parse(&'static str, &'static str),
    Bind(&'static str, &'static str),
    Describe,
    Execute(&'static str),
    Flush,
    Sync,
}

impl Sent {
    fn encode(&self) -> Vec<u8> {
        let zero = |parts: &[&str]| {
            parts
                .iter()
                .flat_map(|part| [part.as_bytes(), b"\0"].concat())
                .collect::<Vec<_>>()
        };
        match self {
            Self::Query(text) => query(text).to_vec(),
            Self::Parse(name, text) => message(b'P', &[zero(&[name, text]), vec![0; 2]].concat()),
            Self::Bind(portal, name) => message(b'B', &[zero(&[portal, name]), vec![0; 6]].concat()),
            Self::Describe => message(b'D', b"P\0"),
            Self::Execute(portal) => message(b'E', &[zero(&[portal]), vec![0; 4]].concat()),
            Self::Flush => message(b'H', b""),
            Self::Sync => message(b'S', b""),
        }
    }
}

const TEXTS: [&str; 6] = ["select 1", "selec", "fail", "forbidden", "begin", "rollback"];
const NAMES: [&str; 2] = ["", "s"];

/// PostgreSQL's main loop, as far as it matters here.
struct Model {
    /// Fails the forbidden statements itself.
    forbids: bool,
    input: BytesMut,
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
    status: u8,
    skipping: bool,
    /// Texts that had an effect, and the ends of transactions.
    ran: Vec<String>,
}

impl Model {
    fn new(forbids: bool) -> Self {
        Self {
            forbids,
            input: BytesMut::new(),
            statements: HashMap::new(),
            portals: HashMap::new(),
            status: b'I',
            skipping: false,
            ran: Vec::new(),
        }
    }

    fn run(&mut self, text: &str) -> Result<Vec<u8>, &'static str> {
        let out = match text {
            "rollback" => {
                self.status = b'I';
                self.portals.clear();
                message(b'C', b"ROLLBACK\0")
            }
            _ if self.status == b'E' => return Err("25P02"),
            "fail" => return Err("22012"),
            "begin" => {
                self.status = b'T';
                message(b'C', b"BEGIN\0")
            }
            _ => [message(b'D', b"\0\0"), message(b'C', b"SELECT 1\0")].concat(),
        };
        self.ran.push(text.to_owned());
        Ok(out)
    }

    /// Parsing, which comes before anything else.
    fn parse(&self, text: &str) -> Result<(), &'static str> {
        if text == "selec" || text.starts_with("REFUSED") {
            Err("42601")
        } else {
            Ok(())
        }
    }

    fn forbid(&self, text: &str) -> bool {
        self.forbids && is_forbidden(text)
    }

    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.put_slice(bytes);
        let mut out = Vec::new();
        while self.input.len() >= 5 {
            let length = 1 + u32::from_be_bytes(self.input[1..5].try_into().unwrap()) as usize;
            if self.input.len() < length {
                break;
            }
            let whole = self.input.split_to(length);
            self.message(whole[0], &whole[5..], &mut out);
        }
        out
    }

    fn message(&mut self, kind: u8, body: &[u8], out: &mut Vec<u8>) {
        if kind == b'S' {
            self.skipping = false;
            if self.status == b'I' {
                self.portals.clear();
                self.ran.push("commit".into());
            }
            out.extend_from_slice(&ready_for_query(self.status));
            return;
        }
        if self.skipping {
            return;
        }
        let mut words = body
            .split(|&byte| byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let result = match kind {
            b'Q' if self.forbid(&first) => Err("refused"),
            b'Q' => self.parse(&first).and_then(|()| self.run(&first)),
            b'P' => {
                if first.is_empty() {
                    self.statements.remove("");
                }
                self.parse(&second).and_then(|()| {
                    if self.status == b'E' && second != "rollback" {
                        Err("25P02")
                    } else if let Entry::Vacant(entry) = self.statements.entry(first) {
                        entry.insert(second);
                        Ok(message(b'1', b""))
                    } else {
                        Err("42P05")
                    }
                })
            }
            b'B' => match self.statements.get(&second).cloned() {
                None => Err("26000"),
                Some(text) if self.status == b'E' && text != "rollback" => Err("25P02"),
                Some(text) => {
                    self.portals.insert(first, text);
                    Ok(message(b'2', b""))
                }
            },
            b'D' => match self.portals.contains_key(&second) || self.portals.contains_key(&first[1..]) {
                true => Ok(message(b'n', b"")),
                false => Err("34000"),
            },
            b'E' => match self.portals.get(&first).cloned() {
                None => Err("34000"),
                Some(text) if self.forbid(&text) => Err("refused"),
                Some(text) => self.run(&text),
            },
            _ => Ok(Vec::new()),
        };
        match result {
            Ok(answer) => out.extend(answer),
            Err(code) => {
                if kind != b'Q' || self.status == b'T' {
                    self.ran.push("abort".into());
                }
                match code {
                    "refused" => out.extend_from_slice(&error_response(Severity::Error, &refusal())),
                    code => out.extend_from_slice(&error(code)),
                }
                if self.status == b'T' {
                    self.status = b'E';
                    self.portals.clear();
                }
                self.skipping = kind != b'Q';
            }
        }
        if kind == b'Q' {
            // A simple Query ends the implicit transaction, and with it the portals.
            if self.status == b'I' {
                self.portals.clear();
            }
            out.extend_from_slice(&ready_for_query(self.status));
        }
    }
}

/// Everything behind the gateway, with results that may be late.
struct Gateway {
    session: Session,
    model: Model,
    /// Answers that are still on their way.
    late: BytesMut,
    to_client: Vec<u8>,
    judged: HashMap<u64, (String, Option<Status>)>,
    /// What was only prepared, and what came of it.
    prepared: HashMap<u64, Option<Status>>,
}

impl Gateway {
    fn settle(&mut self, outcome: &Outcome) {
        let id = outcome.statement;
        let slot = match self.judged.get_mut(&id) {
            Some((_, slot)) => slot,
            None => self.prepared.get_mut(&id).unwrap(),
        };
        assert_eq!(*slot, None, "two outcomes of statement {id}");
        *slot = Some(outcome.status);
    }

    fn client(&mut self, bytes: &[u8]) -> Result<(), String> {
        let batch = self
            .session
            .client(Bytes::copy_from_slice(bytes))
            .map_err(|violation| violation.message)?;
        let mut refusals = Vec::new();
        for (index, event) in batch.events.iter().enumerate() {
            if let Event::Prepared(statement) = event {
                self.prepared.insert(statement.id, None);
            }
            let Event::Statement(statement) = event else { continue };
            let text = String::from_utf8_lossy(&statement.text).into_owned();
            if is_forbidden(&text) {
                refusals.push((index, refusal()));
            }
            self.judged.insert(statement.id, (text, None));
        }
        let applied = self.session.apply(batch, &refusals);
        self.to_client.extend(applied.client.concat());
        for outcome in applied.outcomes {
            self.settle(&outcome);
        }
        for bytes in applied.target {
            let answer = self.model.receive(&bytes);
            self.late.put_slice(&answer);
        }
        Ok(())
    }

    fn answer(&mut self, bytes: usize) {
        let bytes = self.late.split_to(bytes.min(self.late.len())).freeze();
        let batch = self.session.target(bytes).unwrap();
        self.to_client.extend_from_slice(&batch.bytes);
        for event in &batch.events {
            if let Event::Outcome(outcome) = event {
                self.settle(outcome);
            }
        }
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let text = || prop::sample::select(TEXTS.to_vec());
    let name = || prop::sample::select(NAMES.to_vec());
    prop_oneof![
        2 => text().prop_map(Sent::Query),
        3 => (name(), text()).prop_map(|(name, text)| Sent::Parse(name, text)),
        3 => (name(), name()).prop_map(|(portal, name)| Sent::Bind(portal, name)),
        1 => Just(Sent::Describe),
        4 => name().prop_map(Sent::Execute),
        1 => Just(Sent::Flush),
        3 => Just(Sent::Sync),
    ]
}

/// The messages without the errors' contents.
fn shape(mut bytes: &[u8]) -> Vec<String> {
    let mut shape = Vec::new();
    while let Some(length) = bytes.get(1..5) {
        let length = 1 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let (message, rest) = bytes.split_at(length);
        bytes = rest;
        shape.push(if message[0] == b'E' {
            "E".into()
        } else {
            String::from_utf8_lossy(message).into_owned()
        });
    }
    assert!(bytes.is_empty(), "a message is cut");
    shape
}

/// What runs in the model without effect of its own is not compared: 'abort' for a refusal answered by the gateway.
fn effects(model: &Model) -> Vec<&str> {
    model
        .ran
        .iter()
        .map(String::as_str)
        .filter(|text| !is_forbidden(text))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 100_000, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn a_refusal_looks_like_postgresqls_own(
        sent in prop::collection::vec(sent(), 1..30),
        sizes in prop::collection::vec((1usize..120, 0usize..150), 1..12),
    ) {
        let stream: Vec<u8> = sent.iter().chain(&[Sent::Sync]).flat_map(Sent::encode).collect();
        let mut direct = Model::new(true);
        let expected = direct.receive(&stream);

        let mut gateway = Gateway {
            session: Session::new(Limits::default()),
            model: Model::new(false),
            late: BytesMut::new(),
            to_client: Vec::new(),
            judged: HashMap::new(),
            prepared: HashMap::new(),
        };
        let mut rest = &stream[..];
        for (size, answered) in sizes.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (head, tail) = rest.split_at(size.min(rest.len()));
            rest = tail;
            if let Err(message) = gateway.client(head) {
                // The one thing that is not passed on: a name that may mean two things.
                prop_assert!(message.contains("wait for ReadyForQuery"), "{}", message);
                return Ok(());
            }
            gateway.answer(answered);
        }
        gateway.answer(usize::MAX);

        prop_assert!(!gateway.model.ran.iter().any(|text| is_forbidden(text)), "a forbidden statement ran");
        prop_assert_eq!(shape(&gateway.to_client), shape(&expected));
        prop_assert_eq!(effects(&gateway.model), effects(&direct));
        prop_assert_eq!(gateway.session.idle(), direct.status == b'I');
        for (id, (text, status)) in &gateway.judged {
            prop_assert!(status.is_some(), "statement {} has no outcome", id);
            if is_forbidden(text) {
                prop_assert!(*status != Some(Status::Ok), "statement {} was refused", id);
            }
        }
        for (id, status) in &gateway.prepared {
            prop_assert!(status.is_some(), "what was prepared as {} has no outcome", id);
        }
        // What the record says ran is what ran, in this order.
        let mut ran: Vec<_> = gateway.judged.iter().filter(|(_, (_, status))| *status == Some(Status::Ok)).collect();
        ran.sort_by_key(|(id, _)| **id);
        let recorded: Vec<_> = ran.into_iter().map(|(_, (text, _))| text.as_str()).collect();
        let run: Vec<_> = gateway.model.ran.iter().map(String::as_str).filter(|it| *it != "commit" && *it != "abort").collect();
        prop_assert_eq!(recorded, run);
    }
}
