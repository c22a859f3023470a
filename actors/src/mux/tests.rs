//! Two muxes back to back, and a mux against a hand-written peer.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::frame::Body;
use hoop_proto::link::{Close, Control, Credit, Eof, Frame, Kill, control};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_stream_shim::ReceiverStream;

use super::*;

/// The few lines of tokio-stream that these tests need.
mod tokio_stream_shim {
    use super::*;

    pub struct ReceiverStream<T>(pub mpsc::Receiver<T>);

    impl<T> Stream for ReceiverStream<T> {
        type Item = T;
        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
            self.0.poll_recv(cx)
        }
    }
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

/// Two muxes joined by a transport with a delay in each direction.
fn pair(config: MuxConfig, delay: Duration) -> (Mux, Mux) {
    let (to_b, from_a) = mpsc::channel::<Frame>(100_000);
    let (to_a, from_b) = mpsc::channel::<Frame>(100_000);
    let (a, out_a) = Mux::start(ReceiverStream(from_b).map(Ok::<_, Infallible>), config.clone());
    let (b, out_b) = Mux::start(ReceiverStream(from_a).map(Ok::<_, Infallible>), config);
    spawn_local(carry(out_a, to_b, delay));
    spawn_local(carry(out_b, to_a, delay));
    (a, b)
}

async fn carry(mut out: Outbox, to: mpsc::Sender<Frame>, delay: Duration) {
    let (queue, mut queued) = mpsc::channel::<(tokio::time::Instant, Frame)>(100_000);
    spawn_local(async move {
        while let Some((at, frame)) = queued.recv().await {
            tokio::time::sleep_until(at).await;
            if to.send(frame).await.is_err() {
                return;
            }
        }
    });
    while let Some(frame) = out.next().await {
        if queue.send((tokio::time::Instant::now() + delay, frame)).await.is_err() {
            return;
        }
    }
}

/// A mux whose peer is the test.
fn alone() -> (Mux, Outbox, mpsc::Sender<Result<Frame, String>>) {
    let (to, from) = mpsc::channel(200_000);
    let (mux, out) = Mux::start(ReceiverStream(from), MuxConfig::default());
    (mux, out, to)
}

fn data(bytes: impl Into<Bytes>) -> Result<Frame, String> {
    Ok(Frame {
        channel: 0,
        body: Some(Body::Data(bytes.into())),
    })
}

fn frame(body: Body) -> Result<Frame, String> {
    Ok(Frame {
        channel: 0,
        body: Some(body),
    })
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_whole_and_in_order_in_both_directions() {
    local(async {
        let (a, b) = pair(MuxConfig::default(), Duration::from_millis(1));
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (_, mut writer) = from.channel(0).split();
            let (mut reader, _) = to.channel(0).split();
            let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
            let copy = Bytes::from(sent.clone());
            spawn_local(async move {
                for part in copy.chunks(77_777) {
                    writer.send(copy.slice_ref(part)).await.unwrap();
                }
                writer.eof();
            });
            let mut got = vec![];
            while let Some(bytes) = reader.recv().await.unwrap() {
                got.extend_from_slice(&bytes);
                reader.consumed(bytes.len());
            }
            assert!(got == sent);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_holds_at_most_one_window() {
    local(async {
        let (a, b) = pair(MuxConfig::default(), Duration::ZERO);
        let (_, mut writer) = a.channel(0).split();
        let (mut reader, _) = b.channel(0).split();
        let sent = Rc::new(Cell::new(0));
        let count = sent.clone();
        spawn_local(async move {
            while writer.send(Bytes::from(vec![0; 10_000])).await.is_ok() {
                count.set(count.get() + 10_000);
            }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(sent.get() <= INITIAL_WINDOW_BYTES, "sent {} into a window", sent.get());
        // Read, but never consumed: no credit comes back either.
        let mut read = 0;
        while let Ok(Ok(Some(bytes))) = tokio::time::timeout(Duration::from_secs(1), reader.recv()).await {
            read += bytes.len() as u64;
        }
        assert!(read <= INITIAL_WINDOW_BYTES, "read {read} without consuming");
        assert_eq!(b.ended(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn small_frames_are_bounded_by_the_frame_credit() {
    local(async {
        let (mux, mut out, to) = alone();
        for _ in 0..100_000 {
            to.try_send(data(vec![7u8])).unwrap();
        }
        let event = mux.next_event().await;
        assert!(
            matches!(event, MuxEvent::Lost(LinkError::Overstepped { channel: 0, .. })),
            "{event:?}"
        );
        let told = out.next().await.and_then(|frame| frame.body);
        assert!(matches!(told, Some(Body::Close(Close { code, .. })) if code == "credit_violation"));
        assert!(out.next().await.is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn small_frames_that_wait_are_handed_over_together() {
    local(async {
        let (mux, _out, to) = alone();
        for n in 0..1_000u32 {
            to.try_send(data(vec![n as u8])).unwrap();
        }
        to.try_send(frame(Body::Eof(Eof {}))).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (mut reader, _) = mux.channel(0).split();
        let mut parts = 0;
        let mut got = vec![];
        while let Some(bytes) = reader.recv().await.unwrap() {
            parts += 1;
            got.extend_from_slice(&bytes);
        }
        assert_eq!(got, (0..1_000u32).map(|n| n as u8).collect::<Vec<_>>());
        assert!(parts <= 3, "{parts} parts");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn more_bytes_than_credit_end_the_session() {
    local(async {
        let (mux, _out, to) = alone();
        let (mut reader, _) = mux.channel(0).split();
        for _ in 0..5 {
            to.try_send(data(vec![0; 65_536])).unwrap();
        }
        let mut error = None;
        for _ in 0..6 {
            if let Err(failed) = reader.recv().await {
                error = Some(failed);
                break;
            }
        }
        assert!(matches!(error, Some(LinkError::Overstepped { .. })), "{error:?}");
        assert_eq!(error.unwrap().refusal().end, End::CreditViolation);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_long_link_is_filled_by_a_growing_window_and_the_budget_bounds_it() {
    local(async {
        for (budget, fastest_s) in [(ByteBudget::default(), 1.5), (ByteBudget::new(0), 100.0)] {
            let (a, b) = pair(MuxConfig { budget: budget.clone() }, Duration::from_millis(25));
            let (_, mut writer) = a.channel(0).split();
            let (mut reader, _) = b.channel(0).split();
            let total = 64 * 1024 * 1024;
            spawn_local(async move {
                for _ in 0..total / 65_536 {
                    writer.send(Bytes::from(vec![0; 65_536])).await.unwrap();
                }
                writer.eof();
            });
            let start = tokio::time::Instant::now();
            while let Some(bytes) = reader.recv().await.unwrap() {
                reader.consumed(bytes.len());
            }
            let took = start.elapsed().as_secs_f64();
            assert!(took < fastest_s, "64 MiB over 50 ms took {took} s");
            if budget.limit_bytes() == 0 {
                assert_eq!(reader.window_bytes(), INITIAL_WINDOW_BYTES);
                assert!(took > 10.0, "one window a round trip: {took} s");
            } else {
                assert_eq!(reader.window_bytes(), MAX_WINDOW_BYTES);
                assert_eq!(budget.used_bytes(), MAX_WINDOW_BYTES - INITIAL_WINDOW_BYTES);
            }
            drop((reader, a, b));
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(budget.used_bytes(), 0, "a closed stream gives its window back");
        }
    })
    .await;
}

/// How long 400 MB take from a target that gives to a client that takes, each at its rate in MB/s; with the window then.
async fn transfer(gives: u64, takes: u64, delay: Duration) -> (Duration, u64) {
    const PIECE: usize = 64 * 1024;
    const TOTAL: usize = 400_000_000;
    // Timers go by the millisecond: a pause is made once it is long enough.
    async fn pause(bytes: usize, rate: u64, next: &mut tokio::time::Instant) {
        let now = tokio::time::Instant::now();
        *next = (*next).max(now) + Duration::from_nanos(bytes as u64 * 1_000 / rate);
        if *next - now > Duration::from_millis(5) {
            tokio::time::sleep_until(*next).await;
        }
    }
    let (a, b) = pair(MuxConfig::default(), delay);
    let (_, mut writer) = a.channel(0).split();
    let (mut reader, _) = b.channel(0).split();
    spawn_local(async move {
        let mut next = tokio::time::Instant::now();
        for _ in 0..TOTAL / PIECE {
            pause(PIECE, gives, &mut next).await;
            writer.send(Bytes::from(vec![0; PIECE])).await.unwrap();
        }
        writer.eof();
    });
    let start = tokio::time::Instant::now();
    let mut next = start;
    while let Some(bytes) = reader.recv().await.unwrap() {
        pause(bytes.len(), takes, &mut next).await;
        reader.consumed(bytes.len());
    }
    (start.elapsed(), reader.window_bytes())
}

/// What 50 ms cost is the growth of the window, six times a round trip and a little, and then nothing more.
#[tokio::test(start_paused = true)]
async fn a_long_transfer_over_a_long_link_loses_the_windows_growth_alone() {
    local(async {
        for (gives, takes) in [(250, 10_000), (10_000, 250), (270, 250), (250, 270)] {
            let (near, _) = transfer(gives, takes, Duration::ZERO).await;
            let (far, window) = transfer(gives, takes, Duration::from_millis(25)).await;
            assert!(
                far < near + Duration::from_millis(400),
                "{gives} MB/s to {takes} MB/s took {far:?}, {near:?} without the way; window {window}"
            );
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn control_passes_data_that_waits() {
    local(async {
        let (mux, mut out, _to) = alone();
        let (_, mut writer) = mux.channel(0).split();
        writer.send(Bytes::from_static(b"data")).await.unwrap();
        let kill = Control {
            body: Some(control::Body::Kill(Kill {
                code: "killed".into(),
                message: String::new(),
            })),
        };
        mux.control(0, kill.clone()).unwrap();
        mux.close(Some(&Refusal::new(End::Killed, "gone", "")));
        let mut seen = vec![];
        while let Some(frame) = out.next().await {
            seen.push(frame.body.unwrap());
        }
        assert_eq!(seen[0], Body::Control(kill));
        assert_eq!(seen[1], Body::Data(Bytes::from_static(b"data")));
        assert!(matches!(&seen[2], Body::Close(close) if close.code == "killed"));
        assert_eq!(seen.len(), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn data_before_a_close_is_still_read_and_the_reason_follows() {
    local(async {
        let (mux, _out, to) = alone();
        let (mut reader, mut writer) = mux.channel(0).split();
        to.try_send(data("last words")).unwrap();
        let why = Refusal::new(End::TargetUnreachable, "no route", "");
        to.try_send(frame(Body::Close(close_of(Some(&why))))).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(reader.recv().await.unwrap().unwrap(), "last words");
        assert_eq!(reader.recv().await, Err(LinkError::Closed(why.clone())));
        assert_eq!(
            writer.send(Bytes::from_static(b"x")).await,
            Err(LinkError::Closed(why.clone()))
        );
        assert_eq!(mux.next_event().await, MuxEvent::Close(Some(why)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_without_a_close_is_a_lost_link() {
    local(async {
        for how in [None, Some(Err("reset".to_owned()))] {
            let (mux, _out, to) = alone();
            if let Some(error) = how {
                to.try_send(error).unwrap();
            }
            drop(to);
            let (mut reader, _) = mux.channel(0).split();
            assert!(matches!(reader.recv().await, Err(LinkError::Lost(_))));
            assert!(matches!(mux.next_event().await, MuxEvent::Lost(LinkError::Lost(_))));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dropping_every_handle_closes_in_order_and_lingers_for_the_peer() {
    local(async {
        let (mux, mut out, to) = alone();
        drop(mux);
        assert!(matches!(out.next().await.unwrap().body, Some(Body::Close(close)) if close.code.is_empty()));
        assert!(out.next().await.is_none());
        tokio::time::sleep(CLOSE_LINGER / 2).await;
        assert!(
            to.try_send(data("late")).is_ok(),
            "late frames are read and thrown away"
        );
        tokio::time::sleep(CLOSE_LINGER).await;
        assert!(to.is_closed(), "the linger has an end");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_drops_its_outbox_fails_the_writer() {
    local(async {
        let (mux, out, _to) = alone();
        let (_, mut writer) = mux.channel(0).split();
        drop(out);
        assert!(matches!(
            writer.send(Bytes::from_static(b"x")).await,
            Err(LinkError::Lost(_))
        ));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_transport_holds_no_more_than_the_outbox() {
    local(async {
        let (mux, out, to) = alone();
        to.try_send(frame(Body::Credit(Credit {
            bytes: u32::MAX,
            frames: u32::MAX,
        })))
        .unwrap();
        tokio::task::yield_now().await;
        let (_, mut writer) = mux.channel(0).split();
        let sent = Rc::new(Cell::new(0usize));
        let count = sent.clone();
        spawn_local(async move {
            while writer.send(Bytes::from(vec![0; 50_000])).await.is_ok() {
                count.set(count.get() + 50_000);
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(sent.get() <= OUTBOX_BYTES + 50_000, "{}", sent.get());
        drop(out);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn control_frames_that_nobody_reads_are_bounded() {
    local(async {
        let (mux, _out, to) = alone();
        for _ in 0..=EVENTS_MAX {
            to.try_send(frame(Body::Control(Control { body: None }))).unwrap();
        }
        tokio::task::yield_now().await;
        assert!(matches!(mux.ended(), Some(LinkError::Overstepped { .. })));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drive_reads_in_its_own_task_and_gives_the_stream_back() {
    local(async {
        let (mux, _out, to) = alone();
        let (mut reader, _) = mux.channel(0).split();
        let mut drive = mux.drive();
        let polls = Rc::new(Cell::new(0));
        let counted = polls.clone();
        let driven = spawn_local(async move {
            let mut got = vec![];
            poll_fn(|cx| {
                counted.set(counted.get() + 1);
                drive.poll(cx);
                while let Poll::Ready(bytes) = reader.poll_recv(cx) {
                    let Some(bytes) = bytes.unwrap() else {
                        return Poll::Ready(());
                    };
                    got.push(bytes);
                    if got.len() == 2 {
                        return Poll::Ready(());
                    }
                }
                Poll::Pending
            })
            .await;
            (got, reader)
        });
        tokio::task::yield_now().await;
        to.send(data("one")).await.unwrap();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        to.send(data("two")).await.unwrap();
        let (got, mut reader) = driven.await.unwrap();
        assert_eq!(got, ["one", "two"]);
        assert_eq!(polls.get(), 3, "one wake-up a message");
        to.send(data("three")).await.unwrap();
        assert_eq!(reader.recv().await.unwrap().unwrap(), "three");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn channels_do_not_share_credit() {
    local(async {
        let (a, b) = pair(MuxConfig::default(), Duration::ZERO);
        a.open(
            3,
            Open {
                kind: "exec".into(),
                ..Open::default()
            },
        )
        .unwrap();
        let (_, mut stuck) = a.channel(0).split();
        spawn_local(async move { while stuck.send(Bytes::from(vec![0; 60_000])).await.is_ok() {} });
        assert!(matches!(b.next_event().await, MuxEvent::Open(3, open) if open.kind == "exec"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_, mut writer) = a.channel(3).split();
        let (mut reader, _) = b.channel(3).split();
        spawn_local(async move {
            for _ in 0..100 {
                writer.send(Bytes::from(vec![1; 60_000])).await.unwrap();
            }
            writer.eof();
        });
        let mut got = 0;
        while let Some(bytes) = reader.recv().await.unwrap() {
            got += bytes.len();
            reader.consumed(bytes.len());
        }
        assert_eq!(got, 6_000_000);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_sessions_bytes_may_come_before_anybody_asks_for_their_channel() {
    local(async {
        let (mux, _out, to) = alone();
        to.try_send(Ok(Frame {
            channel: 1,
            body: Some(Body::Data(Bytes::from_static(b"early"))),
        }))
        .unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(mux.channel(1).split().0.recv().await.unwrap().unwrap(), "early");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn data_on_a_channel_that_was_never_opened_ends_the_session() {
    local(async {
        let (mux, _out, to) = alone();
        to.try_send(Ok(Frame {
            channel: 9,
            body: Some(Body::Data(Bytes::from_static(b"?"))),
        }))
        .unwrap();
        assert!(matches!(
            mux.next_event().await,
            MuxEvent::Lost(LinkError::Malformed(_))
        ));
    })
    .await;
}

#[test]
fn the_outbox_may_be_polled_by_another_thread() {
    fn send<T: Send + 'static>() {}
    send::<Outbox>();
}
