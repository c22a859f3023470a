//! `Lease`: keeps this replica's place in the store, tells the links who else is live, and gives up for dead whoever
//! lost theirs.

use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context};
use hoop_evidence::writer::{AuditWriter, GiveUp};
use hoop_store::Store;
use hoop_store::replicas::{RENEW_INTERVAL, Renewal, Replica};
use tokio::sync::watch;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::links::registry::{Links, Replicas};
use hoop_actors::handle::Handle;
use hoop_actors::shutdown::Trigger;

/// Longest renewal: a hung store must not pile renewals up.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the process stops when another replica gave this one up: it must claim a new place.
pub const LEASE_LOST: &str = "its lease was lost";
/// Longest wait for the audit writer to give lost sessions their provisional end.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// What a lease is made from.
#[derive(Clone)]
pub struct LeaseParts {
    pub store: Store,
    pub replica: Replica,
    pub links: Addr<Links>,
    pub writer: Handle<AuditWriter>,
    pub live: watch::Sender<Vec<Uuid>>,
    pub trigger: Trigger,
}

/// The actor, on the main arbiter.
pub struct Lease {
    parts: LeaseParts,
    renewing: bool,
    /// Given up, but their sessions have no provisional end yet.
    lost: Vec<Uuid>,
}

struct Renewed {
    renewal: Renewal,
    live: Vec<Uuid>,
    lost: Vec<Uuid>,
}

impl Lease {
    #[must_use]
    pub const fn new(parts: LeaseParts) -> Self {
        Self {
            parts,
            renewing: false,
            lost: Vec::new(),
        }
    }

    fn renew(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.renewing, true) {
            return;
        }
        let (store, replica) = (self.parts.store.clone(), self.parts.replica);
        let renewing = async move { tokio::time::timeout(RENEW_TIMEOUT, renew(&store, &replica)).await };
        let renewing = actix::fut::wrap_future::<_, Self>(renewing);
        ctx.spawn(actix::ActorFutureExt::map(
            renewing,
            |renewed, lease: &mut Self, ctx| {
                lease.renewing = false;
                match renewed {
                    Ok(Ok(renewed)) => lease.apply(renewed, ctx),
                    Ok(Err(error)) => warn!(%error, "cannot renew this replica's lease"),
                    Err(_) => warn!("renewing this replica's lease took over 5 s"),
                }
            },
        ));
    }

    fn apply(&mut self, renewed: Renewed, ctx: &mut Context<Self>) {
        if renewed.renewal == Renewal::Lost {
            error!("this replica was given up for dead by another; it stops, so that it can start anew");
            // a second begin would hurry the shutdown
            if !self.parts.trigger.has_begun() {
                self.parts.trigger.begin(LEASE_LOST);
            }
            return;
        }
        for lost in renewed.lost {
            warn!(replica = %lost, "a replica is lost; its journal's replay will tell how its sessions ended");
            self.lost.push(lost);
        }
        for lost in std::mem::take(&mut self.lost) {
            let writer = self.parts.writer.clone();
            let giving_up = actix::fut::wrap_future::<_, Self>(async move {
                writer.ask(GiveUp { replica: lost }, GIVE_UP_TIMEOUT).await
            });
            ctx.spawn(actix::ActorFutureExt::map(
                giving_up,
                move |given, lease: &mut Self, _| {
                    let problem = match given {
                        Ok(Ok(sessions)) => {
                            info!(replica = %lost, sessions, "its sessions have a provisional end");
                            return;
                        }
                        Ok(Err(error)) => error.to_string(),
                        Err(error) => error.to_string(),
                    };
                    warn!(replica = %lost, problem, "its sessions have no provisional end yet; asked again at the next renewal");
                    lease.lost.push(lost);
                },
            ));
        }
        if *self.parts.live.borrow() != renewed.live {
            info!(replicas = renewed.live.len(), "the set of live replicas changed");
            self.parts.live.send_replace(renewed.live.clone());
            let links = self.parts.links.clone();
            ctx.spawn(actix::fut::wrap_future(async move {
                let _ = links.send(Replicas(renewed.live)).await;
            }));
        }
    }
}

async fn renew(store: &Store, replica: &Replica) -> Result<Renewed, hoop_store::StoreError> {
    let renewal = store.renew_replica(replica).await?;
    let live = store.live_replicas().await?.into_iter().map(|row| row.id).collect();
    let mut lost = Vec::new();
    for expired in store.expired_replicas(replica).await? {
        if store.mark_replica_lost(expired.id).await? {
            lost.push(expired.id);
        }
    }
    Ok(Renewed { renewal, live, lost })
}

impl Actor for Lease {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.renew(ctx);
        ctx.run_interval(RENEW_INTERVAL, |lease, ctx| lease.renew(ctx));
    }
}
