//! The administrative record: who changed what, before and after, as the writers' log keeps it.

use actix_web::http::header::{CONTENT_DISPOSITION, HeaderValue};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, get};
use chrono::{DateTime, Utc};
use futures_util::{Stream, stream};
use hoop_store::list::Listing;
use hoop_store::writer_log::{Kinds, LOG, LOG_MEMBER_MAX_CHARS, LogFilter, LogPlace, LogRecord};
use hoop_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::caller::Caller;
use crate::list_query::{Filters, ListQuery};
use crate::page::{Page, bad_cursor, query};
use crate::problem::{Listed, Problem, Signed};
use crate::users::Role;

/// Longest kind that is asked for.
const KIND_MAX_BYTES: usize = 64;

/// Which records.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditFilter {
    /// `rule.update`, or a beginning: `rule.*`. Where absent, what people have changed; `*` for all, with what the
    /// writers note of sessions and of themselves.
    #[param(max_length = 64)]
    kind: Option<String>,
    /// Only what this person did, by user name.
    #[param(max_length = 200)]
    person: Option<String>,
    /// Only what was done to this, by name or id.
    #[param(max_length = 200)]
    subject: Option<String>,
    /// Only from this moment on.
    from: Option<DateTime<Utc>>,
    /// Only before this moment.
    to: Option<DateTime<Utc>>,
    /// Only what this replica's incarnation recorded.
    writer: Option<Uuid>,
}

impl Filters for AuditFilter {
    const LISTING: &'static Listing = &LOG;
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// As in `GET /api/audit`, but where absent all: a chain can only be checked whole.
    #[param(max_length = 64)]
    kind: Option<String>,
    /// Only from this moment on.
    from: Option<DateTime<Utc>>,
    /// Only before this moment.
    to: Option<DateTime<Utc>>,
    /// Only what this replica's incarnation recorded.
    writer: Option<Uuid>,
}

/// Who did it, as it was then: a person, a provider that vouches for one, a replica, or the first start.
#[derive(ToSchema)]
#[allow(dead_code, reason = "the description alone reads it")]
pub struct RecordedBy {
    /// Null where nobody was signed in.
    user: Option<String>,
    user_id: Option<Uuid>,
    role: Option<Role>,
    address: Option<String>,
    /// The personal token that was used.
    #[schema(nullable = false)]
    token: Option<Uuid>,
    /// The identity provider whose word it was.
    #[schema(nullable = false)]
    provider: Option<String>,
    /// Whom the provider named.
    #[schema(nullable = false)]
    subject: Option<String>,
    #[schema(nullable = false)]
    replica: Option<Uuid>,
    #[schema(nullable = false)]
    cause: Option<String>,
}

/// One record of the writers' log.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditRecord {
    /// The replica's incarnation whose log holds it.
    pub writer: Uuid,
    /// Its number in that log.
    pub seq: i64,
    pub at: DateTime<Utc>,
    #[schema(example = "rule.update")]
    pub kind: String,
    /// What it was done to.
    #[schema(required)]
    pub subject: Option<String>,
    /// Who did it.
    #[schema(value_type = Option<RecordedBy>, required)]
    pub by: Value,
    #[schema(value_type = Option<HashMap<String, Value>>, required)]
    pub before: Value,
    #[schema(value_type = Option<HashMap<String, Value>>, required)]
    pub after: Value,
    /// Whatever else the record says.
    #[schema(value_type = HashMap<String, Value>)]
    pub details: Map<String, Value>,
    /// Hexadecimal SHA-256 by which the next record of the log names it.
    pub hash: String,
}

impl From<LogRecord> for AuditRecord {
    fn from(record: LogRecord) -> Self {
        let mut details = match serde_json::from_str(&record.payload) {
            Ok(Value::Object(members)) => members,
            _ => Map::new(),
        };
        let mut take = |name: &str| details.remove(name).unwrap_or_default();
        let subject = take("subject").as_str().map(ToOwned::to_owned);
        let (by, before, after) = (take("by"), take("before"), take("after"));
        Self {
            writer: record.writer,
            seq: record.seq,
            at: DateTime::from_timestamp_micros(record.at_us).unwrap_or_default(),
            kind: record.kind,
            subject,
            by,
            before,
            after,
            details,
            hash: hex(&record.hash),
        }
    }
}

/// What was changed, newest first: users, rules, connections, credentials, agents, kills, sign-ins.
#[utoipa::path(
    tag = "audit",
    params(ListQuery<AuditFilter>),
    responses((status = 200, body = Page<AuditRecord>), Listed, Signed),
    security(("bearer" = []))
)]
#[get("/audit")]
pub async fn list_audit(
    request: HttpRequest,
    caller: Caller,
) -> Result<actix_web::web::Json<Page<AuditRecord>>, Problem> {
    caller.require_reader()?;
    let mut asked = ListQuery::<AuditFilter>::of(&request)?;
    let wanted = std::mem::take(&mut asked.filters);
    let filter = LogFilter {
        kinds: kinds(wanted.kind.as_deref())?.unwrap_or_default(),
        person: member("person", wanted.person)?,
        subject: member("subject", wanted.subject)?,
        from_us: wanted.from.map(|at| at.timestamp_micros()),
        to_us: wanted.to.map(|at| at.timestamp_micros()),
        writer: wanted.writer,
    };
    let after = (asked.window.after.as_ref())
        .map(|position| LogPlace::from_position(position).ok_or_else(bad_cursor))
        .transpose()?;
    let oldest_first = asked.window.sort.text() == "at";
    let store = &caller.state().store;
    let listed = store.list_log(&filter, oldest_first, after, asked.window.limit).await?;
    Ok(actix_web::web::Json(asked.page(listed, AuditRecord::from)))
}

/// The writers' log as it is hashed, one JSON object a line, by writer and number.
#[utoipa::path(
    tag = "audit",
    params(ExportQuery),
    responses(
        (status = 200, description = "One record a line", body = String, content_type = "application/x-ndjson"),
        Listed, Signed
    ),
    security(("bearer" = []))
)]
#[get("/audit/export")]
pub async fn export_audit(request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    caller.require_reader()?;
    let asked: ExportQuery = query(&request)?;
    let filter = LogFilter {
        kinds: kinds(asked.kind.as_deref())?.unwrap_or(Kinds::Beginning(String::new())),
        from_us: asked.from.map(|at| at.timestamp_micros()),
        to_us: asked.to.map(|at| at.timestamp_micros()),
        writer: asked.writer,
        ..LogFilter::default()
    };
    let store = caller.state().store.clone();
    // what can fail does so before the answer has begun
    let first = store.export_log(&filter, None).await?;
    let mut response = HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .streaming(lines(store, filter, first));
    response.headers_mut().insert(
        CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment; filename=\"hoop-audit.ndjson\""),
    );
    Ok(response)
}

/// A line of the export: the members are those of a `log` line of `hoop-gateway export`.
#[derive(Serialize)]
struct ExportLine<'a> {
    log: ExportedRecord<'a>,
}

#[derive(Serialize)]
struct ExportedRecord<'a> {
    writer: Uuid,
    seq: i64,
    at_us: i64,
    kind: &'a str,
    payload: &'a str,
    prev_hash: String,
    hash: String,
}

/// One page of the store at a time is in memory; the next is read when the client has taken it.
fn lines(store: Store, filter: LogFilter, first: Vec<LogRecord>) -> impl Stream<Item = Result<Bytes, StoreError>> {
    stream::try_unfold(Some(first), move |page| {
        let (store, filter) = (store.clone(), filter.clone());
        async move {
            let Some(page) = page else { return Ok(None) };
            let Some(last) = page.last().map(|r| (r.writer, r.seq)) else {
                return Ok(None);
            };
            let text = page.iter().map(line).collect::<String>();
            let next = store.export_log(&filter, Some(last)).await?;
            Ok(Some((Bytes::from(text), Some(next))))
        }
    })
}

fn line(record: &LogRecord) -> String {
    let line = ExportLine {
        log: ExportedRecord {
            writer: record.writer,
            seq: record.seq,
            at_us: record.at_us,
            kind: &record.kind,
            payload: &record.payload,
            prev_hash: base64(&record.prev_hash),
            hash: base64(&record.hash),
        },
    };
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A kind, or the beginning of one before a `*`.
fn kinds(asked: Option<&str>) -> Result<Option<Kinds>, Problem> {
    let Some(kind) = asked else { return Ok(None) };
    let name = kind.strip_suffix('*').unwrap_or(kind);
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b);
    if kind.is_empty() || kind.len() > KIND_MAX_BYTES || !name.bytes().all(known) {
        return Err(Problem::field(
            "kind",
            "kind must be a kind such as rule.update, or the beginning of one with a * at its end.",
        ));
    }
    Ok(Some(if name.len() < kind.len() {
        Kinds::Beginning(name.to_owned())
    } else {
        Kinds::One(name.to_owned())
    }))
}

fn member(name: &'static str, value: Option<String>) -> Result<Option<String>, Problem> {
    match value {
        Some(value) if value.contains('\0') || value.chars().count() > LOG_MEMBER_MAX_CHARS => Err(Problem::field(
            name,
            format!("{name} must be at most {LOG_MEMBER_MAX_CHARS} characters."),
        )),
        value => Ok(value),
    }
}
