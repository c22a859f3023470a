//! TLS towards the store: libpq's verification levels through rustls, its crypto provider given explicitly.
//!
//! It must not decide whether TLS is used: that is the URL's `sslmode` (`database_url`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hoop_actors::trust::{self, Authorities, Libpq};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::database_url::{DatabaseUrl, Roots, SslMode};

/// TLS towards the store cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("{key} {}: not a readable PEM file", path.display())]
    Pem {
        key: &'static str,
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("sslrootcert {}: holds no certificate", path.display())]
    NoRoots { path: PathBuf },
    #[error("the machine has no trusted root certificates: install ca-certificates, or give sslrootcert")]
    NoSystemRoots,
    #[error("TLS towards the store cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// The TLS side of a connection for `url`. Reads the certificate files.
///
/// # Errors
/// `TlsError` naming the key and file.
pub(crate) fn connector(url: &DatabaseUrl) -> Result<MakeRustlsConnect, TlsError> {
    let trust = match url.roots() {
        None => Libpq::Anyone,
        Some(roots) => {
            let (roots, exact) = load_roots(&roots)?;
            let name = url.ssl_mode() == SslMode::VerifyFull;
            Libpq::Authorities(Authorities { roots, exact, name })
        }
    };
    let builder = trust::client_builder(trust)?;
    let config = match url.client_certificate() {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem {
                key: "sslkey",
                path: key.clone(),
                source,
            })?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn load_roots(roots: &Roots) -> Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>), TlsError> {
    match roots {
        Roots::System => {
            let roots = trust::system_roots();
            if roots.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
            Ok((roots, Vec::new()))
        }
        Roots::File(path) => {
            let certificates = certificates("sslrootcert", path)?;
            if certificates.is_empty() {
                return Err(TlsError::NoRoots { path: path.clone() });
            }
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates.iter().cloned());
            Ok((Arc::new(roots), certificates))
        }
    }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::Pem {
            key,
            path: path.to_owned(),
            source,
        })
}
