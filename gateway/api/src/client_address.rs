//! Whose request it is: the peer's address, or, behind trusted proxies, the one that they tell in `Forwarded` (RFC
//! 7239) or `X-Forwarded-For`.

use std::net::{IpAddr, SocketAddr};

use actix_web::HttpRequest;
use actix_web::http::header::{FORWARDED, HeaderMap, HeaderName, X_FORWARDED_FOR};
use hoop_actors::network::Network;

/// Proxies in a row that are looked at.
const HOPS_MAX: usize = 32;

/// The address that counts for delays after failed sign-ins, logs and records.
#[must_use]
pub fn client_address(request: &HttpRequest, trusted: &[Network]) -> Option<IpAddr> {
    let peer = request.peer_addr()?.ip().to_canonical();
    Some(told(peer, request.headers(), trusted))
}

/// Each proxy adds, at the end, whom it was asked by. The last one that is no trusted proxy is the client; what stands
/// before it is that client's own word. Where both headers are there and differ, one of them is not the proxy's, and
/// neither is believed.
fn told(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let trusts = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    if !trusts(peer) {
        return peer;
    }
    let last_untrusted = |name: HeaderName, node: fn(&str) -> Option<IpAddr>| {
        let values: Vec<&str> = headers.get_all(name).filter_map(|value| value.to_str().ok()).collect();
        let hops = values.iter().rev().flat_map(|value| value.rsplit(','));
        let mut nearest = None;
        for hop in hops.take(HOPS_MAX) {
            let Some(address) = node(hop.trim()) else { break };
            nearest = Some(address);
            if !trusts(address) {
                break;
            }
        }
        nearest
    };
    let forwarded = last_untrusted(FORWARDED, forwarded_for);
    let x_forwarded = last_untrusted(X_FORWARDED_FOR, node);
    match (forwarded, x_forwarded) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(told), _) | (None, Some(told)) => told,
        (None, None) => peer,
    }
}

/// `for` of one `Forwarded` element (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| node(value.trim()))?
    })
}

/// An address, with a port or not, in quotes or not; names and `unknown` are no address.
fn node(text: &str) -> Option<IpAddr> {
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_| text.trim_start_matches('[').trim_end_matches(']').parse());
    Some(address.ok()?.to_canonical())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn from(peer: &str, headers: &[(HeaderName, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        told(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_proxys_word_counts_and_only_for_the_last_hop_before_it() {
        let told_by = |peer, value| from(peer, &[(X_FORWARDED_FOR, value)]);
        assert_eq!(told_by("192.0.2.9", "203.0.113.1"), "192.0.2.9");
        assert_eq!(told_by("10.0.0.1", "203.0.113.1"), "203.0.113.1");
        assert_eq!(
            told_by("10.0.0.1", "1.1.1.1, 203.0.113.1"),
            "203.0.113.1",
            "the client's own header"
        );
        assert_eq!(
            told_by("10.0.0.1", "203.0.113.1, 10.0.0.2"),
            "203.0.113.1",
            "two proxies"
        );
        assert_eq!(told_by("10.0.0.1", "203.0.113.1, nonsense"), "10.0.0.1");
        assert_eq!(told_by("10.0.0.1", "[2001:db8::1]:443"), "2001:db8::1");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
        let two = [(X_FORWARDED_FOR, "1.1.1.1"), (X_FORWARDED_FOR, "203.0.113.1")];
        assert_eq!(from("10.0.0.1", &two), "203.0.113.1");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        for (value, client) in [
            ("for=203.0.113.1", "203.0.113.1"),
            ("proto=https; For=\"203.0.113.1:47011\" ;by=10.0.0.1", "203.0.113.1"),
            ("for=1.1.1.1, for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=unknown", "10.0.0.1"),
            ("for=203.0.113.1, for=_hidden", "10.0.0.1"),
        ] {
            assert_eq!(from("10.0.0.1", &[(FORWARDED, value)]), client, "{value}");
        }
    }

    #[test]
    fn where_the_headers_differ_neither_is_believed() {
        let both = |one, other| from("10.0.0.1", &[(FORWARDED, one), (X_FORWARDED_FOR, other)]);
        assert_eq!(both("for=203.0.113.1", "203.0.113.1"), "203.0.113.1");
        assert_eq!(both("for=1.1.1.1", "203.0.113.1"), "10.0.0.1");
    }
}
