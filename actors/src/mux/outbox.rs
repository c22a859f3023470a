//! Frames on their way out: a bounded queue between a session's arbiter and the stream that tonic polls.
//!
//! The only part of a session that may be touched from another thread, hence the (uncontended) lock. Credit and control
//! frames overtake data; `Eof` and `Close` never do.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::Stream;
use hoop_proto::link::frame::Body;
use hoop_proto::link::{Close, Control, Credit, Eof, Frame, Open};

use super::credit::Grant;

/// Payload bytes that wait for the transport at most, over all channels; one frame is always let in.
pub const OUTBOX_BYTES: usize = 256 * 1024;
/// Ordered frames that wait for the transport at most.
pub const OUTBOX_FRAMES: usize = 1024;
/// `Open` and `Control` frames that wait for the transport at most.
pub const OUTBOX_CONTROLS: usize = 64;

/// The queue of one stream, shared by the mux and its `Outbox`.
pub(super) struct OutQueue(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// Grants not yet sent, merged per channel.
    credits: Vec<(u32, Grant)>,
    controls: VecDeque<(u32, Urgent)>,
    data: VecDeque<(u32, Ordered)>,
    data_bytes: usize,
    /// The outbox found nothing and waits.
    reader: Option<Waker>,
    reader_waits: bool,
    /// Writers that wait for room.
    writers: Vec<Waker>,
    /// No frame will follow those that are queued.
    finished: bool,
    /// The transport dropped the outbox.
    gone: bool,
}

pub(super) enum Urgent {
    Open(Box<Open>),
    Control(Box<Control>),
}

pub(super) enum Ordered {
    Data(Bytes),
    /// "I wait for credit": behind the data that used it up.
    Wait,
    Eof,
    Close(Box<Close>),
}

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unqueued {
    Full,
    Gone,
}

impl OutQueue {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Queue::default())))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic elsewhere cannot leave the queue half changed: each change is one push or pop.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for more data: now, or the writer is woken when there is.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<Result<(), Unqueued>> {
        let mut queue = self.lock();
        if queue.gone || queue.finished {
            return Poll::Ready(Err(Unqueued::Gone));
        }
        if queue.has_room() {
            return Poll::Ready(Ok(()));
        }
        if !queue.writers.iter().any(|waker| waker.will_wake(cx.waker())) {
            queue.writers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Queues what must keep its order. `Eof` and `Close` are always let in.
    pub(super) fn push(&self, channel: u32, frame: Ordered) {
        let mut queue = self.lock();
        if queue.gone || queue.finished {
            return;
        }
        if let Ordered::Data(bytes) = &frame {
            queue.data_bytes += bytes.len();
        }
        queue.data.push_back((channel, frame));
        queue.wake_reader();
    }

    pub(super) fn push_urgent(&self, channel: u32, frame: Urgent) -> Result<(), Unqueued> {
        let mut queue = self.lock();
        if queue.gone || queue.finished {
            return Err(Unqueued::Gone);
        }
        if queue.controls.len() >= OUTBOX_CONTROLS {
            return Err(Unqueued::Full);
        }
        queue.controls.push_back((channel, frame));
        queue.wake_reader();
        Ok(())
    }

    /// Queues a grant; one that waits for the same channel already is added to.
    pub(super) fn grant(&self, channel: u32, grant: Grant) {
        let mut queue = self.lock();
        if queue.gone || queue.finished {
            return;
        }
        let waiting = queue.credits.iter_mut().find(|(id, _)| *id == channel);
        match waiting {
            Some((_, waiting)) => {
                waiting.bytes = waiting.bytes.saturating_add(grant.bytes);
                waiting.frames = waiting.frames.saturating_add(grant.frames);
            }
            None => queue.credits.push((channel, grant)),
        }
        queue.wake_reader();
    }

    /// No frame follows: the outbox ends when what is queued has gone.
    pub(super) fn finish(&self) {
        let mut queue = self.lock();
        queue.finished = true;
        queue.wake_reader();
        let writers = std::mem::take(&mut queue.writers);
        drop(queue);
        writers.into_iter().for_each(Waker::wake);
    }

    /// Forgets what is queued and ends with `close`: the peer is not worth another byte of data.
    pub(super) fn abandon(&self, close: Option<Close>) {
        let mut queue = self.lock();
        queue.data.clear();
        queue.data_bytes = 0;
        queue.controls.clear();
        queue.credits.clear();
        if let Some(close) = close {
            queue.data.push_back((0, Ordered::Close(Box::new(close))));
        }
        drop(queue);
        self.finish();
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        self.data_bytes < OUTBOX_BYTES && self.data.len() < OUTBOX_FRAMES
    }

    fn wake_reader(&mut self) {
        if std::mem::take(&mut self.reader_waits)
            && let Some(waker) = &self.reader
        {
            waker.wake_by_ref();
        }
    }

    fn pop(&mut self) -> Option<Frame> {
        if let Some((channel, grant)) = self.credits.pop() {
            let body = Body::Credit(Credit {
                bytes: grant.bytes,
                frames: grant.frames,
            });
            return Some(Frame {
                channel,
                body: Some(body),
            });
        }
        if let Some((channel, urgent)) = self.controls.pop_front() {
            let body = match urgent {
                Urgent::Open(open) => Body::Open(*open),
                Urgent::Control(control) => Body::Control(*control),
            };
            return Some(Frame {
                channel,
                body: Some(body),
            });
        }
        let (channel, ordered) = self.data.pop_front()?;
        let body = match ordered {
            Ordered::Data(bytes) => {
                self.data_bytes = self.data_bytes.saturating_sub(bytes.len());
                Body::Data(bytes)
            }
            Ordered::Wait => Body::Credit(Credit::default()),
            Ordered::Eof => Body::Eof(Eof {}),
            Ordered::Close(close) => Body::Close(*close),
        };
        Some(Frame {
            channel,
            body: Some(body),
        })
    }
}

/// The frames that this side sends, for the transport to poll. `Send`; ends when the mux has closed and all has gone.
/// Dropping it early tells the mux that the link is lost.
pub struct Outbox(pub(super) Arc<OutQueue>);

impl Stream for Outbox {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut queue = self.0.lock();
        if let Some(frame) = queue.pop() {
            let writers = if queue.data_bytes < OUTBOX_BYTES {
                std::mem::take(&mut queue.writers)
            } else {
                Vec::new()
            };
            drop(queue);
            writers.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(frame));
        }
        if queue.finished {
            return Poll::Ready(None);
        }
        match &queue.reader {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => queue.reader = Some(cx.waker().clone()),
        }
        queue.reader_waits = true;
        Poll::Pending
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.gone = true;
        queue.data.clear();
        queue.reader = None;
        let writers = std::mem::take(&mut queue.writers);
        drop(queue);
        writers.into_iter().for_each(Waker::wake);
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.0.lock();
        f.debug_struct("Outbox")
            .field("data_bytes", &queue.data_bytes)
            .field("finished", &queue.finished)
            .finish()
    }
}
