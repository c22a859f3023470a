//! The second step of a sign-in: the password was right, and its account has a second factor.

use std::net::IpAddr;

use actix_web::{HttpRequest, HttpResponse, post, web};
use chrono::{DateTime, Utc};
use hoop_store::users::User;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::client_address::client_address;
use crate::problem::{Bodied, Open, Problem, Refused, Taken, Throttled};
use crate::proof::{self, Factor};
use crate::second_factor::{self, Enrolment};
use crate::sign_in::{self, Hold, SignedIn, Witnessed};

/// Begun too long ago, attempted too often, or for an account that was changed meanwhile.
const OVER: &str = "This sign-in is over. Begin again with POST /api/login.";

/// The password was right; `POST /api/login/second-factor` with a code completes the sign-in.
#[derive(Serialize, ToSchema)]
pub struct SecondFactorWanted {
    /// Names this sign-in, for a few minutes and five codes at most.
    pub challenge: String,
    pub expires_at: DateTime<Utc>,
    /// The account has no second factor and must get one first, with `POST /api/login/enrol`.
    pub enrol: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// From `POST /api/login`.
    #[schema(max_length = 64)]
    challenge: String,
}

#[derive(Deserialize, ToSchema)]
pub struct SecondStep {
    /// From `POST /api/login`.
    #[schema(max_length = 64)]
    challenge: String,
    #[serde(flatten)]
    factor: Factor,
}

/// Asks for the second step.
///
/// # Errors
/// 401 where the account was changed meanwhile; the store's.
pub async fn wanted(state: &AppState, user: &User, hold: Hold, enrol: bool) -> Result<HttpResponse, Problem> {
    let begun = state.store.begin_challenge(user, hold.as_str()).await?;
    let begun = begun.ok_or_else(|| Problem::unauthorized(OVER))?;
    Ok(HttpResponse::Accepted().json(SecondFactorWanted {
        challenge: begun.name.to_string(),
        expires_at: begun.expires_at,
        enrol,
    }))
}

/// Begin setting up the second factor without which this account may not sign in.
#[utoipa::path(
    tag = "login",
    request_body = Enrol,
    responses((status = 200, body = Enrolment), Taken, Throttled, Refused, Bodied, Open)
)]
#[post("/login/enrol")]
pub async fn enrol_at_sign_in(
    request: HttpRequest,
    state: web::Data<AppState>,
    body: Body,
) -> Result<web::Json<Enrolment>, Problem> {
    state.browsers.check_origin(&request)?;
    let given: Enrol = body.json(BODY_MAX_BYTES).await?;
    let begun = state.store.attempt_challenge(&given.challenge).await?;
    let (user, _) = begun.ok_or_else(|| Problem::unauthorized(OVER))?;
    Ok(web::Json(second_factor::begin(&state, &user).await?))
}

/// Complete a sign-in with a second factor.
#[utoipa::path(
    tag = "login",
    request_body = SecondStep,
    responses(
        (
            status = 200, body = SignedIn,
            headers(("Set-Cookie" = Option<String>, description = "The session's cookie, where it was asked for"))
        ),
        Throttled, Refused, Bodied, Open
    )
)]
#[post("/login/second-factor")]
pub async fn second_step(
    request: HttpRequest,
    state: web::Data<AppState>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    state.browsers.check_origin(&request)?;
    let step: SecondStep = body.json(BODY_MAX_BYTES).await?;
    step.factor.check()?;
    let address = client_address(&request, &state.trusted_proxies);
    let over = || Problem::unauthorized(OVER);
    let (user, hold) = state.store.attempt_challenge(&step.challenge).await?.ok_or_else(over)?;
    let enrolled = state.store.second_factor(user.id).await?.is_some();
    let recovery_codes = if enrolled {
        proof::second_factor(&state, &user, &step.factor, address, Problem::unauthorized).await?;
        None
    } else {
        Some(confirm(&state, &user, &step.factor, address).await?)
    };
    if !state.store.end_challenge(&step.challenge).await? {
        return Err(over());
    }
    let method = step.factor.method();
    let mut started = sign_in::start(&state, &request, &user, &method, Hold::from_stored(&hold)).await?;
    started.signed_in.recovery_codes = recovery_codes;
    Ok(started.answer())
}

/// The first code of what was set up within this sign-in.
async fn confirm(
    state: &AppState,
    user: &User,
    factor: &Factor,
    address: Option<IpAddr>,
) -> Result<Vec<String>, Problem> {
    let code = factor.code().unwrap_or_default();
    let witness = Witnessed {
        state,
        user: Some(user),
        address,
    };
    second_factor::confirm(state, user, code, address, &witness).await
}
