//! Configuration: compiled-in defaults, then a TOML file, then `HOOP_*` environment. Checked whole before any port is
//! opened; every error names the key, the value and what would be right.

mod providers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use hoop_actors::network::Network;
use hoop_api::rate::{ACCOUNT_RATE, ADDRESS_RATE, Rate, Rates};
use hoop_store::browser_sessions::Lifetimes;
use hoop_store::ca::LEAF_LIFE_DAYS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::providers::ProviderTables;
use self::providers::{RawOidc, RawSaml};

/// Most arbiters: an agent keeps at most this many connections to a replica.
pub const ARBITERS_MAX: usize = 8;
/// Smallest journal budget that still holds a few segments, in bytes.
const JOURNAL_BUDGET_MIN_BYTES: u64 = 64 << 20;

/// Most networks in `trusted_proxies`.
const TRUSTED_PROXIES_MAX: usize = 256;
const BROWSER_LIFE_MIN_S: u64 = 60;
const BROWSER_LIFE_MAX_S: u64 = 30 * 86_400;
/// Least and longest time between two questions to a provider about a person who stays signed in, in seconds.
const SIGN_IN_REFRESH_MIN_S: u64 = 1;
const SIGN_IN_REFRESH_MAX_S: u64 = 86_400;
/// Most requests, a second or at once, that an address or an account may be allowed.
const REQUESTS_MAX: u32 = 1_000_000;
const CERTIFICATE_LIFE_MIN_S: u64 = 6;
const CERTIFICATE_LIFE_MAX_S: u64 = 397 * 86_400;

/// The file's and the environment's keys. A key `listen_api` is `HOOP_LISTEN_API` in the environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    store: Option<String>,
    database_url: Option<String>,
    database_direct_url: Option<String>,
    database_pool: usize,
    data_dir: Option<PathBuf>,
    listen_api: String,
    listen_link: String,
    listen_postgres: String,
    metrics_listen: Option<String>,
    otlp_endpoint: Option<String>,
    api_tls: String,
    tls_cert_file: Option<PathBuf>,
    tls_key_file: Option<PathBuf>,
    certificate_life_s: u64,
    public_url: Option<String>,
    public_host: Option<String>,
    peer_address: Option<String>,
    master_key_file: Option<PathBuf>,
    arbiters: usize,
    journal_budget_bytes: u64,
    journal_segment_bytes: u64,
    link_budget_bytes: u64,
    max_sessions: usize,
    handshakes_per_address: usize,
    address_requests_per_s: u32,
    address_requests_burst: u32,
    account_requests_per_s: u32,
    account_requests_burst: u32,
    trusted_proxies: Networks,
    policy_stale_max_s: u64,
    shutdown_deadline_s: u64,
    browser_idle_s: u64,
    browser_session_s: u64,
    second_factor: String,
    first_admin: String,
    admin_user: String,
    admin_password_file: Option<PathBuf>,
    sign_in_refresh_s: u64,
    /// Tables of the file alone.
    #[serde(default)]
    oidc: Vec<RawOidc>,
    #[serde(default)]
    saml: Vec<RawSaml>,
    log: String,
    log_format: String,
}

/// A list in the file; in the environment one text, with commas.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Networks {
    List(Vec<String>),
    Text(String),
}

impl Networks {
    fn parse(&self) -> Result<Vec<Network>, ConfigError> {
        let entries: Vec<&str> = match self {
            Self::List(list) => list.iter().map(String::as_str).collect(),
            Self::Text(text) => text.split(',').filter(|entry| !entry.trim().is_empty()).collect(),
        };
        let invalid = |value: &str, wanted| ConfigError::Invalid {
            key: "trusted_proxies",
            value: value.to_owned(),
            wanted,
        };
        if entries.len() > TRUSTED_PROXIES_MAX {
            return Err(invalid(&entries.len().to_string(), "at most 256 networks"));
        }
        let network = |entry: &&str| {
            let wanted = "networks such as 10.0.0.0/8, fd00::/8 or 192.0.2.7";
            entry.trim().parse().map_err(|_| invalid(entry, wanted))
        };
        entries.iter().map(network).collect()
    }
}

/// The keys that the environment may set, with `HOOP_` in front and in capitals. Other `HOOP_*` names belong to the
/// agent, the client or the tests.
const KEYS: &[&str] = &[
    "store",
    "database_url",
    "database_direct_url",
    "database_pool",
    "data_dir",
    "listen_api",
    "listen_link",
    "listen_postgres",
    "metrics_listen",
    "otlp_endpoint",
    "api_tls",
    "tls_cert_file",
    "tls_key_file",
    "certificate_life_s",
    "public_url",
    "public_host",
    "peer_address",
    "master_key_file",
    "arbiters",
    "journal_budget_bytes",
    "journal_segment_bytes",
    "link_budget_bytes",
    "max_sessions",
    "handshakes_per_address",
    "address_requests_per_s",
    "address_requests_burst",
    "account_requests_per_s",
    "account_requests_burst",
    "trusted_proxies",
    "policy_stale_max_s",
    "shutdown_deadline_s",
    "browser_idle_s",
    "browser_session_s",
    "second_factor",
    "first_admin",
    "admin_user",
    "admin_password_file",
    "sign_in_refresh_s",
    "log",
    "log_format",
];

impl Default for Raw {
    fn default() -> Self {
        Self {
            store: None,
            database_url: None,
            database_direct_url: None,
            database_pool: 8,
            data_dir: None,
            listen_api: "[::]:8009".into(),
            listen_link: "[::]:8010".into(),
            listen_postgres: "[::]:15432".into(),
            metrics_listen: None,
            otlp_endpoint: None,
            api_tls: "on".into(),
            tls_cert_file: None,
            tls_key_file: None,
            certificate_life_s: LEAF_LIFE_DAYS * 86_400,
            public_url: None,
            public_host: None,
            peer_address: None,
            master_key_file: None,
            arbiters: 0,
            journal_budget_bytes: 4 << 30,
            journal_segment_bytes: 64 << 20,
            link_budget_bytes: 1 << 30,
            max_sessions: 10_000,
            handshakes_per_address: 512,
            address_requests_per_s: ADDRESS_RATE.per_s,
            address_requests_burst: ADDRESS_RATE.burst,
            account_requests_per_s: ACCOUNT_RATE.per_s,
            account_requests_burst: ACCOUNT_RATE.burst,
            trusted_proxies: Networks::Text(String::new()),
            policy_stale_max_s: 60,
            shutdown_deadline_s: 25,
            browser_idle_s: 3_600,
            browser_session_s: 12 * 3_600,
            second_factor: "optional".into(),
            first_admin: "file".into(),
            admin_user: "admin".into(),
            admin_password_file: None,
            sign_in_refresh_s: 300,
            oidc: Vec::new(),
            saml: Vec::new(),
            log: "info".into(),
            log_format: "text".into(),
        }
    }
}

/// Where the gateway's own database is.
#[derive(Debug, Clone)]
pub enum StoreChoice {
    /// A private PostgreSQL in the data folder, run as a child.
    Embedded,
    /// `DATABASE_URL`. Holds a password: never printed.
    Url(SecretUrl),
}

/// A URL with a password in it.
#[derive(Clone)]
pub struct SecretUrl(pub String);

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}

/// How the first start makes an administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstAdmin {
    /// With a password in a file, given there or made.
    File,
    /// By whoever opens the link that it prints.
    Link,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub store: StoreChoice,
    /// The same database without a pooler between, for LISTEN; `None`: `store` leads to it.
    pub database_direct_url: Option<SecretUrl>,
    /// Connections to the store, for everything but the audit writer.
    pub database_pool: usize,
    pub data_dir: PathBuf,
    pub listen_api: SocketAddr,
    pub listen_link: SocketAddr,
    pub listen_postgres: SocketAddr,
    /// Where `/metrics` is served without a sign-in; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Base URL of an OpenTelemetry collector that takes OTLP over HTTP; `None`: no traces.
    pub otlp_endpoint: Option<SecretUrl>,
    pub api_tls: bool,
    /// Certificate chain and key of the API and of the people's ports; `None`: the installation's CA makes one.
    pub tls_files: Option<(PathBuf, PathBuf)>,
    pub certificate_life_s: u64,
    /// Without a slash at the end; derived from `public_host` and the API's port where it is not given.
    pub public_url: Option<String>,
    pub public_host: String,
    /// `host:port` at which other replicas reach this one's 8010; empty: none do.
    pub peer_address: Option<String>,
    pub master_key_file: PathBuf,
    pub arbiters: usize,
    pub journal_budget_bytes: u64,
    pub journal_segment_bytes: u64,
    pub link_budget_bytes: u64,
    pub max_sessions: usize,
    pub handshakes_per_address: usize,
    /// Of the API.
    pub request_rates: Rates,
    /// Proxies whose word counts for where a connection comes from.
    pub trusted_proxies: Vec<Network>,
    pub policy_stale_max_s: u64,
    pub shutdown_deadline_s: u64,
    /// How long a browser stays signed in without and with requests.
    pub browser_lifetimes: Lifetimes,
    /// Whether who signs in with a password must have a second factor.
    pub second_factor_required: bool,
    pub first_admin: FirstAdmin,
    pub admin_user: String,
    pub admin_password_file: Option<PathBuf>,
    /// Between two questions to a provider about a person who stays signed in.
    pub sign_in_refresh_s: u64,
    pub providers: ProviderTables,
    pub log: String,
    pub log_json: bool,
}

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read the configuration: {0}")]
    Read(Box<figment::Error>),
    #[error("{key} = {value:?}: {wanted}")]
    Invalid {
        key: &'static str,
        value: String,
        wanted: &'static str,
    },
    /// Of an identity provider's table.
    #[error("{key} = {value:?}: {wanted}")]
    Provider { key: String, value: String, wanted: String },
    #[error(
        "no store: set HOOP_STORE=embedded (a private PostgreSQL in the data folder, for trying Hoop out) or \
         DATABASE_URL=postgres://user:password@host/database (PostgreSQL 14 or newer)"
    )]
    NoStore,
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// `ConfigError` naming the key, the value and what would be right.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Raw::default()));
        if let Some(file) = file {
            figment = figment.merge(Toml::file_exact(file));
        }
        let figment = figment
            .merge(Env::raw().only(&["DATABASE_URL", "DATABASE_DIRECT_URL"]))
            .merge(Env::prefixed("HOOP_").only(KEYS));
        let raw: Raw = figment.extract().map_err(|error| ConfigError::Read(Box::new(error)))?;
        Self::check(raw)
    }

    fn check(raw: Raw) -> Result<Self, ConfigError> {
        let data_dir = raw.data_dir.unwrap_or_else(|| PathBuf::from("/var/lib/hoop"));
        let store = match (raw.store.as_deref(), raw.database_url) {
            (Some("embedded"), None) => StoreChoice::Embedded,
            (None | Some("url"), Some(url)) => StoreChoice::Url(SecretUrl(url)),
            (Some("embedded"), Some(_)) => {
                return Err(ConfigError::Invalid {
                    key: "store",
                    value: "embedded".into(),
                    wanted: "either store = \"embedded\" or DATABASE_URL, not both",
                });
            }
            (Some(other), _) if other != "url" => {
                return Err(ConfigError::Invalid {
                    key: "store",
                    value: other.into(),
                    wanted: "\"embedded\" or nothing",
                });
            }
            _ => return Err(ConfigError::NoStore),
        };
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let arbiters = if raw.arbiters == 0 {
            cores.min(ARBITERS_MAX)
        } else {
            raw.arbiters
        };
        if arbiters > ARBITERS_MAX {
            return Err(ConfigError::Invalid {
                key: "arbiters",
                value: arbiters.to_string(),
                wanted: "at most 8, 0 for one a core",
            });
        }
        if raw.journal_budget_bytes < JOURNAL_BUDGET_MIN_BYTES {
            return Err(ConfigError::Invalid {
                key: "journal_budget_bytes",
                value: raw.journal_budget_bytes.to_string(),
                wanted: "67108864 (64 MiB) or more",
            });
        }
        if let Some(url) = &raw.public_url
            && (!(url.starts_with("https://") || url.starts_with("http://")) || url.ends_with('/'))
        {
            return Err(ConfigError::Invalid {
                key: "public_url",
                value: url.clone(),
                wanted: "https://host[:port] without a slash at the end",
            });
        }
        let api_tls = match raw.api_tls.as_str() {
            "on" => true,
            "off" => false,
            other => {
                return Err(ConfigError::Invalid {
                    key: "api_tls",
                    value: other.into(),
                    wanted: "\"on\" or \"off\"",
                });
            }
        };
        let log_json = match raw.log_format.as_str() {
            "json" => true,
            "text" => false,
            other => {
                return Err(ConfigError::Invalid {
                    key: "log_format",
                    value: other.into(),
                    wanted: "\"text\" or \"json\"",
                });
            }
        };
        let providers = ProviderTables {
            oidc: raw.oidc,
            saml: raw.saml,
        };
        Ok(Self {
            store,
            database_direct_url: raw.database_direct_url.map(SecretUrl),
            database_pool: bounded("database_pool", raw.database_pool, 2, 200)?,
            listen_api: address("listen_api", &raw.listen_api)?,
            listen_link: address("listen_link", &raw.listen_link)?,
            listen_postgres: address("listen_postgres", &raw.listen_postgres)?,
            otlp_endpoint: raw.otlp_endpoint.map(otlp_endpoint).transpose()?,
            metrics_listen: (raw.metrics_listen.as_deref())
                .map(|given| address("metrics_listen", given))
                .transpose()?,
            api_tls,
            tls_files: tls_files(raw.tls_cert_file, raw.tls_key_file)?,
            certificate_life_s: certificate_life_s(raw.certificate_life_s)?,
            public_url: raw.public_url,
            public_host: raw.public_host.unwrap_or_else(|| "localhost".into()),
            peer_address: raw.peer_address,
            master_key_file: raw.master_key_file.unwrap_or_else(|| data_dir.join("master.key")),
            data_dir,
            arbiters,
            journal_budget_bytes: raw.journal_budget_bytes,
            journal_segment_bytes: raw.journal_segment_bytes.clamp(1 << 20, 1 << 30),
            link_budget_bytes: raw.link_budget_bytes.max(16 << 20),
            max_sessions: bounded("max_sessions", raw.max_sessions, 1, 500_000)?,
            handshakes_per_address: bounded("handshakes_per_address", raw.handshakes_per_address, 1, 100_000)?,
            request_rates: Rates {
                address: Rate {
                    per_s: requests("address_requests_per_s", raw.address_requests_per_s)?,
                    burst: requests("address_requests_burst", raw.address_requests_burst)?,
                },
                account: Rate {
                    per_s: requests("account_requests_per_s", raw.account_requests_per_s)?,
                    burst: requests("account_requests_burst", raw.account_requests_burst)?,
                },
            },
            trusted_proxies: raw.trusted_proxies.parse()?,
            policy_stale_max_s: raw.policy_stale_max_s,
            shutdown_deadline_s: raw.shutdown_deadline_s,
            browser_lifetimes: Lifetimes {
                idle: browser_life("browser_idle_s", raw.browser_idle_s)?,
                absolute: browser_life("browser_session_s", raw.browser_session_s)?,
            },
            second_factor_required: second_factor_required(&raw.second_factor)?,
            first_admin: first_admin(&raw.first_admin)?,
            admin_user: raw.admin_user,
            admin_password_file: raw.admin_password_file,
            sign_in_refresh_s: sign_in_refresh_s(raw.sign_in_refresh_s)?,
            providers,
            log: raw.log,
            log_json,
        })
    }
}

fn tls_files(chain: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some((chain, key))),
        (None, None) => Ok(None),
        (Some(given), None) | (None, Some(given)) => Err(ConfigError::Invalid {
            key: "tls_cert_file, tls_key_file",
            value: given.display().to_string(),
            wanted: "both files or none: the certificate with its issuers, and its private key, as PEM",
        }),
    }
}

/// Not so short that a renewal could come too late, nor longer than browsers take.
fn certificate_life_s(value: u64) -> Result<u64, ConfigError> {
    if (CERTIFICATE_LIFE_MIN_S..=CERTIFICATE_LIFE_MAX_S).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Invalid {
        key: "certificate_life_s",
        value: value.to_string(),
        wanted: "between 6 and 34300800 (397 days)",
    })
}

fn second_factor_required(value: &str) -> Result<bool, ConfigError> {
    match value {
        "optional" => Ok(false),
        "required" => Ok(true),
        other => Err(ConfigError::Invalid {
            key: "second_factor",
            value: other.into(),
            wanted: "\"optional\" or \"required\"",
        }),
    }
}

fn first_admin(value: &str) -> Result<FirstAdmin, ConfigError> {
    match value {
        "file" => Ok(FirstAdmin::File),
        "link" => Ok(FirstAdmin::Link),
        other => Err(ConfigError::Invalid {
            key: "first_admin",
            value: other.into(),
            wanted: "\"file\" or \"link\"",
        }),
    }
}

fn browser_life(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    if (BROWSER_LIFE_MIN_S..=BROWSER_LIFE_MAX_S).contains(&value) {
        return Ok(Duration::from_secs(value));
    }
    Err(ConfigError::Invalid {
        key,
        value: value.to_string(),
        wanted: "between 60 and 2592000 (30 days)",
    })
}

fn sign_in_refresh_s(value: u64) -> Result<u64, ConfigError> {
    if (SIGN_IN_REFRESH_MIN_S..=SIGN_IN_REFRESH_MAX_S).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Invalid {
        key: "sign_in_refresh_s",
        value: value.to_string(),
        wanted: "between 1 and 86400 (a day)",
    })
}

/// The value may hold a password and is not repeated.
fn otlp_endpoint(text: String) -> Result<SecretUrl, ConfigError> {
    let good = url::Url::parse(&text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if good {
        return Ok(SecretUrl(text));
    }
    Err(ConfigError::Invalid {
        key: "otlp_endpoint",
        value: "…".into(),
        wanted: "the collector's base URL, such as http://127.0.0.1:4318",
    })
}

/// A bound of the API's requests: none at all would serve nobody.
fn requests(key: &'static str, value: u32) -> Result<u32, ConfigError> {
    if (1..=REQUESTS_MAX).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Invalid {
        key,
        value: value.to_string(),
        wanted: "between 1 and 1000000 requests",
    })
}

fn address(key: &'static str, value: &str) -> Result<SocketAddr, ConfigError> {
    value.parse().map_err(|_| ConfigError::Invalid {
        key,
        value: value.into(),
        wanted: "an address and port, such as [::]:8009 or 127.0.0.1:8009",
    })
}

fn bounded(key: &'static str, value: usize, least: usize, most: usize) -> Result<usize, ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Invalid {
        key,
        value: format!("{value} (between {least} and {most})"),
        wanted: "a number in that range",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_store_the_error_names_both_ways() {
        let error = Config::check(Raw::default()).unwrap_err().to_string();
        assert!(
            error.contains("HOOP_STORE=embedded") && error.contains("DATABASE_URL"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_address_names_key_value_and_remedy() {
        let raw = Raw {
            store: Some("embedded".into()),
            listen_api: "8009".into(),
            ..Raw::default()
        };
        let error = Config::check(raw).unwrap_err().to_string();
        assert_eq!(
            error,
            "listen_api = \"8009\": an address and port, such as [::]:8009 or 127.0.0.1:8009"
        );
    }

    #[test]
    fn rates_have_bounds_and_those_of_the_api_where_nothing_is_said() {
        let raw = || Raw {
            store: Some("embedded".into()),
            ..Raw::default()
        };
        assert_eq!(Config::check(raw()).unwrap().request_rates, Rates::default());
        let mut asked = raw();
        (asked.account_requests_per_s, asked.account_requests_burst) = (7, REQUESTS_MAX);
        let account = Config::check(asked).unwrap().request_rates.account;
        assert_eq!((account.per_s, account.burst), (7, REQUESTS_MAX));
        for (address_requests_per_s, account_requests_burst, words) in [
            (0, 1, "address_requests_per_s = \"0\": between 1 and 1000000 requests"),
            (
                1,
                REQUESTS_MAX + 1,
                "account_requests_burst = \"1000001\": between 1 and 1000000 requests",
            ),
        ] {
            let error = Config::check(Raw {
                address_requests_per_s,
                account_requests_burst,
                ..raw()
            });
            assert_eq!(error.unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn a_database_url_is_never_printed() {
        let url = "postgres://u:hunter2@h/d".to_owned();
        let config = Config::check(Raw {
            database_url: Some(url),
            ..Raw::default()
        })
        .unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
