//! The client-facing start-up: TLS negotiation, start-up packet, SCRAM, up to the proof of the credential.
//!
//! Owns every byte before the proof, bounded. Does not know who the user is: it asks for a verifier and an unknown user
//! is answered like a wrong password.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::encode::{message, ready_for_query, string};
use super::error_response::{Severity, error_response};
use super::fields::Fields;
use super::scram::server::{Binding, Rejected, ServerExchange};
use super::scram::{MAX_MESSAGE_BYTES, SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use super::startup::{self, MAX_STARTUP_BYTES, NEWEST_MINOR, Packet, StartupError};
use crate::end::{End, Refusal};

pub use super::scram::Verifier;

/// What may be buffered before the credential is proved, in bytes.
const MAX_BUFFERED_BYTES: usize = MAX_STARTUP_BYTES + MAX_MESSAGE_BYTES;
/// Names of start-up options of the protocol itself begin with this (manual, StartupMessage).
const PROTOCOL_OPTION: &str = "_pq_.";

/// How this listener speaks.
pub struct AcceptOptions {
    /// A certificate is there: `SSLRequest` is answered `S`.
    pub tls: bool,
    /// Makes the stable salts of users who do not exist.
    pub mock_key: [u8; 32],
    /// TLS was started by the client at once (ALPN), before any packet.
    pub on_tls_direct: bool,
    /// The page where credentials are made, for hints; empty where there is none.
    pub credentials_url: String,
}

impl fmt::Debug for AcceptOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptOptions")
            .field("tls", &self.tls)
            .field("on_tls_direct", &self.on_tls_direct)
            .field("credentials_url", &self.credentials_url)
            .finish_non_exhaustive()
    }
}

/// Keys that back a SASL exchange; another name of `Verifier`.
pub type SaslSecrets = Verifier;

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read from the client and `receive`.
    Need,
    /// Write this to the client.
    Send(Bytes),
    /// Do the server's side of a TLS handshake, then `tls_started`.
    StartTls,
    /// Look up the verifier of this user name, then `answer`.
    Ask { user: String },
    /// This connection only asks to cancel; close it without an answer.
    Cancel { process_id: u32, secret: Bytes },
    /// The password was proved. Send `welcome`, or `refuse`.
    Proved(Startup),
    /// Write this and close.
    Failed { send: Bytes, refusal: Refusal },
}

/// What a proved client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    pub user: String,
    /// `None`: not named.
    pub database: Option<String>,
    /// In the client's order, without user, database, replication and options of the protocol itself.
    pub parameters: Vec<(String, String)>,
    /// The protocol's minor version that both speak: 0 or 2.
    pub minor: u32,
    pub tls: bool,
    /// The exchange was bound to the TLS connection.
    pub sasl_plus: bool,
    pub replication: bool,
}

enum State {
    /// A start-up packet is next.
    Packet,
    /// `S` is out: the TLS handshake is next.
    StartTls,
    Handshake,
    /// The start-up packet is there: the verifier is next.
    Ask,
    Asked,
    /// SASLInitialResponse is next.
    Initial(Verifier),
    /// SASLResponse is next.
    Response(ServerExchange),
    /// `Proved` is next.
    Prove,
    /// Over, well or not.
    Over,
}

/// The machine. Call `step` until `Need`, then `receive`.
pub struct Accept {
    options: AcceptOptions,
    state: State,
    buffer: BytesMut,
    overflow_bytes: usize,
    out: Option<Bytes>,
    failed: Option<Refusal>,
    ssl_asked: bool,
    gss_asked: bool,
    tls: bool,
    end_point: Option<Vec<u8>>,
    startup: Option<Startup>,
    negotiate: Option<Vec<String>>,
    /// The server's last SASL message, once the client has proved itself.
    proof: Option<String>,
}

impl Accept {
    #[must_use]
    pub fn new(options: AcceptOptions) -> Self {
        Self {
            tls: options.on_tls_direct,
            options,
            state: State::Packet,
            buffer: BytesMut::new(),
            overflow_bytes: 0,
            out: None,
            failed: None,
            ssl_asked: false,
            gss_asked: false,
            end_point: None,
            startup: None,
            negotiate: None,
            proof: None,
        }
    }

    /// Takes bytes from the client. More than the bound is not kept; the next `step` fails.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = MAX_BUFFERED_BYTES.saturating_sub(self.buffer.len());
        let (kept, over) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.buffer.extend_from_slice(kept);
        self.overflow_bytes += over.len();
    }

    /// TLS is up. `server_end_point`: the certificate's tls-server-end-point hash; `None`: -PLUS is not offered. Also
    /// called before the first byte where TLS came first (`on_tls_direct`).
    pub fn tls_started(&mut self, server_end_point: Option<Vec<u8>>) {
        self.tls = true;
        self.end_point = server_end_point;
        if !self.buffer.is_empty() && !self.options.on_tls_direct {
            self.failed = Some(violation("received unencrypted data after SSL request"));
        }
        if matches!(self.state, State::StartTls | State::Handshake) {
            self.state = State::Packet;
        }
    }

    /// Answers `Ask`; `None`: there is no such user.
    pub fn answer(&mut self, verifier: Option<Verifier>) {
        if !matches!(self.state, State::Ask | State::Asked) {
            return;
        }
        let user = self.startup.as_ref().map_or("", |startup| startup.user.as_str());
        let verifier = verifier.unwrap_or_else(|| Verifier::mock(&self.options.mock_key, user));
        let mut out = BytesMut::with_capacity(128);
        if let (Some(unknown), Some(startup)) = (&self.negotiate, &self.startup) {
            startup::negotiate_protocol_version(&mut out, startup.minor, unknown);
        }
        message(&mut out, b'R', |out| {
            out.put_u32(10);
            if self.end_point.is_some() {
                string(out, SCRAM_SHA_256_PLUS.as_bytes());
            }
            string(out, SCRAM_SHA_256.as_bytes());
            out.put_u8(0);
        });
        self.out = Some(out.freeze());
        self.state = State::Initial(verifier);
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        loop {
            if let Some(out) = self.out.take() {
                return Step::Send(out);
            }
            if let Some(refusal) = self.failed.take() {
                return self.end(refusal);
            }
            if self.overflow_bytes > 0 && !matches!(self.state, State::Over) {
                return self.end(violation(format!(
                    "{} bytes came before the credential was proved; the limit is {MAX_BUFFERED_BYTES} bytes",
                    self.buffer.len() + self.overflow_bytes
                )));
            }
            match std::mem::replace(&mut self.state, State::Over) {
                State::Packet => match startup::read(&self.buffer) {
                    Ok(None) => {
                        self.state = State::Packet;
                        return Step::Need;
                    }
                    Ok(Some((packet, length))) => {
                        self.buffer.advance(length);
                        if let Some(step) = self.packet(packet) {
                            return step;
                        }
                    }
                    Err(error) => return self.end(startup_refusal(&error)),
                },
                State::StartTls => {
                    self.state = State::Handshake;
                    return Step::StartTls;
                }
                State::Handshake => {
                    if !self.buffer.is_empty() {
                        return self.end(violation("received unencrypted data after SSL request"));
                    }
                    self.state = State::Handshake;
                    return Step::Need;
                }
                State::Ask => {
                    self.state = State::Asked;
                    let user = self
                        .startup
                        .as_ref()
                        .map(|startup| startup.user.clone())
                        .unwrap_or_default();
                    return Step::Ask { user };
                }
                State::Asked => {
                    self.state = State::Asked;
                    return Step::Need;
                }
                State::Initial(verifier) => match self.sasl_message() {
                    Ok(None) => {
                        self.state = State::Initial(verifier);
                        return Step::Need;
                    }
                    Ok(Some(body)) => {
                        if let Err(refusal) = self.initial(verifier, &body) {
                            return self.end(refusal);
                        }
                    }
                    Err(refusal) => return self.end(refusal),
                },
                State::Response(exchange) => match self.sasl_message() {
                    Ok(None) => {
                        self.state = State::Response(exchange);
                        return Step::Need;
                    }
                    Ok(Some(body)) => match exchange.finish(&body) {
                        Ok(proof) => {
                            self.proof = Some(proof);
                            self.state = State::Prove;
                        }
                        Err(rejected) => return self.reject(rejected),
                    },
                    Err(refusal) => return self.end(refusal),
                },
                State::Prove => {
                    if let Some(startup) = &self.startup {
                        return Step::Proved(startup.clone());
                    }
                }
                State::Over => return Step::Need,
            }
        }
    }

    /// The refusal of a proved client, FATAL in its own protocol.
    #[must_use]
    pub fn refuse(&self, refusal: &Refusal) -> Bytes {
        error_response(Severity::Fatal, refusal)
    }

    /// `AuthenticationSASLFinal` and `AuthenticationOk`; empty where the client has proved nothing.
    #[must_use]
    pub fn welcome(&self) -> Bytes {
        let Some(proof) = &self.proof else { return Bytes::new() };
        let mut out = BytesMut::with_capacity(80);
        message(&mut out, b'R', |out| {
            out.put_u32(12);
            out.put_slice(proof.as_bytes());
        });
        message(&mut out, b'R', |out| out.put_u32(0));
        out.freeze()
    }

    /// Everything from the target's greeting (verbatim messages) to the first `ReadyForQuery`.
    #[must_use]
    pub fn ready(greeting: &[u8], process_id: u32, secret: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(greeting.len() + secret.len() + 24);
        out.put_slice(greeting);
        message(&mut out, b'K', |out| {
            out.put_u32(process_id);
            out.put_slice(secret);
        });
        out.put_slice(&ready_for_query(b'I'));
        out.freeze()
    }

    /// What the client sent behind its start-up.
    #[must_use]
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }

    /// One packet; `None`: go on.
    fn packet(&mut self, packet: Packet) -> Option<Step> {
        match packet {
            Packet::SslRequest | Packet::GssEncRequest if !self.buffer.is_empty() => Some(self.end(violation(
                "received unencrypted data after SSL or GSSAPI encryption request",
            ))),
            Packet::SslRequest if !self.ssl_asked && !self.tls => {
                self.ssl_asked = true;
                let (answer, state): (&[u8], _) = if self.options.tls {
                    (b"S", State::StartTls)
                } else {
                    (b"N", State::Packet)
                };
                self.out = Some(Bytes::from_static(answer));
                self.state = state;
                None
            }
            Packet::GssEncRequest if !self.gss_asked && !self.tls => {
                self.gss_asked = true;
                self.out = Some(Bytes::from_static(b"N"));
                self.state = State::Packet;
                None
            }
            Packet::SslRequest | Packet::GssEncRequest => {
                Some(self.end(violation("encryption was asked for a second time")))
            }
            Packet::Cancel { process_id, secret } => Some(Step::Cancel { process_id, secret }),
            Packet::Startup { minor, parameters } => match self.startup(minor, parameters) {
                Ok(()) => {
                    self.state = State::Ask;
                    None
                }
                Err(refusal) => Some(self.end(refusal)),
            },
        }
    }

    fn startup(&mut self, minor: u32, parameters: Vec<(String, String)>) -> Result<(), Refusal> {
        let mut startup = Startup {
            user: String::new(),
            database: None,
            parameters: Vec::new(),
            minor: if minor >= NEWEST_MINOR { NEWEST_MINOR } else { 0 },
            tls: self.tls,
            sasl_plus: false,
            replication: false,
        };
        let mut unknown = Vec::new();
        for (name, value) in parameters {
            match name.as_str() {
                "user" => startup.user = value,
                "database" => startup.database = Some(value).filter(|name| !name.is_empty()),
                "replication" => startup.replication = replication(&value)?,
                option if option.starts_with(PROTOCOL_OPTION) => unknown.push(name),
                _ => startup.parameters.push((name, value)),
            }
        }
        if startup.user.is_empty() {
            let hint = self.hint("Name the credential as the user");
            let mut refusal = Refusal::new(
                End::ClientViolation,
                "no PostgreSQL user name specified in startup packet",
                hint,
            );
            refusal.code = "28000".into();
            return Err(refusal);
        }
        if startup.minor != minor || !unknown.is_empty() {
            self.negotiate = Some(unknown);
        }
        self.startup = Some(startup);
        Ok(())
    }

    /// The body of the next SASL message; `None` where it is not yet whole.
    fn sasl_message(&mut self) -> Result<Option<Bytes>, Refusal> {
        let Some(&kind) = self.buffer.first() else {
            return Ok(None);
        };
        if kind != b'p' {
            return Err(violation(format!(
                "expected SASL response, got message type 0x{kind:02x}"
            )));
        }
        let Some(&[_, a, b, c, d]) = self.buffer.first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=MAX_MESSAGE_BYTES).contains(&length) {
            return Err(violation(format!(
                "a SASL response of {length} bytes; at least 4 and at most {MAX_MESSAGE_BYTES} are allowed"
            )));
        }
        if self.buffer.len() < 1 + length {
            return Ok(None);
        }
        let mut whole = self.buffer.split_to(1 + length).freeze();
        whole.advance(5);
        Ok(Some(whole))
    }

    fn initial(&mut self, verifier: Verifier, body: &[u8]) -> Result<(), Refusal> {
        let malformed = |error| violation(format!("malformed SASLInitialResponse: {error}"));
        let mut fields = Fields(body);
        let mechanism = fields.string("mechanism").map_err(malformed)?;
        let length = fields.length("response length").map_err(malformed)?.unwrap_or(0);
        let response = fields.take(length, "response").map_err(malformed)?;
        fields.end("end").map_err(malformed)?;
        let mechanism = std::str::from_utf8(mechanism).unwrap_or_default();
        let binding = Binding {
            end_point: self.end_point.clone(),
        };
        let (exchange, first) = ServerExchange::start(verifier, binding, mechanism, response)
            .map_err(|rejected| self.rejected(rejected))?;
        if let Some(startup) = &mut self.startup {
            startup.sasl_plus = mechanism == SCRAM_SHA_256_PLUS;
        }
        let mut out = BytesMut::with_capacity(128);
        message(&mut out, b'R', |out| {
            out.put_u32(11);
            out.put_slice(first.as_bytes());
        });
        self.out = Some(out.freeze());
        self.state = State::Response(exchange);
        Ok(())
    }

    fn rejected(&self, rejected: Rejected) -> Refusal {
        match rejected {
            Rejected::Proof => {
                let user = self.startup.as_ref().map_or("", |startup| startup.user.as_str());
                let hint = self.hint("Check the password, or make a new credential in Hoop");
                Refusal::new(
                    End::WrongCredential,
                    format!("password authentication failed for user \"{user}\""),
                    hint,
                )
            }
            Rejected::Binding(why) => {
                let mut refusal = Refusal::new(
                    End::ClientViolation,
                    why,
                    "Something between client and gateway may be ending TLS; connect to the gateway directly",
                );
                refusal.code = "28000".into();
                refusal
            }
            Rejected::Malformed(_) => violation(rejected.to_string()),
            Rejected::Randomness => Refusal::new(End::Internal, rejected.to_string(), ""),
        }
    }

    fn reject(&mut self, rejected: Rejected) -> Step {
        let refusal = self.rejected(rejected);
        self.end(refusal)
    }

    fn hint(&self, what: &str) -> String {
        match self.options.credentials_url.as_str() {
            "" => format!("{what}."),
            url => format!("{what}: {url}"),
        }
    }

    fn end(&mut self, refusal: Refusal) -> Step {
        self.state = State::Over;
        self.buffer.clear();
        Step::Failed {
            send: error_response(Severity::Fatal, &refusal),
            refusal,
        }
    }
}

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept")
            .field("options", &self.options)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

fn violation(message: impl Into<String>) -> Refusal {
    Refusal::new(End::ClientViolation, message, "")
}

fn startup_refusal(error: &StartupError) -> Refusal {
    let mut refusal = violation(error.to_string());
    if let StartupError::Version { .. } = error {
        refusal.code = "0A000".into();
        refusal.hint = "Use a client that speaks PostgreSQL's protocol 3.0 or newer".into();
    }
    refusal
}

/// PostgreSQL's reading of a Boolean, and `database` for logical replication.
fn replication(value: &str) -> Result<bool, Refusal> {
    match value.to_ascii_lowercase().as_str() {
        "database" | "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
        _ => {
            let mut refusal = violation(format!("invalid value for parameter \"replication\": \"{value}\""));
            refusal.code = "22023".into();
            refusal.hint = "Valid values are: \"false\", 0, \"true\", 1, \"database\".".into();
            Err(refusal)
        }
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
