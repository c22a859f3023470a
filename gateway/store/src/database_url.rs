//! `DATABASE_URL`: reads a libpq connection URI and says in words what is wrong with it.
//!
//! It must not open a connection or a file. Source: PostgreSQL manual, 34.1.1.2 "Connection URIs" and 34.19 "SSL
//! Support". Deviations, both towards safety: over TCP `sslmode` is `verify-full` unless told otherwise, and an
//! unknown key is an error that names it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use zeroize::Zeroizing;

/// PostgreSQL's port where the URL names none.
pub const DEFAULT_PORT: u16 = 5432;
/// How long one host may take to accept a connection, where the URL has no `connect_timeout`.
pub const DEFAULT_CONNECT_TIMEOUT_S: u64 = 5;
const MAX_CONNECT_TIMEOUT_S: u64 = 60;
const MAX_HOSTS: usize = 16;
const DEFAULT_APPLICATION_NAME: &str = "hoop-gateway";
const KNOWN_KEYS: &str = "host, port, user, password, dbname, sslmode, sslrootcert, sslcert, sslkey, \
     application_name, connect_timeout, target_session_attrs, channel_binding";

/// What is wrong with a connection URL. Never shows a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DatabaseUrlError {
    #[error("the database URL must begin with postgres:// or postgresql://")]
    Scheme,
    #[error("the database URL names no host: write postgres://user@host/database, or ?host=/folder for a unix socket")]
    NoHost,
    #[error("the database URL mixes unix sockets and TCP hosts")]
    MixedHosts,
    #[error("the database URL names more than {MAX_HOSTS} hosts")]
    TooManyHosts,
    #[error("the database URL gives {ports} ports for {hosts} hosts: one for each, or one for all")]
    PortCount { ports: usize, hosts: usize },
    #[error("the database URL has a bad percent-encoding in its {part}")]
    Encoding { part: &'static str },
    #[error("the database URL's {key} is {value:?}; it must be {expected}")]
    Value {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("the database URL's key {0:?} is not known; known are: {KNOWN_KEYS}")]
    UnknownKey(String),
    #[error("the database URL has {given} without {missing}")]
    Incomplete { given: &'static str, missing: &'static str },
}

/// libpq's `sslmode`. `allow` (plain first) is not offered: it protects from nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Plain text.
    Disable,
    /// TLS where the server has it, unverified, plain text otherwise.
    Prefer,
    /// TLS, unverified unless `sslrootcert` is given, then as `VerifyCa`.
    Require,
    /// TLS, the certificate signed by a trusted root.
    VerifyCa,
    /// TLS, signed by a trusted root and made for the host's name.
    VerifyFull,
}

/// Which roots a certificate is verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The machine's own (`sslrootcert=system`, and the default).
    System,
    /// The certificates of a PEM file.
    File(PathBuf),
}

/// One server address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Tcp(String),
    /// The folder that holds `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

/// Which of several servers will do (libpq's `target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttrs {
    Any,
    ReadWrite,
}

/// A parsed connection URL. Its `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    hosts: Vec<(Host, u16)>,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    database: Option<String>,
    application_name: String,
    connect_timeout: Duration,
    ssl_mode: SslMode,
    roots: Option<Roots>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    session_attrs: SessionAttrs,
    channel_binding: tokio_postgres::config::ChannelBinding,
}

impl DatabaseUrl {
    /// Reads `postgres://[user[:password]@][host[:port],…][/database][?key=value&…]`.
    ///
    /// # Errors
    /// `DatabaseUrlError`, naming the part or key.
    pub fn parse(text: &str) -> Result<Self, DatabaseUrlError> {
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or(DatabaseUrlError::Scheme)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, hostspec) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(u, h)| (Some(u), h));

        let mut draft = Draft::default();
        if let Some(userinfo) = userinfo {
            let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
            draft.user = non_empty(decode(user, "user")?);
            draft.password = password.map(|p| decode(p, "password")).transpose()?.map(Zeroizing::new);
        }
        draft.read_hostspec(hostspec)?;
        draft.database = non_empty(decode(path, "database name")?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            draft.read_key(&decode(key, "query")?, decode(value, "query")?)?;
        }
        draft.finish()
    }

    /// A URL for a server behind a unix socket in `folder`.
    #[must_use]
    pub fn unix(folder: PathBuf, user: &str, database: &str) -> Self {
        Self {
            hosts: vec![(Host::Unix(folder), DEFAULT_PORT)],
            user: Some(user.to_owned()),
            password: None,
            database: Some(database.to_owned()),
            application_name: DEFAULT_APPLICATION_NAME.to_owned(),
            connect_timeout: Duration::from_secs(DEFAULT_CONNECT_TIMEOUT_S),
            ssl_mode: SslMode::Disable,
            roots: None,
            client_certificate: None,
            session_attrs: SessionAttrs::Any,
            channel_binding: tokio_postgres::config::ChannelBinding::Prefer,
        }
    }

    /// The same server, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self {
            database: Some(database.to_owned()),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn hosts(&self) -> &[(Host, u16)] {
        &self.hosts
    }

    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    #[must_use]
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    #[must_use]
    pub const fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// The roots to verify with: `None` where the mode verifies nothing.
    #[must_use]
    pub fn roots(&self) -> Option<Roots> {
        match self.ssl_mode {
            SslMode::Disable | SslMode::Prefer => None,
            SslMode::Require => self.roots.clone(),
            SslMode::VerifyCa | SslMode::VerifyFull => Some(self.roots.clone().unwrap_or(Roots::System)),
        }
    }

    /// PEM files of the client's certificate and of its key.
    #[must_use]
    pub const fn client_certificate(&self) -> Option<&(PathBuf, PathBuf)> {
        self.client_certificate.as_ref()
    }

    #[must_use]
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// A URI for psql and other libpq programs. Holds no password.
    #[must_use]
    pub fn public_uri(&self) -> String {
        let mut hosts = Vec::new();
        let mut ports = Vec::new();
        for (host, port) in &self.hosts {
            hosts.push(match host {
                Host::Tcp(name) => encode(name),
                Host::Unix(folder) => encode(&folder.to_string_lossy()),
            });
            ports.push(port.to_string());
        }
        let user = self
            .user
            .as_deref()
            .map(|user| format!("{}@", encode(user)))
            .unwrap_or_default();
        let database = encode(self.database.as_deref().unwrap_or_default());
        format!(
            "postgres://{user}/{database}?host={}&port={}",
            hosts.join(","),
            ports.join(",")
        )
    }

    /// What tokio-postgres needs to know; TLS verification is `tls::connector`'s part.
    pub(crate) fn config(&self) -> tokio_postgres::Config {
        use tokio_postgres::config;
        let mut out = tokio_postgres::Config::new();
        for (host, port) in &self.hosts {
            match host {
                Host::Tcp(name) => out.host(name),
                Host::Unix(folder) => out.host_path(folder),
            };
            out.port(*port);
        }
        if let Some(user) = &self.user {
            out.user(user.as_str());
        }
        if let Some(password) = &self.password {
            out.password(password.as_bytes());
        }
        if let Some(database) = &self.database {
            out.dbname(database.as_str());
        }
        out.application_name(self.application_name.as_str());
        out.connect_timeout(self.connect_timeout);
        out.channel_binding(self.channel_binding);
        out.ssl_mode(match self.ssl_mode {
            SslMode::Disable => config::SslMode::Disable,
            SslMode::Prefer => config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => config::SslMode::Require,
        });
        out.target_session_attrs(match self.session_attrs {
            SessionAttrs::Any => config::TargetSessionAttrs::Any,
            SessionAttrs::ReadWrite => config::TargetSessionAttrs::ReadWrite,
        });
        out
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseUrl")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("database", &self.database)
            .field("ssl_mode", &self.ssl_mode)
            .field("roots", &self.roots)
            .field("client_certificate", &self.client_certificate)
            .finish_non_exhaustive()
    }
}

/// What has been read so far; later keys win over the authority part, as in libpq.
#[derive(Default)]
struct Draft {
    hosts: Vec<String>,
    ports: Vec<Option<u16>>,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    database: Option<String>,
    application_name: Option<String>,
    connect_timeout_s: Option<u64>,
    ssl_mode: Option<SslMode>,
    roots: Option<Roots>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    read_write: bool,
    channel_binding: Option<tokio_postgres::config::ChannelBinding>,
}

impl Draft {
    fn read_hostspec(&mut self, hostspec: &str) -> Result<(), DatabaseUrlError> {
        for one in hostspec.split(',').filter(|one| !one.is_empty()) {
            let (host, port) = if let Some(v6) = one.strip_prefix('[') {
                let (host, rest) = v6
                    .split_once(']')
                    .ok_or_else(|| bad("host", one, "[IPv6 address]:port"))?;
                (host, rest.strip_prefix(':'))
            } else {
                one.split_once(':')
                    .map_or((one, None), |(host, port)| (host, Some(port)))
            };
            if !host.is_empty() {
                self.hosts.push(decode(host, "host")?);
            }
            self.ports
                .push(port.filter(|port| !port.is_empty()).map(read_port).transpose()?);
        }
        Ok(())
    }

    fn read_key(&mut self, key: &str, value: String) -> Result<(), DatabaseUrlError> {
        match key {
            "host" => self.hosts = value.split(',').filter(|h| !h.is_empty()).map(str::to_owned).collect(),
            "port" => {
                self.ports = value
                    .split(',')
                    .map(|port| {
                        if port.is_empty() {
                            Ok(None)
                        } else {
                            read_port(port).map(Some)
                        }
                    })
                    .collect::<Result<_, _>>()?;
            }
            "user" => self.user = non_empty(value),
            "password" => self.password = Some(Zeroizing::new(value)),
            "dbname" => self.database = non_empty(value),
            "application_name" => self.application_name = non_empty(value),
            "connect_timeout" => {
                let seconds = value
                    .parse::<u64>()
                    .ok()
                    .filter(|s| (1..=MAX_CONNECT_TIMEOUT_S).contains(s));
                self.connect_timeout_s =
                    Some(seconds.ok_or_else(|| bad("connect_timeout", &value, "1 to 60 (seconds)"))?);
            }
            "sslmode" => self.ssl_mode = Some(read_ssl_mode(&value)?),
            "sslrootcert" => {
                self.roots = match value.as_str() {
                    "" => None,
                    "system" => Some(Roots::System),
                    path => Some(Roots::File(PathBuf::from(path))),
                }
            }
            "sslcert" => self.certificate = non_empty(value).map(PathBuf::from),
            "sslkey" => self.key = non_empty(value).map(PathBuf::from),
            "target_session_attrs" => {
                self.read_write = match value.as_str() {
                    "any" => false,
                    "read-write" | "primary" => true,
                    _ => return Err(bad("target_session_attrs", &value, "any or read-write")),
                }
            }
            "channel_binding" => {
                use tokio_postgres::config::ChannelBinding;
                self.channel_binding = Some(match value.as_str() {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(bad("channel_binding", &value, "disable, prefer or require")),
                });
            }
            _ => return Err(DatabaseUrlError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }

    fn finish(self) -> Result<DatabaseUrl, DatabaseUrlError> {
        let hosts: Vec<Host> = self
            .hosts
            .into_iter()
            .map(|host| {
                if host.starts_with('/') {
                    Host::Unix(PathBuf::from(host))
                } else {
                    Host::Tcp(host)
                }
            })
            .collect();
        if hosts.len() > MAX_HOSTS {
            return Err(DatabaseUrlError::TooManyHosts);
        }
        let unix = match hosts.first() {
            None => return Err(DatabaseUrlError::NoHost),
            Some(first) => matches!(first, Host::Unix(_)),
        };
        if hosts.iter().any(|host| matches!(host, Host::Unix(_)) != unix) {
            return Err(DatabaseUrlError::MixedHosts);
        }
        if self.ports.len() > 1 && self.ports.len() != hosts.len() {
            return Err(DatabaseUrlError::PortCount {
                ports: self.ports.len(),
                hosts: hosts.len(),
            });
        }
        let only = if self.ports.len() == 1 {
            self.ports.first().copied().flatten()
        } else {
            None
        };
        let ports = self.ports;
        let hosts = hosts
            .into_iter()
            .enumerate()
            .map(|(n, host)| {
                let port = only.or_else(|| ports.get(n).copied().flatten());
                (host, port.unwrap_or(DEFAULT_PORT))
            })
            .collect();
        let client_certificate = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(DatabaseUrlError::Incomplete {
                    given: "sslcert",
                    missing: "sslkey",
                });
            }
            (None, Some(_)) => {
                return Err(DatabaseUrlError::Incomplete {
                    given: "sslkey",
                    missing: "sslcert",
                });
            }
        };
        // libpq uses no TLS on unix sockets, whatever sslmode says.
        let ssl_mode = if unix {
            SslMode::Disable
        } else {
            self.ssl_mode.unwrap_or(SslMode::VerifyFull)
        };
        Ok(DatabaseUrl {
            hosts,
            user: self.user,
            password: self.password,
            database: self.database,
            application_name: self
                .application_name
                .unwrap_or_else(|| DEFAULT_APPLICATION_NAME.to_owned()),
            connect_timeout: Duration::from_secs(self.connect_timeout_s.unwrap_or(DEFAULT_CONNECT_TIMEOUT_S)),
            ssl_mode,
            roots: self.roots,
            client_certificate,
            session_attrs: if self.read_write {
                SessionAttrs::ReadWrite
            } else {
                SessionAttrs::Any
            },
            channel_binding: self
                .channel_binding
                .unwrap_or(tokio_postgres::config::ChannelBinding::Prefer),
        })
    }
}

fn read_ssl_mode(value: &str) -> Result<SslMode, DatabaseUrlError> {
    Ok(match value {
        "disable" => SslMode::Disable,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => {
            return Err(bad(
                "sslmode",
                value,
                "disable, prefer, require, verify-ca or verify-full",
            ));
        }
    })
}

fn read_port(text: &str) -> Result<u16, DatabaseUrlError> {
    text.parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| bad("port", text, "1 to 65535"))
}

fn bad(key: &'static str, value: &str, expected: &'static str) -> DatabaseUrlError {
    DatabaseUrlError::Value {
        key,
        value: value.to_owned(),
        expected,
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// RFC 3986 percent-decoding; unlike in forms, `+` is itself.
fn decode(text: &str, part: &'static str) -> Result<String, DatabaseUrlError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit)) else {
            return Err(DatabaseUrlError::Encoding { part });
        };
        out.push(high << 4 | low);
    }
    if out.contains(&0) {
        return Err(DatabaseUrlError::Encoding { part });
    }
    String::from_utf8(out).map_err(|_| DatabaseUrlError::Encoding { part })
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DatabaseUrl {
        DatabaseUrl::parse(text).unwrap()
    }

    #[test]
    fn every_part_is_percent_decoded_and_the_password_is_never_shown() {
        let url = parse("postgres://j%40ne:s%3Ae%2Fcret+1@db.example:6543/my%20db?application_name=x%26y");
        assert_eq!(url.user(), Some("j@ne"));
        assert_eq!(url.password.as_ref().unwrap().as_str(), "s:e/cret+1");
        assert_eq!(url.database(), Some("my db"));
        assert_eq!(url.application_name, "x&y");
        assert_eq!(url.hosts(), [(Host::Tcp("db.example".into()), 6543)]);
        assert_eq!(url.ssl_mode(), SslMode::VerifyFull);
        assert!(!format!("{url:?}").contains("cret"));
        assert!(!url.public_uri().contains("cret"));
    }

    #[test]
    fn a_unix_socket_may_be_a_key_or_an_encoded_host_and_never_uses_tls() {
        for text in [
            "postgres://u@/d?host=/run/pg",
            "postgres://u@%2Frun%2Fpg/d",
            "postgresql:///d?user=u&host=/run/pg&sslmode=require",
        ] {
            let url = parse(text);
            assert_eq!(url.hosts(), [(Host::Unix("/run/pg".into()), 5432)], "{text}");
            assert_eq!(url.ssl_mode(), SslMode::Disable);
            assert_eq!(url.user(), Some("u"));
        }
        let url = DatabaseUrl::unix("/run/pg".into(), "u", "d");
        assert_eq!(parse(&url.public_uri()), url);
    }

    #[test]
    fn several_hosts_and_ipv6_are_read() {
        let url = parse("postgres://a:1,[::1]:2/d?target_session_attrs=read-write");
        assert_eq!(url.hosts(), [(Host::Tcp("a".into()), 1), (Host::Tcp("::1".into()), 2)]);
        assert_eq!(
            parse("postgres://a,b/d?port=7").hosts(),
            [(Host::Tcp("a".into()), 7), (Host::Tcp("b".into()), 7)]
        );
    }

    #[test]
    fn roots_follow_the_mode_as_in_libpq() {
        assert_eq!(parse("postgres://h/d").roots(), Some(Roots::System));
        assert_eq!(parse("postgres://h/d?sslmode=require").roots(), None);
        let file = Some(Roots::File("/ca.pem".into()));
        assert_eq!(
            parse("postgres://h/d?sslmode=require&sslrootcert=/ca.pem").roots(),
            file
        );
        assert_eq!(parse("postgres://h/d?sslmode=prefer&sslrootcert=/ca.pem").roots(), None);
        assert_eq!(
            parse("postgres://h/d?sslmode=verify-ca&sslrootcert=/ca.pem").roots(),
            file
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expected: &str| {
            let told = DatabaseUrl::parse(text).unwrap_err().to_string();
            assert!(told.contains(expected), "{text}: {told}");
        };
        check("mysql://h", "postgres://");
        check("postgres:///d", "no host");
        check("postgres://h/d?sslmod=require", "\"sslmod\"");
        check("postgres://h/d?sslmode=allow", "sslmode is \"allow\"");
        check("postgres://h:0/d", "port is \"0\"");
        check("postgres://h/%zz", "database name");
        check("postgres://h/d?sslcert=/c", "sslcert without sslkey");
        check("postgres://h/d?host=/a,b", "mixes");
        check("postgres://a,b,c/d?port=1,2", "2 ports for 3 hosts");
        check("postgres://h/d?connect_timeout=never", "connect_timeout");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(postgres://)?[ -~]{0,60}") {
            let _ = DatabaseUrl::parse(&text);
        }
    }
}
