//! Connections. A target's secret goes in and never comes out; members do not see where a connection leads.

use actix_web::http::header::ETAG;
use actix_web::{HttpRequest, HttpResponse, delete, get, post, put, web};
use hoop_store::connections::{CONNECTIONS, Connection as Stored, ConnectionFilter, Secret, SecretChange};
use hoop_store::list::Listing;
use hoop_store::settings::Settings;
use serde::Deserialize;
use utoipa::IntoParams;
use zeroize::Zeroizing;

use crate::body::{Body, CA_BODY_MAX_BYTES};
use crate::caller::Caller;
use crate::connection_view::{Connection, ConnectionSettings, SecretInput};
use crate::etag::{IfMatch, etag, if_match};
use crate::list_query::{Filters, ListQuery};
use crate::page::Page;
use crate::problem::{Bodied, Listed, Missing, Problem, Signed, Taken, Versioned};

/// Which connections.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ConnectionsFilter {
    /// Through this agent, or others.
    #[param(max_length = 256)]
    agent: Option<String>,
    /// User name of who answers for it.
    #[param(max_length = 256)]
    owner: Option<String>,
    #[param(max_length = 256)]
    tag: Option<String>,
    #[param(max_length = 256)]
    protocol: Option<String>,
    /// What the name or the description contains.
    #[param(max_length = 256)]
    q: Option<String>,
}

impl Filters for ConnectionsFilter {
    const LISTING: &'static Listing = &CONNECTIONS;
}

impl From<ConnectionsFilter> for ConnectionFilter {
    fn from(filter: ConnectionsFilter) -> Self {
        Self {
            agent: filter.agent,
            owner: filter.owner,
            tag: filter.tag,
            protocol: filter.protocol,
            q: filter.q,
        }
    }
}

/// Connections: all for admins and auditors; for a member, those that the member may use, without their targets.
#[utoipa::path(
    tag = "connections",
    params(ListQuery<ConnectionsFilter>),
    responses((status = 200, body = Page<Connection>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/connections")]
pub async fn list_connections(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<Connection>>, Problem> {
    let mut asked = ListQuery::<ConnectionsFilter>::of(&request)?;
    let filter = std::mem::take(&mut asked.filters);
    if filter.agent.is_some() && !caller.reads_all() {
        return Err(Problem::forbidden(
            "Only admins and auditors may ask for connections by agent: members do not see where one leads.",
        ));
    }
    let store = &caller.state().store;
    let reach = (!caller.reads_all()).then(|| store.rules().reach(&caller.user.subject()));
    let may_see = |connection: &Stored| reach.is_none() || caller.may_use(connection);
    let listed = store
        .list_connections(&filter.into(), &asked.window, reach.as_ref(), may_see)
        .await?;
    let view = |connection| match caller.reads_all() {
        true => Connection::whole(connection),
        false => Connection::for_member(connection),
    };
    Ok(web::Json(asked.page(listed, view)))
}

/// Create a connection.
#[utoipa::path(
    tag = "connections",
    request_body = ConnectionSettings,
    responses(
        (status = 201, body = Connection, headers(("ETag" = String, description = "Its version"))),
        Taken, Bodied, Signed
    ),
    security(("bearer" = []))
)]
#[post("/connections")]
pub async fn create_connection(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let new: ConnectionSettings = body.json(CA_BODY_MAX_BYTES).await?;
    let (name, settings, secret) = parts(new);
    let secret = match secret {
        SecretChange::Set(secret) => Some(secret),
        SecretChange::Keep | SecretChange::Remove => None,
    };
    let stored = caller
        .state()
        .store
        .create_connection(&name, settings, secret, &caller.witness())
        .await?;
    let tag = etag(stored.version);
    Ok(HttpResponse::Created()
        .insert_header((ETAG, tag))
        .json(Connection::whole(stored)))
}

/// One connection.
#[utoipa::path(
    tag = "connections",
    params(("name" = String, Path, description = "The connection's name")),
    responses(
        (status = 200, body = Connection, headers(("ETag" = String, description = "Its version"))),
        Missing, Signed
    ),
    security(("bearer" = []))
)]
#[get("/connections/{name}")]
pub async fn get_connection(caller: Caller, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    let stored = caller
        .state()
        .store
        .find_connection(&name)
        .await?
        .ok_or_else(|| missing(&name))?;
    let tag = etag(stored.version);
    let view = visible(&caller, stored).ok_or_else(|| missing(&name))?;
    Ok(HttpResponse::Ok().insert_header((ETAG, tag)).json(view))
}

/// Replace a connection's settings. Without `secret` the secret is kept; with null it is removed.
#[utoipa::path(
    tag = "connections",
    params(
        ("name" = String, Path, description = "The connection's name"),
        IfMatch
    ),
    request_body = ConnectionSettings,
    responses(
        (status = 200, body = Connection, headers(("ETag" = String, description = "Its version"))),
        Missing, Versioned, Bodied, Signed
    ),
    security(("bearer" = []))
)]
#[put("/connections/{name}")]
pub async fn update_connection(
    request: HttpRequest,
    caller: Caller,
    name: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let version = if_match(&request)?;
    let new: ConnectionSettings = body.json(CA_BODY_MAX_BYTES).await?;
    let (new_name, settings, secret) = parts(new);
    if new_name != *name {
        return Err(Problem::field(
            "name",
            "A connection keeps its name: name must be the one in the path.",
        ));
    }
    let store = &caller.state().store;
    let stored = store
        .update_connection(&name, settings, secret, version, &caller.witness())
        .await?;
    let tag = etag(stored.version);
    Ok(HttpResponse::Ok()
        .insert_header((ETAG, tag))
        .json(Connection::whole(stored)))
}

/// Delete a connection. Its credentials and sessions end, its secret is destroyed.
#[utoipa::path(
    tag = "connections",
    params(
        ("name" = String, Path, description = "The connection's name"),
        IfMatch
    ),
    responses((status = 204), Missing, Versioned, Signed),
    security(("bearer" = []))
)]
#[delete("/connections/{name}")]
pub async fn delete_connection(
    request: HttpRequest,
    caller: Caller,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let version = if_match(&request)?;
    caller
        .state()
        .store
        .delete_connection(&name, version, &caller.witness())
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(crate) fn missing(name: &str) -> Problem {
    Problem::not_found(format!("connection {name} does not exist."))
}

/// What this caller sees of a connection, if anything.
fn visible(caller: &Caller, stored: Stored) -> Option<Connection> {
    if caller.reads_all() {
        return Some(Connection::whole(stored));
    }
    caller.may_use(&stored).then(|| Connection::for_member(stored))
}

pub(crate) fn parts(new: ConnectionSettings) -> (String, Settings, SecretChange) {
    let secret = match new.secret {
        None => SecretChange::Keep,
        Some(None) => SecretChange::Remove,
        Some(Some(SecretInput::Value(value))) => SecretChange::Set(Secret::Value(Zeroizing::new(value))),
        Some(Some(SecretInput::Reference(reference))) => SecretChange::Set(Secret::Reference(reference)),
    };
    let settings = Settings {
        protocol: new.protocol,
        agents: new.agents,
        owner: new.owner,
        modes: new.modes.into_iter().map(Into::into).collect(),
        host: new.host,
        port: new.port,
        user: new.user,
        tls: new.tls.into(),
        tls_ca_pem: new.tls_ca_pem,
        tls_server_name: new.tls_server_name,
        databases: new.databases,
        default_database: new.default_database,
        audit_mode: new.audit_mode.into(),
        record: new.record.into(),
        store_away: new.store_away.into(),
        max_sessions: new.max_sessions,
        idle_timeout_s: new.idle_timeout_s,
        session_max_s: new.session_max_s,
        result_max_bytes: new.result_max_bytes,
        allow_cleartext_login: new.allow_cleartext_login,
        allow_members: new.allow_members,
        description: new.description,
        tags: new.tags,
        managed_by: new.managed_by,
    };
    (new.name, settings, secret)
}
