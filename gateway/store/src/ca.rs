//! The installation's own certificate authority: signs the certificates of listeners and replicas.
//!
//! Its key lives sealed in the store (`installation`); this file must not read or write it there. Agents need no
//! certificate: they prove themselves with their token, and know the gateway by the CA's pin.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Life of the CA: 10 years.
pub const CA_LIFE_DAYS: u64 = 3_650;
/// Usual life of a leaf certificate.
pub const LEAF_LIFE_DAYS: u64 = 90;
/// How far a certificate reaches back, for clocks that are behind.
const BACKDATE_S: u64 = 3_600;
const DAY_S: u64 = 86_400;
/// The DNS name in every replica's certificate.
pub const REPLICA_DNS_NAME: &str = "replica.hoop.internal";
/// Names one certificate may carry.
pub const MAX_SERVER_NAMES: usize = 64;

/// A certificate or key cannot be made.
#[derive(Debug, Error)]
pub enum CaError {
    #[error("a certificate needs at least one name, and at most {MAX_SERVER_NAMES}")]
    Names,
    #[error("{name:?} can be no name of a certificate")]
    Name { name: String, source: rcgen::Error },
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
}

/// A leaf certificate with its key.
#[derive(Clone)]
pub struct Leaf {
    /// DER: the leaf, then the CA.
    pub chain_der: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key_der: Zeroizing<Vec<u8>>,
    pub not_after: SystemTime,
    /// When a holder should ask for the next one: at two thirds of its life.
    pub renew_at: SystemTime,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The authority. Cheap to clone.
#[derive(Clone)]
pub struct Ca(Arc<Authority>);

struct Authority {
    certificate_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A new authority for an installation.
    ///
    /// # Errors
    /// `CaError::Make` where the system gives no random bytes.
    pub fn generate(installation: Uuid) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = authority_params(installation);
        set_life(&mut params, Duration::from_secs(CA_LIFE_DAYS * DAY_S));
        let certificate_der = params.self_signed(&key)?.der().to_vec();
        Ok(Self(Arc::new(Authority {
            certificate_der,
            issuer: Issuer::new(params, key),
        })))
    }

    /// The authority as it was stored.
    ///
    /// # Errors
    /// `CaError::Make` where `key_pkcs8` is no P-256 key.
    pub fn load(installation: Uuid, certificate_der: Vec<u8>, key_pkcs8: &[u8]) -> Result<Self, CaError> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key_pkcs8), &PKCS_ECDSA_P256_SHA256)?;
        let issuer = Issuer::new(authority_params(installation), key);
        Ok(Self(Arc::new(Authority {
            certificate_der,
            issuer,
        })))
    }

    #[must_use]
    pub fn cert_der(&self) -> &[u8] {
        &self.0.certificate_der
    }

    #[must_use]
    pub fn cert_pem(&self) -> String {
        pem("CERTIFICATE", &self.0.certificate_der)
    }

    /// Lower-case hex SHA-256 of the CA's SubjectPublicKeyInfo (DER): what `HOOP_KEY` pins.
    #[must_use]
    pub fn pin(&self) -> String {
        let spki = self.0.issuer.key().subject_public_key_info();
        hex::encode(digest::digest(&digest::SHA256, &spki))
    }

    /// The CA's key as PKCS#8, to be sealed.
    pub(crate) fn key_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.issuer.key().serialize_der())
    }

    /// A server certificate for DNS names and IP addresses, good for `life`, in whole seconds.
    ///
    /// # Errors
    /// `CaError`, naming a name that cannot be one.
    pub fn issue_server(&self, names: &[String], life: Duration) -> Result<Leaf, CaError> {
        if names.is_empty() || names.len() > MAX_SERVER_NAMES {
            return Err(CaError::Names);
        }
        let mut alternatives = Vec::with_capacity(names.len());
        for name in names {
            alternatives.push(match name.trim_start_matches('[').trim_end_matches(']').parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(|source| CaError::Name {
                    name: name.clone(),
                    source,
                })?),
            });
        }
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("Hoop gateway", alternatives, usages, life)
    }

    /// A certificate for one replica, good for `life`: client and server of `Peer`.
    ///
    /// # Errors
    /// `CaError::Make`.
    pub fn issue_replica(&self, replica: Uuid, life: Duration) -> Result<Leaf, CaError> {
        let alternatives = vec![
            SanType::DnsName(REPLICA_DNS_NAME.try_into()?),
            SanType::URI(format!("hoop://replica/{replica}").try_into()?),
        ];
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue("Hoop replica", alternatives, usages, life)
    }

    fn issue(
        &self,
        common_name: &str,
        alternatives: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        life: Duration,
    ) -> Result<Leaf, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        let not_after = set_life(&mut params, life);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = alternatives;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.0.issuer)?;
        Ok(Leaf {
            chain_der: vec![certificate.der().to_vec(), self.0.certificate_der.clone()],
            key_der: Zeroizing::new(key.serialize_der()),
            not_after,
            renew_at: not_after - life / 3,
        })
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ca").field(&self.pin()).finish()
    }
}

/// INVARIANT: the name and the key identifier method stay as they are, for leaves are issued under a name made anew
/// from the installation's id, not read from the stored certificate.
fn authority_params(installation: Uuid) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Hoop");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Hoop CA {installation}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Sets both ends of a certificate's life, in whole seconds from now, and tells the second.
fn set_life(params: &mut CertificateParams, life: Duration) -> SystemTime {
    let epoch = date_time_ymd(1970, 1, 1);
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let ends_s = now_s.saturating_add(life.as_secs());
    params.not_before = epoch + Duration::from_secs(now_s.saturating_sub(BACKDATE_S));
    params.not_after = epoch + Duration::from_secs(ends_s);
    UNIX_EPOCH + Duration::from_secs(ends_s)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            out.push('\n');
        }
        out.push(character);
    }
    out.push_str(&format!("\n-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;

    use super::*;

    const LIFE: Duration = Duration::from_secs(3 * DAY_S);

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    fn roots(ca: &Ca) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    fn verifies(ca: &Ca, leaf: &Leaf, name: &str) -> bool {
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots(ca), provider())
            .build()
            .unwrap();
        let end = CertificateDer::from(leaf.chain_der[0].as_slice());
        verifier
            .verify_server_cert(
                &end,
                &[],
                &ServerName::try_from(name.to_owned()).unwrap(),
                &[],
                UnixTime::now(),
            )
            .is_ok()
    }

    #[test]
    fn a_server_certificate_holds_for_its_names_and_addresses_alone() {
        let ca = Ca::generate(Uuid::nil()).unwrap();
        let leaf = ca
            .issue_server(&["hoop.example".into(), "127.0.0.1".into(), "::1".into()], LIFE)
            .unwrap();
        for name in ["hoop.example", "127.0.0.1", "::1"] {
            assert!(verifies(&ca, &leaf, name), "{name}");
        }
        assert!(!verifies(&ca, &leaf, "other.example"));
        assert!(!verifies(&Ca::generate(Uuid::nil()).unwrap(), &leaf, "hoop.example"));
        let key = PrivateKeyDer::Pkcs8(leaf.key_der.to_vec().into());
        assert!(provider().key_provider.load_private_key(key).is_ok());
        assert!(leaf.renew_at < leaf.not_after);
        assert!(matches!(ca.issue_server(&[], LIFE), Err(CaError::Names)));
        assert!(matches!(
            ca.issue_server(&["höp".into()], LIFE),
            Err(CaError::Name { .. })
        ));
    }

    #[test]
    fn a_stored_authority_signs_on_and_keeps_its_pin() {
        let id = Uuid::now_v7();
        let ca = Ca::generate(id).unwrap();
        let again = Ca::load(id, ca.cert_der().to_vec(), &ca.key_pkcs8()).unwrap();
        assert_eq!(ca.pin(), again.pin());
        assert_eq!(ca.pin().len(), 64);
        assert!(verifies(&ca, &again.issue_server(&["a".into()], LIFE).unwrap(), "a"));
        // The pin is the hash of what stands in the certificate.
        let spki = ca.0.issuer.key().subject_public_key_info();
        assert!(ca.cert_der().windows(spki.len()).any(|window| window == spki));
    }

    #[test]
    fn a_replica_certificate_serves_both_sides_and_names_the_replica() {
        let ca = Ca::generate(Uuid::nil()).unwrap();
        let id = Uuid::now_v7();
        let leaf = ca.issue_replica(id, LIFE).unwrap();
        assert!(verifies(&ca, &leaf, REPLICA_DNS_NAME));
        let uri = format!("hoop://replica/{id}");
        assert!(
            leaf.chain_der[0]
                .windows(uri.len())
                .any(|window| window == uri.as_bytes())
        );
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&ca), provider())
            .build()
            .unwrap();
        let end = CertificateDer::from(leaf.chain_der[0].as_slice());
        verifier.verify_client_cert(&end, &[], UnixTime::now()).unwrap();
    }
}
