//! Access rules, and why somebody may or may not use a connection.

use std::collections::BTreeSet;

use actix_web::http::header::ETAG;
use actix_web::{HttpRequest, HttpResponse, delete, get, post, put, web};
use chrono::{DateTime, Utc};
use hoop_access::{Circumstances, Decision, Explanation as Explained, Obstacle as Met, RuleSpec};
use hoop_store::list::{Listing, is_storable};
use hoop_store::rules::{RULES, RuleFilter, StoredRule};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::body::{BODY_MAX_BYTES, Body};
use crate::caller::Caller;
use crate::etag::{etag, if_match};
use crate::list_query::{Filters, ListQuery};
use crate::page::{Page, query};
use crate::problem::{Bodied, Listed, Missing, Problem, Signed, Taken, Versioned};

/// How a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A client of the connection's own protocol.
    Native,
    /// The editor or terminal in the browser.
    Web,
    /// One command through API or command line.
    Exec,
    /// A prepared runbook.
    Runbook,
}

impl From<Mode> for hoop_access::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Native,
            Mode::Web => Self::Web,
            Mode::Exec => Self::Exec,
            Mode::Runbook => Self::Runbook,
        }
    }
}

impl From<hoop_access::Mode> for Mode {
    fn from(mode: hoop_access::Mode) -> Self {
        match mode {
            hoop_access::Mode::Native => Self::Native,
            hoop_access::Mode::Web => Self::Web,
            hoop_access::Mode::Exec => Self::Exec,
            hoop_access::Mode::Runbook => Self::Runbook,
        }
    }
}

/// Whose every holder a rule may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleRole {
    Admin,
    Member,
}

impl From<RuleRole> for hoop_access::Role {
    fn from(role: RuleRole) -> Self {
        match role {
            RuleRole::Admin => Self::Admin,
            RuleRole::Member => Self::Member,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// A window that opens on each of `days` at `from` and closes at `until`, on the next day where that is not later.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[schema(min_items = 1)]
    pub days: BTreeSet<Day>,
    #[schema(example = "08:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub from: String,
    #[schema(example = "18:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub until: String,
    /// IANA name.
    #[schema(example = "Europe/Berlin")]
    pub timezone: String,
}

/// What a rule says: who (any of groups, users, roles) may use which connections (any of connections, tags), under which
/// conditions (all of them).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// A DNS label.
    #[schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    pub name: String,
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub description: String,
    /// False: the rule stays, and allows nothing.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    #[serde(default)]
    pub groups: BTreeSet<String>,
    /// User names.
    #[serde(default)]
    pub users: BTreeSet<String>,
    /// Everybody with this role.
    #[serde(default)]
    pub roles: BTreeSet<RuleRole>,
    /// Names of connections; a `*` at the end stands for any rest.
    #[serde(default)]
    pub connections: BTreeSet<String>,
    /// Connections with one of these tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// All four where absent.
    #[serde(default = "all_modes")]
    #[schema(min_items = 1)]
    pub modes: BTreeSet<Mode>,
    /// Always where absent.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// Networks that the client must come from, as 10.0.0.0/8; any where empty.
    #[serde(default)]
    pub networks: BTreeSet<String>,
    /// Longest life of a credential, in seconds; 0: no limit of its own.
    #[serde(default)]
    #[schema(maximum = 172_800)]
    pub max_credential_s: u32,
}

const fn yes() -> bool {
    true
}

pub(crate) fn all_modes() -> BTreeSet<Mode> {
    [Mode::Native, Mode::Web, Mode::Exec, Mode::Runbook].into()
}

/// A rule.
#[derive(Serialize, ToSchema)]
pub struct Rule {
    pub id: Uuid,
    pub version: i64,
    #[serde(flatten)]
    pub settings: RuleSettings,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<StoredRule> for Rule {
    fn from(stored: StoredRule) -> Self {
        let spec = stored.rule.spec;
        Self {
            id: stored.rule.id,
            version: stored.version,
            settings: RuleSettings {
                name: stored.rule.name,
                description: spec.description,
                enabled: spec.enabled,
                groups: spec.groups,
                users: spec.users,
                roles: spec.roles.into_iter().filter_map(rule_role).collect(),
                connections: spec.connections,
                tags: spec.tags,
                modes: spec.modes.into_iter().map(Mode::from).collect(),
                schedule: spec.schedule.map(|schedule| Schedule {
                    days: schedule.days.into_iter().map(day).collect(),
                    from: schedule.from,
                    until: schedule.until,
                    timezone: schedule.timezone,
                }),
                networks: spec.networks.iter().map(ToString::to_string).collect(),
                max_credential_s: spec.max_credential_s,
            },
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }
}

const fn rule_role(role: hoop_access::Role) -> Option<RuleRole> {
    match role {
        hoop_access::Role::Admin => Some(RuleRole::Admin),
        hoop_access::Role::Member => Some(RuleRole::Member),
        hoop_access::Role::Auditor => None,
    }
}

const fn day(day: hoop_access::Day) -> Day {
    match day {
        hoop_access::Day::Mon => Day::Mon,
        hoop_access::Day::Tue => Day::Tue,
        hoop_access::Day::Wed => Day::Wed,
        hoop_access::Day::Thu => Day::Thu,
        hoop_access::Day::Fri => Day::Fri,
        hoop_access::Day::Sat => Day::Sat,
        hoop_access::Day::Sun => Day::Sun,
    }
}

const fn stored_day(day: Day) -> hoop_access::Day {
    match day {
        Day::Mon => hoop_access::Day::Mon,
        Day::Tue => hoop_access::Day::Tue,
        Day::Wed => hoop_access::Day::Wed,
        Day::Thu => hoop_access::Day::Thu,
        Day::Fri => hoop_access::Day::Fri,
        Day::Sat => hoop_access::Day::Sat,
        Day::Sun => hoop_access::Day::Sun,
    }
}

/// Name and spec. A network is an address with a prefix length, or an address alone.
pub(crate) fn parts(new: RuleSettings) -> Result<(String, RuleSpec), Problem> {
    let network = |text: String| {
        let whole = text.parse().ok();
        let one = || text.parse::<std::net::IpAddr>().ok().map(Into::into);
        whole
            .or_else(one)
            .map(|network: ipnet::IpNet| network.trunc())
            .ok_or_else(|| {
                Problem::field(
                    "networks",
                    "networks must hold networks as 10.0.0.0/8 or 2001:db8::/32.",
                )
            })
    };
    let spec = RuleSpec {
        description: new.description,
        enabled: new.enabled,
        groups: new.groups,
        users: new.users.into_iter().map(|user| user.to_ascii_lowercase()).collect(),
        roles: new.roles.into_iter().map(Into::into).collect(),
        connections: new.connections,
        tags: new.tags,
        modes: new.modes.into_iter().map(Into::into).collect(),
        schedule: new.schedule.map(|schedule| hoop_access::Schedule {
            days: schedule.days.into_iter().map(stored_day).collect(),
            from: schedule.from,
            until: schedule.until,
            timezone: schedule.timezone,
        }),
        networks: new.networks.into_iter().map(network).collect::<Result<_, _>>()?,
        max_credential_s: new.max_credential_s,
    };
    Ok((new.name, spec))
}

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
        ("If-Match" = Option<String>, Header, description = "Only where it still has this ETag")
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
        ("If-Match" = Option<String>, Header, description = "Only where it still has this ETag")
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
    pub max_credential_s: Option<u32>,
    /// When the hours of the allowing rules end; null where they do not, or deny.
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
    // what is stored now, whether this replica has heard of it or not
    let rules = store.refresh_rules().await?;
    let explained = rules.explain(&user.subject(), &connection.object(), &circumstances);
    Ok(web::Json(explained.into()))
}
