//! The REST API, a file a resource. It reads and changes the store, asks the running gateway through `Control`, and
//! owns neither.
//!
//! INVARIANT: every administrative change is recorded before it is committed (`caller::CallerWitness`).

mod agents;
mod audit;
mod body;
mod browser_sessions;
mod caller;
mod client_address;
pub mod connection_test;
mod connection_view;
mod connections;
pub mod control;
mod cookies;
mod credentials;
mod cursor;
pub mod declared;
mod docs;
mod etag;
pub mod events;
mod finish;
mod list_query;
pub mod live;
mod login;
pub mod openapi;
mod own_password;
mod page;
mod passwords;
mod problem;
mod proof;
pub mod rate;
mod refusals;
mod rule_view;
mod rules;
mod scopes;
mod second_factor;
mod second_step;
mod sessions;
mod setup;
mod sign_in;
pub mod single_sign_on;
mod ssh_keys;
mod system;
mod tokens;
mod users;

use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use hoop_actors::network::Network;
use hoop_auth::local::Slowdown;
use hoop_store::Store;
use hoop_store::browser_sessions::Lifetimes;
use utoipa_actix_web::scope;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::connection_test::Tests;
use crate::control::Control;
pub use crate::finish::finish;

use crate::cookies::Browsers;
use crate::live::Live;
use crate::rate::{Limiter, Rates};
use crate::refusals::Refusals;
use crate::single_sign_on::Providers;

/// What every request shares. One a process: the counts of failed sign-ins are in it.
pub struct AppState {
    pub store: Store,
    pub control: Arc<dyn Control>,
    /// Scheme, host and port that people know, without a slash at the end.
    pub public_url: String,
    /// Proxies whose word counts for where a request comes from.
    trusted_proxies: Vec<Network>,
    limiter: Limiter,
    browsers: Browsers,
    second_factor_required: bool,
    slowdown: Slowdown,
    refusals: Arc<Refusals>,
    pub live: Live,
    tests: Tests,
    providers: Providers,
    /// Between two questions to a provider about a person who stays signed in.
    refresh_interval: Duration,
}

impl AppState {
    #[must_use]
    pub fn new(store: Store, control: Arc<dyn Control>, public_url: impl Into<String>) -> Self {
        let public_url = public_url.into();
        Self {
            store,
            control,
            browsers: Browsers::new(&public_url),
            public_url,
            trusted_proxies: Vec::new(),
            limiter: Limiter::new(Rates::default()),
            second_factor_required: false,
            slowdown: Slowdown::default(),
            refusals: Arc::default(),
            live: Live::default(),
            tests: Tests::default(),
            providers: Providers::default(),
            refresh_interval: Duration::ZERO,
        }
    }

    /// Whether who signs in with a password must have a second factor.
    #[must_use]
    pub const fn with_second_factor_required(mut self, required: bool) -> Self {
        self.second_factor_required = required;
        self
    }

    /// Keeps browsers signed in for so long.
    #[must_use]
    pub const fn with_browser_lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.browsers.lifetimes = lifetimes;
        self
    }

    /// Holds callers to these rates.
    #[must_use]
    pub fn with_rates(mut self, rates: Rates) -> Self {
        self.limiter = Limiter::new(rates);
        self
    }

    /// Lets people sign in at these providers, who are asked about them again after `refresh_interval`.
    #[must_use]
    pub fn with_providers(mut self, providers: Providers, refresh_interval: Duration) -> Self {
        self.providers = providers;
        self.refresh_interval = refresh_interval;
        self
    }

    /// Believes these proxies.
    #[must_use]
    pub fn behind(mut self, trusted_proxies: Vec<Network>) -> Self {
        self.trusted_proxies = trusted_proxies;
        self
    }
}

/// Mounts the API: `App::new().wrap(from_fn(hoop_api::finish)).configure(hoop_api::configure(state.clone()))`, with one
/// `state` for all workers.
/// It takes the app's default service too, for problem documents of 404 and 405.
pub fn configure(state: web::Data<AppState>) -> impl FnOnce(&mut web::ServiceConfig) {
    move |config| {
        config.app_data(state).default_service(web::to(finish::no_such_route));
        routes(&mut ServiceConfig::new(config));
    }
}

/// Every route, in the order of the description.
fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(
            scope::scope("/api")
                .service(login::login)
                .service(second_step::enrol_at_sign_in)
                .service(second_step::second_step)
                .service(setup::set_up)
                .service(login::logout)
                .service(login::current_session)
                .service(browser_sessions::list_own)
                .service(browser_sessions::end_own)
                .service(browser_sessions::list_of_user)
                .service(browser_sessions::end_of_user)
                .service(own_password::change_own_password)
                .service(second_factor::get_second_factor)
                .service(second_factor::enrol_second_factor)
                .service(second_factor::confirm_second_factor)
                .service(second_factor::replace_recovery_codes)
                .service(second_factor::remove_second_factor)
                .service(second_factor::remove_second_factor_of_user)
                .service(single_sign_on::routes::sign_in_page)
                .service(single_sign_on::routes::sign_in_providers)
                .service(single_sign_on::log_out::log_out_address)
                .service(single_sign_on::device::begin_device_sign_in)
                .service(single_sign_on::device::device_token)
                .service(single_sign_on::device::device_page)
                .service(single_sign_on::device::answer_device)
                .service(single_sign_on::loopback::loopback_page)
                .service(single_sign_on::loopback::answer_loopback)
                .service(single_sign_on::loopback::loopback_token)
                .service(single_sign_on::routes::begin_sign_in)
                .service(single_sign_on::routes::oidc_callback)
                .service(single_sign_on::routes::saml_acs)
                .service(single_sign_on::routes::saml_metadata)
                .service(users::me)
                .service(users::list_users)
                .service(users::create_user)
                .service(users::set_password)
                .service(single_sign_on::identities::list_identities)
                .service(single_sign_on::identities::link_identity)
                .service(single_sign_on::identities::unlink_identity)
                .service(users::get_user)
                .service(users::update_user)
                .service(users::delete_user)
                .service(rules::list_rules)
                .service(rules::create_rule)
                .service(rules::get_rule)
                .service(rules::update_rule)
                .service(rules::delete_rule)
                .service(rules::explain)
                .service(agents::list_agents)
                .service(agents::register_agent)
                .service(agents::revoke_agent)
                .service(connections::list_connections)
                .service(connections::create_connection)
                .service(connection_test::test_settings)
                .service(connection_test::test_connection)
                .service(credentials::make_credential)
                .service(connections::get_connection)
                .service(connections::update_connection)
                .service(connections::delete_connection)
                .service(credentials::list_credentials)
                .service(credentials::revoke_credential)
                .service(ssh_keys::list_ssh_keys)
                .service(ssh_keys::add_ssh_key)
                .service(ssh_keys::delete_ssh_key)
                .service(tokens::list_tokens)
                .service(tokens::make_token)
                .service(tokens::get_token)
                .service(tokens::revoke_token)
                .service(sessions::list_sessions)
                .service(sessions::session_events)
                .service(sessions::kill_session)
                .service(sessions::get_session)
                .service(live::live_events)
                .service(audit::list_audit)
                .service(audit::export_audit)
                .service(system::ca_pem)
                .service(system::openapi_json)
                .service(docs::docs)
                .service(docs::style),
        )
        .service(system::metrics)
        .service(system::healthz)
        .service(system::readyz);
}
