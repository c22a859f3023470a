//! *Test connection*: each of its agents tries to log in to the target and says what failed where. Administrators only,
//! recorded, and seldom enough that nobody floods a target with logins.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::{post, web};
use hoop_store::StoreError;
use hoop_store::change::Witness;
use hoop_store::connections::{Secret, SecretChange};
use hoop_store::settings::Settings;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::body::{Body, CA_BODY_MAX_BYTES};
use crate::caller::Caller;
use crate::connection_view::ConnectionSettings;
use crate::connections::{missing, parts};
use crate::problem::{Bodied, Missing, Problem, Signed};

/// Tests that run in this process at once.
const TESTS_AT_ONCE: usize = 4;
/// Tests of one account in `WINDOW`.
const TESTS_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// What is to be tested.
pub struct ConnectionToTest {
    pub name: String,
    pub settings: Settings,
    pub secret: Option<Secret>,
}

/// Where a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TestStage {
    /// The agent is offline, too old, or took no session.
    Agent,
    /// The secret: a reference that the agent cannot resolve, or a missing one that the target asks for.
    Secret,
    /// The target's name has no address.
    Resolve,
    /// The agent's own list of allowed targets.
    Allow,
    Connect,
    Tls,
    Login,
    /// The login is good, the database does not exist.
    Database,
}

/// The TLS that target and agent agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TestTls {
    #[schema(example = "TLSv1_3")]
    pub version: String,
    #[schema(example = "TLS13_AES_256_GCM_SHA384")]
    pub cipher: String,
}

/// How long each step took, in microseconds; 0: not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct TestTimes {
    pub resolve: u32,
    pub connect: u32,
    pub tls: u32,
    pub login: u32,
    /// One question and its answer, after the login.
    pub round_trip: u32,
}

/// What one agent found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AgentTest {
    pub agent: String,
    pub ok: bool,
    /// Null where it is ok.
    #[schema(required)]
    pub failed_at: Option<TestStage>,
    /// As a session's `end_code`; empty where it is ok.
    pub code: String,
    /// What happened; a target's own words where it refused the login.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// What the agent's system said, where it said something.
    pub cause: String,
    /// The target's own code, where it gave one.
    pub sqlstate: String,
    pub server_version: String,
    /// Null: no TLS.
    #[schema(required)]
    pub tls: Option<TestTls>,
    pub took_us: TestTimes,
}

/// What a connection's agents found, in the connection's order.
#[derive(Serialize, ToSchema)]
pub struct ConnectionTest {
    /// All are ok.
    pub ok: bool,
    pub agents: Vec<AgentTest>,
}

/// Test a connection: each of its agents logs in to the target, asks for one round trip and leaves. No statement is
/// sent. The answer is 200 whatever was found.
#[utoipa::path(
    tag = "connections",
    params(("name" = String, Path, description = "The connection's name")),
    responses((status = 200, body = ConnectionTest), Missing, Signed),
    security(("bearer" = []))
)]
#[post("/connections/{name}/test")]
pub async fn test_connection(caller: Caller, name: web::Path<String>) -> Result<web::Json<ConnectionTest>, Problem> {
    caller.require_admin()?;
    let store = &caller.state().store;
    let stored = store.find_connection(&name).await?.ok_or_else(|| missing(&name))?;
    let secret = store.connection_secret(stored.id).await?;
    let asked = ConnectionToTest {
        name: stored.name,
        settings: stored.settings,
        secret,
    };
    test(&caller, asked).await
}

/// Test settings before they are stored. Without `secret`, that of the connection of this name is used, where there is
/// one.
#[utoipa::path(
    tag = "connections",
    request_body = ConnectionSettings,
    responses((status = 200, body = ConnectionTest), Bodied, Signed),
    security(("bearer" = []))
)]
#[post("/connections/test")]
pub async fn test_settings(caller: Caller, body: Body) -> Result<web::Json<ConnectionTest>, Problem> {
    caller.require_admin()?;
    let (name, settings, secret) = parts(body.json(CA_BODY_MAX_BYTES).await?);
    settings.check()?;
    let store = &caller.state().store;
    let secret = match secret {
        SecretChange::Set(secret) => Some(secret),
        SecretChange::Remove => None,
        SecretChange::Keep => match store.find_connection(&name).await? {
            Some(stored) => store.connection_secret(stored.id).await?,
            None => None,
        },
    };
    test(&caller, ConnectionToTest { name, settings, secret }).await
}

async fn test(caller: &Caller, asked: ConnectionToTest) -> Result<web::Json<ConnectionTest>, Problem> {
    let state = caller.state();
    let _turn = state.tests.begin(caller.user.id, Instant::now())?;
    // a login at a target is never without its record, and this one comes from no session
    let payload = json!({"subject": asked.name, "before": null, "after": null, "settings": asked.settings});
    let recorded = caller.witness().record("connection.test", payload).await;
    recorded.map_err(StoreError::Unrecorded)?;
    let agents = state.control.test_connection(asked).await?;
    let ok = agents.iter().all(|agent| agent.ok);
    Ok(web::Json(ConnectionTest { ok, agents }))
}

/// Whose turn it is to test. One a process.
pub struct Tests {
    running: Semaphore,
    /// When an account's window began, and its tests in it.
    counts: Mutex<HashMap<Uuid, (Instant, u32)>>,
}

impl Default for Tests {
    fn default() -> Self {
        Self {
            running: Semaphore::new(TESTS_AT_ONCE),
            counts: Mutex::default(),
        }
    }
}

impl Tests {
    fn begin(&self, account: Uuid, now: Instant) -> Result<tokio::sync::SemaphorePermit<'_>, Problem> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, (began, _)| now.duration_since(*began) < WINDOW);
        let (began, count) = counts.entry(account).or_insert((now, 0));
        if *count >= TESTS_PER_WINDOW {
            let left = WINDOW.saturating_sub(now.duration_since(*began));
            return Err(Problem::limited(
                format!(
                    "At most {TESTS_PER_WINDOW} tests of one account in {} s.",
                    WINDOW.as_secs()
                ),
                left.as_secs() + 1,
            ));
        }
        let turn = self
            .running
            .try_acquire()
            .map_err(|_| Problem::limited(format!("{TESTS_AT_ONCE} tests of connections run already."), 1))?;
        *count += 1;
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_so_many_tests_in_a_window_and_a_process_so_many_at_once() {
        let tests = Tests::default();
        let (ada, eve) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let now = Instant::now();
        for _ in 0..TESTS_PER_WINDOW {
            assert!(tests.begin(ada, now).is_ok());
        }
        assert!(tests.begin(ada, now).is_err());
        assert!(tests.begin(ada, now + WINDOW).is_ok(), "a new window");
        let turns: Vec<_> = (0..TESTS_AT_ONCE).map(|_| tests.begin(eve, now).ok()).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(tests.begin(eve, now).is_err());
        drop(turns);
        assert!(tests.begin(eve, now).is_ok());
    }
}
