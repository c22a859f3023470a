//! TLS towards the store: libpq's verification levels through rustls, its crypto provider given explicitly.
//!
//! It must not decide whether TLS is used: that is the URL's `sslmode` (`database_url`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
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
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let trust = match url.roots() {
        None => Trust::Anyone,
        Some(roots) => {
            let (roots, exact) = load_roots(&roots)?;
            Trust::Roots {
                roots,
                exact,
                name: url.ssl_mode() == SslMode::VerifyFull,
            }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(StoreVerifier { provider, trust }));
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

fn load_roots(roots: &Roots) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
            Ok((store, Vec::new()))
        }
        Roots::File(path) => {
            let certificates = certificates("sslrootcert", path)?;
            if certificates.is_empty() {
                return Err(TlsError::NoRoots { path: path.clone() });
            }
            store.add_parsable_certificates(certificates.iter().cloned());
            Ok((store, certificates))
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

enum Trust {
    /// `prefer` and `require`: encrypted, but with whom is not asked.
    Anyone,
    Roots {
        roots: RootCertStore,
        /// `sslrootcert`'s certificates themselves: a self-signed server certificate given as its own root is accepted,
        /// as libpq does; webpki alone would not take a CA certificate as a server's.
        exact: Vec<CertificateDer<'static>>,
        /// Whether the host's name counts (`verify-full`).
        name: bool,
    },
}

struct StoreVerifier {
    provider: Arc<CryptoProvider>,
    trust: Trust,
}

impl fmt::Debug for StoreVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreVerifier")
    }
}

impl ServerCertVerifier for StoreVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { roots, exact, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let given = exact.iter().any(|root| root.as_ref() == end_entity.as_ref());
        match ParsedCertificate::try_from(end_entity) {
            Ok(certificate) => {
                if !given {
                    verify_server_cert_signed_by_trust_anchor(
                        &certificate,
                        roots,
                        intermediates,
                        now,
                        self.provider.signature_verification_algorithms.all,
                    )?;
                }
                if *name {
                    verify_server_name(&certificate, server_name)?;
                }
            }
            // What webpki cannot parse it cannot find a name in either.
            Err(_) if given && !*name => {}
            Err(_) => return Err(rustls::Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
