//! A session's main part, between the target's greeting and its end: the relay, cancels, expiry.

use std::time::Duration;

use hoop_actors::control::Order;
use hoop_actors::relay::{self, HoldLimits, Parts, RecordLimits, RecordMode, SessionLimits};
use hoop_actors::session::Ties;
use hoop_actors::stage::Chain;
use hoop_proto::end::{End, Refusal};
use hoop_proto::evidence;
use hoop_proto::evidence::event::Body;
use hoop_proto::link::{Cancel, Control, control};
use hoop_proto::postgres::session::{Limits, Session as PostgresDialogue};
use hoop_store::connections::{self, Connection};
use tracing::warn;

use super::Opening;
use super::record::SharedRecorder;
use super::target::Reached;

/// The session's bytes travel on this channel; 0 is the session itself.
const BYTES_CHANNEL: u32 = 1;

/// Runs both pumps until one side ends the session. `statements` were asked, and recorded, at its start.
pub(super) async fn carry(
    opening: Opening,
    reached: Reached,
    recorder: SharedRecorder,
    chain: Chain,
    statements: u64,
    ties: Ties,
) -> Refusal {
    let Reached { mux, mut key, load } = reached;
    let connection = opening.grant.connection();
    let mode = match connection.record {
        connections::Record::Default => RecordMode::Default,
        connections::Record::Full => RecordMode::Full,
        connections::Record::Off => RecordMode::Off,
    };
    let limits = limits_of(connection);
    let parts = Parts {
        client: opening.stream,
        early: opening.accept.into_rest(),
        dialogue: PostgresDialogue::new(Limits::default()).after(statements),
        channel: mux.channel(BYTES_CHANNEL),
        mux: mux.clone(),
        recorder,
        chain,
        record: RecordLimits {
            mode,
            ..RecordLimits::default()
        },
        holds: HoldLimits::default(),
        control: ties.control,
        counters: ties.counters,
        limits,
    };
    let mut relay = std::pin::pin!(relay::run(parts));
    let mut expiry = std::pin::pin!(tokio::time::sleep_until(opening.expires_at));
    let mut expired = false;
    let end = loop {
        tokio::select! {
            biased;
            end = &mut relay => break end,
            Some(()) = key.cancels.recv() => {
                let cancelled = evidence::Control { kind: "cancel".into(), by: "client".into() };
                if !ties.sender.note(Body::Control(cancelled)) {
                    warn!("too many cancels wait to be recorded; this one is not passed on");
                    continue;
                }
                let cancel = Control { body: Some(control::Body::Cancel(Cancel::default())) };
                if let Err(problem) = mux.control(0, cancel) {
                    warn!(%problem, "a cancel was not passed on");
                }
            }
            () = &mut expiry, if !expired => {
                expired = true;
                let message = "this session's credential has expired";
                let refusal = Refusal::new(End::CredentialExpired, message, "Make a new credential and connect again.");
                ties.sender.kill(Order { refusal, by: "expiry".into() });
            }
        }
    };
    drop(load);
    end.refusal
}

/// As they are set at the session's start; 0 is no limit.
fn limits_of(connection: &Connection) -> SessionLimits {
    let seconds = |set: u32| (set > 0).then(|| Duration::from_secs(set.into()));
    SessionLimits {
        idle: seconds(connection.idle_timeout_s),
        length: seconds(connection.session_max_s),
        result_bytes: (connection.result_max_bytes > 0).then_some(connection.result_max_bytes),
    }
}
