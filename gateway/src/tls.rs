//! TLS of the gateway's own: server certificates of its listeners, and both sides of the link between replicas. All
//! from the installation's CA.

use std::sync::Arc;

use hoop_actors::end_point;
use hoop_actors::trust::provider;
use hoop_store::ca::Leaf;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

use crate::config::Config;

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

fn identity(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = leaf
        .chain_der
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    (chain, PrivatePkcs8KeyDer::from(leaf.key_der.to_vec()).into())
}

fn roots(what: &'static str, ca_der: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store
        .add(CertificateDer::from(ca_der.to_vec()))
        .map_err(|error| failed(what)(error.into()))?;
    Ok(Arc::new(store))
}

/// A listener's side, without client certificates. `alpn` empty: none is negotiated.
///
/// # Errors
/// `TlsError` where the certificate and its key do not fit.
pub fn server(what: &'static str, leaf: &Leaf, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = identity(leaf);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| failed(what)(error.into()))?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Port 8010: agents come without a certificate, replicas with one of the installation's CA.
///
/// # Errors
/// `TlsError` where the certificate and its key do not fit.
pub fn link_server(leaf: &Leaf, ca_der: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    const WHAT: &str = "the agent link";
    let (chain, key) = identity(leaf);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(WHAT, ca_der)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(WHAT)(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|error| failed(WHAT)(error.into()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The dialling side of the link between replicas: our certificate, and nobody but the installation's CA is trusted.
///
/// # Errors
/// `TlsError` where the certificate and its key do not fit.
pub fn peer_client(leaf: &Leaf, ca_der: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    const WHAT: &str = "the link between replicas";
    let (chain, key) = identity(leaf);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(WHAT, ca_der)?, provider())
        .build()
        .map_err(|error| failed(WHAT)(error.into()))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(WHAT)(error.into()))?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(|error| failed(WHAT)(error.into()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Names of the listeners' certificates.
#[must_use]
pub fn server_names(config: &Config) -> Vec<String> {
    let mut names = vec![
        config.public_host.clone(),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ];
    names.dedup();
    names
}

/// What SCRAM binds to with this certificate.
#[must_use]
pub fn server_end_point(leaf: &Leaf) -> Option<Vec<u8>> {
    end_point::server_end_point(leaf.chain_der.first()?)
}
