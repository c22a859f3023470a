//! One session: from its Dispatch to its Close. Opens the Attach stream and logs in to the target at the same time, then
//! splices.
//!
//! Runs on the arbiter of the link connection that the Dispatch came on, and so do its stream's HTTP/2 tasks: no byte
//! crosses a thread.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use hoop_actors::budget::ByteBudget;
use hoop_actors::mux::{Mux, MuxConfig, MuxEvent};
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::control::Body as ControlBody;
use hoop_proto::link::link_client::LinkClient;
use hoop_proto::link::{Control, Dispatch, Frame, Open, Ready, Target};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::transport::Channel as Http2;
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use crate::config::Config;
use crate::secrets;
use crate::sessions::Admission;
use crate::splice::{Splice, Spliced};
use crate::targets::postgres::{self, Asker, CancelKey, Login};
use crate::targets::progress::{Progress, Stage};
use crate::trial;

/// The channel that carries the session's bytes; channel 0 is the session itself.
pub const BYTES_CHANNEL: u32 = 1;
/// The gateway's answer to Attach. A ticket lives as long.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// What every session of an agent shares.
#[derive(Debug)]
pub struct Shared {
    pub config: Config,
    pub budget: ByteBudget,
    /// Random: one running agent process.
    pub instance: [u8; 16],
}

/// Serves one Dispatch; returns when the session is over.
pub async fn serve(shared: Rc<Shared>, client: LinkClient<Http2>, dispatch: Dispatch, mut admission: Admission) {
    let session = Uuid::from_slice(&dispatch.session).unwrap_or_default();
    let (inbound_slot, inbound) = oneshot::channel::<Streaming<Frame>>();
    // The mux wants its inbound half before the gateway has answered with it.
    let inbound = stream::once(inbound)
        .filter_map(|stream| std::future::ready(stream.ok()))
        .flatten()
        .boxed_local();
    let (mux, outbox) = Mux::start(
        inbound,
        MuxConfig {
            budget: shared.budget.clone(),
        },
    );
    let open = Open {
        session: dispatch.session.clone(),
        ticket: dispatch.ticket.clone(),
        kind: "session".to_owned(),
        target: None,
        agent: String::new(),
        connection: dispatch.connection.clone(),
        replica: bytes::Bytes::new(),
    };
    if mux.open(0, open).is_err() {
        return;
    }
    let attach = attach(Rc::clone(&shared), client, outbox, inbound_slot);
    let test_only = dispatch.target.as_ref().is_some_and(|target| target.test_only);
    let life = async {
        if test_only {
            tried(&shared, &mux, dispatch, attach).await;
            None
        } else {
            live(&shared, &mux, dispatch, attach).await
        }
    };
    let end = match admission.until_stopped(life).await {
        Ok(end) => end,
        Err(_stopped) => Some(Refusal::new(
            End::Shutdown,
            format!("agent \"{}\" is shutting down", shared.config.key.agent),
            "Connect again.",
        )),
    };
    match &end {
        None => tracing::info!(%session, "session over"),
        Some(refusal) => tracing::info!(%session, end = %refusal.end, reason = refusal.message, "session over"),
    }
    mux.close(end.as_ref());
}

async fn attach(
    shared: Rc<Shared>,
    mut client: LinkClient<Http2>,
    outbox: hoop_actors::mux::Outbox,
    inbound_slot: oneshot::Sender<Streaming<Frame>>,
) -> Result<(), Status> {
    let mut request = Request::new(outbox);
    shared.authorize(&mut request)?;
    let response = timeout(ATTACH_TIMEOUT, client.attach(request))
        .await
        .map_err(|_| Status::deadline_exceeded("the gateway did not answer Attach"))??;
    // The mux may be gone already; then its session is over.
    drop(inbound_slot.send(response.into_inner()));
    Ok(())
}

impl Shared {
    /// Puts token and instance into a request's metadata.
    pub fn authorize<T>(&self, request: &mut Request<T>) -> Result<(), Status> {
        let unusable = |_| Status::unauthenticated("the key's token cannot be sent");
        let mut token: tonic::metadata::MetadataValue<_> = format!("Bearer {}", self.config.key.token())
            .parse()
            .map_err(unusable)?;
        token.set_sensitive(true);
        let instance = hex::encode(self.instance).parse().map_err(unusable)?;
        request.metadata_mut().insert("authorization", token);
        request.metadata_mut().insert("x-hoop-agent-instance", instance);
        Ok(())
    }
}

/// Gives the reason for the session's Close; `None` for an orderly one, or where nobody is left to be told.
async fn live(
    shared: &Rc<Shared>,
    mux: &Mux,
    dispatch: Dispatch,
    attach: impl Future<Output = Result<(), Status>>,
) -> Option<Refusal> {
    // Before any frame can come in: the channel must be known to this side.
    let channel = mux.channel(BYTES_CHANNEL);
    let started = Box::pin(start(shared, mux, dispatch, attach)).await;
    let login = match started {
        Ok(login) => login,
        Err(end) => return end,
    };
    let cancel = login.cancel;
    let mut cancelling = Cancelling::new(cancel);
    let on_event = |event: &MuxEvent| match event {
        MuxEvent::Control(0, control) => match &control.body {
            Some(ControlBody::Cancel(_)) => {
                cancelling.cancel();
                false
            }
            Some(ControlBody::Kill(_)) => {
                // What the target is doing for the session must not go on behind the gateway's back.
                cancelling.cancel();
                true
            }
            _ => false,
        },
        _ => false,
    };
    let mut splice = Splice::new(mux.drive(), channel.split(), login.stream, login.early, on_event);
    let spliced = splice.run().await;
    drop(splice);
    match spliced {
        Spliced::Killed | Spliced::TargetClosed => None,
        Spliced::Link(error) => {
            tracing::debug!(%error, "the link's side ended the session");
            // A query that runs now would not notice that its client is gone (client_connection_check_interval is 0 by
            // default), so it is cancelled.
            cancelling.cancel();
            None
        }
        Spliced::TargetFailed(error) => {
            tracing::warn!(%error, "the target's connection broke");
            Some(Refusal::new(
                End::TargetClosed,
                "the target's connection broke",
                "Connect again; if it goes on, ask an administrator to look at the target's log.",
            ))
        }
    }
}

/// A Dispatch that only tests its target. What was found goes over the stream like a session's greeting.
async fn tried(shared: &Rc<Shared>, mux: &Mux, dispatch: Dispatch, attach: impl Future<Output = Result<(), Status>>) {
    let both = async {
        let (attached, tested) = tokio::join!(attach, trial::run(shared, dispatch));
        match attached {
            Ok(()) => Some(tested),
            Err(status) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "the gateway refused Attach");
                None
            }
        }
    };
    let given_up = async { while !matches!(mux.next_event().await, MuxEvent::Close(_) | MuxEvent::Lost(_)) {} };
    tokio::select! {
        tested = both => {
            let Some(tested) = tested else { return };
            tracing::info!(stage = tested.stage, code = tested.code, "a connection was tested");
            let control = Control { body: Some(ControlBody::Tested(tested)) };
            // a gateway that is gone by now needs no answer
            let _ = mux.control(0, control);
        }
        () = given_up => {}
    }
}

/// Attach and login side by side. The gateway hears of the login at once, whether it has answered Attach or not.
async fn start(
    shared: &Rc<Shared>,
    mux: &Mux,
    dispatch: Dispatch,
    attach: impl Future<Output = Result<(), Status>>,
) -> Result<Login, Option<Refusal>> {
    let mut attach = std::pin::pin!(attach);
    let mut progress = Progress::default();
    let mut login = std::pin::pin!(login(shared, dispatch, &mut progress));
    let mut attached = false;
    let mut outcome: Option<Result<Login, Refusal>> = None;
    loop {
        if attached && let Some(outcome) = outcome.take() {
            return outcome.map_err(Some);
        }
        tokio::select! {
            result = &mut attach, if !attached => match result {
                Ok(()) => attached = true,
                Err(status) => {
                    tracing::warn!(code = ?status.code(), message = status.message(), "the gateway refused Attach");
                    return Err(None);
                }
            },
            result = &mut login, if outcome.is_none() => {
                if let Ok(login) = &result {
                    let ready = Ready { greeting: login.greeting.clone(), protocol_minor: login.minor };
                    let control = Control { body: Some(ControlBody::Ready(ready)) };
                    if mux.control(0, control).is_err() {
                        return Err(None);
                    }
                }
                outcome = Some(result);
            },
            event = mux.next_event() => match event {
                // Nothing runs at the target yet that a cancel could reach.
                MuxEvent::Control(0, control) if matches!(control.body, Some(ControlBody::Kill(_))) => return Err(None),
                MuxEvent::Close(_) | MuxEvent::Lost(_) => return Err(None),
                MuxEvent::Control(..) | MuxEvent::Open(..) => {}
            },
        }
    }
}

/// Resolves the target's secret and logs in.
pub(crate) async fn login(shared: &Rc<Shared>, dispatch: Dispatch, progress: &mut Progress) -> Result<Login, Refusal> {
    progress.enter(Stage::Secret);
    let agent = &shared.config.key.agent;
    let mut target: Target = dispatch.target.unwrap_or_default();
    let password = secrets::resolve(target.secret.take(), &shared.config.references)
        .await
        .map_err(|error| {
            tracing::warn!(connection = dispatch.connection, %error, "the target's secret");
            error.refusal(agent)
        })?;
    let asker = Asker {
        agent,
        connection: &dispatch.connection,
    };
    postgres::login(&target, password, &shared.config.allow, asker, progress).await
}

/// Cancels of one session: one under way at a time, for a second one asks for the same thing.
struct Cancelling {
    key: Rc<CancelKey>,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Cancelling {
    fn new(key: CancelKey) -> Self {
        Self {
            key: Rc::new(key),
            running: None,
        }
    }

    fn cancel(&mut self) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let key = Rc::clone(&self.key);
        self.running = Some(tokio::task::spawn_local(async move {
            if let Err(error) = postgres::cancel(&key).await {
                tracing::warn!(%error, "the target was not reached for a cancel");
            }
        }));
    }
}
