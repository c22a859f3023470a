//! The `tls-server-end-point` channel binding that SCRAM uses (RFC 5929, section 4.1), on both of its sides.

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, digest};

/// The certificate's `tls-server-end-point` hash (RFC 5929, section 4.1): of its DER, by its signature's own hash, or by
/// SHA-256 where that is MD5 or SHA-1. `None` where the RFC defines none (Ed25519).
#[must_use]
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_hash(certificate)?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm AlgorithmIdentifier, … } (RFC 5280, section 4.1).
fn signature_hash(certificate: &[u8]) -> Option<&'static Algorithm> {
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
            12 => Some(&SHA384),
            13 => Some(&SHA512),
            14 => Some(&SHA224),
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
            1 => Some(&SHA224),
            2 => Some(&SHA256),
            3 => Some(&SHA384),
            4 => Some(&SHA512),
            _ => None,
        },
        _ => None,
    }
}

fn hash_by_oid(oid: &[u8]) -> Option<&'static Algorithm> {
    match oid {
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last] => match last {
            1 => Some(&SHA256),
            2 => Some(&SHA384),
            3 => Some(&SHA512),
            4 => Some(&SHA224),
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
            digest(&SHA256, p256.der()).as_ref()
        );
        let p384 = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(
            server_end_point(p384.der()).unwrap(),
            digest(&SHA384, p384.der()).as_ref()
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
}
