//! Every error of the API: an RFC 9457 problem document whose text names the field and the remedy, and no secret.

use std::collections::BTreeMap;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use hoop_store::StoreError;
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::control::ControlError;

/// RFC 9457 §3.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A problem document (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// A stable name for the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "urn:hoop:problem:invalid-field")]
    pub kind: String,
    pub title: &'static str,
    pub status: u16,
    /// What happened, to what, and what to do now.
    pub detail: String,
    /// The path that was asked for.
    pub instance: String,
    /// The member, parameter or header that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
    #[serde(skip)]
    pub allow: Option<String>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:hoop:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            instance: String::new(),
            field: None,
            retry_after_s: None,
            allow: None,
        }
    }

    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        path.clone_into(&mut self.instance);
        self
    }

    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-field", "A field is not acceptable", detail);
        problem.field = Some(field.into());
        problem
    }

    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "The request cannot be read", detail)
    }

    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "not-signed-in", "Not signed in", detail)
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "In conflict with what is", detail)
    }

    pub fn too_many(retry_after_s: u64) -> Self {
        let detail = format!("Too many failed sign-ins. Try again in {retry_after_s} s.");
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-attempts", "Too many attempts", detail);
        problem.retry_after_s = Some(retry_after_s);
        problem
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        let title = "Not available now";
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", title, detail);
        problem.retry_after_s = Some(5);
        problem
    }

    fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The gateway failed", detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.content_type(MEDIA_TYPE);
        if self.status == StatusCode::UNAUTHORIZED.as_u16() {
            response.insert_header((WWW_AUTHENTICATE, "Bearer realm=\"hoop\""));
        }
        if let Some(seconds) = self.retry_after_s {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
        }
        if let Some(methods) = &self.allow {
            response.insert_header((ALLOW, methods.as_str()));
        }
        response.body(serde_json::to_string(self).unwrap_or_default())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what } => Self::not_found(format!("{what} does not exist.")),
            StoreError::Conflict { what } => Self::conflict(format!("{what} exists already.")),
            StoreError::Invalid { field, problem } => Self::field(field, format!("{field} {problem}.")),
            StoreError::Stale { what, version } => {
                let detail = format!("{what} was changed in between and is version {version} now. Read it again.");
                Self::new(StatusCode::PRECONDITION_FAILED, "stale", "Changed in between", detail)
            }
            StoreError::Unrecorded(why) => {
                tracing::error!(%why, "an administrative change was refused: it cannot be recorded");
                Self::internal("Nothing was changed: the change cannot be recorded. See the gateway's log.")
            }
            StoreError::Away(why) => {
                tracing::warn!(%why, "the store is away");
                Self::unavailable("The gateway's store does not answer. Try again.")
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
                BTreeMap::from([$(($status.to_owned(), documented($text))),+])
            }
        }
    )+};
}

refusals! {
    /// Of every request that must be signed in.
    Signed: "401" "Not signed in", "403" "The role does not allow it", "500" "The gateway failed",
        "503" "The store is away";
    /// Of every request without a sign-in.
    Open: "500" "The gateway failed", "503" "The store is away";
    /// Of every request with a body.
    Bodied: "400" "Not JSON", "413" "Too large", "415" "Not application/json",
        "422" "A member is unknown, missing or not acceptable";
    /// Of every list.
    Listed: "422" "A parameter is unknown or not acceptable";
    Missing: "404" "Not found";
    Taken: "409" "In conflict with what is";
    Versioned: "400" "If-Match cannot be read", "412" "Changed in between";
    Throttled: "401" "Wrong user name or password", "429" "Too many attempts";
}

fn documented(text: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    RefOr::T(ResponseBuilder::new().description(text).content(MEDIA_TYPE, content).build())
}
