//! Bounded, strict JSON bodies. Read after the caller is known, so that a stranger cannot make the gateway parse.
//!
//! INVARIANT: no value of a body occurs in an error: a password in the wrong place must not come back.

use std::time::Duration;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{FromRequest, HttpRequest, dev, web};
use futures_util::StreamExt;
use futures_util::future::{Ready, ready};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;
use zeroize::Zeroizing;

use crate::problem::Problem;

/// Largest body of a request.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// Largest body of a request that may hold a CA bundle.
pub const CA_BODY_MAX_BYTES: usize = 1024 * 1024;

/// Longest wait for a whole body, in seconds.
pub const BODY_TIMEOUT_S: u64 = 30;

/// A request's body, not yet read.
pub struct Body {
    payload: dev::Payload,
    is_json: bool,
    is_form: bool,
}

impl FromRequest for Body {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let content_type = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let is_json = media_type.eq_ignore_ascii_case("application/json");
        ready(Ok(Self {
            payload: payload.take(),
            is_json,
            is_form: media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded"),
        }))
    }
}

impl Body {
    /// The body as `T`, whose unknown members are refused where `T` says so.
    pub async fn json<T: DeserializeOwned>(self, max_bytes: usize) -> Result<T, Problem> {
        self.within(max_bytes, Duration::from_secs(BODY_TIMEOUT_S)).await
    }

    async fn within<T: DeserializeOwned>(self, max_bytes: usize, wait: Duration) -> Result<T, Problem> {
        if !self.is_json {
            return Err(Problem::not_json());
        }
        parse(&self.whole(max_bytes, wait).await?)
    }

    /// The body of a page's form as `T`.
    pub async fn form<T: DeserializeOwned>(self, max_bytes: usize) -> Result<T, Problem> {
        if !self.is_form {
            return Err(Problem::not_form());
        }
        let bytes = self.whole(max_bytes, Duration::from_secs(BODY_TIMEOUT_S)).await?;
        let unreadable = || Problem::malformed("The form cannot be read: a field is missing, twice there or not text.");
        let text = std::str::from_utf8(&bytes).map_err(|_| unreadable())?;
        let form = web::Query::<T>::from_query(text).map_err(|_| unreadable())?;
        Ok(form.into_inner())
    }

    async fn whole(mut self, max_bytes: usize, wait: Duration) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let read = tokio::time::timeout(wait, self.read(max_bytes)).await;
        read.map_err(|_| Problem::too_slow(wait.as_secs()))?
    }

    async fn read(&mut self, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(chunk) = self.payload.next().await {
            let chunk = chunk.map_err(|_| Problem::malformed("The body broke off."))?;
            if bytes.len().saturating_add(chunk.len()) > max_bytes {
                return Err(Problem::too_large(max_bytes));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would take an array for a struct.
    if bytes.trim_ascii_start().first().is_some_and(|b| *b != b'{') {
        return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Ok(_) => Problem::field("body", "The body must be a JSON object."),
            Err(e) => Problem::malformed(format!(
                "The body is not JSON: line {}, column {}.",
                e.line(),
                e.column()
            )),
        });
    }
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let place = format!("line {}, column {}", error.line(), error.column());
    match error.classify() {
        Category::Data => Err(member(&error.to_string(), bytes, &place, |v| {
            serde_json::from_value::<T>(v).err()
        })),
        Category::Eof => Err(Problem::malformed("The body is not whole JSON: it ends too early.")),
        Category::Io | Category::Syntax => Err(Problem::malformed(format!("The body is not JSON: {place}."))),
    }
}

/// The problem of a body that is JSON but not of the right shape, naming the member.
fn member(message: &str, bytes: &[u8], place: &str, try_again: impl Fn(Value) -> Option<serde_json::Error>) -> Problem {
    let quoted = |prefix: &str| {
        let rest = message.strip_prefix(prefix)?.strip_prefix(" `")?;
        Some(rest.split_once('`')?.0.to_owned())
    };
    if let Some(name) = quoted("unknown field") {
        let name = name.chars().take(64).collect::<String>();
        return Problem::field(name.clone(), format!("The member {name} is not known here. Remove it."));
    }
    if let Some(name) = quoted("missing field") {
        return Problem::field(name.clone(), format!("The member {name} is missing."));
    }
    if let Some(name) = quoted("duplicate field") {
        return Problem::field(name.clone(), format!("The member {name} is there twice."));
    }
    // What follows the last "expected" comes from our types, never from the body.
    let expected = message
        .rsplit_once(", expected ")
        .map_or("another value", |(_, expected)| expected);
    let expected = expected.split(" at line ").next().unwrap_or(expected);
    let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(bytes) else {
        return Problem::malformed("The body must be a JSON object.");
    };
    let Some(first) = try_again(Value::Object(members.clone())).map(|e| e.to_string()) else {
        return Problem::malformed(format!("The body is not acceptable at {place}."));
    };
    // The member without which the error is another one is the one that is wrong.
    let culprit = members.keys().find(|name| {
        let mut without = members.clone();
        without.remove(*name);
        try_again(Value::Object(without)).is_none_or(|e| e.to_string() != first)
    });
    let mut problem = Problem::field("body", format!("Expected {expected} at {place}."));
    if let Some(name) = culprit {
        problem = Problem::field(name.clone(), format!("The member {name} must be {expected}."));
    }
    problem
}

#[cfg(test)]
mod tests {
    use actix_web::ResponseError;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Small {
        name: String,
        #[serde(default)]
        port: u16,
        #[serde(default)]
        secret: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    #[allow(dead_code)]
    enum Inner {
        Value(String),
    }

    fn refused(text: &str) -> (u16, Option<String>) {
        let problem = parse::<Small>(text.as_bytes()).unwrap_err();
        assert!(!problem.detail.contains("hunter2"), "{}", problem.detail);
        (problem.status_code().as_u16(), problem.field)
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let body = Body {
            payload: dev::Payload::Stream {
                payload: Box::pin(futures_util::stream::pending()),
            },
            is_json: true,
            is_form: false,
        };
        let problem = body.within::<Small>(BODY_MAX_BYTES, Duration::ZERO).await.unwrap_err();
        assert_eq!(problem.status_code().as_u16(), 408);
    }

    #[test]
    fn a_refusal_names_the_member_and_repeats_no_value() {
        assert_eq!(
            refused(r#"{"name":"a","extra":"hunter2"}"#),
            (422, Some("extra".into()))
        );
        assert_eq!(refused(r#"{"port":1}"#), (422, Some("name".into())));
        assert_eq!(refused(r#"{"name":"a","name":"b"}"#), (422, Some("name".into())));
        assert_eq!(
            refused(r#"{"name":"a","port":"hunter2, expected hunter2"}"#),
            (422, Some("port".into()))
        );
        assert_eq!(refused(r#"{"name":"a","port":70000}"#), (422, Some("port".into())));
        assert_eq!(
            refused(r#"{"name":"a","secret":"hunter2"}"#),
            (422, Some("secret".into()))
        );
        assert_eq!(
            refused(r#"{"name":"a","secret":{"hunter2":"x"}}"#),
            (422, Some("secret".into()))
        );
        assert_eq!(refused("[]").0, 422);
        assert_eq!(refused(r#"["hunter2"]"#).0, 422);
        assert_eq!(refused("\"hunter2\"").0, 422);
        assert_eq!(refused("{").0, 400);
        assert_eq!(refused("{hunter2").0, 400);
    }
}
