//! The PROXY protocol's header: what a proxy writes is read as meant, byte by byte as asked for, and nothing beyond it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test: to panic is to fail

use std::net::{IpAddr, SocketAddr};

use hoop_proto::proxy_protocol::{Origin, Progress, ProxyError, V1_MAX_BYTES, V2_MAX_BYTES, read};
use proptest::prelude::*;

/// Reads as a driver does: only what is asked for. Answers the origin and how many bytes were taken.
fn drive(stream: &[u8]) -> Result<(Origin, usize), ProxyError> {
    let mut taken = 0;
    loop {
        match read(&stream[..taken])? {
            Progress::Header(origin) => return Ok((origin, taken)),
            Progress::Need(more) => {
                assert!(more > 0, "it waits for nothing at {taken}");
                taken += more;
                assert!(taken <= V2_MAX_BYTES, "it asks for {taken} bytes");
                if taken > stream.len() {
                    return Err(ProxyError::Malformed("the test's stream is over"));
                }
            }
        }
    }
}

fn version_1(source: SocketAddr, target: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), target.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), target.port()).into_bytes()
}

fn version_2(source: SocketAddr, target: SocketAddr, tlvs: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for address in [source.ip(), target.ip()] {
        match address {
            IpAddr::V4(address) => body.extend(address.octets()),
            IpAddr::V6(address) => body.extend(address.octets()),
        }
    }
    body.extend(source.port().to_be_bytes());
    body.extend(target.port().to_be_bytes());
    body.extend(tlvs);
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice(), &[family], &length, &body].concat()
}

fn pair() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = (any::<[u8; 4]>(), any::<u16>(), any::<[u8; 4]>(), any::<u16>())
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    let v6 = (any::<[u8; 16]>(), any::<u16>(), any::<[u8; 16]>(), any::<u16>())
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn either_version_is_read_as_written_and_nothing_after_it(
        (source, target) in pair(),
        tlvs in prop::collection::vec(any::<u8>(), 0..300),
        after in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        for header in [version_1(source, target), version_2(source, target, &tlvs)] {
            let stream = [header.clone(), after.clone()].concat();
            prop_assert_eq!(drive(&stream), Ok((Origin::Client(source), header.len())));
        }
    }

    #[test]
    fn any_bytes_are_a_header_an_error_or_a_bounded_question(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..16) {
        for prefix in [b"".as_slice(), b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"] {
            let prefix = &prefix[..prefix.len().saturating_sub(cut)];
            let _ = drive(&[prefix, &bytes].concat());
        }
    }

    #[test]
    fn a_fault_in_a_header_never_panics((source, target) in pair(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for mut header in [version_1(source, target), version_2(source, target, b"")] {
            let at = at.index(header.len());
            header[at] = byte;
            let _ = drive(&header);
        }
    }
}

#[test]
fn a_proxy_that_speaks_for_itself_names_nobody() {
    let own = [
        b"PROXY UNKNOWN\r\n".as_slice(),
        b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x03abc",
        b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0",
    ];
    for header in own {
        assert_eq!(drive(header), Ok((Origin::Proxy, header.len())), "{header:?}");
    }
}

#[test]
fn what_is_no_header_is_refused_as_soon_as_that_is_known() {
    let wrong = [
        b"GET / HTTP/1.1\r\n".as_slice(),
        b"\0\0\0\x08\x04\xd2\x16\x2f.......",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        b"PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY \n\nTCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c............",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b...........",
    ];
    for header in wrong {
        assert!(drive(header).is_err(), "{header:?}");
    }
    let endless = [b"PROXY TCP6 ".as_slice(), &[b'1'; 200]].concat();
    assert!(matches!(read(&endless[..V1_MAX_BYTES]), Err(ProxyError::Malformed(_))));
    assert_eq!(
        drive(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"),
        Err(ProxyError::TooLong(16 + 65_535))
    );
}
