//! Sessions: the list, one, its recorded events, and its end by an admin.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use hoop_store::list::{Listing, is_storable};
use hoop_store::sessions::{SESSIONS, SessionFilter, SessionRow};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::caller::Caller;
use crate::events::{EventView, Rows};
use crate::list_query::{Filters, ListQuery};
use crate::page::{Page, bad_cursor, limit, query};
use crate::problem::{Listed, Missing, Problem, Signed, Taken};

/// Which sessions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SessionsFilter {
    /// Of this person, by user name.
    #[param(max_length = 256)]
    user: Option<String>,
    /// Of this connection, by name.
    #[param(max_length = 256)]
    connection: Option<String>,
    /// Through this agent, by name.
    #[param(max_length = 256)]
    agent: Option<String>,
    #[param(max_length = 256)]
    protocol: Option<String>,
    /// Why it ended: an `end_code`.
    #[param(max_length = 256)]
    end: Option<String>,
    /// Started then or later, RFC 3339.
    from: Option<DateTime<Utc>>,
    /// Started before then, RFC 3339.
    to: Option<DateTime<Utc>>,
    /// Only those that are running, or only those that are over.
    live: Option<bool>,
}

impl Filters for SessionsFilter {
    const LISTING: &'static Listing = &SESSIONS;
}

impl SessionsFilter {
    fn stored(self, only: Option<Uuid>) -> Result<SessionFilter, Problem> {
        for (name, time) in [("from", self.from), ("to", self.to)] {
            if time.is_some_and(|time| !is_storable(time)) {
                return Err(Problem::field(name, format!("{name} must be in the years 1 to 9999.")));
            }
        }
        Ok(SessionFilter {
            user: self.user,
            user_id: only,
            connection: self.connection,
            agent: self.agent,
            protocol: self.protocol,
            end: self.end,
            from: self.from,
            to: self.to,
            live: self.live,
        })
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Items of a page; 50 where absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `next` of the page before: the number of its last event.
    #[param(pattern = "^[0-9]{1,19}$")]
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct Session {
    #[serde(flatten)]
    row: SessionRow,
    live: bool,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        let live = row.ended_at.is_none();
        Self { row, live }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Killed {
    pub session: Uuid,
    /// This replica held it and has ended it. Otherwise the one that holds it does so within five seconds.
    pub ended_here: bool,
}

/// Sessions: all for admins and auditors, their own for members.
#[utoipa::path(
    tag = "sessions",
    params(ListQuery<SessionsFilter>),
    responses((status = 200, body = Page<Session>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/sessions")]
pub async fn list_sessions(request: HttpRequest, caller: Caller) -> Result<web::Json<Page<Session>>, Problem> {
    let mut asked = ListQuery::<SessionsFilter>::of(&request)?;
    let only = (!caller.reads_all()).then_some(caller.user.id);
    let filter = std::mem::take(&mut asked.filters).stored(only)?;
    let listed = caller.state().store.list_sessions(&filter, &asked.window).await?;
    Ok(web::Json(asked.page(listed, Session::from)))
}

/// One session.
#[utoipa::path(
    tag = "sessions",
    params(("id" = Uuid, Path, description = "The session's id")),
    responses((status = 200, body = Session), Missing, Signed),
    security(("bearer" = []))
)]
#[get("/sessions/{id}")]
pub async fn get_session(caller: Caller, id: web::Path<String>) -> Result<web::Json<Session>, Problem> {
    let row = find(&caller, &id).await?;
    if !caller.reads_all() && row.user_id != Some(caller.user.id) {
        return Err(missing(&id));
    }
    Ok(web::Json(row.into()))
}

/// A session's recorded events, in order. A page may hold fewer than asked for; the last has no `next`.
#[utoipa::path(
    tag = "sessions",
    params(("id" = Uuid, Path, description = "The session's id"), EventsQuery),
    responses((status = 200, body = Page<EventView>), Missing, Listed, Signed),
    security(("bearer" = []))
)]
#[get("/sessions/{id}/events")]
pub async fn session_events(
    request: HttpRequest,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<Page<EventView>>, Problem> {
    caller.require_reader()?;
    let asked: EventsQuery = query(&request)?;
    let limit = limit(asked.limit)?;
    let after = asked
        .cursor
        .as_deref()
        .map_or(Ok(0), |c| c.parse::<u64>().map_err(|_| bad_cursor()))?;
    let session = find(&caller, &id).await?;
    let asked_for = usize::from(limit).saturating_add(1);
    let events = caller
        .state()
        .control
        .session_events(session.id, after, asked_for)
        .await?;
    let mut rows = Rows::default();
    Ok(web::Json(Page::cut(
        events,
        limit,
        |e| e.seq.to_string(),
        |e| EventView::new(e, &mut rows),
    )))
}

/// End a running session, wherever it runs.
#[utoipa::path(
    tag = "sessions",
    params(("id" = Uuid, Path, description = "The session's id")),
    responses((status = 202, body = Killed), Missing, Taken, Signed),
    security(("bearer" = []))
)]
#[post("/sessions/{id}/kill")]
pub async fn kill_session(caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    caller.require_admin()?;
    let session = find(&caller, &id).await?;
    if session.ended_at.is_some() && !session.end_provisional {
        return Err(Problem::conflict(format!("session {} is over already.", session.id)));
    }
    let state = caller.state();
    state.store.announce_kill(&session, &caller.witness()).await?;
    let ended_here = state
        .control
        .kill_session(session.id, caller.user.username.clone())
        .await?;
    Ok(HttpResponse::Accepted().json(Killed {
        session: session.id,
        ended_here,
    }))
}

async fn find(caller: &Caller, id: &str) -> Result<SessionRow, Problem> {
    let uuid = Uuid::parse_str(id).map_err(|_| missing(id))?;
    caller
        .state()
        .store
        .find_session(uuid)
        .await?
        .ok_or_else(|| missing(id))
}

fn missing(id: &str) -> Problem {
    let id: String = id.chars().take(64).collect();
    Problem::not_found(format!("session {id} does not exist."))
}
