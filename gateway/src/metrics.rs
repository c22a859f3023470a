//! `/metrics`: this replica's figures, as Prometheus reads them. docs/operations.md explains each.
//!
//! INVARIANT: no label holds a name of a person, a connection or an address: the number of series is bounded by what is
//! compiled in.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix_web::dev::ServerHandle;
use actix_web::web::Data;
use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::{Context, Result};
use hoop_actors::metrics::{Counter, Exposition, Histogram};
use hoop_actors::relay::TRAFFIC;
use hoop_api::control::Answered;
use hoop_evidence::metrics::{JOURNAL_BYTES, JOURNAL_WRITE, STORE_COMMIT, STORE_COMMIT_FAILURES};
use hoop_proto::end::End;

use crate::control::GatewayControl;
use crate::links::registry::{CountLinks, Online};
use crate::sessions::Count;
use crate::telemetry::{SPANS_DROPPED, SPANS_EXPORTED};

/// What Prometheus is told that the text is.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Routes that are told apart; the description has fewer.
const ROUTES_MAX: usize = 256;
/// Connections at once to `metrics_listen`.
const CONNECTIONS_MAX: usize = 64;
/// Longest wait for a request's head on `metrics_listen`.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const ENDS: usize = End::ALL.len();

/// A step on a session's way to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From the first byte to the proved credential; the client's own slowness is in it.
    Login,
    /// From the proved credential to the grant on which the session starts.
    Authorise,
    /// From the grant to the agent's stream.
    Dispatch,
    /// The agent's connection to the target and its login there.
    TargetLogin,
}

impl Stage {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Authorise => "authorise",
            Self::Dispatch => "dispatch",
            Self::TargetLogin => "target_login",
        }
    }

    pub fn took(self, time: Duration) {
        let histogram = match self {
            Self::Login => &LOGIN,
            Self::Authorise => &AUTHORISE,
            Self::Dispatch => &DISPATCH,
            Self::TargetLogin => &TARGET_LOGIN,
        };
        histogram.observe(time);
    }
}

static LOGIN: Histogram = Histogram::new();
static AUTHORISE: Histogram = Histogram::new();
static DISPATCH: Histogram = Histogram::new();
static TARGET_LOGIN: Histogram = Histogram::new();

/// Credentials proved on the people's ports.
pub static LOGINS_OK: Counter = Counter::new();
/// Credentials that were not.
pub static LOGINS_FAILED: Counter = Counter::new();
static API_LOGINS_OK: Counter = Counter::new();
static API_LOGINS_FAILED: Counter = Counter::new();
pub static SESSIONS_STARTED: Counter = Counter::new();
static ENDED: [Counter; ENDS] = [const { Counter::new() }; ENDS];
static DENIED: [Counter; ENDS] = [const { Counter::new() }; ENDS];
static REQUESTS: Requests = Requests(LazyLock::new(Mutex::default));
static STARTED: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));

fn of(counters: &'static [Counter; ENDS], end: End) -> Option<&'static Counter> {
    let place = End::ALL.iter().position(|known| *known == end)?;
    counters.get(place)
}

/// A session that had started is over.
pub fn ended(end: End) {
    if let Some(counter) = of(&ENDED, end) {
        counter.inc();
    }
}

/// Somebody did not get a session.
pub fn denied(end: End) {
    if let Some(counter) = of(&DENIED, end) {
        counter.inc();
    }
}

/// The API's answers. Not a hot path, so a lock will do.
struct Requests(LazyLock<Mutex<BTreeMap<String, Route>>>);

#[derive(Default)]
struct Route {
    answers: BTreeMap<(&'static str, u16), u64>,
    took: Histogram,
}

impl Requests {
    fn count(&self, answered: &Answered<'_>) {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let route = answered.route.unwrap_or("unmatched");
        if !routes.contains_key(route) {
            if routes.len() >= ROUTES_MAX {
                return;
            }
            routes.insert(route.to_owned(), Route::default());
        }
        if let Some(route) = routes.get_mut(route) {
            *route
                .answers
                .entry((method(answered.method), answered.status))
                .or_default() += 1;
            route.took.observe(answered.took);
        }
    }
}

/// A client may invent methods.
fn method(name: &str) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    KNOWN.into_iter().find(|known| *known == name).unwrap_or("other")
}

/// The API has answered.
pub fn answered(answered: &Answered<'_>) {
    REQUESTS.count(answered);
    if answered.route == Some("/api/login") && answered.method == "POST" {
        match answered.status {
            200 => API_LOGINS_OK.inc(),
            401 | 429 => API_LOGINS_FAILED.inc(),
            _ => {}
        }
    }
}

/// When the process started, as far as figures go.
pub fn begin() {
    LazyLock::force(&STARTED);
}

/// All figures as text.
pub async fn render(control: &GatewayControl) -> String {
    let mut out = Exposition::default();
    let version = env!("CARGO_PKG_VERSION");
    out.info("hoop_build_info", "What runs.", &[("version", version)]);
    sessions(&mut out, control).await;
    record(&mut out, control);
    api(&mut out, control);
    process(&mut out);
    out.text()
}

async fn sessions(out: &mut Exposition, control: &GatewayControl) {
    let live = control.sessions.send(Count).await.unwrap_or_default();
    out.gauge("hoop_sessions_live", "Sessions that run on this replica.", live);
    out.counter(
        "hoop_sessions_started_total",
        "Sessions whose record began.",
        SESSIONS_STARTED.get(),
    );
    let codes = |counters: &'static [Counter; ENDS]| {
        (End::ALL.iter().zip(counters)).map(|(end, counter)| (end.code(), counter.get()))
    };
    out.counters(
        "hoop_sessions_ended_total",
        "Sessions that are over, by reason.",
        "code",
        codes(&ENDED),
    );
    out.counters(
        "hoop_denials_total",
        "Logins that got no session, by reason.",
        "code",
        codes(&DENIED),
    );
    out.labelled(
        "hoop_logins_total",
        "Logins by where and how they went.",
        [
            ("postgres", "ok", &LOGINS_OK),
            ("postgres", "failed", &LOGINS_FAILED),
            ("api", "ok", &API_LOGINS_OK),
            ("api", "failed", &API_LOGINS_FAILED),
        ]
        .map(|(port, outcome, counter)| (vec![("port", port), ("outcome", outcome)], counter.get())),
    );
    let bytes = [
        ("client", TRAFFIC.client_bytes.get()),
        ("target", TRAFFIC.target_bytes.get()),
    ];
    out.counters(
        "hoop_session_bytes_total",
        "Bytes of all sessions, by who sent them.",
        "from",
        bytes,
    );
    out.counter(
        "hoop_statements_total",
        "Statements of all sessions.",
        TRAFFIC.statements.get(),
    );
    out.histograms(
        "hoop_stage_seconds",
        "Steps on a session's way to its target.",
        "stage",
        [
            (Stage::Login.name(), &LOGIN),
            (Stage::Authorise.name(), &AUTHORISE),
            (Stage::Dispatch.name(), &DISPATCH),
            (Stage::TargetLogin.name(), &TARGET_LOGIN),
        ],
    );
    let links = control.links.send(CountLinks).await.unwrap_or_default();
    out.gauge("hoop_links", "Links of agents to this replica.", links);
    let agents = control.links.send(Online).await.unwrap_or_default().len();
    out.gauge("hoop_agents_online", "Agents with a link to this replica.", agents);
}

fn record(out: &mut Exposition, control: &GatewayControl) {
    let status = control.audit.status();
    out.gauge(
        "hoop_journal_bytes",
        "Bytes in the journal that the store does not have yet.",
        status.journal_bytes,
    );
    out.gauge(
        "hoop_journal_budget_bytes",
        "The journal's size at most.",
        status.journal_budget_bytes,
    );
    out.gauge("hoop_journal_segments", "Files of the journal.", segments(control));
    out.counter(
        "hoop_journal_written_bytes_total",
        "Bytes written into the journal.",
        JOURNAL_BYTES.get(),
    );
    out.histograms(
        "hoop_journal_write_seconds",
        "One write into the journal.",
        "",
        [("", &JOURNAL_WRITE)],
    );
    out.histograms(
        "hoop_store_commit_seconds",
        "One transaction of the audit writer.",
        "",
        [("", &STORE_COMMIT)],
    );
    let failures = STORE_COMMIT_FAILURES.get();
    out.counter(
        "hoop_store_commit_failures_total",
        "Those that the store did not take at once.",
        failures,
    );
    out.gauge(
        "hoop_audit_connected",
        "1: the store took the last transaction.",
        u8::from(status.connected),
    );
    out.gauge(
        "hoop_audit_log_records",
        "Records in this incarnation's log.",
        status.log_seq,
    );
    let stale = u8::from(control.freshness.stale());
    out.gauge(
        "hoop_policy_stale",
        "1: the present rules are not confirmed; new sessions are refused.",
        stale,
    );
}

fn segments(control: &GatewayControl) -> usize {
    let files = std::fs::read_dir(&control.journal_dir).map(|entries| {
        let is_segment = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "seg");
        entries.flatten().filter(is_segment).count()
    });
    files.unwrap_or_default()
}

fn api(out: &mut Exposition, control: &GatewayControl) {
    let pool = control.store.pool().status();
    out.gauge(
        "hoop_store_pool_size",
        "Connections to the store that are open.",
        pool.size,
    );
    out.gauge(
        "hoop_store_pool_max",
        "Connections to the store at most.",
        pool.max_size,
    );
    let used = pool.size.saturating_sub(pool.available);
    out.gauge(
        "hoop_store_pool_used",
        "Connections to the store that are in use.",
        used,
    );
    out.gauge(
        "hoop_store_pool_waiting",
        "Who waits for a connection to the store.",
        pool.waiting,
    );
    out.counter(
        "hoop_trace_spans_exported_total",
        "Spans that the collector took.",
        SPANS_EXPORTED.get(),
    );
    out.counter(
        "hoop_trace_spans_dropped_total",
        "Spans that it did not.",
        SPANS_DROPPED.get(),
    );
    let routes = REQUESTS.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut answers = Vec::new();
    for (path, route) in routes.iter() {
        for ((method, status), count) in &route.answers {
            answers.push((path.as_str(), *method, status.to_string(), *count));
        }
    }
    out.labelled(
        "hoop_api_requests_total",
        "Answers of the API.",
        (answers.iter()).map(|(path, method, status, count)| {
            (
                vec![("route", *path), ("method", *method), ("status", status.as_str())],
                *count,
            )
        }),
    );
    out.histograms(
        "hoop_api_request_seconds",
        "Time to the head of the answer.",
        "route",
        routes.iter().map(|(path, route)| (path.as_str(), &route.took)),
    );
}

/// What Prometheus's own client libraries say of a process.
fn process(out: &mut Exposition) {
    let started = STARTED.1.duration_since(UNIX_EPOCH).unwrap_or_default();
    out.gauge("process_start_time_seconds", "Start of the process.", started.as_secs());
    out.gauge(
        "hoop_uptime_seconds",
        "Age of the process.",
        STARTED.0.elapsed().as_secs(),
    );
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Open file descriptors.", files.count());
    }
    let resident = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    if let Some(kib) = resident {
        out.gauge("process_resident_memory_bytes", "Memory that is in use.", kib * 1024);
    }
}

/// Serves `/metrics` alone, without a sign-in, on a bound socket.
///
/// # Errors
/// Where the socket cannot be used.
pub fn serve(socket: TcpListener, control: GatewayControl) -> Result<ServerHandle> {
    let control = Data::new(control);
    let server = HttpServer::new(move || {
        App::new().app_data(control.clone()).route(
            "/metrics",
            web::get().to(|control: Data<GatewayControl>| async move {
                HttpResponse::Ok().content_type(MEDIA_TYPE).body(render(&control).await)
            }),
        )
    })
    .workers(1)
    .max_connections(CONNECTIONS_MAX)
    .client_request_timeout(HEAD_TIMEOUT)
    .disable_signals()
    .listen(socket)
    .context("cannot serve metrics")?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_counter_of_its_own() {
        for end in End::ALL {
            let before = of(&DENIED, end).map(Counter::get);
            denied(end);
            assert_eq!(
                of(&DENIED, end).map(Counter::get),
                before.map(|count| count + 1),
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_client_cannot_make_series() {
        let requests = Requests(LazyLock::new(Mutex::default));
        for n in 0..2 * ROUTES_MAX {
            let (path, name) = (format!("/{n}"), format!("M{n}"));
            requests.count(&Answered {
                method: &name,
                route: Some(&path),
                status: 200,
                took: Duration::ZERO,
                traceparent: None,
            });
        }
        let routes = requests.0.lock().unwrap();
        assert_eq!(routes.len(), ROUTES_MAX);
        assert!(
            routes
                .values()
                .all(|route| route.answers.keys().all(|(method, _)| *method == "other"))
        );
    }
}
