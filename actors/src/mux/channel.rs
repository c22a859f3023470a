//! One channel: what has come in and waits for its reader, and the two halves that a pump holds.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::credit::{Grant, ReceiveCredit, SendCredit, WINDOW_DECAY};
use super::outbox::Ordered;
use super::pace::Pace;
use super::{LinkError, Mux};
use crate::budget::ByteBudget;
use crate::slot::Slot;

/// Frames smaller than this that wait behind others are copied together, in bytes: a small frame's `Bytes` may keep a
/// whole transport buffer alive.
const COALESCE_BYTES: usize = 4 * 1024;
/// Copied-together bytes are closed and handed over as one at this size.
const COALESCED_BYTES: usize = 64 * 1024;

/// Both directions of one channel, as the mux keeps them.
pub(super) struct ChannelState {
    send: SendCredit,
    writer: Slot,
    eof_sent: bool,
    receive: ReceiveCredit,
    pace: Pace,
    queue: VecDeque<Waiting>,
    /// Small frames that came after those in `queue`.
    tail: BytesMut,
    tail_frames: u64,
    reader: Slot,
    eof_received: bool,
    /// When the sender last waited for credit.
    limited_at: Option<Instant>,
}

struct Waiting {
    bytes: Bytes,
    frames: u64,
}

impl ChannelState {
    pub(super) fn new(budget: &ByteBudget) -> Self {
        Self {
            send: SendCredit::new(),
            writer: Slot::default(),
            eof_sent: false,
            receive: ReceiveCredit::new(budget),
            pace: Pace::new(Instant::now()),
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            tail_frames: 0,
            reader: Slot::default(),
            eof_received: false,
            limited_at: None,
        }
    }

    pub(super) fn wake_all(&mut self, running: Option<&Waker>) {
        self.reader.wake(running);
        self.writer.wake(running);
    }

    /// A Data frame came in.
    pub(super) fn receive(&mut self, id: u32, bytes: Bytes, running: Option<&Waker>) -> Result<(), LinkError> {
        if self.eof_received {
            return Err(LinkError::Malformed(format!("data after the end on channel {id}")));
        }
        if !self.receive.receive(bytes.len()) {
            return Err(LinkError::Overstepped {
                channel: id,
                what: "data without credit",
            });
        }
        self.pace.received(bytes.len(), Instant::now);
        let behind = !self.queue.is_empty() || !self.tail.is_empty();
        if behind && bytes.len() < COALESCE_BYTES {
            self.tail.extend_from_slice(&bytes);
            self.tail_frames += 1;
            if self.tail.len() >= COALESCED_BYTES {
                self.close_tail();
            }
        } else if bytes.is_empty() {
            // Nothing to hand over, but it has cost a frame of credit, which goes back with the next grant.
            self.receive.deliver(0, 1);
        } else {
            self.close_tail();
            self.queue.push_back(Waiting { bytes, frames: 1 });
        }
        self.reader.wake(running);
        Ok(())
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let frames = std::mem::take(&mut self.tail_frames);
            self.queue.push_back(Waiting {
                bytes: std::mem::take(&mut self.tail).freeze(),
                frames,
            });
        }
    }

    /// A Credit frame came in.
    pub(super) fn credit(&mut self, grant: Grant, running: Option<&Waker>) {
        if grant == Grant::default() {
            self.receive.want();
            // The reader may have run dry already.
            if self.queue.is_empty() && self.tail.is_empty() {
                self.reader.wake(running);
            }
        } else {
            self.send.grant(grant);
            self.writer.wake(running);
        }
    }

    pub(super) fn eof(&mut self, running: Option<&Waker>) {
        self.eof_received = true;
        self.reader.wake(running);
    }

    /// The reader has run dry: a grant, where the sender waits for one.
    fn starved(&mut self) -> Option<Grant> {
        let allowed = self.receive.allowed();
        let Self { receive, pace, .. } = self;
        let grant = receive.starved(|receive| pace.limited_by(receive.window(), Instant::now()))?;
        let now = Instant::now();
        self.pace.granted(allowed, || now);
        self.limited_at = Some(now);
        Some(grant)
    }

    /// The far socket took `bytes` of what was handed over.
    fn consumed(&mut self, bytes: usize) -> Option<Grant> {
        let allowed = self.receive.allowed();
        let limited_at = &mut self.limited_at;
        let grant = self.receive.consume(bytes, || {
            let now = Instant::now();
            let decayed = limited_at.is_none_or(|at| now.duration_since(at) >= WINDOW_DECAY);
            if decayed {
                *limited_at = Some(now);
            }
            decayed
        })?;
        self.pace.granted(allowed, Instant::now);
        Some(grant)
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.queue.is_empty() {
            self.close_tail();
        }
        let Waiting { bytes, frames } = self.queue.pop_front()?;
        self.receive.deliver(bytes.len(), frames);
        Some(bytes)
    }
}

/// One channel of a mux.
#[derive(Debug)]
pub struct Channel {
    mux: Mux,
    id: u32,
}

impl Channel {
    pub(super) fn new(mux: Mux, id: u32) -> Self {
        Self { mux, id }
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    #[must_use]
    pub fn split(self) -> (ChannelReader, ChannelWriter) {
        (
            ChannelReader {
                mux: self.mux.clone(),
                id: self.id,
            },
            ChannelWriter {
                mux: self.mux,
                id: self.id,
            },
        )
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct ChannelReader {
    mux: Mux,
    id: u32,
}

impl ChannelReader {
    /// The next bytes; never empty. `None` at the end of the direction (`Eof`, or an orderly `Close`). The sender gets
    /// no new credit for them until [`ChannelReader::consumed`].
    ///
    /// # Errors
    /// `LinkError` once all that came before it has been read.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, LinkError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// See [`ChannelReader::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, LinkError>> {
        let mut core = self.mux.core().borrow_mut();
        let core = &mut *core;
        let Some(channel) = core.channel(self.id) else {
            return Poll::Ready(Err(LinkError::Malformed(format!(
                "channel {} was never opened",
                self.id
            ))));
        };
        if let Some(bytes) = channel.pop() {
            return Poll::Ready(Ok(Some(bytes)));
        }
        if channel.eof_received {
            return Poll::Ready(Ok(None));
        }
        if let Some(grant) = channel.starved() {
            self.mux.shared().out.grant(self.id, grant);
        }
        channel.reader.wait(cx);
        match &core.ended {
            None => Poll::Pending,
            Some(LinkError::Finished) => Poll::Ready(Ok(None)),
            Some(error) => Poll::Ready(Err(error.clone())),
        }
    }

    /// Tells that the far socket took `bytes` of what was received; grants them again, in batches.
    pub fn consumed(&mut self, bytes: usize) {
        let mut core = self.mux.core().borrow_mut();
        let Some(channel) = core.channel(self.id) else { return };
        let grant = channel.consumed(bytes);
        drop(core);
        if let Some(grant) = grant {
            self.mux.shared().out.grant(self.id, grant);
        }
    }

    /// The window that the sender has on this channel now, in bytes.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.mux
            .core()
            .borrow_mut()
            .channel(self.id)
            .map_or(0, |channel| channel.receive.window_bytes())
    }
}

/// The sending half.
#[derive(Debug)]
pub struct ChannelWriter {
    mux: Mux,
    id: u32,
}

impl ChannelWriter {
    /// Sends `bytes`, in frames of at most `MAX_FRAME_BYTES`; waits for credit and for room in the outbox.
    ///
    /// # Errors
    /// `LinkError` where the stream is over, or this side has closed it or this direction.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        let mut rest = bytes;
        poll_fn(|cx| self.poll_send(cx, &mut rest)).await
    }

    /// Sends from the front of `rest` what may be sent now; ready when it is empty. See [`ChannelWriter::send`].
    pub fn poll_send(&mut self, cx: &mut Context<'_>, rest: &mut Bytes) -> Poll<Result<(), LinkError>> {
        let shared = self.mux.shared();
        let mut core = shared.core.borrow_mut();
        let core = &mut *core;
        while !rest.is_empty() {
            if let Some(ended) = &core.ended {
                return Poll::Ready(Err(ended.clone()));
            }
            if core.closed {
                return Poll::Ready(Err(LinkError::Finished));
            }
            let Some(channel) = core.channel(self.id) else {
                return Poll::Ready(Err(LinkError::Malformed(format!(
                    "channel {} was never opened",
                    self.id
                ))));
            };
            if channel.eof_sent {
                return Poll::Ready(Err(LinkError::Finished));
            }
            match shared.out.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(lost_outbox())),
                Poll::Pending => {
                    // Also to be woken when the stream ends.
                    channel.writer.wait(cx);
                    return Poll::Pending;
                }
            }
            let now = channel.send.offer(rest.len());
            if now == 0 {
                if channel.send.tell() {
                    shared.out.push(self.id, Ordered::Wait);
                }
                channel.writer.wait(cx);
                return Poll::Pending;
            }
            channel.send.spend(now);
            let frame = if now == rest.len() {
                std::mem::take(rest)
            } else {
                rest.split_to(now)
            };
            shared.out.push(self.id, Ordered::Data(frame));
        }
        Poll::Ready(Ok(()))
    }

    /// Says that no more data follows in this direction. Follows all that was sent.
    pub fn eof(&mut self) {
        let shared = self.mux.shared();
        let mut core = shared.core.borrow_mut();
        if let Some(channel) = core.channel(self.id)
            && !std::mem::replace(&mut channel.eof_sent, true)
        {
            shared.out.push(self.id, Ordered::Eof);
        }
    }
}

fn lost_outbox() -> LinkError {
    LinkError::Lost("the transport stopped taking frames".to_owned())
}
