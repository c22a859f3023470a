//! Port 8009: the REST API's server.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use anyhow::{Context, Result};
use hoop_api::AppState;
use hoop_api::control::Control;
use hoop_api::live::Live;
use hoop_api::single_sign_on::Providers;
use hoop_store::Store;

use crate::certificates::Certificates;
use crate::config::Config;

/// Threads that answer requests.
const WORKERS: usize = 2;
/// Connections at once, for each worker.
const CONNECTIONS_MAX: usize = 4096;
/// Longest wait for a request's head, in seconds.
const HEAD_TIMEOUT_S: u64 = 10;
/// Longest wait for open requests at a stop, in seconds.
const STOP_TIMEOUT_S: u64 = 5;

/// The running server.
pub struct Served {
    handle: ServerHandle,
    live: Live,
    pub port: u16,
}

impl Served {
    /// Ends the streams, which would never end by themselves, and waits for open requests.
    pub async fn stop(&self) {
        self.live.close();
        self.handle.stop(true).await;
    }
}

/// Serves the API on a bound socket.
///
/// # Errors
/// Where the socket or the certificate cannot be used.
pub fn serve(
    config: &Config,
    socket: TcpListener,
    certificates: &Certificates,
    public_url: &str,
    store: Store,
    control: Arc<dyn Control>,
    providers: Providers,
) -> Result<Served> {
    let port = socket.local_addr()?.port();
    if !public_url.starts_with("https://") {
        tracing::warn!(public_url, "without https, browsers send the session's cookie in clear");
    }
    let state = AppState::new(store, control, public_url)
        .behind(config.trusted_proxies.clone())
        .with_rates(config.request_rates)
        .with_browser_lifetimes(config.browser_lifetimes)
        .with_second_factor_required(config.second_factor_required)
        .with_providers(providers, Duration::from_secs(config.sign_in_refresh_s));
    let state = Data::new(state);
    let live = state.live.clone();
    let server = HttpServer::new(move || {
        App::new()
            .wrap(from_fn(hoop_api::finish))
            .configure(hoop_api::configure(state.clone()))
    })
    .workers(WORKERS)
    .max_connections(CONNECTIONS_MAX)
    .client_request_timeout(Duration::from_secs(HEAD_TIMEOUT_S))
    .shutdown_timeout(STOP_TIMEOUT_S)
    .disable_signals();
    let server = if config.api_tls {
        server.listen_rustls_0_23(socket, certificates.api()?)
    } else {
        server.listen(socket)
    }
    .context("cannot serve the API")?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(Served { handle, live, port })
}
