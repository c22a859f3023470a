//! `HTTPS_PROXY` and `NO_PROXY`: whether the link goes through an HTTP proxy, and the CONNECT that opens it (RFC 9110,
//! section 9.3.6).

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;
use zeroize::Zeroizing;

/// Longest answer to CONNECT that is read, in bytes.
const ANSWER_MAX_BYTES: usize = 16 * 1_024;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProxyError {
    #[error("HTTPS_PROXY is no URL as http://proxy.example:3128")]
    Malformed,
    #[error("HTTPS_PROXY has the scheme \"{0}\"; only http:// proxies are supported")]
    Scheme(String),
    #[error("the proxy closed the connection while it was asked for the tunnel")]
    Closed,
    #[error("the proxy's answer is not HTTP")]
    NotHttp,
    #[error("the proxy refused the tunnel with status {0}")]
    Refused(u16),
}

/// A proxy to go through.
#[derive(Clone)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    authorization: Option<Zeroizing<String>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

/// The proxy that the environment wants for `host`, if any. Lower-case names win, as curl has it.
pub fn choose(host: &str, port: u16, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>, ProxyError> {
    let either = |lower: &str, upper: &str| {
        variable(lower)
            .or_else(|| variable(upper))
            .filter(|value| !value.is_empty())
    };
    let Some(proxy) = either("https_proxy", "HTTPS_PROXY") else {
        return Ok(None);
    };
    let exceptions = either("no_proxy", "NO_PROXY").unwrap_or_default();
    if exceptions
        .split(',')
        .any(|exception| excepts(exception.trim(), host, port))
    {
        return Ok(None);
    }
    parse(&proxy).map(Some)
}

fn parse(text: &str) -> Result<Proxy, ProxyError> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url = Url::parse(&with_scheme).map_err(|_| ProxyError::Malformed)?;
    if url.scheme() != "http" {
        return Err(ProxyError::Scheme(url.scheme().to_owned()));
    }
    let host = url
        .host_str()
        .ok_or(ProxyError::Malformed)?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let authorization = (!url.username().is_empty()).then(|| {
        let decode = |part: &str| {
            url::form_urlencoded::parse(format!("x={}", part.replace('+', "%2B")).as_bytes())
                .next()
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        let pair = Zeroizing::new(format!(
            "{}:{}",
            decode(url.username()),
            decode(url.password().unwrap_or_default())
        ));
        Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pair.as_bytes()))
    });
    Ok(Proxy {
        host,
        port: url.port_or_known_default().unwrap_or(80),
        authorization,
    })
}

/// One entry of NO_PROXY: `*`, a name and all below it, an address, or a network.
fn excepts(exception: &str, host: &str, port: u16) -> bool {
    if exception.is_empty() {
        return false;
    }
    if exception == "*" {
        return true;
    }
    let address = host.parse::<IpAddr>();
    if let Ok(address) = address {
        // The allow-list's grammar fits networks and single addresses alike.
        let with_port = if exception.contains("]:") || (exception.contains('.') && exception.contains(':')) {
            exception.to_owned()
        } else {
            format!("[{}]:*", exception.trim_start_matches('[').trim_end_matches(']'))
        };
        return with_port
            .parse::<crate::targets::allow::Rule>()
            .is_ok_and(|rule| rule.matches("", (address, port).into()));
    }
    let (name, only_port) = match exception.rsplit_once(':') {
        Some((name, digits)) => (name, digits.parse::<u16>().ok()),
        None => (exception, None),
    };
    if only_port.is_some_and(|only| only != port) {
        return false;
    }
    let name = name
        .trim_start_matches("*.")
        .trim_start_matches('.')
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == name || host.strip_suffix(&name).is_some_and(|rest| rest.ends_with('.'))
}

/// Asks the proxy at the other end of `stream` for a tunnel. The answer is read byte by byte up to its blank line, so
/// nothing of what follows is taken.
pub async fn tunnel(stream: &mut TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<(), ProxyError> {
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let mut request = Zeroizing::new(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"));
    if let Some(authorization) = &proxy.authorization {
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(authorization);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|_| ProxyError::Closed)?;
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_MAX_BYTES {
            return Err(ProxyError::NotHttp);
        }
        answer.push(stream.read_u8().await.map_err(|_| ProxyError::Closed)?);
    }
    match status(&answer) {
        Some(200..=299) => Ok(()),
        Some(other) => Err(ProxyError::Refused(other)),
        None => Err(ProxyError::NotHttp),
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer).ok()?.lines().next()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn chosen(host: &str, variables: &[(&str, &str)]) -> Option<String> {
        choose(host, 8010, |name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
        .unwrap()
        .map(|proxy| format!("{}:{}", proxy.host, proxy.port))
    }

    #[test]
    fn the_environment_decides() {
        assert_eq!(chosen("gw", &[]), None);
        assert_eq!(
            chosen("gw", &[("HTTPS_PROXY", "http://p:3128")]).as_deref(),
            Some("p:3128")
        );
        assert_eq!(
            chosen("gw", &[("https_proxy", "q:1"), ("HTTPS_PROXY", "p:3128")]).as_deref(),
            Some("q:1")
        );
    }

    #[test]
    fn no_proxy_takes_names_below_addresses_and_networks() {
        let excepted = |host: &str, list: &str| chosen(host, &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", list)]).is_none();
        for (host, list, expected) in [
            ("gw.corp.example", "corp.example", true),
            ("gw.corp.example", ".corp.example", true),
            ("gw.corp.example", "*.corp.example", true),
            ("gwcorp.example", "corp.example", false),
            ("gw.corp.example", "other, *", true),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("::1", "::1", true),
            ("gw", "gw:9999", false),
            ("gw", "gw:8010", true),
        ] {
            assert_eq!(excepted(host, list), expected, "{host} with {list}");
        }
    }

    #[test]
    fn only_plain_proxies_are_known_and_a_password_is_not_shown() {
        assert_eq!(parse("socks5://p:1").unwrap_err(), ProxyError::Scheme("socks5".into()));
        let proxy = parse("http://user:p%40ss@p:1").unwrap();
        assert!(!format!("{proxy:?}").contains("p@ss"));
        let expected = base64::engine::general_purpose::STANDARD.encode("user:p@ss");
        assert_eq!(proxy.authorization.unwrap().as_str(), expected);
    }

    async fn asked(answer: &'static str) -> (Result<(), ProxyError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![];
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let proxy = parse("http://u:p@x:1").unwrap();
        let result = tunnel(&mut stream, &proxy, "::1", 8010).await;
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_a_refusal_is_told() {
        let (result, request) = asked("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n").await;
        result.unwrap();
        assert!(request.starts_with("CONNECT [::1]:8010 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("Proxy-Authorization: Basic dTpw\r\n"), "{request}");
        assert_eq!(
            asked("HTTP/1.1 407 Auth\r\n\r\n").await.0,
            Err(ProxyError::Refused(407))
        );
        assert_eq!(asked("SSH-2.0-x\r\n\r\n").await.0, Err(ProxyError::NotHttp));
        assert_eq!(asked("HTTP").await.0, Err(ProxyError::Closed));
    }
}
