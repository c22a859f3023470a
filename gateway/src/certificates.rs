//! The certificates that the gateway shows, and their renewal while it runs: those of the installation's CA at two
//! thirds of their life, those given as files when the files change. A handshake takes what is current when it begins;
//! connections that stand are not touched.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use actix::{Actor, AsyncContext, Context};
use hoop_actors::trust::provider;
use hoop_store::ca::{Ca, CaError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tracing::{info, warn};
use uuid::Uuid;

use crate::config::Config;
use crate::tls::{self, REPLICA_NAME, TlsError};

/// How often is looked whether a certificate is due or its file has changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after a certificate could not be made.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// A certificate cannot be had.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("{key} = {}: {wanted}", path.display())]
    File {
        key: &'static str,
        path: PathBuf,
        wanted: &'static str,
    },
    #[error("tls_cert_file and tls_key_file do not fit each other")]
    Pair(#[source] rustls::Error),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A value that is replaced as a whole while others read it.
#[derive(Debug)]
struct Swap<T>(RwLock<Arc<T>>);

impl<T> Swap<T> {
    fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    fn load(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn store(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

/// What a people's port shows, and what SCRAM binds to with it: one value, so that the two always fit.
#[derive(Debug)]
pub struct PeopleTls {
    pub config: Arc<ServerConfig>,
    pub server_end_point: Option<Vec<u8>>,
    shown: Arc<CertifiedKey>,
}

/// What agents and replicas meet, as a server and as the one that dials.
#[derive(Debug)]
struct LinkTls {
    server: Arc<ServerConfig>,
    peer: Arc<ClientConfig>,
}

#[derive(Debug)]
struct Current {
    people: Swap<PeopleTls>,
    link: Swap<LinkTls>,
}

/// The certificates as they are now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Certificates(Arc<Current>);

impl Certificates {
    /// For PostgreSQL clients.
    #[must_use]
    pub fn people(&self) -> Arc<PeopleTls> {
        self.0.people.load()
    }

    /// For port 8010.
    #[must_use]
    pub fn link(&self) -> Arc<ServerConfig> {
        self.0.link.load().server.clone()
    }

    /// For dialling other replicas.
    #[must_use]
    pub fn peer(&self) -> Arc<ClientConfig> {
        self.0.link.load().peer.clone()
    }

    /// For the API, whose server keeps one configuration: it asks at each handshake.
    ///
    /// # Errors
    /// `TlsError` where the provider cannot be used.
    pub fn api(&self) -> Result<ServerConfig, TlsError> {
        tls::server_that_asks("the API", Arc::new(self.clone()), &[b"h2", b"http/1.1"])
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.people().shown.clone())
    }
}

/// Certificate and key as PEM files, both or none.
#[derive(Debug, Clone)]
struct Files {
    chain: PathBuf,
    key: PathBuf,
}

/// By what a changed file is noticed: when it was written, and its length.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Files {
    fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [of(&self.chain), of(&self.key)]
    }

    fn read(&self) -> Result<Arc<CertifiedKey>, CertificateError> {
        let wrong = |key, path: &Path, wanted| CertificateError::File {
            key,
            path: path.to_owned(),
            wanted,
        };
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.chain)
            .and_then(Iterator::collect)
            .ok()
            .filter(|chain: &Vec<_>| !chain.is_empty())
            .ok_or_else(|| {
                let wanted = "a readable PEM file with the certificate and its issuers";
                wrong("tls_cert_file", &self.chain, wanted)
            })?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|_| wrong("tls_key_file", &self.key, "a readable PEM file with the private key"))?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(CertificateError::Pair)?;
        Ok(Arc::new(certified))
    }
}

/// Makes certificates. Cheap to clone.
#[derive(Clone)]
pub struct Issuer {
    ca: Ca,
    replica: Uuid,
    names: Vec<String>,
    life: Duration,
    files: Option<Files>,
}

impl Issuer {
    #[must_use]
    pub fn new(config: &Config, ca: Ca, replica: Uuid) -> Self {
        let mut names: Vec<String> = vec![config.public_host.clone()];
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        names.dedup();
        let files = config.tls_files.clone().map(|(chain, key)| Files { chain, key });
        Self {
            ca,
            replica,
            names,
            life: Duration::from_secs(config.certificate_life_s),
            files,
        }
    }

    /// The first certificates, and what renews them from now on.
    ///
    /// # Errors
    /// `CertificateError`: a file that cannot be used, or a name that can be in no certificate.
    pub fn begin(self) -> Result<(Certificates, Renewal), CertificateError> {
        let (people, people_due) = self.people()?;
        let (link, link_due) = self.link()?;
        let certificates = Certificates(Arc::new(Current {
            people: Swap::new(people),
            link: Swap::new(link),
        }));
        let renewal = Renewal {
            issuer: self,
            certificates: certificates.clone(),
            people_due,
            link_due,
        };
        Ok((certificates, renewal))
    }

    fn people(&self) -> Result<(PeopleTls, Due), CertificateError> {
        let (shown, due) = match &self.files {
            Some(files) => {
                // before it is read: what is written in between is read again
                let stamp = files.stamp();
                (files.read()?, Due::Changes(stamp))
            }
            None => {
                let leaf = self.ca.issue_server(&self.names, self.life)?;
                (tls::certified("people", &leaf)?, Due::At(leaf.renew_at))
            }
        };
        let config = tls::server("PostgreSQL clients", shown.clone(), &[b"postgresql"])?;
        let people = PeopleTls {
            config: Arc::new(config),
            server_end_point: tls::server_end_point(&shown),
            shown,
        };
        Ok((people, due))
    }

    /// Always of the installation's CA, which agents pin and replicas trust.
    fn link(&self) -> Result<(LinkTls, Due), CertificateError> {
        let mut names = self.names.clone();
        names.push(REPLICA_NAME.into());
        let server = self.ca.issue_server(&names, self.life)?;
        let peer = self.ca.issue_replica(self.replica, self.life)?;
        let ca_der = self.ca.cert_der();
        let link = LinkTls {
            server: Arc::new(tls::link_server(tls::certified("agents", &server)?, ca_der)?),
            peer: Arc::new(tls::peer_client(tls::certified("replicas", &peer)?, ca_der)?),
        };
        Ok((link, Due::At(server.renew_at.min(peer.renew_at))))
    }
}

/// When a certificate is to be made or read anew.
#[derive(Debug, Clone)]
enum Due {
    At(SystemTime),
    /// When its files are no longer these.
    Changes(Stamp),
}

/// The actor, on the main arbiter. One that starts over goes on from the certificates as they are.
#[derive(Clone)]
pub struct Renewal {
    issuer: Issuer,
    certificates: Certificates,
    people_due: Due,
    link_due: Due,
}

impl Renewal {
    fn is_due(&self, due: &Due) -> bool {
        match (due, &self.issuer.files) {
            (Due::At(when), _) => *when <= SystemTime::now(),
            (Due::Changes(stamp), Some(files)) => files.stamp() != *stamp,
            (Due::Changes(_), None) => false,
        }
    }

    fn check(&mut self) {
        if self.is_due(&self.people_due) {
            let made = self.issuer.people();
            let made = made.map(|(people, due)| {
                self.certificates.0.people.store(people);
                due
            });
            self.people_due = self.next("the people's ports and the API", made, &self.people_due);
        }
        if self.is_due(&self.link_due) {
            let made = self.issuer.link();
            let made = made.map(|(link, due)| {
                self.certificates.0.link.store(link);
                due
            });
            self.link_due = self.next("the agents' port and this replica", made, &self.link_due);
        }
    }

    /// When to look again. After a failure: at files when they change once more, at the CA's after a while.
    fn next(&self, whose: &str, made: Result<Due, CertificateError>, was: &Due) -> Due {
        let error = match made {
            Ok(due) => {
                info!(whose, "certificate renewed");
                return due;
            }
            Err(error) => error,
        };
        warn!(whose, error = %chain(&error), "a certificate cannot be renewed; the present one stays");
        match (was, &self.issuer.files) {
            (Due::Changes(_), Some(files)) => Due::Changes(files.stamp()),
            _ => Due::At(SystemTime::now() + RETRY_PAUSE),
        }
    }
}

/// An error with its causes.
fn chain(error: &CertificateError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Actor for Renewal {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.check();
        ctx.run_interval(CHECK_INTERVAL, |renewal, _| renewal.check());
    }
}
