//! Whom providers vouch for, as administrators see and change it.

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use hoop_store::identities as stored;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::page::query;
use crate::problem::{Bodied, Listed, Missing, Problem, Signed, Taken};

/// Who a user is at a provider.
#[derive(Serialize, ToSchema)]
pub struct Identity {
    pub provider: String,
    /// The provider's lasting name of the person: OpenID Connect's `sub`, SAML's NameID.
    pub subject: String,
    pub email: String,
    pub display_name: String,
    /// As the provider told them last; null where it never told any.
    #[schema(required)]
    pub groups: Option<Vec<String>>,
    pub linked_at: DateTime<Utc>,
    #[schema(required)]
    pub last_sign_in_at: Option<DateTime<Utc>>,
    /// When the provider last confirmed the sign-in without the person.
    #[schema(required)]
    pub refreshed_at: Option<DateTime<Utc>>,
    /// Whether the provider is asked again while the person is signed in.
    pub refreshes: bool,
}

impl From<stored::Identity> for Identity {
    fn from(identity: stored::Identity) -> Self {
        Self {
            provider: identity.provider,
            subject: identity.subject,
            email: identity.email,
            display_name: identity.display_name,
            groups: identity.groups,
            linked_at: identity.linked_at,
            last_sign_in_at: identity.last_sign_in_at,
            refreshed_at: identity.refreshed_at,
            refreshes: identity.refreshes,
        }
    }
}

/// All of one user: there are at most 20.
#[derive(Serialize, ToSchema)]
pub struct Identities {
    items: Vec<Identity>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewIdentity {
    /// The name of a configured provider.
    provider: String,
    #[schema(min_length = 1, max_length = 1024)]
    subject: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct IdentityQuery {
    provider: String,
    #[param(max_length = 1024)]
    subject: String,
}

/// A user's identities, those that signed in last first.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    responses((status = 200, body = Identities), Missing, Signed),
    security(("bearer" = []))
)]
#[get("/users/{username}/identities")]
pub async fn list_identities(caller: Caller, username: web::Path<String>) -> Result<web::Json<Identities>, Problem> {
    caller.require_reader()?;
    let store = &caller.state().store;
    let user = store.find_user(&username).await?;
    let user = user.ok_or_else(|| Problem::not_found(format!("user {username} does not exist.")))?;
    let items = store.identities_of(user.id).await?;
    Ok(web::Json(Identities {
        items: items.into_iter().map(Identity::from).collect(),
    }))
}

/// Link a provider's subject to a user, who signs in there from then on.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    request_body = NewIdentity,
    responses((status = 201, body = Identity), Missing, Taken, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/users/{username}/identities")]
pub async fn link_identity(caller: Caller, username: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let new: NewIdentity = body.json(BODY_MAX_BYTES).await?;
    let state = caller.state();
    if state.providers.get(&new.provider).is_none() {
        return Err(Problem::field(
            "provider",
            "provider must be the name of a configured provider. GET /api/sign-in/providers lists them.",
        ));
    }
    let witness = caller.witness();
    let linked = state
        .store
        .link_identity(&username, &new.provider, &new.subject, &witness)
        .await?;
    Ok(HttpResponse::Created().json(Identity::from(linked)))
}

/// Unlink: the provider's groups go, and what the person signed in to ends.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name"), IdentityQuery),
    responses((status = 204), Missing, Listed, Signed),
    security(("bearer" = []))
)]
#[delete("/users/{username}/identities")]
pub async fn unlink_identity(
    request: HttpRequest,
    caller: Caller,
    username: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let which: IdentityQuery = query(&request)?;
    let store = &caller.state().store;
    let witness = caller.witness();
    store
        .unlink_identity(&username, &which.provider, &which.subject, &witness)
        .await?;
    Ok(HttpResponse::NoContent().finish())
}
