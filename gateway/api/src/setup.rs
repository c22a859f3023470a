//! The first administrator, made with the link that the first start printed.

use actix_web::{HttpRequest, HttpResponse, post, web};
use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::AppState;
use crate::body::{BODY_MAX_BYTES, Body};
use crate::client_address::client_address;
use crate::passwords;
use crate::problem::{Bodied, Open, Problem, Refused, Throttled};
use crate::proof::begin_attempt;
use crate::refusals::{Guess, Whose};
use crate::sign_in::{self, Hold, Method, SignedIn, Witnessed};

const NO_LINK: &str =
    "The set-up link is unknown, too old or used. While there is no user, each start prints a new one.";

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetUp {
    /// What stands behind `#` in the link.
    #[schema(max_length = 64)]
    token: String,
    /// Kept in lower case.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._@+-]+$")]
    username: String,
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: String,
    #[serde(default)]
    hold: Hold,
}

/// Make the first administrator, with the link that was printed at the first start, and sign in.
#[utoipa::path(
    tag = "login",
    request_body = SetUp,
    responses(
        (
            status = 200, body = SignedIn,
            headers(("Set-Cookie" = Option<String>, description = "The session's cookie, where it was asked for"))
        ),
        Throttled, Refused, Bodied, Open
    )
)]
#[post("/setup")]
pub async fn set_up(request: HttpRequest, state: web::Data<AppState>, body: Body) -> Result<HttpResponse, Problem> {
    state.browsers.check_origin(&request)?;
    let given: SetUp = body.json(BODY_MAX_BYTES).await?;
    let (token, password) = (Zeroizing::new(given.token), Zeroizing::new(given.password));
    let address = client_address(&request, &state.trusted_proxies);
    let guess = Guess {
        account: "set-up link",
        whose: Whose::Nobody,
        address,
        method: &Method::SetUpLink,
    };
    let attempt = begin_attempt(&state, &guess).await?;
    // before a password is hashed for a stranger
    let works = match state.store.is_setup_link(&token).await {
        Ok(works) => works,
        Err(error) => {
            state.slowdown.withdrawn(attempt);
            return Err(error.into());
        }
    };
    if !works {
        state.slowdown.failed(attempt);
        sign_in::failed(&state, address, None, &Method::SetUpLink, "no link that works").await;
        return Err(Problem::unauthorized(NO_LINK));
    }
    state.slowdown.succeeded(attempt);
    let password = passwords::acceptable("password", &password, &[&given.username])?;
    let witness = Witnessed {
        state: &state,
        user: None,
        address,
    };
    let made = state
        .store
        .use_setup_link(&token, &given.username, &password, &witness)
        .await?;
    let user = made.ok_or_else(|| Problem::unauthorized(NO_LINK))?;
    let started = sign_in::start(&state, &request, &user, &Method::SetUpLink, given.hold).await?;
    Ok(started.answer())
}
