//! A session's limits: how long it may run and be idle, and how much its target may answer. They end a session between
//! two transactions where they can, and never leave it without a word.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hoop_proto::dialogue::Dialogue;
use hoop_proto::end::{End, Refusal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::Relay;
use crate::recorder::Recorder;

/// What runs when a session has reached its length gets so long to finish; then the session ends in the midst of it.
pub const SESSION_OVERTIME: Duration = Duration::from_secs(60);

/// A message that has begun when the limit of results is reached is completed, for a client can be told nothing in the
/// midst of one; where it is longer than this, the client's connection is closed without a word.
pub const RESULT_OVERRUN_BYTES: u64 = 1024 * 1024;

/// Limits of one session; `None` is no limit. They are those of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionLimits {
    /// With nothing said by either side and no statement running for so long, the session ends.
    pub idle: Option<Duration>,
    /// From the target's greeting; then the session ends as soon as no transaction is open, and no later than
    /// `SESSION_OVERTIME` after.
    pub length: Option<Duration>,
    /// Bytes from the target. What exceeds it is not forwarded, but for the rest of a message that has begun.
    pub result_bytes: Option<u64>,
}

/// The target has sent more than the session may get.
#[derive(Debug, Clone, Copy)]
pub(super) struct OverResults {
    limit: u64,
    /// So much more.
    pub(super) bytes: u64,
}

impl SessionLimits {
    /// `target_bytes`: all that the target has sent, the piece at hand included.
    pub(super) fn over_results(&self, target_bytes: u64) -> Option<OverResults> {
        let limit = self.result_bytes?;
        let bytes = target_bytes.checked_sub(limit).filter(|bytes| *bytes > 0)?;
        Some(OverResults { limit, bytes })
    }
}

impl OverResults {
    pub(super) fn refusal(self) -> Refusal {
        Refusal::new(
            End::ResultLimit,
            format!(
                "the results of this session exceed its connection's limit of {} bytes, so it was ended",
                self.limit
            ),
            "Ask for fewer rows or columns, or ask an administrator of Hoop to raise the connection's result_max_bytes.",
        )
    }
}

/// The clocks of a session that runs.
pub(super) struct Clocks {
    idle: Option<(Pin<Box<Sleep>>, Duration)>,
    length: Option<(Pin<Box<Sleep>>, Duration)>,
    /// Set when the length was reached in the midst of something.
    overtime: Option<Pin<Box<Sleep>>>,
}

impl Clocks {
    pub(super) fn start(limits: &SessionLimits) -> Self {
        let clock = |limit: Duration| (Box::pin(sleep(limit)), limit);
        Self {
            idle: limits.idle.map(clock),
            length: limits.length.map(clock),
            overtime: None,
        }
    }
}

impl<C, D, R> Relay<C, D, R>
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
    D: Dialogue,
    R: Recorder,
{
    /// Ready, with the reason, when a clock ends the session. To be asked after the pumps, for what they have just moved
    /// decides whether this is a moment between two transactions.
    pub(super) fn poll_clocks(&self, clocks: &mut Clocks, cx: &mut Context<'_>) -> Poll<Refusal> {
        if let Some((sleep, limit)) = &mut clocks.idle
            && self.poll_idle(sleep.as_mut(), *limit, cx)
        {
            let message = format!("nothing was sent for {} s, so the session was ended", limit.as_secs());
            return Poll::Ready(Refusal::new(End::IdleTimeout, message, "Connect again."));
        }
        if let Some((sleep, limit)) = &mut clocks.length
            && (clocks.overtime.is_some() || sleep.as_mut().poll(cx).is_ready())
        {
            let overtime = clocks
                .overtime
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(SESSION_OVERTIME)));
            if overtime.as_mut().poll(cx).is_ready() || self.between_transactions() {
                let message = format!(
                    "this session has lasted {} s, the longest that its connection allows, so it was ended",
                    limit.as_secs()
                );
                return Poll::Ready(Refusal::new(End::SessionTooLong, message, "Connect again."));
            }
        }
        Poll::Pending
    }

    /// Nothing is unanswered, no transaction is open, and the client has all that was answered.
    fn between_transactions(&self) -> bool {
        self.dialogue.borrow().idle() && self.client.borrow().has_all()
    }

    /// True when the session has been idle for `limit`.
    fn poll_idle(&self, mut sleep: Pin<&mut Sleep>, limit: Duration, cx: &mut Context<'_>) -> bool {
        while sleep.as_mut().poll(cx).is_ready() {
            let waiting = self.ledger.borrow().open_statements() > 0;
            let since = if waiting {
                Instant::now()
            } else {
                self.last_activity.get()
            };
            if since.elapsed() >= limit {
                return true;
            }
            sleep.as_mut().reset(since + limit);
        }
        false
    }
}
