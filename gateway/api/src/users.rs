//! People with a local password.

use actix_web::http::header::ETAG;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, delete, get, post, put, web};
use chrono::{DateTime, Utc};
use hoop_store::list::Listing;
use hoop_store::users as stored;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::etag::{IfMatch, etag, if_match};
use crate::list_query::{Filters, ListQuery};
use crate::page::Page;
use crate::passwords;
use crate::problem::{Administered, Bodied, Listed, Missing, Problem, Signed, Taken, Versioned};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Changes everything; reaches what access rules allow.
    Admin,
    /// Reads everything, changes and reaches nothing.
    Auditor,
    /// Reaches what access rules allow.
    Member,
}

impl From<stored::Role> for Role {
    fn from(role: stored::Role) -> Self {
        match role {
            stored::Role::Admin => Self::Admin,
            stored::Role::Auditor => Self::Auditor,
            stored::Role::Member => Self::Member,
        }
    }
}

impl From<Role> for stored::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Auditor => Self::Auditor,
            Role::Member => Self::Member,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct User {
    pub id: Uuid,
    pub username: String,
    pub email: String,
    pub role: Role,
    pub groups: Vec<String>,
    pub active: bool,
    /// A service account: it has no password and signs in nowhere, but has tokens.
    pub service: bool,
    pub version: i64,
    pub created_at: DateTime<Utc>,
}

impl From<stored::User> for User {
    fn from(user: stored::User) -> Self {
        Self {
            id: user.id,
            username: user.username,
            email: user.email,
            role: user.role.into(),
            groups: user.groups,
            active: user.active,
            service: user.service,
            version: user.version,
            created_at: user.created_at,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// Kept in lower case.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._@+-]+$")]
    username: String,
    /// A person's first one; a service account has none.
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: Option<String>,
    role: Role,
    #[serde(default)]
    #[schema(max_length = 254)]
    email: String,
    /// For access rules.
    #[serde(default)]
    #[schema(max_items = 500)]
    groups: Vec<String>,
    /// True: a service account, without a password.
    #[serde(default)]
    service: bool,
}

/// Which users.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsersFilter {
    role: Option<Role>,
    /// Who are in this group.
    #[param(max_length = 256)]
    group: Option<String>,
    active: Option<bool>,
    /// Service accounts, or people.
    service: Option<bool>,
    /// Whose groups an identity provider tells, or whose are given here.
    provider_groups: Option<bool>,
    /// What the name or the e-mail address contains.
    #[param(max_length = 256)]
    q: Option<String>,
}

impl Filters for UsersFilter {
    const LISTING: &'static Listing = &stored::USERS;
}

impl From<UsersFilter> for stored::UserFilter {
    fn from(filter: UsersFilter) -> Self {
        Self {
            role: filter.role.map(Into::into),
            group: filter.group,
            active: filter.active,
            service: filter.service,
            provider_groups: filter.provider_groups,
            q: filter.q,
        }
    }
}

/// Users.
#[utoipa::path(
    tag = "users",
    params(ListQuery<UsersFilter>),
    responses((status = 200, body = Page<User>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/users")]
pub async fn list_users(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<User>>, Problem> {
    caller.require_reader()?;
    let mut asked = ListQuery::<UsersFilter>::of(&request)?;
    let filter = std::mem::take(&mut asked.filters).into();
    let listed = caller.state().store.list_users(&filter, &asked.window).await?;
    Ok(web::Json(asked.page(listed, User::from)))
}

/// Create a user with a local password, or a service account.
#[utoipa::path(
    tag = "users",
    request_body = NewUser,
    responses(
        (status = 201, body = User, headers(("ETag" = String, description = "Its version"))),
        Taken, Bodied, Signed
    ),
    security(("bearer" = []))
)]
#[post("/users")]
pub async fn create_user(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let new: NewUser = body.json(BODY_MAX_BYTES).await?;
    let password = new.password.map(Zeroizing::new);
    if password.is_none() && !new.service {
        let detail = "The member password is missing. Give a first one, or make a service account with service.";
        return Err(Problem::field("password", detail));
    }
    let names = [new.username.as_str(), new.email.as_str()];
    let acceptable = |password: &Zeroizing<String>| passwords::acceptable("password", password, &names);
    let password = password.as_ref().map(acceptable).transpose()?;
    let store = &caller.state().store;
    let somebody = stored::NewUser {
        username: &new.username,
        email: &new.email,
        role: new.role.into(),
        groups: new.groups,
        service: new.service,
    };
    let user = store
        .add_user(
            somebody,
            password.as_ref().map(|password| password.as_str()),
            &caller.witness(),
        )
        .await?;
    Ok(answer(HttpResponse::Created(), user))
}

/// What is set of a user.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSettings {
    role: Role,
    #[schema(max_length = 254)]
    email: String,
    /// For access rules.
    #[schema(max_items = 500)]
    groups: Vec<String>,
    /// False: cannot sign in or connect; sessions end.
    active: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: String,
}

fn missing(name: &str) -> Problem {
    Problem::not_found(format!("user {name} does not exist."))
}

fn answer(mut response: HttpResponseBuilder, user: stored::User) -> HttpResponse {
    response
        .insert_header((ETAG, etag(user.version)))
        .json(User::from(user))
}

/// Who is signed in.
#[utoipa::path(
    tag = "users",
    responses((status = 200, body = User, headers(("ETag" = String, description = "Its version"))), Signed),
    security(("bearer" = []))
)]
#[get("/me")]
pub async fn me(caller: Caller) -> HttpResponse {
    answer(HttpResponse::Ok(), caller.user)
}

/// One user.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    responses((status = 200, body = User, headers(("ETag" = String, description = "Its version"))), Missing, Signed),
    security(("bearer" = []))
)]
#[get("/users/{username}")]
pub async fn get_user(caller: Caller, username: web::Path<String>) -> Result<HttpResponse, Problem> {
    caller.require_reader()?;
    let found = caller.state().store.find_user(&username).await?;
    let user = found.ok_or_else(|| missing(&username))?;
    Ok(answer(HttpResponse::Ok(), user))
}

/// Replace what is set of a user. Sessions that this no longer allows end.
#[utoipa::path(
    tag = "users",
    params(
        ("username" = String, Path, description = "The user's name"),
        IfMatch
    ),
    request_body = UserSettings,
    responses(
        (status = 200, body = User, headers(("ETag" = String, description = "Its version"))),
        Missing, Versioned, Bodied, Signed
    ),
    security(("bearer" = []))
)]
#[put("/users/{username}")]
pub async fn update_user(
    request: HttpRequest,
    caller: Caller,
    username: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let version = if_match(&request)?;
    let new: UserSettings = body.json(BODY_MAX_BYTES).await?;
    let settings = stored::UserSettings {
        email: new.email,
        role: new.role.into(),
        groups: new.groups,
        active: new.active,
    };
    let store = &caller.state().store;
    let user = store
        .update_user(&username, settings, version, &caller.witness())
        .await?;
    Ok(answer(HttpResponse::Ok(), user))
}

/// Delete a user. Tokens, credentials and sessions end; records keep speaking of the person.
#[utoipa::path(
    tag = "users",
    params(
        ("username" = String, Path, description = "The user's name"),
        IfMatch
    ),
    responses((status = 204), Missing, Versioned, Administered, Signed),
    security(("bearer" = []))
)]
#[delete("/users/{username}")]
pub async fn delete_user(
    request: HttpRequest,
    caller: Caller,
    username: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let version = if_match(&request)?;
    let store = &caller.state().store;
    store.delete_user(&username, version, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Set a user's password. Every token of the user ends.
#[utoipa::path(
    tag = "users",
    params(("username" = String, Path, description = "The user's name")),
    request_body = NewPassword,
    responses((status = 204), Missing, Bodied, Signed),
    security(("bearer" = []))
)]
#[put("/users/{username}/password")]
pub async fn set_password(caller: Caller, username: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let new: NewPassword = body.json(BODY_MAX_BYTES).await?;
    let password = Zeroizing::new(new.password);
    let password = passwords::acceptable("password", &password, &[&username])?;
    let store = &caller.state().store;
    store.set_password(&username, &password, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}
