//! Where people are signed in from a browser, to look at and to end.

use actix_web::{HttpResponse, delete, get, web};
use chrono::{DateTime, Utc};
use hoop_store::browser_sessions as stored;
use hoop_store::users::User;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::AppState;
use crate::caller::{Caller, Means};
use crate::problem::{Missing, Problem, Signed};

/// A browser that somebody is signed in with.
#[derive(Serialize, ToSchema)]
pub struct BrowserSession {
    pub id: Uuid,
    /// How the person signed in: `password`, `oidc:NAME`, …
    pub method: String,
    /// Where the sign-in came from; empty where that is not known.
    pub address: String,
    /// As the browser calls itself.
    pub user_agent: String,
    /// Whether it is this request's.
    pub current: bool,
    pub created_at: DateTime<Utc>,
    /// To about a minute.
    pub last_used_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// All of them: there are 50 at most.
#[derive(Serialize, ToSchema)]
pub struct BrowserSessions {
    pub items: Vec<BrowserSession>,
}

async fn listed(caller: &Caller, of: Uuid) -> Result<web::Json<BrowserSessions>, Problem> {
    let state = caller.state();
    let current = match &caller.means {
        Means::Browser { session, .. } => Some(session.id),
        Means::Token | Means::PersonalToken { .. } => None,
    };
    let view = |session: stored::BrowserSession| BrowserSession {
        current: current == Some(session.id),
        id: session.id,
        method: session.method,
        address: session.address,
        user_agent: session.user_agent,
        created_at: session.created_at,
        last_used_at: session.last_used_at,
        expires_at: session.expires_at,
    };
    let found = state.store.browser_sessions(of, state.browsers.lifetimes).await?;
    Ok(web::Json(BrowserSessions {
        items: found.into_iter().map(view).collect(),
    }))
}

/// # Errors
/// 404 where nobody has the name.
pub async fn found(state: &AppState, username: &str) -> Result<User, Problem> {
    let user = state.store.find_user(username).await?;
    user.ok_or_else(|| Problem::not_found(format!("user {username} does not exist.")))
}

/// Where the caller is signed in from a browser.
#[utoipa::path(
    tag = "login",
    responses((status = 200, body = BrowserSessions), Signed),
    security(("bearer" = []))
)]
#[get("/me/browser-sessions")]
pub async fn list_own(caller: Caller) -> Result<web::Json<BrowserSessions>, Problem> {
    listed(&caller, caller.user.id).await
}

/// Sign one of the caller's browsers out.
#[utoipa::path(
    tag = "login",
    params(("id" = String, Path, description = "The session's id")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/me/browser-sessions/{id}")]
pub async fn end_own(caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let no_id = |_| Problem::not_found("There is no such browser session.");
    let id: Uuid = id.parse().map_err(no_id)?;
    let (store, witness) = (&caller.state().store, caller.witness());
    store.end_browser_sessions(&caller.user, Some(id), &witness).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Where a user is signed in from a browser.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    responses((status = 200, body = BrowserSessions), Missing, Signed),
    security(("bearer" = []))
)]
#[get("/users/{username}/browser-sessions")]
pub async fn list_of_user(caller: Caller, username: web::Path<String>) -> Result<web::Json<BrowserSessions>, Problem> {
    caller.require_reader()?;
    let user = found(caller.state(), &username).await?;
    listed(&caller, user.id).await
}

/// Sign all browsers of a user out.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/users/{username}/browser-sessions")]
pub async fn end_of_user(caller: Caller, username: web::Path<String>) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let user = found(caller.state(), &username).await?;
    let (store, witness) = (&caller.state().store, caller.witness());
    store.end_browser_sessions(&user, None, &witness).await?;
    Ok(HttpResponse::NoContent().finish())
}
