//! Signing in with a local password. The answer to a wrong password and to an unknown name is the same, and as slow.

use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, post, web};
use chrono::{DateTime, Utc};
use hoop_store::tokens::LOGIN_TTL_S;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::{Caller, bearer};
use crate::client_address::client_address;
use crate::problem::{Bodied, Open, Problem, Signed, Throttled};

/// Members that are not known are ignored here.
#[derive(Deserialize, ToSchema)]
pub struct Login {
    username: String,
    #[schema(format = Password)]
    password: String,
}

#[derive(Serialize, ToSchema)]
pub struct SignedIn {
    /// For `Authorization: Bearer`. This is the only time it is shown.
    pub token: String,
    pub expires_at: DateTime<Utc>,
}

/// Sign in.
#[utoipa::path(
    tag = "login",
    request_body = Login,
    responses((status = 200, body = SignedIn), Throttled, Bodied, Open)
)]
#[post("/login")]
pub async fn login(
    request: HttpRequest,
    state: web::Data<AppState>,
    body: Body,
) -> Result<web::Json<SignedIn>, Problem> {
    let login: Login = body.json(BODY_MAX_BYTES).await?;
    let password = Zeroizing::new(login.password);
    let address = client_address(&request, &state.trusted_proxies);
    let attempt = state
        .attempts
        .begin(&login.username, address, Instant::now())
        .map_err(Problem::too_many)?;
    if !attempt.slow.is_zero() {
        tokio::time::sleep(attempt.slow).await;
    }
    let Some(user) = state.store.check_password(&login.username, &password).await? else {
        tracing::info!(?address, "a sign-in failed");
        return Err(Problem::unauthorized("The user name or the password is wrong."));
    };
    state.attempts.succeeded(attempt);
    let issued = state
        .store
        .issue_token(user.id, Duration::from_secs(LOGIN_TTL_S))
        .await?;
    tracing::info!(user = user.username, ?address, "signed in");
    Ok(web::Json(SignedIn {
        token: issued.token.to_string(),
        expires_at: issued.expires_at,
    }))
}

/// Sign out: the token ends.
#[utoipa::path(tag = "login", responses((status = 204), Signed), security(("bearer" = [])))]
#[post("/logout")]
pub async fn logout(request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    if let Some(token) = bearer(&request) {
        caller.state().store.revoke_token(&token).await?;
    }
    Ok(HttpResponse::NoContent().finish())
}
