//! What a proven identity becomes, whoever proved it: a browser session or a token, recorded before it is handed out.
//!
//! INVARIANT: no record and no log line holds what was typed as a name that nobody has, for it may be a password.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use actix_web::http::header::{LOCATION, SET_COOKIE, USER_AGENT};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use hoop_store::browser_sessions::{NewBrowserSession, csrf_token};
use hoop_store::change::Witness;
use hoop_store::tokens::LOGIN_TTL_S;
use hoop_store::users::User;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::AppState;
use crate::client_address::client_address;
use crate::problem::Problem;

/// How somebody proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    Password,
    PasswordAndCode,
    PasswordAndRecoveryCode,
    /// The link that the first start printed.
    SetUpLink,
    /// Somebody who is signed in already proves it again, before a change of what the person signs in with.
    Again,
    /// A person who was signed in said yes to it in a browser.
    CommandLine,
    /// `oidc` or `saml`, and our name of the provider.
    Provider(&'static str, String),
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password => f.write_str("password"),
            Self::PasswordAndCode => f.write_str("password+totp"),
            Self::PasswordAndRecoveryCode => f.write_str("password+recovery-code"),
            Self::SetUpLink => f.write_str("set-up-link"),
            Self::Again => f.write_str("password-again"),
            Self::CommandLine => f.write_str("command-line"),
            Self::Provider(protocol, name) => write!(f, "{protocol}:{name}"),
        }
    }
}

/// What the person holds afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// A bearer token, in the answer.
    #[default]
    Token,
    /// A session's cookie, for browsers.
    Cookie,
}

impl Hold {
    /// For a row.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Cookie => "cookie",
        }
    }

    pub fn from_stored(stored: &str) -> Self {
        if stored == Self::Cookie.as_str() {
            Self::Cookie
        } else {
            Self::Token
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct SignedIn {
    /// For `Authorization: Bearer`. This is the only time it is shown. Absent where a cookie was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub token: Option<String>,
    /// For the header `X-CSRF-Token`. Absent where a token was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub csrf_token: Option<String>,
    pub expires_at: DateTime<Utc>,
    /// Where this sign-in has set up a second factor: codes for when the authenticator is lost, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub recovery_codes: Option<Vec<String>>,
}

/// A sign-in that succeeded, to be answered.
pub struct Started {
    pub signed_in: SignedIn,
    cookie: Option<actix_web::http::header::HeaderValue>,
}

impl Started {
    /// 200, with the cookie.
    pub fn answer(self) -> HttpResponse {
        let mut response = HttpResponse::Ok();
        set_cookie(&mut response, self.cookie);
        response.json(self.signed_in)
    }

    /// 303 to a page of ours, with the cookie: for providers that send the browser back.
    pub fn redirect(self, to: &str) -> HttpResponse {
        let mut response = HttpResponse::SeeOther();
        set_cookie(&mut response, self.cookie);
        response.insert_header((LOCATION, to)).finish()
    }
}

fn set_cookie(response: &mut HttpResponseBuilder, cookie: Option<actix_web::http::header::HeaderValue>) {
    if let Some(cookie) = cookie {
        response.insert_header((SET_COOKIE, cookie));
    }
}

/// Signs in `user`, who has proved who they are by `method`. The session that the browser had before ends.
///
/// # Errors
/// 401 where the user may not sign in, or was changed meanwhile; the store's; where it cannot be recorded.
pub async fn start(
    state: &AppState,
    request: &HttpRequest,
    user: &User,
    method: &Method,
    hold: Hold,
) -> Result<Started, Problem> {
    start_until(state, request, user, method, hold, None).await
}

/// As `start`; a browser session is over at `until` at the latest.
///
/// # Errors
/// As `start`.
pub async fn start_until(
    state: &AppState,
    request: &HttpRequest,
    user: &User,
    method: &Method,
    hold: Hold,
    until: Option<DateTime<Utc>>,
) -> Result<Started, Problem> {
    let address = client_address(request, &state.trusted_proxies);
    if !user.active {
        failed(state, address, Some(user), method, "the account is not active").await;
        return Err(Problem::unauthorized(
            "This account may not sign in. Ask an administrator.",
        ));
    }
    let id = Uuid::now_v7();
    let session = (hold == Hold::Cookie).then_some(id);
    let payload = json!({
        "by": by(Some(user), address), "subject": user.username, "before": null,
        "after": {"method": method.to_string(), "hold": hold, "session": session},
    });
    state
        .control
        .record("login.succeeded", payload)
        .await
        .map_err(hoop_store::StoreError::Unrecorded)?;
    tracing::info!(user = user.username, ?address, %method, "signed in");
    match hold {
        Hold::Token => start_token(state, user).await,
        Hold::Cookie => {
            let mut lifetimes = state.browsers.lifetimes;
            lifetimes.absolute = cut(lifetimes.absolute, until);
            let user_agent = request.headers().get(USER_AGENT);
            // two cookies: which is whose is not known, and neither is ended
            let replaces = state.browsers.presented(request).unwrap_or_default();
            let new = NewBrowserSession {
                id,
                user,
                method: &method.to_string(),
                address,
                user_agent: user_agent.and_then(|value| value.to_str().ok()).unwrap_or_default(),
                lifetimes,
                replaces: replaces.as_ref().map(|cookie| cookie.as_str()),
            };
            start_browser(state, new).await
        }
    }
}

fn changed_meanwhile() -> Problem {
    Problem::unauthorized("The account was changed meanwhile. Sign in again.")
}

async fn start_token(state: &AppState, user: &User) -> Result<Started, Problem> {
    let life = Duration::from_secs(LOGIN_TTL_S);
    let issued = state.store.issue_token(user, life).await?;
    let issued = issued.ok_or_else(changed_meanwhile)?;
    Ok(Started {
        signed_in: SignedIn {
            token: Some(issued.token.to_string()),
            csrf_token: None,
            expires_at: issued.expires_at,
            recovery_codes: None,
        },
        cookie: None,
    })
}

/// What is left of `life` where it ends at `until` at the latest.
fn cut(life: Duration, until: Option<DateTime<Utc>>) -> Duration {
    let Some(until) = until else { return life };
    let left = until.signed_duration_since(Utc::now()).to_std();
    life.min(left.unwrap_or_default())
}

async fn start_browser(state: &AppState, new: NewBrowserSession<'_>) -> Result<Started, Problem> {
    let begun = state.store.begin_browser_session(new).await?;
    let begun = begun.ok_or_else(changed_meanwhile)?;
    Ok(Started {
        signed_in: SignedIn {
            token: None,
            csrf_token: Some(csrf_token(&begun.cookie).to_string()),
            expires_at: begun.session.expires_at,
            recovery_codes: None,
        },
        cookie: Some(state.browsers.cookie(&begun.cookie)?),
    })
}

/// Records that a sign-in failed. `known` is whose account it was, if anybody's; `why` is for auditors, and the person at
/// the browser must not be told it where it would say which accounts there are. It is refused whether or not this can be
/// recorded.
pub async fn failed(state: &AppState, address: Option<IpAddr>, known: Option<&User>, method: &Method, why: &str) {
    let username = known.map(|user| user.username.as_str());
    let payload = json!({
        "by": by(None, address), "subject": username, "before": null,
        "after": {"method": method.to_string(), "why": why},
    });
    tracing::info!(?address, %method, why, "a sign-in failed");
    note(state, "login.failed", payload).await;
}

/// Records what is done whether or not it can be recorded.
pub async fn note(state: &AppState, kind: &'static str, payload: Value) {
    if let Err(error) = state.control.record(kind, payload).await {
        tracing::error!(kind, error, "a record is missing");
    }
}

/// Records what somebody changes who is not signed in (yet).
pub struct Witnessed<'a> {
    pub state: &'a AppState,
    /// Whom this will be, where that is known.
    pub user: Option<&'a User>,
    pub address: Option<IpAddr>,
}

impl Witness for Witnessed<'_> {
    fn record<'a>(&'a self, kind: &'static str, mut payload: Value) -> BoxFuture<'a, Result<(), String>> {
        if let Value::Object(members) = &mut payload {
            members.insert("by".into(), by(self.user, self.address));
        }
        self.state.control.record(kind, payload)
    }
}

/// Who did it, as `CallerWitness` writes it.
pub fn by(user: Option<&User>, address: Option<IpAddr>) -> Value {
    match user {
        Some(user) => json!({"user": user.username, "user_id": user.id, "role": user.role, "address": address}),
        None => json!({"user": null, "user_id": null, "role": null, "address": address}),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_session_lasts_no_longer_than_the_provider_allows() {
        let day = Duration::from_secs(86_400);
        assert_eq!(cut(day, None), day);
        assert_eq!(cut(day, Some(Utc::now() + TimeDelta::days(2))), day);
        let short = cut(day, Some(Utc::now() + TimeDelta::hours(1)));
        assert!((3_590..=3_600).contains(&short.as_secs()), "{short:?}");
        assert_eq!(cut(day, Some(Utc::now() - TimeDelta::hours(1))), Duration::ZERO);
    }
}
