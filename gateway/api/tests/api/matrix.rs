//! The whole access matrix: every route, and what each kind of caller is answered.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::http::Method;
use serde_json::{Value, json};

use crate::rig::{Api, PASSWORD, Rig, connection, rig};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Anonymous,
    Member,
    Auditor,
    Admin,
    /// Tokens of an admin, each with one scope.
    ReadToken,
    ConnectToken,
    AdminToken,
    /// A service account that is a member, with a token of scopes read and connect.
    Service,
    /// A token of an admin who is no admin any more.
    Demoted,
    /// A token of somebody who is deactivated.
    Deactivated,
}

const EVERYBODY: [Who; 10] = [
    Who::Anonymous,
    Who::Member,
    Who::Auditor,
    Who::Admin,
    Who::ReadToken,
    Who::ConnectToken,
    Who::AdminToken,
    Who::Service,
    Who::Demoted,
    Who::Deactivated,
];

/// Whom a route lets in; everybody else is answered 401 (who is nobody) or 403.
#[derive(Debug, Clone, Copy)]
enum To {
    /// Without signing in.
    All,
    /// To whoever is signed in, and tokens with any scope.
    SignedIn,
    /// To whoever is signed in, and tokens with read or admin.
    Readers,
    /// To admins and auditors, and their tokens with read or admin.
    Auditors,
    /// To whoever is signed in, and tokens with connect or admin. Auditors reach nothing, and are refused.
    Connect,
    /// To whoever is signed in, and tokens with admin.
    Owners,
    Admins,
    /// To whoever signed in, and no token.
    SignIn,
}

impl To {
    fn lets(self, who: Who) -> bool {
        use Who::{Admin, AdminToken, Auditor, ConnectToken, Demoted, Member, ReadToken, Service};
        let allowed: &[Who] = match self {
            Self::All => return true,
            Self::SignedIn => &[
                Member,
                Auditor,
                Admin,
                ReadToken,
                ConnectToken,
                AdminToken,
                Service,
                Demoted,
            ],
            Self::Readers => &[Member, Auditor, Admin, ReadToken, AdminToken, Service, Demoted],
            Self::Auditors => &[Auditor, Admin, ReadToken, AdminToken],
            Self::Connect => &[Member, Admin, ConnectToken, AdminToken, Service, Demoted],
            Self::Owners => &[Member, Auditor, Admin, AdminToken, Demoted],
            Self::Admins => &[Admin, AdminToken],
            Self::SignIn => &[Member, Auditor, Admin],
        };
        allowed.contains(&who)
    }
}

/// Every route of the description.
const MATRIX: &[(&str, &str, To)] = &[
    ("get", "/healthz", To::All),
    ("get", "/readyz", To::All),
    ("get", "/api/ca.pem", To::All),
    ("get", "/api/openapi.json", To::All),
    ("get", "/api/docs", To::All),
    ("get", "/api/docs.css", To::All),
    ("post", "/api/login", To::All),
    ("post", "/api/login/second-factor", To::All),
    ("post", "/api/login/enrol", To::All),
    ("post", "/api/setup", To::All),
    ("post", "/api/logout", To::SignIn),
    ("put", "/api/me/password", To::SignIn),
    ("get", "/api/me/second-factor", To::Readers),
    ("post", "/api/me/second-factor", To::SignIn),
    ("post", "/api/me/second-factor/confirm", To::SignIn),
    ("post", "/api/me/second-factor/recovery-codes", To::SignIn),
    ("post", "/api/me/second-factor/remove", To::SignIn),
    ("delete", "/api/users/{username}/second-factor", To::Admins),
    ("get", "/api/session", To::Readers),
    ("get", "/api/me/browser-sessions", To::Readers),
    ("delete", "/api/me/browser-sessions/{id}", To::SignIn),
    ("get", "/api/users/{username}/browser-sessions", To::Auditors),
    ("delete", "/api/users/{username}/browser-sessions", To::Admins),
    ("get", "/api/sign-in", To::All),
    ("get", "/api/sign-in/providers", To::All),
    ("get", "/api/sign-in/log-out-address", To::Readers),
    ("post", "/api/sign-in/device", To::All),
    ("get", "/api/sign-in/device", To::All),
    ("post", "/api/sign-in/device/answer", To::All),
    ("post", "/api/sign-in/device/token", To::All),
    ("get", "/api/sign-in/loopback", To::All),
    ("post", "/api/sign-in/loopback/answer", To::All),
    ("post", "/api/sign-in/loopback/token", To::All),
    ("get", "/api/sign-in/{provider}", To::All),
    ("get", "/api/sign-in/{provider}/callback", To::All),
    ("post", "/api/sign-in/{provider}/acs", To::All),
    ("get", "/api/sign-in/{provider}/metadata", To::All),
    ("get", "/api/users/{username}/identities", To::Auditors),
    ("post", "/api/users/{username}/identities", To::Admins),
    ("delete", "/api/users/{username}/identities", To::Admins),
    ("get", "/api/me", To::SignedIn),
    ("get", "/api/users", To::Auditors),
    ("post", "/api/users", To::Admins),
    ("get", "/api/users/{username}", To::Auditors),
    ("put", "/api/users/{username}", To::Admins),
    ("delete", "/api/users/{username}", To::Admins),
    ("put", "/api/users/{username}/password", To::Admins),
    ("get", "/api/access/rules", To::Auditors),
    ("post", "/api/access/rules", To::Admins),
    ("get", "/api/access/rules/{name}", To::Auditors),
    ("put", "/api/access/rules/{name}", To::Admins),
    ("delete", "/api/access/rules/{name}", To::Admins),
    ("get", "/api/access/explain", To::Auditors),
    ("get", "/api/agents", To::Auditors),
    ("post", "/api/agents", To::Admins),
    ("delete", "/api/agents/{name}", To::Admins),
    ("get", "/api/connections", To::SignedIn),
    ("post", "/api/connections", To::Admins),
    ("get", "/api/connections/{name}", To::SignedIn),
    ("put", "/api/connections/{name}", To::Admins),
    ("delete", "/api/connections/{name}", To::Admins),
    ("post", "/api/connections/test", To::Admins),
    ("post", "/api/connections/{name}/test", To::Admins),
    ("post", "/api/connections/{name}/credentials", To::Connect),
    ("get", "/api/credentials", To::SignedIn),
    ("delete", "/api/credentials/{id}", To::Connect),
    ("get", "/api/ssh-keys", To::Readers),
    ("post", "/api/ssh-keys", To::Owners),
    ("delete", "/api/ssh-keys/{id}", To::Owners),
    ("get", "/api/tokens", To::Readers),
    ("post", "/api/tokens", To::Owners),
    ("get", "/api/tokens/{id}", To::Readers),
    ("delete", "/api/tokens/{id}", To::Owners),
    ("get", "/api/sessions", To::Readers),
    ("get", "/api/sessions/{id}", To::Readers),
    ("get", "/api/sessions/{id}/events", To::Auditors),
    ("post", "/api/sessions/{id}/kill", To::Admins),
    ("get", "/metrics", To::Auditors),
    ("get", "/api/events", To::Readers),
    ("get", "/api/audit", To::Auditors),
    ("get", "/api/audit/export", To::Auditors),
];

impl<S: Api> Rig<S> {
    async fn token(&self, who: &str, body: Value) -> String {
        let made = self.post("/api/tokens", who, body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.json()["token"].as_str().unwrap().to_owned()
    }

    /// Somebody who can sign in, and a token of theirs.
    async fn somebody(&self, name: &str, role: &str, scopes: &[&str]) -> String {
        let body = json!({"username": name, "password": PASSWORD, "role": role});
        assert_eq!(self.post("/api/users", &self.admin, body).await.status, 201);
        let user = self.store.find_user(name).await.unwrap().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let signed_in = self
            .store
            .issue_token(&user, hour)
            .await
            .unwrap()
            .unwrap()
            .token
            .to_string();
        self.token(&signed_in, json!({"name": "t", "scopes": scopes})).await
    }

    async fn set(&self, name: &str, role: &str, active: bool) {
        let body = json!({"role": role, "email": "", "groups": [], "active": active});
        let path = format!("/api/users/{name}");
        let changed = self.call(Method::PUT, &path, &self.admin, Some(body)).await;
        assert_eq!(changed.status, 200, "{}", changed.text);
    }

    async fn everybody(&self) -> BTreeMap<Who, String> {
        let admins = async |scope: &str| self.token(&self.admin, json!({"name": scope, "scopes": [scope]})).await;
        let robot = json!({"username": "robot", "role": "member", "service": true});
        assert_eq!(self.post("/api/users", &self.admin, robot).await.status, 201);
        let robots = json!({"name": "ci", "scopes": ["read", "connect"], "user": "robot"});
        let all = ["read", "connect", "admin"];
        let (demoted, gone) = (
            self.somebody("demoted", "admin", &all).await,
            self.somebody("gone", "admin", &all).await,
        );
        self.set("demoted", "member", true).await;
        self.set("gone", "admin", false).await;
        BTreeMap::from([
            (Who::Anonymous, String::new()),
            (Who::Member, self.member.clone()),
            (Who::Auditor, self.auditor.clone()),
            (Who::Admin, self.admin.clone()),
            (Who::ReadToken, admins("read").await),
            (Who::ConnectToken, admins("connect").await),
            (Who::AdminToken, admins("admin").await),
            (Who::Service, self.token(&self.admin, robots).await),
            (Who::Demoted, demoted),
            (Who::Deactivated, gone),
        ])
    }

    /// One credential and one token of the caller's, or else somebody's credential and an id that no token has.
    async fn own(&self, who: Who, token: &str) -> (String, String) {
        let path = "/api/connections/db/credentials";
        let foreign = self.post(path, &self.admin, json!({})).await.json();
        let nobody = (
            foreign["id"].as_str().unwrap().to_owned(),
            uuid::Uuid::nil().to_string(),
        );
        let made = self.post(path, token, json!({})).await;
        let credential = match made.status {
            201 => made.json()["id"].as_str().unwrap().to_owned(),
            _ => nobody.0,
        };
        if matches!(
            who,
            Who::Member | Who::Auditor | Who::Admin | Who::AdminToken | Who::Demoted
        ) {
            let made = self
                .post("/api/tokens", token, json!({"name": "own", "scopes": ["read"]}))
                .await;
            return (credential, made.json()["id"].as_str().unwrap().to_owned());
        }
        (credential, nobody.1)
    }
}

/// A caller who is let in is answered something else than 401 and 403: what, is each route's own test. The bodies are
/// empty objects and the things do not exist, so that nothing changes under the next caller.
#[actix_web::test]
async fn everybody_gets_what_the_matrix_says_of_every_route() {
    let rig = rig().await;
    rig.connection().await;
    let everybody = rig.everybody().await;
    let mut wrong = Vec::new();
    for who in EVERYBODY {
        let token = &everybody[&who];
        let (credential, own_token) = rig.own(who, token).await;
        for (method, path, open) in MATRIX {
            if *path == "/api/logout" && open.lets(who) {
                continue; // would end the sign-in under the rest
            }
            let id = if path.contains("credentials") {
                &credential
            } else {
                &own_token
            };
            let target = path.replace("{id}", id).replace("{username}", "nobody");
            let connection = if *method == "delete" || *method == "put" {
                "nothing"
            } else {
                "db"
            };
            let target = target.replace("{name}", connection);
            let method: Method = method.to_uppercase().parse().unwrap();
            let body = (method == Method::POST || method == Method::PUT).then(|| json!({}));
            let answer = rig.call(method.clone(), &target, token, body).await;
            let refused = match who {
                Who::Anonymous | Who::Deactivated => 401,
                _ => 403,
            };
            let good = if open.lets(who) {
                // a sign-in that fails for want of a name is no refusal of the route
                !matches!(answer.status, 401 | 403) || *path == "/api/login"
            } else {
                answer.status == refused
            };
            if !good || answer.status >= 500 {
                wrong.push(format!("{who:?} {method} {path}: {} {}", answer.status, answer.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[actix_web::test]
async fn the_matrix_holds_every_route_of_the_description() {
    let rig = rig().await;
    let document = rig.get("/api/openapi.json", "").await.json();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            described.insert((method.clone(), path.clone()));
        }
    }
    let listed: BTreeSet<_> = MATRIX
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(described, listed, "add a new route to MATRIX: who may use it?");
}

/// What an auditor or a scope cannot do is refused before anything of the request is looked at, for things that exist too.
#[actix_web::test]
async fn a_refusal_does_not_depend_on_what_there_is() {
    let rig = rig().await;
    rig.connection().await;
    let everybody = rig.everybody().await;
    let records = rig.records().len();
    for who in [
        Who::Auditor,
        Who::Member,
        Who::ReadToken,
        Who::ConnectToken,
        Who::Service,
        Who::Demoted,
    ] {
        let token = &everybody[&who];
        for (method, path) in [
            (Method::PUT, "/api/connections/db"),
            (Method::PUT, "/api/connections/nothing"),
            (Method::DELETE, "/api/connections/db"),
            (Method::DELETE, "/api/agents/default"),
            (Method::DELETE, "/api/users/root"),
        ] {
            let body = Some(connection("db"));
            rig.call(method, path, token, body).await.problem(403);
        }
    }
    assert_eq!(rig.records().len(), records, "nothing was changed");
}
