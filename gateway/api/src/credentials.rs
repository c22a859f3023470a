//! Native credentials: made in one step, with the command line that uses them; the password is shown once.

use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use hoop_access::{Decision, Mode};
use hoop_store::credentials::{
    CREDENTIALS, Credential as Stored, CredentialFilter, CredentialState, TTL_DEFAULT_S, TTL_MAX_S,
};
use hoop_store::list::Listing;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::list_query::{Filters, ListQuery};
use crate::page::Page;
use crate::problem::{Bodied, Listed, Missing, Problem, Signed};

/// The file that the ready-made command reads the CA's certificate from (`GET /api/ca.pem`).
const CA_FILE: &str = "hoop-ca.pem";

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCredential {
    /// Seconds that it is valid: 8 hours where absent, 48 hours at most.
    #[schema(minimum = 1, maximum = 172_800, default = 28_800)]
    ttl_seconds: Option<u64>,
}

/// A credential, with its password. This is the only time it is shown.
#[derive(Serialize, ToSchema)]
pub struct MadeCredential {
    pub id: String,
    /// The user name: the credential's id.
    pub user: String,
    #[schema(format = Password)]
    pub password: String,
    pub expires_at: DateTime<Utc>,
    pub host: String,
    pub port: u16,
    pub database: String,
    /// A command line without the password. It expects the CA's certificate in hoop-ca.pem.
    pub command: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = CredentialState)]
pub enum State {
    Active,
    Expired,
    Revoked,
}

impl From<CredentialState> for State {
    fn from(state: CredentialState) -> Self {
        match state {
            CredentialState::Active => Self::Active,
            CredentialState::Expired => Self::Expired,
            CredentialState::Revoked => Self::Revoked,
        }
    }
}

impl From<State> for CredentialState {
    fn from(state: State) -> Self {
        match state {
            State::Active => Self::Active,
            State::Expired => Self::Expired,
            State::Revoked => Self::Revoked,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Credential {
    pub id: String,
    pub user: String,
    pub user_id: Uuid,
    pub connection: String,
    pub connection_id: Uuid,
    pub state: State,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

impl From<Stored> for Credential {
    fn from(stored: Stored) -> Self {
        Self {
            id: stored.id,
            user: stored.username,
            user_id: stored.user_id,
            connection: stored.connection,
            connection_id: stored.connection_id,
            state: stored.state.into(),
            created_at: stored.created_at,
            expires_at: stored.expires_at,
        }
    }
}

/// Make a credential for oneself and this connection.
#[utoipa::path(
    tag = "credentials",
    params(("name" = String, Path, description = "The connection's name")),
    request_body = NewCredential,
    responses((status = 201, body = MadeCredential), Missing, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/connections/{name}/credentials")]
pub async fn make_credential(caller: Caller, name: web::Path<String>, body: Body) -> Result<HttpResponse, Problem> {
    let state = caller.state();
    let missing = || Problem::not_found(format!("connection {name} does not exist."));
    let connection = state.store.find_connection(&name).await?.ok_or_else(missing)?;
    let Decision::Allowed { max_credential_s, .. } = caller.decide(&connection, Mode::Native) else {
        // Who may not read all connections does not learn here which ones exist.
        return Err(
            if caller.may_use(&connection) && !connection.modes.contains(&Mode::Native) {
                Problem::forbidden(format!(
                    "{name} is not used with a client of its own: its modes do not include native."
                ))
            } else if caller.reads_all() {
                Problem::forbidden(format!(
                    "No access rule allows you to use {name} with its own client. GET /api/access/explain says why."
                ))
            } else {
                missing()
            },
        );
    };
    let new: NewCredential = body.json(BODY_MAX_BYTES).await?;
    let longest = max_credential_s.map_or(TTL_MAX_S, u64::from).min(TTL_MAX_S);
    let ttl_s = new.ttl_seconds.unwrap_or(TTL_DEFAULT_S.min(longest));
    if ttl_s > longest {
        return Err(Problem::field(
            "ttl_seconds",
            format!("ttl_seconds must be at most {longest}: the access rules of this connection allow no more."),
        ));
    }
    let made = state
        .store
        .make_credential(&caller.user, &connection, ttl_s, &caller.witness())
        .await?;
    let (host, port) = state.control.postgres_address();
    let id = made.credential.id;
    let database = connection.settings.default_database;
    let view = MadeCredential {
        command: psql(&host, port, &id, &database),
        user: id.clone(),
        id,
        password: made.password.to_string(),
        expires_at: made.credential.expires_at,
        host,
        port,
        database,
    };
    let mut response = HttpResponse::Created().json(view);
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Which credentials.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CredentialsFilter {
    /// Of this person, by user name.
    #[param(max_length = 256)]
    user: Option<String>,
    /// For this connection, by name.
    #[param(max_length = 256)]
    connection: Option<String>,
    state: Option<State>,
}

impl Filters for CredentialsFilter {
    const LISTING: &'static Listing = &CREDENTIALS;
}

/// Credentials: all for admins and auditors, their own for members.
#[utoipa::path(
    tag = "credentials",
    params(ListQuery<CredentialsFilter>),
    responses((status = 200, body = Page<Credential>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/credentials")]
pub async fn list_credentials(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<Credential>>, Problem> {
    let mut asked = ListQuery::<CredentialsFilter>::of(&request)?;
    let given = std::mem::take(&mut asked.filters);
    let filter = CredentialFilter {
        user_id: (!caller.reads_all()).then_some(caller.user.id),
        user: given.user,
        connection: given.connection,
        state: given.state.map(Into::into),
    };
    let listed = caller.state().store.list_credentials(&filter, &asked.window).await?;
    Ok(web::Json(asked.page(listed, Credential::from)))
}

/// Revoke a credential: one's own, or any for an admin. Its sessions end.
#[utoipa::path(
    tag = "credentials",
    params(("id" = String, Path, description = "The credential's id")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/credentials/{id}")]
pub async fn revoke_credential(caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let store = &caller.state().store;
    let missing = || Problem::not_found(format!("credential {id} does not exist."));
    let credential = store.find_credential(&id).await?.ok_or_else(missing)?;
    if credential.user_id != caller.user.id {
        if !caller.reads_all() {
            return Err(missing());
        }
        caller.require_admin()?;
    }
    store.revoke_credential(&id, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The command line for psql. Values with other than plain characters are quoted for libpq, then for the shell.
fn psql(host: &str, port: u16, user: &str, database: &str) -> String {
    let conninfo = format!(
        "host={} port={port} user={user} dbname={} sslmode=verify-full sslrootcert={CA_FILE}",
        quoted(host),
        quoted(database)
    );
    format!("psql '{}'", conninfo.replace('\'', r"'\''"))
}

/// PostgreSQL manual, "Connection Strings".
fn quoted(value: &str) -> String {
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b));
    if plain && !value.is_empty() {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_quoted_for_libpq_and_the_shell() {
        assert_eq!(
            psql("db.example.org", 15432, "c00000000", "app"),
            "psql 'host=db.example.org port=15432 user=c00000000 dbname=app sslmode=verify-full sslrootcert=hoop-ca.pem'"
        );
        let command = psql("h", 1, "c0", "it's; $(reboot)");
        assert!(command.contains(r#"dbname='\''it\'\''s; $(reboot)'\''"#), "{command}");
    }
}
