//! SSH public keys: one's own, or, as an admin, anybody's.

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use hoop_store::list::Listing;
use hoop_store::ssh_keys::{SSH_KEYS, SshKey as Stored, SshKeyFilter};
use hoop_store::ssh_public_key::SshPublicKey;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::list_query::{Filters, ListQuery};
use crate::page::Page;
use crate::problem::{Bodied, Listed, Missing, Problem, Signed, Taken};

#[derive(Serialize, ToSchema)]
pub struct SshKey {
    pub id: Uuid,
    pub user: String,
    pub user_id: Uuid,
    pub name: String,
    #[schema(example = "ssh-ed25519")]
    pub algorithm: String,
    /// As `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// Without a comment.
    pub public_key: String,
    pub created_at: DateTime<Utc>,
}

impl From<Stored> for SshKey {
    fn from(key: Stored) -> Self {
        Self {
            id: key.id,
            user: key.username,
            user_id: key.user_id,
            name: key.name,
            algorithm: key.algorithm,
            fingerprint: key.fingerprint,
            public_key: key.openssh,
            created_at: key.created_at,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSshKey {
    /// One line of an OpenSSH .pub file: ed25519, ecdsa, rsa of 3072 bits or more, or one of these in a security key.
    #[schema(max_length = 8192)]
    public_key: String,
    /// The key's comment where absent.
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    /// Whose it is; an admin's to say. One's own where absent.
    user: Option<String>,
}

/// Which keys.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SshKeysFilter {
    /// Of this account, by user name.
    #[param(max_length = 256)]
    user: Option<String>,
    /// `SHA256:…`
    #[param(max_length = 256)]
    fingerprint: Option<String>,
}

impl Filters for SshKeysFilter {
    const LISTING: &'static Listing = &SSH_KEYS;
}

/// SSH public keys: all for admins and auditors, their own for members.
#[utoipa::path(
    tag = "ssh-keys",
    params(ListQuery<SshKeysFilter>),
    responses((status = 200, body = Page<SshKey>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/ssh-keys")]
pub async fn list_ssh_keys(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<SshKey>>, Problem> {
    let mut asked = ListQuery::<SshKeysFilter>::of(&request)?;
    let given = std::mem::take(&mut asked.filters);
    let filter = SshKeyFilter {
        user_id: (!caller.reads_all()).then_some(caller.user.id),
        user: given.user,
        fingerprint: given.fingerprint,
    };
    let listed = caller.state().store.list_ssh_keys(&filter, &asked.window).await?;
    Ok(web::Json(asked.page(listed, SshKey::from)))
}

/// Add an SSH public key: for oneself, or, as an admin, for anybody.
#[utoipa::path(
    tag = "ssh-keys",
    request_body = NewSshKey,
    responses((status = 201, body = SshKey), Missing, Taken, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/ssh-keys")]
pub async fn add_ssh_key(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    let new: NewSshKey = body.json(BODY_MAX_BYTES).await?;
    let store = &caller.state().store;
    let owner = match &new.user {
        Some(name) if *name != caller.user.username => {
            caller.require_admin()?;
            let user = store.find_user(name).await?;
            user.ok_or_else(|| Problem::not_found(format!("user {name} does not exist.")))?
        }
        _ => caller.user.clone(),
    };
    let key = SshPublicKey::parse(&new.public_key)?;
    let name = new.name.as_deref().unwrap_or(&key.comment);
    let added = store.add_ssh_key(&owner, name, &key, &caller.witness()).await?;
    Ok(HttpResponse::Created().json(SshKey::from(added)))
}

/// Delete an SSH public key: one's own, or any for an admin.
#[utoipa::path(
    tag = "ssh-keys",
    params(("id" = Uuid, Path, description = "The key's id")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/ssh-keys/{id}")]
pub async fn delete_ssh_key(caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let store = &caller.state().store;
    let missing = || {
        let id: String = id.chars().take(64).collect();
        Problem::not_found(format!("SSH key {id} does not exist."))
    };
    let uuid = Uuid::parse_str(&id).map_err(|_| missing())?;
    let key = store.find_ssh_key(uuid).await?.ok_or_else(missing)?;
    if key.user_id != caller.user.id {
        if !caller.reads_all() {
            return Err(missing());
        }
        caller.require_admin()?;
    }
    store.delete_ssh_key(uuid, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}
