//! Access rules, and why somebody may or may not use a connection.

use actix_web::http::header::ETAG;
use actix_web::{HttpRequest, HttpResponse, delete, get, post, put, web};
use chrono::{DateTime, Utc};
use hoop_access::{Circumstances, Decision, Explanation as Explained, Obstacle as Met};
use hoop_store::list::{Listing, is_storable};
use hoop_store::rules::{RULES, RuleFilter, StoredRule};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::etag::{IfMatch, etag, if_match};
use crate::list_query::{Filters, ListQuery};
use crate::page::{Page, query};
use crate::problem::{Bodied, Listed, Missing, Problem, Signed, Taken, Versioned};
use crate::rule_view::{Mode, Rule, RuleRole, RuleSettings, parts};

fn missing(name: &str) -> Problem {
    Problem::not_found(format!("rule {name} does not exist."))
}

fn answer(mut response: actix_web::HttpResponseBuilder, stored: StoredRule) -> HttpResponse {
    response
        .insert_header((ETAG, etag(stored.version)))
        .json(Rule::from(stored))
}

/// Which rules: those in whose list this entry stands, letter by letter.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RulesFilter {
    #[param(max_length = 256)]
    group: Option<String>,
    #[param(max_length = 256)]
    user: Option<String>,
    role: Option<RuleRole>,
    /// A name as the rule writes it, with its `*` where it has one.
    #[param(max_length = 256)]
    connection: Option<String>,
    #[param(max_length = 256)]
    tag: Option<String>,
    enabled: Option<bool>,
    /// What the name or the description contains.
    #[param(max_length = 256)]
    q: Option<String>,
}

impl Filters for RulesFilter {
    const LISTING: &'static Listing = &RULES;
}

impl From<RulesFilter> for RuleFilter {
    fn from(filter: RulesFilter) -> Self {
        Self {
            group: filter.group,
            user: filter.user,
            role: filter.role.map(Into::into),
            connection: filter.connection,
            tag: filter.tag,
            enabled: filter.enabled,
            q: filter.q,
        }
    }
}

/// Access rules.
#[utoipa::path(
    tag = "access",
    params(ListQuery<RulesFilter>),
    responses((status = 200, body = Page<Rule>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/access/rules")]
pub async fn list_rules(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<Rule>>, Problem> {
    caller.require_reader()?;
    let mut asked = ListQuery::<RulesFilter>::of(&request)?;
    let filter = std::mem::take(&mut asked.filters).into();
    let listed = caller.state().store.list_rules(&filter, &asked.window).await?;
    Ok(web::Json(asked.page(listed, Rule::from)))
}

/// Create an access rule.
#[utoipa::path(
    tag = "access",
    request_body = RuleSettings,
    responses(
        (status = 201, body = Rule, headers(("ETag" = String, description = "Its version"))),
        Taken, Bodied, Signed
    ),
    security(("bearer" = []))
)]
#[post("/access/rules")]
pub async fn create_rule(caller: Caller, body: Body) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let (name, spec) = parts(body.json(BODY_MAX_BYTES).await?)?;
    let stored = caller.state().store.create_rule(&name, spec, &caller.witness()).await?;
    Ok(answer(HttpResponse::Created(), stored))
}

/// One access rule.
#[utoipa::path(
    tag = "access",
    params(("name" = String, Path, description = "The rule's name")),
    responses(
        (status = 200, body = Rule, headers(("ETag" = String, description = "Its version"))),
        Missing, Signed
    ),
    security(("bearer" = []))
)]
#[get("/access/rules/{name}")]
pub async fn get_rule(caller: Caller, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    caller.require_reader()?;
    let stored = caller.state().store.find_rule(&name).await?;
    Ok(answer(HttpResponse::Ok(), stored.ok_or_else(|| missing(&name))?))
}

/// Replace what a rule says. Sessions that no rule allows any more end.
#[utoipa::path(
    tag = "access",
    params(
        ("name" = String, Path, description = "The rule's name"),
        IfMatch
    ),
    request_body = RuleSettings,
    responses(
        (status = 200, body = Rule, headers(("ETag" = String, description = "Its version"))),
        Missing, Versioned, Bodied, Signed
    ),
    security(("bearer" = []))
)]
#[put("/access/rules/{name}")]
pub async fn update_rule(
    request: HttpRequest,
    caller: Caller,
    name: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let version = if_match(&request)?;
    let (new_name, spec) = parts(body.json(BODY_MAX_BYTES).await?)?;
    if new_name != *name {
        return Err(Problem::field(
            "name",
            "A rule keeps its name: name must be the one in the path.",
        ));
    }
    let store = &caller.state().store;
    let stored = store.update_rule(&name, spec, version, &caller.witness()).await?;
    Ok(answer(HttpResponse::Ok(), stored))
}

/// Delete an access rule. Sessions that it alone allowed end.
#[utoipa::path(
    tag = "access",
    params(
        ("name" = String, Path, description = "The rule's name"),
        IfMatch
    ),
    responses((status = 204), Missing, Versioned, Signed),
    security(("bearer" = []))
)]
#[delete("/access/rules/{name}")]
pub async fn delete_rule(
    request: HttpRequest,
    caller: Caller,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let version = if_match(&request)?;
    let store = &caller.state().store;
    store.delete_rule(&name, version, &caller.witness()).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Whose access to what is to be explained.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Question {
    /// The user's name.
    pub user: String,
    /// The connection's name.
    pub connection: String,
    /// `native` where absent.
    pub mode: Option<Mode>,
    /// With `address`: the moment of use, RFC 3339; now where absent.
    pub at: Option<DateTime<Utc>>,
    /// The client's address. Where absent, schedules and networks are left out of the question.
    #[param(value_type = Option<String>, example = "192.0.2.7")]
    pub address: Option<std::net::IpAddr>,
}

/// Why a rule does not allow it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Obstacle {
    Disabled,
    /// It is about other people.
    Person,
    /// It is about other connections.
    Connection,
    Mode,
    Schedule,
    Network,
}

#[derive(Serialize, ToSchema)]
pub struct Tried {
    pub id: Uuid,
    pub rule: String,
    /// Empty where the rule allows it.
    pub obstacles: Vec<Obstacle>,
}

/// Whether, and why.
#[derive(Serialize, ToSchema)]
pub struct Explanation {
    pub allowed: bool,
    /// One sentence for a person.
    pub summary: String,
    /// Longest life of a credential, in seconds; null where the rules set none, or deny.
    #[schema(required)]
    pub max_credential_s: Option<u32>,
    /// When the hours of the allowing rules end; null where they do not, or deny.
    #[schema(required)]
    pub until: Option<DateTime<Utc>>,
    /// The nearest rules, at most 50, those that allow first.
    pub rules: Vec<Tried>,
}

impl From<Explained> for Explanation {
    fn from(explained: Explained) -> Self {
        let allowed = explained.decision.is_allowed();
        let (max_credential_s, until) = match explained.decision {
            Decision::Allowed {
                max_credential_s,
                until,
                ..
            } => (max_credential_s, until),
            Decision::Denied => (None, None),
        };
        let obstacle = |met| match met {
            Met::Disabled => Obstacle::Disabled,
            Met::Person => Obstacle::Person,
            Met::Connection => Obstacle::Connection,
            Met::Mode => Obstacle::Mode,
            Met::Schedule => Obstacle::Schedule,
            Met::Network => Obstacle::Network,
        };
        let tried = explained.tried.into_iter().map(|tried| Tried {
            id: tried.id,
            rule: tried.rule,
            obstacles: tried.obstacles.into_iter().map(obstacle).collect(),
        });
        Self {
            allowed,
            summary: explained.summary,
            max_credential_s,
            until,
            rules: tried.collect(),
        }
    }
}

/// Why somebody may or may not use a connection.
#[utoipa::path(
    tag = "access",
    params(Question),
    responses((status = 200, body = Explanation), Listed, Missing, Signed),
    security(("bearer" = []))
)]
#[get("/access/explain")]
pub async fn explain(request: HttpRequest, caller: Caller) -> Result<web::Json<Explanation>, Problem> {
    caller.require_reader()?;
    let asked: Question = query(&request)?;
    let store = &caller.state().store;
    let user = store.find_user(&asked.user).await?;
    let user = user.ok_or_else(|| Problem::not_found(format!("user {} does not exist.", asked.user)))?;
    let connection = store.find_connection(&asked.connection).await?;
    let connection =
        connection.ok_or_else(|| Problem::not_found(format!("connection {} does not exist.", asked.connection)))?;
    if asked.at.is_some() && asked.address.is_none() {
        return Err(Problem::field("address", "With at, give the client's address too."));
    }
    if asked.at.is_some_and(|at| !is_storable(at)) {
        return Err(Problem::field("at", "at must be in the years 1 to 9999."));
    }
    let circumstances = Circumstances {
        mode: asked.mode.unwrap_or(Mode::Native).into(),
        using: asked
            .address
            .map(|address| (asked.at.unwrap_or_else(Utc::now), address)),
    };
    let rules = store.current_rules().await?;
    let explained = rules.explain(&user.subject(), &connection.object(), &circumstances);
    Ok(web::Json(explained.into()))
}
