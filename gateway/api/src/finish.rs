//! The last hand on every response: which path a problem speaks of, and headers that keep browsers careful.

use std::sync::LazyLock;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ResourceDef, ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::middleware::Next;
use actix_web::{Error, HttpRequest, HttpResponse, ResponseError, web};
use utoipa::openapi::PathItem;

use crate::AppState;
use crate::client_address::client_address;
use crate::control::Answered;
use crate::openapi;
use crate::problem::Problem;

/// Longest path that is repeated in a problem.
const INSTANCE_MAX_CHARS: usize = 256;

/// Probes and scrapes: not held to a rate, for others decide by them whether this replica lives, and not in the figures.
const EXEMPT: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Middleware of the whole server.
pub async fn finish(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let began = Instant::now();
    let mut response = match over_rate(&request).or_else(|| no_text(&request)) {
        Some(problem) => {
            let (request, _body) = request.into_parts();
            refusal(request, problem)
        }
        None => answered(request, next).await?,
    };
    observe(&response, began);
    let https = response
        .request()
        .app_data::<web::Data<AppState>>()
        .is_some_and(|state| state.public_url.starts_with("https://"));
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        // a route's own word counts
        if !headers.contains_key(&name) {
            headers.insert(name, value);
        }
    }
    if https {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    Ok(response)
}

/// A path that is no text, or has a zero byte in it, names nothing that there is.
fn no_text(request: &ServiceRequest) -> Option<Problem> {
    (!is_text(request.path())).then(|| Problem::not_found("There is nothing at this path: it is no text."))
}

fn is_text(path: &str) -> bool {
    let (mut rest, mut bytes) = (path, Vec::with_capacity(path.len()));
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let byte = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(b'%'));
        rest = if byte.is_some() {
            after.get(2..).unwrap_or_default()
        } else {
            after
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    !bytes.contains(&0) && std::str::from_utf8(&bytes).is_ok()
}

/// Asked before anything else of a request is looked at.
fn over_rate(request: &ServiceRequest) -> Option<Problem> {
    if EXEMPT.contains(&request.path()) {
        return None;
    }
    let state = request.app_data::<web::Data<AppState>>()?;
    let address = client_address(request.request(), &state.trusted_proxies)?;
    let counted = state.limiter.address(address, Instant::now());
    counted.err().map(Problem::over_rate)
}

async fn answered(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let response = next.call(request).await?;
    let error = response.response().error();
    let problem = error.and_then(|e| e.as_error::<Problem>()).cloned();
    let response = response.map_into_boxed_body();
    Ok(match problem {
        Some(problem) => refusal(response.into_parts().0, problem),
        None => response,
    })
}

fn refusal(request: HttpRequest, problem: Problem) -> ServiceResponse<BoxBody> {
    let body = problem.at(instance(&request)).error_response();
    ServiceResponse::new(request, body)
}

fn observe(response: &ServiceResponse<BoxBody>, began: Instant) {
    let request = response.request();
    if EXEMPT.contains(&request.path()) {
        return;
    }
    let Some(state) = request.app_data::<web::Data<AppState>>() else {
        return;
    };
    let route = request.match_pattern();
    let traceparent = request.headers().get(TRACEPARENT);
    state.control.answered(&Answered {
        method: request.method().as_str(),
        route: route.as_deref(),
        status: response.status().as_u16(),
        took: began.elapsed(),
        traceparent: traceparent.and_then(|value| value.to_str().ok()),
    });
}

struct Route {
    path: ResourceDef,
    methods: String,
}

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let route = |(path, item): (&String, &PathItem)| {
        let methods = [
            ("GET", &item.get),
            ("POST", &item.post),
            ("PUT", &item.put),
            ("DELETE", &item.delete),
        ];
        let methods: Vec<&str> = methods
            .into_iter()
            .filter(|(_, o)| o.is_some())
            .map(|(m, _)| m)
            .collect();
        Route {
            path: ResourceDef::new(path.as_str()),
            methods: methods.join(", "),
        }
    };
    openapi::document().paths.paths.iter().map(route).collect()
});

/// 405 where the path has other methods, else 404.
pub async fn no_such_route(request: HttpRequest) -> HttpResponse {
    let route = ROUTES.iter().find(|route| route.path.is_match(request.path()));
    let nothing = || Problem::not_found("There is nothing at this path. GET /api/openapi.json lists what there is.");
    let problem = route.map_or_else(nothing, |route| Problem::method_not_allowed(&route.methods));
    problem.at(instance(&request)).error_response()
}

fn instance(request: &HttpRequest) -> String {
    request.path().chars().take(INSTANCE_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_text_when_its_bytes_are() {
        for text in ["/", "/api/users/%C3%A4", "/a%", "/a%2", "/a%zz", "/%25%2F"] {
            assert!(is_text(text), "{text}");
        }
        for other in ["/%00", "/a%00b", "/%ff", "/%C3", "/%c3%28"] {
            assert!(!is_text(other), "{other}");
        }
    }
}
