//! Every error of the API: an RFC 9457 problem document whose text names the field and the remedy, and no secret.

use std::collections::BTreeMap;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use hoop_store::{SqlState, StoreError};
use serde::Serialize;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Header, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::control::ControlError;

/// RFC 9457 §3.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What is wrong with a request, or with the gateway (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// A stable name for the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "urn:hoop:problem:invalid-field")]
    kind: String,
    title: &'a str,
    status: u16,
    /// What happened, to what, and what to do now.
    detail: &'a str,
    /// The path that was asked for.
    instance: &'a str,
    /// The member, parameter or header that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<&'a str>,
}

/// A kind of problem: its stable name, its title and its status.
#[derive(Debug)]
struct Kind(&'static str, &'static str, StatusCode);

const MALFORMED: Kind = Kind("malformed", "The request cannot be read", StatusCode::BAD_REQUEST);
const UNAUTHORIZED: Kind = Kind("not-signed-in", "Not signed in", StatusCode::UNAUTHORIZED);
const FORBIDDEN: Kind = Kind("forbidden", "Not allowed", StatusCode::FORBIDDEN);
const NOT_FOUND: Kind = Kind("not-found", "Not found", StatusCode::NOT_FOUND);
const METHOD: Kind = Kind(
    "method-not-allowed",
    "Method not allowed",
    StatusCode::METHOD_NOT_ALLOWED,
);
const CONFLICT: Kind = Kind("conflict", "In conflict with what is", StatusCode::CONFLICT);
const STALE: Kind = Kind("stale", "Changed in between", StatusCode::PRECONDITION_FAILED);
const TOO_LARGE: Kind = Kind("too-large", "Too large", StatusCode::PAYLOAD_TOO_LARGE);
const MEDIA: Kind = Kind(
    "unsupported-media-type",
    "Unsupported media type",
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
);
const FIELD: Kind = Kind(
    "invalid-field",
    "A field is not acceptable",
    StatusCode::UNPROCESSABLE_ENTITY,
);
const TOO_MANY: Kind = Kind("too-many-attempts", "Too many attempts", StatusCode::TOO_MANY_REQUESTS);
const OVER_RATE: Kind = Kind("too-many-requests", "Too many requests", StatusCode::TOO_MANY_REQUESTS);
const TOO_SLOW: Kind = Kind("too-slow", "Too slow", StatusCode::REQUEST_TIMEOUT);
const INTERNAL: Kind = Kind("internal", "The gateway failed", StatusCode::INTERNAL_SERVER_ERROR);
const UNAVAILABLE: Kind = Kind("unavailable", "Not available now", StatusCode::SERVICE_UNAVAILABLE);

/// How PostgreSQL refuses a zero byte in a text, and in a JSON document.
const ZERO_BYTE: [SqlState; 2] = [
    SqlState::CHARACTER_NOT_IN_REPERTOIRE,
    SqlState::UNTRANSLATABLE_CHARACTER,
];
/// Seconds after which a client may try again what was not available.
const RETRY_AFTER_S: u32 = 5;

/// A refusal or a failure, on its way to a problem document.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: &'static Kind,
    pub detail: String,
    instance: String,
    pub field: Option<String>,
    retry_after_s: Option<u32>,
    allow: Option<&'static str>,
}

impl Problem {
    fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            kind,
            detail,
            instance: String::new(),
            field: None,
            retry_after_s: None,
            allow: None,
        }
    }

    /// With the path that was asked for.
    #[must_use]
    pub fn at(mut self, path: String) -> Self {
        self.instance = path;
        self
    }

    #[must_use]
    pub fn of(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(&FIELD, detail).of(field)
    }

    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(&MALFORMED, detail)
    }

    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(&UNAUTHORIZED, detail)
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(&FORBIDDEN, detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(&NOT_FOUND, detail)
    }

    pub fn method_not_allowed(methods: &'static str) -> Self {
        Self {
            allow: Some(methods),
            ..Self::new(&METHOD, format!("This path takes {methods}."))
        }
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(&CONFLICT, detail)
    }

    pub fn too_large(max_bytes: usize) -> Self {
        Self::new(&TOO_LARGE, format!("The body may have at most {max_bytes} bytes."))
    }

    pub fn not_json() -> Self {
        Self::new(&MEDIA, "Send the body as application/json.")
    }

    pub fn not_form() -> Self {
        Self::new(&MEDIA, "Send the body as application/x-www-form-urlencoded.")
    }

    pub fn too_many(retry_after_s: u64) -> Self {
        let detail = format!("Too many failed sign-ins. Try again in {retry_after_s} s.");
        let retry_after_s = Some(u32::try_from(retry_after_s).unwrap_or(u32::MAX));
        Self {
            retry_after_s,
            ..Self::new(&TOO_MANY, detail)
        }
    }

    pub fn over_rate(retry_after_s: u64) -> Self {
        let detail = format!("Too many requests of this account or address. Try again in {retry_after_s} s.");
        Self {
            retry_after_s: Some(u32::try_from(retry_after_s).unwrap_or(u32::MAX)),
            ..Self::new(&OVER_RATE, detail)
        }
    }

    pub fn too_slow(max_s: u64) -> Self {
        Self::new(
            &TOO_SLOW,
            format!("The body was not whole within {max_s} s. Send it again."),
        )
    }

    /// Asked too often, or too much at once.
    pub fn limited(detail: impl Into<String>, retry_after_s: u64) -> Self {
        let detail = format!("{} Try again in {retry_after_s} s.", detail.into());
        Self {
            retry_after_s: Some(u32::try_from(retry_after_s).unwrap_or(u32::MAX)),
            ..Self::new(&OVER_RATE, detail)
        }
    }

    pub fn too_many_streams(most: usize) -> Self {
        let detail = format!("Too many event streams are open: at most {most} of one person. Close one, or try later.");
        Self {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Self::new(&TOO_MANY, detail)
        }
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Self::new(&UNAVAILABLE, detail)
        }
    }

    fn internal(detail: impl Into<String>) -> Self {
        Self::new(&INTERNAL, detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.0, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind.2
    }

    fn error_response(&self) -> HttpResponse {
        let Kind(code, title, status) = self.kind;
        let mut response = HttpResponse::build(*status);
        response.content_type(MEDIA_TYPE);
        if *status == StatusCode::UNAUTHORIZED {
            response.insert_header((WWW_AUTHENTICATE, "Bearer realm=\"hoop\""));
        }
        if let Some(seconds) = self.retry_after_s {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if let Some(methods) = self.allow {
            response.insert_header((ALLOW, methods));
        }
        let document = Document {
            kind: format!("urn:hoop:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            instance: &self.instance,
            field: self.field.as_deref(),
        };
        response.body(serde_json::to_string(&document).unwrap_or_default())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what } => Self::not_found(format!("{what} does not exist.")),
            StoreError::Conflict { what } => Self::conflict(format!("{what} exists already.")),
            StoreError::Invalid { field, problem } => Self::field(field, format!("{field} {problem}.")),
            StoreError::Stale { what, version } => Self::new(
                &STALE,
                format!("{what} was changed in between and is version {version} now. Read it again."),
            ),
            StoreError::Unrecorded(why) => {
                tracing::error!(%why, "an administrative change was refused: it cannot be recorded");
                Self::internal("Nothing was changed: the change cannot be recorded. See the gateway's log.")
            }
            StoreError::Away(why) => {
                tracing::warn!(%why, "the store is away");
                Self::unavailable("The gateway's store does not answer. Try again.")
            }
            // paths and queries with one are refused before, so it is in the body
            StoreError::Query { source, .. } if source.code().is_some_and(|code| ZERO_BYTE.contains(code)) => {
                Self::field("body", "A text of the body has a zero byte in it. Remove it.")
            }
            other => {
                let source = std::error::Error::source(&other).map(ToString::to_string);
                tracing::error!(error = %other, source, "a request failed");
                Self::internal("The gateway's store failed. See the gateway's log.")
            }
        }
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        tracing::error!(%error, "a request failed");
        Self::internal("The gateway could not do this. See its log.")
    }
}

/// Sets of documented refusals, for `responses(…)`.
macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $($status:literal $text:literal),+;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                BTreeMap::from([$(($status.to_owned(), documented($status, $text))),+])
            }
        }
    )+};
}

refusals! {
    /// Of every request that must be signed in.
    Signed: "401" "Not signed in", "403" "The role does not allow it, or a browser's request may be forged", "429" "Too many requests", "500" "The gateway failed",
        "503" "The store is away";
    /// Of every request without a sign-in.
    Open: "429" "Too many requests", "500" "The gateway failed", "503" "The store is away";
    /// Of every request with a body.
    Bodied: "400" "Not JSON", "408" "Too slow", "413" "Too large", "415" "Not application/json",
        "422" "A member is unknown, missing or not acceptable";
    /// Of every route that answers a person with a page.
    Rated: "429" "Too many requests";
    /// Of every form that a page sends.
    Sent: "408" "Too slow", "429" "Too many requests";
    /// Of every list.
    Listed: "422" "A parameter is unknown or not acceptable";
    /// Of what must leave somebody to administer.
    Administered: "422" "Nobody would be left to administer";
    Missing: "404" "Not found";
    Taken: "409" "In conflict with what is";
    Versioned: "400" "If-Match cannot be read", "412" "Changed in between";
    /// Of what only our own pages may ask.
    Refused: "403" "Asked from a page of another site";
    Slowed: "429" "Too many attempts";
    Crowded: "429" "Too many at once";
    Throttled: "401" "Wrong user name or password", "429" "Too many attempts";
}

fn documented(status: &str, text: &str) -> RefOr<Response> {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    let mut response = ResponseBuilder::new().description(text).content(MEDIA_TYPE, content);
    if let Some((name, of)) = header_of(status) {
        response = response.header(name, of);
    }
    RefOr::T(response.build())
}

/// What goes along with a refusal of this status.
fn header_of(status: &str) -> Option<(&'static str, Header)> {
    let described = |kind, text| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(SchemaType::new(kind))))
            .description(Some(text))
            .build()
    };
    match status {
        "401" => Some(("WWW-Authenticate", described(Type::String, "RFC 6750"))),
        "429" | "503" => Some(("Retry-After", described(Type::Integer, "Seconds"))),
        _ => None,
    }
}
