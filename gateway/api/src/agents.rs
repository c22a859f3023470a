//! Agents: registering one answers its `HOOP_KEY`, once.

use std::collections::HashSet;

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use hoop_store::agents::{AGENTS, Agent as StoredAgent, AgentFilter, hoop_key};
use hoop_store::list::Listing;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::list_query::{Filters, ListQuery};
use crate::page::Page;
use crate::problem::{Bodied, Listed, Missing, Problem, Signed, Taken};

#[derive(Serialize, ToSchema)]
pub struct Agent {
    pub id: Uuid,
    pub name: String,
    /// It has a link to a replica.
    pub online: bool,
    /// The set of declarations (`hoop-gateway apply --set`) that made it, and may remove it; empty: none.
    pub managed_by: String,
    pub created_at: DateTime<Utc>,
}

impl Agent {
    fn new(agent: StoredAgent, online: bool) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            online,
            managed_by: agent.managed_by,
            created_at: agent.created_at,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAgent {
    /// A DNS label.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    name: String,
    /// The set of declarations (`hoop-gateway apply --set`) that makes it, and may remove it; empty: none.
    #[serde(default)]
    #[schema(max_length = 63, pattern = "^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$")]
    managed_by: String,
}

#[derive(Serialize, ToSchema)]
pub struct RegisteredAgent {
    pub id: Uuid,
    pub name: String,
    /// The value of `HOOP_KEY` for hoop-agent. This is the only time it is shown.
    pub key: String,
    pub created_at: DateTime<Utc>,
}

/// Which agents.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AgentsFilter {
    /// What the name contains.
    #[param(max_length = 256)]
    q: Option<String>,
    /// With a link to a replica, or without one.
    online: Option<bool>,
}

impl Filters for AgentsFilter {
    const LISTING: &'static Listing = &AGENTS;
}

/// Agents.
#[utoipa::path(
    tag = "agents",
    params(ListQuery<AgentsFilter>),
    responses((status = 200, body = Page<Agent>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/agents")]
pub async fn list_agents(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<Agent>>, Problem> {
    caller.require_reader()?;
    let mut asked = ListQuery::<AgentsFilter>::of(&request)?;
    let AgentsFilter { q, online } = std::mem::take(&mut asked.filters);
    let state = caller.state();
    let linked = state.control.agents_online().await?;
    let filter = AgentFilter {
        q,
        among: (online == Some(true)).then(|| linked.clone()),
        not_among: (online == Some(false)).then(|| linked.clone()),
    };
    let listed = state.store.list_agents(&filter, &asked.window).await?;
    let online: HashSet<String> = linked.into_iter().collect();
    let view = |agent: StoredAgent| {
        let online = online.contains(&agent.name);
        Agent::new(agent, online)
    };
    Ok(web::Json(asked.page(listed, view)))
}

/// Register an agent.
#[utoipa::path(
    tag = "agents",
    request_body = NewAgent,
    responses((status = 201, body = RegisteredAgent), Taken, Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/agents")]
pub async fn register_agent(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let new: NewAgent = body.json(BODY_MAX_BYTES).await?;
    let state = caller.state();
    let witness = caller.witness();
    let registered = state
        .store
        .register_agent_of(&new.name, &new.managed_by, &witness)
        .await?;
    let pin = state.store.installation().ca.pin();
    let key = hoop_key(
        &registered.agent.name,
        &registered.token,
        &state.control.link_address(),
        &pin,
    );
    let agent = registered.agent;
    let view = RegisteredAgent {
        id: agent.id,
        name: agent.name,
        key: key.to_string(),
        created_at: agent.created_at,
    };
    Ok(HttpResponse::Created().json(view))
}

/// Revoke an agent: its key is worthless at once, and its links are closed.
#[utoipa::path(
    tag = "agents",
    params(("name" = String, Path, description = "The agent's name")),
    responses((status = 204), Missing, Signed),
    security(("bearer" = []))
)]
#[delete("/agents/{name}")]
pub async fn revoke_agent(caller: Caller, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    caller.state().store.revoke_agent(&name, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}
