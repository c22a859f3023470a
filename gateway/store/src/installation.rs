//! The installation: its id and its keys, made once, sealed in one row, the same for every replica.
//!
//! It must not hand a private key out of this process. Private keys rest only sealed by the master key; the audit
//! root's public half is printed at first start, for `verify` trusts no key found in the data.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use aws_lc_rs::{hmac, rand};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::StoreError;
use crate::ca::Ca;
use crate::migrate::SETUP_LOCK;
use crate::pool::told;
use crate::seal::{AesKey, MasterKey, SealError};

const MOCK_KEY_BYTES: usize = 32;
const TOKEN_KEY_ID_BYTES: usize = 6;

/// What all replicas of one installation share.
pub struct Installation {
    pub id: Uuid,
    pub ca: Ca,
    /// Certifies the keys of audit writers.
    pub audit_root: Arc<Ed25519KeyPair>,
    /// Signs agents' tokens.
    pub token_key: TokenKey,
    /// Salt of the mock SCRAM exchange for unknown credential ids.
    pub mock_key: [u8; MOCK_KEY_BYTES],
    /// Whether this process made the installation (first start).
    pub is_new: bool,
}

/// The key that signs agents' tokens, with the id that tokens name it by.
#[derive(Clone)]
pub struct TokenKey {
    pub id: String,
    pub pair: Arc<Ed25519KeyPair>,
}

impl Installation {
    /// The audit root's public key: what `verify --root` takes.
    #[must_use]
    pub fn audit_root_public(&self) -> [u8; 32] {
        let mut out = [0u8; 32];
        for (to, from) in out.iter_mut().zip(self.audit_root.public_key().as_ref()) {
            *to = *from;
        }
        out
    }

    /// Seals what browsers carry for us between two requests. Strangers can have as much of that sealed as they like, so
    /// it has a key of its own, and leaves the master key's nonces alone.
    ///
    /// # Errors
    /// None in practice: the key has the right length.
    pub fn browser_key(&self) -> Result<AesKey, SealError> {
        let base = hmac::Key::new(hmac::HMAC_SHA256, &self.mock_key);
        AesKey::new(hmac::sign(&base, b"what browsers carry").as_ref())
    }
}

impl fmt::Debug for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Installation")
            .field("id", &self.id)
            .field("ca", &self.ca)
            .field("token_key", &self.token_key.id)
            .finish_non_exhaustive()
    }
}

/// Loads the installation, or makes it where the database has none. Concurrent first starts make one.
///
/// # Errors
/// `Sealed` where the master key is not the installation's, `Query`, `Away`.
pub(crate) async fn ensure(client: &mut Client, master: &MasterKey) -> Result<Installation, StoreError> {
    let failed = StoreError::query("read or make the installation");
    let tx = client.transaction().await.map_err(&failed)?;
    tx.query_typed("select pg_advisory_xact_lock($1)", &[(&SETUP_LOCK, Type::INT8)])
        .await
        .map_err(&failed)?;
    let found = tx
        .query_typed_opt(
            "select id, ca_cert_der, ca_key_sealed, audit_root_sealed, token_key_id, token_key_sealed, \
             mock_key_sealed from installation",
            &[],
        )
        .await
        .map_err(&failed)?;
    if let Some(row) = found {
        let id: Uuid = row.get(0);
        let opened = |column: usize, what: &'static str| open(master, id, what, row.get(column));
        let made = Keys {
            ca_cert_der: row.get(1),
            ca_key: opened(2, CA_KEY)?,
            audit_root: opened(3, AUDIT_ROOT)?,
            token_key_id: row.get(4),
            token_key: opened(5, TOKEN_KEY)?,
            mock_key: opened(6, MOCK_KEY)?,
        };
        return made.installation(id, false);
    }

    let id = Uuid::now_v7();
    let keys = Keys::generate(id)?;
    let sealed = |what: &'static str, plain: &[u8]| {
        master
            .seal(&aad(id, what), plain)
            .map_err(|_| StoreError::Setup(format!("{what} cannot be sealed")))
    };
    let installation = keys.installation(id, true)?;
    tx.execute_typed(
        "insert into installation (id, ca_cert_der, ca_key_sealed, audit_root_public, audit_root_sealed, \
         token_key_id, token_key_sealed, mock_key_sealed) values ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            (&id, Type::UUID),
            (&keys.ca_cert_der, Type::BYTEA),
            (&sealed(CA_KEY, &keys.ca_key)?, Type::BYTEA),
            (&installation.audit_root_public().as_slice(), Type::BYTEA),
            (&sealed(AUDIT_ROOT, &keys.audit_root)?, Type::BYTEA),
            (&keys.token_key_id, Type::TEXT),
            (&sealed(TOKEN_KEY, &keys.token_key)?, Type::BYTEA),
            (&sealed(MOCK_KEY, &keys.mock_key)?, Type::BYTEA),
        ],
    )
    .await
    .map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    Ok(installation)
}

const CA_KEY: &str = "the installation's CA key";
const AUDIT_ROOT: &str = "the installation's audit root key";
const TOKEN_KEY: &str = "the installation's token key";
const MOCK_KEY: &str = "the installation's mock key";

fn aad(id: Uuid, what: &str) -> String {
    format!("installation/{id}/{what}")
}

fn open(master: &MasterKey, id: Uuid, what: &'static str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    master
        .open(&aad(id, what), sealed)
        .map(Zeroizing::new)
        .map_err(|_| StoreError::Sealed { what })
}

/// The keys as they are sealed, one by one.
struct Keys {
    ca_cert_der: Vec<u8>,
    ca_key: Zeroizing<Vec<u8>>,
    audit_root: Zeroizing<Vec<u8>>,
    token_key_id: String,
    token_key: Zeroizing<Vec<u8>>,
    mock_key: Zeroizing<Vec<u8>>,
}

impl Keys {
    fn generate(id: Uuid) -> Result<Self, StoreError> {
        let no_random = |_| StoreError::Setup("the system gives no random bytes".to_owned());
        let ca = Ca::generate(id).map_err(|error| StoreError::Setup(told(&error)))?;
        let ed25519 = || {
            let random = rand::SystemRandom::new();
            Ed25519KeyPair::generate_pkcs8(&random)
                .map(|key| Zeroizing::new(key.as_ref().to_vec()))
                .map_err(no_random)
        };
        let mut token_key_id = [0u8; TOKEN_KEY_ID_BYTES];
        rand::fill(&mut token_key_id).map_err(no_random)?;
        let mut mock_key = Zeroizing::new(vec![0u8; MOCK_KEY_BYTES]);
        rand::fill(&mut mock_key).map_err(no_random)?;
        Ok(Self {
            ca_cert_der: ca.cert_der().to_vec(),
            ca_key: ca.key_pkcs8(),
            audit_root: ed25519()?,
            token_key_id: hex::encode(token_key_id),
            token_key: ed25519()?,
            mock_key,
        })
    }

    fn installation(&self, id: Uuid, is_new: bool) -> Result<Installation, StoreError> {
        let pair = |what: &'static str, pkcs8: &[u8]| {
            Ed25519KeyPair::from_pkcs8(pkcs8)
                .map(Arc::new)
                .map_err(|_| StoreError::Sealed { what })
        };
        let ca =
            Ca::load(id, self.ca_cert_der.clone(), &self.ca_key).map_err(|_| StoreError::Sealed { what: CA_KEY })?;
        Ok(Installation {
            id,
            ca,
            audit_root: pair(AUDIT_ROOT, &self.audit_root)?,
            token_key: TokenKey {
                id: self.token_key_id.clone(),
                pair: pair(TOKEN_KEY, &self.token_key)?,
            },
            mock_key: self
                .mock_key
                .as_slice()
                .try_into()
                .map_err(|_| StoreError::Sealed { what: MOCK_KEY })?,
            is_new,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::StoreError;
    use crate::seal::MasterKey;
    use crate::store::{Store, StoreConfig};

    #[tokio::test]
    async fn first_starts_at_once_make_one_installation_and_only_its_master_key_opens_it() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let master = MasterKey::new(&MasterKey::generate().unwrap()).unwrap();
        let config = StoreConfig::new(url);
        let open = |master: &MasterKey| Store::open(&config, master.clone());
        let (one, two) = tokio::join!(open(&master), open(&master));
        let (one, two) = (one.unwrap(), two.unwrap());
        let (first, second) = (one.installation(), two.installation());
        assert_eq!(first.id, second.id);
        assert!(first.is_new != second.is_new);
        assert_eq!(first.ca.pin(), second.ca.pin());
        assert_eq!(first.audit_root_public(), second.audit_root_public());
        assert_eq!(first.mock_key, second.mock_key);
        assert_eq!(first.token_key.id, second.token_key.id);

        let other = MasterKey::new(&MasterKey::generate().unwrap()).unwrap();
        assert!(matches!(open(&other).await, Err(StoreError::Sealed { .. })));
    }
}
