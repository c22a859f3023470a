//! Personal tokens: made once, listed without the secret, revoked. Service accounts have them from an admin.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use hoop_store::list::Listing;
use hoop_store::personal_tokens::{
    self as stored, PERSONAL_TOKENS, PersonalToken, TTL_DEFAULT_S, TokenFilter, TokenState,
};
use hoop_store::users::User;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::list_query::{Filters, ListQuery};
use crate::page::Page;
use crate::problem::{Bodied, Listed, Missing, Problem, Signed};

/// What a token may do; never more than its owner may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Reads what its owner reads.
    Read,
    /// Makes, lists and revokes its owner's credentials.
    Connect,
    /// Whatever its owner, an admin, may do, but for what needs a sign-in.
    Admin,
}

impl From<stored::Scope> for Scope {
    fn from(scope: stored::Scope) -> Self {
        match scope {
            stored::Scope::Read => Self::Read,
            stored::Scope::Connect => Self::Connect,
            stored::Scope::Admin => Self::Admin,
        }
    }
}

impl From<Scope> for stored::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Read => Self::Read,
            Scope::Connect => Self::Connect,
            Scope::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = TokenState)]
pub enum State {
    Active,
    Expired,
    /// Itself or its owner.
    Revoked,
}

impl From<TokenState> for State {
    fn from(state: TokenState) -> Self {
        match state {
            TokenState::Active => Self::Active,
            TokenState::Expired => Self::Expired,
            TokenState::Revoked => Self::Revoked,
        }
    }
}

impl From<State> for TokenState {
    fn from(state: State) -> Self {
        match state {
            State::Active => Self::Active,
            State::Expired => Self::Expired,
            State::Revoked => Self::Revoked,
        }
    }
}

/// A personal token, without its secret.
#[derive(Serialize, ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub user: String,
    pub user_id: Uuid,
    pub name: String,
    /// Its first characters, to tell it by.
    #[schema(example = "hoop_pat_7k2m")]
    pub hint: String,
    pub scopes: BTreeSet<Scope>,
    pub state: State,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    /// To about ten minutes; null: never.
    #[schema(required)]
    pub last_used_at: Option<DateTime<Utc>>,
}

impl From<PersonalToken> for Token {
    fn from(token: PersonalToken) -> Self {
        Self {
            id: token.id,
            user: token.username,
            user_id: token.user_id,
            name: token.name,
            hint: token.hint,
            scopes: token.scopes.into_iter().map(Into::into).collect(),
            state: token.state.into(),
            created_at: token.created_at,
            expires_at: token.expires_at,
            last_used_at: token.last_used_at,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    #[schema(min_items = 1, value_type = Vec<Scope>)]
    scopes: BTreeSet<Scope>,
    /// Seconds that it is valid: 90 days where absent, 366 days at most.
    #[schema(minimum = 60, maximum = 31_622_400, default = 7_776_000)]
    ttl_seconds: Option<u64>,
    /// The service account that it is for; an admin's to say. For oneself where absent.
    user: Option<String>,
}

/// A personal token with its secret. This is the only time it is shown.
#[derive(Serialize, ToSchema)]
pub struct MadeToken {
    /// For `Authorization: Bearer`.
    #[schema(format = Password)]
    pub token: String,
    #[serde(flatten)]
    pub about: Token,
}

/// Which tokens.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TokensFilter {
    /// Of this account, by user name.
    #[param(max_length = 256)]
    user: Option<String>,
    state: Option<State>,
}

impl Filters for TokensFilter {
    const LISTING: &'static Listing = &PERSONAL_TOKENS;
}

/// Personal tokens: all for admins and auditors, their own for members.
#[utoipa::path(
    tag = "tokens",
    params(ListQuery<TokensFilter>),
    responses((status = 200, body = Page<Token>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/tokens")]
pub async fn list_tokens(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<Token>>, Problem> {
    let mut asked = ListQuery::<TokensFilter>::of(&request)?;
    let given = std::mem::take(&mut asked.filters);
    let filter = TokenFilter {
        user_id: (!caller.reads_all()).then_some(caller.user.id),
        user: given.user,
        state: given.state.map(Into::into),
    };
    let store = &caller.state().store;
    let listed = store.list_personal_tokens(&filter, &asked.window).await?;
    Ok(web::Json(asked.page(listed, Token::from)))
}

/// Make a personal token: for oneself, or, as an admin, for a service account.
#[utoipa::path(
    tag = "tokens",
    request_body = NewToken,
    responses((status = 201, body = MadeToken), Missing, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/tokens")]
pub async fn make_token(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    let new: NewToken = body.json(BODY_MAX_BYTES).await?;
    let owner = match &new.user {
        Some(name) if *name != caller.user.username => Some(service_account(&caller, name).await?),
        _ => None,
    };
    let scopes = new.scopes.into_iter().map(Into::into).collect();
    let wanted = stored::NewToken {
        name: &new.name,
        scopes: &scopes,
        ttl_s: new.ttl_seconds.unwrap_or(TTL_DEFAULT_S),
    };
    let store = &caller.state().store;
    let made = store
        .make_personal_token(owner.as_ref().unwrap_or(&caller.user), &wanted, &caller.witness())
        .await?;
    Ok(HttpResponse::Created().json(MadeToken {
        token: made.secret.to_string(),
        about: made.token.into(),
    }))
}

/// An admin makes tokens for service accounts; for a person nobody else does, for that would be signing in as the person.
async fn service_account(caller: &Caller, name: &str) -> Result<User, Problem> {
    caller.require_admin()?;
    let user = caller.state().store.find_user(name).await?;
    let user = user.ok_or_else(|| Problem::not_found(format!("user {name} does not exist.")))?;
    if user.service {
        Ok(user)
    } else {
        Err(Problem::field(
            "user",
            format!("{name} is a person, who makes tokens alone. Name a service account, or leave user out."),
        ))
    }
}

/// One personal token, without its secret.
#[utoipa::path(
    tag = "tokens",
    params(("id" = Uuid, Path, description = "The token's id")),
    responses((status = 200, body = Token), Missing, Signed),
    security(("bearer" = []))
)]
#[get("/tokens/{id}")]
pub async fn get_token(caller: Caller, id: web::Path<String>) -> Result<web::Json<Token>, Problem> {
    visible(&caller, &id).await.map(|token| web::Json(token.into()))
}

/// Revoke a personal token: one's own, or any for an admin. It ends at once; credentials that were made with it stay.
#[utoipa::path(
    tag = "tokens",
    params(("id" = Uuid, Path, description = "The token's id")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/tokens/{id}")]
pub async fn revoke_token(caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let token = visible(&caller, &id).await?;
    if token.user_id != caller.user.id {
        caller.require_admin()?;
    }
    let store = &caller.state().store;
    store.revoke_personal_token(token.id, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn visible(caller: &Caller, id: &str) -> Result<PersonalToken, Problem> {
    let missing = || {
        let id: String = id.chars().take(64).collect();
        Problem::not_found(format!("token {id} does not exist."))
    };
    let uuid = Uuid::parse_str(id).map_err(|_| missing())?;
    let token = caller.state().store.find_personal_token(uuid).await?;
    token
        .filter(|token| caller.reads_all() || token.user_id == caller.user.id)
        .ok_or_else(missing)
}
