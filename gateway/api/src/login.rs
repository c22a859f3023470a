//! Signing in with a local password, and out. The answer to a wrong password and to an unknown name is the same, and as
//! slow.

use actix_web::http::header::SET_COOKIE;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::{Caller, Means, bearer};
use crate::client_address::client_address;
use crate::problem::{Bodied, Open, Problem, Refused, Signed, Throttled};
use crate::proof;
use crate::second_step::{self, SecondFactorWanted};
use crate::sign_in::{self, Hold, Method, SignedIn, by};

/// The one answer to a wrong password and to an unknown name.
const WRONG: &str = "The user name or the password is wrong.";

/// Members that are not known are ignored here.
#[derive(Deserialize, ToSchema)]
pub struct Login {
    username: String,
    #[schema(format = Password)]
    password: String,
    /// What to sign in with from then on.
    #[serde(default)]
    hold: Hold,
}

/// Sign in.
#[utoipa::path(
    tag = "login",
    request_body = Login,
    responses(
        (
            status = 200, body = SignedIn,
            headers(("Set-Cookie" = Option<String>, description = "The session's cookie, where it was asked for"))
        ),
        (status = 202, description = "The password is right, a second factor is wanted", body = SecondFactorWanted),
        Throttled, Refused, Bodied, Open
    )
)]
#[post("/login")]
pub async fn login(request: HttpRequest, state: web::Data<AppState>, body: Body) -> Result<HttpResponse, Problem> {
    state.browsers.check_origin(&request)?;
    let login: Login = body.json(BODY_MAX_BYTES).await?;
    let password = Zeroizing::new(login.password);
    let address = client_address(&request, &state.trusted_proxies);
    let right = proof::password(&state, &login.username, &password, address, &Method::Password).await?;
    let user = right.ok_or_else(|| Problem::unauthorized(WRONG))?;
    let enrolled = state.store.second_factor(user.id).await?.is_some();
    if enrolled || state.second_factor_required {
        return second_step::wanted(&state, &user, login.hold, !enrolled).await;
    }
    let started = sign_in::start(&state, &request, &user, &Method::Password, login.hold).await?;
    Ok(started.answer())
}

/// Sign out: the token, or the browser session, ends.
#[utoipa::path(tag = "login", responses((status = 204), Signed), security(("bearer" = [])))]
#[post("/logout")]
pub async fn logout(request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let state = caller.state();
    let mut response = HttpResponse::NoContent();
    let mut session = None;
    match &caller.means {
        Means::PersonalToken { .. } => {
            return Err(Problem::forbidden(
                "Revoke a personal token with DELETE /api/tokens/{id}.",
            ));
        }
        Means::Token => {
            if let Some(token) = bearer(&request)? {
                state.store.revoke_token(&token).await?;
            }
        }
        Means::Browser { session: ended, .. } => {
            state.store.sign_out(ended.id).await?;
            session = Some(ended.id);
            response.insert_header((SET_COOKIE, state.browsers.no_cookie()?));
        }
    }
    let payload = json!({
        "by": by(Some(&caller.user), caller.address), "subject": caller.user.username,
        "before": {"session": session}, "after": null,
    });
    sign_in::note(state, "logout", payload).await;
    Ok(response.finish())
}

/// What the caller is signed in with.
#[derive(Serialize, ToSchema)]
pub struct CurrentSession {
    hold: Hold,
    /// How the person signed in; null with a token.
    #[schema(required)]
    method: Option<String>,
    /// For the header `X-CSRF-Token` of every request that changes something; null with a token, which needs none.
    #[schema(required)]
    csrf_token: Option<String>,
    #[schema(required)]
    created_at: Option<DateTime<Utc>>,
    /// The latest end; a browser session ends before that when it is not used.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
    /// Seconds without a request after which a browser session ends.
    #[schema(required)]
    idle_s: Option<u64>,
}

/// What the caller is signed in with, and the token that a browser's changes need.
#[utoipa::path(
    tag = "login",
    responses((status = 200, body = CurrentSession), Signed),
    security(("bearer" = []))
)]
#[get("/session")]
pub async fn current_session(caller: Caller) -> web::Json<CurrentSession> {
    web::Json(match &caller.means {
        Means::Token | Means::PersonalToken { .. } => CurrentSession {
            hold: Hold::Token,
            method: None,
            csrf_token: None,
            created_at: None,
            expires_at: None,
            idle_s: None,
        },
        Means::Browser { session, csrf_token } => CurrentSession {
            hold: Hold::Cookie,
            method: Some(session.method.clone()),
            csrf_token: Some(csrf_token.to_string()),
            created_at: Some(session.created_at),
            expires_at: Some(session.expires_at),
            idle_s: Some(caller.state().browsers.lifetimes.idle.as_secs()),
        },
    })
}
