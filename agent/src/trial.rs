//! A trial: an administrator tests a connection. The agent resolves the secret, logs in, asks the target for one round
//! trip, says what it found, and goes. No statement is sent.

use std::rc::Rc;
use std::time::Duration;

use hoop_actors::maybe_tls::MaybeTls;
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::{Dispatch, Tested};
use hoop_proto::postgres::{encode, greeting};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::attach::{Shared, login};
use crate::targets::postgres::{Login, TargetStream};
use crate::targets::progress::{Progress, Stage};

/// Longest trial, from the secret to the round trip.
pub const TRIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// ReadyForQuery with its status (manual, "Message Formats").
const READY_BYTES: usize = 6;
/// SQLSTATE invalid_catalog_name: the database does not exist.
const NO_DATABASE: &str = "3D000";

/// Tries the target of `dispatch`.
pub async fn run(shared: &Rc<Shared>, dispatch: Dispatch) -> Tested {
    let mut progress = Progress::default();
    let tried = timeout(TRIAL_TIMEOUT, attempt(shared, dispatch, &mut progress)).await;
    let mut tested = match tried {
        Ok(Ok(found)) => found,
        Ok(Err(refusal)) => failed(&refusal, &progress),
        Err(_) => failed(&too_slow(), &progress),
    };
    let took_us = |stage| u32::try_from(progress.took(stage).as_micros()).unwrap_or(u32::MAX);
    tested.resolve_us = took_us(Stage::Resolve);
    tested.connect_us = took_us(Stage::Connect);
    tested.tls_us = took_us(Stage::Tls);
    tested.login_us = took_us(Stage::Login);
    tested.round_trip_us = took_us(Stage::RoundTrip);
    tested
}

async fn attempt(shared: &Rc<Shared>, dispatch: Dispatch, progress: &mut Progress) -> Result<Tested, Refusal> {
    let mut login = login(shared, dispatch, progress).await?;
    progress.enter(Stage::RoundTrip);
    round_trip(&mut login).await.map_err(|error| {
        progress.cause = error.to_string();
        Refusal::new(
            End::TargetClosed,
            "the target closed the connection after the login",
            "Ask an administrator of the target to look at its log.",
        )
    })?;
    progress.done();
    let (tls_version, tls_cipher) = tls_of(&login.stream);
    Ok(Tested {
        server_version: greeting::parameter(&login.greeting, "server_version").unwrap_or_default(),
        tls_version,
        tls_cipher,
        ..Tested::default()
    })
}

/// A Sync is answered by a ReadyForQuery and does nothing else; then goodbye.
async fn round_trip(login: &mut Login) -> std::io::Result<()> {
    login.stream.write_all(&encode::sync()).await?;
    login.stream.flush().await?;
    let mut answer = [0; READY_BYTES];
    login.stream.read_exact(&mut answer).await?;
    // the target takes a missing goodbye for a loss, and says so in its log; nothing hangs on it here
    let goodbye = async {
        login.stream.write_all(&encode::terminate()).await?;
        login.stream.shutdown().await
    };
    drop(goodbye.await);
    Ok(())
}

fn tls_of(stream: &TargetStream) -> (String, String) {
    let MaybeTls::Tls(tls) = stream else {
        return (String::new(), String::new());
    };
    let connection = tls.get_ref().1;
    let version = connection.protocol_version().map(|version| format!("{version:?}"));
    let cipher = connection
        .negotiated_cipher_suite()
        .map(|suite| format!("{:?}", suite.suite()));
    (version.unwrap_or_default(), cipher.unwrap_or_default())
}

fn failed(refusal: &Refusal, progress: &Progress) -> Tested {
    Tested {
        stage: stage(refusal, progress.stage()).to_owned(),
        code: refusal.end.code().to_owned(),
        message: refusal.message.clone(),
        hint: refusal.hint.clone(),
        cause: progress.cause.clone(),
        sqlstate: refusal.code.clone(),
        ..Tested::default()
    }
}

/// Where it failed, in the words of `hoop.v1.Tested`.
fn stage(refusal: &Refusal, at: Stage) -> &'static str {
    match at {
        _ if refusal.end == End::TargetTls => "tls",
        _ if refusal.code == NO_DATABASE => "database",
        Stage::Secret => "secret",
        Stage::Resolve => "resolve",
        Stage::Allow => "allow",
        Stage::Connect => "connect",
        Stage::Tls => "tls",
        Stage::Login if refusal.end == End::TargetSecretMissing => "secret",
        Stage::Login | Stage::RoundTrip => "login",
    }
}

fn too_slow() -> Refusal {
    Refusal::new(
        End::TargetUnreachable,
        format!(
            "the target did not finish this step within {} s",
            TRIAL_TIMEOUT.as_secs()
        ),
        "Check that the target is up, that its port is right, and that no firewall drops what the agent sends.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_the_step_that_failed() {
        let refused = |end, code: &str| Refusal {
            code: code.into(),
            ..Refusal::new(end, "m", "h")
        };
        let table = [
            (refused(End::TargetSecretMissing, ""), Stage::Secret, "secret"),
            (refused(End::AgentRefused, ""), Stage::Secret, "secret"),
            (refused(End::TargetUnreachable, ""), Stage::Resolve, "resolve"),
            (refused(End::AgentRefused, ""), Stage::Allow, "allow"),
            (refused(End::TargetUnreachable, ""), Stage::Connect, "connect"),
            (refused(End::TargetTls, ""), Stage::Login, "tls"),
            (refused(End::TargetRefusedLogin, "28P01"), Stage::Login, "login"),
            (refused(End::TargetRefusedLogin, "3D000"), Stage::Login, "database"),
            (refused(End::TargetSecretMissing, ""), Stage::Login, "secret"),
        ];
        for (refusal, at, told) in table {
            assert_eq!(stage(&refusal, at), told, "{refusal:?}");
        }
    }
}
