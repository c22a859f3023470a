//! TLS towards targets: configurations by mode and authority, made once and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use aws_lc_rs::digest::{SHA256, digest};
use hoop_actors::trust::{self, Authorities, Libpq};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

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

/// The configuration for a mode other than `Disable`; `ca_pem` empty means the system's roots.
pub fn client_config(mode: Mode, ca_pem: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut fingerprint = [0; 32];
    if !ca_pem.is_empty() {
        fingerprint.copy_from_slice(digest(&SHA256, ca_pem).as_ref());
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
    let trust = match mode {
        Mode::VerifyFull => Libpq::Authorities(authorities(ca_pem, true)?),
        Mode::Require if !ca_pem.is_empty() => Libpq::Authorities(authorities(ca_pem, false)?),
        Mode::Disable | Mode::Prefer | Mode::Require => Libpq::Anyone,
    };
    let builder = trust::client_builder(trust).map_err(|error| TlsError::Setup(error.to_string()))?;
    Ok(builder.with_no_client_auth())
}

fn authorities(ca_pem: &[u8], name: bool) -> Result<Authorities, TlsError> {
    if ca_pem.is_empty() {
        let (roots, exact) = (system_roots()?, Vec::new());
        return Ok(Authorities { roots, exact, name });
    }
    let mut roots = RootCertStore::empty();
    let mut exact = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(ca_pem).take(AUTHORITIES_MAX) {
        let certificate = certificate.map_err(|_| TlsError::Pem)?;
        roots.add(certificate.clone()).map_err(|_| TlsError::NoAuthority)?;
        exact.push(certificate);
    }
    if roots.is_empty() {
        return Err(TlsError::NoAuthority);
    }
    let roots = Arc::new(roots);
    Ok(Authorities { roots, exact, name })
}

/// The system's roots.
///
/// # Errors
/// `NoSystemRoots` where it has none.
pub fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let roots = trust::system_roots();
    if roots.is_empty() {
        Err(TlsError::NoSystemRoots)
    } else {
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::KeyPair;

    fn certificate() -> rcgen::Certificate {
        let names = rcgen::CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
        names.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_configuration_is_made_once() {
        let pem = certificate().pem();
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
