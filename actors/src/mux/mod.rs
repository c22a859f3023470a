//! Credit-controlled channels over one Attach or Peer stream of `hoop_proto::link::Frame`.
//!
//! Lives on one thread. Owns the stream's inbound half (read at once, into queues that credit bounds), the channels'
//! queues and their credit. Must not know what travels in a channel, nor who the peer is. HTTP/2 windows do not isolate
//! sessions, so nothing here relies on them.
//!
//! Who reads: a local task of the mux's own, or whoever holds a [`Drive`] (the relay, which then needs one wake-up
//! where it would need two). `INVARIANT:` exactly one of them polls the inbound stream at any time.

mod channel;
mod credit;
mod error;
mod inbound;
mod outbox;
mod pace;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hoop_proto::end::Refusal;
use hoop_proto::link::{Control, Frame, Open};

pub use self::channel::{Channel, ChannelReader, ChannelWriter};
pub use self::credit::{
    Grant, INITIAL_WINDOW_BYTES, INITIAL_WINDOW_FRAMES, MAX_FRAME_BYTES, MAX_WINDOW_BYTES, MAX_WINDOW_FRAMES,
};
pub use self::error::{ControlError, LinkError, close_of, refusal_of};
pub use self::inbound::Drive;
pub use self::outbox::{OUTBOX_BYTES, OUTBOX_CONTROLS, OUTBOX_FRAMES, Outbox};

use self::channel::ChannelState;
use self::outbox::{Ordered, OutQueue, Unqueued, Urgent};
use crate::budget::ByteBudget;
use crate::slot::Slot;

/// Events that wait for `next_event` at most; a peer that sends more unread ones oversteps.
pub const EVENTS_MAX: usize = 64;
/// Channels that need no `Open`: 0, the session itself, and 1, its bytes. Both sides may send on them at once.
pub const IMPLICIT_CHANNELS: usize = 2;
/// Channels of one stream at most, besides the implicit ones.
pub const CHANNELS_MAX: usize = 1024;
/// After the last handle is dropped, frames of the peer are read and thrown away for so long, so that a stream ends by
/// `Close` and half-close and not by a reset.
pub const CLOSE_LINGER: Duration = Duration::from_secs(5);

/// What a mux is made with.
#[derive(Debug, Clone, Default)]
pub struct MuxConfig {
    /// What windows grow from, shared by the whole process.
    pub budget: ByteBudget,
}

/// What happened on the stream besides data. `u32` is the channel.
#[derive(Debug, Clone, PartialEq)]
pub enum MuxEvent {
    /// The peer opened a channel (or, on channel 0, the session). `mux.channel(id)` takes it.
    Open(u32, Box<Open>),
    Control(u32, Box<Control>),
    /// The peer closed the session; `None` is an orderly end. Data that came before is still to be read.
    Close(Option<Refusal>),
    /// The stream broke, or the peer broke its rules. Told once; nothing follows.
    Lost(LinkError),
}

/// One stream's channels. Cheap to clone; when the last clone and the last channel half are dropped, the stream closes.
#[derive(Clone)]
pub struct Mux(Rc<Owner>);

/// What users hold, in contrast to the reader task: its drop closes the stream.
struct Owner(Rc<Shared>);

struct Shared {
    core: RefCell<Core>,
    out: Arc<OutQueue>,
    inbound: RefCell<Option<Inbound>>,
    /// A `Drive` polls the inbound stream in the task's place.
    driven: Cell<bool>,
    /// The last owner is gone: what comes in is thrown away.
    discarding: Cell<bool>,
    /// The reader task, where it waits for a drive to end or for the linger to begin.
    task: RefCell<Option<Waker>>,
}

type Inbound = Pin<Box<dyn Stream<Item = Result<Frame, String>>>>;

struct Core {
    config: MuxConfig,
    /// Each made when it is first used.
    implicit: [Option<Box<ChannelState>>; IMPLICIT_CHANNELS],
    opened: BTreeMap<u32, Box<ChannelState>>,
    events: VecDeque<MuxEvent>,
    event_waiter: Slot,
    /// How the stream ended, as far as the peer is concerned.
    ended: Option<LinkError>,
    /// This side has sent its `Close`.
    closed: bool,
}

impl Mux {
    /// Takes a stream's inbound half and gives its outbound half for the transport to poll. Must be called within a
    /// `LocalSet` (an actix arbiter is one).
    pub fn start<S, E>(inbound: S, config: MuxConfig) -> (Self, Outbox)
    where
        S: Stream<Item = Result<Frame, E>> + Unpin + 'static,
        E: Display,
    {
        let inbound: Inbound = Box::pin(inbound.map(|frame| frame.map_err(|error| error.to_string())));
        let out = OutQueue::new();
        let shared = Rc::new(Shared {
            core: RefCell::new(Core {
                config,
                implicit: [None, None],
                opened: BTreeMap::new(),
                events: VecDeque::new(),
                event_waiter: Slot::default(),
                ended: None,
                closed: false,
            }),
            out: out.clone(),
            inbound: RefCell::new(Some(inbound)),
            driven: Cell::new(false),
            discarding: Cell::new(false),
            task: RefCell::new(None),
        });
        tokio::task::spawn_local(inbound::read(shared.clone()));
        (Self(Rc::new(Owner(shared))), Outbox(out))
    }

    /// The channel `id`, made if it is new to this side. Its halves may be taken more than once, but each direction has
    /// one user at a time.
    ///
    /// # Errors
    /// `LinkError::Malformed` where the stream has `CHANNELS_MAX` already.
    pub fn try_channel(&self, id: u32) -> Result<Channel, LinkError> {
        self.core().borrow_mut().make_channel(id)?;
        Ok(Channel::new(self.clone(), id))
    }

    /// Channel `id`; reading or writing one that could not be made is an error.
    #[must_use]
    pub fn channel(&self, id: u32) -> Channel {
        if let Err(error) = self.try_channel(id) {
            tracing::warn!(channel = id, %error, "channel not made");
        }
        Channel::new(self.clone(), id)
    }

    /// Sends `open` for a channel (0: the session). Overtakes data.
    ///
    /// # Errors
    /// `ControlError` where the stream is closed or too many control frames wait.
    pub fn open(&self, channel: u32, open: Open) -> Result<(), ControlError> {
        self.urgent(channel, Urgent::Open(Box::new(open)))
    }

    /// Sends a control message. Needs no credit and overtakes data.
    ///
    /// # Errors
    /// `ControlError` where the stream is closed or too many control frames wait.
    pub fn control(&self, channel: u32, control: Control) -> Result<(), ControlError> {
        self.urgent(channel, Urgent::Control(Box::new(control)))
    }

    fn urgent(&self, channel: u32, frame: Urgent) -> Result<(), ControlError> {
        self.shared()
            .out
            .push_urgent(channel, frame)
            .map_err(|error| match error {
                Unqueued::Full => ControlError::Full,
                Unqueued::Gone => ControlError::Closed,
            })
    }

    /// The next event; after `Lost` (and after this side closed and the peer ended) it waits for ever.
    pub async fn next_event(&self) -> MuxEvent {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// See [`Mux::next_event`].
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<MuxEvent> {
        let mut core = self.core().borrow_mut();
        match core.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                core.event_waiter.wait(cx);
                Poll::Pending
            }
        }
    }

    /// An event that has happened already, if any. For whoever drives the stream and looks after each drive.
    #[must_use]
    pub fn take_event(&self) -> Option<MuxEvent> {
        self.core().borrow_mut().events.pop_front()
    }

    /// How the stream ended, once it has: `Finished`, `Closed`, or what broke.
    #[must_use]
    pub fn ended(&self) -> Option<LinkError> {
        self.core().borrow().ended.clone()
    }

    /// Closes in order: what was sent goes out, then `Close` with the reason, then the stream's end. Reading goes on.
    pub fn close(&self, refusal: Option<&Refusal>) {
        self.shared().close(refusal);
    }

    /// Reads the stream in the caller's task from now on, instead of in the mux's own.
    ///
    /// The caller must poll the drive each time its task is woken, *before* it polls whatever waits for this mux.
    #[must_use]
    pub fn drive(&self) -> Drive {
        Drive::new(self.clone())
    }

    #[cfg(test)]
    pub(crate) fn shared_bytes() -> usize {
        size_of::<Shared>()
    }

    fn shared(&self) -> &Rc<Shared> {
        &self.0.0
    }

    fn core(&self) -> &RefCell<Core> {
        &self.0.0.core
    }
}

impl Core {
    fn channel(&mut self, id: u32) -> Option<&mut ChannelState> {
        match usize::try_from(id).ok().and_then(|at| self.implicit.get_mut(at)) {
            Some(slot) => Some(slot.get_or_insert_with(|| Box::new(ChannelState::new(&self.config.budget)))),
            None => self.opened.get_mut(&id).map(|channel| &mut **channel),
        }
    }

    fn make_channel(&mut self, id: u32) -> Result<(), LinkError> {
        if self.channel(id).is_some() {
            return Ok(());
        }
        if self.opened.len() >= CHANNELS_MAX {
            return Err(LinkError::Malformed(format!("more than {CHANNELS_MAX} channels")));
        }
        self.opened.insert(id, Box::new(ChannelState::new(&self.config.budget)));
        Ok(())
    }

    fn wake_all(&mut self, running: Option<&Waker>) {
        let implicit = self.implicit.iter_mut().flatten();
        implicit
            .chain(self.opened.values_mut())
            .for_each(|channel| channel.wake_all(running));
        self.event_waiter.wake(running);
    }

    /// The peer's side is over. The first reason stands.
    fn end(&mut self, error: LinkError, running: Option<&Waker>) {
        if self.ended.is_some() {
            return;
        }
        self.events.push_back(match &error {
            LinkError::Finished => MuxEvent::Close(None),
            LinkError::Closed(refusal) => MuxEvent::Close(Some(refusal.clone())),
            broken => MuxEvent::Lost(broken.clone()),
        });
        self.ended = Some(error);
        self.wake_all(running);
    }
}

impl Shared {
    fn close(&self, refusal: Option<&Refusal>) {
        let mut core = self.core.borrow_mut();
        if std::mem::replace(&mut core.closed, true) {
            return;
        }
        core.wake_all(None);
        drop(core);
        self.out.push(0, Ordered::Close(Box::new(close_of(refusal))));
        self.out.finish();
    }

    fn wake_task(&self) {
        if let Some(waker) = self.task.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close(None);
        self.0.discarding.set(true);
        self.0.wake_task();
    }
}

impl std::fmt::Debug for Mux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let core = self.core().borrow();
        f.debug_struct("Mux")
            .field("opened", &core.opened.len())
            .field("ended", &core.ended)
            .finish()
    }
}

#[cfg(test)]
mod tests;
