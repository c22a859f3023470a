//! Who answers a form of ours: the browser session, and the token that the page had in it. Forms cannot send headers.

use actix_web::HttpRequest;
use hoop_store::browser_sessions::{csrf_token, is_csrf_token};
use hoop_store::users::User;
use zeroize::Zeroizing;

use crate::AppState;
use crate::problem::Problem;

/// A person at a browser.
pub struct Person {
    pub user: User,
    cookie: Zeroizing<String>,
}

impl Person {
    /// Who is signed in at this browser; `None`: nobody.
    pub async fn at(request: &HttpRequest, state: &AppState) -> Result<Option<Self>, Problem> {
        let Some(cookie) = state.browsers.presented(request)? else {
            return Ok(None);
        };
        let used = state
            .store
            .use_browser_session(&cookie, state.browsers.lifetimes)
            .await?;
        Ok(used.map(|(user, _)| Self { user, cookie }))
    }

    /// For a hidden field of a form.
    pub fn form_token(&self) -> Zeroizing<String> {
        csrf_token(&self.cookie)
    }

    /// The person of a form that was sent, which must have come from a page of ours.
    pub async fn of_form(request: &HttpRequest, state: &AppState, form_token: &str) -> Result<Self, Problem> {
        state.browsers.check_origin(request)?;
        let person = Self::at(request, state).await?;
        let person = person.ok_or_else(|| Problem::unauthorized("The session has ended. Sign in again."))?;
        if is_csrf_token(&person.cookie, form_token.as_bytes()) {
            return Ok(person);
        }
        Err(Problem::forbidden(
            "This form does not come from a page that you opened here. Open the page again.",
        ))
    }
}
