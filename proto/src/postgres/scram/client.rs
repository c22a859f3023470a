//! The client's side of the exchange.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    BASE64, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, attribute, hmac, is_printable, nonce, salted_password, sha256, xor,
};

/// The most rounds that a server may ask for: about half a second of work.
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// Why the server's message is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Distrusted {
    #[error("malformed SCRAM message from the server: {0}")]
    Malformed(&'static str),
    #[error("the server asks for {0} SCRAM iterations; the limit is {MAX_ITERATIONS}")]
    Iterations(u32),
    #[error("the server does not know the password's verifier: its signature is wrong")]
    Signature,
}

/// One exchange, from the client's first message on.
pub struct ClientExchange {
    nonce: String,
    user: String,
    /// gs2-header.
    header: String,
    /// What is bound, behind the header.
    end_point: Vec<u8>,
    server_signature: Option<[u8; 32]>,
}

impl ClientExchange {
    /// `end_point`: the connection's tls-server-end-point, where it has one; `plus`: the server offers -PLUS.
    /// `None` where the system gives no randomness.
    #[must_use]
    pub fn new(user: &str, end_point: Option<Vec<u8>>, plus: bool) -> Option<Self> {
        Some(Self::with_nonce(&nonce()?, user, end_point, plus))
    }

    pub(crate) fn with_nonce(nonce: &str, user: &str, end_point: Option<Vec<u8>>, plus: bool) -> Self {
        let (header, end_point) = match end_point {
            Some(end_point) if plus => ("p=tls-server-end-point,,", end_point),
            Some(_) => ("y,,", Vec::new()),
            None => ("n,,", Vec::new()),
        };
        Self {
            nonce: nonce.to_owned(),
            user: user.to_owned(),
            header: header.to_owned(),
            end_point,
            server_signature: None,
        }
    }

    /// The mechanism that this exchange uses.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        if self.header.starts_with('p') {
            SCRAM_SHA_256_PLUS
        } else {
            SCRAM_SHA_256
        }
    }

    /// The client's first message.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}{}", self.header, self.first_bare())
    }

    fn first_bare(&self) -> String {
        format!("n={},r={}", self.user, self.nonce)
    }

    /// The client's last message. Costs the rounds that the server asks for.
    ///
    /// # Errors
    /// `Distrusted` where the server's first message is malformed or asks for too much.
    pub fn last(&mut self, server_first: &str, password: &str) -> Result<Zeroizing<String>, Distrusted> {
        let mut fields = server_first;
        let nonce = attribute(&mut fields, 'r')
            .filter(|nonce| is_printable(nonce) && nonce.len() > self.nonce.len() && nonce.starts_with(&self.nonce))
            .ok_or(Distrusted::Malformed("its nonce does not go on from ours"))?;
        let salt = attribute(&mut fields, 's')
            .and_then(|salt| BASE64.decode(salt).ok())
            .ok_or(Distrusted::Malformed("its salt"))?;
        let iterations: u32 = attribute(&mut fields, 'i')
            .and_then(|iterations| iterations.parse().ok())
            .filter(|&iterations| iterations > 0)
            .ok_or(Distrusted::Malformed("its iteration count"))?;
        if iterations > MAX_ITERATIONS {
            return Err(Distrusted::Iterations(iterations));
        }

        let mut binding = self.header.clone().into_bytes();
        binding.extend_from_slice(&self.end_point);
        let without_proof = format!("c={},r={nonce}", BASE64.encode(binding));
        let first_bare = self.first_bare();
        let parts: [&[u8]; 5] = [
            first_bare.as_bytes(),
            b",",
            server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];

        let salted = salted_password(password, &salt, iterations);
        let client_key = Zeroizing::new(hmac(salted.as_slice(), &[b"Client Key"]));
        let stored_key = sha256(client_key.as_slice());
        let proof = Zeroizing::new(xor(&client_key, &hmac(&stored_key, &parts)));
        let server_key = Zeroizing::new(hmac(salted.as_slice(), &[b"Server Key"]));
        self.server_signature = Some(hmac(server_key.as_slice(), &parts));
        Ok(Zeroizing::new(format!(
            "{without_proof},p={}",
            BASE64.encode(proof.as_slice())
        )))
    }

    /// Checks that the server knows the password's verifier.
    ///
    /// # Errors
    /// `Distrusted::Signature` where it does not.
    pub fn verify(&self, server_last: &str) -> Result<(), Distrusted> {
        let mut fields = server_last;
        let signature = attribute(&mut fields, 'v')
            .and_then(|signature| BASE64.decode(signature).ok())
            .ok_or(Distrusted::Malformed("its last message"))?;
        let expected = self.server_signature.as_ref().ok_or(Distrusted::Signature)?;
        verify_slices_are_equal(&signature, expected).map_err(|_| Distrusted::Signature)
    }
}
