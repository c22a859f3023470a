//! People with a local password.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use hoop_store::users as stored;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::page::{Page, PageQuery, query};
use crate::problem::{Bodied, Listed, Problem, Signed, Taken};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Changes and reaches everything.
    Admin,
    /// Reads everything, changes and reaches nothing.
    Auditor,
    /// Reaches what its connections allow.
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
    #[schema(format = Password, min_length = 12, max_length = 1024)]
    password: String,
    role: Role,
    #[serde(default)]
    #[schema(max_length = 254)]
    email: String,
}

/// Users by name.
#[utoipa::path(
    tag = "users",
    params(PageQuery),
    responses((status = 200, body = Page<User>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/users")]
pub async fn list_users(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<User>>, Problem> {
    caller.require_reader()?;
    let page: PageQuery = query(&request)?;
    let limit = page.limit()?;
    let rows = caller.state().store.list_users(page.after()?, limit.into()).await?;
    Ok(web::Json(Page::cut(rows, limit, |u| u.username.clone(), User::from)))
}

/// Create a user with a local password.
#[utoipa::path(
    tag = "users",
    request_body = NewUser,
    responses((status = 201, body = User), Taken, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/users")]
pub async fn create_user(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let new: NewUser = body.json(BODY_MAX_BYTES).await?;
    let password = Zeroizing::new(new.password);
    let store = &caller.state().store;
    let user = store
        .create_user(&new.username, &password, new.role.into(), &new.email, &caller.witness())
        .await?;
    Ok(HttpResponse::Created().json(User::from(user)))
}
