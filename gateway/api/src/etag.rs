//! Versions as entity tags: what was read can be changed only where nobody else changed it in between.

use actix_web::HttpRequest;
use actix_web::http::header::IF_MATCH;
use utoipa::IntoParams;

use crate::problem::Problem;

/// Describes what `if_match` reads.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "the description alone reads it")]
pub struct IfMatch {
    /// Only where it still has this ETag.
    #[param(rename = "If-Match", nullable = false, pattern = r#"^("[0-9]{1,18}"|\*)$"#)]
    if_match: Option<String>,
}

pub fn etag(version: i64) -> String {
    format!("\"{version}\"")
}

/// RFC 9110 §13.1.1, with one strong tag or `*`.
pub fn if_match(request: &HttpRequest) -> Result<Option<i64>, Problem> {
    let Some(value) = request.headers().get(IF_MATCH) else {
        return Ok(None);
    };
    let value = value.to_str().unwrap_or_default().trim();
    if value == "*" {
        return Ok(None);
    }
    let version = value
        .strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .and_then(|v| v.parse().ok());
    version.map(Some).ok_or_else(|| {
        Problem::malformed("If-Match must be the ETag that was read, in its quotes, or *.").of("If-Match")
    })
}
