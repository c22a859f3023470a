//! A person's second factor: one-time codes by the clock, with recovery codes. The secret and the recovery codes are
//! shown once.

use std::net::IpAddr;

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use hoop_auth::local::{RecoveryCodes, TotpSecret};
use hoop_store::change::Witness;
use hoop_store::second_factors::CodeCheck;
use hoop_store::users::User;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::browser_sessions::found;
use crate::caller::Caller;
use crate::problem::{Bodied, Missing, Problem, Signed, Slowed, Taken};
use crate::proof::{self, Factor, begin_attempt, judge};
use crate::refusals::{self, Guess, Whose};
use crate::sign_in::Method;

/// What authenticators show above the code.
const ISSUER: &str = "Hoop";

#[derive(Serialize, ToSchema)]
pub struct SecondFactor {
    /// Whether signing in asks for it.
    enrolled: bool,
    #[schema(required)]
    confirmed_at: Option<DateTime<Utc>>,
    /// Recovery codes that were not used yet.
    recovery_codes: i64,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnPassword {
    #[schema(format = Password)]
    password: String,
}

/// What an authenticator is set up with. This is the only time it is shown.
#[derive(Serialize, ToSchema)]
pub struct Enrolment {
    /// Base 32, to type in.
    secret: String,
    /// `otpauth://totp/…`, for a QR code.
    uri: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FirstCode {
    /// Six digits, from the authenticator.
    #[schema(max_length = 64)]
    code: String,
}

/// Codes for when the authenticator is lost, each good once. This is the only time they are shown.
#[derive(Serialize, ToSchema)]
pub struct FreshRecoveryCodes {
    recovery_codes: Vec<String>,
}

#[derive(Deserialize, ToSchema)]
pub struct PasswordAndFactor {
    #[schema(format = Password)]
    password: String,
    #[serde(flatten)]
    factor: Factor,
}

fn shown(codes: &RecoveryCodes) -> FreshRecoveryCodes {
    FreshRecoveryCodes {
        recovery_codes: codes.codes().map(str::to_owned).collect(),
    }
}

fn hashes(codes: &RecoveryCodes) -> Vec<[u8; 32]> {
    codes.hashes().into_iter().map(|hash| hash.0).collect()
}

fn no_randomness(_: hoop_auth::local::NoRandomness) -> Problem {
    Problem::unavailable("The system gives no random bytes. Try again.")
}

/// The caller's second factor.
#[utoipa::path(
    tag = "login",
    responses((status = 200, body = SecondFactor), Signed),
    security(("bearer" = []))
)]
#[get("/me/second-factor")]
pub async fn get_second_factor(caller: Caller) -> Result<web::Json<SecondFactor>, Problem> {
    let found = caller.state().store.second_factor(caller.user.id).await?;
    Ok(web::Json(SecondFactor {
        enrolled: found.is_some(),
        confirmed_at: found.map(|factor| factor.confirmed_at),
        recovery_codes: found.map_or(0, |factor| factor.recovery_codes),
    }))
}

/// Begin setting up one-time codes. Signing in asks for them once the first code is confirmed.
#[utoipa::path(
    tag = "login",
    request_body = OwnPassword,
    responses((status = 200, body = Enrolment), Taken, Slowed, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/me/second-factor")]
pub async fn enrol_second_factor(caller: Caller, body: Body) -> Result<web::Json<Enrolment>, Problem> {
    let given: OwnPassword = body.json(BODY_MAX_BYTES).await?;
    proof::own_password(&caller, "password", &Zeroizing::new(given.password)).await?;
    Ok(web::Json(begin(caller.state(), &caller.user).await?))
}

/// Begins setting up one-time codes.
///
/// # Errors
/// 409 where there is a confirmed second factor; the store's.
pub async fn begin(state: &AppState, user: &User) -> Result<Enrolment, Problem> {
    let secret = TotpSecret::generate().map_err(no_randomness)?;
    state.store.enrol_second_factor(user, secret.as_bytes()).await?;
    Ok(Enrolment {
        secret: secret.to_base32().to_string(),
        uri: secret.uri(ISSUER, &user.username).to_string(),
    })
}

/// Confirm it with the first code: from here on, signing in asks for one.
#[utoipa::path(
    tag = "login",
    request_body = FirstCode,
    responses((status = 200, body = FreshRecoveryCodes), Slowed, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/me/second-factor/confirm")]
pub async fn confirm_second_factor(caller: Caller, body: Body) -> Result<web::Json<FreshRecoveryCodes>, Problem> {
    let given: FirstCode = body.json(BODY_MAX_BYTES).await?;
    let witness = caller.witness();
    let codes = confirm(caller.state(), &caller.user, &given.code, caller.address, &witness).await?;
    Ok(web::Json(FreshRecoveryCodes { recovery_codes: codes }))
}

/// Takes the first code, and answers the recovery codes.
///
/// # Errors
/// 422 where it is wrong or nothing was begun, 429; the store's.
pub async fn confirm(
    state: &AppState,
    user: &User,
    code: &str,
    address: Option<IpAddr>,
    witness: &dyn Witness,
) -> Result<Vec<String>, Problem> {
    let codes = RecoveryCodes::generate().map_err(no_randomness)?;
    let account = format!("second factor of {}", user.username);
    let guess = Guess {
        account: &account,
        whose: Whose::Of(user),
        address,
        method: &Method::PasswordAndCode,
    };
    let attempt = begin_attempt(state, &guess).await?;
    let confirmed = state
        .store
        .confirm_second_factor(user, judge(code), &hashes(&codes), witness)
        .await;
    match confirmed {
        Ok(CodeCheck::Right) => {
            state.slowdown.succeeded(attempt);
            Ok(shown(&codes).recovery_codes)
        }
        Ok(CodeCheck::Wrong(why)) => {
            state.slowdown.failed(attempt);
            Err(Problem::field("code", format!("It is not taken: {why}.")))
        }
        Ok(CodeCheck::Wait(seconds)) => {
            state.slowdown.withdrawn(attempt);
            refusals::refused(state, &guess).await;
            Err(Problem::too_many(seconds))
        }
        Ok(CodeCheck::NotEnrolled) => {
            state.slowdown.withdrawn(attempt);
            Err(Problem::field(
                "code",
                "Nothing is to be confirmed. Begin with POST /api/me/second-factor, or at a sign-in POST /api/login/enrol.",
            ))
        }
        Err(error) => {
            state.slowdown.withdrawn(attempt);
            Err(error.into())
        }
    }
}

/// The caller proves the password and the second factor, before either is changed.
async fn prove_both(caller: &Caller, body: Body) -> Result<(), Problem> {
    let given: PasswordAndFactor = body.json(BODY_MAX_BYTES).await?;
    given.factor.check()?;
    proof::own_password(caller, "password", &Zeroizing::new(given.password)).await?;
    let wrong = |detail| Problem::field("code", detail);
    proof::second_factor(caller.state(), &caller.user, &given.factor, caller.address, wrong).await
}

/// Replace the recovery codes.
#[utoipa::path(
    tag = "login",
    request_body = PasswordAndFactor,
    responses((status = 200, body = FreshRecoveryCodes), Missing, Slowed, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/me/second-factor/recovery-codes")]
pub async fn replace_recovery_codes(caller: Caller, body: Body) -> Result<web::Json<FreshRecoveryCodes>, Problem> {
    prove_both(&caller, body).await?;
    let codes = RecoveryCodes::generate().map_err(no_randomness)?;
    let (store, witness) = (&caller.state().store, caller.witness());
    store
        .replace_recovery_codes(&caller.user, &hashes(&codes), &witness)
        .await?;
    Ok(web::Json(shown(&codes)))
}

/// Remove the caller's second factor.
#[utoipa::path(
    tag = "login",
    request_body = PasswordAndFactor,
    responses((status = 204), Missing, Slowed, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/me/second-factor/remove")]
pub async fn remove_second_factor(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    prove_both(&caller, body).await?;
    let (store, witness) = (&caller.state().store, caller.witness());
    store.remove_second_factor(&caller.user, &witness).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Remove a user's second factor, for somebody who has lost authenticator and recovery codes.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/users/{username}/second-factor")]
pub async fn remove_second_factor_of_user(
    caller: Caller,
    username: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let user = found(caller.state(), &username).await?;
    let (store, witness) = (&caller.state().store, caller.witness());
    store.remove_second_factor(&user, &witness).await?;
    Ok(HttpResponse::NoContent().finish())
}
