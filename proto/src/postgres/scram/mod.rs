//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677; channel binding tls-server-end-point, RFC 5929) as
//! PostgreSQL speaks them: the user name inside the exchange is empty and ignored.

pub mod client;
pub mod server;

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::{Zeroize, Zeroizing};

/// Mechanism names, as PostgreSQL spells them.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Rounds that new verifiers are made with (RFC 7677, section 4: at least 4,096).
pub const ITERATIONS: u32 = 4_096;
/// Bytes of salt that new verifiers are made with.
pub const SALT_BYTES: usize = 16;
/// The longest SASL message taken, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4_096;
/// Random bytes of a nonce (24 characters of base64).
const NONCE_BYTES: usize = 18;

pub(crate) type Key = [u8; 32];

/// What proves a password without being it (RFC 5802, section 3). Enough to impersonate the server, not the client.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub stored_key: Key,
    pub server_key: Key,
}

impl Verifier {
    /// The verifier of this password. Costs `iterations` rounds of HMAC (4,096: one to two milliseconds).
    #[must_use]
    pub fn make(password: &str, salt: &[u8], iterations: u32) -> Self {
        let salted = salted_password(password, salt, iterations);
        let client_key = Zeroizing::new(hmac(salted.as_slice(), &[b"Client Key"]));
        Self {
            salt: salt.to_vec(),
            iterations,
            stored_key: sha256(client_key.as_slice()),
            server_key: hmac(salted.as_slice(), &[b"Server Key"]),
        }
    }

    /// A verifier that no password matches, the same for the same user as long as `mock_key` stays, so that a stranger
    /// cannot tell an unknown user from a known one by its salt.
    #[must_use]
    pub fn mock(mock_key: &[u8; 32], user: &str) -> Self {
        let [salt, stored_key, server_key] =
            [&b"salt"[..], b"stored key", b"server key"].map(|what| hmac(mock_key, &[what, b":", user.as_bytes()]));
        Self {
            salt: salt.get(..SALT_BYTES).unwrap_or_default().to_vec(),
            iterations: ITERATIONS,
            stored_key,
            server_key,
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

fn salted_password(password: &str, salt: &[u8], iterations: u32) -> Zeroizing<Key> {
    let mut salted = Zeroizing::new([0; 32]);
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let prepared = Zeroizing::new(prepare(password).into_owned());
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        prepared.as_bytes(),
        salted.as_mut_slice(),
    );
    salted
}

/// SASLprep; as in PostgreSQL, a password that it forbids is taken as it is.
fn prepare(password: &str) -> Cow<'_, str> {
    stringprep::saslprep(password).unwrap_or(Cow::Borrowed(password))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    first_32(context.sign().as_ref())
}

fn sha256(data: &[u8]) -> Key {
    first_32(digest::digest(&digest::SHA256, data).as_ref())
}

fn first_32(bytes: &[u8]) -> Key {
    let mut key = [0; 32];
    for (slot, &byte) in key.iter_mut().zip(bytes) {
        *slot = byte;
    }
    key
}

fn xor(a: &Key, b: &Key) -> Key {
    let mut out = *a;
    for (slot, &byte) in out.iter_mut().zip(b) {
        *slot ^= byte;
    }
    out
}

/// A fresh nonce; `None` where the system gives no randomness.
pub(crate) fn nonce() -> Option<String> {
    let mut bytes = [0; NONCE_BYTES];
    rand::fill(&mut bytes).ok()?;
    Some(BASE64.encode(bytes))
}

/// `x=value` of a comma-separated SCRAM message: the value of the attribute `name`, which must come next.
fn attribute<'a>(message: &mut &'a str, name: char) -> Option<&'a str> {
    let (field, rest) = message.split_once(',').unwrap_or((message, ""));
    *message = rest;
    field.strip_prefix(name)?.strip_prefix('=')
}

fn is_printable(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.bytes().all(|byte| (0x21..=0x7e).contains(&byte) && byte != b',')
}

#[cfg(test)]
mod tests {
    use super::client::ClientExchange;
    use super::server::{Binding, Rejected, ServerExchange};
    use super::*;

    /// RFC 7677, section 3.
    #[test]
    fn the_example_of_rfc_7677_is_reproduced() {
        let mut client = ClientExchange::with_nonce("rOprNGfwEbeRWgbNEkqO", "user", None, false);
        assert_eq!(client.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let last = client.last(server_first, "pencil").unwrap();
        assert_eq!(
            last.as_str(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(client.verify("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert!(client.verify("v=AAAATRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").is_err());
    }

    fn play(password: &str, verifier: Verifier, binding: Option<Vec<u8>>) -> Result<(), Rejected> {
        let mut client = ClientExchange::new("", binding.clone(), binding.is_some()).unwrap();
        let mechanism = client.mechanism();
        let binding = Binding { end_point: binding };
        let (server, first) = ServerExchange::start(verifier, binding, mechanism, client.first().as_bytes())?;
        let last = client.last(&first, password).unwrap();
        let proved = server.finish(last.as_bytes())?;
        assert_eq!(client.verify(&proved), Ok(()));
        Ok(())
    }

    #[test]
    fn client_and_server_agree_with_and_without_channel_binding() {
        for password in ["secret", "pässwörd", "I\u{ad}X", "tab\there"] {
            let verifier = Verifier::make(password, &[7; SALT_BYTES], ITERATIONS);
            assert_eq!(play(password, verifier.clone(), None), Ok(()));
            assert_eq!(play(password, verifier, Some(vec![9; 32])), Ok(()));
        }
    }

    #[test]
    fn a_wrong_password_and_a_mock_verifier_are_rejected_alike() {
        let verifier = Verifier::make("secret", &[7; SALT_BYTES], ITERATIONS);
        assert_eq!(play("wrong", verifier, None), Err(Rejected::Proof));
        assert_eq!(
            play("secret", Verifier::mock(&[1; 32], "c2345678a"), None),
            Err(Rejected::Proof)
        );
    }

    #[test]
    fn a_mock_verifier_is_stable_for_a_user_and_differs_between_users() {
        let mock = |user| Verifier::mock(&[1; 32], user);
        assert_eq!(mock("a"), mock("a"));
        assert_ne!(mock("a").salt, mock("b").salt);
        assert_eq!((mock("a").salt.len(), mock("a").iterations), (SALT_BYTES, ITERATIONS));
    }

    #[test]
    fn a_verifier_shows_no_key() {
        let shown = format!("{:?}", Verifier::make("secret", &[7; SALT_BYTES], 1));
        assert_eq!(shown, "Verifier { iterations: 1, .. }");
    }

    #[test]
    fn another_end_point_than_the_servers_is_rejected() {
        let verifier = Verifier::make("secret", &[7; SALT_BYTES], 1);
        let mut client = ClientExchange::new("", Some(vec![1; 32]), true).unwrap();
        let binding = Binding {
            end_point: Some(vec![2; 32]),
        };
        let first = client.first();
        let (server, reply) = ServerExchange::start(verifier, binding, client.mechanism(), first.as_bytes()).unwrap();
        let last = client.last(&reply, "secret").unwrap();
        assert_eq!(
            server.finish(last.as_bytes()).map(drop),
            Err(Rejected::Binding("SCRAM channel binding check failed"))
        );
    }

    #[test]
    fn malformed_client_messages_are_rejected() {
        let start = |mechanism, message: &str| {
            let verifier = Verifier::make("secret", &[7; SALT_BYTES], 1);
            let binding = Binding {
                end_point: Some(vec![2; 32]),
            };
            ServerExchange::start(verifier, binding, mechanism, message.as_bytes()).map(drop)
        };
        let malformed = [
            (SCRAM_SHA_256, ""),
            (SCRAM_SHA_256, "n"),
            (SCRAM_SHA_256, "n,,n=,r="),
            (SCRAM_SHA_256, "n,,m=x,n=,r=abc"),
            (SCRAM_SHA_256, "n,a=other,n=,r=abc"),
            (SCRAM_SHA_256, "p=tls-server-end-point,,n=,r=abc"),
            (SCRAM_SHA_256_PLUS, "n,,n=,r=abc"),
            (SCRAM_SHA_256_PLUS, "p=tls-unique,,n=,r=abc"),
            ("SCRAM-SHA-1", "n,,n=,r=abc"),
        ];
        for (mechanism, message) in malformed {
            assert!(
                matches!(start(mechanism, message), Err(Rejected::Malformed(_))),
                "{mechanism} {message}"
            );
        }
        assert!(matches!(start(SCRAM_SHA_256, "y,,n=,r=abc"), Err(Rejected::Binding(_))));
        assert_eq!(start(SCRAM_SHA_256, "n,,n=,r=abc"), Ok(()));
    }
}
