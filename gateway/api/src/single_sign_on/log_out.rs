//! Signing out at the provider too: where to send the browser after it signed out here.

use actix_web::{get, web};
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

use super::providers::Protocol;
use crate::AppState;
use crate::caller::{Caller, Means};
use crate::problem::{Problem, Signed};

#[derive(Serialize, ToSchema)]
pub struct LogOutAddress {
    /// Null where the person did not sign in at a provider that offers this.
    #[schema(required)]
    url: Option<String>,
}

/// Where this browser signs out at its provider too (OpenID Connect RP-Initiated Logout). Ask before `POST /api/logout`,
/// and go there after it.
#[utoipa::path(
    tag = "sign-in",
    responses((status = 200, body = LogOutAddress), Signed),
    security(("bearer" = []))
)]
#[get("/sign-in/log-out-address")]
pub async fn log_out_address(caller: Caller) -> Result<web::Json<LogOutAddress>, Problem> {
    let Means::Browser { session, .. } = &caller.means else {
        return Ok(web::Json(LogOutAddress { url: None }));
    };
    let url = address(caller.state(), &session.method).await;
    Ok(web::Json(LogOutAddress { url }))
}

/// No ID token goes along: it would stand in the address. The provider may ask the person whether it is meant.
async fn address(state: &AppState, method: &str) -> Option<String> {
    let name = method.strip_prefix("oidc:")?;
    let provider = state.providers.get(name)?;
    let Protocol::Oidc(oidc) = &provider.protocol else {
        return None;
    };
    let home = Url::parse(&format!("{}/", state.public_url)).ok();
    match oidc.logout_url(None, home.as_ref()).await {
        Ok(url) => url.map(String::from),
        Err(error) => {
            tracing::info!(provider = name, %error, "signing out at the provider is not offered");
            None
        }
    }
}
