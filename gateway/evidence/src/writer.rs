//! The AuditWriter actor: the one that writes events to PostgreSQL. Its mailbox takes requests; the work is the engine's.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use aws_lc_rs::signature::Ed25519KeyPair;
use hoop_store::Store;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use uuid::Uuid;

use crate::EvidenceError;
use crate::engine::{Command, Engine, Parts, Status};
use crate::identity::Identity;
use crate::journal::Journal;

/// Requests that may wait for the engine.
const COMMANDS_MAX: usize = 256;
/// First and longest pause before a failed engine starts over, in milliseconds.
const RESTART_FROM_MS: u64 = 100;
const RESTART_MAX_MS: u64 = 5_000;
/// An engine that ran this long had started well, in milliseconds.
const RESTART_CALM_MS: u64 = 60_000;
/// Kinds of log records that only the writer itself makes begin with these.
const OWN_KINDS: [&str; 3] = ["session_", "writer_", "journal_"];

/// Everything that was journalled before is committed when this is answered.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), EvidenceError>")]
pub struct Flush;

/// An administrative record for the writer's log; answered when it is committed. `payload` is kept in clear: no secrets.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<(), EvidenceError>")]
pub struct Log {
    /// Such as `session.kill`; not one that begins with `session_`, `writer_` or `journal_`.
    pub kind: String,
    pub payload: Value,
}

/// Gives the open sessions of a lost replica the provisional end `replica_lost`; answers how many.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<u64, EvidenceError>")]
pub struct GiveUp {
    pub replica: Uuid,
}

/// Commits all that is journalled, signs a last checkpoint, and stops. Send it when no arbiter writes any more.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), EvidenceError>")]
pub struct Finish;

/// How the writer is doing; answered at once, whatever the store does.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Status")]
pub struct Describe;

/// What an AuditWriter is made from. Cheap to clone: each start of the actor, also after a panic, goes on as the same
/// writer.
#[derive(Clone)]
pub struct AuditSetup {
    store: Store,
    journal: Journal,
    identity: Arc<Identity>,
    checkpoint_file: PathBuf,
    status: Arc<Mutex<Status>>,
}

impl AuditSetup {
    /// Makes the signing key of `journal.writer()` and has the installation's audit root key certify it.
    /// `checkpoint_file`: where checkpoints are appended, one JSON line each.
    ///
    /// # Errors
    /// `EvidenceError::Random` where no key could be made.
    pub fn new(
        store: Store,
        journal: Journal,
        audit_root: &Ed25519KeyPair,
        replica: Uuid,
        checkpoint_file: impl Into<PathBuf>,
    ) -> Result<Self, EvidenceError> {
        let identity = Arc::new(Identity::new(journal.writer(), replica, audit_root)?);
        let status = Arc::new(Mutex::new(Status {
            replaying: true,
            ..Status::default()
        }));
        Ok(Self {
            store,
            journal,
            identity,
            checkpoint_file: checkpoint_file.into(),
            status,
        })
    }

    /// How the writer is doing, without asking its actor.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.journal_bytes = self.journal.used_bytes();
        status.journal_budget_bytes = self.journal.budget_bytes();
        status
    }

    fn parts(&self) -> Parts {
        Parts {
            store: self.store.clone(),
            journal: Some(self.journal.clone()),
            old: Vec::new(),
            identity: Arc::clone(&self.identity),
            checkpoint_file: Some(self.checkpoint_file.clone()),
            status: Arc::clone(&self.status),
        }
    }
}

/// The actor. Start it on an arbiter of its own: it reads files.
pub struct AuditWriter {
    setup: AuditSetup,
    commands: Option<mpsc::Sender<Command>>,
    engine: Option<AbortOnDrop>,
    restart_ms: u64,
}

impl AuditWriter {
    #[must_use]
    pub const fn new(setup: AuditSetup) -> Self {
        Self {
            setup,
            commands: None,
            engine: None,
            restart_ms: RESTART_FROM_MS,
        }
    }

    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> ResponseFuture<Result<T, EvidenceError>> {
        let (answer, answered) = oneshot::channel();
        let sent = match &self.commands {
            Some(commands) => commands.try_send(command(answer)).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => EvidenceError::Busy { limit: COMMANDS_MAX },
                mpsc::error::TrySendError::Closed(_) => EvidenceError::Stopped,
            }),
            None => Err(EvidenceError::Stopped),
        };
        Box::pin(async move {
            sent?;
            answered.await.map_err(|_| EvidenceError::Stopped)
        })
    }
}

impl Actor for AuditWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.start_engine(ctx);
    }
}

impl AuditWriter {
    /// The engine runs in a task of its own, so that even a panic in it only makes it start over, from what journal and
    /// store hold.
    fn start_engine(&mut self, ctx: &mut Context<Self>) {
        let (commands, heard) = mpsc::channel(COMMANDS_MAX);
        self.commands = Some(commands);
        let started = Instant::now();
        let engine = spawn_local(Engine::new(self.setup.parts(), heard).run());
        self.engine = Some(AbortOnDrop(engine.abort_handle()));
        ctx.spawn(engine.into_actor(self).map(move |ended, writer, ctx| {
            writer.commands = None;
            match ended {
                Ok(Ok(())) => return ctx.stop(),
                Ok(Err(error)) => tracing::error!(%error, "the audit writer starts over"),
                Err(error) => tracing::error!(%error, "the audit writer was lost and starts over"),
            }
            if started.elapsed() > Duration::from_millis(RESTART_CALM_MS) {
                writer.restart_ms = RESTART_FROM_MS;
            }
            let pause = Duration::from_millis(writer.restart_ms);
            writer.restart_ms = (writer.restart_ms * 2).min(RESTART_MAX_MS);
            ctx.run_later(pause, |writer, ctx| writer.start_engine(ctx));
        }));
    }
}

/// The engine goes with its actor.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Handler<Flush> for AuditWriter {
    type Result = ResponseFuture<Result<(), EvidenceError>>;

    fn handle(&mut self, _: Flush, _: &mut Context<Self>) -> Self::Result {
        self.ask(Command::Flush)
    }
}

impl Handler<Log> for AuditWriter {
    type Result = ResponseFuture<Result<(), EvidenceError>>;

    fn handle(&mut self, log: Log, _: &mut Context<Self>) -> Self::Result {
        let Log { kind, payload } = log;
        if kind.is_empty() || OWN_KINDS.iter().any(|own| kind.starts_with(own)) {
            let why = format!("{kind:?} is no kind of an administrative record");
            return Box::pin(async move { Err(EvidenceError::Invalid(why)) });
        }
        self.ask(|answer| Command::Log { kind, payload, answer })
    }
}

impl Handler<GiveUp> for AuditWriter {
    type Result = ResponseFuture<Result<u64, EvidenceError>>;

    fn handle(&mut self, GiveUp { replica }: GiveUp, _: &mut Context<Self>) -> Self::Result {
        self.ask(|answer| Command::GiveUp { replica, answer })
    }
}

impl Handler<Finish> for AuditWriter {
    type Result = ResponseFuture<Result<(), EvidenceError>>;

    fn handle(&mut self, _: Finish, _: &mut Context<Self>) -> Self::Result {
        self.ask(Command::Finish)
    }
}

impl Handler<Describe> for AuditWriter {
    type Result = actix::MessageResult<Describe>;

    fn handle(&mut self, _: Describe, _: &mut Context<Self>) -> Self::Result {
        actix::MessageResult(self.setup.status())
    }
}
