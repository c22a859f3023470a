//! The API's description as a page, made from the OpenAPI document once a process. It has no script and loads nothing
//! but its own style sheet.

use std::fmt::Write as _;
use std::sync::LazyLock;

use actix_web::http::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use actix_web::{HttpResponse, get};
use serde_json::{Map, Value};

use crate::problem::Open;

const STYLE: &str = include_str!("docs.css");
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let document = serde_json::to_value(crate::openapi::document()).unwrap_or_default();
    page(&document)
});

/// This description, to read.
#[utoipa::path(
    tag = "installation",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"), Open)
)]
#[get("/docs")]
pub async fn docs() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .content_type("text/html; charset=utf-8")
        .body(PAGE.as_str())
}

/// The page's style sheet.
#[utoipa::path(
    tag = "installation",
    responses((status = 200, description = "A style sheet", body = String, content_type = "text/css"), Open)
)]
#[get("/docs.css")]
pub async fn style() -> HttpResponse {
    HttpResponse::Ok().content_type("text/css; charset=utf-8").body(STYLE)
}

fn page(document: &Value) -> String {
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Hoop API</title>\
         <link rel=\"stylesheet\" href=\"docs.css\"><body><header><h1>Hoop API</h1>",
    );
    let version = text(document, "/info/version");
    let about = text(document, "/info/description");
    let _infallible = write!(
        out,
        "<p>{about}</p><p>Version {version}. For machines: <a href=\"openapi.json\">openapi.json</a></p></header><main>"
    );
    let mut tag = String::new();
    for (path, method, operation) in operations(document) {
        let of = text(operation, "/tags/0");
        if of != tag {
            let _infallible = write!(out, "<h2>{of}</h2>");
            tag = of;
        }
        describe(&mut out, &path, method, operation);
    }
    out.push_str("<h2>Schemas</h2>");
    for (name, schema) in members(document, "/components/schemas") {
        let name = escaped(name);
        let _infallible = write!(out, "<details id=\"{name}\"><summary><code>{name}</code></summary>");
        code(&mut out, schema);
        out.push_str("</details>");
    }
    out.push_str("</main></body></html>");
    out
}

/// Path, method and operation, those of a tag together.
fn operations(document: &Value) -> Vec<(String, &str, &Value)> {
    let mut all = Vec::new();
    for (path, item) in members(document, "/paths") {
        for (method, operation) in item.as_object().into_iter().flatten() {
            all.push((escaped(path), method.as_str(), operation));
        }
    }
    all.sort_by_cached_key(|(path, method, operation)| {
        (text(operation, "/tags/0"), path.clone(), (*method).to_owned())
    });
    all
}

fn describe(out: &mut String, path: &str, method: &str, operation: &Value) {
    let (summary, more) = (text(operation, "/summary"), text(operation, "/description"));
    let shown = method.to_uppercase();
    let _infallible = write!(
        out,
        "<details class=\"{method}\"><summary><b>{shown}</b> <code>{path}</code> {summary}</summary><p>{more}</p>"
    );
    let parameters = operation.get("parameters").and_then(Value::as_array);
    if let Some(parameters) = parameters.filter(|all| !all.is_empty()) {
        out.push_str("<h3>Parameters</h3><dl>");
        for parameter in parameters {
            let (name, place) = (text(parameter, "/name"), text(parameter, "/in"));
            let about = text(parameter, "/description");
            let _infallible = write!(out, "<dt><code>{name}</code> ({place})</dt><dd>{about}");
            code(out, parameter.get("schema").unwrap_or(&Value::Null));
            out.push_str("</dd>");
        }
        out.push_str("</dl>");
    }
    if let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema") {
        out.push_str("<h3>Body</h3>");
        code(out, schema);
    }
    out.push_str("<h3>Answers</h3><dl>");
    for (status, response) in members(operation, "/responses") {
        let about = text(response, "/description");
        let _infallible = write!(out, "<dt><code>{}</code></dt><dd>{about}", escaped(status));
        if let Some(schema) = response.pointer("/content/application~1json/schema") {
            code(out, schema);
        }
        out.push_str("</dd>");
    }
    out.push_str("</dl></details>");
}

/// A schema: its name where it has one, else as JSON.
fn code(out: &mut String, schema: &Value) {
    let named = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|to| to.rsplit('/').next());
    let _infallible = match named {
        Some(name) => write!(out, "<p><a href=\"#{0}\"><code>{0}</code></a></p>", escaped(name)),
        None if schema.is_null() => Ok(()),
        None => {
            let json = serde_json::to_string_pretty(schema).unwrap_or_default();
            write!(out, "<pre>{}</pre>", escaped(&json))
        }
    };
}

fn members<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value
        .pointer(pointer)
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
}

fn text(value: &Value, pointer: &str) -> String {
    escaped(value.pointer(pointer).and_then(Value::as_str).unwrap_or_default())
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_document_says_is_text_on_the_page() {
        let hostile = "\"><script>alert(1)</script>";
        let document = json!({
            "info": {"description": hostile, "version": hostile},
            "paths": {hostile: {"get": {"tags": [hostile], "summary": hostile, "description": hostile,
                "parameters": [{"name": hostile, "in": "query", "schema": {"pattern": hostile}}],
                "responses": {hostile: {"description": hostile}}}}},
            "components": {"schemas": {hostile: {"type": hostile}}},
        });
        let page = page(&document);
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn every_operation_and_schema_is_on_the_page() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        for (path, item) in members(&document, "/paths") {
            for method in item.as_object().unwrap().keys() {
                let shown = format!("<b>{}</b> <code>{path}</code>", method.to_uppercase());
                assert!(PAGE.contains(&shown), "{shown}");
            }
        }
        for (name, _) in members(&document, "/components/schemas") {
            assert!(PAGE.contains(&format!("id=\"{name}\"")), "{name}");
        }
    }
}
