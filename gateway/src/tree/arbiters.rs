//! The arbiters: what each holds of the ports, how it starts, how an accepted connection gets to it, how it closes.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, Arbiter, ArbiterHandle};
use anyhow::{Context, Result, anyhow};
use hoop_actors::budget::ByteBudget;
use hoop_actors::gate::{Gate, GateTicket};
use hoop_evidence::{ArbiterJournal, Journal};
use hoop_store::Store;
use tokio::sync::watch;
use tracing::{error, warn};
use uuid::Uuid;

use crate::cancel::CancelKeys;
use crate::certificates::Certificates;
use crate::directory::Freshness;
use crate::links::dispatch::Dispatcher;
use crate::links::peer::PeerDialer;
use crate::links::port::LinkPort;
use crate::links::registry::Links;
use crate::links::service::LinkService;
use crate::links::tickets::Tickets;
use crate::listeners::canceller::Canceller;
use crate::listeners::origin::TrustedProxies;
use crate::listeners::port::Deliver;
use crate::listeners::postgres::PostgresPort;
use crate::opening::{Opener, SessionParent};
use crate::sessions::Sessions;
use crate::telemetry::Telemetry;

/// Longest wait for an arbiter to answer at start.
const ARBITER_START_TIMEOUT: Duration = Duration::from_secs(20);

thread_local! {
    /// This arbiter's ends of the ports.
    static PORTS: RefCell<Option<ArbiterPorts>> = const { RefCell::new(None) };
}

#[derive(Clone)]
pub(super) struct ArbiterPorts {
    pub journal: ArbiterJournal,
    pub link: LinkPort,
    pub postgres: Rc<PostgresPort>,
}

/// What every arbiter gets; its own ports are made of it there.
#[derive(Clone)]
pub(super) struct Shared {
    pub store: Store,
    pub journal: Journal,
    pub tickets: Tickets,
    pub links: Addr<Links>,
    pub sessions: Addr<Sessions>,
    pub peers: PeerDialer,
    pub cancel_keys: CancelKeys,
    pub freshness: Freshness,
    pub budget: ByteBudget,
    pub replica: Uuid,
    pub replicas: watch::Receiver<Vec<Uuid>>,
    pub certificates: Certificates,
    pub credentials_url: String,
    pub telemetry: Telemetry,
    pub arbiters: usize,
}

impl Shared {
    pub(super) fn dispatcher(&self) -> Dispatcher {
        Dispatcher {
            store: self.store.clone(),
            tickets: self.tickets.clone(),
            links: self.links.clone(),
            peers: self.peers.clone(),
            replica: self.replica,
        }
    }
}

pub(super) async fn start_arbiters(shared: &Shared) -> Result<Vec<ArbiterHandle>> {
    let mut handles = Vec::new();
    for number in 0..shared.arbiters {
        let arbiter = Arbiter::new();
        let handle = arbiter.handle();
        let shared = shared.clone();
        let (started, up) = tokio::sync::oneshot::channel();
        let spawned = handle.spawn_fn(move || {
            PORTS.set(Some(ports_of(&shared, number)));
            let _ = started.send(());
        });
        if !spawned {
            return Err(anyhow!("arbiter {number} did not start"));
        }
        tokio::time::timeout(ARBITER_START_TIMEOUT, up)
            .await
            .with_context(|| format!("arbiter {number}"))??;
        handles.push(handle);
    }
    Ok(handles)
}

/// This arbiter's ends of the ports. Runs on the arbiter.
fn ports_of(shared: &Shared, arbiter: usize) -> ArbiterPorts {
    let dispatcher = shared.dispatcher();
    let service = LinkService {
        store: shared.store.clone(),
        tickets: shared.tickets.clone(),
        links: shared.links.clone(),
        dispatcher: dispatcher.clone(),
        cancel_keys: shared.cancel_keys.clone(),
        replica: shared.replica,
        replicas: shared.replicas.clone(),
        arbiter,
        arbiters: shared.arbiters,
    };
    let journal = shared.journal.arbiter(u32::try_from(arbiter).unwrap_or_default());
    let parent = SessionParent {
        journal: journal.clone(),
        sessions: shared.sessions.clone(),
    }
    .start();
    let opener = Opener {
        arbiter,
        replica: shared.replica,
        store: shared.store.clone(),
        journal: journal.clone(),
        parent: parent.recipient(),
        dispatcher,
        sessions: shared.sessions.clone(),
        cancel_keys: shared.cancel_keys.clone(),
        freshness: shared.freshness.clone(),
        link_budget: shared.budget.clone(),
        telemetry: shared.telemetry.clone(),
        credentials_url: shared.credentials_url.clone(),
    };
    let postgres = PostgresPort {
        certificates: shared.certificates.clone(),
        mock_key: shared.store.installation().mock_key,
        credentials_url: shared.credentials_url.clone(),
        canceller: Canceller::new(shared.cancel_keys.clone(), shared.store.clone(), shared.peers.clone()),
        opener: Rc::new(opener),
    };
    ArbiterPorts {
        journal,
        link: LinkPort::start(service, shared.certificates.clone()),
        postgres: Rc::new(postgres),
    }
}

/// What every connection passes on its way in, whatever its port.
#[derive(Clone)]
pub(super) struct Door {
    pub gate: Gate,
    pub proxies: TrustedProxies,
}

impl Door {
    /// Its place at the door and the address that it has it by; `None`: the connection is closed.
    async fn enter(&self, socket: &mut tokio::net::TcpStream, peer: SocketAddr) -> Option<(SocketAddr, GateTicket)> {
        let ticket = self.gate.enter(peer.ip())?;
        if !self.proxies.trusts(peer.ip()) {
            return Some((peer, ticket));
        }
        // until its header is here, a proxy's connection has its place by the proxy's own address
        let origin = tokio::select! {
            origin = self.proxies.origin(socket, peer) => origin,
            () = ticket.evicted() => return None,
        };
        match origin {
            Ok(client) => Some((client, self.gate.enter(client.ip())?)),
            Err(error) => {
                warn!(%peer, %error, "a connection of a trusted proxy is closed; it must send the PROXY protocol");
                None
            }
        }
    }
}

/// Hands each connection to the arbiters in turn.
pub(super) fn deliver<F, S>(arbiters: &[ArbiterHandle], door: &Door, serve: F) -> Deliver
where
    F: Fn(ArbiterPorts, tokio::net::TcpStream, SocketAddr, GateTicket) -> S + Clone + Send + Sync + 'static,
    S: Future<Output = ()> + 'static,
{
    let arbiters = arbiters.to_vec();
    let door = door.clone();
    let turn = AtomicUsize::new(0);
    Arc::new(move |socket: TcpStream, peer| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let Some(arbiter) = arbiters.get(turn % arbiters.len().max(1)) else {
            return;
        };
        let (serve, door) = (serve.clone(), door.clone());
        arbiter.spawn_fn(move || {
            let Some(ports) = PORTS.with_borrow(Clone::clone) else {
                return;
            };
            let mut socket = match tokio::net::TcpStream::from_std(socket) {
                Ok(socket) => socket,
                Err(error) => {
                    error!(%error, "an accepted socket cannot be used");
                    return;
                }
            };
            actix_rt::spawn(async move {
                if let Some((client, ticket)) = door.enter(&mut socket, peer).await {
                    serve(ports, socket, client, ticket).await;
                }
            });
        });
    })
}

/// Has every arbiter go on in a journal file under the master key that seals now.
pub(crate) fn follow_master_key(arbiters: &[ArbiterHandle]) {
    for arbiter in arbiters {
        arbiter.spawn_fn(|| {
            PORTS.with_borrow(|ports| {
                if let Some(ports) = ports
                    && let Err(error) = ports.journal.follow_master_key()
                {
                    warn!(%error, "a journal file stays under the old master key; tried again");
                }
            });
        });
    }
}

/// Drops what lives on the arbiters (their journals among it), then stops them.
pub(super) async fn close_arbiters(arbiters: &[ArbiterHandle]) {
    for arbiter in arbiters {
        let (done, closed) = tokio::sync::oneshot::channel();
        arbiter.spawn_fn(move || {
            if let Some(ports) = PORTS.take()
                && let Err(error) = ports.journal.flush()
            {
                warn!(%error, "the last records are not in the journal");
            }
            let _ = done.send(());
        });
        let _ = closed.await;
    }
}
