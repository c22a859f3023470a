//! TLS configurations of the gateway's own: its listeners, and both sides of the link between replicas. Which
//! certificate is shown is [`certificates`](crate::certificates)'s.

use std::sync::Arc;

use hoop_actors::end_point;
use hoop_actors::trust::provider;
use hoop_store::ca::Leaf;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

/// Every replica's certificate carries this name besides its own.
pub const REPLICA_NAME: &str = "replica.hoop.internal";

/// A TLS configuration could not be made.
#[derive(Debug, Error)]
#[error("cannot set up TLS for {what}: {problem}")]
pub struct TlsError {
    pub what: &'static str,
    pub problem: String,
}

fn failed(what: &'static str) -> impl Fn(Box<dyn std::error::Error>) -> TlsError {
    move |problem| TlsError {
        what,
        problem: problem.to_string(),
    }
}

/// Shows one certificate to whoever asks, as a server and as a client.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A leaf of the installation's CA, ready to be shown.
///
/// # Errors
/// `TlsError` where the certificate and its key do not fit.
pub fn certified(what: &'static str, leaf: &Leaf) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = leaf.chain_der.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivatePkcs8KeyDer::from(leaf.key_der.to_vec()).into();
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| failed(what)(error.into()))?;
    Ok(Arc::new(certified))
}

fn roots(what: &'static str, ca_der: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store
        .add(CertificateDer::from(ca_der.to_vec()))
        .map_err(|error| failed(what)(error.into()))?;
    Ok(Arc::new(store))
}

/// A listener's side, without client certificates, with one certificate.
///
/// # Errors
/// `TlsError` where the provider cannot be used.
pub fn server(what: &'static str, shown: Arc<CertifiedKey>, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    server_that_asks(what, Arc::new(Shown(shown)), alpn)
}

/// The same, whose certificate is asked for at each handshake. `alpn` empty: none is negotiated.
///
/// # Errors
/// `TlsError` where the provider cannot be used.
pub fn server_that_asks(
    what: &'static str,
    resolver: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(what)(error.into()))?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Port 8010: agents come without a certificate, replicas with one of the installation's CA.
///
/// # Errors
/// `TlsError` where the CA's certificate cannot be used.
pub fn link_server(shown: Arc<CertifiedKey>, ca_der: &[u8]) -> Result<ServerConfig, TlsError> {
    const WHAT: &str = "the agent link";
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(WHAT, ca_der)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(WHAT)(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(WHAT)(error.into()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Shown(shown)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The dialling side of the link between replicas: our certificate, and nobody but the installation's CA is trusted.
///
/// # Errors
/// `TlsError` where the CA's certificate cannot be used.
pub fn peer_client(shown: Arc<CertifiedKey>, ca_der: &[u8]) -> Result<ClientConfig, TlsError> {
    const WHAT: &str = "the link between replicas";
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(WHAT, ca_der)?, provider())
        .build()
        .map_err(|error| failed(WHAT)(error.into()))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(WHAT)(error.into()))?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Shown(shown)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// What SCRAM binds to with this certificate.
#[must_use]
pub fn server_end_point(shown: &CertifiedKey) -> Option<Vec<u8>> {
    end_point::server_end_point(shown.cert.first()?)
}
