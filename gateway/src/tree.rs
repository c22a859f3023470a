//! The supervisor tree, built top to bottom: store, evidence, registries, arbiters, listeners, API. Read this file to
//! know what runs; each part's own file says how.
//!
//! ```text
//! root ── AuditWriter · Directory · Lease · Links · Sessions      (one each)
//!      ├─ Listener link, Listener postgres                        (restarted with backoff)
//!      └─ arbiter 0…n ── gRPC server ── AgentLink…                (the agent redials)
//!                     └─ PostgresPort ── Session ── Stage…        (never restarted)
//! ```

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, Arbiter, ArbiterHandle};
use anyhow::{Context, Result, anyhow};
use hoop_actors::budget::ByteBudget;
use hoop_actors::gate::Gate;
use hoop_actors::handle::Handle;
use hoop_actors::keeper::{Keeper, Policy};
use hoop_actors::shutdown::{Shutdown, Trigger};
use hoop_evidence::writer::{AuditSetup, AuditWriter, Finish};
use hoop_evidence::{ArbiterJournal, Journal, JournalConfig};
use hoop_proto::end::End;
use hoop_store::database_url::DatabaseUrl;
use hoop_store::embedded::Embedded;
use hoop_store::{Store, StoreConfig};
use rustls::ServerConfig;
use tokio::sync::watch;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::api;
use crate::cancel::CancelKeys;
use crate::config::{Config, StoreChoice};
use crate::control::{Addresses, GatewayControl};
use crate::directory::{Directory, DirectoryParts, Freshness, Hint};
use crate::lease::{LEASE_LOST, Lease, LeaseParts};
use crate::links::dispatch::Dispatcher;
use crate::links::peer::PeerDialer;
use crate::links::port::LinkPort;
use crate::links::registry::{Carried, DrainAll, Links};
use crate::links::service::LinkService;
use crate::links::tickets::Tickets;
use crate::listeners::canceller::Canceller;
use crate::listeners::port::{Deliver, Listener, bind};
use crate::listeners::postgres::PostgresPort;
use crate::opening::{Opener, SessionParent};
use crate::ready::{self, Ready};
use crate::sessions::{Close, Count, EndSessions, Sessions, Which};
use crate::vital::Vital;
use crate::{limits, setup, tls};

/// How often a drain looks whether sessions are left.
const DRAIN_CHECK: Duration = Duration::from_millis(100);
/// Longest wait for an arbiter to answer at start.
const ARBITER_START_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for ended sessions to tell their ends.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(7);
/// Why the process stops when one of its parts cannot be kept running.
const PART_LOST: &str = "a part could not be kept running";
/// Longest wait for the directory to take a hint.
const HINT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the last evidence to be committed.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections before their login, over all ports and addresses.
const HANDSHAKES_MAX: usize = 8192;

thread_local! {
    /// This arbiter's ends of the ports.
    static PORTS: RefCell<Option<ArbiterPorts>> = const { RefCell::new(None) };
}

#[derive(Clone)]
struct ArbiterPorts {
    journal: ArbiterJournal,
    link: LinkPort,
    postgres: Rc<PostgresPort>,
}

/// What every arbiter gets; its own ports are made of it there.
#[derive(Clone)]
struct Shared {
    store: Store,
    journal: Journal,
    tickets: Tickets,
    links: Addr<Links>,
    sessions: Addr<Sessions>,
    peers: PeerDialer,
    cancel_keys: CancelKeys,
    freshness: Freshness,
    budget: ByteBudget,
    replica: Uuid,
    replicas: watch::Receiver<Vec<Uuid>>,
    link_tls: Arc<ServerConfig>,
    postgres_tls: Arc<ServerConfig>,
    server_end_point: Option<Vec<u8>>,
    credentials_url: String,
    arbiters: usize,
}

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting; after the start, why it had to stop.
pub async fn run(config: Config) -> Result<()> {
    let trigger = Trigger::default();
    trigger.on_signals().context("cannot listen for signals")?;
    let keeper = Keeper::new();
    let root = Arbiter::try_current().context("not within a system")?;
    limits::raise_open_files();
    setup::data_dir(&config)?;
    let master = setup::master_key(&config)?;
    let (url, embedded) = database(&config).await?;
    let store = Store::open(
        &StoreConfig {
            url,
            pool_size: config.database_pool,
        },
        master.clone(),
    )
    .await?;
    let installation = store.installation().clone();
    let root_key = hex::encode(installation.audit_root_public());
    info!(installation = %installation.id, audit_root = root_key, new = installation.is_new, "installation");

    // ports are bound before anything says where they are
    let link_socket =
        bind(config.listen_link).with_context(|| format!("cannot listen on {} for agents", config.listen_link))?;
    let postgres_socket = bind(config.listen_postgres)
        .with_context(|| format!("cannot listen on {} for PostgreSQL clients", config.listen_postgres))?;
    let api_socket =
        bind(config.listen_api).with_context(|| format!("cannot listen on {} for the API", config.listen_api))?;
    let link_port = link_socket.local_addr()?.port();
    let addresses = Addresses {
        link: format!("{}:{link_port}", config.public_host),
        postgres_host: config.public_host.clone(),
        postgres_port: postgres_socket.local_addr()?.port(),
    };
    let public_url = config.public_url.clone().unwrap_or_else(|| {
        let scheme = if config.api_tls { "https" } else { "http" };
        let port = api_socket.local_addr().map_or(8009, |address| address.port());
        format!("{scheme}://{}:{port}", config.public_host)
    });
    setup::admin(&config, &store).await?;
    setup::default_agent(&config, &store, &addresses.link, &installation.ca.pin()).await?;

    let peer_address = config.peer_address.clone().unwrap_or_else(|| addresses.link.clone());
    let replica = store.claim_replica(&peer_address).await?;
    info!(replica = %replica.id, slot = replica.slot, peer_address, "this replica's place");

    // evidence
    let journal = Journal::open(journal_config(&config, replica.id)?, master)?;
    let evidence_arbiter = Arbiter::new();
    let audit = AuditSetup::new(
        store.clone(),
        journal.clone(),
        &installation.audit_root,
        replica.id,
        config.data_dir.join("checkpoints.ndjson"),
    )?;
    let setup_of_writer = audit.clone();
    let writer = keeper.keep(
        "audit writer",
        &evidence_arbiter.handle(),
        Policy::default(),
        move || AuditWriter::new(setup_of_writer.clone()),
    );

    // registries: what they know is told to them once, so their loss ends the process
    let freshness = Freshness::new(Duration::from_secs(config.policy_stale_max_s));
    let links = Links::new(
        store.clone(),
        replica,
        Vital::new("the registry of links was lost", &trigger),
    )
    .start();
    let sessions = Sessions::new(
        config.max_sessions,
        Vital::new("the registry of sessions was lost", &trigger),
    )
    .start();
    let (live, replicas) = watch::channel(vec![replica.id]);
    let lease = LeaseParts {
        store: store.clone(),
        replica,
        links: links.clone(),
        writer: writer.clone(),
        live,
        trigger: trigger.clone(),
    };
    keeper.keep("lease", &root, Policy::default(), move || Lease::new(lease.clone()));
    let directory = DirectoryParts {
        store: store.clone(),
        sessions: sessions.clone(),
        links: links.clone(),
        freshness: freshness.clone(),
        // a directory that starts over goes on from where the last one was
        last: Arc::new(AtomicI64::new(store.latest_change().await?)),
    };
    let directory = keeper.keep("directory", &root, Policy::default(), move || {
        Directory::new(directory.clone())
    });
    actix_rt::spawn(hints(listen_url(&config, &store)?, directory));

    // TLS of the ports
    let names = server_names(&config);
    let leaf = installation.ca.issue_server(&names)?;
    let replica_leaf = installation.ca.issue_replica(replica.id)?;
    let ca_der = installation.ca.cert_der();
    let mut link_names = names.clone();
    link_names.push(tls::REPLICA_NAME.into());
    let link_leaf = installation.ca.issue_server(&link_names)?;
    let shared = Shared {
        tickets: Tickets::default(),
        links: links.clone(),
        sessions: sessions.clone(),
        peers: PeerDialer::new(tls::peer_client(&replica_leaf, ca_der)?),
        cancel_keys: CancelKeys::new(u32::from(replica.slot)),
        freshness: freshness.clone(),
        budget: ByteBudget::new(config.link_budget_bytes),
        replica: replica.id,
        replicas,
        link_tls: tls::link_server(&link_leaf, ca_der)?,
        postgres_tls: tls::server("PostgreSQL clients", &leaf, &[b"postgresql"])?,
        server_end_point: tls::server_end_point(&leaf),
        credentials_url: format!("{public_url}/connections"),
        arbiters: config.arbiters,
        store: store.clone(),
        journal: journal.clone(),
    };
    let arbiters = start_arbiters(&shared).await?;

    // listeners: agents first, so that the first client finds one
    let gate = Gate::new(HANDSHAKES_MAX, config.handshakes_per_address);
    let door = gate.clone();
    let to_link = deliver(&arbiters, move |ports: ArbiterPorts, socket, client| {
        let door = door.clone();
        async move {
            let Some(ticket) = door.enter(client.ip()) else { return };
            tokio::select! {
                () = ports.link.serve(socket, client) => {}
                () = ticket.evicted() => {}
            }
        }
    });
    keeper.keep(
        "listener of agents",
        &root,
        Policy::default(),
        Listener::factory("link", link_socket, to_link),
    );
    let to_postgres = deliver(&arbiters, move |ports: ArbiterPorts, socket, client| {
        let gate = gate.clone();
        async move {
            let Some(ticket) = gate.enter(client.ip()) else { return };
            ports.postgres.serve(socket, client, ticket).await;
        }
    });
    keeper.keep(
        "listener of PostgreSQL clients",
        &root,
        Policy::default(),
        Listener::factory("postgres", postgres_socket, to_postgres),
    );
    let control = GatewayControl {
        store: store.clone(),
        sessions: sessions.clone(),
        links: links.clone(),
        writer: writer.clone(),
        audit,
        freshness,
        addresses: addresses.clone(),
    };
    let served = api::serve(
        &config,
        api_socket,
        &leaf,
        &public_url,
        store.clone(),
        Arc::new(control),
    )?;
    ready::write(
        &config,
        &Ready {
            api: public_url_of_this_machine(&config, served.port),
            link: format!("127.0.0.1:{link_port}"),
            postgres: format!("127.0.0.1:{}", addresses.postgres_port),
            root_key,
            admin_user: config.admin_user.clone(),
            admin_password_file: setup::admin_password_file(&config),
            agent_key_file: setup::agent_key_file(&config),
            replica: replica.id,
            pid: std::process::id(),
        },
    )?;
    info!(
        api = public_url,
        link = addresses.link,
        postgres = addresses.postgres_port,
        "ready"
    );

    let why = tokio::select! {
        why = trigger.begun() => why,
        lost = keeper.gave_up() => {
            error!(part = lost.name, ends = lost.ends, "a part of the gateway ends again and again; it stops");
            trigger.begin(PART_LOST);
            PART_LOST
        }
    };
    info!(why, "stopping: no new sessions; a second signal hurries");
    let drain_deadline = Duration::from_secs(config.shutdown_deadline_s);
    Shutdown::new(trigger, drain_deadline + LAST_WORDS_TIMEOUT + FINISH_TIMEOUT)
        .phase("drain", drain_deadline, drain(drain_deadline, links, sessions.clone()))
        .phase("api", LAST_WORDS_TIMEOUT, async move { served.handle.stop(true).await })
        .phase("sessions", LAST_WORDS_TIMEOUT, end_all(sessions))
        .phase("arbiters", LAST_WORDS_TIMEOUT, async move {
            close_arbiters(&arbiters).await
        })
        .phase("evidence", FINISH_TIMEOUT, finish(writer))
        .run()
        .await;
    if let Err(error) = store.release_replica(&replica).await {
        warn!(%error, "cannot give this replica's place back; its lease runs out by itself");
    }
    ready::remove(&config);
    keeper.stop();
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    if why == LEASE_LOST || why == PART_LOST {
        Err(anyhow!("stopped because {why}"))
    } else {
        Ok(())
    }
}

/// Commits the last evidence.
async fn finish(writer: Handle<AuditWriter>) {
    match writer.ask(Finish, FINISH_TIMEOUT).await {
        Ok(Ok(())) => {}
        // the journal stays, and is carried over at the next start
        Ok(Err(error)) => warn!(%error, "the evidence was not closed in order"),
        Err(error) => warn!(%error, "the evidence was not closed in order"),
    }
}

/// Drops what lives on the arbiters (their journals among it), then stops them.
async fn close_arbiters(arbiters: &[ArbiterHandle]) {
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

/// The store's URL, and the embedded server where there is one.
async fn database(config: &Config) -> Result<(DatabaseUrl, Option<Embedded>)> {
    match &config.store {
        StoreChoice::Url(url) => Ok((DatabaseUrl::parse(&url.0).context("DATABASE_URL")?, None)),
        StoreChoice::Embedded => {
            let embedded = Embedded::start(&config.data_dir).await?;
            Ok((embedded.url().clone(), Some(embedded)))
        }
    }
}

fn journal_config(config: &Config, writer: Uuid) -> Result<JournalConfig> {
    let arbiters = u32::try_from(config.arbiters).context("arbiters")?;
    let mut journal = JournalConfig::new(config.data_dir.join("journal"), arbiters);
    journal.writer = writer;
    journal.budget_bytes = config.journal_budget_bytes;
    journal.segment_bytes = config.journal_segment_bytes;
    Ok(journal)
}

/// Names of the listeners' certificates.
fn server_names(config: &Config) -> Vec<String> {
    let mut names = vec![
        config.public_host.clone(),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ];
    names.dedup();
    names
}

fn public_url_of_this_machine(config: &Config, port: u16) -> String {
    format!("{}://127.0.0.1:{port}", if config.api_tls { "https" } else { "http" })
}

/// Where LISTEN works: past a pooler, where there is one.
fn listen_url(config: &Config, store: &Store) -> Result<DatabaseUrl> {
    match &config.database_direct_url {
        Some(url) => DatabaseUrl::parse(&url.0).context("DATABASE_DIRECT_URL"),
        None => Ok(store.url().clone()),
    }
}

/// Passes the store's hints on, for as long as the gateway runs.
async fn hints(url: DatabaseUrl, directory: Handle<Directory>) {
    let mut hints = match hoop_store::changes::listen(&url) {
        Ok(hints) => hints,
        Err(error) => {
            warn!(%error, "changes are heard of by polling alone");
            return;
        }
    };
    loop {
        hints.next().await;
        // a directory that is down reads the log when it starts over
        let _ = directory.ask(Hint, HINT_TIMEOUT).await;
    }
}

async fn start_arbiters(shared: &Shared) -> Result<Vec<ArbiterHandle>> {
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
    let dispatcher = Dispatcher {
        store: shared.store.clone(),
        tickets: shared.tickets.clone(),
        links: shared.links.clone(),
        peers: shared.peers.clone(),
        replica: shared.replica,
    };
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
        credentials_url: shared.credentials_url.clone(),
    };
    let postgres = PostgresPort {
        tls: shared.postgres_tls.clone(),
        server_end_point: shared.server_end_point.clone(),
        mock_key: shared.store.installation().mock_key,
        credentials_url: shared.credentials_url.clone(),
        canceller: Canceller::new(shared.cancel_keys.clone(), shared.store.clone(), shared.peers.clone()),
        opener: Rc::new(opener),
    };
    ArbiterPorts {
        journal,
        link: LinkPort::start(service, shared.link_tls.clone()),
        postgres: Rc::new(postgres),
    }
}

/// Hands each connection to the arbiters in turn.
fn deliver<F, S>(arbiters: &[ArbiterHandle], serve: F) -> Deliver
where
    F: Fn(ArbiterPorts, tokio::net::TcpStream, SocketAddr) -> S + Clone + Send + Sync + 'static,
    S: Future<Output = ()> + 'static,
{
    let arbiters = arbiters.to_vec();
    let turn = AtomicUsize::new(0);
    Arc::new(move |socket: TcpStream, client| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let Some(arbiter) = arbiters.get(turn % arbiters.len().max(1)) else {
            return;
        };
        let serve = serve.clone();
        arbiter.spawn_fn(move || {
            let Some(ports) = PORTS.with_borrow(Clone::clone) else {
                return;
            };
            match tokio::net::TcpStream::from_std(socket) {
                Ok(socket) => drop(actix_rt::spawn(serve(ports, socket, client))),
                Err(error) => error!(%error, "an accepted socket cannot be used"),
            }
        });
    })
}

/// Asks agents and sessions to go, and waits until none is left.
async fn drain(deadline: Duration, links: Addr<Links>, sessions: Addr<Sessions>) {
    let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    let _ = sessions.send(Close).await;
    let _ = links.send(DrainAll { deadline_ms }).await;
    until_empty(&sessions).await;
    // sessions of other replicas that this one's agents carry
    while links.send(Carried).await.is_ok_and(|carried| carried > 0) {
        tokio::time::sleep(DRAIN_CHECK).await;
    }
}

async fn until_empty(sessions: &Addr<Sessions>) {
    while sessions.send(Count).await.is_ok_and(|count| count > 0) {
        tokio::time::sleep(DRAIN_CHECK).await;
    }
}

/// Ends what is left and waits until it has told its end.
async fn end_all(sessions: Addr<Sessions>) {
    let end = EndSessions {
        which: Which::All,
        end: End::Shutdown,
        by: "shutdown".into(),
        message: "the gateway is stopping; connect again".into(),
    };
    if sessions.send(end).await.is_ok_and(|told| told > 0) {
        until_empty(&sessions).await;
    }
}
