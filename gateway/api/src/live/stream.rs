//! `GET /api/events`: one listener's stream of server-sent events (HTML standard, "Server-sent events").

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderName;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, get};
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Audience, Numbered, Subscription};
use crate::caller::Caller;
use crate::page::query;
use crate::problem::{Crowded, Listed, Problem, Signed};

/// A comment goes out so often, and the listener's sign-in is looked at again.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// A listener that lost its stream comes back after this, in milliseconds.
const RETRY_MS: u32 = 2_000;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Where a stream goes on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "the description alone reads it")]
struct LastEventId {
    /// The id of the last event that was seen.
    #[param(rename = "Last-Event-ID", nullable = false)]
    last: Option<String>,
}

/// One event of the stream: OpenAPI before 3.2 describes each by the stream's schema.
#[derive(ToSchema)]
#[allow(dead_code, reason = "the description alone reads it")]
pub struct ServerSentEvent {
    #[schema(example = "session.started")]
    event: String,
    /// A JSON document.
    data: String,
    /// For `Last-Event-ID`; `resync` within a stream, and `end`, have none.
    #[schema(nullable = false)]
    id: Option<String>,
    /// Milliseconds; with the first event.
    #[schema(nullable = false)]
    retry: Option<u32>,
}

/// No parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

/// What happens, as it happens: server-sent events. Each person gets what they could read.
///
/// `session.started` and `session.ended` (data: the session), `agent.online` and `agent.offline` (`name`),
/// `resource.changed` (`kind` and `subject`, for admins and auditors), `access.changed` (for members: what they reach may
/// be another now). The first event is `ready`, or, where events since `Last-Event-ID` are not known any more, `resync`:
/// read again what is shown. A `resync` in the stream ends it, as does `end`: the sign-in is over.
#[utoipa::path(
    tag = "events",
    params(LastEventId),
    responses(
        (status = 200, description = "Events", body = ServerSentEvent, content_type = "text/event-stream"),
        Crowded, Listed, Signed
    ),
    security(("bearer" = []))
)]
#[get("/events")]
pub async fn live_events(request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let NoQuery {} = query(&request)?;
    let last = request
        .headers()
        .get(LAST_EVENT_ID)
        .map(|value| value.to_str().ok().and_then(parse_id).unwrap_or((Uuid::nil(), 0)));
    let state = caller.state();
    let subscription = state
        .live
        .subscribe(caller.user.id, last, &state.store, &state.control)
        .await?;
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((X_ACCEL_BUFFERING, "no"))
        .streaming(events(Listener::new(request, caller, subscription))))
}

struct Listener {
    /// Asks again who this is.
    request: HttpRequest,
    caller: Caller,
    subscription: Subscription,
    missed: VecDeque<Arc<Numbered>>,
    heartbeat: Interval,
    greeting: Option<String>,
    over: bool,
}

impl Listener {
    fn new(request: HttpRequest, caller: Caller, mut subscription: Subscription) -> Self {
        let missed = subscription.missed.take();
        let greeting = if missed.is_some() { "ready" } else { "resync" };
        let greeting = frame(Some((subscription.feed, subscription.at)), greeting, "{}");
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        Self {
            request,
            caller,
            subscription,
            missed: missed.unwrap_or_default().into(),
            heartbeat,
            greeting: Some(format!("retry: {RETRY_MS}\n{greeting}")),
            over: false,
        }
    }

    /// The next piece of the stream; `None` at its end.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => match self.wait().await {
                    Heard::Event(event) => event,
                    Heard::Nothing if !self.still_signed_in().await => return Some(self.end()),
                    Heard::Nothing if !self.subscription.seat.live.runs(self.subscription.feed) => {
                        self.over = true;
                        return Some(frame(None, "resync", "{}"));
                    }
                    Heard::Nothing => return Some(": \n\n".into()),
                    Heard::TooMuch => {
                        self.over = true;
                        return Some(frame(None, "resync", "{}"));
                    }
                    Heard::Closing => return None,
                },
            };
            if event.happened.changes_person == Some(self.caller.user.id) && !self.still_signed_in().await {
                return Some(self.end());
            }
            if self.may_read(event.happened.audience) {
                let id = (self.subscription.feed, event.number);
                return Some(frame(Some(id), event.happened.name, &event.happened.data));
            }
        }
    }

    async fn wait(&mut self) -> Heard {
        let Subscription { news, closing, .. } = &mut self.subscription;
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => Heard::Closing,
            heard = news.recv() => match heard {
                Ok(event) => Heard::Event(event),
                Err(RecvError::Lagged(_)) => Heard::TooMuch,
                Err(RecvError::Closed) => Heard::Closing,
            },
            _ = self.heartbeat.tick() => Heard::Nothing,
        }
    }

    fn may_read(&self, audience: Audience) -> bool {
        let user = &self.caller.user;
        match audience {
            Audience::Readers => self.caller.reads_all(),
            Audience::Owner(owner) => self.caller.reads_all() || owner == user.id,
            Audience::Member(None) => !self.caller.reads_all(),
            Audience::Member(Some(person)) => !self.caller.reads_all() && person == user.id,
        }
    }

    /// Asks as if the request came now; role and groups may be others. What cannot be asked counts as no. An open page is
    /// no use of a browser session, which goes idle behind it.
    async fn still_signed_in(&mut self) -> bool {
        match self.caller.again(&self.request).await {
            Ok(caller) if caller.user.id == self.caller.user.id => {
                self.caller = caller;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn end(&mut self) -> String {
        self.over = true;
        frame(None, "end", "{}")
    }
}

enum Heard {
    Event(Arc<Numbered>),
    Nothing,
    TooMuch,
    Closing,
}

fn events(listener: Listener) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(listener, |mut listener| async move {
        let piece = listener.next().await?;
        Some((Ok(Bytes::from(piece)), listener))
    })
}

fn frame(id: Option<(Uuid, u64)>, event: &str, data: &str) -> String {
    let id = id
        .map(|(feed, number)| format!("id: {feed}.{number}\n"))
        .unwrap_or_default();
    format!("{id}event: {event}\ndata: {data}\n\n")
}

fn parse_id(text: &str) -> Option<(Uuid, u64)> {
    let (feed, number) = text.trim().split_once('.')?;
    Some((Uuid::parse_str(feed).ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_was_given_is_understood() {
        let feed = Uuid::now_v7();
        let written = frame(Some((feed, 7)), "ready", "{}");
        assert_eq!(written, format!("id: {feed}.7\nevent: ready\ndata: {{}}\n\n"));
        assert_eq!(parse_id(&format!("{feed}.7")), Some((feed, 7)));
        assert_eq!(parse_id("nonsense"), None);
    }
}
