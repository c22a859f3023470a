//! What the gateway recorded of a session, as a test asks about it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::hoop::Hoop;
use crate::process::eventually;

/// The record is committed behind a session's end by this much at most, on a busy machine.
const RECORD_DEADLINE: Duration = Duration::from_secs(20);

/// All events of one session.
#[derive(Debug, Clone)]
pub struct Record {
    pub session: String,
    pub events: Vec<Value>,
}

/// A member of an event as text; empty where there is none.
#[must_use]
pub fn text(event: &Value, name: &str) -> String {
    match event.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A member of an event as a number; 0 where there is none.
#[must_use]
pub fn number(event: &Value, name: &str) -> u64 {
    event.get(name).and_then(Value::as_u64).unwrap_or_default()
}

impl Record {
    /// Its events of one kind.
    #[must_use]
    pub fn of(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| text(event, "kind") == kind).collect()
    }

    /// The only attempt whose text contains this, with its outcome.
    ///
    /// # Errors
    /// Where there is no such attempt, or it has no outcome.
    pub fn statement(&self, part: &str) -> Result<(&Value, &Value)> {
        let attempts = self.of("attempt");
        let attempt = attempts
            .into_iter()
            .find(|attempt| text(attempt, "text").contains(part));
        let attempt = attempt.with_context(|| format!("no attempt with {part:?} in {:#?}", self.events))?;
        let statement = number(attempt, "statement");
        let outcome = self
            .of("outcome")
            .into_iter()
            .find(|outcome| number(outcome, "statement") == statement);
        Ok((
            attempt,
            outcome.with_context(|| format!("no outcome of statement {statement} in {:#?}", self.events))?,
        ))
    }

    /// Checks what holds of every whole record: numbered without gaps, from `started` to `ended`, and each attempt, and
    /// each text that was only prepared, has exactly one outcome, after it.
    ///
    /// # Errors
    /// Where it does not hold.
    pub fn check(&self) -> Result<()> {
        for (event, seq) in self.events.iter().zip(1_u64..) {
            anyhow::ensure!(number(event, "seq") == seq, "event {seq} is missing: {event}");
        }
        let first = self.events.first().map(|event| text(event, "kind")).unwrap_or_default();
        let last = self.events.last().map(|event| text(event, "kind")).unwrap_or_default();
        anyhow::ensure!(
            (first.as_str(), last.as_str()) == ("started", "ended"),
            "it is from {first:?} to {last:?}"
        );
        let mut open = BTreeSet::new();
        for event in &self.events {
            let statement = number(event, "statement");
            match text(event, "kind").as_str() {
                "attempt" | "prepared" => {
                    anyhow::ensure!(open.insert(statement), "statement {statement} was attempted twice")
                }
                "outcome" => anyhow::ensure!(open.remove(&statement), "an outcome without its attempt: {event}"),
                _ => {}
            }
        }
        anyhow::ensure!(open.is_empty(), "statements without an outcome: {open:?}");
        Ok(())
    }

    /// The session's end: its stable name.
    #[must_use]
    pub fn end(&self) -> String {
        self.of("ended")
            .first()
            .map(|event| text(event, "code"))
            .unwrap_or_default()
    }
}

impl Hoop {
    /// The session whose client called itself so, once it is listed.
    ///
    /// # Errors
    /// Where none is listed in time.
    pub async fn session(&self, application: &str) -> Result<Value> {
        eventually(
            &format!("a session of {application} is listed"),
            RECORD_DEADLINE,
            async || {
                Ok(self
                    .sessions()
                    .await?
                    .into_iter()
                    .find(|session| text(session, "application") == application))
            },
        )
        .await
    }

    /// The whole record of the session whose client called itself so, once it has ended.
    ///
    /// # Errors
    /// Where it does not end in time, or the record is not whole.
    pub async fn record(&self, application: &str) -> Result<Record> {
        let session = text(&self.session(application).await?, "id");
        let record = eventually(
            &format!("the record of {application} is whole"),
            RECORD_DEADLINE,
            async || {
                let record = Record {
                    session: session.clone(),
                    events: self.events(&session).await?,
                };
                Ok((!record.of("ended").is_empty()).then_some(record))
            },
        )
        .await?;
        record.check()?;
        Ok(record)
    }
}
