//! A person's own password.

use actix_web::{HttpRequest, HttpResponse, put};
use hoop_store::users::Kept;
use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::{Caller, Means, bearer};
use crate::passwords;
use crate::problem::{Bodied, Problem, Signed, Slowed};
use crate::proof;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangedPassword {
    #[schema(format = Password)]
    old_password: String,
    #[schema(format = Password, min_length = 12, max_length = 128)]
    new_password: String,
}

/// Change the caller's own password. The caller's other browser sessions and tokens end.
#[utoipa::path(
    tag = "login",
    request_body = ChangedPassword,
    responses((status = 204), Slowed, Bodied, Signed),
    security(("bearer" = []))
)]
#[put("/me/password")]
pub async fn change_own_password(request: HttpRequest, caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    let given: ChangedPassword = body.json(BODY_MAX_BYTES).await?;
    let (old, new) = (Zeroizing::new(given.old_password), Zeroizing::new(given.new_password));
    proof::own_password(&caller, "old_password", &old).await?;
    let user = &caller.user;
    let new = passwords::acceptable("new_password", &new, &[&user.username, &user.email])?;
    let session = match &caller.means {
        Means::Browser { session, .. } => Some(session.id),
        Means::Token | Means::PersonalToken { .. } => None,
    };
    let token = bearer(&request)?;
    let asked_with = Kept {
        session,
        token: token.as_ref().map(|token| token.as_str()),
    };
    let (store, witness) = (&caller.state().store, caller.witness());
    store.change_own_password(user, &new, asked_with, &witness).await?;
    Ok(HttpResponse::NoContent().finish())
}
