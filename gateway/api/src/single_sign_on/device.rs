//! Signing in from a command line without a browser of its own (RFC 8628): it shows a code, the person types it into a
//! browser anywhere, and it asks until the answer is there.

use std::net::IpAddr;

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use hoop_store::cli_sign_ins::{DEVICE_TTL_S, POLL_INTERVAL_S, Polled, Waiting};
use hoop_store::users::User;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::form::Person;
use super::{html, routes};
use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::client_address::client_address;
use crate::page::query;
use crate::problem::{Bodied, MEDIA_TYPE, Open, Problem, Rated, Sent};
use crate::proof::begin_attempt;
use crate::refusals::{Guess, Whose};
use crate::sign_in::{self, Hold, Method, SignedIn};

/// The page that the person opens, of this gateway.
const PAGE: &str = "/api/sign-in/device";
/// Where its form goes.
const ANSWER: &str = "/api/sign-in/device/answer";
/// Longest name that a command line gives itself, in characters.
pub(super) const CLIENT_NAME_MAX_CHARS: usize = 64;
/// Longest user code that is looked at: as it is typed.
const USER_CODE_MAX_BYTES: usize = 32;
/// Longest device code that is looked at.
const DEVICE_CODE_MAX_BYTES: usize = 128;
/// A form of ours: a code, a token, an answer.
pub(super) const FORM_MAX_BYTES: usize = 4 * 1024;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    /// What the person is shown of who asks, such as `hoop on laptop-7`.
    #[serde(default)]
    #[schema(max_length = 64)]
    client_name: String,
}

/// RFC 8628, section 3.2.
#[derive(Serialize, ToSchema)]
pub struct DeviceBegun {
    /// For the command line alone.
    device_code: String,
    /// For the person to type.
    #[schema(example = "BCDF-GHJK")]
    user_code: String,
    verification_uri: String,
    /// With the code in it.
    verification_uri_complete: String,
    /// Seconds.
    expires_in: i64,
    /// Seconds between two questions.
    interval: i64,
}

/// Begin to sign in from a command line.
#[utoipa::path(
    tag = "sign-in",
    request_body = DeviceRequest,
    responses(
        (status = 200, body = DeviceBegun),
        (status = 429, description = "Too many sign-ins wait", body = crate::problem::Document, content_type = "application/problem+json"),
        Bodied, Open
    )
)]
#[post("/sign-in/device")]
pub async fn begin_device_sign_in(
    request: HttpRequest,
    state: web::Data<AppState>,
    body: Body,
) -> Result<web::Json<DeviceBegun>, Problem> {
    let asked: DeviceRequest = body.json(BODY_MAX_BYTES).await?;
    let client_name = checked_client_name(&asked.client_name)?;
    let network = network(client_address(&request, &state.trusted_proxies));
    let begun = state.store.begin_device_sign_in(client_name, &network).await?;
    let begun = begun.ok_or_else(|| Problem::too_many(POLL_INTERVAL_S.unsigned_abs()))?;
    let page = format!("{}{PAGE}", state.public_url);
    Ok(web::Json(DeviceBegun {
        device_code: begun.device_code.to_string(),
        verification_uri_complete: format!("{page}?user_code={}", begun.user_code),
        verification_uri: page,
        user_code: begun.user_code,
        expires_in: DEVICE_TTL_S,
        interval: POLL_INTERVAL_S,
    }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceQuestion {
    #[schema(max_length = 128)]
    device_code: String,
}

/// A problem document with the error code of RFC 8628, section 3.5.
#[derive(Serialize, ToSchema)]
pub struct NotYet {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'static str,
    instance: &'static str,
    /// `authorization_pending`, `slow_down`, `access_denied` or `expired_token`; absent where the body is not JSON.
    #[schema(required = false)]
    error: &'static str,
}

/// Ask whether the person has answered. A token is given once.
#[utoipa::path(
    tag = "sign-in",
    request_body = DeviceQuestion,
    responses(
        (status = 200, body = SignedIn),
        (status = 400, description = "Not JSON, or no token (yet): `error` says which", body = NotYet, content_type = "application/problem+json"),
        (status = 401, description = "The account was changed meanwhile", body = crate::problem::Document, content_type = "application/problem+json"),
        (status = 408, description = "Too slow", body = crate::problem::Document, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = crate::problem::Document, content_type = "application/problem+json"),
        (status = 415, description = "Not application/json", body = crate::problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "A member is unknown, missing or not acceptable", body = crate::problem::Document, content_type = "application/problem+json"),
        Open
    )
)]
#[post("/sign-in/device/token")]
pub async fn device_token(
    request: HttpRequest,
    state: web::Data<AppState>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    let asked: DeviceQuestion = body.json(BODY_MAX_BYTES).await?;
    if asked.device_code.len() > DEVICE_CODE_MAX_BYTES {
        return Err(Problem::field("device_code", "device_code is not one of this gateway."));
    }
    match state.store.poll_device_sign_in(&asked.device_code).await? {
        Polled::Approved(user) => give_token(&request, &state, &user).await,
        Polled::Pending => Ok(not_yet(
            "authorization_pending",
            "The person has not answered yet. Ask again after `interval` seconds.",
        )),
        Polled::SlowDown => Ok(not_yet(
            "slow_down",
            "This was asked too soon after the last time. Wait `interval` seconds between two questions.",
        )),
        Polled::Denied => Ok(not_yet("access_denied", "The person said no.")),
        Polled::Gone => Ok(not_yet(
            "expired_token",
            "The device code is unknown, expired or used. Begin again with POST /api/sign-in/device.",
        )),
    }
}

/// What every sign-in from a command line ends in.
pub(super) async fn give_token(request: &HttpRequest, state: &AppState, user: &User) -> Result<HttpResponse, Problem> {
    let started = sign_in::start(state, request, user, &Method::CommandLine, Hold::Token).await?;
    Ok(started.answer())
}

fn not_yet(error: &'static str, detail: &'static str) -> HttpResponse {
    let status = StatusCode::BAD_REQUEST;
    let document = NotYet {
        kind: format!("urn:hoop:problem:{}", error.replace('_', "-")),
        title: "No token",
        status: status.as_u16(),
        detail,
        instance: "/api/sign-in/device/token",
        error,
    };
    HttpResponse::build(status)
        .content_type(MEDIA_TYPE)
        .body(serde_json::to_string(&document).unwrap_or_default())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CodeQuery {
    /// As the command line shows it.
    #[param(max_length = 32)]
    user_code: Option<String>,
}

/// The page on which a person says yes or no to a command line.
#[utoipa::path(
    tag = "sign-in",
    params(CodeQuery),
    responses(
        Rated,
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = 303, description = "Nobody is signed in: to the sign-in page"),
        (status = 401, description = "The session cannot be told", body = String, content_type = "text/html"),
        (status = 404, description = "No sign-in waits with this code", body = String, content_type = "text/html"),
        (status = 422, description = "A parameter is not acceptable", body = String, content_type = "text/html"),
        (status = 500, description = "The gateway failed", body = String, content_type = "text/html"),
        (status = 503, description = "The store is away", body = String, content_type = "text/html")
    )
)]
#[get("/sign-in/device")]
pub async fn device_page(request: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    shown(&request, &state)
        .await
        .unwrap_or_else(|problem| html::problem(&problem))
}

async fn shown(request: &HttpRequest, state: &AppState) -> Result<HttpResponse, Problem> {
    let asked: CodeQuery = query(request)?;
    let code = asked.user_code.as_deref().unwrap_or_default();
    if code.len() > USER_CODE_MAX_BYTES {
        return Err(wrong_code());
    }
    let Some(person) = Person::at(request, state).await? else {
        return Ok(to_sign_in(PAGE, &[("user_code", code)]));
    };
    if code.is_empty() {
        let ask = format!(
            "<form method=\"get\" action=\"{PAGE}\"><label>The code that your command line shows \
             <input name=\"user_code\" autocomplete=\"off\" autofocus></label> <button>Go on</button></form>"
        );
        return Ok(html::page(StatusCode::OK, "Sign in a command line", &ask));
    }
    let waiting = guess(request, state, &person, code).await?;
    Ok(question(&person, code, &waiting))
}

/// Somebody who could be talked into typing another's code must see whose it is.
fn question(person: &Person, code: &str, waiting: &Waiting) -> HttpResponse {
    let name = match waiting.client_name.as_str() {
        "" => "A command line",
        name => name,
    };
    let body = format!(
        "<p><strong>{}</strong>, from {}, asks to be signed in as <strong>{}</strong> since {} UTC.</p>\n\
         <p>Say yes only if it shows the code <strong>{}</strong> and you started it yourself: it could then do all that \
         you can.</p>\n{}",
        html::escaped(name),
        html::escaped(&waiting.network),
        html::escaped(&person.user.username),
        waiting.created_at.format("%H:%M:%S"),
        html::escaped(code),
        html::form(
            ANSWER,
            &[("user_code", code), ("form_token", &person.form_token())],
            &[("yes", "Yes, sign it in"), ("no", "No")]
        ),
    );
    html::page(StatusCode::OK, "Sign in a command line?", &body)
}

/// What the page sends.
#[derive(Deserialize, ToSchema)]
pub struct DeviceAnswer {
    user_code: String,
    form_token: String,
    /// `yes` or `no`.
    answer: String,
}

/// The person's answer to a command line.
#[utoipa::path(
    tag = "sign-in",
    request_body(content = DeviceAnswer, content_type = "application/x-www-form-urlencoded"),
    responses(
        Sent,
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = 400, description = "The form cannot be read", body = String, content_type = "text/html"),
        (status = 401, description = "Nobody is signed in", body = String, content_type = "text/html"),
        (status = 403, description = "The form is not of a page of ours", body = String, content_type = "text/html"),
        (status = 404, description = "No sign-in waits with this code", body = String, content_type = "text/html"),
        (status = 408, description = "Too slow", body = String, content_type = "text/html"),
        (status = 413, description = "Too large", body = String, content_type = "text/html"),
        (status = 415, description = "No form", body = String, content_type = "text/html"),
        (status = 500, description = "The gateway failed", body = String, content_type = "text/html"),
        (status = 503, description = "The store is away", body = String, content_type = "text/html")
    )
)]
#[post("/sign-in/device/answer")]
pub async fn answer_device(request: HttpRequest, state: web::Data<AppState>, body: Body) -> HttpResponse {
    answered(&request, &state, body)
        .await
        .unwrap_or_else(|problem| html::problem(&problem))
}

async fn answered(request: &HttpRequest, state: &AppState, body: Body) -> Result<HttpResponse, Problem> {
    let form: DeviceAnswer = body.form(FORM_MAX_BYTES).await?;
    let person = Person::of_form(request, state, &form.form_token).await?;
    guess(request, state, &person, &form.user_code).await?;
    let approves = form.answer == "yes";
    let store = &state.store;
    if !store
        .answer_device_sign_in(&form.user_code, &person.user, approves)
        .await?
    {
        return Err(wrong_code());
    }
    let text = if approves {
        "<p>Your command line is signed in. You can close this page.</p>"
    } else {
        "<p>It was refused. If you did not start it yourself, tell your administrator.</p>"
    };
    Ok(html::page(StatusCode::OK, "Answered", text))
}

/// The sign-in of a code, where it is right. Wrong ones are slowed down, and in the end refused, by person and network.
async fn guess(request: &HttpRequest, state: &AppState, person: &Person, code: &str) -> Result<Waiting, Problem> {
    let address = client_address(request, &state.trusted_proxies);
    let account = format!("user code {}", person.user.id);
    let guess = Guess {
        account: &account,
        whose: Whose::Of(&person.user),
        address,
        method: &Method::CommandLine,
    };
    let attempt = begin_attempt(state, &guess).await?;
    match state.store.waiting_device_sign_in(code).await {
        Ok(Some(waiting)) => {
            state.slowdown.succeeded(attempt);
            Ok(waiting)
        }
        Ok(None) => {
            state.slowdown.failed(attempt);
            Err(wrong_code())
        }
        Err(error) => {
            state.slowdown.withdrawn(attempt);
            Err(error.into())
        }
    }
}

fn wrong_code() -> Problem {
    Problem::not_found("No sign-in waits with this code: it is mistyped, answered or more than ten minutes old.")
}

/// To the page with the ways in, and back.
pub(super) fn to_sign_in(page: &str, parameters: &[(&str, &str)]) -> HttpResponse {
    let pair = |(name, value): &(&str, &str)| format!("{name}={}", routes::percent_encoded(value));
    let query: Vec<String> = parameters
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(pair)
        .collect();
    let back = if query.is_empty() {
        page.to_owned()
    } else {
        format!("{page}?{}", query.join("&"))
    };
    let to = format!("/api/sign-in?return_to={}", routes::percent_encoded(&back));
    HttpResponse::SeeOther().insert_header((LOCATION, to)).finish()
}

/// # Errors
/// Where it is too long or could deceive.
pub(super) fn checked_client_name(name: &str) -> Result<&str, Problem> {
    let is_plain = |c: char| c.is_alphanumeric() || " -_.@()/:+".contains(c);
    if name.chars().count() > CLIENT_NAME_MAX_CHARS || !name.chars().all(is_plain) {
        return Err(Problem::field(
            "client_name",
            "client_name must be at most 64 letters, digits, spaces and - _ . @ ( ) / : +.",
        ));
    }
    Ok(name)
}

/// What counts as one: an IPv4 address, or an IPv6 /64.
pub(super) fn network(address: Option<IpAddr>) -> String {
    /// Bits of an IPv6 address that a household does not choose.
    const SITE_BITS: u8 = 64;
    match address.map(|address| address.to_canonical()) {
        None => "an unknown address".to_owned(),
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => {
            ipnet::Ipv6Net::new(address, SITE_BITS).map_or_else(|_| address.to_string(), |net| net.trunc().to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_household_is_one_network() {
        let of = |address: &str| network(Some(address.parse().unwrap()));
        assert_eq!(of("2001:db8:1:2:3::4"), "2001:db8:1:2::/64");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn a_name_of_a_command_line_can_hold_no_markup_and_no_line_end() {
        assert!(checked_client_name("hoop 1.2 on laptop-7 (Zoë)").is_ok());
        for bad in ["<b>", "a\nb", "\u{202e}x", &"x".repeat(65)] {
            assert!(checked_client_name(bad).is_err(), "{bad:?}");
        }
    }
}
