//! The supervisor tree, built top to bottom: store, evidence, registries, arbiters, listeners, API. Read this file to
//! know what runs; each part's own file says how.
//!
//! ```text
//! root ── AuditWriter · Directory · IdentityRefresh · Lease · Links · Sessions      (one each)
//!      ├─ Listener link, Listener postgres                        (restarted with backoff)
//!      └─ arbiter 0…n ── gRPC server ── AgentLink…                (the agent redials)
//!                     └─ PostgresPort ── Session ── Stage…        (never restarted)
//! ```

mod arbiters;
mod database;
mod stop;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use actix::{Actor, Arbiter};
use anyhow::{Context, Result};
use hoop_actors::budget::ByteBudget;
use hoop_actors::gate::Gate;
use hoop_actors::keeper::{Keeper, Policy};
use hoop_actors::process;
use hoop_actors::shutdown::Trigger;
use hoop_api::control::Control;
use hoop_evidence::writer::{AuditSetup, AuditWriter};
use hoop_evidence::{Journal, JournalConfig};
use hoop_store::{Store, StoreConfig};
use tokio::sync::watch;
use tracing::{error, info};
use uuid::Uuid;

pub(crate) use self::arbiters::follow_master_key;
use self::arbiters::{Door, Shared, deliver, start_arbiters};
use self::database::{database, listen_url};
use self::stop::Running;
use crate::api;
use crate::cancel::CancelKeys;
use crate::certificates::Issuer;
use crate::config::Config;
use crate::control::{Addresses, GatewayControl};
use crate::directory::{self, Directory, DirectoryParts, Freshness};
use crate::identity_refresh::{IdentityRefresh, RefreshParts};
use crate::key_file;
use crate::key_watch::{KeyWatch, KeyWatchParts};
use crate::lease::{Lease, LeaseParts};
use crate::links::peer::PeerDialer;
use crate::links::registry::Links;
use crate::links::tickets::Tickets;
use crate::listeners::origin::TrustedProxies;
use crate::listeners::port::{Listener, bind};
use crate::metrics;
use crate::ready::{self, Ready};
use crate::sessions::Sessions;
use crate::setup;
use crate::telemetry;
use crate::vital::Vital;

/// Why the process stops when one of its parts cannot be kept running.
const PART_LOST: &str = "a part could not be kept running";
/// Connections before their login, over all ports and addresses.
const HANDSHAKES_MAX: usize = 8192;

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting; after the start, why it had to stop.
pub async fn run(config: Config) -> Result<()> {
    metrics::begin();
    let trigger = Trigger::default();
    trigger.on_signals().context("cannot listen for signals")?;
    let keeper = Keeper::new();
    let root = Arbiter::try_current().context("not within a system")?;
    process::raise_open_files();
    setup::data_dir(&config)?;
    let master = key_file::load(&config)?;
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
    let metrics_socket = match config.metrics_listen {
        Some(address) => {
            let bound = bind(address).with_context(|| format!("cannot listen on {address} for metrics"))?;
            Some(bound)
        }
        None => None,
    };
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
    let providers = config.providers.build(&public_url)?;
    let first = setup::FirstStart::default();
    setup::admin(&config, &store, &public_url, &first).await?;
    setup::default_agent(&config, &store, &addresses.link, &installation.ca.pin(), &first).await?;

    let peer_address = config.peer_address.clone().unwrap_or_else(|| addresses.link.clone());
    let replica = store.claim_replica(&peer_address).await?;
    info!(replica = %replica.id, slot = replica.slot, peer_address, "this replica's place");

    // evidence
    let journal = Journal::open(journal_config(&config, replica.id)?, master.clone())?;
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
        replica: replica.id,
        // a directory that starts over goes on from where the last one was
        last: Arc::new(AtomicI64::new(store.latest_change().await?)),
    };
    let directory = keeper.keep("directory", &root, Policy::default(), move || {
        Directory::new(directory.clone())
    });
    actix_rt::spawn(directory::hints(listen_url(&config, &store)?, directory));

    let telemetry = telemetry::begin(config.otlp_endpoint.as_ref().map(|url| url.0.as_str()), replica.id)?;

    // TLS of the ports
    let issuer = Issuer::new(&config, installation.ca.clone(), replica.id);
    let (certificates, renewal) = issuer.begin()?;
    keeper.keep("renewal of certificates", &root, Policy::default(), move || {
        renewal.clone()
    });
    let shared = Shared {
        tickets: Tickets::default(),
        links: links.clone(),
        sessions: sessions.clone(),
        peers: PeerDialer::new(certificates.clone()),
        cancel_keys: CancelKeys::new(u32::from(replica.slot)),
        freshness: freshness.clone(),
        budget: ByteBudget::new(config.link_budget_bytes),
        replica: replica.id,
        replicas,
        certificates: certificates.clone(),
        credentials_url: format!("{public_url}/connections"),
        telemetry: telemetry.clone(),
        arbiters: config.arbiters,
        store: store.clone(),
        journal: journal.clone(),
    };
    let arbiters = start_arbiters(&shared).await?;

    let watch = KeyWatchParts {
        path: config.master_key_file.clone(),
        master,
        journal: journal.clone(),
        audit: audit.clone(),
        arbiters: arbiters.clone(),
        store: store.clone(),
        replica: replica.id,
        writer: writer.clone(),
    };
    keeper.keep("watch of the master key", &root, Policy::default(), move || {
        KeyWatch::new(watch.clone())
    });

    // listeners: agents first, so that the first client finds one
    let gate = Gate::new(HANDSHAKES_MAX, config.handshakes_per_address);
    let door = Door {
        gate,
        proxies: TrustedProxies::new(&config.trusted_proxies),
    };
    let to_link = deliver(&arbiters, &door, |ports, socket, client, ticket| async move {
        ports.link.serve(socket, client, ticket).await;
    });
    keeper.keep(
        "listener of agents",
        &root,
        Policy::default(),
        Listener::factory("link", link_socket, to_link),
    );
    let to_postgres = deliver(&arbiters, &door, |ports, socket, client, ticket| async move {
        ports.postgres.serve(socket, client, ticket).await;
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
        dispatcher: shared.dispatcher(),
        writer: writer.clone(),
        audit,
        freshness,
        addresses: addresses.clone(),
        journal_dir: config.data_dir.join("journal"),
        telemetry: telemetry.clone(),
    };
    first.settle(&control).await;
    let metrics_address = match &metrics_socket {
        Some(socket) => Some(socket.local_addr()?.to_string()),
        None => None,
    };
    let metrics = match metrics_socket {
        Some(socket) => Some(metrics::serve(socket, control.clone())?),
        None => None,
    };
    let control: Arc<dyn Control> = Arc::new(control);
    let refresh = RefreshParts {
        store: store.clone(),
        control: control.clone(),
        providers: providers.clone(),
        interval: Duration::from_secs(config.sign_in_refresh_s),
    };
    keeper.keep("identity refresh", &root, Policy::default(), move || {
        IdentityRefresh::new(refresh.clone())
    });
    let served = api::serve(
        &config,
        api_socket,
        &certificates,
        &public_url,
        store.clone(),
        control,
        providers,
    )?;
    ready::write(
        &config,
        &Ready {
            api: ready::public_url_of_this_machine(&config, served.port),
            link: format!("127.0.0.1:{link_port}"),
            postgres: format!("127.0.0.1:{}", addresses.postgres_port),
            metrics: metrics_address,
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
    stop::stop(
        why,
        Running {
            config,
            trigger,
            keeper,
            store,
            replica,
            links,
            sessions,
            writer,
            served,
            metrics,
            telemetry,
            arbiters,
            embedded,
        },
    )
    .await
}

fn journal_config(config: &Config, writer: Uuid) -> Result<JournalConfig> {
    let arbiters = u32::try_from(config.arbiters).context("arbiters")?;
    let mut journal = JournalConfig::new(config.data_dir.join("journal"), arbiters);
    journal.writer = writer;
    journal.budget_bytes = config.journal_budget_bytes;
    journal.segment_bytes = config.journal_segment_bytes;
    Ok(journal)
}
