//! Trust in the gateway's certificate by its authority's public key, as pinned in `HOOP_KEY`.
//!
//! The pinned thing is an authority, never the server's own certificate: the gateway renews its leaf, and a leaf's key
//! that leaks must not be able to outlive it.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use hoop_actors::trust::{self, ServerTrust};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, OtherError};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::key::Pin;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PinError {
    #[error(
        "the gateway's certificate is not signed by the authority that the key pins; if the installation's authority \
         was changed, register the agent again for a new key"
    )]
    NoPinnedAuthority,
    #[error("the key pins the gateway's own certificate; a pin must name the authority that signed it")]
    PinsLeaf,
}

/// A verifier that trusts exactly the authorities whose SubjectPublicKeyInfo has one of these SHA-256 hashes.
#[derive(Debug)]
pub struct PinnedAuthority {
    pins: Vec<Pin>,
}

impl PinnedAuthority {
    #[must_use]
    pub const fn new(pins: Vec<Pin>) -> Self {
        Self { pins }
    }

    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(parsed) = EndEntityCert::try_from(certificate) else {
            return false;
        };
        let hash = digest(&SHA256, &parsed.subject_public_key_info());
        self.pins.iter().any(|pin| pin == hash.as_ref())
    }
}

impl ServerTrust for PinnedAuthority {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.is_pinned(end_entity) {
            return Err(refused(PinError::PinsLeaf));
        }
        let authority = intermediates
            .iter()
            .find(|certificate| self.is_pinned(certificate))
            .ok_or_else(|| refused(PinError::NoPinnedAuthority))?;
        let anchor = anchor_from_trusted_cert(authority).map_err(invalid)?;
        let leaf = EndEntityCert::try_from(end_entity).map_err(invalid)?;
        // webpki does not look at an anchor's own basic constraints and dates. The chain must therefore hold the
        // authority as an issuer too, where it does: leaf … authority, which is anchored in itself.
        let through_authority = |path: &webpki::VerifiedPath<'_>| {
            if path
                .intermediate_certificates()
                .any(|issuer| issuer.der().as_ref() == authority.as_ref())
            {
                Ok(())
            } else {
                Err(webpki::Error::UnknownIssuer)
            }
        };
        leaf.verify_for_usage(
            trust::provider().signature_verification_algorithms.all,
            &[anchor],
            intermediates,
            now,
            KeyUsage::server_auth(),
            None,
            Some(&through_authority),
        )
        .map_err(invalid)?;
        leaf.verify_is_valid_for_subject_name(server_name)
            .map_err(|error| match error {
                webpki::Error::CertNotValidForName(_) => Error::InvalidCertificate(CertificateError::NotValidForName),
                other => invalid(other),
            })
    }
}

fn refused(error: PinError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn invalid(error: webpki::Error) -> Error {
    Error::InvalidCertificate(match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::BadDer => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        date_time_ymd,
    };

    const HOST: &str = "gw.example";

    fn authority(name: &str, is_ca: IsCa) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = is_ca;
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        authority(name, IsCa::Ca(BasicConstraints::Constrained(0)))
    }

    fn leaf(
        issuer: &CertifiedIssuer<'static, KeyPair>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        params
            .signed_by(&KeyPair::generate().unwrap(), issuer)
            .unwrap()
            .der()
            .clone()
    }

    fn pin_of(certificate: &CertificateDer<'_>) -> Pin {
        let parsed = EndEntityCert::try_from(certificate).unwrap();
        digest(&SHA256, &parsed.subject_public_key_info())
            .as_ref()
            .try_into()
            .unwrap()
    }

    fn verify(pins: &[Pin], leaf: &CertificateDer<'_>, chain: &[&CertificateDer<'static>]) -> Result<(), String> {
        let verifier = PinnedAuthority::new(pins.to_vec());
        let chain: Vec<_> = chain.iter().map(|certificate| (*certificate).clone()).collect();
        let name = ServerName::try_from(HOST).unwrap();
        verifier
            .check(leaf, &chain, &name, UnixTime::now())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_leaf_of_the_pinned_authority_is_trusted_and_one_of_several_pins_is_enough() {
        let ca = ca("Hoop CA");
        let leaf = leaf(&ca, |_| {});
        verify(&[pin_of(ca.der())], &leaf, &[ca.der()]).unwrap();
        verify(&[[7; 32], pin_of(ca.der())], &leaf, &[ca.der()]).unwrap();
    }

    #[test]
    fn another_authority_is_refused_even_beside_the_pinned_one() {
        let (pinned, other) = (ca("Hoop CA"), ca("Hoop CA"));
        let leaf = leaf(&other, |_| {});
        verify(&[pin_of(pinned.der())], &leaf, &[other.der()]).unwrap_err();
        verify(&[pin_of(pinned.der())], &leaf, &[pinned.der(), other.der()]).unwrap_err();
        verify(&[pin_of(pinned.der())], &leaf, &[other.der(), pinned.der()]).unwrap_err();
    }

    #[test]
    fn a_chain_without_the_authority_is_refused() {
        let ca = ca("Hoop CA");
        let error = verify(&[pin_of(ca.der())], &leaf(&ca, |_| {}), &[]).unwrap_err();
        assert!(
            error.contains("NoPinnedAuthority") || error.contains("not signed by the authority"),
            "{error}"
        );
    }

    #[test]
    fn the_pin_of_the_leaf_itself_is_refused() {
        let ca = ca("Hoop CA");
        let leaf = leaf(&ca, |_| {});
        verify(&[pin_of(&leaf)], &leaf, &[ca.der()]).unwrap_err();
        verify(&[pin_of(&leaf), pin_of(ca.der())], &leaf, &[ca.der()]).unwrap_err();
        verify(&[pin_of(ca.der())], ca.der(), &[ca.der()]).unwrap_err();
    }

    #[test]
    fn a_pinned_certificate_that_is_no_authority_signs_nothing() {
        for not_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
            let issuer = authority("Not a CA", not_ca);
            verify(&[pin_of(issuer.der())], &leaf(&issuer, |_| {}), &[issuer.der()]).unwrap_err();
        }
    }

    #[test]
    fn name_dates_and_usage_are_checked() {
        let ca = ca("Hoop CA");
        let pin = pin_of(ca.der());
        let other_name = leaf(&ca, |params| {
            params.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
        });
        let expired = leaf(&ca, |params| params.not_after = date_time_ymd(2020, 1, 1));
        let client_only = leaf(&ca, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
        });
        for (what, certificate) in [("name", other_name), ("expired", expired), ("usage", client_only)] {
            assert!(verify(&[pin], &certificate, &[ca.der()]).is_err(), "{what}");
        }
    }
}
