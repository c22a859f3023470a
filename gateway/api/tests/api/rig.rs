//! One API, one fresh store, three people, and everything that was ever answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use actix_http::Request;
use actix_web::body::BoxBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::HeaderMap;
use actix_web::middleware::from_fn;
use actix_web::{App, Error, test, web};
use futures_util::future::{BoxFuture, ready};
use hoop_access::{Circumstances, Mode};
use hoop_api::AppState;
use hoop_api::connection_test::{AgentTest, ConnectionToTest, TestTimes};
use hoop_api::control::{Answered, Check, Control, ControlError, Readiness};
use hoop_api::rate::Rates;
use hoop_proto::evidence::Event;
use hoop_store::Store;
use hoop_store::change::Unrecorded;
use hoop_store::credentials::CredentialRecord;
use hoop_store::users::Role;
use serde_json::{Value, json};
use uuid::Uuid;

pub const PASSWORD: &str = "correct horse battery";

/// The running gateway's stand-in.
#[derive(Default)]
pub struct Fake {
    pub records: Mutex<Vec<(String, Value)>>,
    pub record_fails: AtomicBool,
    pub killed: Mutex<Vec<(Uuid, String)>>,
    pub events: Mutex<Vec<Event>>,
    pub not_ready: AtomicBool,
    /// Method, route and status of each answer.
    pub answered: Mutex<Vec<String>>,
}

impl Control for Fake {
    fn kill_session(&self, session: Uuid, by: String) -> BoxFuture<'_, Result<bool, ControlError>> {
        self.killed.lock().unwrap().push((session, by));
        Box::pin(ready(Ok(true)))
    }

    fn record(&self, kind: &'static str, payload: Value) -> BoxFuture<'_, Result<(), String>> {
        if self.record_fails.load(Ordering::Relaxed) {
            return Box::pin(ready(Err("the disk is full".into())));
        }
        self.records.lock().unwrap().push((kind.into(), payload));
        Box::pin(ready(Ok(())))
    }

    fn session_events(
        &self,
        _session: Uuid,
        after_seq: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, ControlError>> {
        let events = self.events.lock().unwrap();
        let page = events
            .iter()
            .filter(|e| e.seq > after_seq)
            .take(limit)
            .cloned()
            .collect();
        Box::pin(ready(Ok(page)))
    }

    fn agents_online(&self) -> BoxFuture<'_, Result<Vec<String>, ControlError>> {
        Box::pin(ready(Ok(vec!["default".into()])))
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(ready("hoop_sessions_live 0\n".into()))
    }

    fn answered(&self, answered: &Answered<'_>) {
        let route = answered.route.unwrap_or("none");
        let line = format!("{} {route} {}", answered.method, answered.status);
        self.answered.lock().unwrap().push(line);
    }

    fn ready(&self) -> BoxFuture<'_, Readiness> {
        let links = if self.not_ready.load(Ordering::Relaxed) {
            Check::bad("no link")
        } else {
            Check::good()
        };
        Box::pin(ready(Readiness {
            store: Check::good(),
            listeners: Check::good(),
            links,
            warnings: Vec::new(),
        }))
    }

    fn test_connection(&self, asked: ConnectionToTest) -> BoxFuture<'_, Result<Vec<AgentTest>, ControlError>> {
        let agents = asked.settings.agents.iter().map(|agent| AgentTest {
            agent: agent.clone(),
            ok: true,
            failed_at: None,
            code: String::new(),
            message: String::new(),
            hint: String::new(),
            cause: String::new(),
            sqlstate: String::new(),
            server_version: format!("secret: {}", asked.secret.is_some()),
            tls: None,
            took_us: TestTimes::default(),
        });
        Box::pin(ready(Ok(agents.collect())))
    }

    fn link_address(&self) -> String {
        "gateway.test:8010".into()
    }

    fn postgres_address(&self) -> (String, u16) {
        ("gateway.test".into(), 15432)
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Checks status and shape of a problem document, and answers its `field`.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail", "instance"] {
            assert!(
                problem[member].as_str().is_some_and(|t| !t.is_empty()),
                "{member}: {}",
                self.text
            );
        }
        problem["field"].as_str().unwrap_or_default().to_owned()
    }
}

pub trait Api: Service<Request, Response = ServiceResponse<BoxBody>, Error = Error> {}
impl<T: Service<Request, Response = ServiceResponse<BoxBody>, Error = Error>> Api for T {}

pub struct Rig<S> {
    pub app: S,
    pub store: Store,
    pub fake: Arc<Fake>,
    pub admin: String,
    pub auditor: String,
    pub member: String,
    /// Every response's text, but for what is shown once.
    answered: Mutex<String>,
}

pub async fn rig() -> Rig<impl Api> {
    rig_with(Rates::default()).await
}

pub async fn rig_with(rates: Rates) -> Rig<impl Api> {
    let store = hoop_store::testing::store().await;
    let mut tokens = Vec::new();
    for (name, role) in [("root", Role::Admin), ("watch", Role::Auditor), ("ada", Role::Member)] {
        let user = store.create_user(name, PASSWORD, role, "", &Unrecorded).await.unwrap();
        let issued = store
            .issue_token(&user, std::time::Duration::from_secs(600))
            .await
            .unwrap()
            .unwrap();
        tokens.push(issued.token.to_string());
    }
    let fake = Arc::new(Fake::default());
    let state = web::Data::new(AppState::new(store.clone(), fake.clone(), "https://gateway.test").with_rates(rates));
    let app = test::init_service(
        App::new()
            .wrap(from_fn(hoop_api::finish))
            .configure(hoop_api::configure(state)),
    )
    .await;
    let [admin, auditor, member] = <[String; 3]>::try_from(tokens).unwrap();
    Rig {
        app,
        store,
        fake,
        admin,
        auditor,
        member,
        answered: Mutex::default(),
    }
}

impl<S: Api> Rig<S> {
    pub async fn raw(&self, request: test::TestRequest) -> Answer {
        let request = request.peer_addr("192.0.2.7:40000".parse().unwrap()).to_request();
        let response = test::call_service(&self.app, request).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // a stream of events has no end
        let endless = (headers.get("content-type")).is_some_and(|kind| kind == "text/event-stream");
        let text = match endless {
            true => String::new(),
            false => String::from_utf8(test::read_body(response).await.to_vec()).unwrap(),
        };
        self.answered.lock().unwrap().push_str(&text);
        Answer { status, headers, text }
    }

    pub async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = test::TestRequest::default().method(method).uri(path);
        if !token.is_empty() {
            request = request.insert_header(("authorization", format!("Bearer {token}")));
        }
        if let Some(body) = body {
            request = request.set_json(body);
        }
        self.raw(request).await
    }

    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.call(Method::GET, path, token, None).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call(Method::POST, path, token, Some(body)).await
    }

    /// Agent `default` and connection `db`, which members may use.
    pub async fn connection(&self) {
        assert_eq!(
            self.post("/api/agents", &self.admin, json!({"name": "default"}))
                .await
                .status,
            201
        );
        let made = self.post("/api/connections", &self.admin, connection("db")).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }

    /// Whether this text was ever answered since `forget`.
    pub fn was_answered(&self, text: &str) -> bool {
        self.answered.lock().unwrap().contains(text)
    }

    pub fn forget(&self) {
        self.answered.lock().unwrap().clear();
    }

    /// What the gateway would say to a native client with this credential.
    pub fn may_use(&self, record: &CredentialRecord) -> bool {
        let native = Circumstances {
            mode: Mode::Native,
            using: None,
        };
        let (subject, object) = (record.user.subject(), record.connection.object());
        self.store.rules().decide(&subject, &object, &native).is_allowed()
    }

    pub fn records(&self) -> Vec<(String, Value)> {
        self.fake.records.lock().unwrap().clone()
    }
}

pub const TARGET_SECRET: &str = "target-password-hunter2";

pub fn connection(name: &str) -> Value {
    json!({
        "name": name, "agents": ["default"], "host": "db.internal", "port": 5432, "user": "app",
        "secret": {"value": TARGET_SECRET}, "databases": ["*"], "default_database": "app", "allow_members": true,
    })
}
