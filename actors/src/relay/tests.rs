//! The relay against a client, an agent and a recorder that the tests hold in their hands.
//!
//! The protocol here is lines: each line of the client is a statement; the target answers with lines of output, and
//! ends a statement with a line of a single dot.

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
            self.next += 1;
            batch.events.push(Event::Statement(Statement {
                id: self.next,
                kind: StatementKind::Query,
                text: bytes.slice_ref(&line[..line.len() - 1]),
                params: vec![],
                name: Bytes::new(),
                span: at..at + line.len(),
            }));
            at += line.len();
        }
        Ok(batch)
    }

    fn apply(&mut self, batch: Batch, refusals: &[(usize, Refusal)]) -> Applied {
        let mut applied = Applied::default();
        for (index, event) in batch.events.iter().enumerate() {
            let Event::Statement(statement) = event else { continue };
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
    relay: JoinHandle<(Refusal, Counts)>,
}

#[derive(Default)]
struct Setup {
    stages: Vec<Box<dyn Stage>>,
    record: RecordLimits,
    holds: HoldLimits,
    idle_timeout: Option<Duration>,
    early: &'static str,
    kept: Kept,
}

fn join(outbox: Outbox) -> impl futures_util::Stream<Item = Result<Frame, Infallible>> + Unpin {
    outbox.map(Ok)
}

/// A hand-over of an outbox to a mux that had to be started first.
fn pair() -> (Mux, Mux) {
    let (to, mut from) = tokio::sync::mpsc::channel::<Frame>(100_000);
    let late = futures_util::stream::poll_fn(move |cx| from.poll_recv(cx)).map(Ok::<_, Infallible>);
    let (gateway, mut out) = Mux::start(late_end(Box::pin(late)), MuxConfig::default());
    let (to_agent, mut from_gateway) = tokio::sync::mpsc::channel::<Frame>(100_000);
    spawn_local(async move {
        while let Some(frame) = out.next().await {
            if to_agent.send(frame).await.is_err() {
                return;
            }
        }
    });
    let frames = futures_util::stream::poll_fn(move |cx| from_gateway.poll_recv(cx)).map(Ok::<_, Infallible>);
    let (agent, out) = Mux::start(Box::pin(frames), MuxConfig::default());
    spawn_local(async move {
        let mut out = join(out);
        while let Some(Ok(frame)) = out.next().await {
            if to.send(frame).await.is_err() {
                return;
            }
        }
    });
    (gateway, agent)
}

fn late_end<S>(stream: S) -> S {
    stream
}

fn start(setup: Setup) -> Rig {
    let (client, socket) = duplex(64 * 1024);
    let (mux, agent) = pair();
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
        idle_timeout: setup.idle_timeout,
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

#[tokio::test(start_paused = true)]
async fn a_statement_is_recorded_before_it_is_forwarded_and_its_result_before_it_is_seen() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.record.story(), ["attempt 1 one"]);
        assert_eq!(rig.record.0.commits.get(), 1);
        rig.target_says("a\nb\n.\n").await;
        assert_eq!(rig.client_gets().await, "a\nb\n.\n");
        assert_eq!(rig.record.story(), ["attempt 1 one", "output 1 a\nb", "outcome 1 ok"]);
        assert_eq!(rig.record.0.commits.get(), 1, "results need no commit");
        assert_eq!(rig.counters.statements.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_came_with_the_start_up_is_the_first_batch_and_a_batch_has_one_commit() {
    local(async {
        let mut rig = start(Setup {
            early: "one\ntwo\n",
            ..Setup::default()
        });
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.target_gets().await, "two\n");
        assert_eq!(rig.record.story(), ["attempt 1 one", "attempt 2 two"]);
        assert_eq!(rig.record.0.commits.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forwarded_before_a_slow_commit_is_done() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.slow.set(Some(Duration::from_secs(3)));
        let before = Instant::now();
        rig.says("one\n").await;
        assert_eq!(rig.target_gets().await, "one\n");
        assert!(before.elapsed() >= Duration::from_secs(3));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_kept_ends_the_session_before_anything_is_forwarded() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.fail.set(true);
        rig.says("one\n").await;
        assert!(rig.from_gateway.recv().await.is_err());
        assert_eq!(
            rig.client_gets().await,
            "farewell: this session cannot be recorded, so it was ended\n"
        );
        assert_eq!(rig.end().await.0.end, End::RecordFailed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn any_refusal_wins_and_every_verdict_is_on_record() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![
            Box::new(ByText("reviews", |text| match text {
                "drop" => Verdict::Hold("r1".into()),
                _ => Verdict::Forward,
            })),
            Box::new(ByText("rbac", |text| {
                if text == "drop" {
                    refuse("not yours")
                } else {
                    Verdict::Forward
                }
            })),
        ];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("drop\n").await;
        assert_eq!(rig.client_gets().await, "refused: not yours\n");
        rig.says("select\n").await;
        assert_eq!(rig.target_gets().await, "select\n");
        assert_eq!(
            rig.record.story(),
            [
                "attempt 1 drop [reviews=hold rbac=refuse]",
                "outcome 1 refused",
                "attempt 2 select [reviews=forward rbac=forward]"
            ]
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_held_statement_waits_for_its_release() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("reviews", |_| Verdict::Hold("r1".into())))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert_eq!(rig.client_gets().await, "notice: waiting for review r1\n");
        rig.says("two\n").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((rig.counters.held.get(), rig.record.story().len()), (1, 0));
        assert!(
            rig.control.release(Release {
                review: "r0".into(),
                decision: Err(client_closed())
            }),
            "another's"
        );
        assert!(rig.control.release(Release {
            review: "r1".into(),
            decision: Ok(())
        }));
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.client_gets().await, "notice: waiting for review r1\n");
        rig.target_says(".\n").await;
        assert_eq!(
            rig.client_gets().await,
            ".\n",
            "the target is heard while a statement is held"
        );
        let no = Refusal::new(End::Refused, "rejected by rita", "");
        assert!(rig.control.release(Release {
            review: "r1".into(),
            decision: Err(no)
        }));
        assert_eq!(rig.client_gets().await, "refused: rejected by rita\n");
        assert_eq!(rig.record.story()[2], "attempt 2 two [reviews=hold reviews=refuse]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_at_its_limit_and_sooner_while_it_keeps_locks() {
    local(async {
        let stage = || -> Vec<Box<dyn Stage>> {
            vec![Box::new(ByText("reviews", |text| match text {
                "held" => Verdict::Hold("r1".into()),
                _ => Verdict::Forward,
            }))]
        };
        for (first, seconds) in [("", 3600), ("open\n", 60)] {
            let mut rig = start(Setup {
                stages: stage(),
                ..Setup::default()
            });
            if !first.is_empty() {
                rig.says(first).await;
                rig.target_gets().await;
            }
            let before = Instant::now();
            rig.says("held\n").await;
            rig.client_gets().await;
            assert_eq!(
                rig.client_gets().await,
                format!("refused: review r1 was not decided within {seconds} s\n")
            );
            assert_eq!(before.elapsed().as_secs(), seconds);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_during_a_hold_is_noticed() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("reviews", |_| Verdict::Hold("r1".into())))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        rig.client_gets().await;
        let Rig {
            client, relay, record, ..
        } = rig;
        drop(client);
        assert_eq!(relay.await.unwrap().0.end, End::ClientClosed);
        assert_eq!(record.story().len(), 0, "nothing was attempted");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_panics_ends_the_session_and_nothing_is_forwarded() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("broken", |_| panic!("on purpose")))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert!(rig.from_gateway.recv().await.is_err());
        assert!(rig.client_gets().await.contains("\"broken\" failed"));
        assert_eq!(rig.end().await.0.end, End::StageFailed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_never_answers_ends_the_session_in_time() {
    struct Mute;
    impl Stage for Mute {
        fn name(&self) -> &'static str {
            "mute"
        }
        fn interest(&self) -> Interest {
            Interest {
                statements: true,
                ..Interest::default()
            }
        }
        fn judge(&mut self, _: Direction, _: &[Event]) -> LocalBoxFuture<'static, Vec<Verdict>> {
            Box::pin(std::future::pending())
        }
    }
    local(async {
        let mut rig = start(Setup {
            stages: vec![Box::new(Mute)],
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert_eq!(rig.end().await.0.end, End::StageFailed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_no_codec_can_make_is_refused() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("mask", |_| {
            Verdict::Replace(Box::new(Event::Setting {
                name: String::new(),
                value: String::new(),
            }))
        }))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert!(
            rig.client_gets()
                .await
                .starts_with("refused: a policy wants to change this")
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_says_farewell_closes_the_link_and_leaves_the_outcome_unknown() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.target_gets().await;
        rig.control.kill(Order {
            refusal: Refusal::new(End::Killed, "ended by ada", ""),
            by: "ada".into(),
        });
        assert_eq!(rig.client_gets().await, "farewell: ended by ada\n");
        assert_eq!(rig.client_gets().await, "", "and then the end");
        let closed = rig.from_gateway.recv().await.unwrap_err();
        assert_eq!(closed.refusal().end, End::Killed);
        assert_eq!(
            rig.record.story(),
            ["attempt 1 one", "control kill by ada", "outcome 1 unknown"]
        );
        assert_eq!(rig.end().await.0.end, End::Killed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_does_not_hold_up_a_kill_nor_memory() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.target_gets().await;
        let mut writer = rig.agent.channel(0).split().1;
        let sent = Rc::new(Cell::new(0u64));
        let count = sent.clone();
        spawn_local(async move {
            let line = Bytes::from([vec![b'x'; 9_999], vec![b'\n']].concat());
            while writer.send(line.clone()).await.is_ok() {
                count.set(count.get() + 10_000);
            }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(
            sent.get() <= INITIAL_WINDOW_BYTES + 64 * 1024 + 64 * 1024,
            "{}",
            sent.get()
        );
        let before = Instant::now();
        rig.control.kill(Order {
            refusal: Refusal::new(End::Killed, "ended", ""),
            by: "ada".into(),
        });
        let Rig {
            relay, client: _client, ..
        } = rig;
        assert_eq!(relay.await.unwrap().0.end, End::Killed);
        assert!(before.elapsed() <= FAREWELL_LIMIT + Duration::from_millis(10));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_half_closes_gets_the_rest_of_its_result() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.client.shutdown().await.unwrap();
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.target_gets().await, "", "the end is passed on");
        tokio::time::sleep(Duration::from_secs(100)).await;
        rig.target_says("late\n.\n").await;
        rig.to_gateway.eof();
        assert_eq!(rig.client_gets().await, "late\n.\n");
        assert_eq!(rig.client_gets().await, "");
        assert_eq!(rig.record.story().last().unwrap(), "outcome 1 ok");
        assert_eq!(rig.agent.next_event().await, MuxEvent::Close(None));
        let (refusal, counts) = rig.end().await;
        assert_eq!(refusal.end, End::ClientClosed);
        assert_eq!(
            counts,
            Counts {
                statements: 1,
                client_bytes: 4,
                target_bytes: 7
            }
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_closes_ends_the_session_after_its_last_bytes() {
    local(async {
        let mut rig = start(Setup::default());
        rig.target_says("bye\n").await;
        rig.to_gateway.eof();
        assert_eq!(rig.client_gets().await, "bye\n");
        assert_eq!(rig.client_gets().await, "");
        let before = Instant::now();
        let Rig {
            relay, client: _client, ..
        } = rig;
        assert_eq!(relay.await.unwrap().0.end, End::TargetClosed);
        assert_eq!(before.elapsed().as_secs(), HALF_CLOSE_LINGER.as_secs());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_agents_reason_reaches_the_client_after_the_data_before_it() {
    local(async {
        let mut rig = start(Setup::default());
        rig.target_says("partial\n").await;
        rig.agent
            .close(Some(&Refusal::new(End::TargetUnreachable, "the target was reset", "")));
        let mut all = String::new();
        rig.client.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "partial\nfarewell: the target was reset\n");
        assert_eq!(rig.end().await.0.end, End::TargetUnreachable);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_from_the_agent_ends_the_session() {
    local(async {
        let mut rig = start(Setup::default());
        let kill = Kill {
            code: "shutdown".into(),
            message: "the agent stops".into(),
        };
        rig.agent
            .control(
                0,
                Control {
                    body: Some(control::Body::Kill(kill)),
                },
            )
            .unwrap();
        assert_eq!(rig.client_gets().await, "farewell: the agent stops\n");
        assert_eq!(rig.end().await.0.end, End::Shutdown);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_violation_is_told_with_its_own_code() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("!\n").await;
        assert_eq!(rig.client_gets().await, "farewell: no line begins with !\n");
        let (refusal, _) = rig.end().await;
        assert_eq!((refusal.end, refusal.sqlstate()), (End::ClientViolation, "08P01"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idleness_is_told_and_a_running_statement_is_not_idle() {
    local(async {
        let mut rig = start(Setup {
            idle_timeout: Some(Duration::from_secs(30)),
            ..Setup::default()
        });
        rig.says("one\n").await;
        rig.target_gets().await;
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        rig.target_says(".\n").await;
        assert_eq!(rig.client_gets().await, ".\n");
        let before = Instant::now();
        tokio::time::sleep(Duration::from_secs(20)).await;
        rig.says("two\n").await;
        rig.target_gets().await;
        rig.target_says(".\n").await;
        rig.client_gets().await;
        assert_eq!(
            rig.client_gets().await,
            "farewell: nothing was sent for 30 s, so the session was ended\n"
        );
        assert_eq!(before.elapsed().as_secs(), 50);
        assert_eq!(rig.end().await.0.end, End::IdleTimeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn results_past_the_limit_leave_a_cut_and_totals_with_a_hash_of_everything() {
    local(async {
        let record = RecordLimits {
            statement_bytes: 100_000,
            session_bytes: 150_000,
            mode: RecordMode::Default,
        };
        let mut rig = start(Setup {
            record,
            ..Setup::default()
        });
        let line = [vec![b'x'; 49_999], vec![b'\n']].concat();
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for id in 1..=3 {
            rig.says("q\n").await;
            rig.target_gets().await;
            for _ in 0..3 {
                rig.target_says(line.clone()).await;
                if id == 1 {
                    context.update(&line);
                }
            }
            rig.target_says(".\n").await;
            let mut got = vec![0; 150_002];
            rig.client.read_exact(&mut got).await.unwrap();
        }
        let story: Vec<_> = rig
            .record
            .story()
            .into_iter()
            .filter(|line| !line.starts_with("output"))
            .collect();
        assert_eq!(
            story,
            [
                "attempt 1 q",
                "cut 1 statement 100000",
                "total 1 statement 100000/150000",
                "outcome 1 ok",
                "attempt 2 q",
                "cut 0 session 150000",
                "cut 2 session 50000",
                "total 2 session 50000/150000",
                "outcome 2 ok",
                "attempt 3 q",
                "cut 3 session 0",
                "total 3 session 0/150000",
                "outcome 3 ok",
            ]
        );
        let bodies = rig.record.0.bodies.borrow();
        let totals: Vec<_> = bodies
            .iter()
            .filter_map(|b| {
                if let Body::Cut(c) = b {
                    c.total.then_some(c)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(totals[0].sha256, context.finish().as_ref());
        assert_eq!(totals[0].rows, 3);
        assert_eq!(totals[0].sha256, totals[2].sha256);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn recording_off_leaves_one_cut_a_statement_and_full_leaves_none() {
    local(async {
        for (mode, middle) in [(RecordMode::Off, "total 1 off 0/4"), (RecordMode::Full, "output 1 abc")] {
            let record = RecordLimits {
                statement_bytes: 1,
                session_bytes: 1,
                mode,
            };
            let mut rig = start(Setup {
                record,
                ..Setup::default()
            });
            for text in ["abc\n.\n", ".\n"] {
                rig.says("q\n").await;
                rig.target_gets().await;
                rig.target_says(text).await;
                rig.client_gets().await;
            }
            let mut expected = vec!["attempt 1 q", middle, "outcome 1 ok", "attempt 2 q", "outcome 2 ok"];
            expected.dedup();
            assert_eq!(rig.record.story(), expected);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_small_result_whose_session_is_cut_is_hashed_too() {
    local(async {
        let record = RecordLimits {
            statement_bytes: 10,
            session_bytes: 2,
            mode: RecordMode::Default,
        };
        let mut rig = start(Setup {
            record,
            ..Setup::default()
        });
        rig.says("q\n").await;
        rig.target_gets().await;
        rig.target_says("abc\n.\n").await;
        rig.client_gets().await;
        let bodies = rig.record.0.bodies.borrow();
        let total = bodies
            .iter()
            .find_map(|b| {
                if let Body::Cut(c) = b {
                    c.total.then_some(c)
                } else {
                    None
                }
            })
            .unwrap();
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"abc\n");
        assert_eq!(total.sha256, expected.as_ref());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn long_texts_are_cut_in_the_record_only() {
    local(async {
        let rig = start(Setup::default());
        let text = "x".repeat(ATTEMPT_TEXT_BYTES + 1);
        let sent = text.clone() + "\n";
        let (mut reader, mut client) = (rig.from_gateway, rig.client);
        spawn_local(async move {
            client.write_all(sent.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut got = 0;
        while got < text.len() + 1 {
            let bytes = reader.recv().await.unwrap().unwrap();
            got += bytes.len();
            reader.consumed(bytes.len());
        }
        let bodies = rig.record.0.bodies.borrow();
        let Body::Attempt(attempt) = &bodies[0] else {
            panic!("{:?}", bodies[0])
        };
        assert!(attempt.text_cut);
        assert_eq!(
            (attempt.text.len(), attempt.text_bytes),
            (ATTEMPT_TEXT_BYTES, text.len() as u64)
        );
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        assert_eq!(attempt.text_sha256, expected.as_ref());
        rig.relay.abort();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_big_result_passes_whole() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("q\n").await;
        rig.target_gets().await;
        let mut writer = rig.to_gateway;
        spawn_local(async move {
            let line = Bytes::from([vec![b'y'; 60_000], vec![b'\n']].concat());
            for _ in 0..500 {
                writer.send(line.clone()).await.unwrap();
            }
            writer.eof();
        });
        let mut all = vec![];
        rig.client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 500 * 60_001);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_note_from_outside_enters_the_record() {
    local(async {
        let mut rig = start(Setup::default());
        let body = Body::Control(evidence::Control {
            kind: "cancel".into(),
            by: "client".into(),
        });
        assert!(rig.control.note(body));
        rig.says("one\n").await;
        rig.target_gets().await;
        assert_eq!(rig.record.story(), ["control cancel by client", "attempt 1 one"]);
    })
    .await;
}

#[tokio::test]
async fn a_relay_at_rest_is_small() {
    local(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mux, _agent) = pair();
        let (_sender, receiver) = control();
        let relay = run(Parts {
            client,
            early: Bytes::new(),
            dialogue: Bare,
            channel: mux.channel(0),
            mux,
            recorder: Kept::default(),
            chain: Chain::default(),
            record: RecordLimits::default(),
            holds: HoldLimits::default(),
            control: receiver,
            counters: Rc::default(),
            idle_timeout: None,
        });
        println!(
            "relay {} frame {} mux {}",
            size_of_val(&relay),
            size_of::<Frame>(),
            Mux::shared_bytes()
        );
        let bytes = size_of_val(&relay) + Mux::shared_bytes();
        assert!(bytes <= 8 * 1024, "{bytes} bytes a session");
    })
    .await;
}

/// A dialogue of no size.
struct Bare;

impl Dialogue for Bare {
    fn client(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        Ok(Batch {
            bytes,
            ..Batch::default()
        })
    }
    fn apply(&mut self, batch: Batch, _: &[(usize, Refusal)]) -> Applied {
        Applied {
            target: [batch.bytes].into_iter().collect(),
            ..Applied::default()
        }
    }
    fn target(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        self.client(bytes)
    }
    fn idle(&self) -> bool {
        true
    }
    fn unanswered(&mut self) -> Vec<Outcome> {
        vec![]
    }
    fn notice(&self, _: &str, _: &str) -> Option<Bytes> {
        None
    }
    fn farewell(&self, _: &Refusal) -> Bytes {
        Bytes::new()
    }
}

#[tokio::test]
async fn a_statement_wakes_the_relay_once_a_direction() {
    const STATEMENTS: usize = 200;
    local(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let (mux, agent) = pair();
        let (_sender, receiver) = control();
        let mut relay = Box::pin(run(Parts {
            client: socket,
            early: Bytes::new(),
            dialogue: Lines::default(),
            channel: mux.channel(0),
            mux,
            recorder: Kept::default(),
            chain: Chain::default(),
            record: RecordLimits::default(),
            holds: HoldLimits::default(),
            control: receiver,
            counters: Rc::default(),
            idle_timeout: None,
        }));
        let polls = Rc::new(Cell::new(0usize));
        let counted = polls.clone();
        spawn_local(poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            relay.as_mut().poll(cx).map(|_| ())
        }));
        let (mut from_gateway, mut to_gateway) = agent.channel(0).split();
        spawn_local(async move {
            while let Ok(Some(bytes)) = from_gateway.recv().await {
                from_gateway.consumed(bytes.len());
                to_gateway.send(Bytes::from_static(b"row\n.\n")).await.unwrap();
            }
        });
        let mut answer = [0; 6];
        for _ in 0..STATEMENTS {
            client.write_all(b"select\n").await.unwrap();
            client.read_exact(&mut answer).await.unwrap();
        }
        let polls = polls.get();
        assert!(
            polls <= 2 * STATEMENTS + 20,
            "{polls} polls for {STATEMENTS} statements"
        );
    })
    .await;
}
