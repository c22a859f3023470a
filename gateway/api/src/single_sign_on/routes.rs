//! The routes of a browser that signs in at a provider.

use std::fmt::Write;
use std::sync::Arc;

use actix_web::cookie::Cookie;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, LOCATION, SET_COOKIE};
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use hoop_auth::local::Attempt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::providers::{Protocol, Provider};
use super::{account, html, journey, oidc, saml};
use crate::AppState;
use crate::body::Body;
use crate::client_address::client_address;
use crate::page::query;
use crate::problem::{Open, Problem, Rated};
use crate::proof::begin_attempt;
use crate::rate::network;
use crate::refusals::{Guess, Whose};

/// A way to sign in.
#[derive(Serialize, ToSchema)]
pub struct ListedProvider {
    /// In addresses and records.
    name: String,
    /// `oidc` or `saml`.
    kind: &'static str,
    /// For people.
    display_name: String,
    /// Where to send the browser, with `?return_to=` and a path of this gateway.
    begin: String,
}

#[derive(Serialize, ToSchema)]
pub struct Ways {
    providers: Vec<ListedProvider>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BeginQuery {
    /// A path of this gateway to go to afterwards; `/` where absent.
    #[param(max_length = 2048)]
    return_to: Option<String>,
}

/// The ways to sign in beside a local password, for a sign-in page.
#[utoipa::path(tag = "sign-in", responses((status = 200, body = Ways), Open))]
#[get("/sign-in/providers")]
pub async fn sign_in_providers(state: web::Data<AppState>) -> web::Json<Ways> {
    let listed = |provider: &Arc<Provider>| ListedProvider {
        name: provider.name().to_owned(),
        kind: provider.kind(),
        display_name: provider.display_name.clone(),
        begin: begin_path(provider),
    };
    web::Json(Ways {
        providers: state.providers.iter().map(listed).collect(),
    })
}

fn begin_path(provider: &Provider) -> String {
    format!("/api/sign-in/{}", provider.name())
}

/// A page with the ways to sign in at a provider.
#[utoipa::path(
    tag = "sign-in",
    params(BeginQuery),
    responses(
        Rated,
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = 422, description = "return_to is no path of this gateway", body = String, content_type = "text/html")
    )
)]
#[get("/sign-in")]
pub async fn sign_in_page(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let return_to = match asked_return(&request) {
        Ok(return_to) => return_to,
        Err(problem) => return html::problem(&problem),
    };
    let parameter: String = percent_encoded(&return_to);
    let mut list = String::new();
    for provider in state.providers.iter() {
        let (path, name) = (begin_path(provider), html::escaped(&provider.display_name));
        // Writing to a text cannot fail.
        let _ = write!(
            list,
            "<li><a href=\"{path}?return_to={parameter}\">Sign in with {name}</a></li>"
        );
    }
    let body = if list.is_empty() {
        "<p>No identity provider is configured. Sign in with a user name and a password.</p>".to_owned()
    } else {
        format!("<ul>{list}</ul>")
    };
    html::page(StatusCode::OK, "Sign in", &body)
}

/// Begin a sign-in: send the browser here, not a script.
#[utoipa::path(
    tag = "sign-in",
    params(("provider" = String, Path, description = "The provider's name"), BeginQuery),
    responses(
        Rated,
        (status = 303, description = "To the provider"),
        (status = 403, description = "The provider cannot be used as it is configured", body = String, content_type = "text/html"),
        (status = 404, description = "No such provider", body = String, content_type = "text/html"),
        (status = 422, description = "return_to is no path of this gateway", body = String, content_type = "text/html"),
        (status = 503, description = "The provider is away", body = String, content_type = "text/html")
    )
)]
#[get("/sign-in/{provider}")]
pub async fn begin_sign_in(
    request: HttpRequest,
    state: web::Data<AppState>,
    provider: web::Path<String>,
) -> HttpResponse {
    let (provider, return_to) = match (known(&state, &provider), asked_return(&request)) {
        (Ok(provider), Ok(return_to)) => (provider, return_to),
        (Err(problem), _) | (_, Err(problem)) => return html::problem(&problem),
    };
    match &provider.protocol {
        Protocol::Oidc(oidc) => oidc::begin(&state, &provider, oidc, return_to).await,
        Protocol::Saml(_) => saml::begin(&state, &provider, return_to).await,
    }
}

/// Where an OpenID provider sends the browser back to.
#[utoipa::path(
    tag = "sign-in",
    params(("provider" = String, Path, description = "The provider's name")),
    responses(
        (status = 303, description = "Signed in; the session is in a cookie"),
        (status = 400, description = "The answer cannot be read", body = String, content_type = "text/html"),
        (status = 401, description = "The account was changed meanwhile", body = String, content_type = "text/html"),
        (status = 403, description = "Refused", body = String, content_type = "text/html"),
        (status = 404, description = "No such provider", body = String, content_type = "text/html"),
        (status = 429, description = "Too many failed sign-ins", body = String, content_type = "text/html"),
        (status = 500, description = "The gateway failed", body = String, content_type = "text/html"),
        (status = 503, description = "The provider or the store is away", body = String, content_type = "text/html")
    )
)]
#[get("/sign-in/{provider}/callback")]
pub async fn oidc_callback(
    request: HttpRequest,
    state: web::Data<AppState>,
    provider: web::Path<String>,
) -> HttpResponse {
    let (provider, attempt) = match came_back(&request, &state, &provider).await {
        Ok(counted) => counted,
        Err(problem) => return html::problem(&problem),
    };
    let response = match &provider.protocol {
        Protocol::Oidc(oidc) => oidc::callback(&state, &request, &provider, oidc).await,
        Protocol::Saml(_) => saml::other_kind(&provider),
    };
    judged(&state, attempt, response)
}

/// Where a SAML provider lets the browser post its response to (assertion consumer service).
#[utoipa::path(
    tag = "sign-in",
    params(("provider" = String, Path, description = "The provider's name")),
    request_body(content = SamlAnswer, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 303, description = "Signed in; the session is in a cookie"),
        (status = 400, description = "The form cannot be read", body = String, content_type = "text/html"),
        (status = 401, description = "The account was changed meanwhile", body = String, content_type = "text/html"),
        (status = 403, description = "Refused", body = String, content_type = "text/html"),
        (status = 404, description = "No such provider", body = String, content_type = "text/html"),
        (status = 408, description = "Too slow", body = String, content_type = "text/html"),
        (status = 413, description = "Too large", body = String, content_type = "text/html"),
        (status = 415, description = "No form", body = String, content_type = "text/html"),
        (status = 429, description = "Too many failed sign-ins", body = String, content_type = "text/html"),
        (status = 500, description = "The gateway failed", body = String, content_type = "text/html"),
        (status = 503, description = "The store is away", body = String, content_type = "text/html")
    )
)]
#[post("/sign-in/{provider}/acs")]
pub async fn saml_acs(
    request: HttpRequest,
    state: web::Data<AppState>,
    provider: web::Path<String>,
    body: Body,
) -> HttpResponse {
    let (provider, attempt) = match came_back(&request, &state, &provider).await {
        Ok(counted) => counted,
        Err(problem) => return html::problem(&problem),
    };
    let response = match &provider.protocol {
        Protocol::Saml(_) => saml::consume(&state, &request, &provider, body).await,
        Protocol::Oidc(_) => saml::other_kind(&provider),
    };
    judged(&state, attempt, response)
}

/// What `acs` takes.
#[derive(ToSchema)]
#[allow(dead_code, reason = "the description alone reads it")]
pub struct SamlAnswer {
    /// A response in base64.
    #[schema(rename = "SAMLResponse")]
    saml_response: String,
    #[schema(rename = "RelayState")]
    relay_state: Option<String>,
}

/// This gateway as a SAML service provider, for the identity provider to import.
#[utoipa::path(
    tag = "sign-in",
    params(("provider" = String, Path, description = "The provider's name")),
    responses(
        Rated,
        (status = 200, description = "Metadata", body = String, content_type = "application/samlmetadata+xml"),
        (status = 404, description = "No such provider", body = String, content_type = "text/html")
    )
)]
#[get("/sign-in/{provider}/metadata")]
pub async fn saml_metadata(state: web::Data<AppState>, provider: web::Path<String>) -> HttpResponse {
    match known(&state, &provider) {
        Ok(provider) => match &provider.protocol {
            Protocol::Saml(saml) => saml::metadata(saml),
            Protocol::Oidc(_) => saml::other_kind(&provider),
        },
        Err(problem) => html::problem(&problem),
    }
}

fn known(state: &AppState, name: &str) -> Result<Arc<Provider>, Problem> {
    let unknown = || {
        Problem::not_found("No identity provider of this name is configured. GET /api/sign-in/providers lists them.")
    };
    state.providers.get(name).ok_or_else(unknown)
}

fn asked_return(request: &HttpRequest) -> Result<String, Problem> {
    let asked: BeginQuery = query(request)?;
    journey::return_to(asked.return_to.as_deref())
}

/// Counts an answer of a provider as failed until it is known to be good: guesses from one network are slowed down.
async fn came_back(request: &HttpRequest, state: &AppState, name: &str) -> Result<(Arc<Provider>, Attempt), Problem> {
    let provider = known(state, name)?;
    let address = client_address(request, &state.trusted_proxies);
    // Of this network alone: strangers elsewhere slow nobody.
    let account = format!("provider {name} {:?}", address.map(network));
    let guess = Guess {
        account: &account,
        whose: Whose::Nobody,
        address,
        method: &account::method(&provider),
    };
    let attempt = begin_attempt(state, &guess).await?;
    Ok((provider, attempt))
}

fn judged(state: &AppState, attempt: Attempt, response: HttpResponse) -> HttpResponse {
    match response.status() {
        StatusCode::SEE_OTHER => state.slowdown.succeeded(attempt),
        status if status.is_client_error() => state.slowdown.failed(attempt),
        _ => state.slowdown.withdrawn(attempt),
    }
    response
}

/// 303 to a provider, with what the browser carries.
pub(super) fn away(url: &str, cookie: Cookie<'static>) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((LOCATION, url))
        .cookie(cookie)
        .finish()
}

/// One more `Set-Cookie`.
pub(super) fn add_cookie(response: &mut HttpResponse, cookie: &Cookie<'_>) {
    if let Ok(value) = HeaderValue::from_str(&cookie.to_string()) {
        response.headers_mut().append(SET_COOKIE, value);
    }
}

/// For a query (RFC 3986, section 2.3).
pub(super) fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
