//! The header with which a proxy says for whom it connects: PROXY protocol, version 1 and 2 (HAProxy,
//! doc/proxy-protocol.txt). It comes before everything else, before anybody has proved who they are, so it is read with
//! bounds, and never a byte beyond it is asked for: what follows belongs to the protocol itself.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Longest header of version 1, its CRLF included (section 2.1).
pub const V1_MAX_BYTES: usize = 107;
/// Longest header of version 2 that is read: addresses and a proxy's own TLVs. The format itself allows 65,551.
pub const V2_MAX_BYTES: usize = 4096;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_HEAD_BYTES: usize = 16;
/// `PROXY UNKNOWN` and CRLF: no header of either version is shorter.
const SHORTEST_BYTES: usize = 15;

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// At least so many more bytes belong to the header.
    Need(usize),
    /// The header is whole: exactly the bytes that were given.
    Header(Origin),
}

/// Where a proxied connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Client(SocketAddr),
    /// The proxy speaks for itself (a health check), or does not know.
    Proxy,
}

/// It is no PROXY header, or not one that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("no PROXY protocol header")]
    NoHeader,
    #[error("a PROXY protocol header that is malformed: {0}")]
    Malformed(&'static str),
    #[error("a PROXY protocol header of {0} bytes, more than are read")]
    TooLong(usize),
}

/// Reads a header, as far as it has come. `bytes` must be no longer than the answers so far asked for.
///
/// # Errors
/// `ProxyError`: whoever sent this is to be closed.
pub fn read(bytes: &[u8]) -> Result<Progress, ProxyError> {
    if begins(bytes, V2_SIGNATURE) {
        return version_2(bytes);
    }
    if begins(bytes, V1_SIGNATURE) {
        return version_1(bytes);
    }
    Err(ProxyError::NoHeader)
}

/// Whether one is the beginning of the other.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(byte, expected)| byte == expected)
}

/// Section 2.1: one line of text.
fn version_1(bytes: &[u8]) -> Result<Progress, ProxyError> {
    if bytes.len() < SHORTEST_BYTES {
        return Ok(Progress::Need(SHORTEST_BYTES - bytes.len()));
    }
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        if bytes.len() >= V1_MAX_BYTES || bytes.contains(&b'\n') {
            return Err(ProxyError::Malformed("the line does not end"));
        }
        return Ok(Progress::Need(
            if bytes.ends_with(b"\r") { 1 } else { 2 }.min(V1_MAX_BYTES - bytes.len()),
        ));
    };
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Malformed("it is no text"))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(Progress::Header(Origin::Proxy));
    }
    let mut word = || words.next().unwrap_or_default();
    let (source, target) = (word(), word());
    let (port, target_port) = (word(), word());
    if words.next().is_some() {
        return Err(ProxyError::Malformed("the line goes on"));
    }
    let address = |text: &str| {
        let address = IpAddr::from_str(text).ok()?;
        let fits = match family {
            "TCP4" => address.is_ipv4(),
            "TCP6" => address.is_ipv6(),
            _ => false,
        };
        fits.then_some(address)
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let plain = text == "0" || !text.starts_with('0');
        (digits && plain).then(|| text.parse::<u16>().ok()).flatten()
    };
    match (address(source), address(target), number(port), number(target_port)) {
        (Some(source), Some(_), Some(port), Some(_)) => {
            Ok(Progress::Header(Origin::Client(SocketAddr::new(source, port))))
        }
        _ => Err(ProxyError::Malformed("its addresses")),
    }
}

/// Section 2.2: a binary head, addresses by their family, then TLVs, which are passed over.
fn version_2(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let Some((head, body)) = bytes.split_at_checked(V2_HEAD_BYTES) else {
        // until it is known that it is no header of version 1, no more is asked for than that could have
        let wanted = if bytes.len() < SHORTEST_BYTES {
            SHORTEST_BYTES
        } else {
            V2_HEAD_BYTES
        };
        return Ok(Progress::Need(wanted - bytes.len()));
    };
    let [.., version_command, family, high, low] = *head else {
        return Err(ProxyError::NoHeader);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if V2_HEAD_BYTES + length > V2_MAX_BYTES {
        return Err(ProxyError::TooLong(V2_HEAD_BYTES + length));
    }
    let command = match version_command {
        0x20 | 0x21 => version_command & 0x0f,
        _ => return Err(ProxyError::Malformed("its version or command")),
    };
    if body.len() < length {
        return Ok(Progress::Need(length - body.len()));
    }
    if body.len() > length {
        return Err(ProxyError::Malformed("more than was asked for"));
    }
    // LOCAL: the rest is to be ignored
    if command == 0 {
        return Ok(Progress::Header(Origin::Proxy));
    }
    let short = ProxyError::Malformed("its addresses");
    match family {
        0x11 => {
            let (source, rest) = body.split_first_chunk::<4>().ok_or(short)?;
            let ([_, _, _, _, p1, p2, _, _], _) = rest.split_first_chunk::<8>().ok_or(short)?;
            let port = u16::from_be_bytes([*p1, *p2]);
            Ok(Progress::Header(Origin::Client(SocketAddr::from((*source, port)))))
        }
        0x21 => {
            let (source, rest) = body.split_first_chunk::<16>().ok_or(short)?;
            let (_target, rest) = rest.split_first_chunk::<16>().ok_or(short)?;
            let ([p1, p2, _, _], _) = rest.split_first_chunk::<4>().ok_or(short)?;
            let port = u16::from_be_bytes([*p1, *p2]);
            Ok(Progress::Header(Origin::Client(SocketAddr::from((*source, port)))))
        }
        // AF_UNSPEC
        0x00 => Ok(Progress::Header(Origin::Proxy)),
        _ => Err(ProxyError::Malformed("neither TCP over IPv4 nor over IPv6")),
    }
}
