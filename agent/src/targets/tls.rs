//! TLS towards targets: configurations by mode and authority, made once and kept, and the hash that SCRAM binds to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use aws_lc_rs::digest::{self, SHA256, digest as hash};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Most configurations kept; a thing made again costs a millisecond.
const CACHE_MAX: usize = 256;
/// Most authorities in one connection's PEM.
const AUTHORITIES_MAX: usize = 64;

/// How the target's TLS is to be, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    Disable,
    /// TLS where the target has it, unverified.
    Prefer,
    /// TLS; the chain is verified if an authority is given, as libpq does, and never the name.
    Require,
    VerifyFull,
}

impl Mode {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TlsError {
    #[error("the connection's CA certificate is not PEM")]
    Pem,
    #[error("the connection's CA holds no usable certificate")]
    NoAuthority,
    #[error("this machine has no system root certificates; give the connection a CA")]
    NoSystemRoots,
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

type CacheKey = (Mode, [u8; 32]);
static CACHE: OnceLock<Mutex<HashMap<CacheKey, Arc<ClientConfig>>>> = OnceLock::new();
static SYSTEM_ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();

/// The configuration for a mode other than `Disable`; `ca_pem` empty means the system's roots.
pub fn client_config(mode: Mode, ca_pem: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut fingerprint = [0; 32];
    if !ca_pem.is_empty() {
        fingerprint.copy_from_slice(hash(&SHA256, ca_pem).as_ref());
    }
    let cache = CACHE.get_or_init(Mutex::default);
    if let Ok(known) = cache.lock()
        && let Some(config) = known.get(&(mode, fingerprint))
    {
        return Ok(Arc::clone(config));
    }
    let config = Arc::new(build(mode, ca_pem)?);
    if let Ok(mut known) = cache.lock() {
        if known.len() >= CACHE_MAX {
            known.clear();
        }
        known.insert((mode, fingerprint), Arc::clone(&config));
    }
    Ok(config)
}

fn build(mode: Mode, ca_pem: &[u8]) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let setup = |error: Error| TlsError::Setup(error.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(setup)?;
    let verifier: Arc<dyn ServerCertVerifier> = match mode {
        Mode::VerifyFull => chain_verifier(ca_pem, &provider)?,
        Mode::Require if !ca_pem.is_empty() => Arc::new(AnyName {
            chain: chain_verifier(ca_pem, &provider)?,
        }),
        Mode::Disable | Mode::Prefer | Mode::Require => Arc::new(Unverified {
            provider: Arc::clone(&provider),
        }),
    };
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn chain_verifier(ca_pem: &[u8], provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let roots = if ca_pem.is_empty() {
        system_roots()?
    } else {
        Arc::new(given_roots(ca_pem)?)
    };
    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
        .build()
        .map_err(|error| TlsError::Setup(error.to_string()))
}

fn given_roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem).take(AUTHORITIES_MAX) {
        roots
            .add(certificate.map_err(|_| TlsError::Pem)?)
            .map_err(|_| TlsError::NoAuthority)?;
    }
    if roots.is_empty() {
        Err(TlsError::NoAuthority)
    } else {
        Ok(roots)
    }
}

/// The system's roots, read once. Certificates that do not parse are left out, as every TLS library does.
pub fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let roots = SYSTEM_ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (_added, ignored) = roots.add_parsable_certificates(found.certs);
        if ignored > 0 {
            tracing::debug!(ignored, "system root certificates that do not parse were left out");
        }
        Arc::new(roots)
    });
    if roots.is_empty() {
        Err(TlsError::NoSystemRoots)
    } else {
        Ok(Arc::clone(roots))
    }
}

/// Encryption without knowing with whom: `prefer`, and `require` without an authority. The handshake's signature is
/// still checked, so that the certificate whose hash SCRAM binds to is the one whose key spoke.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The chain to the given authority, whatever the name.
#[derive(Debug)]
struct AnyName {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name is looked at last, when the chain has been found good.
        match self
            .chain
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The certificate's `tls-server-end-point` hash (RFC 5929, section 4.1): of its DER, by its signature's own hash, or by
/// SHA-256 where that is MD5 or SHA-1. `None` where the RFC defines none (Ed25519).
#[must_use]
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_hash(certificate)?;
    Some(hash(algorithm, certificate).as_ref().to_vec())
}

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm AlgorithmIdentifier, … } (RFC 5280, section 4.1).
fn signature_hash(certificate: &[u8]) -> Option<&'static digest::Algorithm> {
    const SEQUENCE: u8 = 0x30;
    const OID: u8 = 0x06;
    const EXPLICIT_0: u8 = 0xa0;
    let (body, _) = element(certificate, SEQUENCE)?;
    let (_tbs, rest) = element(body, SEQUENCE)?;
    let (identifier, _) = element(rest, SEQUENCE)?;
    let (oid, parameters) = element(identifier, OID)?;
    match oid {
        // 1.2.840.113549.1.1: RSA with …
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last] => match last {
            4 | 5 | 11 => Some(&SHA256),
            12 => Some(&digest::SHA384),
            13 => Some(&digest::SHA512),
            14 => Some(&digest::SHA224),
            // RSASSA-PSS names its hash in its parameters; SHA-1 where it does not (RFC 4055, section 3.1).
            10 => {
                let Some((given, _)) = element(parameters, SEQUENCE).and_then(|(inner, _)| element(inner, EXPLICIT_0))
                else {
                    return Some(&SHA256);
                };
                let (identifier, _) = element(given, SEQUENCE)?;
                hash_by_oid(element(identifier, OID)?.0)
            }
            _ => None,
        },
        // 1.2.840.10045.4: ECDSA with …
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Some(&SHA256),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, last] => match last {
            1 => Some(&digest::SHA224),
            2 => Some(&SHA256),
            3 => Some(&digest::SHA384),
            4 => Some(&digest::SHA512),
            _ => None,
        },
        _ => None,
    }
}

fn hash_by_oid(oid: &[u8]) -> Option<&'static digest::Algorithm> {
    match oid {
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last] => match last {
            1 => Some(&SHA256),
            2 => Some(&digest::SHA384),
            3 => Some(&digest::SHA512),
            4 => Some(&digest::SHA224),
            _ => None,
        },
        // SHA-1
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] => Some(&SHA256),
        _ => None,
    }
}

/// One DER element with this tag: its content and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    if *found != tag {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        (
            digits
                .iter()
                .fold(0_usize, |length, digit| length << 8 | usize::from(*digit)),
            rest,
        )
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};

    fn certificate(algorithm: &'static SignatureAlgorithm) -> rcgen::Certificate {
        let key = KeyPair::generate_for(algorithm).unwrap();
        rcgen::CertificateParams::new(vec!["db.example".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
    }

    #[test]
    fn the_end_point_hash_follows_the_signature() {
        let p256 = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(
            server_end_point(p256.der()).unwrap(),
            hash(&SHA256, p256.der()).as_ref()
        );
        let p384 = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(
            server_end_point(p384.der()).unwrap(),
            hash(&digest::SHA384, p384.der()).as_ref()
        );
        assert_eq!(server_end_point(certificate(&PKCS_ED25519).der()), None);
    }

    #[test]
    fn cut_certificates_have_no_hash_and_do_not_panic() {
        let whole = certificate(&PKCS_ECDSA_P256_SHA256);
        for length in 0..whole.der().len() {
            assert!(signature_hash(&whole.der()[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn a_configuration_is_made_once() {
        let pem = certificate(&PKCS_ECDSA_P256_SHA256).pem();
        let first = client_config(Mode::VerifyFull, pem.as_bytes()).unwrap();
        assert!(Arc::ptr_eq(
            &first,
            &client_config(Mode::VerifyFull, pem.as_bytes()).unwrap()
        ));
        assert!(!Arc::ptr_eq(
            &first,
            &client_config(Mode::Require, pem.as_bytes()).unwrap()
        ));
    }

    #[test]
    fn an_authority_that_is_none_is_an_error() {
        assert_eq!(
            client_config(Mode::VerifyFull, b"nonsense").unwrap_err(),
            TlsError::NoAuthority
        );
        let cut = "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n";
        assert!(client_config(Mode::VerifyFull, cut.as_bytes()).is_err());
    }
}
