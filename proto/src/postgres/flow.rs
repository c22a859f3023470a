//! Walks one direction's byte stream from message header to message header, over any split into batches.
//!
//! Bulk messages are passed on in pieces with nothing but a counter kept; others are held back until they are whole.
//! Knows no message's meaning.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

/// Type byte and length.
pub(crate) const HEADER_BYTES: usize = 5;
/// The smallest length field: it counts itself.
const MIN_LENGTH: u32 = 4;
/// The largest length field: PostgreSQL reads it as a positive signed number.
const MAX_LENGTH: u32 = i32::MAX as u32;

/// How messages of one type move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passed on in pieces, wherever they end.
    Stream,
    /// Passed on in pieces, but its header in one.
    Body,
    /// Held back until whole; an error above this many bytes (header included).
    Whole { limit_bytes: usize },
    /// Held back until whole or until this many bytes are there; the rest is passed on in pieces.
    Head { bytes: usize },
    /// No such type.
    Unknown,
}

/// The next thing in a batch. Offsets are into the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A message from its first to its last byte, of a type that is held back.
    Whole { kind: u8, start: usize, end: usize },
    /// A message begins here, and lies in the batch up to `end`; more may follow.
    Begin { kind: u8, start: usize, end: usize },
    /// Goes on with a message that began in an earlier batch.
    More { kind: u8, start: usize, end: usize },
    /// Held back: the message is not yet there. Ends the batch.
    Short { needed: usize },
}

/// The stream cannot be framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum FlowError {
    #[error("unknown message type 0x{kind:02x}")]
    Unknown { kind: u8 },
    #[error("message type '{}' with the invalid length {length}", char::from(*kind))]
    Length { kind: u8, length: u32 },
    #[error("message type '{}' has {bytes} bytes; the limit is {limit_bytes} bytes", char::from(*kind))]
    TooLong { kind: u8, bytes: usize, limit_bytes: usize },
}

/// Where one direction stands between two batches.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Bytes of the passed-on message that are still to come.
    left: usize,
    /// That message's type.
    kind: u8,
    /// Its header, where it was split; `head_len` bytes of it are there. 0: not within a header.
    head: [u8; HEADER_BYTES],
    head_len: usize,
    /// The beginning of a message that is held back.
    held: BytesMut,
    /// How many bytes `held` must have before it is worth scanning.
    needed: usize,
}

impl Flow {
    /// True where the bytes passed on so far end with a whole message.
    pub(crate) fn at_boundary(&self) -> bool {
        self.left == 0 && self.head_len == 0
    }

    /// Bytes missing of the message that was passed on in part, or of its header.
    pub(crate) fn unfinished(&self) -> usize {
        match self.head_len {
            0 => self.left,
            there => HEADER_BYTES - there,
        }
    }

    /// What there is to scan: the batch itself, or with what was held back before it. `None`: still too little.
    #[inline]
    pub(crate) fn enter(&mut self, bytes: Bytes) -> Option<Bytes> {
        if self.held.is_empty() {
            return Some(bytes);
        }
        self.held.extend_from_slice(&bytes);
        if self.held.len() < self.needed {
            return None;
        }
        Some(std::mem::take(&mut self.held).freeze())
    }

    /// Keeps what lies behind `at` and gives what lies before it.
    #[inline]
    pub(crate) fn leave(&mut self, mut bytes: Bytes, at: usize, needed: usize) -> Bytes {
        if at < bytes.len() {
            self.held = BytesMut::from(bytes.split_off(at).as_ref());
            self.needed = needed;
        }
        bytes
    }

    /// The piece at `at`; `None` at the batch's end.
    #[inline]
    pub(crate) fn next(
        &mut self,
        bytes: &[u8],
        at: usize,
        mode: impl Fn(u8) -> Mode,
    ) -> Result<Option<Piece>, FlowError> {
        let Some(rest) = bytes.get(at..) else { return Ok(None) };
        let Some(&kind) = rest.first() else { return Ok(None) };
        if !self.at_boundary() {
            return self.more(rest, at).map(Some);
        }
        let mode = mode(kind);
        let Some(&[_, a, b, c, d]) = rest.first_chunk::<HEADER_BYTES>() else {
            return match mode {
                Mode::Stream => {
                    self.kind = kind;
                    for (slot, &byte) in self.head.iter_mut().zip(rest) {
                        *slot = byte;
                    }
                    self.head_len = rest.len();
                    Ok(Some(Piece::Begin {
                        kind,
                        start: at,
                        end: bytes.len(),
                    }))
                }
                Mode::Body | Mode::Whole { .. } | Mode::Head { .. } => Ok(Some(Piece::Short { needed: HEADER_BYTES })),
                Mode::Unknown => Err(FlowError::Unknown { kind }),
            };
        };
        let total = total_bytes(kind, u32::from_be_bytes([a, b, c, d]))?;
        let there = total.min(rest.len());
        match mode {
            Mode::Stream | Mode::Body => {
                self.kind = kind;
                self.left = total - there;
                Ok(Some(Piece::Begin {
                    kind,
                    start: at,
                    end: at + there,
                }))
            }
            Mode::Whole { limit_bytes } if total > limit_bytes => Err(FlowError::TooLong {
                kind,
                bytes: total,
                limit_bytes,
            }),
            Mode::Whole { .. } | Mode::Head { .. } if there == total => Ok(Some(Piece::Whole {
                kind,
                start: at,
                end: at + total,
            })),
            Mode::Whole { .. } => Ok(Some(Piece::Short { needed: total })),
            Mode::Head { bytes: head } if there < head.min(total) => Ok(Some(Piece::Short {
                needed: head.min(total),
            })),
            Mode::Head { .. } => {
                self.kind = kind;
                self.left = total - there;
                Ok(Some(Piece::Begin {
                    kind,
                    start: at,
                    end: at + there,
                }))
            }
            Mode::Unknown => Err(FlowError::Unknown { kind }),
        }
    }

    #[cold]
    fn more(&mut self, rest: &[u8], at: usize) -> Result<Piece, FlowError> {
        let mut taken = 0;
        if self.head_len > 0 {
            for (slot, &byte) in self.head.iter_mut().skip(self.head_len).zip(rest) {
                *slot = byte;
                taken += 1;
            }
            self.head_len += taken;
            if self.head_len == HEADER_BYTES {
                self.head_len = 0;
                let [_, a, b, c, d] = self.head;
                self.left = total_bytes(self.kind, u32::from_be_bytes([a, b, c, d]))? - HEADER_BYTES;
            }
        }
        let body = self.left.min(rest.len() - taken);
        self.left -= body;
        Ok(Piece::More {
            kind: self.kind,
            start: at,
            end: at + taken + body,
        })
    }
}

#[inline]
fn total_bytes(kind: u8, length: u32) -> Result<usize, FlowError> {
    if (MIN_LENGTH..=MAX_LENGTH).contains(&length) {
        Ok(1 + length as usize)
    } else {
        Err(FlowError::Length { kind, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(kind: u8) -> Mode {
        match kind {
            b'D' => Mode::Stream,
            b'C' => Mode::Whole { limit_bytes: 100 },
            b'E' => Mode::Head { bytes: 8 },
            _ => Mode::Unknown,
        }
    }

    #[test]
    fn a_streamed_message_passes_in_pieces_even_where_its_header_is_split() {
        let mut flow = Flow::default();
        let message = [b'D', 0, 0, 0, 6, 1, 2];
        assert_eq!(
            flow.next(&message[..2], 0, mode),
            Ok(Some(Piece::Begin {
                kind: b'D',
                start: 0,
                end: 2
            }))
        );
        assert!(!flow.at_boundary());
        assert_eq!(flow.unfinished(), 3, "of its header");
        assert_eq!(
            flow.next(&message[2..6], 0, mode),
            Ok(Some(Piece::More {
                kind: b'D',
                start: 0,
                end: 4
            }))
        );
        assert_eq!(flow.unfinished(), 1, "of its body");
        assert_eq!(
            flow.next(&message[6..], 0, mode),
            Ok(Some(Piece::More {
                kind: b'D',
                start: 0,
                end: 1
            }))
        );
        assert!(flow.at_boundary());
        assert_eq!(flow.unfinished(), 0);
    }

    #[test]
    fn a_held_message_is_given_once_it_is_whole() {
        let mut flow = Flow::default();
        let message = Bytes::from_static(&[b'C', 0, 0, 0, 6, 1, 2]);
        for end in 1..7 {
            let piece = flow.next(&message[..end], 0, mode);
            assert_eq!(
                piece,
                Ok(Some(Piece::Short {
                    needed: if end < 5 { 5 } else { 7 }
                }))
            );
        }
        flow.leave(message.slice(..3), 0, 5);
        assert_eq!(flow.enter(message.slice(3..4)), None);
        let whole = flow.enter(message.slice(4..)).unwrap();
        assert_eq!(
            flow.next(&whole, 0, mode),
            Ok(Some(Piece::Whole {
                kind: b'C',
                start: 0,
                end: 7
            }))
        );
    }

    #[test]
    fn of_a_long_error_only_the_head_is_held() {
        let mut flow = Flow::default();
        let message = [b'E', 0, 0, 0, 20, 1, 2, 3, 4, 5];
        assert_eq!(flow.next(&message[..7], 0, mode), Ok(Some(Piece::Short { needed: 8 })));
        assert_eq!(
            flow.next(&message, 0, mode),
            Ok(Some(Piece::Begin {
                kind: b'E',
                start: 0,
                end: 10
            }))
        );
        assert!(!flow.at_boundary());
    }

    #[test]
    fn what_cannot_be_framed_is_an_error() {
        let mut flow = Flow::default();
        assert_eq!(flow.next(b"x", 0, mode), Err(FlowError::Unknown { kind: b'x' }));
        assert_eq!(
            flow.next(&[b'D', 0, 0, 0, 3], 0, mode),
            Err(FlowError::Length { kind: b'D', length: 3 })
        );
        let long = flow.next(&[b'C', 0, 0, 1, 0], 0, mode);
        assert_eq!(
            long,
            Err(FlowError::TooLong {
                kind: b'C',
                bytes: 257,
                limit_bytes: 100
            })
        );
    }
}
