//! A session's place on a connection with a `max_sessions` of its own, counted over all replicas in the store.

use hoop_proto::end::{End, Refusal};
use hoop_store::Store;
use hoop_store::connections::Connection;
use tracing::warn;
use uuid::Uuid;

use super::{Opener, STORE_TIMEOUT};

/// A place that was taken. What is not given back (the store is away, the session was aborted) is found by the
/// directory, or counts no more once its replica has ended.
pub(super) struct Place {
    store: Store,
    session: Uuid,
}

impl Place {
    /// `None` where the connection has no limit.
    ///
    /// # Errors
    /// The `Refusal` to tell: all places are taken, or the store does not answer.
    pub(super) async fn take(opener: &Opener, session: Uuid, connection: &Connection) -> Result<Option<Self>, Refusal> {
        let most = connection.max_sessions;
        if most == 0 {
            return Ok(None);
        }
        let taking = (opener.store).take_place(connection.id, session, opener.replica, most);
        let away = |problem: String| {
            warn!(problem, "the sessions of a connection cannot be counted");
            Refusal::new(
                End::PolicyStale,
                "the gateway cannot reach its own database to count this connection's sessions",
                "Try again in a moment; if it lasts, tell the operator that Hoop's store is away.",
            )
        };
        match tokio::time::timeout(STORE_TIMEOUT, taking).await {
            Ok(Ok(true)) => Ok(Some(Self {
                store: opener.store.clone(),
                session,
            })),
            Ok(Ok(false)) => Err(Refusal::new(
                End::TooManySessions,
                format!("the connection \"{}\" has its {most} sessions already", connection.name),
                "Close one of your sessions, or try again in a moment.",
            )),
            Ok(Err(error)) => Err(away(error.to_string())),
            Err(_) => Err(away(format!("no answer within {} s", STORE_TIMEOUT.as_secs()))),
        }
    }

    pub(super) async fn give_back(self) {
        let giving = self.store.give_places_back(std::slice::from_ref(&self.session));
        match tokio::time::timeout(STORE_TIMEOUT, giving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "a place on a connection is given back later"),
            Err(_) => warn!("a place on a connection is given back later: the store is slow"),
        }
    }
}
