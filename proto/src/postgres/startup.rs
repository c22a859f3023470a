//! The untyped packets that open a connection (manual, "Message Formats": StartupMessage, SSLRequest, GSSENCRequest,
//! CancelRequest), and `NegotiateProtocolVersion`.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::encode::{counted, message, string};
use super::fields::{Fields, Malformed};

/// The longest start-up packet, as in PostgreSQL (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_BYTES: usize = 10_000;
/// The longest cancel secret (manual, CancelRequest, protocol 3.2).
pub const MAX_SECRET_BYTES: usize = 256;
/// The newest minor version spoken here.
pub const NEWEST_MINOR: u32 = 2;

const MAJOR: u32 = 3;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// The first packet, or one of the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    SslRequest,
    GssEncRequest,
    Cancel {
        process_id: u32,
        secret: Bytes,
    },
    Startup {
        minor: u32,
        parameters: Vec<(String, String)>,
    },
}

/// Why a start-up packet is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartupError {
    #[error("invalid length of startup packet: {0} bytes; at least 8 and at most {MAX_STARTUP_BYTES} are allowed")]
    Length(u32),
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}")]
    Version { major: u32, minor: u32 },
    #[error("invalid startup packet: {0}")]
    Malformed(#[from] Malformed),
    #[error("invalid startup packet: parameter {0} is not UTF-8")]
    NotUtf8(String),
    #[error("invalid cancel request: its secret has {0} bytes; at least 4 and at most {MAX_SECRET_BYTES} are allowed")]
    Secret(usize),
}

/// Reads the packet at the beginning of `buffer`, and how many bytes it has; `None` where it is not yet whole.
///
/// # Errors
/// `StartupError` where it cannot become a valid one.
pub fn read(buffer: &[u8]) -> Result<Option<(Packet, usize)>, StartupError> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head);
    if length < 8 || length as usize > MAX_STARTUP_BYTES {
        return Err(StartupError::Length(length));
    }
    let length = length as usize;
    let Some(packet) = buffer.get(4..length) else {
        return Ok(None);
    };
    let mut fields = Fields(packet);
    let code = fields.u32("protocol version")?;
    let packet = match code {
        SSL_REQUEST if fields.0.is_empty() => Packet::SslRequest,
        GSSENC_REQUEST if fields.0.is_empty() => Packet::GssEncRequest,
        CANCEL_REQUEST => {
            let process_id = fields.u32("process id")?;
            if !(4..=MAX_SECRET_BYTES).contains(&fields.0.len()) {
                return Err(StartupError::Secret(fields.0.len()));
            }
            Packet::Cancel {
                process_id,
                secret: Bytes::copy_from_slice(fields.0),
            }
        }
        _ if code >> 16 == MAJOR => Packet::Startup {
            minor: code & 0xffff,
            parameters: parameters(fields)?,
        },
        _ => {
            return Err(StartupError::Version {
                major: code >> 16,
                minor: code & 0xffff,
            });
        }
    };
    Ok(Some((packet, length)))
}

fn parameters(mut fields: Fields<'_>) -> Result<Vec<(String, String)>, StartupError> {
    let mut parameters = Vec::new();
    loop {
        let name = fields.string("parameter name")?;
        if name.is_empty() {
            fields.end("terminator")?;
            return Ok(parameters);
        }
        let value = fields.string("parameter value")?;
        let lossy = || StartupError::NotUtf8(String::from_utf8_lossy(name).into_owned());
        let name = std::str::from_utf8(name).map_err(|_| lossy())?;
        let value = std::str::from_utf8(value).map_err(|_| lossy())?;
        parameters.push((name.to_owned(), value.to_owned()));
    }
}

/// A `StartupMessage` of protocol 3.`minor`.
#[must_use]
pub fn startup_message<'a>(minor: u32, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    counted(&mut out, |out| {
        out.put_u32((MAJOR << 16) | (minor & 0xffff));
        for (name, value) in parameters {
            string(out, name.as_bytes());
            string(out, value.as_bytes());
        }
        out.put_u8(0);
    });
    out.freeze()
}

/// An `SSLRequest`.
#[must_use]
pub fn ssl_request() -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    counted(&mut out, |out| out.put_u32(SSL_REQUEST));
    out.freeze()
}

/// A `GSSENCRequest`.
#[must_use]
pub fn gssenc_request() -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    counted(&mut out, |out| out.put_u32(GSSENC_REQUEST));
    out.freeze()
}

/// A `CancelRequest` with a target's own key.
#[must_use]
pub fn cancel_request(process_id: u32, secret: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(12 + secret.len());
    counted(&mut out, |out| {
        out.put_u32(CANCEL_REQUEST);
        out.put_u32(process_id);
        out.put_slice(secret);
    });
    out.freeze()
}

/// `NegotiateProtocolVersion`: 3.`minor` it is, and these options are not known.
pub(crate) fn negotiate_protocol_version(out: &mut BytesMut, minor: u32, unknown: &[String]) {
    message(out, b'v', |out| {
        out.put_u32((MAJOR << 16) | minor);
        out.put_u32(u32::try_from(unknown.len()).unwrap_or(u32::MAX));
        for name in unknown {
            string(out, name.as_bytes());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packet_is_read_as_written() {
        let startup = startup_message(2, [("user", "c2345678a"), ("database", "app")]);
        let parameters = vec![
            ("user".to_owned(), "c2345678a".to_owned()),
            ("database".to_owned(), "app".to_owned()),
        ];
        let cases = [
            (ssl_request(), Packet::SslRequest),
            (gssenc_request(), Packet::GssEncRequest),
            (
                cancel_request(7, &[1; 32]),
                Packet::Cancel {
                    process_id: 7,
                    secret: Bytes::from_static(&[1; 32]),
                },
            ),
            (startup, Packet::Startup { minor: 2, parameters }),
        ];
        for (bytes, packet) in cases {
            assert_eq!(read(&bytes), Ok(Some((packet, bytes.len()))));
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(None), "{end} bytes of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_postgresql_refuses_is_refused() {
        let head = |length: u32, code: u32| [length.to_be_bytes(), code.to_be_bytes()].concat();
        assert_eq!(read(&head(7, 0)), Err(StartupError::Length(7)));
        assert_eq!(read(&head(10_001, 0)), Err(StartupError::Length(10_001)));
        assert_eq!(
            read(&head(8, 2 << 16)),
            Err(StartupError::Version { major: 2, minor: 0 })
        );
        assert_eq!(read(&cancel_request(1, &[1; 3])), Err(StartupError::Secret(3)));
        assert_eq!(read(&cancel_request(1, &[1; 257])), Err(StartupError::Secret(257)));
        let unterminated = [&13u32.to_be_bytes()[..], &196_608u32.to_be_bytes(), b"user\0"].concat();
        assert_eq!(
            read(&unterminated),
            Err(StartupError::Malformed(Malformed("parameter value")))
        );
        let not_utf8 = [&16u32.to_be_bytes()[..], &196_608u32.to_be_bytes(), b"user\0\xff\0\0"].concat();
        assert_eq!(read(&not_utf8), Err(StartupError::NotUtf8("user".into())));
    }
}
