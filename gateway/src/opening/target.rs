//! From a recorded start to the target's greeting: the welcome, the dispatch, the agent's login at the target.

use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use futures_util::StreamExt;
use hoop_actors::mux::{Mux, MuxConfig, MuxEvent};
use hoop_actors::recorder::{Commit, Recorder};
use hoop_actors::stage::Chain;
use hoop_proto::end::{End, Refusal};
use hoop_proto::evidence::Notice;
use hoop_proto::evidence::event::Body;
use hoop_proto::link::{Parameter, Ready, Target, control};
use hoop_proto::postgres::accept::Accept;
use hoop_store::connections::Connection;
use tokio::io::AsyncWriteExt;
use tracing::{error, warn};
use uuid::Uuid;

use super::record::{SharedRecorder, unrecordable};
use super::{Opener, Opening, STORE_TIMEOUT};
use crate::cancel::CancelKey;
use crate::links::FrameStream;
use crate::links::dispatch::{Request, Served};
use crate::links::registry::LinkLoad;
use crate::metrics::Stage;
use crate::policy::startup::{NotStarted, StartupStatements};
use crate::sessions::{ServedBy, stopping};
use crate::target;
use crate::telemetry::SessionTrace;

/// From the agent's Attach to its login at the target.
const TARGET_LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A session whose target has greeted.
pub(super) struct Reached {
    pub mux: Mux,
    pub key: CancelKey,
    pub load: Option<LinkLoad>,
}

/// Which agent is to serve: chosen at the session's start, and still one of the connection's.
fn agent_of(opening: &Opening) -> Result<String, Refusal> {
    let connection = opening.grant.connection();
    if connection.agents.contains(&opening.agent) {
        return Ok(opening.agent.clone());
    }
    Err(Refusal::new(
        End::AgentOffline,
        format!(
            "the agents of the connection \"{}\" have just been changed",
            connection.name
        ),
        "Connect again.",
    ))
}

/// The record and the registry name the agent that was chosen; another one serves.
async fn served_by_another(
    opener: &Opener,
    id: Uuid,
    agent: &str,
    recorder: &mut SharedRecorder,
) -> Result<(), Refusal> {
    let notice = Notice {
        kind: "agent".into(),
        text: format!("served by the agent {agent}"),
    };
    recorder.append(Body::Notice(notice)).map_err(|_| unrecordable())?;
    let served = ServedBy {
        session: id,
        agent: agent.to_owned(),
    };
    opener.sessions.send(served).await.map_err(|_| stopping())
}

/// From the welcome to the target's greeting.
pub(super) async fn reach(
    opener: &Rc<Opener>,
    id: Uuid,
    opening: &mut Opening,
    recorder: &mut SharedRecorder,
    chain: &Chain,
    asked: &mut StartupStatements,
    trace: &SessionTrace,
) -> Result<Reached, Refusal> {
    let gone = |_| Refusal::new(End::ClientClosed, "the client left before the target was reached", "");
    for (name, value) in &opening.startup.parameters {
        let notice = Notice {
            kind: "setting".into(),
            text: format!("{name}={value}"),
        };
        recorder.append(Body::Notice(notice)).map_err(|_| unrecordable())?;
    }
    let judged = asked.judge(chain, recorder, &opening.startup.parameters).await;
    judged.map_err(|not| match not {
        NotStarted::Refused(refusal) => refusal,
        NotStarted::Unrecorded(error) => {
            error!(%error, "a session was refused because its start-up settings cannot be recorded");
            unrecordable()
        }
    })?;
    // The session's start is safe before anything reaches the target.
    match recorder.commit().map_err(|_| unrecordable())? {
        Commit::Done => {}
        Commit::Wait(safe) => safe.await.map_err(|_| unrecordable())?,
    }
    let welcome = opening.accept.welcome();
    opening.stream.write_all(&welcome).await.map_err(gone)?;
    let key = opener.cancel_keys.take(opening.startup.minor).ok_or_else(|| {
        Refusal::new(
            End::TooManySessions,
            "this gateway has no room for another session",
            "Try again in a moment.",
        )
    })?;
    let connection = opening.grant.connection();
    let request = Request {
        session: id,
        agent: agent_of(opening)?,
        connection: connection.name.clone(),
        target: target_of(opener, opening).await?,
    };
    let began = Clock::now();
    let dispatched = (opener.dispatcher)
        .any(request, &connection.agents, opener.arbiter)
        .await;
    Stage::Dispatch.took(began.elapsed());
    trace.step(Stage::Dispatch.name(), began, dispatched.is_err());
    let Served { agent, attached, load } = dispatched?;
    if agent != opening.agent {
        served_by_another(opener, id, &agent, recorder).await?;
    }
    let config = MuxConfig {
        budget: opener.link_budget.clone(),
    };
    let (mux, outbox) = Mux::start(attached.inbound, config);
    let frames: FrameStream = Box::pin(outbox.map(Ok));
    let lost = || {
        Refusal::new(
            End::LinkLost,
            "the agent was lost before it reached the target",
            "Try again.",
        )
    };
    attached.outbound.send(frames).map_err(|_| lost())?;
    let began = Clock::now();
    let greeted = tokio::time::timeout(TARGET_LOGIN_TIMEOUT, greeting(&mux)).await;
    Stage::TargetLogin.took(began.elapsed());
    trace.step(Stage::TargetLogin.name(), began, !matches!(greeted, Ok(Ok(_))));
    let ready = match greeted {
        Ok(ready) => ready?,
        Err(_) => {
            let seconds = TARGET_LOGIN_TIMEOUT.as_secs();
            return Err(Refusal::new(
                End::TargetUnreachable,
                format!(
                    "the target of the connection \"{}\" did not answer within {seconds} s",
                    connection.name
                ),
                "Try again; if it happens again, ask the operator whether the database is up and reachable for the agent.",
            ));
        }
    };
    let greeted = Accept::ready(&ready.greeting, key.process_id, &key.secret);
    opening.stream.write_all(&greeted).await.map_err(gone)?;
    opening.stream.flush().await.map_err(gone)?;
    Ok(Reached { mux, key, load })
}

async fn target_of(opener: &Opener, opening: &Opening) -> Result<Target, Refusal> {
    let connection = opening.grant.connection();
    let reading = tokio::time::timeout(STORE_TIMEOUT, opener.store.connection_secret(connection.id)).await;
    let secret = match reading {
        Ok(Ok(secret)) => secret,
        Ok(Err(problem)) => {
            warn!(%problem, "the target's secret cannot be read");
            return Err(no_secret(connection));
        }
        Err(_) => return Err(no_secret(connection)),
    };
    let parameters = opening
        .startup
        .parameters
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "user" | "database"));
    Ok(Target {
        startup: parameters
            .map(|(name, value)| Parameter {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        protocol_minor: opening.startup.minor,
        ..target::target(&connection.settings, secret, opening.grant.database())
    })
}

fn no_secret(connection: &Connection) -> Refusal {
    Refusal::new(
        End::TargetSecretMissing,
        format!(
            "the gateway cannot read the target's password of the connection \"{}\"",
            connection.name
        ),
        "Try again in a moment; if it lasts, ask the operator to set the connection's password anew.",
    )
}

/// Waits for the agent's login at the target.
async fn greeting(mux: &Mux) -> Result<Ready, Refusal> {
    loop {
        match mux.next_event().await {
            MuxEvent::Control(0, message) => {
                if let Some(control::Body::Ready(ready)) = message.body {
                    return Ok(ready);
                }
            }
            MuxEvent::Control(..) | MuxEvent::Open(..) => {}
            MuxEvent::Close(Some(refusal)) => return Err(refusal),
            MuxEvent::Close(None) => {
                return Err(Refusal::new(
                    End::TargetClosed,
                    "the target closed the connection during its login",
                    "",
                ));
            }
            MuxEvent::Lost(problem) => return Err(problem.refusal()),
        }
    }
}
