//! Reading a socket without holding a buffer while it has nothing to say.
//!
//! Each thread has one read buffer. Small reads are copied out exactly; a big read is handed over as it is and the
//! thread makes itself a new buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// Read at once at most, in bytes: the typical payload of a Data frame.
pub const READ_BYTES: usize = 64 * 1024;
/// Reads of at least this many bytes are handed over without a copy.
const HAND_OVER_BYTES: usize = READ_BYTES / 2;

thread_local! {
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Reads what `io` has, at most `READ_BYTES`. Empty at its end.
///
/// # Errors
/// Those of `io`.
pub fn poll_read<R: AsyncRead + Unpin>(io: &mut R, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => read_into(io, cx, &mut scratch),
        // A reader below this one reads through the scratch buffer itself.
        Err(_) => read_into(io, cx, &mut BytesMut::new()),
    })
}

fn read_into<R: AsyncRead + Unpin>(
    io: &mut R,
    cx: &mut Context<'_>,
    scratch: &mut BytesMut,
) -> Poll<io::Result<Bytes>> {
    scratch.clear();
    scratch.reserve(READ_BYTES);
    let count = ready!(poll_read_buf(Pin::new(io), cx, scratch))?;
    let bytes = if count >= HAND_OVER_BYTES {
        scratch.split().freeze()
    } else {
        Bytes::copy_from_slice(scratch)
    };
    Poll::Ready(Ok(bytes))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn small_and_big_reads_arrive_whole_and_the_end_is_empty() {
        for size in [1usize, 100, HAND_OVER_BYTES - 1, HAND_OVER_BYTES, 300_000] {
            let sent: Vec<u8> = (0..size).map(|n| (n % 253) as u8).collect();
            let mut io: &[u8] = &sent;
            let mut got = vec![];
            let mut kept = vec![];
            loop {
                let bytes = poll_fn(|cx| poll_read(&mut io, cx)).await.unwrap();
                if bytes.is_empty() {
                    break;
                }
                got.extend_from_slice(&bytes);
                kept.push(bytes);
            }
            assert!(got == sent);
            assert!(kept.concat() == sent, "what was handed over stays as it was");
        }
    }
}
