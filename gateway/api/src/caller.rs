//! Who asks: the active user behind the bearer token, and what the role allows.

use std::net::IpAddr;

use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, dev, web};
use futures_util::future::{BoxFuture, LocalBoxFuture};
use hoop_access::{Circumstances, Decision, MODES, Mode};
use hoop_store::change::Witness;
use hoop_store::connections::Connection;
use hoop_store::users::{Role, User};
use serde_json::{Value, json};

use crate::AppState;
use crate::client_address::client_address;
use crate::control::Control;
use crate::problem::Problem;

const SIGN_IN: &str = "Sign in with POST /api/login and send the token as Authorization: Bearer.";

/// A signed-in user.
pub struct Caller {
    pub user: User,
    pub address: Option<IpAddr>,
    state: web::Data<AppState>,
}

impl Caller {
    pub fn state(&self) -> &AppState {
        &self.state
    }

    /// Changes anything.
    pub fn require_admin(&self) -> Result<(), Problem> {
        match self.user.role {
            Role::Admin => Ok(()),
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

    pub const fn reads_all(&self) -> bool {
        matches!(self.user.role, Role::Admin | Role::Auditor)
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
        let user = &self.caller.user;
        if let Value::Object(members) = &mut payload {
            let by =
                json!({"user": user.username, "user_id": user.id, "role": user.role, "address": self.caller.address});
            members.insert("by".into(), by);
        }
        self.control.record(kind, payload)
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _payload: &mut dev::Payload) -> Self::Future {
        let state = request.app_data::<web::Data<AppState>>().cloned();
        let token = bearer(request);
        let address = state
            .as_ref()
            .and_then(|state| client_address(request, &state.trusted_proxies));
        Box::pin(async move {
            let state = state.ok_or_else(|| Problem::unavailable("The API is not set up."))?;
            let token = token.ok_or_else(|| Problem::unauthorized(SIGN_IN))?;
            let user = state.store.token_user(&token).await?;
            let user = user
                .ok_or_else(|| Problem::unauthorized(format!("The token is unknown, expired or revoked. {SIGN_IN}")))?;
            Ok(Self { user, address, state })
        })
    }
}

/// RFC 6750 §2.1.
pub fn bearer(request: &HttpRequest) -> Option<zeroize::Zeroizing<String>> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| zeroize::Zeroizing::new(token.trim().to_owned()))
}
