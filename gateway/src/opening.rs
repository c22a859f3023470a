//! `Opener`: a granted session's life on its arbiter, from the record's start to its end.
//!
//! The `Session` actor hears kills; the life that it runs does the work: record, welcome, dispatch, the target's
//! greeting, the relay, the end. Every way out passes `finish`, so every session's end is recorded once.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::{Actor, Addr, Context, Handler, Recipient, ResponseFuture};
use bytes::Bytes;
use futures_util::StreamExt;
use hoop_actors::budget::ByteBudget;
use hoop_actors::control::Order;
use hoop_actors::mux::{Mux, MuxConfig, MuxEvent};
use hoop_actors::recorder::{Commit, RecordError, Recorder};
use hoop_actors::relay::{self, Counts, HoldLimits, Parts, RecordLimits, RecordMode};
use hoop_actors::session::{self, How, Session, Ties};
use hoop_actors::stage::Chain;
use hoop_evidence::{ArbiterJournal, AuditMode, SessionRecorder, fault};
use hoop_proto::end::{End, Refusal};
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{self, Ended, Notice, Started};
use hoop_proto::link::{Cancel, Control, Parameter, Ready, Target, control, target};
use hoop_proto::postgres::accept::{Accept, Startup};
use hoop_proto::postgres::session::{Limits, Session as PostgresDialogue};
use hoop_store::Store;
use hoop_store::connections::{self, Connection, Secret};
use hoop_store::credentials::CredentialRecord;
use hoop_store::users::Role;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{Instrument, error, info, info_span, warn};
use uuid::Uuid;

use crate::cancel::{CancelKey, CancelKeys};
use crate::directory::Freshness;
use crate::links::FrameStream;
use crate::links::dispatch::{Dispatcher, Request};
use crate::links::registry::LinkLoad;
use crate::listeners::client_stream::ClientStream;
use crate::policy::grant::{self, Grant};
use crate::policy::startup::{NotStarted, StartupStatements};
use crate::sessions::{Closed, Entry, Known, Open, Sessions, stopping};

/// From the agent's Attach to its login at the target.
const TARGET_LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// One question to the store during a login.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest write of a farewell to a client that does not read.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// The session's bytes travel on this channel; 0 is the session itself.
const BYTES_CHANNEL: u32 = 1;
/// Ends that wait for an arbiter's parent.
const PARENT_MAILBOX_MESSAGES: usize = 1024;
/// Longest time that a statement is held for fresh policy; then its session ends.
const STALE_HOLD_MAX: Duration = Duration::from_secs(60);
/// How often a statement that waits for fresh policy looks again.
const STALE_CHECK: Duration = Duration::from_millis(200);

/// One arbiter's opener.
pub struct Opener {
    pub arbiter: usize,
    pub replica: Uuid,
    pub store: Store,
    pub journal: ArbiterJournal,
    pub dispatcher: Dispatcher,
    pub sessions: Addr<Sessions>,
    /// Hears how this arbiter's sessions end.
    pub parent: Recipient<session::Ended>,
    pub cancel_keys: CancelKeys,
    pub freshness: Freshness,
    pub link_budget: ByteBudget,
    /// Where a person makes a credential.
    pub credentials_url: String,
}

/// A client that may come in.
pub struct Opening {
    pub stream: ClientStream,
    pub accept: Accept,
    pub startup: Startup,
    pub grant: Grant,
    pub client: SocketAddr,
    /// When its credential expires.
    pub expires_at: Instant,
}

impl Opener {
    /// The credential that a login names, whatever its state; `None` where there is none.
    ///
    /// # Errors
    /// The `Refusal` to tell where the store does not answer.
    pub async fn look_up(&self, user: &str) -> Result<Option<CredentialRecord>, Refusal> {
        let away = |problem: String| {
            warn!(problem, "a login cannot be looked up");
            Refusal::new(
                End::PolicyStale,
                "the gateway cannot reach its own database to check this login",
                "Try again in a moment; if it lasts, tell the operator that Hoop's store is away.",
            )
        };
        match tokio::time::timeout(STORE_TIMEOUT, self.store.lookup_credential(user)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(away(error.to_string())),
            Err(_) => Err(away(format!("no answer within {} s", STORE_TIMEOUT.as_secs()))),
        }
    }

    /// Starts the session's actor and registers it; the life then goes on by itself.
    pub async fn open(self: Rc<Self>, opening: Opening) {
        let id = Uuid::now_v7();
        let (user, connection) = (opening.grant.user(), opening.grant.connection());
        let span = info_span!("session", %id, user = user.username, connection = connection.name);
        let max_on_connection = usize::try_from(connection.max_sessions).unwrap_or(usize::MAX);
        let known = Known {
            user: user.username.clone(),
            credential: opening.grant.credential().to_owned(),
            connection: connection.name.clone(),
            connection_id: connection.id,
            agent: connection.agent.clone(),
            member: user.role == Role::Member,
        };
        let (go, admitted) = oneshot::channel::<Result<(), Refusal>>();
        let opener = self.clone();
        let address = Session::begin(id, self.parent.clone(), move |ties| {
            async move {
                let admitted = admitted.await.unwrap_or_else(|_| Err(stopping()));
                run(&opener, id, opening, admitted, ties).await
            }
            .instrument(span)
        });
        let open = Open {
            id,
            entry: Entry {
                kill: address.recipient(),
                known,
            },
            max_on_connection,
        };
        let answer = self.sessions.send(open).await.unwrap_or_else(|_| Err(stopping()));
        drop(go.send(answer));
    }
}

/// The recorder, shared by the relay and by whoever records the end.
#[derive(Clone)]
struct SharedRecorder {
    recorder: Rc<RefCell<SessionRecorder>>,
    freshness: Freshness,
}

impl Recorder for SharedRecorder {
    fn append(&mut self, body: Body) -> Result<(), RecordError> {
        match &body {
            // the first of a statement's result: it was forwarded, and the target has answered
            Body::Output(_) => fault::point("after_forward"),
            Body::Outcome(_) => fault::point("before_outcome"),
            _ => {}
        }
        self.recorder.borrow_mut().append(body)
    }

    fn commit(&mut self) -> Result<Commit, RecordError> {
        fault::point("before_journal");
        let commit = self.recorder.borrow_mut().commit()?;
        fault::point("after_journal");
        if !self.freshness.stale() {
            return Ok(commit);
        }
        // DESIGN §2.6: with rules older than policy_stale_max_s, statements are held until the store is back
        let freshness = self.freshness.clone();
        Ok(Commit::Wait(Box::pin(async move {
            if let Commit::Wait(safe) = commit {
                safe.await?;
            }
            let held = Instant::now();
            while freshness.stale() {
                if held.elapsed() > STALE_HOLD_MAX {
                    return Err(RecordError("the present rules could not be confirmed".into()));
                }
                tokio::time::sleep(STALE_CHECK).await;
            }
            Ok(())
        })))
    }
}

/// Parent of this arbiter's sessions: closes the record of one that could not, and takes it off the registry.
pub struct SessionParent {
    pub journal: ArbiterJournal,
    pub sessions: Addr<Sessions>,
}

impl Actor for SessionParent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(PARENT_MAILBOX_MESSAGES);
    }
}

impl Handler<session::Ended> for SessionParent {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, ended: session::Ended, _: &mut Self::Context) -> Self::Result {
        if ended.how != How::Finished {
            let record = record_of_end(&ended.refusal, ended.counts);
            if let Err(error) = self.journal.end(&ended.session, record) {
                error!(session = %ended.session, %error, "a session's end cannot be recorded; the journal's replay tells it");
            }
        }
        let sessions = self.sessions.clone();
        Box::pin(async move {
            let _ = sessions.send(Closed(ended.session)).await;
        })
    }
}

fn record_of_end(refusal: &Refusal, counts: Counts) -> Ended {
    Ended {
        code: refusal.end.code().into(),
        message: refusal.message.clone(),
        statements: counts.statements,
        client_bytes: counts.client_bytes,
        target_bytes: counts.target_bytes,
    }
}

async fn run(
    opener: &Rc<Opener>,
    id: Uuid,
    mut opening: Opening,
    admitted: Result<(), Refusal>,
    ties: Ties,
) -> Refusal {
    // Registered by now: whatever changed before is seen here, whatever changes later ends the session.
    let admitted = match admitted {
        Ok(()) => ask_again(opener, &mut opening).await,
        refused => refused,
    };
    if let Err(refusal) = admitted {
        info!(%refusal, "session refused");
        farewell(&mut opening, &refusal).await;
        return refusal;
    }
    let mode = audit_mode(opening.grant.connection());
    let recorder = match opener.journal.begin(started(opener, id, &opening), mode) {
        Ok(recorder) => Rc::new(RefCell::new(recorder)),
        Err(error) => {
            error!(%error, "a session was refused because its record cannot be kept");
            let refusal = unrecordable();
            farewell(&mut opening, &refusal).await;
            return refusal;
        }
    };
    info!(client = %opening.client, database = opening.grant.database(), "session starts");
    let shared = SharedRecorder {
        recorder: recorder.clone(),
        freshness: opener.freshness.clone(),
    };
    let counters = ties.counters.clone();
    let refusal = live(opener, id, opening, shared, ties).await;
    let counts = counters.counts();
    info!(end = %refusal.end, statements = counts.statements, reason = refusal.message, "session ended");
    let recorded = recorder.borrow_mut().end(record_of_end(&refusal, counts));
    if let Err(error) = recorded {
        error!(%error, "the end of a session cannot be recorded; the journal's replay tells it");
    }
    refusal
}

/// The credential was looked up before its password was proved; it may have been revoked, or its access taken, since.
async fn ask_again(opener: &Opener, opening: &mut Opening) -> Result<(), Refusal> {
    let credential = opening.grant.credential();
    let record = opener.look_up(credential).await?.ok_or_else(|| {
        Refusal::new(
            End::CredentialRevoked,
            "this credential is no more",
            "Make a new credential.",
        )
    })?;
    opening.expires_at = Instant::now() + Duration::from_secs(record.expires_in_s);
    let request = grant::Request {
        credential,
        database: opening.startup.database.as_deref(),
        replication: opening.startup.replication,
    };
    opening.grant = grant::authorise(record, &request, &opener.credentials_url)?;
    Ok(())
}

fn unrecordable() -> Refusal {
    Refusal::new(
        End::RecordFailed,
        "the gateway cannot keep the record of this session",
        "Tell the operator: the journal's disk or its byte budget is used up. Nothing was sent to the target.",
    )
}

fn audit_mode(connection: &Connection) -> AuditMode {
    match connection.audit_mode {
        connections::AuditMode::Journalled => AuditMode::Journalled,
        connections::AuditMode::Synced => AuditMode::Synced,
        connections::AuditMode::Strict => AuditMode::Strict,
    }
}

fn started(opener: &Opener, id: Uuid, opening: &Opening) -> Started {
    let (user, connection) = (opening.grant.user(), opening.grant.connection());
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let parameter = |wanted: &str| {
        let found = opening.startup.parameters.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    Started {
        session: Bytes::copy_from_slice(id.as_bytes()),
        started_at_us: u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX),
        protocol: connection.protocol.clone(),
        user: user.username.clone(),
        user_id: Bytes::copy_from_slice(user.id.as_bytes()),
        email: user.email.clone(),
        groups: user.groups.clone(),
        connection: connection.name.clone(),
        connection_id: Bytes::copy_from_slice(connection.id.as_bytes()),
        agent: connection.agent.clone(),
        client_address: opening.client.to_string(),
        credential: opening.grant.credential().to_owned(),
        policy_version: u64::try_from(connection.version).unwrap_or_default(),
        replica: Bytes::copy_from_slice(opener.replica.as_bytes()),
        database: opening.grant.database().to_owned(),
        application: parameter("application_name"),
        client_tls: opening.startup.tls,
        audit_mode: audit_mode(connection).as_str().into(),
    }
}

/// Tells a client that has proved its password, but has no session, why.
async fn farewell(opening: &mut Opening, refusal: &Refusal) {
    let bytes = opening.accept.refuse(refusal);
    let telling = async {
        opening.stream.write_all(&bytes).await?;
        opening.stream.shutdown().await
    };
    // a client that does not read its refusal misses it
    drop(tokio::time::timeout(FAREWELL_TIMEOUT, telling).await);
}

async fn live(
    opener: &Rc<Opener>,
    id: Uuid,
    mut opening: Opening,
    mut recorder: SharedRecorder,
    mut ties: Ties,
) -> Refusal {
    let chain = Chain::start(Vec::new());
    let mut asked = StartupStatements::default();
    let reaching = reach(opener, id, &mut opening, &mut recorder, &chain, &mut asked);
    let mut reached = tokio::select! {
        reached = reaching => reached,
        order = ties.control.killed() => Err(order.refusal),
    };
    ties.counters.statements.set(asked.count());
    if asked.over(&mut recorder, reached.as_ref().err()).is_err() {
        reached = Err(unrecordable());
    }
    match reached {
        Ok(reached) => carry(opening, reached, recorder, chain, asked.count(), ties).await,
        Err(refusal) => {
            info!(%refusal, "no session with the target");
            farewell(&mut opening, &refusal).await;
            refusal
        }
    }
}

/// A session whose target has greeted.
struct Reached {
    mux: Mux,
    key: CancelKey,
    load: Option<LinkLoad>,
}

/// From the welcome to the target's greeting.
async fn reach(
    opener: &Rc<Opener>,
    id: Uuid,
    opening: &mut Opening,
    recorder: &mut SharedRecorder,
    chain: &Chain,
    asked: &mut StartupStatements,
) -> Result<Reached, Refusal> {
    let gone = |_| Refusal::new(End::ClientClosed, "the client left before the target was reached", "");
    for (name, value) in &opening.startup.parameters {
        let notice = Notice {
            kind: "setting".into(),
            text: format!("{name}={value}"),
        };
        recorder.append(Body::Notice(notice)).map_err(|_| unrecordable())?;
    }
    let judged = asked.judge(chain, recorder, &opening.startup.parameters).await;
    judged.map_err(|not| match not {
        NotStarted::Refused(refusal) => refusal,
        NotStarted::Unrecorded(error) => {
            error!(%error, "a session was refused because its start-up settings cannot be recorded");
            unrecordable()
        }
    })?;
    // The session's start is safe before anything reaches the target.
    match recorder.commit().map_err(|_| unrecordable())? {
        Commit::Done => {}
        Commit::Wait(safe) => safe.await.map_err(|_| unrecordable())?,
    }
    let welcome = opening.accept.welcome();
    opening.stream.write_all(&welcome).await.map_err(gone)?;
    let key = opener.cancel_keys.take(opening.startup.minor).ok_or_else(|| {
        Refusal::new(
            End::TooManySessions,
            "this gateway has no room for another session",
            "Try again in a moment.",
        )
    })?;
    let connection = opening.grant.connection();
    let request = Request {
        session: id,
        agent: connection.agent.clone(),
        connection: connection.name.clone(),
        target: target_of(opener, opening).await?,
    };
    let (attached, load) = opener.dispatcher.anywhere(&request, opener.arbiter).await?;
    let config = MuxConfig {
        budget: opener.link_budget.clone(),
    };
    let (mux, outbox) = Mux::start(attached.inbound, config);
    let frames: FrameStream = Box::pin(outbox.map(Ok));
    let lost = || {
        Refusal::new(
            End::LinkLost,
            "the agent was lost before it reached the target",
            "Try again.",
        )
    };
    attached.outbound.send(frames).map_err(|_| lost())?;
    let ready = match tokio::time::timeout(TARGET_LOGIN_TIMEOUT, greeting(&mux)).await {
        Ok(ready) => ready?,
        Err(_) => {
            let seconds = TARGET_LOGIN_TIMEOUT.as_secs();
            return Err(Refusal::new(
                End::TargetUnreachable,
                format!(
                    "the target of the connection \"{}\" did not answer within {seconds} s",
                    connection.name
                ),
                "Try again; if it happens again, ask the operator whether the database is up and reachable for the agent.",
            ));
        }
    };
    let greeted = Accept::ready(&ready.greeting, key.process_id, &key.secret);
    opening.stream.write_all(&greeted).await.map_err(gone)?;
    opening.stream.flush().await.map_err(gone)?;
    Ok(Reached { mux, key, load })
}

async fn target_of(opener: &Opener, opening: &Opening) -> Result<Target, Refusal> {
    let connection = opening.grant.connection();
    let reading = tokio::time::timeout(STORE_TIMEOUT, opener.store.connection_secret(connection.id)).await;
    let secret = match reading {
        Ok(Ok(secret)) => secret,
        Ok(Err(problem)) => {
            warn!(%problem, "the target's secret cannot be read");
            return Err(no_secret(connection));
        }
        Err(_) => return Err(no_secret(connection)),
    };
    let parameters = opening
        .startup
        .parameters
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "user" | "database"));
    Ok(Target {
        protocol: connection.protocol.clone(),
        host: connection.host.clone(),
        port: u32::from(connection.port),
        user: connection.user.clone(),
        secret: secret.map(|secret| match secret {
            Secret::Value(value) => target::Secret::Value(Bytes::copy_from_slice(value.as_bytes())),
            Secret::Reference(reference) => target::Secret::Reference(reference),
        }),
        tls: connection.tls.as_str().into(),
        tls_ca_pem: Bytes::copy_from_slice(connection.tls_ca_pem.as_bytes()),
        tls_server_name: connection.tls_server_name.clone(),
        allow_cleartext_login: connection.allow_cleartext_login,
        options: [("database".to_owned(), opening.grant.database().to_owned())].into(),
        startup: parameters
            .map(|(name, value)| Parameter {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        protocol_minor: opening.startup.minor,
        cancel_only: false,
    })
}

fn no_secret(connection: &Connection) -> Refusal {
    Refusal::new(
        End::TargetSecretMissing,
        format!(
            "the gateway cannot read the target's password of the connection \"{}\"",
            connection.name
        ),
        "Try again in a moment; if it lasts, ask the operator to set the connection's password anew.",
    )
}

/// Waits for the agent's login at the target.
async fn greeting(mux: &Mux) -> Result<Ready, Refusal> {
    loop {
        match mux.next_event().await {
            MuxEvent::Control(0, message) => {
                if let Some(control::Body::Ready(ready)) = message.body {
                    return Ok(ready);
                }
            }
            MuxEvent::Control(..) | MuxEvent::Open(..) => {}
            MuxEvent::Close(Some(refusal)) => return Err(refusal),
            MuxEvent::Close(None) => {
                return Err(Refusal::new(
                    End::TargetClosed,
                    "the target closed the connection during its login",
                    "",
                ));
            }
            MuxEvent::Lost(problem) => return Err(problem.refusal()),
        }
    }
}

/// The session's main part: both pumps, cancels, expiry.
async fn carry(
    opening: Opening,
    reached: Reached,
    recorder: SharedRecorder,
    chain: Chain,
    statements: u64,
    ties: Ties,
) -> Refusal {
    let Reached { mux, mut key, load } = reached;
    let connection = opening.grant.connection();
    let mode = match connection.record {
        connections::Record::Default => RecordMode::Default,
        connections::Record::Full => RecordMode::Full,
        connections::Record::Off => RecordMode::Off,
    };
    let idle_timeout = (connection.idle_timeout_s > 0).then(|| Duration::from_secs(connection.idle_timeout_s.into()));
    let parts = Parts {
        client: opening.stream,
        early: opening.accept.into_rest(),
        dialogue: PostgresDialogue::new(Limits::default()).after(statements),
        channel: mux.channel(BYTES_CHANNEL),
        mux: mux.clone(),
        recorder,
        chain,
        record: RecordLimits {
            mode,
            ..RecordLimits::default()
        },
        holds: HoldLimits::default(),
        control: ties.control,
        counters: ties.counters,
        idle_timeout,
    };
    let mut relay = std::pin::pin!(relay::run(parts));
    let mut expiry = std::pin::pin!(tokio::time::sleep_until(opening.expires_at));
    let mut expired = false;
    let end = loop {
        tokio::select! {
            biased;
            end = &mut relay => break end,
            Some(()) = key.cancels.recv() => {
                let cancelled = evidence::Control { kind: "cancel".into(), by: "client".into() };
                if !ties.sender.note(Body::Control(cancelled)) {
                    warn!("too many cancels wait to be recorded; this one is not passed on");
                    continue;
                }
                let cancel = Control { body: Some(control::Body::Cancel(Cancel::default())) };
                if let Err(problem) = mux.control(0, cancel) {
                    warn!(%problem, "a cancel was not passed on");
                }
            }
            () = &mut expiry, if !expired => {
                expired = true;
                let message = "this session's credential has expired";
                let refusal = Refusal::new(End::CredentialExpired, message, "Make a new credential and connect again.");
                ties.sender.kill(Order { refusal, by: "expiry".into() });
            }
        }
    };
    drop(load);
    end.refusal
}
