//! The server's side of the exchange.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{BASE64, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Verifier, attribute, hmac, is_printable, nonce, sha256, xor};

/// What the TLS connection offers for channel binding.
#[derive(Debug, Clone, Default)]
pub struct Binding {
    /// tls-server-end-point; `None`: SCRAM-SHA-256-PLUS is not offered.
    pub end_point: Option<Vec<u8>>,
}

/// Why the client's message is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejected {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Binding(&'static str),
    #[error("the proof does not match")]
    Proof,
    #[error("no randomness available")]
    Randomness,
}

/// After the server's first message: waits for the client's last.
pub struct ServerExchange {
    verifier: Verifier,
    /// The base64 that `c=` must have.
    binding: String,
    nonce: String,
    /// client-first-message-bare "," server-first-message ","
    auth_message: String,
}

impl ServerExchange {
    /// Takes the client's first message and gives the server's.
    ///
    /// # Errors
    /// `Rejected` where the message is malformed, or its channel binding does not fit what was offered.
    pub fn start(
        verifier: Verifier,
        binding: Binding,
        mechanism: &str,
        message: &[u8],
    ) -> Result<(Self, String), Rejected> {
        let nonce = nonce().ok_or(Rejected::Randomness)?;
        Self::start_with_nonce(verifier, binding, mechanism, message, &nonce)
    }

    fn start_with_nonce(
        verifier: Verifier,
        binding: Binding,
        mechanism: &str,
        message: &[u8],
        nonce: &str,
    ) -> Result<(Self, String), Rejected> {
        let plus = match mechanism {
            SCRAM_SHA_256 => false,
            SCRAM_SHA_256_PLUS if binding.end_point.is_some() => true,
            _ => {
                return Err(Rejected::Malformed(
                    "client selected an invalid SASL authentication mechanism",
                ));
            }
        };
        let text = std::str::from_utf8(message).map_err(|_| Rejected::Malformed("it is not UTF-8"))?;
        let malformed = Rejected::Malformed("the client's first message");
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed);
        };
        match (flag, plus) {
            ("n", false) => {}
            ("y", false) if binding.end_point.is_none() => {}
            ("y", false) => {
                return Err(Rejected::Binding(
                    "SCRAM channel binding negotiation error: the client supports SCRAM channel binding but thinks \
                     the server does not",
                ));
            }
            ("p=tls-server-end-point", true) => {}
            _ => return Err(Rejected::Malformed("its channel binding does not fit the mechanism")),
        }
        if !identity.is_empty() {
            return Err(Rejected::Malformed(
                "client uses authorization identity, but it is not supported",
            ));
        }
        let mut fields = bare;
        let _user = attribute(&mut fields, 'n').ok_or(malformed)?;
        let client_nonce = attribute(&mut fields, 'r')
            .filter(|nonce| is_printable(nonce))
            .ok_or(malformed)?;

        let mut expected = format!("{flag},,").into_bytes();
        if plus {
            expected.extend_from_slice(binding.end_point.as_deref().unwrap_or_default());
        }
        let nonce = format!("{client_nonce}{nonce}");
        let first = format!(
            "r={nonce},s={},i={}",
            BASE64.encode(&verifier.salt),
            verifier.iterations
        );
        let auth_message = format!("{bare},{first},");
        Ok((
            Self {
                verifier,
                binding: BASE64.encode(expected),
                nonce,
                auth_message,
            },
            first,
        ))
    }

    /// Checks the client's last message; gives the server's, which proves the server to the client.
    ///
    /// # Errors
    /// `Rejected::Proof` where the password is wrong.
    pub fn finish(self, message: &[u8]) -> Result<String, Rejected> {
        let malformed = Rejected::Malformed("the client's last message");
        let text = std::str::from_utf8(message).map_err(|_| malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(malformed)?;
        let mut fields = without_proof;
        let binding = attribute(&mut fields, 'c').ok_or(malformed)?;
        let nonce = attribute(&mut fields, 'r').ok_or(malformed)?;
        if binding != self.binding {
            return Err(Rejected::Binding("SCRAM channel binding check failed"));
        }
        if nonce != self.nonce {
            return Err(Rejected::Malformed("its nonce is not the one given"));
        }
        let proof = BASE64.decode(proof).map_err(|_| malformed)?;
        let proof = Zeroizing::new(<[u8; 32]>::try_from(proof).map_err(|_| malformed)?);

        let parts = [self.auth_message.as_bytes(), without_proof.as_bytes()];
        let client_key = Zeroizing::new(xor(&proof, &hmac(&self.verifier.stored_key, &parts)));
        verify_slices_are_equal(&sha256(client_key.as_slice()), &self.verifier.stored_key)
            .map_err(|_| Rejected::Proof)?;
        Ok(format!("v={}", BASE64.encode(hmac(&self.verifier.server_key, &parts))))
    }
}
