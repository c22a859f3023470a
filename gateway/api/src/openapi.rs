//! The OpenAPI description, made from the same routes that serve.

use std::sync::LazyLock;

use actix_web::App;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_actix_web::AppExt;

use crate::problem::Document;

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(make);

pub fn document() -> &'static OpenApi {
    &DOCUMENT
}

fn make() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Hoop")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Who may reach what, through which agent, and what was done there.",
        ))
        .build();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("From POST /api/login"))
        .build();
    let components = ComponentsBuilder::new()
        .security_scheme("bearer", SecurityScheme::Http(bearer))
        .schema(Document::name(), Document::schema())
        .build();
    let base = OpenApiBuilder::new().info(info).components(Some(components)).build();
    App::new()
        .into_utoipa_app()
        .openapi(base)
        .configure(crate::routes)
        .split_for_parts()
        .1
}
