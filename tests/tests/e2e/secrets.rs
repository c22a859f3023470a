//! No secret, in any form, where it does not belong: responses, logs, figures, traces, the process list, the database,
//! the journal.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::cluster::STORE;
use hoop_tests::collector::Collector;
use hoop_tests::events::Events;
use hoop_tests::hoop::{CONNECTION, Credential, Hoop, Options};
use hoop_tests::http::Api;
use hoop_tests::record::text;
use serde_json::{Value, json};
use totp_rs::Totp;

const USER_PASSWORD: &str = "pass \"w0rd\" & ürnen/+%41";
const NEW_PASSWORD: &str = "an0ther \\ p@ss/word=?";
const SECOND_SECRET: &str = "second target: s3cret&+ /\"";
const TYPED: &str = "typed-into-a-statement-7f3a";
/// A line of such a file, of no key that there is.
const SSH_PRIVATE: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW";
const SSH_PUBLIC: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER ada@laptop";
/// Shorter pieces would be found by chance.
const PIECE_MIN_CHARS: usize = 12;
const SEEN: Duration = Duration::from_secs(20);

/// What must not be found, and everything that was looked into.
struct Hunt {
    secrets: Vec<(String, String)>,
    found_in: Vec<(String, Vec<u8>)>,
}

impl Hunt {
    fn plant(&mut self, name: &str, secret: impl Into<String>) {
        self.secrets.push((name.to_owned(), secret.into()));
    }

    fn look(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.found_in.push((place.into(), bytes.into()));
    }

    /// Every file below a folder, but for those that hold the secrets on purpose.
    fn look_into(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                self.look_into(&path)?;
            } else if path.is_file() && !["admin-password", "agent-key", "master.key"].contains(&name.as_str()) {
                self.look(path.display().to_string(), fs::read(&path)?);
            }
        }
        Ok(())
    }

    fn look_at_process(&mut self, pid: u32) -> Result<()> {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{pid}/{file}");
            self.look(path.clone(), fs::read(path)?);
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let mut found = String::new();
        for (name, secret) in &self.secrets {
            for (form, needle) in forms(secret) {
                for (place, hay) in &self.found_in {
                    if contains(hay, needle.as_bytes()) {
                        writeln!(found, "{name}, {form}, in {place}")?;
                    }
                }
            }
        }
        ensure!(found.is_empty(), "{found}");
        Ok(())
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let starts = hay.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts
        .map(|(at, _)| at)
        .any(|at| hay.get(at..at + needle.len()) == Some(needle))
}

fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let bytes = secret.as_bytes();
    let hex = |upper| -> String {
        let digit = |b: &u8| if upper { format!("{b:02X}") } else { format!("{b:02x}") };
        bytes.iter().map(digit).collect()
    };
    let percent: String = (bytes.iter())
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                char::from(*b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    let mut forms = vec![
        ("raw", secret.to_owned()),
        ("JSON", Value::from(secret).to_string().trim_matches('"').to_owned()),
        ("Rust", format!("{secret:?}").trim_matches('"').to_owned()),
        ("bytes", format!("{bytes:?}").trim_matches(['[', ']']).to_owned()),
        ("hex", hex(false)),
        ("HEX", hex(true)),
        ("percent", percent.clone()),
        ("form", percent.replace("%20", "+")),
    ];
    for offset in 0..3 {
        let standard = base64(bytes, offset);
        forms.push(("base64url", standard.replace('+', "-").replace('/', "_")));
        forms.push(("base64", standard));
    }
    forms.retain(|(_, form)| form.len() >= PIECE_MIN_CHARS);
    forms
}

/// What of base64 does not depend on the bytes around, where these come `offset` bytes after a group of three.
fn base64(bytes: &[u8], offset: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let whole = bytes.get((3 - offset) % 3..).unwrap_or_default();
    let mut out = String::new();
    for group in whole.as_chunks::<3>().0 {
        let [a, b, c] = group.map(usize::from);
        for index in [a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63] {
            out.extend(ALPHABET.get(index).map(|byte| char::from(*byte)));
        }
    }
    out
}

#[test]
fn every_form_of_a_secret_is_found() {
    let secret = "s3cret: ä/+\"";
    for (form, needle) in forms(secret) {
        assert!(
            contains(format!("before {needle} after").as_bytes(), needle.as_bytes()),
            "{form}"
        );
    }
    // `xs3cret…` in base64, made by another program
    assert!("eHMzY3JldDogw6QvKyI=".contains(&base64(secret.as_bytes(), 1)));
    assert!("czNjcmV0OiDDpC8rIg==".contains(&base64(secret.as_bytes(), 0)));
}

/// What people sign in with beside a password: shown once, refused afterwards, and nowhere else.
async fn plant_what_signs_in(hunt: &mut Hunt, base: &str) -> Result<()> {
    let ada = Api::login(base, "ada", NEW_PASSWORD).await?;
    hunt.plant("another token of a user", ada.token().context("no token")?);
    let path = "/api/me/second-factor";
    let enrolment = ada.post(path, json!({"password": NEW_PASSWORD})).await?;
    hunt.plant("a second factor's secret", text(&enrolment, "secret"));
    let totp = Totp::from_url(text(&enrolment, "uri")).ok().context("no address")?;
    // as a database would show it in clear
    hunt.plant("a second factor's bytes", hex::encode(totp.secret().as_bytes()));
    let code = totp.generate(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let confirm = json!({"code": code.to_string()});
    let confirmed = ada.post(&format!("{path}/confirm"), confirm).await?;
    let codes = confirmed.get("recovery_codes").and_then(Value::as_array);
    let codes: Vec<&str> = codes.context("no codes")?.iter().filter_map(Value::as_str).collect();
    for code in &codes {
        hunt.plant("a recovery code", *code);
        hunt.plant("a recovery code's letters", code.replace('-', ""));
    }

    // used up, refused, and in the wrong places
    let anonymous = Api::anonymous(base);
    let login = json!({"username": "ada", "password": NEW_PASSWORD});
    let challenge = text(&anonymous.post("/api/login", login).await?, "challenge");
    hunt.plant("a sign-in between its steps", &challenge);
    let used = codes.first().context("no code")?;
    let step = "/api/login/second-factor";
    let by_code = json!({"challenge": challenge, "recovery_code": used});
    let signed_in = anonymous.post(step, by_code.clone()).await?;
    hunt.plant("a token by a recovery code", text(&signed_in, "token"));
    for (method, path, body) in [
        ("POST", step, by_code),
        ("POST", step, json!({"challenge": [challenge], "code": used})),
        ("POST", "/api/login", json!({"username": used, "password": challenge})),
    ] {
        let refused = anonymous.send(method, path, Some(&body)).await?;
        ensure!((400..500).contains(&refused.status), "{}", refused.text());
        hunt.look("a code in the wrong place", refused.body);
    }

    let made = ada
        .post("/api/tokens", json!({"name": "ci", "scopes": ["read"]}))
        .await?;
    let token = text(&made, "token");
    hunt.plant("a personal token", &token);
    let script = Api::with_token(base, &token);
    hunt.look("with a personal token", script.get("/api/tokens").await?.to_string());
    hunt.look(
        "what a personal token may not",
        script
            .send("POST", "/api/tokens", Some(&json!({"name": token})))
            .await?
            .body,
    );
    ada.delete(&format!("/api/tokens/{}", text(&made, "id"))).await?;
    hunt.look("a revoked token", script.send("GET", "/api/me", None).await?.body);

    // the wrong one of two files
    hunt.plant("an SSH private key", SSH_PRIVATE);
    let pasted = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{SSH_PRIVATE}\n-----END OPENSSH PRIVATE KEY-----\n");
    for body in [
        json!({"public_key": pasted}),
        json!({"public_key": format!("ssh-ed25519 {SSH_PRIVATE}"), "name": "laptop"}),
        json!({"public_key": [SSH_PRIVATE]}),
    ] {
        let refused = ada.send("POST", "/api/ssh-keys", Some(&body)).await?;
        ensure!(refused.status == 422, "{}", refused.text());
        hunt.look("a private key in place of a public one", refused.body);
    }
    ada.post("/api/ssh-keys", json!({"public_key": SSH_PUBLIC})).await?;
    Ok(())
}

/// Everything that can be read, and requests that are refused with a secret in them.
async fn read_all(hunt: &mut Hunt, api: &Api, session: &str, credential: &Credential) -> Result<()> {
    for path in [
        "/api/users?limit=200",
        "/api/users/ada",
        "/api/tokens",
        "/api/ssh-keys",
        "/api/me",
        "/api/connections?limit=200",
        "/api/connections/second",
        "/api/credentials",
        "/api/agents",
        "/api/access/rules",
        "/api/sessions",
        &format!("/api/sessions/{session}"),
        "/api/audit?limit=200&kind=*",
        "/api/audit/export",
        "/api/openapi.json",
        "/api/ca.pem",
        "/metrics",
        "/readyz",
    ] {
        let answer = api.send("GET", path, None).await?;
        ensure!(answer.status == 200, "{path}: {}", answer.text());
        hunt.look(format!("GET {path}"), answer.body);
    }
    for (method, path, body) in [
        (
            "POST",
            "/api/login",
            json!({"username": "ada", "password": [NEW_PASSWORD]}),
        ),
        ("POST", "/api/login", json!({"username": NEW_PASSWORD, "password": "x"})),
        (
            "POST",
            "/api/users",
            json!({"username": "b", "role": NEW_PASSWORD, "password": USER_PASSWORD}),
        ),
        (
            "POST",
            "/api/users",
            json!({"username": USER_PASSWORD, "role": "member", "password": NEW_PASSWORD}),
        ),
        (
            "PUT",
            "/api/users/ada/password",
            json!({"password": NEW_PASSWORD, "x": USER_PASSWORD}),
        ),
        (
            "PUT",
            "/api/connections/second",
            json!({"name": "second", "secret": {"valu": SECOND_SECRET}}),
        ),
        (
            "PUT",
            "/api/connections/second",
            json!({"name": "second", "secret": SECOND_SECRET}),
        ),
        (
            "POST",
            "/api/connections/app/credentials",
            json!({"ttl_seconds": credential.password}),
        ),
    ] {
        let answer = api.send(method, path, Some(&body)).await?;
        ensure!(
            (400..500).contains(&answer.status),
            "{method} {path}: {}",
            answer.text()
        );
        hunt.look(format!("{method} {path}"), answer.body);
    }
    Ok(())
}

async fn hunt(log_format: &str) -> Result<()> {
    let collector = Collector::start().await?;
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let hoop = Hoop::with(Options {
        gateway_env: vec![
            setting("HOOP_LOG", "debug"),
            setting("HOOP_LOG_FORMAT", log_format),
            setting("HOOP_OTLP_ENDPOINT", &collector.url),
        ],
        agent_env: vec![setting("HOOP_LOG", "debug"), setting("HOOP_LOG_FORMAT", log_format)],
        ..Options::default()
    })
    .await?;
    let gateway = hoop.gateway()?;
    let (mut events, _) = Events::open(&hoop.api, None).await?;
    let mut hunt = Hunt {
        secrets: Vec::new(),
        found_in: Vec::new(),
    };
    hunt.plant("the target's password", &hoop.target_password);
    hunt.plant(
        "the master key",
        fs::read_to_string(hoop.scratch.path().join("master.key"))?.trim(),
    );
    hunt.plant(
        "the admin's password",
        fs::read_to_string(&gateway.ready.admin_password_file)?.trim(),
    );
    hunt.plant("the admin's token", hoop.api.token().context("no token")?);
    let key = fs::read_to_string(&gateway.ready.agent_key_file)?;
    let key = key
        .split("://")
        .nth(1)
        .and_then(|rest| rest.split('@').next())
        .unwrap_or_default();
    hunt.plant(
        "the agent's token",
        key.split(':').nth(1).context("no token in HOOP_KEY")?,
    );
    for (name, secret) in [
        ("a user's password", USER_PASSWORD),
        ("a user's new password", NEW_PASSWORD),
        ("a second target's password", SECOND_SECRET),
    ] {
        hunt.plant(name, secret);
    }

    let ada = json!({"username": "ada", "password": USER_PASSWORD, "role": "admin"});
    hunt.look("POST /api/users", hoop.api.post("/api/users", ada).await?.to_string());
    let signed_in = Api::login(&gateway.ready.api, "ada", USER_PASSWORD).await?;
    hunt.plant("a user's token", signed_in.token().context("no token")?);
    signed_in.send("POST", "/api/logout", None).await?;
    hunt.look(
        "a token that has ended",
        signed_in.send("GET", "/api/me", None).await?.body,
    );
    hoop.api
        .put("/api/users/ada/password", json!({"password": NEW_PASSWORD}))
        .await?;
    plant_what_signs_in(&mut hunt, &gateway.ready.api).await?;
    let second = hoop
        .connection("second", json!({"secret": {"value": SECOND_SECRET}}))
        .await?;
    hunt.look("POST /api/connections", second.to_string());
    let registered = hoop.api.post("/api/agents", json!({"name": "other"})).await?;
    hunt.plant("another agent's HOOP_KEY", text(&registered, "key"));

    let credential = hoop.credential(CONNECTION).await?;
    hunt.plant("a credential's password", &credential.password);
    let login = hoop.login(&credential)?.sslmode("require");
    login.query(&format!("select '{TYPED}'")).await?;
    // refusals that could repeat what they refuse
    let refused = async |login: Login| login.psql(&["-c", "select 1"]).await;
    hunt.look("a wrong password", refused(login.password(NEW_PASSWORD)).await?.err);
    hunt.look("another database", refused(login.database("postgres")).await?.err);
    let wrong_target = hoop.login(&hoop.credential("second").await?)?.sslmode("require");
    hunt.look("a wrong password at the target", refused(wrong_target).await?.err);

    let session = text(hoop.sessions().await?.last().context("no session")?, "id");
    read_all(&mut hunt, &hoop.api, &session, &credential).await?;
    hoop.api
        .delete(&format!("/api/credentials/{}", credential.user))
        .await?;
    // typed by a person: sealed in the record, and shown to those who read it
    hunt.plant("what a person typed", TYPED);
    for event in events.until("session.ended", SEEN).await? {
        hunt.look(format!("event {}", event.name), event.data.to_string());
    }
    for agent in &hoop.agents {
        hunt.look("the agent's log", agent.process.log());
        hunt.look_at_process(agent.process.pid())?;
    }
    hunt.look("the gateway's log", gateway.process.log());
    hunt.look_at_process(gateway.process.pid())?;
    hunt.look("the traces", collector.text());
    hunt.look("the database", hoop.store_cluster().dump(STORE).await?);
    hunt.look_into(&gateway.dir)?;
    let bytes: usize = hunt.found_in.iter().map(|(_, bytes)| bytes.len()).sum();
    ensure!(
        bytes > 100_000 && !collector.spans().is_empty(),
        "there was too little to look into: {bytes} bytes"
    );
    hunt.check()
}

#[tokio::test]
async fn no_secret_is_found_anywhere_with_logs_as_json() -> Result<()> {
    hunt("json").await
}

#[tokio::test]
async fn no_secret_is_found_anywhere_with_logs_as_text() -> Result<()> {
    hunt("text").await
}
