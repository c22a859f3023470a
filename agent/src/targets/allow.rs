//! Which targets this agent may be sent to. Its own configuration decides; no gateway can widen it.
//!
//! A rule is checked after DNS, on the very address that is then dialled, so that a name that is re-pointed cannot slip
//! past it. Link-local and metadata addresses are reached only by a rule that names their network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use hoop_actors::network::Network;

/// Most rules in one list: a list is read by people.
pub const RULES_MAX: usize = 1_024;

/// Networks that hand out the machine's own credentials, or that reach beyond one target. `169.254.0.0/16` holds the
/// metadata address of most clouds; the others are Alibaba's, Oracle's and the IPv6 one of AWS.
const GUARDED: [&str; 9] = [
    "169.254.0.0/16:*",
    "fe80::/10:*",
    "100.100.100.200/32:*",
    "192.0.0.192/32:*",
    "fd00:ec2::254/128:*",
    "224.0.0.0/4:*",
    "ff00::/8:*",
    "255.255.255.255/32:*",
    "0.0.0.0/8:*",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Network(Network),
    Name(String),
    /// `*.db.internal`: any name below it, not the name itself.
    Below(String),
    Any,
}

/// One rule: hosts and ports, as `10.0.0.0/8:5432`, `*.db.internal:5432`, `[fd00::/8]:5000-5999`, `db.internal:*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    hosts: Hosts,
    first_port: u16,
    last_port: u16,
    text: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    #[error("\"{0}\" has no port; write host:port, or host:* for every port")]
    NoPort(String),
    #[error("\"{0}\" has a port that is neither a number, a range (5000-5999) nor *")]
    Port(String),
    #[error("\"{0}\" has a network that is no address with a prefix length, as 10.0.0.0/8")]
    Network(String),
    #[error("\"{0}\" has a host name that is no DNS name; * stands only as the whole first label")]
    Name(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let text = text.trim();
        let (host, ports) = text
            .rsplit_once(':')
            .ok_or_else(|| RuleError::NoPort(text.to_owned()))?;
        let (first_port, last_port) = parse_ports(ports).ok_or_else(|| {
            // An address without brackets ends in something that may look like a port.
            if host.contains(':') && !host.starts_with('[') && !host.contains('/') {
                RuleError::NoPort(text.to_owned())
            } else {
                RuleError::Port(text.to_owned())
            }
        })?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let hosts = if host == "*" {
            Hosts::Any
        } else if let Ok(network) = host.parse() {
            Hosts::Network(network)
        } else if host.contains('/') {
            return Err(RuleError::Network(text.to_owned()));
        } else {
            let (below, name) = match host.strip_prefix("*.") {
                Some(rest) => (true, normal_name(rest)),
                None => (false, normal_name(host)),
            };
            if !is_dns_name(&name) {
                return Err(RuleError::Name(text.to_owned()));
            }
            if below { Hosts::Below(name) } else { Hosts::Name(name) }
        };
        Ok(Self {
            hosts,
            first_port,
            last_port,
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rule {
    fn matches_address(&self, address: IpAddr) -> bool {
        match &self.hosts {
            Hosts::Network(network) => views(address).into_iter().flatten().any(|view| network.contains(view)),
            _ => false,
        }
    }

    /// Does the rule speak of `address`, which `host` resolved to?
    #[must_use]
    pub fn matches(&self, host: &str, address: SocketAddr) -> bool {
        if !(self.first_port..=self.last_port).contains(&address.port()) {
            return false;
        }
        match &self.hosts {
            Hosts::Any => true,
            Hosts::Network(_) => self.matches_address(address.ip()),
            Hosts::Name(name) => *name == normal_name(host),
            Hosts::Below(name) => normal_name(host)
                .strip_suffix(name.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        }
    }

    fn names_network(&self) -> bool {
        matches!(self.hosts, Hosts::Network(_))
    }
}

/// Why a target is not dialled: the rule that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forbidden {
    /// A rule of `deny`.
    Denied(String),
    /// No rule of `allow`.
    NotAllowed,
    /// A link-local, metadata, multicast or unspecified address without a rule that names its network.
    Guarded(String),
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(rule) => write!(f, "its rule deny = \"{rule}\""),
            Self::NotAllowed => f.write_str("its list allow, which has no rule for this target"),
            Self::Guarded(rule) => write!(
                f,
                "its built-in rule against \"{rule}\" (link-local and metadata addresses)"
            ),
        }
    }
}

/// The agent's lists. An empty `allow` means everything but the guarded networks.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    guarded: Vec<Rule>,
}

impl AllowList {
    #[must_use]
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>) -> Self {
        // Each built-in rule parses; a test holds them to it.
        let guarded = GUARDED.iter().filter_map(|text| text.parse().ok()).collect();
        Self { allow, deny, guarded }
    }

    /// May `address`, which `host` resolved to, be dialled? Gives the rule that forbids it otherwise.
    pub fn check(&self, host: &str, address: SocketAddr) -> Result<(), Forbidden> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(host, address)) {
            return Err(Forbidden::Denied(rule.to_string()));
        }
        if self
            .allow
            .iter()
            .any(|rule| rule.names_network() && rule.matches(host, address))
        {
            return Ok(());
        }
        if let Some(rule) = self.guarded.iter().find(|rule| rule.matches_address(address.ip())) {
            let shown = rule.to_string();
            return Err(Forbidden::Guarded(
                shown.strip_suffix(":*").unwrap_or(&shown).to_owned(),
            ));
        }
        if address.ip().is_unspecified() {
            return Err(Forbidden::Guarded("::".to_owned()));
        }
        if self.allow.is_empty() || self.allow.iter().any(|rule| rule.matches(host, address)) {
            Ok(())
        } else {
            Err(Forbidden::NotAllowed)
        }
    }
}

/// An address as it is and, where it carries an IPv4 address inside (mapped, RFC 4291; NAT64, RFC 6052), that one.
fn views(address: IpAddr) -> [Option<IpAddr>; 2] {
    let inner = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().or_else(|| nat64(v6)).map(IpAddr::V4),
    };
    [Some(address), inner]
}

fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    const WELL_KNOWN_PREFIX: u128 = 0x0064_ff9b_0000_0000_0000_0000_0000_0000;
    let bits = u128::from(address);
    (bits & !0xffff_ffff == WELL_KNOWN_PREFIX).then(|| Ipv4Addr::from((bits & 0xffff_ffff) as u32))
}

fn parse_ports(text: &str) -> Option<(u16, u16)> {
    if text == "*" {
        return Some((0, u16::MAX));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

fn normal_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// `cases`: host, address it resolved to, whether it may be dialled.
    fn check(allow: &[&str], deny: &[&str], cases: &[(&str, &str, bool)]) {
        let list = AllowList::new(rules(allow), rules(deny));
        for (host, address, allowed) in cases {
            let verdict = list.check(host, address.parse().unwrap());
            assert_eq!(
                verdict.is_ok(),
                *allowed,
                "{host} {address}: {verdict:?} with allow {allow:?} deny {deny:?}"
            );
        }
    }

    #[test]
    fn every_built_in_rule_parses() {
        assert_eq!(AllowList::new(vec![], vec![]).guarded.len(), GUARDED.len());
    }

    #[test]
    fn without_a_list_everything_but_link_local_and_metadata_is_allowed() {
        check(
            &[],
            &[],
            &[
                ("db", "10.1.2.3:5432", true),
                ("localhost", "127.0.0.1:5432", true),
                ("localhost", "[::1]:5432", true),
                ("meta", "169.254.169.254:80", false),
                ("meta", "[fe80::1]:80", false),
                ("meta", "[::ffff:169.254.169.254]:80", false),
                ("meta", "[64:ff9b::a9fe:a9fe]:80", false),
                ("meta", "[fd00:ec2::254]:80", false),
                ("meta", "100.100.100.200:80", false),
                ("any", "0.0.0.0:5432", false),
                ("any", "[::]:5432", false),
                ("many", "224.0.0.1:5432", false),
            ],
        );
    }

    #[test]
    fn a_network_rule_is_checked_on_the_address() {
        check(
            &["10.0.0.0/8:5432", "[fd00::/8]:5000-5999"],
            &[],
            &[
                ("db.example", "10.200.0.1:5432", true),
                ("db.example", "10.200.0.1:5433", false),
                ("db.example", "11.0.0.1:5432", false),
                ("db.example", "[fd12::1]:5432", true),
                ("db.example", "[fd12::1]:6000", false),
                ("db.example", "[::ffff:10.0.0.1]:5432", true),
            ],
        );
    }

    #[test]
    fn a_name_rule_does_not_reach_metadata_addresses_however_the_name_resolves() {
        check(
            &["*.db.internal:5432", "one.example:*"],
            &[],
            &[
                ("a.db.internal", "10.0.0.1:5432", true),
                ("A.B.DB.internal.", "10.0.0.1:5432", true),
                ("db.internal", "10.0.0.1:5432", false),
                ("evildb.internal", "10.0.0.1:5432", false),
                ("a.db.internal", "169.254.169.254:5432", false),
                ("one.example", "10.0.0.1:1", true),
                ("two.one.example", "10.0.0.1:1", false),
            ],
        );
    }

    #[test]
    fn a_rule_that_names_the_network_opens_a_guarded_one_and_deny_always_wins() {
        check(
            &["169.254.10.0/24:5432"],
            &[],
            &[("db", "169.254.10.1:5432", true), ("db", "169.254.11.1:5432", false)],
        );
        check(
            &["*:5432"],
            &["10.0.0.5:*"],
            &[("db", "10.0.0.5:5432", false), ("db", "10.0.0.6:5432", true)],
        );
    }

    #[test]
    fn zero_length_prefixes_cover_their_whole_family() {
        check(
            &["0.0.0.0/0:5432"],
            &[],
            &[("db", "8.8.8.8:5432", true), ("db", "[2001:db8::1]:5432", false)],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("10.0.0.0/8", RuleError::NoPort("10.0.0.0/8".into())),
            ("10.0.0.0/33:5432", RuleError::Network("10.0.0.0/33:5432".into())),
            ("db:http", RuleError::Port("db:http".into())),
            ("db:9-1", RuleError::Port("db:9-1".into())),
            ("a.*.b:1", RuleError::Name("a.*.b:1".into())),
            (":5432", RuleError::Name(":5432".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Rule>().unwrap_err(), expected);
        }
    }

    #[test]
    fn a_refusal_names_the_rule() {
        let list = AllowList::new(vec![], rules(&["10.0.0.0/8:*"]));
        let denied = list.check("db", "10.1.1.1:5432".parse().unwrap()).unwrap_err();
        assert_eq!(denied.to_string(), "its rule deny = \"10.0.0.0/8:*\"");
        let guarded = list.check("db", "169.254.169.254:80".parse().unwrap()).unwrap_err();
        assert!(guarded.to_string().contains("169.254.0.0/16"), "{guarded}");
    }
}
