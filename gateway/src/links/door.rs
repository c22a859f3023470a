//! A connection of port 8010 on its way in: it is held to the door's caps until it has proved whose it is (its agent
//! has registered, its ticket was accepted, or it showed a replica's certificate), and a connection on which nothing
//! runs is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hoop_actors::gate::GateTicket;
use tokio::sync::watch;
use tonic::Status;
use tracing::debug;

/// From the TLS handshake to the proof.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time without a stream, for a connection that has proved whose it is. Answered pings do not count.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Streams at once before the proof: one is needed.
const UNPROVED_STREAMS_MAX: usize = 4;

#[derive(Debug, Default, Clone, Copy)]
struct State {
    proved: bool,
    streams: usize,
    /// The socket is closed.
    gone: bool,
}

#[derive(Debug)]
struct Shared {
    closed: AtomicBool,
    reader: AtomicWaker,
    state: watch::Sender<State>,
}

/// What is known of the connection that a request came on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LinkConnection {
    pub client: SocketAddr,
    /// It showed a certificate of the installation's CA for clients: only replicas have one.
    pub replica: bool,
    shared: Arc<Shared>,
}

/// A stream that runs on a connection; dropping it says that it is over.
#[derive(Debug)]
pub struct OpenStream(Arc<Shared>);

/// The socket's end: it hears that the connection is to be closed, and dropping it says that it is.
#[derive(Debug)]
pub struct Closing(Arc<Shared>);

impl LinkConnection {
    #[must_use]
    pub fn new(client: SocketAddr, replica: bool) -> (Self, Closing) {
        let shared = Arc::new(Shared {
            closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            state: watch::Sender::new(State {
                proved: replica,
                ..State::default()
            }),
        });
        let closing = Closing(shared.clone());
        let connection = Self {
            client,
            replica,
            shared,
        };
        (connection, closing)
    }

    /// A stream begins.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where a connection opens many before it has proved whose it is.
    pub fn open_stream(&self) -> Result<OpenStream, Status> {
        let taken = self.shared.state.send_if_modified(|state| {
            let room = state.proved || state.streams < UNPROVED_STREAMS_MAX;
            state.streams += usize::from(room);
            room
        });
        if taken {
            Ok(OpenStream(self.shared.clone()))
        } else {
            Err(Status::resource_exhausted(
                "register first: this connection has not proved whose it is",
            ))
        }
    }

    /// Its agent has registered, or its ticket was accepted: the door's caps no longer hold it.
    pub fn proved(&self) {
        self.shared
            .state
            .send_if_modified(|state| !std::mem::replace(&mut state.proved, true));
    }

    /// Closes the connection when the door or its deadlines want it closed. Runs beside it until it is gone.
    pub async fn watch(self, ticket: GateTicket) {
        let why = tokio::select! {
            why = self.unproved() => why,
            () = ticket.evicted() => Some("its address opened more connections than are allowed before the proof"),
        };
        drop(ticket);
        let why = match why {
            None => self.idle().await,
            unproved => unproved,
        };
        if let Some(why) = why {
            debug!(client = %self.client, why, "a connection of the agents' port is closed");
            self.shared.closed.store(true, Ordering::Release);
            self.shared.reader.wake();
        }
    }

    /// Until the proof, or why there will be none.
    async fn unproved(&self) -> Option<&'static str> {
        let mut state = self.shared.state.subscribe();
        let proof = state.wait_for(|state| state.proved || state.gone);
        match tokio::time::timeout(PROOF_TIMEOUT, proof).await {
            Ok(_) => None,
            Err(_) => Some("no agent registered and no ticket came in time"),
        }
    }

    /// Until nothing has run for `IDLE_TIMEOUT`; `None` once the socket is closed.
    async fn idle(&self) -> Option<&'static str> {
        let mut state = self.shared.state.subscribe();
        loop {
            let gone = state
                .wait_for(|state| state.streams == 0 || state.gone)
                .await
                .ok()?
                .gone;
            if gone {
                return None;
            }
            let busy = state.wait_for(|state| state.streams > 0 || state.gone);
            if tokio::time::timeout(IDLE_TIMEOUT, busy).await.is_err() {
                return Some("no stream runs on it");
            }
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0
            .state
            .send_modify(|state| state.streams = state.streams.saturating_sub(1));
    }
}

impl Closing {
    /// Ready once the connection is to be closed; otherwise the reader is woken then.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.reader.register(cx.waker());
        if self.0.closed.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.gone = true);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hoop_actors::gate::Gate;
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Longer than every deadline here.
    const LONG: Duration = Duration::from_secs(3600);

    fn connect(gate: &Gate, replica: bool) -> (LinkConnection, Closing, tokio::task::JoinHandle<()>) {
        let client: SocketAddr = "10.0.0.1:1000".parse().unwrap();
        let ticket = gate.enter(client.ip()).unwrap();
        let (connection, closing) = LinkConnection::new(client, replica);
        let watching = tokio::spawn(connection.clone().watch(ticket));
        (connection, closing, watching)
    }

    async fn closed(closing: &Closing) -> bool {
        timeout(LONG, poll_fn(|cx| closing.poll_closed(cx))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_proves_nothing_is_closed_at_its_deadline_whatever_streams_it_opens() {
        let gate = Gate::new(10, 10);
        let (connection, closing, _) = connect(&gate, false);
        let stream = connection.open_stream().unwrap();
        let begun = Instant::now();
        assert!(closed(&closing).await);
        assert_eq!(begun.elapsed().as_secs(), PROOF_TIMEOUT.as_secs());
        assert_eq!(gate.waiting(), 0);
        drop(stream);
    }

    #[tokio::test(start_paused = true)]
    async fn the_door_holds_a_connection_until_its_proof_and_no_longer() {
        let gate = Gate::new(10, 2);
        let (first, first_closing, _) = connect(&gate, false);
        let (second, second_closing, _) = connect(&gate, false);
        let _streams = [first.open_stream().unwrap(), second.open_stream().unwrap()];
        second.proved();
        tokio::task::yield_now().await;
        assert_eq!(gate.waiting(), 1);
        let _more = [connect(&gate, false), connect(&gate, false)];
        let begun = Instant::now();
        assert!(closed(&first_closing).await);
        assert_eq!(
            begun.elapsed(),
            Duration::ZERO,
            "the oldest unproved one makes room at once"
        );
        assert!(!closed(&second_closing).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proved_connection_is_closed_once_nothing_has_run_on_it_for_a_while() {
        let gate = Gate::new(10, 10);
        let (connection, closing, _) = connect(&gate, true);
        let stream = connection.open_stream().unwrap();
        assert!(!closed(&closing).await, "a stream runs");
        drop(stream);
        let begun = Instant::now();
        assert!(closed(&closing).await);
        assert_eq!(begun.elapsed().as_secs(), IDLE_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn before_its_proof_a_connection_has_few_streams() {
        let gate = Gate::new(10, 10);
        let (connection, _closing, _) = connect(&gate, false);
        let streams: Vec<_> = (0..UNPROVED_STREAMS_MAX)
            .map(|_| connection.open_stream().unwrap())
            .collect();
        assert_eq!(
            connection.open_stream().unwrap_err().code(),
            tonic::Code::ResourceExhausted
        );
        connection.proved();
        connection.open_stream().unwrap();
        drop(streams);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_gone_is_watched_no_more() {
        let gate = Gate::new(10, 10);
        for replica in [false, true] {
            let (_connection, closing, watching) = connect(&gate, replica);
            drop(closing);
            timeout(Duration::from_secs(1), watching).await.unwrap().unwrap();
            assert_eq!(gate.waiting(), 0);
        }
    }
}
