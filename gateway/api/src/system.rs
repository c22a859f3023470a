//! What needs no sign-in: health, the CA's certificate, the description of the API.

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpResponse, get, web};

use crate::AppState;
use crate::caller::Caller;
use crate::control::Readiness;
use crate::problem::{Open, Problem, Signed};

/// The process is alive.
#[utoipa::path(tag = "health", responses((status = 200, description = "Alive", body = String, content_type = "text/plain")))]
#[get("/healthz")]
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("ok\n")
}

/// This replica's figures, in Prometheus's text format 0.0.4; for admins and auditors. Prometheus itself may rather be
/// given `metrics_listen`.
#[utoipa::path(
    tag = "health",
    responses((status = 200, description = "Figures", body = String, content_type = "text/plain"), Signed),
    security(("bearer" = []))
)]
#[get("/metrics")]
pub async fn metrics(caller: Caller) -> Result<HttpResponse, Problem> {
    caller.require_reader()?;
    let text = caller.state().control.metrics().await;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(text))
}

/// This replica can serve: its store, listeners and links.
#[utoipa::path(
    tag = "health",
    responses((status = 200, description = "Ready", body = Readiness), (status = 503, description = "Not ready", body = Readiness))
)]
#[get("/readyz")]
pub async fn readyz(state: web::Data<AppState>) -> HttpResponse {
    let readiness = state.control.ready().await;
    let mut response = if readiness.is_ready() {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response.json(readiness)
}

/// The certificate of the installation's CA, for `sslrootcert` and its like.
#[utoipa::path(
    tag = "installation",
    responses((status = 200, description = "PEM", body = String, content_type = "application/x-pem-file"), Open)
)]
#[get("/ca.pem")]
pub async fn ca_pem(state: web::Data<AppState>) -> HttpResponse {
    let pem = state.store.installation().ca.cert_pem();
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/x-pem-file"))
        .body(pem)
}

/// This description.
#[utoipa::path(tag = "installation", responses((status = 200, description = "OpenAPI 3.1", body = HashMap<String, serde_json::Value>), Open))]
#[get("/openapi.json")]
pub async fn openapi_json() -> HttpResponse {
    HttpResponse::Ok().json(crate::openapi::document())
}
