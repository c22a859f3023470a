//! Testing a connection: each of its agents is sent a Dispatch that only tries the target (`hoop.v1.Target.test_only`).
//! No session, no grant, no bytes of a client: the API has recorded who asked.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use hoop_api::connection_test::{AgentTest, ConnectionToTest, TestStage, TestTimes, TestTls};
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::{Close, Control, Frame, Target, Tested, control, frame};
use tokio::sync::oneshot;
use tracing::info;
use uuid::Uuid;

use crate::links::FrameStream;
use crate::links::dispatch::{Dispatcher, Request};
use crate::target;

/// Longest trial: the dispatch, the agent's own 20 s, and the way back.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(35);
/// A trial belongs to no arbiter; it takes the first one's link.
const ARBITER: usize = 0;

/// What the agents found, in the connection's order.
pub async fn run(dispatcher: Dispatcher, asked: ConnectionToTest) -> Vec<AgentTest> {
    let dispatcher = &dispatcher;
    let ConnectionToTest { name, settings, secret } = asked;
    let target = Target {
        test_only: true,
        ..target::target(&settings, secret, &settings.default_database)
    };
    let trials = settings.agents.iter().map(|agent| {
        let request = Request {
            session: Uuid::now_v7(),
            agent: agent.clone(),
            connection: name.clone(),
            target: target.clone(),
        };
        async move {
            let tried = tokio::time::timeout(TRIAL_TIMEOUT, ask(dispatcher, &request)).await;
            let found = match tried.unwrap_or_else(|_| Err(silent(agent))) {
                Ok(tested) => told(agent, tested),
                Err(refusal) => not_asked(agent, refusal),
            };
            info!(connection = request.connection, agent, failed_at = ?found.failed_at, code = found.code, "tested");
            found
        }
    });
    join_all(trials).await
}

/// Sends the Dispatch and reads the stream up to its answer.
async fn ask(dispatcher: &Dispatcher, request: &Request) -> Result<Tested, Refusal> {
    let (mut attached, _load) = dispatcher.anywhere(request, ARBITER).await?;
    // the stream of our frames stays open until the answer is here, and ends with a Close then
    let (_answered, over) = oneshot::channel::<()>();
    let frames: FrameStream = Box::pin(over.map(|_| Ok(goodbye())).into_stream());
    let lost = || silent(&request.agent);
    attached.outbound.send(frames).map_err(|_| lost())?;
    while let Some(Ok(frame)) = attached.inbound.next().await {
        match frame.body {
            Some(frame::Body::Control(Control {
                body: Some(control::Body::Tested(tested)),
            })) => return Ok(tested),
            Some(frame::Body::Close(close)) => {
                return Err(hoop_actors::mux::refusal_of(&close).unwrap_or_else(lost));
            }
            _ => {}
        }
    }
    Err(lost())
}

fn goodbye() -> Frame {
    Frame {
        channel: 0,
        body: Some(frame::Body::Close(Close::default())),
    }
}

fn silent(agent: &str) -> Refusal {
    Refusal::new(
        End::LinkLost,
        format!(
            "the agent \"{agent}\" was lost, or did not answer within {} s",
            TRIAL_TIMEOUT.as_secs()
        ),
        "Try again; if it happens again, look at the agent's log.",
    )
}

fn not_asked(agent: &str, refusal: Refusal) -> AgentTest {
    AgentTest {
        ok: false,
        failed_at: Some(TestStage::Agent),
        code: refusal.end.code().to_owned(),
        message: refusal.message,
        hint: refusal.hint,
        ..told(agent, Tested::default())
    }
}

fn told(agent: &str, tested: Tested) -> AgentTest {
    let failed_at = stage(&tested.stage);
    let tls = (!tested.tls_version.is_empty()).then_some(TestTls {
        version: tested.tls_version,
        cipher: tested.tls_cipher,
    });
    AgentTest {
        agent: agent.to_owned(),
        ok: failed_at.is_none(),
        failed_at,
        code: tested.code,
        message: tested.message,
        hint: tested.hint,
        cause: tested.cause,
        sqlstate: tested.sqlstate,
        server_version: tested.server_version,
        tls,
        took_us: TestTimes {
            resolve: tested.resolve_us,
            connect: tested.connect_us,
            tls: tested.tls_us,
            login: tested.login_us,
            round_trip: tested.round_trip_us,
        },
    }
}

/// A stage that this release does not know comes from a newer agent, and is a failure all the same.
fn stage(told: &str) -> Option<TestStage> {
    Some(match told {
        "" => return None,
        "secret" => TestStage::Secret,
        "resolve" => TestStage::Resolve,
        "allow" => TestStage::Allow,
        "connect" => TestStage::Connect,
        "tls" => TestStage::Tls,
        "database" => TestStage::Database,
        _ => TestStage::Login,
    })
}
