//! `HOOP_KEY`: who this agent is, where its gateway listens, and which authority signs the gateway's certificate.
//!
//! Owns the URL's grammar and nothing else. The token in it is a secret: it is never shown by `Debug`, an error or a log.

use std::fmt;

use url::Url;
use zeroize::Zeroizing;

/// Longest key that is read, in bytes: a token is about 300, a pin 64.
pub const KEY_MAX_BYTES: usize = 4_096;
/// The gateway's link port where the key names none.
pub const LINK_DEFAULT_PORT: u16 = 8010;
/// Most pins that one key may carry: the present authority, the next one, and some room.
pub const PINS_MAX: usize = 8;
/// A DNS label's limit (RFC 1035, section 2.3.4), which agent names follow.
const AGENT_NAME_MAX_BYTES: usize = 63;

/// SHA-256 of an authority's DER-encoded SubjectPublicKeyInfo (RFC 5280, section 4.1).
pub type Pin = [u8; 32];

/// How the agent's process is run, as the one who registered it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A process of its own that serves everything in its network.
    Standard,
    /// Beside one application, within its unit of deployment.
    Embedded,
}

/// A parsed `HOOP_KEY`.
#[derive(Clone)]
pub struct AgentKey {
    pub agent: String,
    pub host: String,
    pub port: u16,
    pub mode: Mode,
    /// Empty: the gateway's certificate comes from a public authority.
    pub pins: Vec<Pin>,
    token: Zeroizing<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("the agent's key is empty; set HOOP_KEY (or HOOP_KEY_FILE) to the key shown when the agent was registered")]
    Empty,
    #[error("the agent's key is longer than {KEY_MAX_BYTES} bytes; is HOOP_KEY_FILE the right file?")]
    TooLong,
    #[error("the agent's key is no URL; it looks like grpcs://<agent>:<token>@<host>:8010?mode=standard")]
    NotUrl,
    #[error("the agent's key begins with \"{0}://\"; it must begin with grpcs://")]
    Scheme(String),
    #[error("the agent's key names no host")]
    NoHost,
    #[error("the agent's key names no agent before the colon")]
    NoAgent,
    #[error("the agent name \"{0}\" in the key must be a DNS label: a-z, 0-9 and hyphens, at most 63")]
    AgentName(String),
    #[error("the agent's key holds no token between the agent's name and the @")]
    NoToken,
    #[error("the token in the agent's key holds characters that no token has; copy the key again")]
    Token,
    #[error("mode \"{0}\" in the agent's key is unknown; it is standard or embedded")]
    Mode(String),
    #[error("a pin in the agent's key is not the 64 hexadecimal digits of a SHA-256")]
    Pin,
    #[error("the agent's key holds more than {PINS_MAX} pins")]
    TooManyPins,
    #[error("the agent's key has a parameter \"{0}\" that this release does not know; upgrade the agent")]
    UnknownParameter(String),
    #[error("the agent's key has a path after the port, which means nothing; copy the key again")]
    Path,
}

impl AgentKey {
    /// Parses a key; surrounding white space is ignored, for keys come from files and from terminals.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > KEY_MAX_BYTES {
            return Err(KeyError::TooLong);
        }
        let url = Url::parse(text).map_err(|_| KeyError::NotUrl)?;
        if url.scheme() != "grpcs" {
            return Err(KeyError::Scheme(url.scheme().to_owned()));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(KeyError::NoHost)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if !matches!(url.path(), "" | "/") {
            return Err(KeyError::Path);
        }
        let agent = url.username().to_owned();
        if agent.is_empty() {
            return Err(KeyError::NoAgent);
        }
        if !is_dns_label(&agent) {
            return Err(KeyError::AgentName(agent));
        }
        let token = Zeroizing::new(url.password().unwrap_or_default().to_owned());
        if token.is_empty() {
            return Err(KeyError::NoToken);
        }
        if !token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        {
            return Err(KeyError::Token);
        }
        let mut mode = Mode::Standard;
        let mut pins = Vec::new();
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "mode" => {
                    mode = match value.as_ref() {
                        "standard" => Mode::Standard,
                        "embedded" => Mode::Embedded,
                        other => return Err(KeyError::Mode(other.to_owned())),
                    }
                }
                "pin" => {
                    for pin in value.split(',') {
                        pins.push(parse_pin(pin)?);
                    }
                }
                other => return Err(KeyError::UnknownParameter(other.to_owned())),
            }
        }
        if pins.len() > PINS_MAX {
            return Err(KeyError::TooManyPins);
        }
        Ok(Self {
            agent,
            host,
            port: url.port().unwrap_or(LINK_DEFAULT_PORT),
            mode,
            pins,
            token,
        })
    }

    /// The signed token, for the link's `authorization` metadata only.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentKey")
            .field("agent", &self.agent)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("mode", &self.mode)
            .field("pins", &self.pins.len())
            .field("token", &"…")
            .finish()
    }
}

fn parse_pin(text: &str) -> Result<Pin, KeyError> {
    let mut pin = [0; 32];
    hex::decode_to_slice(text.trim(), &mut pin).map_err(|_| KeyError::Pin)?;
    Ok(pin)
}

fn is_dns_label(name: &str) -> bool {
    name.len() <= AGENT_NAME_MAX_BYTES
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn a_whole_key_is_read() {
        let key = AgentKey::parse(&format!(
            "grpcs://prod-eu:abc.DEF_-1@gw.example.com:9010?mode=embedded&pin={PIN}"
        ))
        .unwrap();
        assert_eq!(
            (key.agent.as_str(), key.host.as_str(), key.port),
            ("prod-eu", "gw.example.com", 9010)
        );
        assert_eq!(
            (key.mode, key.pins.len(), key.token()),
            (Mode::Embedded, 1, "abc.DEF_-1")
        );
        assert_eq!(key.pins[0][..4], [0, 0x11, 0x22, 0x33]);
    }

    #[test]
    fn port_mode_and_pin_have_defaults() {
        let key = AgentKey::parse(" grpcs://a:t@[::1] \n").unwrap();
        assert_eq!(
            (key.host.as_str(), key.port, key.mode, key.pins.len()),
            ("::1", 8010, Mode::Standard, 0)
        );
    }

    #[test]
    fn several_pins_may_be_given_in_either_form() {
        let key = AgentKey::parse(&format!("grpcs://a:t@h?pin={PIN},{PIN}&pin={PIN}")).unwrap();
        assert_eq!(key.pins.len(), 3);
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        let cases = [
            ("", KeyError::Empty),
            ("hello", KeyError::NotUrl),
            ("https://a:t@h", KeyError::Scheme("https".into())),
            ("grpcs://h:8010", KeyError::NoAgent),
            ("grpcs://a@h", KeyError::NoToken),
            ("grpcs://Agent:t@h", KeyError::AgentName("Agent".into())),
            ("grpcs://a:t%20t@h", KeyError::Token),
            ("grpcs://a:t@h?mode=fast", KeyError::Mode("fast".into())),
            ("grpcs://a:t@h?pin=12", KeyError::Pin),
            ("grpcs://a:t@h?colour=red", KeyError::UnknownParameter("colour".into())),
            ("grpcs://a:t@h/path", KeyError::Path),
        ];
        for (text, expected) in cases {
            assert_eq!(AgentKey::parse(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn the_token_is_in_no_debug_output_and_in_no_error() {
        let key = AgentKey::parse("grpcs://a:s3cr3tt0ken@h").unwrap();
        assert!(!format!("{key:?}").contains("s3cr3tt0ken"));
        for text in [
            "grpcs://a:s3cr3tt0ken@h?mode=x",
            "ftp://a:s3cr3tt0ken@h",
            "grpcs://a:s3cr3tt0ken",
            "s3cr3tt0ken",
        ] {
            let error = AgentKey::parse(text).unwrap_err();
            assert!(!error.to_string().contains("s3cr3tt0ken"), "{error}");
        }
    }
}
