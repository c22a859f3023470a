//! The OpenAPI description, made from the same routes that serve.

use std::sync::LazyLock;

use actix_web::App;
use utoipa::openapi::schema::ArrayItems;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, Schema};
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
    let cookie = ApiKey::Cookie(ApiKeyValue::with_description(
        "__Host-hoop_session",
        "From POST /api/login with hold = cookie. Requests that change something need the header X-CSRF-Token too, with \
         csrf_token of GET /api/session. Where public_url is http, the name has no __Host- in front.",
    ));
    let components = ComponentsBuilder::new()
        .security_scheme("bearer", SecurityScheme::Http(bearer))
        .security_scheme("cookie", SecurityScheme::ApiKey(cookie))
        .schema(Document::name(), Document::schema())
        .build();
    let base = OpenApiBuilder::new().info(info).components(Some(components)).build();
    let mut made = App::new()
        .into_utoipa_app()
        .openapi(base)
        .configure(crate::routes)
        .split_for_parts()
        .1;
    made.paths.paths.values_mut().for_each(take_cookies);
    if let Some(components) = &mut made.components {
        let pages = components.schemas.iter_mut();
        pages.for_each(|(name, schema)| refer_to_items(name, schema));
    }
    made
}

/// A page's items by their name, where utoipa writes them out once more.
fn refer_to_items(name: &str, schema: &mut RefOr<Schema>) {
    if let Some(item) = name.strip_prefix("Page_")
        && let RefOr::T(Schema::Object(page)) = schema
        && let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items")
    {
        items.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(item).into()));
    }
}

/// Whatever takes a bearer token takes a session's cookie.
fn take_cookies(path: &mut PathItem) {
    let methods = [&mut path.get, &mut path.post, &mut path.put, &mut path.delete];
    for operation in methods.into_iter().flatten() {
        if let Some(ways) = &mut operation.security {
            ways.push(SecurityRequirement::new("cookie", Vec::<String>::new()));
        }
    }
}
