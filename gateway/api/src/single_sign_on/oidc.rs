//! To an OpenID provider and back.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse};
use hoop_auth::oidc::{Callback, OidcError, OidcProvider, Pending};

use super::account::{self, Vouching};
use super::html;
use super::journey::{self, Journey};
use super::providers::Provider;
use crate::AppState;
use crate::problem::Problem;

/// Where to send the browser, and what it carries.
pub(super) async fn begin(
    state: &AppState,
    provider: &Provider,
    oidc: &OidcProvider,
    return_to: String,
) -> HttpResponse {
    let begun = match oidc.begin().await {
        Ok(begun) => begun,
        Err(error) => {
            let (provider, remedy) = (provider.name(), error.remedy());
            tracing::warn!(provider, %error, remedy, "a sign-in cannot begin");
            return html::refusal(status(&error), error.for_person());
        }
    };
    let journey = Journey {
        pending: begun.pending,
        return_to,
    };
    match journey.cookie(state, provider) {
        Ok(cookie) => super::routes::away(begun.url.as_str(), cookie),
        Err(problem) => html::problem(&problem),
    }
}

/// Back from it. A failure is recorded where this browser had begun a sign-in, so that strangers cannot fill the record.
pub(super) async fn callback(
    state: &AppState,
    request: &HttpRequest,
    provider: &Provider,
    oidc: &OidcProvider,
) -> HttpResponse {
    let answer = actix_web::web::Query::<Callback>::from_query(request.query_string());
    let Ok(answer) = answer else {
        return html::problem(&Problem::malformed("The provider's answer cannot be read."));
    };
    let Some(journey) = Journey::<Pending>::of(request, state, provider) else {
        let error = OidcError::StateDiffers;
        let (provider, remedy) = (provider.name(), error.remedy());
        tracing::info!(provider, %error, remedy, "an answer without a sign-in of this browser");
        return html::refusal(StatusCode::FORBIDDEN, error.for_person());
    };
    let mut response = match oidc.finish(journey.pending, answer.into_inner()).await {
        Ok(signed_in) => {
            let vouching = Vouching {
                identity: signed_in.identity,
                refresh_token: signed_in.refresh_token.as_ref(),
                until: None,
            };
            account::finish(state, request, provider, vouching, &journey.return_to).await
        }
        Err(error) => {
            account::failed(state, request, provider, &error.to_string(), error.remedy()).await;
            html::refusal(status(&error), error.for_person())
        }
    };
    super::routes::add_cookie(&mut response, &journey::over(state, provider));
    response
}

const fn status(error: &OidcError) -> StatusCode {
    match error {
        OidcError::Unreachable { .. } | OidcError::TimedOut { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::FORBIDDEN,
    }
}
