//! Port 15432: a PostgreSQL client's handshake, and its session from the proved credential to its end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use bytes::{Bytes, BytesMut};
use chrono::Utc;
use hoop_actors::gate::GateTicket;
use hoop_proto::end::{End, Refusal};
use hoop_proto::postgres::accept::{Accept, AcceptOptions, Startup, Step};
use hoop_store::credentials::CredentialRecord;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::ClientStream;
use super::canceller::Canceller;
use crate::certificates::Certificates;
use crate::metrics::{self, LOGINS_FAILED, LOGINS_OK, Stage};
use crate::opening::{Opener, Opening};
use crate::policy::grant;
use crate::telemetry::SessionTrace;

/// From the first byte to the proved credential.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest write of a refusal to a client that does not read.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// One read during the handshake.
const HANDSHAKE_READ_BYTES: usize = 4096;

/// What every connection of this port needs. One value an arbiter.
pub struct PostgresPort {
    pub certificates: Certificates,
    pub mock_key: [u8; 32],
    /// Where a person makes a credential.
    pub credentials_url: String,
    pub canceller: Canceller,
    pub opener: Rc<Opener>,
}

/// A client whose start-up is over.
struct Proved {
    stream: ClientStream,
    accept: Accept,
    startup: Startup,
    record: CredentialRecord,
}

enum Handshake {
    Proved(Box<Proved>),
    Cancel { process_id: u32, secret: Bytes },
    Over,
}

impl PostgresPort {
    /// One connection, from its first byte to its end.
    pub async fn serve(self: Rc<Self>, socket: TcpStream, client: SocketAddr, ticket: GateTicket) {
        let began = Clock::now();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(socket, &ticket));
        let outcome = tokio::select! {
            outcome = handshake => outcome,
            () = ticket.evicted() => {
                debug!(%client, "closed before its login: its address opened more connections than are allowed at once");
                return;
            }
        };
        match outcome {
            Ok(Ok(Handshake::Proved(proved))) => {
                ticket.authenticated();
                LOGINS_OK.inc();
                Stage::Login.took(began.elapsed());
                let trace = self.opener.telemetry.session(began);
                trace.step(Stage::Login.name(), began, false);
                self.open(*proved, client, trace).await;
            }
            Ok(Ok(Handshake::Cancel { process_id, secret })) => {
                self.canceller.cancel(client, process_id, secret).await;
            }
            Ok(Ok(Handshake::Over)) => {}
            Ok(Err(error)) => debug!(%client, %error, "the connection broke during its login"),
            Err(_) => debug!(%client, "no login within {} s", HANDSHAKE_TIMEOUT.as_secs()),
        }
    }

    async fn handshake(&self, socket: TcpStream, ticket: &GateTicket) -> std::io::Result<Handshake> {
        let mut first = [0u8; 1];
        let direct = socket.peek(&mut first).await? == 1 && first == [TLS_HANDSHAKE_BYTE];
        let mut accept = Accept::new(AcceptOptions {
            tls: true,
            mock_key: self.mock_key,
            on_tls_direct: direct,
            credentials_url: self.credentials_url.clone(),
        });
        let mut stream = ClientStream::Plain(socket);
        if direct {
            stream = self.start_tls(stream, &mut accept).await?;
        }
        let mut record = None;
        let mut buffer = BytesMut::new();
        loop {
            match accept.step() {
                Step::Need => {
                    buffer.clear();
                    buffer.reserve(HANDSHAKE_READ_BYTES);
                    if stream.read_buf(&mut buffer).await? == 0 {
                        return Ok(Handshake::Over);
                    }
                    ticket.spoke();
                    accept.receive(&buffer);
                }
                Step::Send(bytes) => {
                    stream.write_all(&bytes).await?;
                    stream.flush().await?;
                }
                Step::StartTls => stream = self.start_tls(stream, &mut accept).await?,
                Step::Ask { user } => match self.opener.look_up(&user).await {
                    Ok(found) => {
                        accept.answer(found.as_ref().map(|record| record.verifier.clone()));
                        record = found;
                    }
                    Err(refusal) => {
                        metrics::denied(refusal.end);
                        refuse(&mut stream, &accept, &refusal).await;
                        return Ok(Handshake::Over);
                    }
                },
                Step::Cancel { process_id, secret } => return Ok(Handshake::Cancel { process_id, secret }),
                Step::Proved(startup) => {
                    let Some(record) = record else {
                        return Ok(Handshake::Over);
                    };
                    return Ok(Handshake::Proved(Box::new(Proved {
                        stream,
                        accept,
                        startup,
                        record,
                    })));
                }
                Step::Failed { send, refusal } => {
                    debug!(%refusal, "login refused");
                    LOGINS_FAILED.inc();
                    metrics::denied(refusal.end);
                    stream.write_all(&send).await?;
                    stream.shutdown().await?;
                    return Ok(Handshake::Over);
                }
            }
        }
    }

    async fn start_tls(&self, stream: ClientStream, accept: &mut Accept) -> std::io::Result<ClientStream> {
        let ClientStream::Plain(socket) = stream else {
            return Err(std::io::Error::other("TLS within TLS"));
        };
        let tls = self.certificates.people();
        let stream = TlsAcceptor::from(tls.config.clone()).accept(socket).await?;
        accept.tls_started(tls.server_end_point.clone());
        Ok(ClientStream::Tls(Box::new(stream)))
    }

    /// The credential is proved: decide, and run the session.
    async fn open(&self, proved: Proved, client: SocketAddr, mut trace: SessionTrace) {
        let proved_at = Clock::now();
        let Proved {
            mut stream,
            accept,
            startup,
            record,
        } = proved;
        let expires_at = Instant::now() + Duration::from_secs(record.expires_in_s);
        let request = grant::Request {
            credential: &startup.user,
            database: startup.database.as_deref(),
            replication: startup.replication,
            address: client.ip(),
            now: Utc::now(),
        };
        let granted = if self.opener.freshness.stale() {
            Err(Refusal::new(
                End::PolicyStale,
                "this gateway has not reached its own database for too long to know the present rules",
                "Try again in a moment; if it lasts, tell the operator that Hoop's store is away.",
            ))
        } else {
            grant::authorise(record, &request, &self.opener.store.rules(), &self.credentials_url)
        };
        match granted {
            Ok(grant) => {
                let opening = Opening {
                    stream,
                    accept,
                    startup,
                    grant,
                    agent: String::new(),
                    client,
                    expires_at,
                    proved_at,
                    trace,
                };
                self.opener.clone().open(opening).await;
            }
            Err(refusal) => {
                info!(%client, credential = startup.user, %refusal, "session refused");
                metrics::denied(refusal.end);
                trace.step(Stage::Authorise.name(), proved_at, true);
                trace.ends(refusal.end);
                refuse(&mut stream, &accept, &refusal).await;
            }
        }
    }
}

/// The first byte of a TLS record that begins a handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE_BYTE: u8 = 0x16;

async fn refuse(stream: &mut ClientStream, accept: &Accept, refusal: &Refusal) {
    let farewell = accept.refuse(refusal);
    let telling = async {
        stream.write_all(&farewell).await?;
        stream.shutdown().await
    };
    // a client that does not read its refusal misses it
    drop(tokio::time::timeout(REFUSAL_TIMEOUT, telling).await);
}
