//! PostgreSQL: drives `hoop_proto::postgres::connect` over a socket until the target is ready for queries, and cancels.
//!
//! INVARIANT: what a client may read (a `Refusal`) holds neither the target's host nor its account; those go to the
//! agent's own log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hoop_actors::end_point::server_end_point;
use hoop_actors::maybe_tls::MaybeTls;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::Target;
use hoop_proto::postgres::connect::{self, Connect, ConnectOptions, Step, TlsMode};
use hoop_proto::postgres::startup;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::allow::{AllowList, Forbidden};
use super::progress::{Progress, Stage};
use super::tls::{self, Mode};
use crate::net::{self, NetError};

/// The socket to a target.
pub type TargetStream = MaybeTls<tokio_rustls::client::TlsStream<TcpStream>>;

/// TCP, whichever of the target's addresses answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the TCP connection to the target's first ReadyForQuery. PostgreSQL's own authentication_timeout is 60 s.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A cancel, from the TCP connection to the target's closing it.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// One read during the login, in bytes.
const LOGIN_READ_BYTES: usize = 8 * 1024;

/// A session that the target accepted.
pub struct Login {
    pub stream: TargetStream,
    /// What the target said after the login and before it was ready, without its key data.
    pub greeting: Bytes,
    /// The protocol's minor version that the target speaks.
    pub minor: u32,
    /// Bytes that came after it was ready.
    pub early: Bytes,
    pub cancel: CancelKey,
}

/// What a cancel of this session needs.
#[derive(Clone)]
pub struct CancelKey {
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    process_id: u32,
    secret: Bytes,
}

/// Who asks for the login, for messages and the log.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub agent: &'a str,
    pub connection: &'a str,
}

/// Dials `target` within the allow-list and logs in.
pub async fn login(
    target: &Target,
    password: Option<Zeroizing<String>>,
    allow: &AllowList,
    asker: Asker<'_>,
    progress: &mut Progress,
) -> Result<Login, Refusal> {
    let mode = Mode::parse(&target.tls).ok_or_else(|| {
        Refusal::new(
            End::AgentTooOld,
            format!("agent \"{}\" does not know the connection's TLS mode", asker.agent),
            "Upgrade the agent, or set the connection's tls to disable, prefer, require or verify-full.",
        )
    })?;
    let tls = prepare_tls(mode, target, asker)?;
    let tcp = dial(target, allow, asker, progress).await?;
    progress.enter(Stage::Login);
    let address = tcp.peer_addr().map_err(|error| unreachable(&error, asker))?;
    let mut machine = Connect::new(options(target, password, mode));
    let run = drive(&mut machine, tcp, mode, tls.as_ref(), asker, progress);
    let done = timeout(LOGIN_TIMEOUT, run).await.map_err(|_| {
        tracing::warn!(agent = asker.agent, connection = asker.connection, %address, "the target's login timed out");
        Refusal::new(
            End::TargetUnreachable,
            "the target accepted the connection but did not finish the login in time",
            "Ask an administrator whether the target is overloaded and whether the connection's port is PostgreSQL's.",
        )
    })??;
    let encrypted = matches!(done.stream, TargetStream::Tls(_));
    let cancel = CancelKey {
        address,
        tls: tls.filter(|_| encrypted),
        process_id: done.process_id,
        secret: done.secret,
    };
    Ok(Login {
        stream: done.stream,
        greeting: done.greeting,
        minor: done.minor,
        early: done.early,
        cancel,
    })
}

/// Sends the target a CancelRequest, encrypted where the session is, and waits for it to close.
pub async fn cancel(key: &CancelKey) -> std::io::Result<()> {
    timeout(CANCEL_TIMEOUT, send_cancel(key))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

async fn send_cancel(key: &CancelKey) -> std::io::Result<()> {
    let to_io = |error: NetError| std::io::Error::other(error);
    let mut tcp = net::connect(&[key.address], CONNECT_TIMEOUT).await.map_err(to_io)?;
    let mut stream = match &key.tls {
        None => TargetStream::Plain(tcp),
        Some((config, name)) => {
            tcp.write_all(&startup::ssl_request()).await?;
            if tcp.read_u8().await? != b'S' {
                return Err(std::io::Error::other("the target no longer offers TLS"));
            }
            let tls = TlsConnector::from(Arc::clone(config))
                .connect(name.clone(), tcp)
                .await?;
            TargetStream::Tls(Box::new(tls))
        }
    };
    stream
        .write_all(&connect::cancel_request(key.process_id, &key.secret))
        .await?;
    stream.flush().await?;
    // The target closes when it has signalled its backend; only then is the cancel done.
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    Ok(())
}

type PreparedTls = (Arc<ClientConfig>, ServerName<'static>);

fn prepare_tls(mode: Mode, target: &Target, asker: Asker<'_>) -> Result<Option<PreparedTls>, Refusal> {
    if mode == Mode::Disable {
        return Ok(None);
    }
    let config = tls::client_config(mode, &target.tls_ca_pem).map_err(|error| {
        tracing::warn!(agent = asker.agent, connection = asker.connection, %error, "TLS to the target");
        Refusal::new(
            End::TargetTls,
            format!("agent \"{}\" cannot set up TLS to the target: {error}", asker.agent),
            "Ask an administrator to correct the connection's CA certificate.",
        )
    })?;
    let name = if target.tls_server_name.is_empty() {
        &target.host
    } else {
        &target.tls_server_name
    };
    let name = ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned()).map_err(|_| {
        Refusal::new(
            End::TargetTls,
            "the target's host is neither a DNS name nor an address, so its certificate cannot be checked",
            "Ask an administrator to set the connection's TLS server name.",
        )
    })?;
    Ok(Some((config, name)))
}

/// Resolves, keeps the addresses that the allow-list lets through, and connects to one of exactly those.
async fn dial(
    target: &Target,
    allow: &AllowList,
    asker: Asker<'_>,
    progress: &mut Progress,
) -> Result<TcpStream, Refusal> {
    progress.enter(Stage::Resolve);
    let port = u16::try_from(target.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| {
            Refusal::new(
                End::TargetUnreachable,
                "the connection's port is not between 1 and 65535",
                "Ask an administrator to correct the connection.",
            )
        })?;
    let resolved = net::resolve(&target.host, port).await.map_err(|error| {
        tracing::warn!(
            agent = asker.agent, connection = asker.connection, host = target.host, port,
            error = %chain(&error), "the target's name was not resolved"
        );
        progress.cause = chain(&error);
        Refusal::new(
            End::TargetUnreachable,
            format!("agent \"{}\" cannot resolve the target's host name", asker.agent),
            "Ask an administrator to correct the connection's host, or the DNS of the agent's network.",
        )
    })?;
    progress.enter(Stage::Allow);
    let mut forbidden: Option<Forbidden> = None;
    let mut allowed = Vec::with_capacity(resolved.len());
    for address in resolved {
        match allow.check(&target.host, address) {
            Ok(()) => allowed.push(address),
            Err(why) => {
                tracing::warn!(
                    agent = asker.agent, connection = asker.connection, host = target.host, %address, rule = %why,
                    "the target is not allowed"
                );
                forbidden.get_or_insert(why);
            }
        }
    }
    if let (true, Some(why)) = (allowed.is_empty(), forbidden) {
        return Err(Refusal::new(
            End::AgentRefused,
            format!("agent \"{}\" may not connect to this target by {why}", asker.agent),
            "An administrator of the agent must allow the target in the agent's own configuration.",
        ));
    }
    progress.enter(Stage::Connect);
    net::connect(&allowed, CONNECT_TIMEOUT).await.map_err(|error| {
        tracing::warn!(
            agent = asker.agent, connection = asker.connection, host = target.host, port,
            error = %chain(&error), "the target cannot be reached"
        );
        progress.cause = chain(&error);
        unreachable(&error, asker)
    })
}

fn unreachable(error: &dyn std::error::Error, asker: Asker<'_>) -> Refusal {
    tracing::debug!(error = %chain(error), "unreachable");
    Refusal::new(
        End::TargetUnreachable,
        format!(
            "agent \"{}\" cannot reach the target of connection \"{}\"",
            asker.agent, asker.connection
        ),
        "Check that the target is running and that the agent's network reaches it; the agent's log names the cause.",
    )
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The login's parameters: `options` of the connection first, then what the client asked for, which wins.
fn options(target: &Target, password: Option<Zeroizing<String>>, mode: Mode) -> ConnectOptions {
    let mut database = String::new();
    let mut parameters: Vec<(String, String)> = Vec::new();
    let configured = target
        .options
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let asked = target
        .startup
        .iter()
        .map(|parameter| (parameter.name.as_str(), parameter.value.as_str()));
    for (name, value) in configured.chain(asked) {
        match name {
            "user" | "replication" => {}
            "database" => value.clone_into(&mut database),
            _ => {
                parameters.retain(|(known, _)| known != name);
                parameters.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    ConnectOptions {
        user: target.user.clone(),
        password,
        database,
        parameters,
        minor: target.protocol_minor,
        tls: match mode {
            Mode::Disable => TlsMode::Disable,
            Mode::Prefer => TlsMode::Prefer,
            Mode::Require => TlsMode::Require,
            Mode::VerifyFull => TlsMode::VerifyFull,
        },
        allow_cleartext_login: target.allow_cleartext_login,
    }
}

struct Done {
    stream: TargetStream,
    greeting: Bytes,
    minor: u32,
    early: Bytes,
    process_id: u32,
    secret: Bytes,
}

async fn drive(
    machine: &mut Connect,
    tcp: TcpStream,
    mode: Mode,
    tls: Option<&PreparedTls>,
    asker: Asker<'_>,
    progress: &mut Progress,
) -> Result<Done, Refusal> {
    let broke = |error: std::io::Error| {
        tracing::warn!(agent = asker.agent, connection = asker.connection, %error, "the target's login broke off");
        Refusal::new(
            End::TargetUnreachable,
            "the target closed the connection during the login",
            "Ask an administrator to look at the target's log.",
        )
    };
    let mut stream = TargetStream::Plain(tcp);
    let mut buffer = vec![0; LOGIN_READ_BYTES];
    loop {
        match machine.step() {
            Step::Send(bytes) => {
                stream.write_all(&bytes).await.map_err(broke)?;
                stream.flush().await.map_err(broke)?;
            }
            Step::Need => {
                let read = stream.read(&mut buffer).await.map_err(broke)?;
                if read == 0 {
                    return Err(broke(std::io::ErrorKind::UnexpectedEof.into()));
                }
                machine.receive(buffer.get(..read).unwrap_or_default());
            }
            Step::StartTls => {
                let (TargetStream::Plain(tcp), Some((config, name))) = (stream, tls) else {
                    return Err(Refusal::new(End::TargetTls, "TLS was asked for twice", ""));
                };
                progress.enter(Stage::Tls);
                let encrypted = handshake(tcp, config, name, mode, asker, progress).await?;
                progress.enter(Stage::Login);
                let certificate = encrypted.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let end_point = certificate.and_then(|certificate| server_end_point(certificate));
                machine.tls_started(mode == Mode::VerifyFull, end_point);
                stream = TargetStream::Tls(Box::new(encrypted));
            }
            Step::Ready {
                greeting,
                process_id,
                secret,
                minor,
                rest,
            } => {
                return Ok(Done {
                    stream,
                    greeting,
                    minor,
                    early: rest,
                    process_id,
                    secret,
                });
            }
            Step::Failed(refusal) => {
                tracing::warn!(
                    agent = asker.agent, connection = asker.connection, end = %refusal.end, code = refusal.code,
                    message = refusal.message, "the target's login failed"
                );
                return Err(refusal);
            }
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
    mode: Mode,
    asker: Asker<'_>,
    progress: &mut Progress,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Refusal> {
    TlsConnector::from(Arc::clone(config)).connect(name.clone(), tcp).await.map_err(|error| {
        tracing::warn!(agent = asker.agent, connection = asker.connection, ?name, %error, "TLS with the target failed");
        progress.cause = error.to_string();
        let why = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(cause)) => reason(cause),
            _ => "the handshake failed",
        };
        let hint = if mode == Mode::VerifyFull {
            "Ask an administrator to compare the connection's CA and TLS server name with the target's certificate."
        } else {
            "Ask an administrator to look at the target's TLS configuration; the agent's log names the cause."
        };
        Refusal::new(End::TargetTls, format!("TLS with the target failed: {why}"), hint)
    })
}

/// rustls' own words may hold the target's name.
fn reason(cause: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError as Cause;
    match cause {
        Cause::Expired | Cause::ExpiredContext { .. } => "its certificate has expired",
        Cause::NotValidYet | Cause::NotValidYetContext { .. } => "its certificate is not valid yet",
        Cause::UnknownIssuer | Cause::BadSignature => "its certificate is not signed by the connection's CA",
        Cause::NotValidForName | Cause::NotValidForNameContext { .. } => "its certificate is for another name",
        _ => "its certificate is not acceptable",
    }
}
