//! Bytes between one channel of the link and the target's socket, both ways, in one task.
//!
//! It looks at no byte. Credit goes back to the gateway only for what the target's socket has taken; the target is read
//! only while the gateway has room. While nothing moves it holds no buffer: reading goes through a scratch buffer of the
//! thread, from which small pieces are copied and large ones handed over.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hoop_actors::mux::{ChannelReader, ChannelWriter, Drive, LinkError, MuxEvent};
use hoop_actors::scratch;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};

/// Pieces moved per direction before other sessions of the arbiter get their turn.
const PIECES_PER_POLL: usize = 32;
/// How long one side has to take what is under way after the other side is over.
pub const LINGER: Duration = Duration::from_secs(60);

/// How a splice ended.
#[derive(Debug)]
pub enum Spliced {
    /// The gateway closed the session, in order or with a reason; or the link was lost.
    Link(LinkError),
    /// The gateway ended the session at once.
    Killed,
    /// The target closed its connection, and all that it had sent is on its way.
    TargetClosed,
    /// The target's connection broke.
    TargetFailed(io::Error),
}

/// Both directions of one session. `on_event` sees what the gateway says besides data and its end.
pub struct Splice<S, F> {
    drive: Drive,
    reader: ChannelReader,
    writer: ChannelWriter,
    target: S,
    on_event: F,
    to_target: ToTarget,
    to_link: ToLink,
    linger: Option<Pin<Box<Sleep>>>,
}

/// Link to target.
enum ToTarget {
    Copying {
        piece: Bytes,
        unflushed: bool,
    },
    /// The gateway has sent its last byte.
    ShuttingDown,
    /// The target takes no more; what still comes is dropped, its credit given back.
    Discarding,
    Done,
}

/// Target to link.
enum ToLink {
    Copying { piece: Bytes },
    Done,
}

impl<S, F> Splice<S, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(&MuxEvent) -> bool,
{
    /// `early` are bytes that the target sent with the end of its login. `on_event` answers whether to end at once.
    pub fn new(drive: Drive, halves: (ChannelReader, ChannelWriter), target: S, early: Bytes, on_event: F) -> Self {
        let (reader, writer) = halves;
        Self {
            drive,
            reader,
            writer,
            target,
            on_event,
            to_target: ToTarget::Copying {
                piece: Bytes::new(),
                unflushed: false,
            },
            to_link: ToLink::Copying { piece: early },
            linger: None,
        }
    }

    /// Runs until either side is over.
    pub async fn run(&mut self) -> Spliced {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Spliced> {
        self.drive.poll(cx);
        while let Some(event) = self.drive.mux().take_event() {
            match &event {
                MuxEvent::Close(None) => self.start_linger(),
                MuxEvent::Close(Some(refusal)) => {
                    return Poll::Ready(Spliced::Link(LinkError::Closed(refusal.clone())));
                }
                MuxEvent::Lost(error) => return Poll::Ready(Spliced::Link(error.clone())),
                MuxEvent::Open(..) | MuxEvent::Control(..) => {
                    if (self.on_event)(&event) {
                        return Poll::Ready(Spliced::Killed);
                    }
                }
            }
        }
        if let Poll::Ready(end) = self.poll_to_target(cx) {
            return Poll::Ready(Spliced::Link(end));
        }
        if let Poll::Ready(end) = self.poll_to_link(cx) {
            return Poll::Ready(end);
        }
        if matches!(self.to_link, ToLink::Done) {
            if matches!(self.to_target, ToTarget::Done) {
                return Poll::Ready(Spliced::TargetClosed);
            }
            self.start_linger();
        }
        if let Some(linger) = &mut self.linger {
            ready!(linger.as_mut().poll(cx));
            return Poll::Ready(Spliced::TargetClosed);
        }
        Poll::Pending
    }

    /// One side is over: the other has so long to take what is under way.
    fn start_linger(&mut self) {
        if self.linger.is_none() {
            self.linger = Some(Box::pin(sleep(LINGER)));
        }
    }

    /// Ready only when the link is over.
    fn poll_to_target(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        for _ in 0..PIECES_PER_POLL {
            match &mut self.to_target {
                ToTarget::Copying { piece, unflushed } => {
                    if piece.is_empty() {
                        match self.reader.poll_recv(cx) {
                            Poll::Ready(Ok(Some(bytes))) => *piece = bytes,
                            Poll::Ready(Ok(None)) => {
                                self.to_target = ToTarget::ShuttingDown;
                                continue;
                            }
                            Poll::Ready(Err(error)) => return Poll::Ready(error),
                            Poll::Pending if *unflushed => {
                                match ready!(Pin::new(&mut self.target).poll_flush(cx)) {
                                    Ok(()) => *unflushed = false,
                                    Err(error) => self.target_takes_no_more(&error),
                                }
                                return Poll::Pending;
                            }
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                    match ready!(Pin::new(&mut self.target).poll_write(cx, piece)) {
                        Ok(0) => self.target_takes_no_more(&io::ErrorKind::WriteZero.into()),
                        Ok(written) => {
                            piece.advance(written);
                            *unflushed = true;
                            self.reader.consumed(written);
                        }
                        Err(error) => self.target_takes_no_more(&error),
                    }
                }
                ToTarget::ShuttingDown => {
                    // A failure means that the target has gone, which its reading side tells.
                    let _gone = ready!(Pin::new(&mut self.target).poll_shutdown(cx));
                    self.to_target = ToTarget::Done;
                }
                ToTarget::Discarding => match ready!(self.reader.poll_recv(cx)) {
                    Ok(Some(bytes)) => self.reader.consumed(bytes.len()),
                    Ok(None) => self.to_target = ToTarget::Done,
                    Err(error) => return Poll::Ready(error),
                },
                ToTarget::Done => {
                    // The session is the gateway's to close: after its Eof only Close or a loss can follow.
                    return match self.drive.mux().ended() {
                        Some(error) => Poll::Ready(error),
                        None => Poll::Pending,
                    };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The target may have said why before it stopped taking, so reading from it goes on.
    fn target_takes_no_more(&mut self, error: &io::Error) {
        tracing::debug!(%error, "the target takes no more");
        if let ToTarget::Copying { piece, .. } = &self.to_target {
            self.reader.consumed(piece.len());
        }
        self.to_target = ToTarget::Discarding;
    }

    /// Ready only when something broke.
    fn poll_to_link(&mut self, cx: &mut Context<'_>) -> Poll<Spliced> {
        for _ in 0..PIECES_PER_POLL {
            let ToLink::Copying { piece } = &mut self.to_link else {
                return Poll::Pending;
            };
            if !piece.is_empty() {
                match ready!(self.writer.poll_send(cx, piece)) {
                    Ok(()) => {}
                    Err(error) => return Poll::Ready(Spliced::Link(error)),
                }
            }
            match ready!(scratch::poll_read(&mut self.target, cx)) {
                Ok(bytes) if bytes.is_empty() => {
                    self.writer.eof();
                    self.to_link = ToLink::Done;
                    return Poll::Pending;
                }
                Ok(bytes) => *piece = bytes,
                Err(error) => return Poll::Ready(Spliced::TargetFailed(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
