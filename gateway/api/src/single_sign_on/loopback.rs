//! Signing in from a command line on the browser's own machine (RFC 8252): it listens on 127.0.0.1, the person says yes
//! in the browser, and the browser brings it a one-time code, good only with its verifier (PKCE, RFC 7636).

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Serialize};
use url::{Host, Url};
use utoipa::{IntoParams, ToSchema};

use super::device::{FORM_MAX_BYTES, checked_client_name, give_token, network, to_sign_in};
use super::form::Person;
use super::html;
use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::client_address::client_address;
use crate::page::query;
use crate::problem::{Bodied, Open, Problem, Rated, Sent};
use crate::sign_in::SignedIn;

const PAGE: &str = "/api/sign-in/loopback";
/// Base64url of a SHA-256.
const CHALLENGE_CHARS: usize = 43;
/// RFC 7636, section 4.1.
const VERIFIER_MIN_CHARS: usize = 43;
const VERIFIER_MAX_CHARS: usize = 128;
/// Longest address and state of a command line.
const REDIRECT_MAX_BYTES: usize = 256;
const STATE_MAX_BYTES: usize = 256;

/// What the command line opens the browser with.
#[derive(Clone, Serialize, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
pub struct LoopbackQuery {
    /// Where the command line listens: `http`, `127.0.0.1` or `[::1]`, and a port.
    #[param(max_length = 256)]
    redirect_uri: String,
    /// `S256` of the verifier.
    #[param(min_length = 43, max_length = 43)]
    code_challenge: String,
    /// Comes back unchanged.
    #[param(max_length = 256)]
    state: String,
    /// What the person is shown of who asks.
    #[serde(default)]
    #[param(max_length = 64)]
    client_name: String,
}

impl LoopbackQuery {
    fn check(&self) -> Result<Url, Problem> {
        checked_client_name(&self.client_name)?;
        let is_base64url = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if self.code_challenge.len() != CHALLENGE_CHARS || !self.code_challenge.bytes().all(is_base64url) {
            return Err(Problem::field(
                "code_challenge",
                "code_challenge must be the SHA-256 of the verifier in base64url, 43 characters (RFC 7636, S256).",
            ));
        }
        if self.state.is_empty() || self.state.len() > STATE_MAX_BYTES {
            return Err(Problem::field(
                "state",
                "state must be 1 to 256 bytes that nobody can guess.",
            ));
        }
        own_machine(&self.redirect_uri)
    }
}

/// An address of the browser's own machine. Names are not taken, not even `localhost` (RFC 8252, section 8.3).
fn own_machine(redirect_uri: &str) -> Result<Url, Problem> {
    let refused = || {
        Problem::field(
            "redirect_uri",
            "redirect_uri must be http://127.0.0.1:PORT/… or http://[::1]:PORT/…, without a query or a fragment.",
        )
    };
    let url = Url::parse(redirect_uri).map_err(|_| refused())?;
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let fits = redirect_uri.len() <= REDIRECT_MAX_BYTES && url.password().is_none() && url.port().is_some();
    if url.scheme() == "http" && is_loopback && is_plain && fits {
        return Ok(url);
    }
    Err(refused())
}

/// The page on which a person says yes to a command line on the same machine.
#[utoipa::path(
    tag = "sign-in",
    params(LoopbackQuery),
    responses(
        Rated,
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = 303, description = "Nobody is signed in: to the sign-in page"),
        (status = 401, description = "The session cannot be told", body = String, content_type = "text/html"),
        (status = 422, description = "A parameter is not acceptable", body = String, content_type = "text/html"),
        (status = 500, description = "The gateway failed", body = String, content_type = "text/html"),
        (status = 503, description = "The store is away", body = String, content_type = "text/html")
    )
)]
#[get("/sign-in/loopback")]
pub async fn loopback_page(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    shown(&request, &state)
        .await
        .unwrap_or_else(|problem| html::problem(&problem))
}

async fn shown(request: &HttpRequest, state: &AppState) -> Result<HttpResponse, Problem> {
    let asked: LoopbackQuery = query(request)?;
    let url = asked.check()?;
    let fields = [
        ("redirect_uri", asked.redirect_uri.as_str()),
        ("code_challenge", &asked.code_challenge),
        ("state", &asked.state),
        ("client_name", &asked.client_name),
    ];
    let Some(person) = Person::at(request, state).await? else {
        return Ok(to_sign_in(PAGE, &fields));
    };
    let name = match asked.client_name.as_str() {
        "" => "A command line",
        name => name,
    };
    let form_token = person.form_token();
    let mut hidden = fields.to_vec();
    hidden.push(("form_token", &form_token));
    let body = format!(
        "<p><strong>{}</strong> on this machine (port {}) asks to be signed in as <strong>{}</strong>.</p>\n\
         <p>Say yes only if you started it yourself: it could then do all that you can.</p>\n{}",
        html::escaped(name),
        url.port().unwrap_or_default(),
        html::escaped(&person.user.username),
        html::form(
            &format!("{PAGE}/answer"),
            &hidden,
            &[("yes", "Yes, sign it in"), ("no", "No")]
        ),
    );
    Ok(html::page(StatusCode::OK, "Sign in a command line?", &body))
}

/// What the page sends.
#[derive(Deserialize, ToSchema)]
pub struct LoopbackAnswer {
    #[serde(flatten)]
    asked: LoopbackQuery,
    form_token: String,
    /// `yes` or `no`.
    answer: String,
}

/// The person's answer, which the browser brings to the command line.
#[utoipa::path(
    tag = "sign-in",
    request_body(content = LoopbackAnswer, content_type = "application/x-www-form-urlencoded"),
    responses(
        Sent,
        (status = 303, description = "To the command line, with `code` or `error`, and `state`"),
        (status = 400, description = "The form cannot be read", body = String, content_type = "text/html"),
        (status = 401, description = "Nobody is signed in", body = String, content_type = "text/html"),
        (status = 403, description = "The form is not of a page of ours", body = String, content_type = "text/html"),
        (status = 408, description = "Too slow", body = String, content_type = "text/html"),
        (status = 413, description = "Too large", body = String, content_type = "text/html"),
        (status = 415, description = "No form", body = String, content_type = "text/html"),
        (status = 422, description = "A field is not acceptable", body = String, content_type = "text/html"),
        (status = 500, description = "The gateway failed", body = String, content_type = "text/html"),
        (status = 503, description = "The store is away", body = String, content_type = "text/html")
    )
)]
#[post("/sign-in/loopback/answer")]
pub async fn answer_loopback(request: HttpRequest, state: web::Data<AppState>, body: Body) -> HttpResponse {
    answered(&request, &state, body)
        .await
        .unwrap_or_else(|problem| html::problem(&problem))
}

async fn answered(request: &HttpRequest, state: &AppState, body: Body) -> Result<HttpResponse, Problem> {
    let form: LoopbackAnswer = body.form(FORM_MAX_BYTES).await?;
    let person = Person::of_form(request, state, &form.form_token).await?;
    let mut url = form.asked.check()?;
    if form.answer == "yes" {
        let network = network(client_address(request, &state.trusted_proxies));
        let (challenge, name) = (&form.asked.code_challenge, &form.asked.client_name);
        let code = state.store.issue_code(&person.user, challenge, name, &network).await?;
        url.query_pairs_mut().append_pair("code", &code);
    } else {
        url.query_pairs_mut().append_pair("error", "access_denied");
    }
    url.query_pairs_mut().append_pair("state", &form.asked.state);
    Ok(HttpResponse::SeeOther()
        .insert_header((LOCATION, url.as_str()))
        .finish())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeAndVerifier {
    #[schema(max_length = 128)]
    code: String,
    #[schema(min_length = 43, max_length = 128, pattern = "^[A-Za-z0-9._~-]+$")]
    code_verifier: String,
}

/// Turn a one-time code into a token.
#[utoipa::path(
    tag = "sign-in",
    request_body = CodeAndVerifier,
    responses(
        (status = 200, body = SignedIn),
        (status = 401, description = "The code is unknown, expired or used, or the verifier is not its own", body = crate::problem::Document, content_type = "application/problem+json"),
        Bodied, Open
    )
)]
#[post("/sign-in/loopback/token")]
pub async fn loopback_token(
    request: HttpRequest,
    state: web::Data<AppState>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    let asked: CodeAndVerifier = body.json(BODY_MAX_BYTES).await?;
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let fits = (VERIFIER_MIN_CHARS..=VERIFIER_MAX_CHARS).contains(&asked.code_verifier.len());
    if !fits || !asked.code_verifier.bytes().all(is_unreserved) {
        return Err(Problem::field(
            "code_verifier",
            "code_verifier must be 43 to 128 letters, digits and - . _ ~ (RFC 7636).",
        ));
    }
    let user = state.store.redeem_code(&asked.code, &asked.code_verifier).await?;
    let user = user.ok_or_else(|| {
        Problem::unauthorized("The code is unknown, expired or used, or the verifier is not its own. Begin again.")
    })?;
    give_token(&request, &state, &user).await
}

#[cfg(test)]
mod tests {
    use super::own_machine;

    #[test]
    fn only_the_browsers_own_machine_gets_a_code() {
        for good in [
            "http://127.0.0.1:4711/",
            "http://127.0.0.1:4711/back",
            "http://[::1]:4711/",
        ] {
            assert!(own_machine(good).is_ok(), "{good}");
        }
        for bad in [
            "http://localhost:4711/",
            "http://127.0.0.1/",
            "https://127.0.0.1:4711/",
            "http://127.0.0.1.evil.test:1/",
            "http://u@127.0.0.1:4711/",
            "http://evil.test:80/",
            "http://127.0.0.1:4711/?a=b",
            "http://127.0.0.1:4711/#a",
            "javascript:alert(1)",
            "",
            "http://192.0.2.1:4711/",
        ] {
            assert!(own_machine(bad).is_err(), "{bad}");
        }
    }
}
