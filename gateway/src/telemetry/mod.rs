//! Traces for an OpenTelemetry collector: off where `otlp_endpoint` is not set, and free of cost then.
//!
//! A session is one trace: `login`, `authorise`, `dispatch`, `target_login` below `session`. A request to the API is one
//! span; a caller's `traceparent` is only linked to, for a stranger's word must not name our traces.
//! INVARIANT: no statement, no value that somebody sent and no secret is in a span; names of connections are.

mod exporter;
mod otlp;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hoop_actors::metrics::Counter;
use hoop_api::control::Answered;
use hoop_proto::end::End;
use rand::Rng;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub use self::exporter::begin;

/// Spans that wait to be sent; more are dropped, and counted.
const QUEUE_SPANS: usize = 4096;

pub static SPANS_EXPORTED: Counter = Counter::new();
pub static SPANS_DROPPED: Counter = Counter::new();

/// Of a span, and whether somebody called or was called (OTLP `SpanKind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Internal = 1,
    Server = 2,
}

/// A finished span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub link: Option<([u8; 16], [u8; 8])>,
    pub name: String,
    pub kind: Kind,
    pub began: SystemTime,
    pub took: Duration,
    pub attributes: Vec<(&'static str, Value)>,
    pub failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

enum Item {
    Span(Box<Span>),
    Flush(oneshot::Sender<()>),
}

/// Where spans go. Cheap to clone.
#[derive(Clone, Default)]
pub struct Telemetry(Option<Arc<mpsc::Sender<Item>>>);

impl Telemetry {
    /// What is under way is sent, if the collector takes it in time.
    pub async fn flush(&self) {
        if let Some(queue) = &self.0 {
            let (done, flushed) = oneshot::channel();
            if queue.send(Item::Flush(done)).await.is_ok() {
                // an exporter that is gone has nothing to send
                drop(flushed.await);
            }
        }
    }

    /// A session's trace, which began a while ago.
    #[must_use]
    pub fn session(&self, began: Instant) -> SessionTrace {
        SessionTrace(self.0.is_some().then(|| {
            Box::new(Begun {
                telemetry: self.clone(),
                trace: random(),
                root: random(),
                began,
                attributes: Vec::new(),
                end: None,
            })
        }))
    }

    /// The API has answered.
    pub fn answered(&self, answered: &Answered<'_>) {
        if self.0.is_none() {
            return;
        }
        let route = answered.route.unwrap_or("unmatched");
        let text = |text: &str| Value::Text(text.to_owned());
        self.send(Span {
            trace: random(),
            id: random(),
            parent: None,
            link: answered.traceparent.and_then(traceparent),
            name: format!("{} {route}", answered.method),
            kind: Kind::Server,
            began: SystemTime::now().checked_sub(answered.took).unwrap_or(UNIX_EPOCH),
            took: answered.took,
            attributes: vec![
                ("http.request.method", text(answered.method)),
                ("http.route", text(route)),
                ("http.response.status_code", Value::Number(answered.status.into())),
            ],
            failed: answered.status >= 500,
        });
    }

    fn send(&self, span: Span) {
        let Some(queue) = &self.0 else { return };
        if queue.try_send(Item::Span(Box::new(span))).is_err() {
            SPANS_DROPPED.inc();
        }
    }
}

/// One session's trace, none by default; the `session` span is sent when this is dropped, however that comes.
#[derive(Default)]
pub struct SessionTrace(Option<Box<Begun>>);

struct Begun {
    telemetry: Telemetry,
    trace: [u8; 16],
    root: [u8; 8],
    began: Instant,
    attributes: Vec<(&'static str, Value)>,
    end: Option<End>,
}

impl SessionTrace {
    /// A step that is over now.
    pub fn step(&self, name: &'static str, began: Instant, failed: bool) {
        let Some(begun) = &self.0 else { return };
        begun.telemetry.send(Span {
            trace: begun.trace,
            id: random(),
            parent: Some(begun.root),
            link: None,
            name: name.to_owned(),
            kind: Kind::Internal,
            began: moment(began),
            took: began.elapsed(),
            attributes: Vec::new(),
            failed,
        });
    }

    /// Which session this is.
    pub fn is(&mut self, session: Uuid, protocol: &str, connection: &str) {
        if let Some(begun) = &mut self.0 {
            let text = |text: &str| Value::Text(text.to_owned());
            begun.attributes.extend([
                ("hoop.session.id", Value::Text(session.to_string())),
                ("hoop.protocol", text(protocol)),
                ("hoop.connection", text(connection)),
            ]);
        }
    }

    pub fn ends(&mut self, end: End) {
        if let Some(begun) = &mut self.0 {
            begun.end = Some(end);
        }
    }
}

impl Drop for SessionTrace {
    fn drop(&mut self) {
        let Some(begun) = self.0.take() else { return };
        let end = begun.end.unwrap_or(End::Internal);
        let mut attributes = begun.attributes;
        attributes.push(("hoop.end", Value::Text(end.code().to_owned())));
        begun.telemetry.send(Span {
            trace: begun.trace,
            id: begun.root,
            parent: None,
            link: None,
            name: "session".to_owned(),
            kind: Kind::Server,
            began: moment(begun.began),
            took: begun.began.elapsed(),
            attributes,
            failed: !matches!(end, End::ClientClosed | End::TargetClosed | End::Shutdown),
        });
    }
}

fn moment(began: Instant) -> SystemTime {
    SystemTime::now().checked_sub(began.elapsed()).unwrap_or(UNIX_EPOCH)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// W3C Trace Context, `traceparent` version 00: `00-<trace>-<parent>-<flags>`.
fn traceparent(text: &str) -> Option<([u8; 16], [u8; 8])> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != "00" || flags.len() != 2 || parts.next().is_some() {
        return None;
    }
    let trace: [u8; 16] = hex::decode(trace).ok()?.try_into().ok()?;
    let parent: [u8; 8] = hex::decode(parent).ok()?.try_into().ok()?;
    (trace != [0; 16] && parent != [0; 8]).then_some((trace, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_trace_is_read_as_its_standard_writes_it() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            traceparent(good).map(|(_, parent)| hex::encode(parent)),
            Some("00f067aa0ba902b7".into())
        );
        for bad in [
            "",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(traceparent(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_drops_spans_and_waits_for_nobody() {
        let (queue, mut kept) = mpsc::channel(1);
        let telemetry = Telemetry(Some(Arc::new(queue)));
        let before = SPANS_DROPPED.get();
        let mut trace = telemetry.session(Instant::now());
        trace.step("login", Instant::now(), false);
        trace.step("authorise", Instant::now(), false);
        trace.ends(End::ClientClosed);
        drop(trace);
        assert_eq!(SPANS_DROPPED.get() - before, 2);
        let Some(Item::Span(span)) = kept.recv().await else {
            panic!("no span")
        };
        assert_eq!(span.name, "login");
    }

    #[test]
    fn nothing_is_made_where_there_is_no_collector() {
        let trace = Telemetry::default().session(Instant::now());
        assert!(trace.0.is_none());
    }
}
