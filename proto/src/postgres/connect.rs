//! The target-facing start-up: TLS negotiation, start-up packet, login, up to the target's first `ReadyForQuery`.
//!
//! Used by the agent alone, which holds the target's password. A refusal that leaves this machine names neither the
//! target's host nor its account.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use zeroize::Zeroizing;

use super::encode::{message, string};
use super::error_response::Report;
use super::fields::Fields;
use super::md5;
use super::scram::client::ClientExchange;
use super::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use super::startup::{self, MAX_SECRET_BYTES, NEWEST_MINOR};
use crate::end::{End, Refusal};

/// The longest message taken from a target during login, in bytes.
const MAX_LOGIN_MESSAGE_BYTES: usize = 64 * 1024;
/// The longest greeting (parameters and notices before the first `ReadyForQuery`), in bytes.
const MAX_GREETING_BYTES: usize = 256 * 1024;

/// libpq's `sslmode`, as far as the agent needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    Disable,
    Prefer,
    Require,
    #[default]
    VerifyFull,
}

impl TlsMode {
    /// The mode with this name (`disable`, `prefer`, `require`, `verify-full`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "disable" => Some(Self::Disable),
            "prefer" => Some(Self::Prefer),
            "require" => Some(Self::Require),
            "verify-full" => Some(Self::VerifyFull),
            _ => None,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Whom to log in as, to what, how.
#[derive(Clone, Default)]
pub struct ConnectOptions {
    pub user: String,
    pub password: Option<Zeroizing<String>>,
    /// Empty: the target's default (the user's name).
    pub database: String,
    /// Further start-up parameters, in order.
    pub parameters: Vec<(String, String)>,
    /// The protocol's minor version to ask for: 0 or 2.
    pub minor: u32,
    pub tls: TlsMode,
    /// A password may be sent in clear or as md5 without verified TLS.
    pub allow_cleartext_login: bool,
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("database", &self.database)
            .field("minor", &self.minor)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// What the driver does next.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// Read from the target and `receive`.
    Need,
    /// Write this to the target.
    Send(Bytes),
    /// Do the client's side of a TLS handshake, then `tls_started`.
    StartTls,
    /// Logged in.
    Ready {
        /// What the target said after the login, verbatim, without its key data and `ReadyForQuery`.
        greeting: Bytes,
        process_id: u32,
        /// Empty where the target gave no key.
        secret: Bytes,
        /// The protocol's minor version that both speak.
        minor: u32,
        /// What came behind `ReadyForQuery`.
        rest: Bytes,
    },
    Failed(Refusal),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Need => f.write_str("Need"),
            Self::Send(bytes) => write!(f, "Send({} bytes)", bytes.len()),
            Self::StartTls => f.write_str("StartTls"),
            Self::Ready { process_id, minor, .. } => f
                .debug_struct("Ready")
                .field("process_id", process_id)
                .field("minor", minor)
                .finish_non_exhaustive(),
            Self::Failed(refusal) => f.debug_tuple("Failed").field(refusal).finish(),
        }
    }
}

enum State {
    /// Nothing is sent yet.
    Start,
    /// The answer to `SSLRequest` is next: one byte.
    TlsAnswer,
    StartTls,
    Handshake,
    /// The start-up packet is next.
    Greet,
    /// Authentication messages are next.
    Login,
    SaslContinue(ClientExchange),
    SaslFinal(ClientExchange),
    /// The server has proved itself; `AuthenticationOk` is next.
    Proved,
    /// Logged in; parameters, key data and `ReadyForQuery` are next.
    Settle,
    Over,
}

/// The machine. Call `step` until `Need`, then `receive`.
pub struct Connect {
    options: ConnectOptions,
    nonce: Option<String>,
    state: State,
    buffer: BytesMut,
    out: Option<Bytes>,
    tls_verified: bool,
    end_point: Option<Vec<u8>>,
    minor: u32,
    greeting: BytesMut,
    process_id: u32,
    secret: Bytes,
}

impl Connect {
    #[must_use]
    pub fn new(options: ConnectOptions) -> Self {
        Self {
            minor: if options.minor >= NEWEST_MINOR { NEWEST_MINOR } else { 0 },
            options,
            nonce: None,
            state: State::Start,
            buffer: BytesMut::new(),
            out: None,
            tls_verified: false,
            end_point: None,
            greeting: BytesMut::new(),
            process_id: 0,
            secret: Bytes::new(),
        }
    }

    /// The same with a given SCRAM nonce, so that a recorded login can be replayed. For tests only.
    #[must_use]
    pub fn with_nonce(options: ConnectOptions, nonce: &str) -> Self {
        Self {
            nonce: Some(nonce.to_owned()),
            ..Self::new(options)
        }
    }

    /// Takes bytes from the target. The machine reads on only after `Need`, so what it holds is bounded by one read
    /// and `MAX_LOGIN_MESSAGE_BYTES`.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// TLS is up. `verified`: chain and host name were checked. `server_end_point`: tls-server-end-point, for -PLUS.
    pub fn tls_started(&mut self, verified: bool, server_end_point: Option<Vec<u8>>) {
        self.tls_verified = verified;
        self.end_point = server_end_point;
        self.state = State::Greet;
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        match self.advance() {
            Ok(step) => step,
            Err(refusal) => {
                self.state = State::Over;
                self.buffer.clear();
                Step::Failed(refusal)
            }
        }
    }

    fn advance(&mut self) -> Result<Step, Refusal> {
        loop {
            if let Some(out) = self.out.take() {
                return Ok(Step::Send(out));
            }
            match self.state {
                State::Start if self.options.tls == TlsMode::Disable => self.state = State::Greet,
                State::Start => {
                    self.out = Some(startup::ssl_request());
                    self.state = State::TlsAnswer;
                }
                State::TlsAnswer => {
                    let Some(&answer) = self.buffer.first() else {
                        return Ok(Step::Need);
                    };
                    self.tls_answer(answer)?;
                }
                State::StartTls => {
                    self.state = State::Handshake;
                    return Ok(Step::StartTls);
                }
                State::Handshake | State::Over => return Ok(Step::Need),
                State::Greet => self.greet()?,
                State::Login | State::SaslContinue(_) | State::SaslFinal(_) | State::Proved | State::Settle => {
                    let Some((kind, body, whole)) = self.message()? else {
                        return Ok(Step::Need);
                    };
                    if let Some(ready) = self.take(kind, &body, &whole)? {
                        return Ok(ready);
                    }
                }
            }
        }
    }

    fn tls_answer(&mut self, answer: u8) -> Result<(), Refusal> {
        match answer {
            b'S' => {
                self.buffer.advance(1);
                if !self.buffer.is_empty() {
                    return Err(tls(
                        "the target sent unencrypted data after its answer to the TLS request",
                        "",
                    ));
                }
                self.state = State::StartTls;
                Ok(())
            }
            b'N' if self.options.tls == TlsMode::Prefer => {
                self.buffer.advance(1);
                self.state = State::Greet;
                Ok(())
            }
            b'N' => Err(tls(
                "the target does not offer TLS, which this connection requires",
                "Turn TLS on at the target, or set the connection's tls to prefer or disable",
            )),
            // What follows 'E' was not authenticated by anyone, so its text is not shown.
            b'E' => Err(tls(
                "the target answered the TLS request with an error",
                "Look into the target's log; a connection with tls = disable does not ask for TLS",
            )),
            other => Err(protocol(format!(
                "the target answered the TLS request with the byte 0x{other:02x}"
            ))),
        }
    }

    fn greet(&mut self) -> Result<(), Refusal> {
        if self.options.tls == TlsMode::VerifyFull && !self.tls_verified {
            return Err(tls(
                "the target's certificate was not verified",
                "Give the connection the CA that signed the target's certificate",
            ));
        }
        let mut parameters = vec![("user", self.options.user.as_str())];
        if !self.options.database.is_empty() {
            parameters.push(("database", self.options.database.as_str()));
        }
        parameters.extend(
            self.options
                .parameters
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        self.out = Some(startup::startup_message(self.minor, parameters));
        self.state = State::Login;
        Ok(())
    }

    /// The next whole message: type, body, all of it.
    fn message(&mut self) -> Result<Option<(u8, Bytes, Bytes)>, Refusal> {
        let Some(&[kind, a, b, c, d]) = self.buffer.first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=MAX_LOGIN_MESSAGE_BYTES).contains(&length) {
            return Err(protocol(format!(
                "the target sent a message of {length} bytes during login; at least 4 and at most \
                 {MAX_LOGIN_MESSAGE_BYTES} are allowed"
            )));
        }
        if self.buffer.len() < 1 + length {
            return Ok(None);
        }
        let whole = self.buffer.split_to(1 + length).freeze();
        Ok(Some((kind, whole.slice(5..), whole)))
    }

    fn take(&mut self, kind: u8, body: &Bytes, whole: &Bytes) -> Result<Option<Step>, Refusal> {
        let settling = matches!(self.state, State::Settle);
        match kind {
            b'E' => Err(self.refused(body)),
            b'N' => self.greet_with(whole).map(|()| None),
            b'R' if !settling => self.authentication(body).map(|()| None),
            b'v' if matches!(self.state, State::Login) => self.negotiated(body).map(|()| None),
            b'S' if settling => self.greet_with(whole).map(|()| None),
            b'K' if settling => {
                let mut fields = Fields(body);
                self.process_id = fields.u32("process id").map_err(malformed)?;
                if !(4..=MAX_SECRET_BYTES).contains(&fields.0.len()) {
                    return Err(protocol(format!(
                        "the target's cancel key has {} bytes",
                        fields.0.len()
                    )));
                }
                self.secret = body.slice(4..);
                Ok(None)
            }
            b'Z' if settling => {
                self.state = State::Over;
                Ok(Some(Step::Ready {
                    greeting: std::mem::take(&mut self.greeting).freeze(),
                    process_id: self.process_id,
                    secret: std::mem::take(&mut self.secret),
                    minor: self.minor,
                    rest: std::mem::take(&mut self.buffer).freeze(),
                }))
            }
            other => Err(protocol(format!(
                "the target sent message type 0x{other:02x} during login"
            ))),
        }
    }

    fn greet_with(&mut self, whole: &[u8]) -> Result<(), Refusal> {
        if self.greeting.len() + whole.len() > MAX_GREETING_BYTES {
            return Err(protocol(format!(
                "the target's greeting is longer than {MAX_GREETING_BYTES} bytes"
            )));
        }
        self.greeting.extend_from_slice(whole);
        Ok(())
    }

    fn negotiated(&mut self, body: &[u8]) -> Result<(), Refusal> {
        // The whole version (3 << 16 | minor), though the manual calls it the minor version.
        let version = Fields(body).u32("protocol version").map_err(malformed)?;
        let minor = version & 0xffff;
        if minor > self.minor || (version >> 16 != 3 && version >> 16 != 0) {
            return Err(protocol(format!(
                "the target negotiates the unknown protocol version {version}"
            )));
        }
        self.minor = if minor >= NEWEST_MINOR { NEWEST_MINOR } else { 0 };
        Ok(())
    }

    fn authentication(&mut self, body: &[u8]) -> Result<(), Refusal> {
        let mut fields = Fields(body);
        let code = fields.u32("authentication code").map_err(malformed)?;
        match (code, std::mem::replace(&mut self.state, State::Over)) {
            (0, State::Login | State::Proved) => self.state = State::Settle,
            (3, State::Login) => {
                self.weak_login("clear-text")?;
                let password = self.password()?.clone();
                self.password_message(password.as_bytes());
            }
            (5, State::Login) => {
                self.weak_login("md5")?;
                let salt = fields.take(4, "salt").map_err(malformed)?;
                let salt = salt.first_chunk::<4>().copied().unwrap_or_default();
                let answer = md5::answer(&self.options.user, self.password()?, salt);
                self.password_message(answer.as_bytes());
            }
            (10, State::Login) => self.sasl(fields)?,
            (11, State::SaslContinue(mut exchange)) => {
                let first = std::str::from_utf8(fields.0).map_err(|_| protocol("the target's SCRAM is not UTF-8"))?;
                let last = exchange
                    .last(first, self.password()?)
                    .map_err(|error| protocol(error.to_string()))?;
                self.out = Some(response(|out| out.put_slice(last.as_bytes())));
                self.state = State::SaslFinal(exchange);
            }
            (12, State::SaslFinal(exchange)) => {
                let last = std::str::from_utf8(fields.0).map_err(|_| protocol("the target's SCRAM is not UTF-8"))?;
                exchange.verify(last).map_err(|error| {
                    let mut refusal = protocol(error.to_string());
                    refusal.hint = "Something that does not know the password answers in the target's place".into();
                    refusal
                })?;
                self.state = State::Proved;
            }
            (2 | 6..=9, State::Login) => {
                let method = match code {
                    7 | 8 => "GSSAPI",
                    9 => "SSPI",
                    2 => "Kerberos V5",
                    _ => "SCM credentials",
                };
                return Err(login(
                    format!("the target asks for {method} authentication, which the agent does not speak"),
                    "Let the target's pg_hba.conf ask the agent for scram-sha-256",
                ));
            }
            (code, _) => {
                return Err(protocol(format!(
                    "the target sent authentication request {code} out of turn"
                )));
            }
        }
        Ok(())
    }

    fn sasl(&mut self, mut fields: Fields<'_>) -> Result<(), Refusal> {
        let (mut plain, mut plus) = (false, false);
        loop {
            match fields.string("SASL mechanism").map_err(malformed)? {
                b"" => break,
                name if name == SCRAM_SHA_256.as_bytes() => plain = true,
                name if name == SCRAM_SHA_256_PLUS.as_bytes() => plus = true,
                _ => {}
            }
        }
        let spoken = plain || (plus && self.end_point.is_some());
        if !spoken {
            return Err(login(
                "the target offers no SASL mechanism that the agent speaks",
                "The agent speaks SCRAM-SHA-256, and SCRAM-SHA-256-PLUS over TLS",
            ));
        }
        self.password()?;
        let end_point = self.end_point.clone();
        let exchange = match &self.nonce {
            Some(nonce) => Some(ClientExchange::with_nonce(nonce, "", end_point, plus)),
            None => ClientExchange::new("", end_point, plus),
        };
        let exchange = exchange.ok_or_else(|| Refusal::new(End::Internal, "no randomness available", ""))?;
        let first = exchange.first();
        self.out = Some(response(|out| {
            string(out, exchange.mechanism().as_bytes());
            out.put_u32(u32::try_from(first.len()).unwrap_or(u32::MAX));
            out.put_slice(first.as_bytes());
        }));
        self.state = State::SaslContinue(exchange);
        Ok(())
    }

    fn password(&self) -> Result<&Zeroizing<String>, Refusal> {
        self.options.password.as_ref().ok_or_else(|| {
            Refusal::new(
                End::TargetSecretMissing,
                "the target asks for a password and the connection has none",
                "Give the connection the target's password, or a reference that the agent can resolve",
            )
        })
    }

    fn password_message(&mut self, password: &[u8]) {
        self.out = Some(response(|out| string(out, password)));
        self.state = State::Login;
    }

    fn weak_login(&self, method: &str) -> Result<(), Refusal> {
        if self.tls_verified || self.options.allow_cleartext_login {
            return Ok(());
        }
        Err(Refusal::new(
            End::AgentRefused,
            format!("the target asks for a {method} password over a connection without verified TLS"),
            "Set the connection's tls to verify-full, let the target ask for scram-sha-256, or set \
             allow_cleartext_login on the connection",
        ))
    }

    fn refused(&self, body: &[u8]) -> Refusal {
        let report = Report::parse(body);
        let mut refusal = login(
            format!(
                "the target refused the login: {}",
                untold(&report.message, &self.options.user)
            ),
            "Ask whoever keeps this connection to check its user, password and database at the target",
        );
        refusal.code = report.code;
        refusal
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The packet that cancels what runs on the connection with this key.
#[must_use]
pub fn cancel_request(process_id: u32, secret: &[u8]) -> Bytes {
    startup::cancel_request(process_id, secret)
}

fn response(body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    message(&mut out, b'p', body);
    out.freeze()
}

fn tls(message: &str, hint: &str) -> Refusal {
    Refusal::new(End::TargetTls, message, hint)
}

fn login(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(End::TargetRefusedLogin, message, hint)
}

fn protocol(message: impl Into<String>) -> Refusal {
    Refusal::new(
        End::TargetViolation,
        message,
        "Check that the connection's port is the target's PostgreSQL port",
    )
}

fn malformed(error: super::Malformed) -> Refusal {
    protocol(format!("the target sent a malformed message: {error}"))
}

/// The target's text without its account and hosts: a quoted word behind `user`, `role` or `host`, and the account
/// itself wherever it stands in quotes.
fn untold(text: &str, account: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, part) in text.split('"').enumerate() {
        let quoted = index % 2 == 1;
        if index > 0 {
            out.push('"');
        }
        let before = out.trim_end_matches('"').trim_end();
        let named = ["user", "role", "host", "address"]
            .iter()
            .any(|word| before.ends_with(word));
        if quoted && (named || (!account.is_empty() && part == account)) {
            out.push('…');
        } else {
            out.push_str(part);
        }
    }
    out
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
