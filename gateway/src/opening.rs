//! `Opener`: a granted session's life on its arbiter, from the record's start to its end.
//!
//! The `Session` actor hears kills; the life that it runs does the work: record, welcome, dispatch, the target's
//! greeting, the relay, the end. Every way out passes `finish`, so every session's end is recorded once.

mod carry;
mod place;
mod record;
mod target;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use actix::{Addr, Recipient};
use chrono::Utc;
use hoop_actors::budget::ByteBudget;
use hoop_actors::session::{self, Session, Ties};
use hoop_actors::stage::Chain;
use hoop_evidence::ArbiterJournal;
use hoop_proto::end::{End, Refusal};
use hoop_proto::postgres::accept::{Accept, Startup};
use hoop_store::Store;
use hoop_store::credentials::CredentialRecord;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{Instrument, error, info, info_span, warn};
use uuid::Uuid;

use self::carry::carry;
use self::place::Place;
pub use self::record::SessionParent;
use self::record::{SharedRecorder, audit_mode, record_of_end, started, unrecordable};
use self::target::reach;
use crate::cancel::CancelKeys;
use crate::directory::Freshness;
use crate::links::dispatch::Dispatcher;
use crate::listeners::ClientStream;
use crate::metrics::{self, SESSIONS_STARTED, Stage};
use crate::policy::grant::{self, Grant};
use crate::policy::startup::StartupStatements;
use crate::sessions::{Entry, Known, Open, Sessions, stopping};
use crate::telemetry::{SessionTrace, Telemetry};

/// One question to the store during a login.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest write of a farewell to a client that does not read.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

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
    pub telemetry: Telemetry,
    /// Where a person makes a credential.
    pub credentials_url: String,
}

/// A client that may come in.
pub struct Opening {
    pub stream: ClientStream,
    pub accept: Accept,
    pub startup: Startup,
    pub grant: Grant,
    /// The agent that is to serve it, of the connection's.
    pub agent: String,
    pub client: SocketAddr,
    /// When its credential expires.
    pub expires_at: Instant,
    /// When it proved its credential.
    pub proved_at: Clock,
    pub trace: SessionTrace,
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
    pub async fn open(self: Rc<Self>, mut opening: Opening) {
        let id = Uuid::now_v7();
        let agents = &opening.grant.connection().agents;
        opening.agent = self.dispatcher.choose(agents, self.arbiter).await.unwrap_or_default();
        let (user, connection) = (opening.grant.user(), opening.grant.connection());
        let span = info_span!("session", %id, user = user.username, connection = connection.name);
        opening.trace.is(id, &connection.protocol, &connection.name);
        let known = Known {
            user: user.username.clone(),
            user_id: user.id,
            client: opening.client.ip(),
            credential: opening.grant.credential().to_owned(),
            connection: connection.name.clone(),
            connection_id: connection.id,
            agent: opening.agent.clone(),
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
        };
        let answer = self.sessions.send(open).await.unwrap_or_else(|_| Err(stopping()));
        drop(go.send(answer));
    }
}

async fn run(
    opener: &Rc<Opener>,
    id: Uuid,
    mut opening: Opening,
    admitted: Result<(), Refusal>,
    ties: Ties,
) -> Refusal {
    let mut trace = std::mem::take(&mut opening.trace);
    let refusal = admitted_or_not(opener, id, opening, admitted, ties, &trace).await;
    trace.ends(refusal.end);
    refusal
}

async fn admitted_or_not(
    opener: &Rc<Opener>,
    id: Uuid,
    mut opening: Opening,
    admitted: Result<(), Refusal>,
    ties: Ties,
    trace: &SessionTrace,
) -> Refusal {
    // Registered by now: whatever changed before is seen here, whatever changes later ends the session.
    let admitted = match admitted {
        Ok(()) => admit(opener, id, &mut opening).await,
        Err(refusal) => Err(refusal),
    };
    Stage::Authorise.took(opening.proved_at.elapsed());
    trace.step(Stage::Authorise.name(), opening.proved_at, admitted.is_err());
    let place = match admitted {
        Ok(place) => place,
        Err(refusal) => {
            info!(%refusal, "session refused");
            metrics::denied(refusal.end);
            farewell(&mut opening, &refusal).await;
            return refusal;
        }
    };
    let refusal = recorded(opener, id, opening, ties, trace).await;
    if let Some(place) = place {
        place.give_back().await;
    }
    refusal
}

/// What is asked of the store once the session is registered: its rights again, and a place on its connection.
async fn admit(opener: &Opener, id: Uuid, opening: &mut Opening) -> Result<Option<Place>, Refusal> {
    ask_again(opener, opening).await?;
    Place::take(opener, id, opening.grant.connection()).await
}

/// The session's part between the first and the last event of its record.
async fn recorded(opener: &Rc<Opener>, id: Uuid, mut opening: Opening, ties: Ties, trace: &SessionTrace) -> Refusal {
    let mode = audit_mode(opening.grant.connection());
    let recorder = match opener.journal.begin(started(opener, id, &opening), mode) {
        Ok(recorder) => Rc::new(RefCell::new(recorder)),
        Err(error) => {
            error!(%error, "a session was refused because its record cannot be kept");
            let refusal = unrecordable();
            metrics::denied(refusal.end);
            farewell(&mut opening, &refusal).await;
            return refusal;
        }
    };
    SESSIONS_STARTED.inc();
    info!(client = %opening.client, database = opening.grant.database(), "session starts");
    let shared = SharedRecorder::new(recorder.clone(), opener.freshness.clone(), opening.grant.connection());
    let counters = ties.counters.clone();
    let refusal = live(opener, id, opening, shared, ties, trace).await;
    metrics::ended(refusal.end);
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
        address: opening.client.ip(),
        now: Utc::now(),
    };
    opening.grant = grant::authorise(record, &request, &opener.store.rules(), &opener.credentials_url)?;
    Ok(())
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
    trace: &SessionTrace,
) -> Refusal {
    let chain = Chain::start(Vec::new());
    let mut asked = StartupStatements::default();
    let reaching = reach(opener, id, &mut opening, &mut recorder, &chain, &mut asked, trace);
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
