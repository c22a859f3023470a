//! One journal segment: the bytes of its header, of its frames, and of the items within a frame.
//!
//! It owns the format alone. When to write, what to do about a full disk and what a session's events mean is decided
//! elsewhere.
//!
//! ```text
//! segment = header, frame…
//! header  = "HOOPJRNL" version:u8 writer:16 arbiter:u32 number:u32 created_us:u64 wrapped_key:60 crc32:u32
//! frame   = sealed_bytes:u32 crc32(sealed):u32 sealed
//! sealed  = AES-256-GCM(segment key, nonce = the frame's offset in the file) of: flag:u8 items
//! items   = { kind:u8 session:16 body_bytes:u32 body }…      zstd-compressed as a whole where flag is 1
//! ```
//! Integers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use hoop_store::seal::{MasterKey, OVERHEAD_BYTES};
use thiserror::Error;
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"HOOPJRNL";
const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const WRAPPED_KEY_BYTES: usize = KEY_BYTES + OVERHEAD_BYTES;
/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 8 + 1 + 16 + 4 + 4 + 8 + WRAPPED_KEY_BYTES + 4;
/// Length and checksum before a frame's sealed bytes.
pub const FRAME_PREFIX_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
const FLAG_PLAIN: u8 = 0;
const FLAG_ZSTD: u8 = 1;
/// Largest sealed frame: a longer length field is damage.
pub const FRAME_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Payloads from this size on are compressed.
const COMPRESS_FROM_BYTES: usize = 4 * 1024;
const COMPRESS_LEVEL: i32 = 1;
const ITEM_PREFIX_BYTES: usize = 1 + 16 + 4;
/// How much of a segment is read at once.
const BLOCK_BYTES: usize = 256 * 1024;

/// Item: the session's wrapped data key.
pub const ITEM_BEGIN: u8 = 1;
/// Item: one encoded `Event`.
pub const ITEM_EVENT: u8 = 2;

#[derive(Debug, Error)]
pub enum SegmentError {
    #[error("cannot {operation} the journal segment {path}")]
    Io {
        operation: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} is not a journal segment of this release")]
    Foreign { path: String },
    #[error("the key of the journal segment {path} cannot be opened: is this the installation's master key?")]
    Key { path: String },
    #[error("the system gives no random bytes for a journal key")]
    Random,
}

/// Which segment a file is: `<writer>-<arbiter>-<number>.seg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    pub writer: Uuid,
    pub arbiter: u32,
    pub number: u32,
}

impl SegmentName {
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-{}-{}.seg", self.writer, self.arbiter, self.number)
    }

    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(".seg")?;
        let mut parts = stem.rsplitn(3, '-');
        let number = parts.next()?.parse().ok()?;
        let arbiter = parts.next()?.parse().ok()?;
        let writer = Uuid::parse_str(parts.next()?).ok()?;
        Some(Self {
            writer,
            arbiter,
            number,
        })
    }

    fn key_name(&self) -> String {
        format!("journal/{}/{}/{}", self.writer, self.arbiter, self.number)
    }
}

/// A segment's own key. A nonce is the frame's offset, and a segment never rewrites an offset: after a failed write it
/// is abandoned.
pub struct SegmentKey(LessSafeKey);

impl SegmentKey {
    fn new(key: &[u8]) -> Option<Self> {
        Some(Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?)))
    }

    fn nonce(offset: u64) -> Nonce {
        let mut nonce = [0u8; NONCE_LEN];
        if let Some(low) = nonce.get_mut(..8) {
            low.copy_from_slice(&offset.to_le_bytes());
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Opens a frame's sealed bytes in place; answers flag and payload.
    fn open<'a>(&self, offset: u64, sealed: &'a mut [u8]) -> Option<(u8, &'a [u8])> {
        let plain = self.0.open_in_place(Self::nonce(offset), Aad::empty(), sealed).ok()?;
        let (flag, payload) = plain.split_first()?;
        Some((*flag, payload))
    }
}

/// Makes a segment's header with a fresh key wrapped by `master`.
///
/// # Errors
/// `SegmentError::Random` where no key could be made.
pub fn make_header(
    name: &SegmentName,
    created_at_us: u64,
    master: &MasterKey,
) -> Result<(Vec<u8>, SegmentKey), SegmentError> {
    let raw = MasterKey::generate().map_err(|_| SegmentError::Random)?;
    let wrapped = master.seal(&name.key_name(), &raw).map_err(|_| SegmentError::Random)?;
    let key = SegmentKey::new(&raw).ok_or(SegmentError::Random)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.push(VERSION);
    header.extend_from_slice(name.writer.as_bytes());
    header.extend_from_slice(&name.arbiter.to_le_bytes());
    header.extend_from_slice(&name.number.to_le_bytes());
    header.extend_from_slice(&created_at_us.to_le_bytes());
    header.extend_from_slice(&wrapped);
    let crc = crc32fast::hash(&header);
    header.extend_from_slice(&crc.to_le_bytes());
    Ok((header, key))
}

/// Reads back what `make_header` made. `Ok(None)`: the header is torn (the file is shorter than a header).
fn read_header(
    file: &File,
    path: &Path,
    master: &MasterKey,
) -> Result<Option<(SegmentName, SegmentKey)>, SegmentError> {
    let shown = || path.display().to_string();
    let mut header = [0u8; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(source) => {
            return Err(SegmentError::Io {
                operation: "read",
                path: shown(),
                source,
            });
        }
    }
    let parsed = (|| {
        let (body, crc) = header.split_at_checked(HEADER_BYTES - 4)?;
        if u32::from_le_bytes(crc.try_into().ok()?) != crc32fast::hash(body) {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first()?;
        if *version != VERSION {
            return None;
        }
        let (writer, rest) = rest.split_at_checked(16)?;
        let (arbiter, rest) = rest.split_at_checked(4)?;
        let (number, rest) = rest.split_at_checked(4)?;
        let (_created, wrapped) = rest.split_at_checked(8)?;
        let name = SegmentName {
            writer: Uuid::from_slice(writer).ok()?,
            arbiter: u32::from_le_bytes(arbiter.try_into().ok()?),
            number: u32::from_le_bytes(number.try_into().ok()?),
        };
        Some((name, wrapped.to_vec()))
    })();
    let (name, wrapped) = parsed.ok_or_else(|| SegmentError::Foreign { path: shown() })?;
    let raw = master
        .open(&name.key_name(), &wrapped)
        .map_err(|_| SegmentError::Key { path: shown() })?;
    let key = SegmentKey::new(&raw).ok_or_else(|| SegmentError::Key { path: shown() })?;
    Ok(Some((name, key)))
}

/// Appends one item to a frame's payload. The body is written by `write`, straight into the payload.
pub fn push_item(payload: &mut Vec<u8>, kind: u8, session: &Uuid, write: impl FnOnce(&mut Vec<u8>)) {
    payload.push(kind);
    payload.extend_from_slice(session.as_bytes());
    let length_at = payload.len();
    payload.extend_from_slice(&[0; 4]);
    write(payload);
    let body_bytes = u32::try_from(payload.len() - length_at - 4).unwrap_or(u32::MAX);
    if let Some(slot) = payload.get_mut(length_at..length_at + 4) {
        slot.copy_from_slice(&body_bytes.to_le_bytes());
    }
}

/// One item of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    pub kind: u8,
    pub session: Uuid,
    pub body: &'a [u8],
}

/// The items of a payload; ends early (answering `None`) where the payload is malformed, which an authenticated frame
/// never is.
pub fn items(mut payload: &[u8]) -> impl Iterator<Item = Item<'_>> {
    std::iter::from_fn(move || {
        let (prefix, rest) = payload.split_at_checked(ITEM_PREFIX_BYTES)?;
        let (kind, prefix) = prefix.split_first()?;
        let (session, length) = prefix.split_at_checked(16)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let (body, rest) = rest.split_at_checked(length)?;
        payload = rest;
        Some(Item {
            kind: *kind,
            session: Uuid::from_slice(session).ok()?,
            body,
        })
    })
}

/// Seals payloads into frames, reusing its buffers.
#[derive(Default)]
pub struct Sealer {
    frame: Vec<u8>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Sealer {
    /// The frame of `payload` at `offset` of the segment with this key. The payload itself stays untouched, so that it
    /// can be written elsewhere when this write fails.
    ///
    /// # Errors
    /// `io::Error` where the payload cannot be compressed or sealed.
    pub fn frame(&mut self, key: &SegmentKey, offset: u64, payload: &[u8]) -> io::Result<&[u8]> {
        const PREFIX: usize = FRAME_PREFIX_BYTES + 1;
        self.frame.clear();
        self.frame.extend_from_slice(&[0; FRAME_PREFIX_BYTES]);
        if payload.len() >= COMPRESS_FROM_BYTES {
            self.frame.push(FLAG_ZSTD);
            self.frame
                .resize(PREFIX + zstd::zstd_safe::compress_bound(payload.len()), 0);
            let compressor = match &mut self.compressor {
                Some(compressor) => compressor,
                empty => empty.insert(zstd::bulk::Compressor::new(COMPRESS_LEVEL)?),
            };
            let room = self.frame.get_mut(PREFIX..).unwrap_or_default();
            let used = compressor.compress_to_buffer(payload, room)?;
            self.frame.truncate(PREFIX + used);
        } else {
            self.frame.push(FLAG_PLAIN);
            self.frame.extend_from_slice(payload);
        }
        let body = self.frame.get_mut(FRAME_PREFIX_BYTES..).unwrap_or_default();
        let tag = key
            .0
            .seal_in_place_separate_tag(SegmentKey::nonce(offset), Aad::empty(), body)
            .map_err(|_| io::Error::other("a frame could not be sealed"))?;
        self.frame.extend_from_slice(tag.as_ref());
        let sealed = self.frame.get(FRAME_PREFIX_BYTES..).unwrap_or_default();
        let length = u32::try_from(sealed.len()).map_err(io::Error::other)?;
        let crc = crc32fast::hash(sealed);
        if let Some(prefix) = self.frame.first_chunk_mut::<FRAME_PREFIX_BYTES>() {
            *prefix = ((u64::from(crc) << 32) | u64::from(length)).to_le_bytes();
        }
        Ok(&self.frame)
    }
}

/// What `SegmentReader::next` met.
#[derive(Debug, PartialEq, Eq)]
pub enum Met {
    /// A whole frame; its payload is in the buffer that was given.
    Frame,
    /// Nothing more below the limit.
    End,
    /// The last frame is incomplete: it was never acknowledged.
    Torn,
    /// A frame that is not what was written. Reading goes on behind it where its length still makes sense.
    Damaged { offset: u64, why: &'static str },
}

/// Reads a segment from an offset on, behind whoever writes it.
pub struct SegmentReader {
    file: File,
    path: String,
    key: SegmentKey,
    pub name: SegmentName,
    offset: u64,
    block: Vec<u8>,
    block_at: u64,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl SegmentReader {
    /// `Ok(None)`: the file holds no whole header, so nothing in it was ever acknowledged.
    ///
    /// # Errors
    /// `SegmentError` where the file cannot be read, is no segment, or is sealed with another master key.
    pub fn open(path: &Path, master: &MasterKey) -> Result<Option<Self>, SegmentError> {
        let shown = path.display().to_string();
        let file = File::open(path).map_err(|source| SegmentError::Io {
            operation: "open",
            path: shown.clone(),
            source,
        })?;
        let Some((name, key)) = read_header(&file, path, master)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            file,
            path: shown,
            key,
            name,
            offset: HEADER_BYTES as u64,
            block: Vec::new(),
            block_at: 0,
            decompressor: None,
        }))
    }

    /// Where the next frame starts, in bytes from the file's start.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on at a frame's start that `offset` answered earlier.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset.max(HEADER_BYTES as u64);
    }

    /// Reads the next frame that lies wholly below `limit` (bytes from the file's start) into `payload`. `last`: nobody
    /// wrote behind this file, so an incomplete frame at its end is torn rather than damaged.
    ///
    /// # Errors
    /// `SegmentError::Io` where the file cannot be read.
    pub fn next(&mut self, limit: u64, last: bool, payload: &mut Vec<u8>) -> Result<Met, SegmentError> {
        payload.clear();
        let offset = self.offset;
        let left = limit.saturating_sub(offset);
        if left == 0 {
            return Ok(Met::End);
        }
        if left < FRAME_PREFIX_BYTES as u64 {
            return Ok(self.cut_short(limit, last));
        }
        let prefix = self.bytes(offset, FRAME_PREFIX_BYTES, limit)?;
        let word = prefix
            .first_chunk::<FRAME_PREFIX_BYTES>()
            .map_or(0, |prefix| u64::from_le_bytes(*prefix));
        let (length, crc) = ((word & u64::from(u32::MAX)) as usize, (word >> 32) as u32);
        let end = offset + FRAME_PREFIX_BYTES as u64 + length as u64;
        if !(TAG_BYTES + 1..=FRAME_MAX_BYTES).contains(&length) || end > limit {
            return Ok(self.cut_short(limit, last));
        }
        let block = self.bytes(offset + FRAME_PREFIX_BYTES as u64, length, limit)?;
        let Some(sealed) = block.get(..length) else {
            return Ok(self.cut_short(limit, last));
        };
        if crc32fast::hash(sealed) != crc {
            if last && end == limit {
                return Ok(self.cut_short(limit, last));
            }
            self.offset = end;
            return Ok(Met::Damaged {
                offset,
                why: "its checksum is wrong",
            });
        }
        let mut sealed = sealed.to_vec();
        self.offset = end;
        let Some((flag, plain)) = self.key.open(offset, &mut sealed) else {
            return Ok(Met::Damaged {
                offset,
                why: "it does not open with the segment's key",
            });
        };
        match flag {
            FLAG_PLAIN => payload.extend_from_slice(plain),
            FLAG_ZSTD => {
                let bound = zstd::bulk::Decompressor::upper_bound(plain)
                    .unwrap_or(0)
                    .min(4 * FRAME_MAX_BYTES);
                payload.reserve(bound);
                let decompressor = match &mut self.decompressor {
                    Some(decompressor) => decompressor,
                    empty => {
                        empty.insert(zstd::bulk::Decompressor::new().map_err(|source| self_io(&self.path, source))?)
                    }
                };
                if decompressor.decompress_to_buffer(plain, payload).is_err() {
                    payload.clear();
                    return Ok(Met::Damaged {
                        offset,
                        why: "it cannot be decompressed",
                    });
                }
            }
            _ => {
                return Ok(Met::Damaged {
                    offset,
                    why: "it is of an unknown kind",
                });
            }
        }
        Ok(Met::Frame)
    }

    fn cut_short(&mut self, limit: u64, last: bool) -> Met {
        let offset = self.offset;
        if last {
            return Met::Torn;
        }
        self.offset = limit;
        Met::Damaged {
            offset,
            why: "it is cut short; what follows in this segment cannot be read",
        }
    }

    /// At least `length` bytes from `offset` on, if they lie below `limit`.
    fn bytes(&mut self, offset: u64, length: usize, limit: u64) -> Result<&[u8], SegmentError> {
        let have_until = self.block_at + self.block.len() as u64;
        if offset < self.block_at || offset + length as u64 > have_until {
            let wanted = length
                .max(BLOCK_BYTES)
                .min(usize::try_from(limit - offset).unwrap_or(usize::MAX));
            self.block.resize(wanted, 0);
            self.block_at = offset;
            let mut read = 0;
            while let Some(room) = self.block.get_mut(read..)
                && !room.is_empty()
            {
                match self.file.read_at(room, offset + read as u64) {
                    Ok(0) => break,
                    Ok(bytes) => read += bytes,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => {
                        self.block.clear();
                        return Err(self_io(&self.path, source));
                    }
                }
            }
            self.block.truncate(read);
        }
        let start = usize::try_from(offset - self.block_at).unwrap_or(usize::MAX);
        Ok(self.block.get(start..).unwrap_or_default())
    }
}

fn self_io(path: &str, source: io::Error) -> SegmentError {
    SegmentError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    }
}

/// An encoded `Event`'s number, without decoding the rest (its first field, always there: numbers start at 1).
#[must_use]
pub fn event_seq(event: &[u8]) -> Option<u64> {
    let mut rest = event.strip_prefix(&[0x08])?;
    prost::encoding::decode_varint(&mut rest).ok()
}

/// An encoded `Event`'s kind: the field number of its body in evidence.proto, without decoding the body.
#[must_use]
pub fn event_kind(event: &[u8]) -> Option<u32> {
    let mut rest = event;
    loop {
        let tag = prost::encoding::decode_varint(&mut rest).ok()?;
        match (tag >> 3, tag & 7) {
            (1 | 2, 0) => {
                prost::encoding::decode_varint(&mut rest).ok()?;
            }
            (field, 2) => return u32::try_from(field).ok(),
            _ => return None,
        }
    }
}
