//! What a session's record holds of the session itself: its start, its end, and what a commit waits for. The relay
//! fills in the rest.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::{Actor, Addr, Context, Handler, ResponseFuture};
use bytes::Bytes;
use hoop_actors::recorder::{Commit, RecordError, Recorder};
use hoop_actors::relay::Counts;
use hoop_actors::session::{self, How};
use hoop_evidence::{ArbiterJournal, AuditMode, SessionRecorder, fault};
use hoop_proto::end::{End, Refusal};
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Ended, Notice, Started};
use hoop_store::connections::{self, Connection, StoreAway};
use tokio::time::Instant;
use tracing::error;
use uuid::Uuid;

use super::{Opener, Opening};
use crate::directory::Freshness;
use crate::metrics;
use crate::sessions::{Closed, Sessions};

/// Ends that wait for an arbiter's parent.
const PARENT_MAILBOX_MESSAGES: usize = 1024;
/// Longest time that a statement is held for fresh policy; then its session ends.
const STALE_HOLD_MAX: Duration = Duration::from_secs(60);
/// How often a statement that waits for fresh policy looks again.
const STALE_CHECK: Duration = Duration::from_millis(200);

/// The recorder, shared by the relay and by whoever records the end.
#[derive(Clone)]
pub(super) struct SharedRecorder {
    recorder: Rc<RefCell<SessionRecorder>>,
    freshness: Freshness,
    store_away: StoreAway,
    /// The record says already that statements go on by old rules.
    said: Rc<Cell<bool>>,
}

impl SharedRecorder {
    pub(super) fn new(recorder: Rc<RefCell<SessionRecorder>>, freshness: Freshness, connection: &Connection) -> Self {
        Self {
            recorder,
            freshness,
            store_away: connection.store_away,
            said: Rc::default(),
        }
    }

    /// Whether what is to be committed must wait for fresh rules. Where the connection's `store_away` lets it go on, the
    /// record says so before that, once for each time that the rules become too old.
    fn must_wait(&self) -> Result<bool, RecordError> {
        if !self.freshness.stale() {
            self.said.set(false);
            return Ok(false);
        }
        if self.store_away == StoreAway::Refuse {
            return Ok(true);
        }
        if !self.said.replace(true) {
            let notice = Notice {
                kind: "store_away".into(),
                text: "the present rules cannot be confirmed; this connection goes on (store_away = continue)".into(),
            };
            self.recorder.borrow_mut().append(Body::Notice(notice))?;
        }
        Ok(false)
    }
}

impl Recorder for SharedRecorder {
    fn append(&mut self, body: Body) -> Result<(), RecordError> {
        match &body {
            // before it, for the record tells things in their order
            Body::Attempt(_) => drop(self.must_wait()?),
            // the first of a statement's result: it was forwarded, and the target has answered
            Body::Output(_) => fault::point("after_forward"),
            Body::Outcome(_) => fault::point("before_outcome"),
            _ => {}
        }
        self.recorder.borrow_mut().append(body)
    }

    fn commit(&mut self) -> Result<Commit, RecordError> {
        fault::point("before_journal");
        let must_wait = self.must_wait()?;
        let commit = self.recorder.borrow_mut().commit()?;
        fault::point("after_journal");
        if !must_wait {
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
            metrics::ended(ended.refusal.end);
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

pub(super) fn record_of_end(refusal: &Refusal, counts: Counts) -> Ended {
    Ended {
        code: refusal.end.code().into(),
        message: refusal.message.clone(),
        statements: counts.statements,
        client_bytes: counts.client_bytes,
        target_bytes: counts.target_bytes,
    }
}

pub(super) fn unrecordable() -> Refusal {
    Refusal::new(
        End::RecordFailed,
        "the gateway cannot keep the record of this session",
        "Tell the operator: the journal's disk or its byte budget is used up. Nothing was sent to the target.",
    )
}

pub(super) fn audit_mode(connection: &Connection) -> AuditMode {
    match connection.audit_mode {
        connections::AuditMode::Journalled => AuditMode::Journalled,
        connections::AuditMode::Synced => AuditMode::Synced,
        connections::AuditMode::Strict => AuditMode::Strict,
    }
}

pub(super) fn started(opener: &Opener, id: Uuid, opening: &Opening) -> Started {
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
        agent: opening.agent.clone(),
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
