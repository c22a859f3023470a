//! `KeyWatch`: reads the master key's file again when it changes, so that a key can be rotated while the gateway serves;
//! has every arbiter go on in a journal file under the key that seals now; and tells the store which keys this replica
//! has and its journal needs, for `rotate-master-key` to wait for.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use actix::{Actor, ArbiterHandle, AsyncContext, Context};
use hoop_actors::handle::Handle;
use hoop_evidence::Journal;
use hoop_evidence::writer::{AuditSetup, AuditWriter, Log};
use hoop_store::Store;
use hoop_store::seal::{KeyId, MasterKey};
use serde_json::json;
use tracing::{info, warn};
use uuid::Uuid;

use crate::key_file;
use crate::tree::follow_master_key;

/// How often is looked whether the file has changed, and what the journal needs.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest report to the store.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the record of a change.
const RECORD_TIMEOUT: Duration = Duration::from_secs(8);
/// Stands in a report for the keys of journals of earlier runs, while they are carried over.
const OF_EARLIER_RUNS: &str = "earlier runs";

/// By what a changed file is noticed.
type Stamp = Option<(SystemTime, u64)>;

/// What a watch is made from.
#[derive(Clone)]
pub struct KeyWatchParts {
    pub path: PathBuf,
    pub master: MasterKey,
    pub journal: Journal,
    pub audit: AuditSetup,
    pub arbiters: Vec<ArbiterHandle>,
    pub store: Store,
    pub replica: Uuid,
    pub writer: Handle<AuditWriter>,
}

/// The actor, on the main arbiter. One that starts over reads the file again.
pub struct KeyWatch {
    parts: KeyWatchParts,
    state: State,
}

#[derive(Default)]
struct State {
    stamp: Stamp,
    reporting: bool,
    /// What the store knows.
    reported: Option<(Vec<KeyId>, Vec<KeyId>)>,
}

impl KeyWatch {
    #[must_use]
    pub fn new(parts: KeyWatchParts) -> Self {
        Self {
            parts,
            state: State::default(),
        }
    }

    fn stamp(&self) -> Stamp {
        let metadata = std::fs::metadata(&self.parts.path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    fn check(&mut self, ctx: &mut Context<Self>) {
        let stamp = self.stamp();
        if stamp != self.state.stamp {
            self.state.stamp = stamp;
            self.read_again(ctx);
        }
        self.report(ctx);
    }

    fn read_again(&self, ctx: &mut Context<Self>) {
        let before = self.parts.master.ids();
        let replaced = key_file::read(&self.parts.path).map(|keys| self.parts.master.replace(&key_file::bytes(&keys)));
        match replaced {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return warn!(%error, "the master key's file is not taken; the present keys stay"),
            Err(error) => return warn!(%error, "the master key's file is not taken; the present keys stay"),
        }
        let after = self.parts.master.ids();
        if after == before {
            return;
        }
        info!(?after, "the master key's file has changed; the first key seals");
        follow_master_key(&self.parts.arbiters);
        // recorded; and the commit lets the writer remove what is done of the journal
        let log = Log {
            kind: "master_key.changed".into(),
            payload: json!({"by": {"replica": self.parts.replica}, "subject": self.parts.replica, "before": before, "after": after}),
        };
        let writer = self.parts.writer.clone();
        ctx.spawn(actix::fut::wrap_future(async move {
            if !matches!(writer.ask(log, RECORD_TIMEOUT).await, Ok(Ok(()))) {
                warn!("the change of the master key could not be recorded");
            }
        }));
    }

    fn report(&mut self, ctx: &mut Context<Self>) {
        let mut journal_keys = self.parts.journal.sealed_under();
        let sealing = self.parts.master.sealing();
        if journal_keys.iter().any(|key| *key != sealing) {
            // one that could not follow at once
            follow_master_key(&self.parts.arbiters);
        }
        if self.parts.audit.status().replaying {
            journal_keys.push(OF_EARLIER_RUNS.into());
        }
        let told = (self.parts.master.ids(), journal_keys);
        if self.state.reporting || self.state.reported.as_ref() == Some(&told) {
            return;
        }
        self.state.reporting = true;
        let (store, replica) = (self.parts.store.clone(), self.parts.replica);
        let telling = actix::fut::wrap_future::<_, Self>(async move {
            let telling = store.report_keys(replica, &told.0, &told.1);
            let done = tokio::time::timeout(REPORT_TIMEOUT, telling).await;
            matches!(done, Ok(Ok(()))).then_some(told)
        });
        ctx.spawn(actix::ActorFutureExt::map(telling, |told, watch: &mut Self, _| {
            watch.state.reporting = false;
            // what could not be told is told at the next look
            if told.is_some() {
                watch.state.reported = told;
            }
        }));
    }
}

impl Actor for KeyWatch {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.check(ctx);
        ctx.run_interval(CHECK_INTERVAL, |watch, ctx| watch.check(ctx));
    }
}
