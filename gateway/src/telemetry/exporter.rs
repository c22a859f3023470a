//! Sends spans to the collector in batches: OTLP over HTTP in JSON. A batch that is not taken is dropped and counted;
//! nothing in the gateway ever waits for a collector.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::CONTENT_TYPE;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::otlp::{Resource, request};
use super::{Item, QUEUE_SPANS, SPANS_DROPPED, SPANS_EXPORTED, Span, Telemetry};

/// Spans of one request at most.
const BATCH_SPANS: usize = 512;
/// Spans wait so long for others.
const BATCH_AGE: Duration = Duration::from_secs(1);
/// Longest that the collector may take for a batch.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is said that the collector takes nothing.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Begins to export from this thread. `endpoint` is the collector's base URL, without `/v1/traces`.
///
/// # Errors
/// Where no HTTP client can be made.
pub fn begin(endpoint: Option<&str>, replica: Uuid) -> Result<Telemetry> {
    let Some(endpoint) = endpoint else {
        return Ok(Telemetry::default());
    };
    let client = reqwest::Client::builder()
        .timeout(SEND_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("cannot make a client for otlp_endpoint")?;
    let (queue, items) = mpsc::channel(QUEUE_SPANS);
    let exporter = Exporter {
        client,
        url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
        resource: Resource {
            instance: replica.to_string(),
        },
        warned: None,
    };
    actix_rt::spawn(exporter.run(items));
    Ok(Telemetry(Some(Arc::new(queue))))
}

struct Exporter {
    client: reqwest::Client,
    url: String,
    resource: Resource,
    warned: Option<Instant>,
}

impl Exporter {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        let mut batch: Vec<Span> = Vec::with_capacity(BATCH_SPANS);
        while let Some(item) = items.recv().await {
            let mut flush = take(item, &mut batch);
            let due = Instant::now() + BATCH_AGE;
            while flush.is_none() && batch.len() < BATCH_SPANS {
                match tokio::time::timeout_at(due, items.recv()).await {
                    Ok(Some(item)) => flush = take(item, &mut batch),
                    Ok(None) | Err(_) => break,
                }
            }
            self.send(&batch).await;
            batch.clear();
            if let Some(done) = flush {
                // who asked may have stopped waiting
                let _ = done.send(());
            }
        }
    }

    async fn send(&mut self, batch: &[Span]) {
        if batch.is_empty() {
            return;
        }
        let body = request(&self.resource, batch).to_string();
        let sending = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let why = match sending.send().await {
            Ok(answer) if answer.status().is_success() => {
                SPANS_EXPORTED.add(batch.len() as u64);
                return;
            }
            Ok(answer) => format!("status {}", answer.status().as_u16()),
            // a URL may hold a password
            Err(error) => error.without_url().to_string(),
        };
        SPANS_DROPPED.add(batch.len() as u64);
        if self.warned.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
            self.warned = Some(Instant::now());
            warn!(
                why,
                spans = batch.len(),
                "the collector at otlp_endpoint takes no spans; they are dropped"
            );
        }
    }
}

fn take(item: Item, batch: &mut Vec<Span>) -> Option<oneshot::Sender<()>> {
    match item {
        Item::Span(span) => {
            batch.push(*span);
            None
        }
        Item::Flush(done) => Some(done),
    }
}
