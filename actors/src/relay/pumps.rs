//! The two pumps: client→target and target→client.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hoop_proto::dialogue::{Batch, Dialogue, Violation};
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::Event;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::limits::{OverResults, RESULT_OVERRUN_BYTES};
use super::{POLL_BYTES, POLL_TIME, POLL_UNTIMED_BYTES, Relay, Stop, TRAFFIC, client_closed};
use crate::mux::{ChannelReader, ChannelWriter, LinkError};
use crate::recorder::{Commit, Recorder};
use crate::stage::{Direction, Held, Judgement};

/// A statement that has been judged or recorded for so long counts as held: from then on its client is watched. Before,
/// a client that sends a statement and leaves at once has it run, as PostgreSQL itself would.
pub const HELD_AFTER: Duration = Duration::from_secs(1);

impl<C, D, R> Relay<C, D, R>
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
    D: Dialogue,
    R: Recorder,
{
    /// Client → target, until the client's end.
    pub(super) async fn to_target(&self, mut writer: ChannelWriter) -> Result<(), Stop> {
        loop {
            let bytes = poll_fn(|cx| self.client.borrow_mut().poll_read(cx))
                .await
                .map_err(|_| client_closed())?;
            if bytes.is_empty() {
                self.client_ended.set(true);
                writer.eof();
                return Ok(());
            }
            let count = bytes.len();
            self.active();
            self.counters
                .client_bytes
                .set(self.counters.client_bytes.get() + count as u64);
            TRAFFIC.client_bytes.add(count as u64);
            let batch = self
                .dialogue
                .borrow_mut()
                .client(bytes)
                .map_err(|error| violation(End::ClientViolation, error))?;
            if !batch.bytes.is_empty() || !batch.events.is_empty() {
                self.forward(batch, &mut writer).await?;
            }
            self.turn(count).await;
        }
    }

    /// Judges, records and sends one client batch.
    async fn forward(&self, batch: Batch, writer: &mut ChannelWriter) -> Result<(), Stop> {
        let mut judgement = None;
        if self.chain.wants(&batch.events) {
            judgement = Some(self.judged(&batch).await?);
        }
        let noted = self.ledger.borrow_mut().attempts(&batch, judgement.as_ref())?;
        self.counters
            .statements
            .set(self.counters.statements.get() + noted.statements);
        TRAFFIC.statements.add(noted.statements);
        if noted.to_commit {
            let commit = self.ledger.borrow_mut().commit()?;
            if let Commit::Wait(written) = commit {
                self.attended(written).await?.map_err(|error| {
                    tracing::error!(%error, "attempt not recorded");
                    Refusal::new(
                        End::RecordFailed,
                        "this session cannot be recorded, so it was ended",
                        "Connect again; if it goes on, ask an administrator.",
                    )
                })?;
            }
        }
        let refusals = judgement.map_or_else(Vec::new, |judgement| judgement.refusals);
        let applied = self.dialogue.borrow_mut().apply(batch, &refusals);
        if !applied.outcomes.is_empty() {
            let mut ledger = self.ledger.borrow_mut();
            for outcome in &applied.outcomes {
                ledger.outcome(outcome)?;
            }
        }
        if !applied.client.is_empty() {
            for answer in applied.client {
                self.client.borrow_mut().push(answer);
            }
            self.flush().await?;
        }
        for bytes in applied.target {
            let mut rest = bytes;
            poll_fn(|cx| writer.poll_send(cx, &mut rest))
                .await
                .map_err(Stop::Link)?;
        }
        Ok(())
    }

    /// Asks the chain, and waits for reviewers where it holds.
    async fn judged(&self, batch: &Batch) -> Result<Judgement, Stop> {
        let events: Arc<[Event]> = batch.events.iter().cloned().collect();
        let mut judgement = self
            .attended(self.chain.judge(Direction::ToTarget, events))
            .await?
            .map_err(|lost| lost.refusal())?;
        for held in std::mem::take(&mut judgement.holds) {
            if let Err(refusal) = self.hold(&held).await? {
                // The record shows that the review ended in a refusal.
                judgement.verdicts.push((
                    held.event,
                    hoop_proto::evidence::Verdict {
                        stage: held.stage.to_owned(),
                        verdict: "refuse".to_owned(),
                        reason: refusal.message.clone(),
                    },
                ));
                judgement.refusals.push((held.event, refusal));
                break;
            }
        }
        Ok(judgement)
    }

    /// Awaits what a statement waits for. If that takes longer than `HELD_AFTER`, the client is read ahead (at most
    /// `READ_AHEAD_BYTES`), and its leaving ends the session.
    async fn attended<T>(&self, work: impl Future<Output = T>) -> Result<T, Stop> {
        let mut work = pin!(work);
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            return Ok(done);
        }
        let mut patience = Box::pin(sleep(HELD_AFTER));
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if !patience.is_elapsed() && patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let left = self.client.borrow_mut().poll_left(cx);
            left.map(|()| Err(client_closed().into()))
        })
        .await
    }

    /// Parks until the review is decided, its limit is reached or the client leaves. (A kill ends both pumps.)
    async fn hold(&self, held: &Held) -> Result<Result<(), Refusal>, Stop> {
        let limit = if self.dialogue.borrow().idle() {
            self.holds.limit
        } else {
            self.holds.in_transaction
        };
        let notice = self
            .dialogue
            .borrow()
            .notice(&format!("waiting for review {}", held.review), "");
        if let Some(notice) = notice {
            self.client.borrow_mut().push(notice);
        }
        self.counters.held.set(self.counters.held.get() + 1);
        let mut expired = Box::pin(sleep(limit));
        let decision = poll_fn(|cx| {
            if let Some(decision) = self.control.borrow().take_release(&held.review) {
                return Poll::Ready(Ok(decision));
            }
            if expired.as_mut().poll(cx).is_ready() {
                let message = format!("review {} was not decided within {} s", held.review, limit.as_secs());
                let hint = "Ask a reviewer and send the statement again.";
                return Poll::Ready(Ok(Err(Refusal::new(End::HoldExpired, message, hint))));
            }
            let mut client = self.client.borrow_mut();
            if client.poll_left(cx).is_ready() || matches!(client.poll_flush(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(Err(client_closed()));
            }
            Poll::Pending
        })
        .await;
        self.counters.held.set(self.counters.held.get().saturating_sub(1));
        self.active();
        Ok(decision?)
    }

    /// Target → client, until the target's end. A target that closed without a word is given one.
    pub(super) async fn to_client(&self, mut reader: ChannelReader) -> Result<(), Stop> {
        loop {
            let received = poll_fn(|cx| reader.poll_recv(cx)).await.map_err(Stop::Link)?;
            let Some(bytes) = received else {
                if !self.client_ended.get() {
                    let farewell = self.dialogue.borrow().farewell(&LinkError::Finished.refusal());
                    self.client.borrow_mut().push(farewell);
                }
                poll_fn(|cx| self.client.borrow_mut().poll_shutdown(cx))
                    .await
                    .map_err(|_| client_closed())?;
                return Ok(());
            };
            let count = bytes.len();
            self.active();
            let target_bytes = self.counters.target_bytes.get() + count as u64;
            self.counters.target_bytes.set(target_bytes);
            TRAFFIC.target_bytes.add(count as u64);
            match self.limits.over_results(target_bytes) {
                None => self.pass(bytes).await?,
                Some(over) => self.pass_rest(bytes, over).await?,
            }
            reader.consumed(count);
            self.turn(count).await;
        }
    }

    /// Scans, judges, records and writes one piece from the target.
    async fn pass(&self, bytes: Bytes) -> Result<(), Stop> {
        let batch = self
            .dialogue
            .borrow_mut()
            .target(bytes)
            .map_err(|error| violation(End::TargetViolation, error))?;
        if self.chain.interest().output && self.chain.wants(&batch.events) {
            self.judge_output(&batch).await?;
        }
        self.ledger.borrow_mut().results(&batch)?;
        self.client.borrow_mut().push(batch.bytes);
        self.flush().await
    }

    /// Of a piece beyond the limit of results, what completes the client's last message goes on, so that the client can
    /// be told why the session ends.
    async fn pass_rest(&self, mut bytes: Bytes, over: OverResults) -> Result<(), Stop> {
        loop {
            let missing = self.dialogue.borrow().unfinished();
            if missing == 0 || over.bytes > RESULT_OVERRUN_BYTES {
                return Err(over.refusal().into());
            }
            if bytes.is_empty() {
                return Ok(());
            }
            self.pass(bytes.split_to(missing.min(bytes.len()))).await?;
        }
    }

    /// Results are passed or the session ends: there is nothing to put in their place yet.
    async fn judge_output(&self, batch: &Batch) -> Result<(), Stop> {
        let events: Arc<[Event]> = batch.events.iter().cloned().collect();
        let judgement = self
            .chain
            .judge(Direction::ToClient, events)
            .await
            .map_err(|lost| lost.refusal())?;
        if let Some((_, refusal)) = judgement.refusals.into_iter().next() {
            return Err(refusal.into());
        }
        match judgement.holds.into_iter().next() {
            Some(held) => {
                tracing::error!(stage = held.stage, "a stage held output");
                let message = format!("the policy stage \"{}\" failed, so the session was ended", held.stage);
                Err(Refusal::new(End::StageFailed, message, "Ask an administrator.").into())
            }
            None => Ok(()),
        }
    }

    /// Writes all that was pushed for the client.
    async fn flush(&self) -> Result<(), Stop> {
        poll_fn(|cx| self.client.borrow_mut().poll_flush(cx))
            .await
            .map_err(|_| client_closed())?;
        Ok(())
    }

    fn active(&self) {
        let now = Instant::now();
        self.last_activity.set(now);
        if self.moved.get() == 0 {
            self.moving_since.set(now);
        }
    }

    /// Lets other sessions have their turn where this one has moved much, or taken long, in one poll.
    async fn turn(&self, bytes: usize) {
        let moved = self.moved.get() + bytes;
        self.moved.set(moved);
        if moved < POLL_BYTES && (moved < POLL_UNTIMED_BYTES || self.moving_since.get().elapsed() < POLL_TIME) {
            return;
        }
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

fn violation(end: End, violation: Violation) -> Refusal {
    Refusal {
        end,
        message: violation.message,
        hint: String::new(),
        code: violation.code.to_owned(),
    }
}
