//! Spans as OTLP writes them in JSON (opentelemetry-proto 1.x, `ExportTraceServiceRequest`): ids in hexadecimal, 64-bit
//! numbers as text.

use std::time::UNIX_EPOCH;

use serde_json::{Value as Json, json};

use super::{Span, Value};

/// Who speaks.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub instance: String,
}

/// One request of spans.
pub(super) fn request(resource: &Resource, spans: &[Span]) -> Json {
    let text = |text: &str| Value::Text(text.to_owned());
    let resource = [
        ("service.name", text("hoop-gateway")),
        ("service.version", text(env!("CARGO_PKG_VERSION"))),
        ("service.instance.id", text(&resource.instance)),
    ];
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(&resource)},
        "scopeSpans": [{"scope": {"name": "hoop"}, "spans": spans.iter().map(span).collect::<Vec<_>>()}],
    }]})
}

fn span(span: &Span) -> Json {
    let began = span.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut out = json!({
        "traceId": hex::encode(span.trace),
        "spanId": hex::encode(span.id),
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": began.as_nanos().to_string(),
        "endTimeUnixNano": (began + span.took).as_nanos().to_string(),
        "attributes": attributes(&span.attributes),
        "status": if span.failed { json!({"code": 2}) } else { json!({}) },
    });
    if let Some(members) = out.as_object_mut() {
        if let Some(parent) = span.parent {
            members.insert("parentSpanId".into(), hex::encode(parent).into());
        }
        if let Some((trace, id)) = span.link {
            let link = json!({"traceId": hex::encode(trace), "spanId": hex::encode(id)});
            members.insert("links".into(), json!([link]));
        }
    }
    out
}

fn attributes(attributes: &[(&'static str, Value)]) -> Vec<Json> {
    let attribute = |(key, value): &(&'static str, Value)| {
        let value = match value {
            Value::Text(text) => json!({ "stringValue": text }),
            Value::Number(number) => json!({"intValue": number.to_string()}),
        };
        json!({"key": key, "value": value})
    };
    attributes.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Kind;
    use super::*;

    #[test]
    fn a_span_is_written_as_the_standard_says() {
        let written = request(
            &Resource { instance: "r".into() },
            &[Span {
                trace: [1; 16],
                id: [2; 8],
                parent: Some([3; 8]),
                link: Some(([4; 16], [5; 8])),
                name: "login".into(),
                kind: Kind::Internal,
                began: UNIX_EPOCH + Duration::from_nanos(10),
                took: Duration::from_nanos(5),
                attributes: vec![("http.response.status_code", Value::Number(200))],
                failed: true,
            }],
        );
        let span = &written["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(
            *span,
            json!({
                "traceId": "01010101010101010101010101010101", "spanId": "0202020202020202",
                "parentSpanId": "0303030303030303", "name": "login", "kind": 1,
                "startTimeUnixNano": "10", "endTimeUnixNano": "15", "status": {"code": 2},
                "attributes": [{"key": "http.response.status_code", "value": {"intValue": "200"}}],
                "links": [{"traceId": "04040404040404040404040404040404", "spanId": "0505050505050505"}],
            })
        );
    }
}
