//! Writes messages: type byte, length, body (manual, "Message Formats").

use bytes::{BufMut, Bytes, BytesMut};

/// Appends one typed message whose body `body` writes.
pub(crate) fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    counted(out, body);
}

/// Appends a length that counts itself, and what `body` writes: a start-up packet, or a message without its type.
pub(crate) fn counted(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    // INVARIANT: bodies come from bounded input (statements and texts of at most some MiB), so the length fits.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// A zero-terminated string; zeros inside it, which the protocol cannot carry, are left out.
pub(crate) fn string(out: &mut BytesMut, text: &[u8]) {
    if memchr::memchr(0, text).is_none() {
        out.put_slice(text);
    } else {
        out.extend(text.iter().copied().filter(|&byte| byte != 0));
    }
    out.put_u8(0);
}

/// A message alone.
pub(crate) fn single(kind: u8, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    message(&mut out, kind, body);
    out.freeze()
}

/// `Query` with this text.
#[must_use]
pub fn query(text: &str) -> Bytes {
    single(b'Q', |out| string(out, text.as_bytes()))
}

/// `ReadyForQuery` with this transaction status: `I`, `T` or `E`.
#[must_use]
pub fn ready_for_query(status: u8) -> Bytes {
    single(b'Z', |out| out.put_u8(status))
}

/// `Sync`: outside a transaction, answered by `ReadyForQuery` and nothing else.
#[must_use]
pub fn sync() -> Bytes {
    single(b'S', |_| {})
}

/// `Terminate`.
#[must_use]
pub fn terminate() -> Bytes {
    single(b'X', |_| {})
}
