//! The relay against a client, an agent and a recorder that the tests hold in their hands.
//!
//! The protocol here is lines: each line of the client is a statement, or with `<` before it input of the last one, or
//! with `?` before it prepared only; the target answers with lines of output, and ends a statement with a line of a
//! single dot.

mod cost;
mod ends;
mod policy;
mod record;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;

use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use hoop_proto::dialogue::{Applied, Batch, Violation};
use hoop_proto::event::{Event, Interest, Outcome, Statement, StatementKind, Status, Verdict};
use hoop_proto::link::{Control, Frame, Kill};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::control::{ControlSender, Order, Release, control};
use crate::mux::{ChannelReader, ChannelWriter, INITIAL_WINDOW_BYTES, MuxConfig, Outbox};
use crate::recorder::{Commit, RecordError};
use crate::stage::{Direction, Stage};

#[derive(Default)]
struct Lines {
    client: BytesMut,
    target: BytesMut,
    next: u64,
    unanswered: VecDeque<u64>,
}

impl Dialogue for Lines {
    fn client(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        self.client.extend_from_slice(&bytes);
        let Some(end) = self.client.iter().rposition(|b| *b == b'\n') else {
            return Ok(Batch::default());
        };
        let bytes = self.client.split_to(end + 1).freeze();
        if bytes.starts_with(b"!") {
            return Err(Violation {
                message: "no line begins with !".into(),
                code: "08P01",
            });
        }
        let mut batch = Batch {
            bytes: bytes.clone(),
            ..Batch::default()
        };
        let mut at = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let span = at..at + line.len();
            at += line.len();
            if line.starts_with(b"<") {
                batch.events.push(Event::Input {
                    statement: self.next,
                    span,
                    rows: 1,
                });
                continue;
            }
            self.next += 1;
            let statement = Statement {
                id: self.next,
                kind: StatementKind::Query,
                text: bytes.slice_ref(&line[..line.len() - 1]),
                params: vec![],
                name: Bytes::new(),
                span,
            };
            batch.events.push(match line.starts_with(b"?") {
                true => Event::Prepared(statement),
                false => Event::Statement(statement),
            });
        }
        Ok(batch)
    }

    fn apply(&mut self, batch: Batch, refusals: &[(usize, Refusal)]) -> Applied {
        let mut applied = Applied::default();
        for (index, event) in batch.events.iter().enumerate() {
            let statement = match event {
                Event::Statement(statement) | Event::Prepared(statement) => statement,
                Event::Input { span, .. } => {
                    if !refusals.iter().any(|(at, _)| *at == index) {
                        applied.target.push(batch.bytes.slice(span.clone()));
                    }
                    continue;
                }
                _ => continue,
            };
            match refusals.iter().find(|(at, _)| *at == index) {
                None => {
                    self.unanswered.push_back(statement.id);
                    applied.target.push(batch.bytes.slice(statement.span.clone()));
                }
                Some((_, refusal)) => {
                    applied
                        .client
                        .push(Bytes::from(format!("refused: {}\n", refusal.message)));
                    applied.outcomes.push(outcome(statement.id, Status::Refused));
                }
            }
        }
        applied
    }

    fn target(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        self.target.extend_from_slice(&bytes);
        let Some(end) = self.target.iter().rposition(|b| *b == b'\n') else {
            return Ok(Batch::default());
        };
        let bytes = self.target.split_to(end + 1).freeze();
        let mut batch = Batch {
            bytes: bytes.clone(),
            ..Batch::default()
        };
        let mut at = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let statement = self.unanswered.front().copied().unwrap_or(0);
            if line == b".\n" {
                self.unanswered.pop_front();
                batch.events.push(Event::Outcome(outcome(statement, Status::Ok)));
            } else {
                batch.events.push(Event::Output {
                    statement,
                    span: at..at + line.len(),
                    rows: 1,
                });
            }
            at += line.len();
        }
        Ok(batch)
    }

    fn idle(&self) -> bool {
        self.unanswered.is_empty()
    }

    fn unfinished(&self) -> usize {
        0
    }

    fn unanswered(&mut self) -> Vec<Outcome> {
        self.unanswered
            .drain(..)
            .map(|id| outcome(id, Status::Unknown))
            .collect()
    }

    fn notice(&self, text: &str, _: &str) -> Option<Bytes> {
        Some(Bytes::from(format!("notice: {text}\n")))
    }

    fn farewell(&self, refusal: &Refusal) -> Bytes {
        Bytes::from(format!("farewell: {}\n", refusal.message))
    }
}

fn outcome(statement: u64, status: Status) -> Outcome {
    let none = String::new;
    Outcome {
        statement,
        status,
        sqlstate: none(),
        message: none(),
        tag: none(),
        rows: 0,
        bytes: 0,
    }
}

/// A recorder that keeps what it is told, and fails or waits on demand.
#[derive(Clone, Default)]
struct Kept(Rc<KeptInner>);

#[derive(Default)]
struct KeptInner {
    bodies: RefCell<Vec<Body>>,
    commits: Cell<usize>,
    fail: Cell<bool>,
    slow: Cell<Option<Duration>>,
}

impl Recorder for Kept {
    fn append(&mut self, body: Body) -> Result<(), RecordError> {
        if self.0.fail.get() {
            return Err(RecordError("disk full".into()));
        }
        self.0.bodies.borrow_mut().push(body);
        Ok(())
    }

    fn commit(&mut self) -> Result<Commit, RecordError> {
        self.0.commits.set(self.0.commits.get() + 1);
        Ok(match self.0.slow.get() {
            None => Commit::Done,
            Some(time) => Commit::Wait(Box::pin(async move {
                tokio::time::sleep(time).await;
                Ok(())
            })),
        })
    }
}

impl Kept {
    /// The record in short.
    fn story(&self) -> Vec<String> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        self.0
            .bodies
            .borrow()
            .iter()
            .map(|body| match body {
                Body::Attempt(a) if a.verdicts.is_empty() => format!("attempt {} {}", a.statement, text(&a.text)),
                Body::Attempt(a) => {
                    let verdicts: Vec<_> = a
                        .verdicts
                        .iter()
                        .map(|v| format!("{}={}", v.stage, v.verdict))
                        .collect();
                    format!("attempt {} {} [{}]", a.statement, text(&a.text), verdicts.join(" "))
                }
                Body::Prepared(a) => format!("prepared {} {}", a.statement, text(&a.text)),
                Body::Input(i) => format!("input {} {}", i.statement, text(&i.data)),
                Body::InputCut(c) if c.total => {
                    let figures = format!("{}/{} in {}", c.recorded_bytes, c.bytes, c.rows);
                    format!("input total {} {} {figures}", c.statement, c.limit)
                }
                Body::InputCut(c) => format!("input cut {} {} {}", c.statement, c.limit, c.recorded_bytes),
                Body::Output(o) => format!("output {} {}", o.statement, text(&o.data)),
                Body::Outcome(o) => format!("outcome {} {}", o.statement, o.status),
                Body::Cut(c) if c.total => {
                    format!("total {} {} {}/{}", c.statement, c.limit, c.recorded_bytes, c.bytes)
                }
                Body::Cut(c) => format!("cut {} {} {}", c.statement, c.limit, c.recorded_bytes),
                Body::Control(c) => format!("control {} by {}", c.kind, c.by),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

struct Rig {
    client: DuplexStream,
    agent: Mux,
    from_gateway: ChannelReader,
    to_gateway: ChannelWriter,
    record: Kept,
    control: ControlSender,
    counters: Rc<Counters>,
    transport: JoinHandle<()>,
    relay: JoinHandle<(Refusal, Counts)>,
}

#[derive(Default)]
struct Setup {
    stages: Vec<Box<dyn Stage>>,
    record: RecordLimits,
    holds: HoldLimits,
    limits: SessionLimits,
    early: &'static str,
    kept: Kept,
}

/// The gateway's mux, the agent's, and the transport from the agent to the gateway.
fn pair() -> (Mux, Mux, JoinHandle<()>) {
    let (to_gateway, from_agent) = frames();
    let (to_agent, from_gateway) = frames();
    let (gateway, out) = Mux::start(from_agent, MuxConfig::default());
    spawn_local(carry(out, to_agent));
    let (agent, out) = Mux::start(from_gateway, MuxConfig::default());
    let transport = spawn_local(carry(out, to_gateway));
    (gateway, agent, transport)
}

type Frames = Pin<Box<dyn futures_util::Stream<Item = Result<Frame, Infallible>>>>;

fn frames() -> (mpsc::Sender<Frame>, Frames) {
    let (to, mut from) = mpsc::channel(100_000);
    (
        to,
        Box::pin(futures_util::stream::poll_fn(move |cx| from.poll_recv(cx)).map(Ok)),
    )
}

async fn carry(mut out: Outbox, to: mpsc::Sender<Frame>) {
    while let Some(frame) = out.next().await {
        if to.send(frame).await.is_err() {
            return;
        }
    }
}

fn start(setup: Setup) -> Rig {
    let (client, socket) = duplex(64 * 1024);
    let (mux, agent, transport) = pair();
    let (sender, receiver) = control();
    let counters = Rc::new(Counters::default());
    let parts = Parts {
        client: socket,
        early: Bytes::from_static(setup.early.as_bytes()),
        dialogue: Lines::default(),
        channel: mux.channel(0),
        mux,
        recorder: setup.kept.clone(),
        chain: Chain::start(setup.stages),
        record: setup.record,
        holds: setup.holds,
        control: receiver,
        counters: counters.clone(),
        limits: setup.limits,
    };
    let relay = spawn_local(async move {
        let end = run(parts).await;
        (end.refusal, end.counts)
    });
    let (from_gateway, to_gateway) = agent.channel(0).split();
    Rig {
        client,
        agent,
        from_gateway,
        to_gateway,
        record: setup.kept,
        transport,
        control: sender,
        counters,
        relay,
    }
}

impl Rig {
    async fn says(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.unwrap();
    }

    async fn target_gets(&mut self) -> String {
        let bytes = self.from_gateway.recv().await.unwrap().unwrap_or_default();
        self.from_gateway.consumed(bytes.len());
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    async fn target_says(&mut self, text: impl Into<Bytes>) {
        self.to_gateway.send(text.into()).await.unwrap();
    }

    async fn client_gets(&mut self) -> String {
        let mut buffer = vec![0; 64 * 1024];
        let count = self.client.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    async fn end(self) -> (Refusal, Counts) {
        self.relay.await.unwrap()
    }
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

/// A stage that answers by text.
struct ByText(&'static str, fn(&str) -> Verdict);

impl Stage for ByText {
    fn name(&self) -> &'static str {
        self.0
    }
    fn interest(&self) -> Interest {
        Interest {
            statements: true,
            ..Interest::default()
        }
    }
    fn judge(&mut self, direction: Direction, events: &[Event]) -> LocalBoxFuture<'static, Vec<Verdict>> {
        assert_eq!(direction, Direction::ToTarget);
        let verdicts = events
            .iter()
            .map(|event| match event {
                Event::Statement(statement) => (self.1)(std::str::from_utf8(&statement.text).unwrap()),
                _ => Verdict::Forward,
            })
            .collect();
        Box::pin(async move { verdicts })
    }
}

fn refuse(why: &str) -> Verdict {
    Verdict::Refuse(Refusal::new(End::Refused, why, ""))
}
