//! To a SAML identity provider and back.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse};
use chrono::Utc;
use hoop_auth::saml::{Asserted, Begun, Pending, SamlError, SamlForm, SamlProvider, SignedIn};
use tokio::sync::Semaphore;

use super::account::{self, Vouching};
use super::html;
use super::journey::{self, Journey};
use super::providers::{Protocol, Provider};
use super::replays::Replays;
use crate::AppState;
use crate::body::Body;
use crate::problem::Problem;

/// Largest form with a response, which is base64 in percent-encoding.
pub const FORM_MAX_BYTES: usize = 512 * 1024;
/// Requests signed and responses verified at once: each takes milliseconds of a core.
const AT_ONCE: usize = 2;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

pub(super) async fn begin(state: &AppState, provider: &Arc<Provider>, return_to: String) -> HttpResponse {
    let begun = in_turn(provider, |saml| saml.begin(Utc::now())).await;
    let Begun { redirect_url, pending } = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let (provider, remedy) = (provider.name(), error.remedy());
            tracing::error!(provider, %error, remedy, "a sign-in cannot begin");
            return html::refusal(status(&error), error.for_person());
        }
    };
    match (Journey { pending, return_to }).cookie(state, provider) {
        Ok(cookie) => super::routes::away(&redirect_url, cookie),
        Err(problem) => html::problem(&problem),
    }
}

/// What the browser posted. A failure is recorded where this browser had begun a sign-in, so that strangers cannot fill
/// the record.
pub(super) async fn consume(
    state: &AppState,
    request: &HttpRequest,
    provider: &Arc<Provider>,
    body: Body,
) -> HttpResponse {
    let form: SamlForm = match body.form(FORM_MAX_BYTES).await {
        Ok(form) => form,
        Err(problem) => return html::problem(&problem),
    };
    let journey = Journey::<Pending>::of(request, state, provider);
    let (pending, return_to) = match journey {
        Some(journey) => (Some(journey.pending), journey.return_to),
        None => (None, "/".to_owned()),
    };
    let is_ours = pending.is_some();
    let mut response = match redeem(state, provider, pending, form).await {
        Ok(signed_in) => {
            let vouching = Vouching {
                identity: signed_in.identity,
                refresh_token: None,
                until: signed_in.session_ends,
            };
            account::finish(state, request, provider, vouching, &return_to).await
        }
        Err(error) => {
            if is_ours {
                account::failed(state, request, provider, &error.to_string(), error.remedy()).await;
            } else {
                let (provider, remedy) = (provider.name(), error.remedy());
                tracing::info!(provider, %error, remedy, "an answer without a sign-in of this browser");
            }
            html::refusal(status(&error), error.for_person())
        }
    };
    super::routes::add_cookie(&mut response, &journey::over(state, provider));
    response
}

async fn redeem(
    state: &AppState,
    provider: &Arc<Provider>,
    pending: Option<Pending>,
    form: SamlForm,
) -> Result<SignedIn, SamlError> {
    let asserted: Asserted = in_turn(provider, move |saml| saml.finish(pending.as_ref(), &form, Utc::now())).await?;
    asserted.redeem(&Replays(&state.store)).await
}

pub(super) fn metadata(saml: &SamlProvider) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/samlmetadata+xml")
        .body(saml.metadata())
}

/// Runs `work` in the blocking pool, `AT_ONCE` at a time.
async fn in_turn<T: Send + 'static>(
    provider: &Arc<Provider>,
    work: impl FnOnce(&SamlProvider) -> Result<T, SamlError> + Send + 'static,
) -> Result<T, SamlError> {
    let provider = Arc::clone(provider);
    let _turn = TURNS.acquire().await.map_err(|_| SamlError::Request)?;
    let done = tokio::task::spawn_blocking(move || match &provider.protocol {
        Protocol::Saml(saml) => work(saml),
        Protocol::Oidc(_) => Err(SamlError::OtherProvider),
    });
    done.await.unwrap_or(Err(SamlError::Request))
}

const fn status(error: &SamlError) -> StatusCode {
    match error {
        SamlError::Request | SamlError::ReplayCache(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::FORBIDDEN,
    }
}

/// What a browser is told that asks a SAML provider for what OpenID providers have, and the other way round.
pub(super) fn other_kind(provider: &Provider) -> HttpResponse {
    let text = format!("{} is not a provider of this kind.", provider.name());
    html::problem(&Problem::not_found(text))
}
