//! Who asks: the active user behind the bearer token or the browser session, and what role and scopes allow.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, dev, web};
use futures_util::future::{BoxFuture, LocalBoxFuture};
use hoop_access::{Circumstances, Decision, MODES, Mode};
use hoop_store::browser_sessions::{BrowserSession, csrf_token};
use hoop_store::change::Witness;
use hoop_store::connections::Connection;
use hoop_store::personal_tokens::{self, Scope};
use hoop_store::users::{Role, User};
use serde_json::Value;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::AppState;
use crate::client_address::client_address;
use crate::control::Control;
use crate::problem::Problem;
use crate::scopes;
use crate::sign_in::by;

const SIGN_IN: &str =
    "Sign in with POST /api/login and send the token as Authorization: Bearer, or, in a browser, the session's cookie.";

/// What says who the caller is.
pub enum Means {
    Token,
    Browser {
        session: BrowserSession,
        csrf_token: Zeroizing<String>,
    },
    /// May less than its owner.
    PersonalToken {
        id: Uuid,
        scopes: BTreeSet<Scope>,
    },
}

/// A signed-in user.
pub struct Caller {
    pub user: User,
    pub means: Means,
    pub address: Option<IpAddr>,
    state: web::Data<AppState>,
}

/// Whether a request is the person's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It is, and keeps a browser session from being idle.
    Use,
    /// It is a look at who a stream that goes on is for: no use of anything, and no request more.
    Look,
}

impl Caller {
    /// Who asks, as it would be told if the request came now, without its counting as another one.
    ///
    /// # Errors
    /// As for a request: who asks is not signed in any more, or the token may not do this.
    pub async fn again(&self, request: &HttpRequest) -> Result<Self, Problem> {
        let (user, means) = authenticate(request, &self.state, Doing::Look).await?;
        Ok(Self {
            user,
            means,
            address: self.address,
            state: self.state.clone(),
        })
    }

    pub fn state(&self) -> &AppState {
        &self.state
    }

    /// Changes anything.
    pub fn require_admin(&self) -> Result<(), Problem> {
        match self.user.role {
            Role::Admin if self.has(&[Scope::Admin]) => Ok(()),
            Role::Admin => Err(Problem::forbidden(
                "The token's scopes do not allow this: it needs admin. Use a token that has it.",
            )),
            Role::Auditor | Role::Member => Err(Problem::forbidden("Only an admin may do this. Ask one.")),
        }
    }

    /// Reads everything.
    pub fn require_reader(&self) -> Result<(), Problem> {
        if self.reads_all() {
            Ok(())
        } else {
            Err(Problem::forbidden("Only admins and auditors may read this."))
        }
    }

    pub fn reads_all(&self) -> bool {
        matches!(self.user.role, Role::Admin | Role::Auditor) && self.has(&[Scope::Read, Scope::Admin])
    }

    /// Whether it is a sign-in, or a personal token with one of these scopes.
    fn has(&self, any: &[Scope]) -> bool {
        match &self.means {
            Means::Token | Means::Browser { .. } => true,
            Means::PersonalToken { scopes, .. } => any.iter().any(|scope| scopes.contains(scope)),
        }
    }

    /// What the rules say of this caller and a connection, without regard to time and place: those are asked when it is
    /// used.
    pub fn decide(&self, connection: &Connection, mode: Mode) -> Decision {
        let ever = Circumstances { mode, using: None };
        self.state
            .store
            .rules()
            .decide(&self.user.subject(), &connection.object(), &ever)
    }

    /// In any way.
    pub fn may_use(&self, connection: &Connection) -> bool {
        MODES.iter().any(|mode| self.decide(connection, *mode).is_allowed())
    }

    /// Records what this caller changes.
    pub fn witness(&self) -> CallerWitness<'_> {
        CallerWitness {
            caller: self,
            control: self.state.control.as_ref(),
        }
    }
}

/// Puts the caller into every record of a change.
pub struct CallerWitness<'a> {
    caller: &'a Caller,
    control: &'a dyn Control,
}

impl Witness for CallerWitness<'_> {
    fn record<'a>(&'a self, kind: &'static str, mut payload: Value) -> BoxFuture<'a, Result<(), String>> {
        if let Value::Object(members) = &mut payload {
            let mut by = by(Some(&self.caller.user), self.caller.address);
            if let (Means::PersonalToken { id, .. }, Value::Object(by)) = (&self.caller.means, &mut by) {
                by.insert("token".into(), id.to_string().into());
            }
            members.insert("by".into(), by);
        }
        self.control.record(kind, payload)
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _payload: &mut dev::Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let state = request.app_data::<web::Data<AppState>>().cloned();
            let state = state.ok_or_else(|| Problem::unavailable("The API is not set up."))?;
            let (user, means) = authenticate(&request, &state, Doing::Use).await?;
            let counted = state.limiter.account(user.id, Instant::now());
            counted.map_err(Problem::over_rate)?;
            Ok(Self {
                user,
                means,
                address: client_address(&request, &state.trusted_proxies),
                state,
            })
        })
    }
}

/// By token or by cookie, never by both: which of them was meant would be a guess.
async fn authenticate(request: &HttpRequest, state: &AppState, doing: Doing) -> Result<(User, Means), Problem> {
    match (bearer(request)?, state.browsers.presented(request)?) {
        (None, None) => Err(Problem::unauthorized(SIGN_IN)),
        (Some(_), Some(_)) => Err(Problem::unauthorized(
            "The request has a bearer token and a session's cookie. Send one of them.",
        )),
        (Some(token), None) if token.starts_with(personal_tokens::PREFIX) => {
            let owner = state.store.personal_token_owner(&token).await?.ok_or_else(unknown)?;
            let path = request.match_pattern().unwrap_or_default();
            scopes::check(&owner.scopes, request.method(), &path)?;
            let (id, scopes) = (owner.token_id, owner.scopes);
            Ok((owner.user, Means::PersonalToken { id, scopes }))
        }
        (Some(token), None) => {
            let user = state.store.token_user(&token).await?;
            Ok((user.ok_or_else(unknown)?, Means::Token))
        }
        (None, Some(cookie)) => {
            let lifetimes = state.browsers.lifetimes;
            let found = match doing {
                Doing::Use => state.store.use_browser_session(&cookie, lifetimes).await?,
                Doing::Look => state.store.look_at_browser_session(&cookie, lifetimes).await?,
            };
            let (user, session) =
                found.ok_or_else(|| Problem::unauthorized("The session has ended. Sign in again."))?;
            state.browsers.check_forgery(request, &cookie)?;
            let csrf_token = csrf_token(&cookie);
            Ok((user, Means::Browser { session, csrf_token }))
        }
    }
}

fn unknown() -> Problem {
    Problem::unauthorized(format!("The token is unknown, expired or revoked. {SIGN_IN}"))
}

/// RFC 6750 §2.1.
///
/// # Errors
/// Where the header is there and is something else: it was meant to say who asks, so nothing else may.
pub fn bearer(request: &HttpRequest) -> Result<Option<Zeroizing<String>>, Problem> {
    let mut values = request.headers().get_all(AUTHORIZATION);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") || values.next().is_some() {
        let wrong = "The header Authorization must be there once, as Bearer and a token.";
        return Err(Problem::unauthorized(wrong).of("Authorization"));
    }
    Ok(Some(Zeroizing::new(token.trim().to_owned())))
}
