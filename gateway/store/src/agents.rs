//! Agents and the signed tokens that they prove themselves with.
//!
//! A token is `base64url(payload).base64url(signature)`: Ed25519 over a fixed context and the payload, which names the
//! signing key, the installation, the agent and the token itself. Revoking an agent makes its token worthless at once.

use aws_lc_rs::signature::{ED25519, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, conflict, get};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::{check_label, check_set};
use crate::{Store, StoreError, changes};

/// Longest token that is looked at.
pub const TOKEN_MAX_BYTES: usize = 1024;
/// What is signed begins with this, so that a signature of the same key means nothing else.
const CONTEXT: &[u8] = b"hoop agent token v1\0";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub id: Uuid,
    pub name: String,
    pub created_at: DateTime<Utc>,
    /// The set of declarations that made it, and may remove it; empty: none.
    pub managed_by: String,
}

/// A registered agent and its token, which is not kept: this is the only time it can be read.
pub struct RegisteredAgent {
    pub agent: Agent,
    pub token: Zeroizing<String>,
}

/// Why an agent's token was not taken. Told to the agent, which holds the token anyway.
#[derive(Debug, Error)]
pub enum AgentAuthError {
    #[error("the agent's token is malformed or not signed by this installation: check HOOP_KEY")]
    Invalid,
    #[error("the agent is revoked: register it again and give it the new HOOP_KEY")]
    Revoked,
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Payload {
    kid: String,
    installation: Uuid,
    agent: Uuid,
    token: Uuid,
}

const AGENT_COLUMNS: &str = "id, name, created_at, managed_by";

/// How agents can be listed.
pub static AGENTS: Listing = Listing {
    name: "agents",
    columns: &[AGENT_COLUMNS],
    from: "agents a",
    whole: "a.revoked_at is null",
    id: SortKey::uuid("id", "a.id"),
    sorts: &[
        SortKey::text("name", "a.name"),
        SortKey::time("created_at", "a.created_at"),
    ],
    default_sort: "name",
};

/// Which agents.
#[derive(Debug, Clone, Default)]
pub struct AgentFilter {
    /// In the name.
    pub q: Option<String>,
    /// Only agents of these names.
    pub among: Option<Vec<String>>,
    /// Only agents of other names.
    pub not_among: Option<Vec<String>>,
}

impl Agent {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "id")?,
            name: get(row, "name")?,
            created_at: get(row, "created_at")?,
            managed_by: get(row, "managed_by")?,
        })
    }
}

impl Store {
    /// # Errors
    /// `Invalid` (name), `Conflict` where an agent has the name, `Unrecorded`, or the store is away.
    pub async fn register_agent(&self, name: &str, witness: &dyn Witness) -> Result<RegisteredAgent, StoreError> {
        self.register_agent_of(name, "", witness).await
    }

    /// An agent that the set of declarations `managed_by` makes; empty: none does.
    ///
    /// # Errors
    /// As `register_agent`, and `Invalid` (`managed_by`).
    pub async fn register_agent_of(
        &self,
        name: &str,
        managed_by: &str,
        witness: &dyn Witness,
    ) -> Result<RegisteredAgent, StoreError> {
        check_label("name", name)?;
        check_set(managed_by)?;
        let installation = self.installation();
        let (id, token_id) = (Uuid::now_v7(), Uuid::new_v4());
        let payload = Payload {
            kid: installation.token_key.id.clone(),
            installation: installation.id,
            agent: id,
            token: token_id,
        };
        let token = sign(&payload, |message| {
            installation.token_key.pair.sign(message).as_ref().to_vec()
        })?;

        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "registering an agent").await?;
        let sql = format!(
            "insert into agents (id, name, token_id, managed_by) values ($1, $2, $3, $4) returning {AGENT_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::UUID),
                    (&name, Type::TEXT),
                    (&token_id, Type::UUID),
                    (&managed_by, Type::TEXT),
                ],
            )
            .await
            .map_err(|e| conflict(e, || format!("agent {name}")))?
            .ok_or_else(|| unknown(name))?;
        let agent = Agent::from_row(&row)?;
        let after = json!({"id": id, "name": name, "token": token_id, "managed_by": managed_by});
        change
            .commit(
                witness,
                "agent.register",
                json!({"subject": name, "before": null, "after": after}),
            )
            .await?;
        Ok(RegisteredAgent { agent, token })
    }

    /// The agent whose token this is.
    ///
    /// # Errors
    /// `Invalid`, `Revoked`, or the store is away.
    pub async fn authenticate_agent(&self, token: &str) -> Result<Agent, AgentAuthError> {
        let installation = self.installation();
        let payload = verify(
            token,
            &installation.token_key.id,
            installation.token_key.pair.public_key().as_ref(),
        )?;
        if payload.installation != installation.id {
            return Err(AgentAuthError::Invalid);
        }
        let sql = format!("select {AGENT_COLUMNS}, token_id from agents where id = $1 and revoked_at is null");
        let row = self
            .read_opt("finding an agent", &sql, &[(&payload.agent, Type::UUID)])
            .await?;
        let row = row.ok_or(AgentAuthError::Revoked)?;
        let kept: Uuid = get(&row, "token_id")?;
        if !bool::from(kept.as_bytes().ct_eq(payload.token.as_bytes())) {
            return Err(AgentAuthError::Revoked);
        }
        Ok(Agent::from_row(&row)?)
    }

    /// The agent of this name, if it is registered and not revoked.
    ///
    /// # Errors
    /// The store is away.
    pub async fn find_agent(&self, name: &str) -> Result<Option<Agent>, StoreError> {
        let sql = format!("select {AGENT_COLUMNS} from agents where name = $1 and revoked_at is null");
        let row = self.read_opt("finding an agent", &sql, &[(&name, Type::TEXT)]).await?;
        row.as_ref().map(Agent::from_row).transpose()
    }

    /// The name of the agent with this id, revoked or not.
    ///
    /// # Errors
    /// The store is away.
    pub async fn agent_name(&self, id: Uuid) -> Result<Option<String>, StoreError> {
        let row = self
            .read_opt(
                "finding an agent",
                "select name from agents where id = $1",
                &[(&id, Type::UUID)],
            )
            .await?;
        row.as_ref().map(|row| get(row, "name")).transpose()
    }

    /// Names of the agents that are linked to any live replica.
    ///
    /// # Errors
    /// The store is away.
    pub async fn agents_linked(&self) -> Result<Vec<String>, StoreError> {
        let sql = "select distinct a.name from agents a join replica_links l on l.agent_id = a.id \
             join replicas r on r.id = l.replica_id where a.revoked_at is null and r.released_at is null \
             and r.lost_at is null and r.lease_until > clock_timestamp() order by a.name";
        self.read("listing linked agents", sql, &[])
            .await?
            .iter()
            .map(|row| get(row, "name"))
            .collect()
    }

    /// Ends an agent's token; every replica hears of it and closes the agent's links.
    ///
    /// # Errors
    /// `NotFound`, `Unrecorded`, or the store is away.
    pub async fn revoke_agent(&self, name: &str, witness: &dyn Witness) -> Result<Agent, StoreError> {
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "revoking an agent").await?;
        let sql = format!(
            "update agents set revoked_at = now() where name = $1 and revoked_at is null returning {AGENT_COLUMNS}"
        );
        let row = change
            .query_opt(&sql, &[(&name, Type::TEXT)])
            .await?
            .ok_or_else(|| unknown(name))?;
        let agent = Agent::from_row(&row)?;
        change.announce(changes::AGENT_REVOKED, agent.id.to_string());
        let before = json!({"id": agent.id, "name": name});
        change
            .commit(
                witness,
                "agent.revoke",
                json!({"subject": name, "before": before, "after": null}),
            )
            .await?;
        Ok(agent)
    }

    /// Whether any agent is registered.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn has_agents(&self) -> Result<bool, StoreError> {
        let sql = "select 1 from agents where revoked_at is null limit 1";
        Ok(self.read_opt("looking for agents", sql, &[]).await?.is_some())
    }

    /// A page of the agents that are registered and not revoked.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_agents(&self, filter: &AgentFilter, window: &Window) -> Result<Listed<Agent>, StoreError> {
        let text = filter.q.as_ref().map(|q| q.to_lowercase());
        let conditions = Conditions::default()
            .when(text.as_ref(), Type::TEXT, "strpos(a.name, $?) > 0")
            .when(filter.among.as_ref(), Type::TEXT_ARRAY, "a.name = any($?)")
            .when(filter.not_among.as_ref(), Type::TEXT_ARRAY, "a.name <> all($?)");
        self.list("listing agents", &AGENTS, conditions, window, Agent::from_row)
            .await
    }
}

/// The value of `HOOP_KEY`: where an agent dials, what it proves itself with, and whose certificate it takes.
/// `link_address` is `host:port`, `pin` the hex SHA-256 of the public key of the installation's CA.
#[must_use]
pub fn hoop_key(agent: &str, token: &str, link_address: &str, pin: &str) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "grpcs://{agent}:{token}@{link_address}?mode=standard&pin={pin}"
    ))
}

fn unknown(name: &str) -> StoreError {
    StoreError::NotFound {
        what: format!("agent {name}"),
    }
}

fn sign(payload: &Payload, key: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<Zeroizing<String>, StoreError> {
    let json = serde_json::to_vec(payload).map_err(|e| StoreError::Setup(format!("an agent's token: {e}")))?;
    let signature = key(&[CONTEXT, &json].concat());
    Ok(Zeroizing::new(format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(json),
        URL_SAFE_NO_PAD.encode(signature)
    )))
}

/// The id of the agent that a token is for, by its signature alone: it may be revoked.
///
/// # Errors
/// `Invalid` where the token is malformed, or not signed by this key.
pub fn token_agent(token: &str, key_id: &str, public_key: &[u8]) -> Result<Uuid, AgentAuthError> {
    verify(token, key_id, public_key).map(|payload| payload.agent)
}

/// Nothing of the payload is believed before its signature is.
fn verify(token: &str, key_id: &str, public_key: &[u8]) -> Result<Payload, AgentAuthError> {
    if token.len() > TOKEN_MAX_BYTES {
        return Err(AgentAuthError::Invalid);
    }
    let (payload, signature) = token.split_once('.').ok_or(AgentAuthError::Invalid)?;
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| AgentAuthError::Invalid)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| AgentAuthError::Invalid)?;
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(&[CONTEXT, &payload].concat(), &signature)
        .map_err(|_| AgentAuthError::Invalid)?;
    let payload: Payload = serde_json::from_slice(&payload).map_err(|_| AgentAuthError::Invalid)?;
    if payload.kid == key_id {
        Ok(payload)
    } else {
        Err(AgentAuthError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::Ed25519KeyPair;

    use super::*;

    fn signed() -> (Payload, Zeroizing<String>, Ed25519KeyPair) {
        let key = Ed25519KeyPair::generate().unwrap();
        let id = Uuid::now_v7;
        let payload = Payload {
            kid: "k1".into(),
            installation: id(),
            agent: id(),
            token: id(),
        };
        let token = sign(&payload, |m| key.sign(m).as_ref().to_vec()).unwrap();
        (payload, token, key)
    }

    #[test]
    fn a_token_is_read_back_with_its_key_only() {
        let (payload, token, key) = signed();
        assert!(token.len() < TOKEN_MAX_BYTES);
        assert_eq!(verify(&token, "k1", key.public_key().as_ref()).unwrap(), payload);
        let other = Ed25519KeyPair::generate().unwrap();
        assert!(matches!(
            verify(&token, "k1", other.public_key().as_ref()),
            Err(AgentAuthError::Invalid)
        ));
        assert!(matches!(
            verify(&token, "k2", key.public_key().as_ref()),
            Err(AgentAuthError::Invalid)
        ));
    }

    #[test]
    fn a_changed_or_overlong_token_is_refused() {
        let (_, token, key) = signed();
        let public = key.public_key().as_ref().to_vec();
        for at in 0..token.len() {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&changed, "k1", &public).is_err(), "changed at {at}");
        }
        assert!(verify(&"a".repeat(TOKEN_MAX_BYTES + 1), "k1", &public).is_err());
        assert!(verify("", "k1", &public).is_err());
    }
}
