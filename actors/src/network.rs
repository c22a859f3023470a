//! `Network`: an address with a prefix length, as lists of networks in configurations hold them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// `10.0.0.0/8`, `fd00::/8`; an address alone is a network of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix_bits: u8,
}

/// It is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address with a prefix length, as 10.0.0.0/8 or fd00::/8")]
pub struct NoNetwork;

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (base, prefix) = text
            .split_once('/')
            .map_or((text, None), |(base, prefix)| (base, Some(prefix)));
        let base: IpAddr = base.parse().map_err(|_| NoNetwork)?;
        let prefix_bits = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| NoNetwork)?,
            None => bits(base),
        };
        if prefix_bits > bits(base) {
            return Err(NoNetwork);
        }
        Ok(Self { base, prefix_bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_bits)
    }
}

impl Network {
    /// Whether this very address is in it: one of the other family never is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let host_bits = u32::from(bits(self.base).saturating_sub(self.prefix_bits));
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                (base.to_bits() ^ address.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                (base.to_bits() ^ address.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("192.168.7.9/25", "192.168.7.0", "192.168.7.128"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::1", "::1", "::2"),
        ] {
            assert!(contains(network, inside), "{inside} is in {network}");
            assert!(!contains(network, outside), "{outside} is not in {network}");
        }
        assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "2001:db8::1"));
    }

    #[test]
    fn what_is_no_network_is_none() {
        for text in [
            "",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0/8",
            "example.com",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "1.1.1.1/8/8",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NoNetwork), "{text:?}");
        }
    }
}
