//! The client's socket, read by one pump and written by both.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::scratch;

/// Bytes read from a client while its statement is held, so that its leaving is noticed; more stay in the socket.
pub const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Pieces of one vectored write at most.
const SLICES: usize = 16;

/// `INVARIANT:` what is written is what was pushed, in that order, whoever pushed it.
pub(super) struct ClientSide<C> {
    io: C,
    out: VecDeque<Bytes>,
    /// Written since the last flush: a TLS stream may still hold some.
    unflushed: bool,
    /// Read while a statement was held (or before the session began).
    ahead: VecDeque<Bytes>,
    ahead_bytes: usize,
    ended: bool,
}

impl<C: AsyncRead + AsyncWrite + Unpin> ClientSide<C> {
    pub(super) fn new(io: C, early: Bytes) -> Self {
        let mut side = Self {
            io,
            out: VecDeque::new(),
            unflushed: false,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            ended: false,
        };
        if !early.is_empty() {
            side.ahead_bytes = early.len();
            side.ahead.push_back(early);
        }
        side
    }

    /// The next bytes; empty at the client's end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Some(bytes) = self.ahead.pop_front() {
            self.ahead_bytes -= bytes.len();
            return Poll::Ready(Ok(bytes));
        }
        if self.ended {
            return Poll::Ready(Ok(Bytes::new()));
        }
        scratch::poll_read(&mut self.io, cx)
    }

    /// Reads ahead, within its bound. Ready when the client has left.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended && self.ahead_bytes < READ_AHEAD_BYTES {
            match ready!(scratch::poll_read(&mut self.io, cx)) {
                Ok(bytes) if !bytes.is_empty() => {
                    self.ahead_bytes += bytes.len();
                    self.ahead.push_back(bytes);
                }
                Ok(_) | Err(_) => self.ended = true,
            }
        }
        if self.ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Reads what the client still says, to no end. Ready when it has left.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ahead.clear();
        while !self.ended {
            let read = ready!(scratch::poll_read(&mut self.io, cx));
            self.ended = read.map_or(true, |bytes| bytes.is_empty());
        }
        Poll::Ready(())
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.out.push_back(bytes);
        }
    }

    /// All that was pushed is written.
    pub(super) fn has_all(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// Writes what was pushed until nothing is left.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let count = if self.out.len() > 1 && self.io.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let used = self.out.len().min(SLICES);
                for (slice, bytes) in slices.iter_mut().zip(&self.out) {
                    *slice = IoSlice::new(bytes);
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices.get(..used).unwrap_or_default()))?
            } else {
                let first = self.out.front().map_or(&[][..], |bytes| bytes);
                ready!(Pin::new(&mut self.io).poll_write(cx, first))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.written(count);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, mut count: usize) {
        while let Some(first) = self.out.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.out.pop_front();
        }
    }

    /// Writes the rest, then ends the direction towards the client.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
