//! Whom a TLS server must be, for every connection that we dial: libpq's verification levels, and whatever else
//! implements [`ServerTrust`]. The handshake's own signatures are always checked, so that even where anyone is trusted
//! the certificate that SCRAM binds to is the one whose key spoke.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The one cryptographic provider of our programs.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The machine's trusted roots, read once; empty where it has none. Certificates that do not parse are left out, as
/// every TLS library does.
pub fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let (_added, ignored) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if ignored > 0 {
            tracing::debug!(ignored, "system root certificates that do not parse were left out");
        }
        Arc::new(roots)
    });
    Arc::clone(roots)
}

/// Decides whether a server's certificate is that of whom we mean.
pub trait ServerTrust: Debug + Send + Sync {
    /// # Errors
    /// Why it is not.
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error>;
}

/// A client's configuration, without a certificate of our own, that trusts as `trust` says.
///
/// # Errors
/// `rustls::Error` where the provider lacks a protocol version.
pub fn client_builder(
    trust: impl ServerTrust + 'static,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    let provider = provider();
    let verifier = Verifier {
        algorithms: provider.signature_verification_algorithms,
        trust,
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

#[derive(Debug)]
struct Verifier<T> {
    algorithms: WebPkiSupportedAlgorithms,
    trust: T,
}

impl<T: ServerTrust> ServerCertVerifier for Verifier<T> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trust.check(end_entity, intermediates, server_name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// libpq's levels (PostgreSQL manual, "SSL Support", "Protection Provided in Different Modes").
#[derive(Debug)]
pub enum Libpq {
    /// `prefer` and `require`: encrypted, but with whom is not asked.
    Anyone,
    Authorities(Authorities),
}

/// A chain to one of these.
#[derive(Debug)]
pub struct Authorities {
    pub roots: Arc<RootCertStore>,
    /// The given certificates themselves: a self-signed server certificate given as its own root is accepted, as libpq
    /// does; webpki alone would not take a CA certificate as a server's.
    pub exact: Vec<CertificateDer<'static>>,
    /// Whether the host's name counts (`verify-full`).
    pub name: bool,
}

impl ServerTrust for Libpq {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Self::Authorities(Authorities { roots, exact, name }) = self else {
            return Ok(());
        };
        let given = exact.iter().any(|root| root.as_ref() == end_entity.as_ref());
        let certificate = match ParsedCertificate::try_from(end_entity) {
            Ok(certificate) => certificate,
            // What webpki cannot parse it cannot find a name in either.
            Err(_) if given && !*name => return Ok(()),
            Err(_) => return Err(CertificateError::BadEncoding.into()),
        };
        if !given {
            let algorithms = provider().signature_verification_algorithms;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms.all)?;
        }
        if *name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(())
    }
}
