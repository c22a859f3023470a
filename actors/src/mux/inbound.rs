//! Reads a stream's frames at once into the channels' queues: in the mux's own task, or in that of a `Drive`.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use hoop_proto::link::Frame;
use hoop_proto::link::frame::Body;

use super::credit::Grant;
use super::{CLOSE_LINGER, Core, EVENTS_MAX, LinkError, Mux, MuxEvent, Shared, close_of, refusal_of};

/// Frames read in one poll before other tasks get their turn.
const FRAMES_PER_POLL: usize = 256;

/// The reader task of one stream. Ends with the stream, or `CLOSE_LINGER` after the last owner is gone.
pub(super) async fn read(shared: Rc<Shared>) {
    poll_fn(|cx| {
        if shared.discarding.get() || shared.inbound.borrow().is_none() {
            return Poll::Ready(());
        }
        if shared.driven.get() || shared.poll_inbound(cx, None).is_pending() {
            let mut task = shared.task.borrow_mut();
            if !task.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
    if shared.inbound.borrow().is_none() {
        return;
    }
    let rest = poll_fn(|cx| shared.poll_discard(cx));
    if tokio::time::timeout(CLOSE_LINGER, rest).await.is_err() {
        tracing::debug!("the peer did not end its stream after close");
        shared.out.abandon(None);
        shared.inbound.borrow_mut().take();
    }
}

impl Shared {
    /// Takes in what has come. Ready when the stream is over. Who waits is woken, except the task `running`.
    fn poll_inbound(&self, cx: &mut Context<'_>, running: Option<&Waker>) -> Poll<()> {
        let mut slot = self.inbound.borrow_mut();
        let Some(inbound) = slot.as_mut() else {
            return Poll::Ready(());
        };
        for _ in 0..FRAMES_PER_POLL {
            let over = match inbound.as_mut().poll_next(cx) {
                Poll::Pending => {
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => self.core.borrow_mut().take_in(frame, running).err(),
                Poll::Ready(Some(Err(error))) => Some(LinkError::Lost(error)),
                Poll::Ready(None) => {
                    let closed = self.core.borrow().closed;
                    let why = "the stream ended without a close";
                    Some(if closed {
                        LinkError::Finished
                    } else {
                        LinkError::Lost(why.to_owned())
                    })
                }
            };
            if let Some(error) = over {
                *slot = None;
                drop(slot);
                self.over(error, running);
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The inbound half is over. A peer that broke the rules is told so.
    fn over(&self, error: LinkError, running: Option<&Waker>) {
        let broken = matches!(error, LinkError::Overstepped { .. } | LinkError::Malformed(_));
        if broken {
            tracing::warn!(%error, "stream ended");
            self.out.abandon(Some(close_of(Some(&error.refusal()))));
        }
        self.core.borrow_mut().end(error, running);
        self.wake_task();
    }

    fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.inbound.borrow_mut();
        let Some(inbound) = slot.as_mut() else {
            return Poll::Ready(());
        };
        for _ in 0..FRAMES_PER_POLL {
            match inbound.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => {
                    *slot = None;
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Core {
    fn take_in(&mut self, frame: Frame, running: Option<&Waker>) -> Result<(), LinkError> {
        let id = frame.channel;
        let Some(body) = frame.body else {
            // A kind of frame that a newer peer knows: it needs no credit, so nothing is owed for it.
            return Ok(());
        };
        if self.ended.is_some() {
            // After the peer's Close only its stream's end is of interest.
            return Ok(());
        }
        match body {
            Body::Data(bytes) => match self.channel(id) {
                Some(channel) => channel.receive(id, bytes, running),
                None => Err(LinkError::Malformed(format!(
                    "data on channel {id}, which was never opened"
                ))),
            },
            Body::Credit(credit) => match self.channel(id) {
                Some(channel) => {
                    channel.credit(
                        Grant {
                            bytes: credit.bytes,
                            frames: credit.frames,
                        },
                        running,
                    );
                    Ok(())
                }
                None => Err(LinkError::Malformed(format!(
                    "credit on channel {id}, which was never opened"
                ))),
            },
            Body::Eof(_) => {
                if let Some(channel) = self.channel(id) {
                    channel.eof(running);
                }
                Ok(())
            }
            Body::Close(close) => {
                let end = match refusal_of(&close) {
                    None => LinkError::Finished,
                    Some(refusal) => LinkError::Closed(refusal),
                };
                self.end(end, running);
                Ok(())
            }
            Body::Open(open) => {
                self.make_channel(id)?;
                self.event(id, MuxEvent::Open(id, Box::new(open)), running)
            }
            Body::Control(control) => self.event(id, MuxEvent::Control(id, Box::new(control)), running),
        }
    }

    fn event(&mut self, channel: u32, event: MuxEvent, running: Option<&Waker>) -> Result<(), LinkError> {
        if self.events.len() >= EVENTS_MAX {
            return Err(LinkError::Overstepped {
                channel,
                what: "too many unread control frames",
            });
        }
        self.events.push_back(event);
        self.event_waiter.wake(running);
        Ok(())
    }
}

/// Reads a mux's stream in the holder's own task; see [`Mux::drive`]. Its drop gives the stream back to the mux's task.
pub struct Drive {
    mux: Mux,
    over: bool,
}

impl Drive {
    pub(super) fn new(mux: Mux) -> Self {
        mux.shared().driven.set(true);
        Self { mux, over: false }
    }

    /// Takes in all that has come, and arranges for the task to be woken when more does. To be polled on each wake,
    /// before what waits for the mux: who waits with this same waker is not woken again.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        if !self.over {
            let running = cx.waker();
            let mut inner = Context::from_waker(running);
            self.over = self.mux.shared().poll_inbound(&mut inner, Some(running)).is_ready();
        }
    }

    /// The mux that is driven.
    #[must_use]
    pub fn mux(&self) -> &Mux {
        &self.mux
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let shared = self.mux.shared();
        shared.driven.set(false);
        shared.wake_task();
    }
}
