//! Signing in at the real gateway: browsers, second factors, guessing, the first administrator; and what the record says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::cluster::{Cluster, Make, STORE, scratch};
use hoop_tests::hoop::{Gateway, Hoop, Options};
use hoop_tests::http::{Answer, Api};
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use serde_json::{Value, json};
use totp_rs::Totp;

const PUBLIC_URL: &str = "https://hoop.test";
const PASSWORD: &str = "several words, none alike";
/// For waits of 1, 2 and 4 s, and what lies between.
const WAIT_DEADLINE: Duration = Duration::from_secs(60);

/// Gateways without an agent, known as `https://hoop.test`, with the user `ada`. This machine is a proxy that they trust,
/// so that a test can come from any address.
async fn hoop(replicas: usize) -> Result<Hoop> {
    let environment = [("HOOP_PUBLIC_URL", PUBLIC_URL), ("HOOP_TRUSTED_PROXIES", "127.0.0.1")];
    let hoop = Hoop::with(Options {
        replicas,
        agents: 0,
        gateway_env: environment
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..Options::default()
    })
    .await?;
    let ada = json!({"username": "ada", "password": PASSWORD, "role": "member"});
    hoop.api.post("/api/users", ada).await?;
    Ok(hoop)
}

fn at(hoop: &Hoop, replica: usize) -> Result<Api> {
    let gateway = hoop.gateways.get(replica).context("no such replica")?;
    Ok(Api::anonymous(&gateway.ready.api))
}

/// One request with headers, whatever the answer.
async fn send(api: &Api, call: &str, body: Value, headers: &[(&str, &str)]) -> Result<Answer> {
    let (method, path) = call.split_once(' ').context("METHOD PATH")?;
    let body = (method != "GET").then_some(&body);
    api.send_with(method, path, body, headers).await
}

async fn expect(api: &Api, call: &str, body: Value, headers: &[(&str, &str)], status: u16) -> Result<Answer> {
    let answer = send(api, call, body, headers).await?;
    ensure!(answer.status == status, "{call}: {} {}", answer.status, answer.text());
    Ok(answer)
}

fn login(username: &str, hold: &str) -> Value {
    json!({"username": username, "password": PASSWORD, "hold": hold})
}

/// The kinds and payloads of the writers' logs, in the order of their writing.
async fn records(hoop: &Hoop) -> Result<Vec<(String, Value)>> {
    let store = hoop.store_cluster().superuser(STORE).await?;
    let rows = store
        .query("select kind, payload from writer_log order by at_us, seq", &[])
        .await?;
    let read = |row: &tokio_postgres::Row| Ok((row.get("kind"), serde_json::from_str(row.get("payload"))?));
    rows.iter().map(read).collect()
}

/// Those of `kind`.
async fn recorded(hoop: &Hoop, kind: &str) -> Result<Vec<Value>> {
    let of_kind = records(hoop).await?.into_iter().filter(|(found, _)| found == kind);
    Ok(of_kind.map(|(_, payload)| payload).collect())
}

async fn sql(hoop: &Hoop, statement: &str) -> Result<()> {
    let store = hoop.store_cluster().superuser(STORE).await?;
    Ok(store.batch_execute(statement).await?)
}

#[tokio::test]
async fn a_browser_is_signed_in_by_a_cookie_that_other_sites_cannot_use() -> Result<()> {
    let hoop = hoop(1).await?;
    let browser = at(&hoop, 0)?;
    let foreign = [("Origin", "https://evil.test")];
    expect(&browser, "POST /api/login", login("ada", "cookie"), &foreign, 403).await?;
    let signed_in = expect(&browser, "POST /api/login", login("ada", "cookie"), &[], 200).await?;
    let set = signed_in.header("set-cookie").context("no cookie")?;
    let (cookie, attributes) = set.split_once("; ").context("no attributes")?;
    ensure!(cookie.starts_with("__Host-hoop_session="), "{cookie}");
    ensure!(
        attributes == "Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure",
        "{attributes}"
    );
    let csrf = text(&signed_in.json(), "csrf_token");

    let cookie = ("Cookie", cookie);
    expect(&browser, "GET /api/me", Value::Null, &[cookie], 200).await?;
    let bearer = ("Authorization", "Bearer hoop_x");
    expect(&browser, "GET /api/me", Value::Null, &[cookie, bearer], 401).await?;
    let token = ("X-CSRF-Token", csrf.as_str());
    expect(&browser, "POST /api/logout", json!({}), &[cookie], 403).await?;
    expect(
        &browser,
        "POST /api/logout",
        json!({}),
        &[cookie, token, foreign[0]],
        403,
    )
    .await?;
    let own = ("Origin", PUBLIC_URL);
    let out = expect(&browser, "POST /api/logout", json!({}), &[cookie, token, own], 204).await?;
    ensure!(out.header("set-cookie").is_some_and(|set| set.contains("Max-Age=0")));
    expect(&browser, "GET /api/me", Value::Null, &[cookie], 401).await?;

    let again = expect(&browser, "POST /api/login", login("ada", "cookie"), &[], 200).await?;
    let set = again.header("set-cookie").context("no cookie")?;
    let cookie = ("Cookie", set.split(';').next().unwrap_or_default());
    expect(&browser, "GET /api/me", Value::Null, &[cookie], 200).await?;
    sql(
        &hoop,
        "update browser_sessions set last_used_at = now() - interval '61 minutes'",
    )
    .await?;
    expect(&browser, "GET /api/me", Value::Null, &[cookie], 401).await?;

    let of_ada = async |kind: &str| {
        let all = recorded(&hoop, kind).await?;
        anyhow::Ok(
            all.into_iter()
                .filter(|record| text(record, "subject") == "ada")
                .count(),
        )
    };
    ensure!(of_ada("login.succeeded").await? == 2 && of_ada("logout").await? == 1);
    Ok(())
}

/// What an authenticator shows at the next step, which is taken too, for clocks that differ.
fn next_code(totp: &Totp) -> Result<String> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(totp.generate(now_s + 30).to_string())
}

/// The first step, at this replica: the challenge of the second.
async fn challenge(api: &Api) -> Result<String> {
    let wanted = expect(api, "POST /api/login", login("ada", "token"), &[], 202).await?;
    Ok(text(&wanted.json(), "challenge"))
}

#[tokio::test]
async fn a_code_is_taken_once_by_all_replicas_and_recovery_codes_once_each() -> Result<()> {
    let hoop = hoop(2).await?;
    let (first, second) = (at(&hoop, 0)?, at(&hoop, 1)?);
    let base = &hoop.gateway()?.ready.api;
    let ada = Api::login(base, "ada", PASSWORD).await?;
    let path = "/api/me/second-factor";
    let enrolment = ada.post(path, json!({"password": PASSWORD})).await?;
    let totp = Totp::from_url(text(&enrolment, "uri"))
        .ok()
        .context("no otpauth address")?;
    // not asked for before it is confirmed
    Api::login(base, "ada", PASSWORD).await?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let code = totp.generate(now_s).to_string();
    let confirmed = ada.post(&format!("{path}/confirm"), json!({"code": code})).await?;
    let recovery: Vec<String> = serde_json::from_value(confirmed["recovery_codes"].clone())?;
    ensure!(recovery.len() == 10);

    // one code at two replicas at once
    let (one, two) = (challenge(&first).await?, challenge(&second).await?);
    let code = next_code(&totp)?;
    let step = "POST /api/login/second-factor";
    let body = |challenge: &str| json!({"challenge": challenge, "code": code});
    let (at_first, at_second) = tokio::join!(
        send(&first, step, body(&one), &[]),
        send(&second, step, body(&two), &[])
    );
    let (at_first, at_second) = (at_first?, at_second?);
    let mut statuses = [at_first.status, at_second.status];
    statuses.sort_unstable();
    ensure!(statuses == [200, 401], "{} {}", at_first.text(), at_second.text());
    let refused = if at_first.status == 401 { &at_first } else { &at_second };
    ensure!(refused.text().contains("used already"), "{}", refused.text());

    // each recovery code is good once
    let recover = |challenge: &str| json!({"challenge": challenge, "recovery_code": recovery[0]});
    let begun = challenge(&second).await?;
    let signed_in = expect(&second, step, recover(&begun), &[], 200).await?;
    ensure!(signed_in.json()["token"].is_string());
    expect(&second, step, recover(&begun), &[], 401).await?;
    expect(&first, step, recover(&challenge(&first).await?), &[], 401).await?;

    // the rest of its life
    let with = |code: &str| json!({"password": PASSWORD, "recovery_code": code});
    let fresh = ada.post(&format!("{path}/recovery-codes"), with(&recovery[1])).await?;
    let fresh: Vec<String> = serde_json::from_value(fresh["recovery_codes"].clone())?;
    let remove = format!("{path}/remove");
    let old = ada.send("POST", &remove, Some(&with(&recovery[2]))).await?;
    ensure!(old.status == 422, "{}", old.text());
    ada.post(&remove, with(&fresh[0])).await?;
    Api::login(base, "ada", PASSWORD).await?;
    let enrolment = ada.post(path, json!({"password": PASSWORD})).await?;
    let totp = Totp::from_url(text(&enrolment, "uri"))
        .ok()
        .context("no otpauth address")?;
    ada.post(&format!("{path}/confirm"), json!({"code": next_code(&totp)?}))
        .await?;
    challenge(&first).await?;
    hoop.api.delete("/api/users/ada/second-factor").await?;
    Api::login(base, "ada", PASSWORD).await?;

    let all = records(&hoop).await?;
    let count = |kind: &str| all.iter().filter(|(found, _)| found == kind).count();
    ensure!(count("second_factor.confirm") == 2 && count("second_factor.remove") == 2);
    ensure!(count("second_factor.recovery_codes") == 1);
    let methods: Vec<String> = all
        .iter()
        .filter(|(kind, _)| kind == "login.succeeded")
        .map(|(_, record)| text(&record["after"], "method"))
        .collect();
    for method in ["password+totp", "password+recovery-code"] {
        ensure!(
            methods.iter().filter(|found| *found == method).count() == 1,
            "{methods:?}"
        );
    }
    let said = format!("{all:?}");
    let secrets = recovery.iter().chain(&fresh).map(String::as_str);
    for secret in secrets.chain([PASSWORD, &text(&enrolment, "secret")]) {
        ensure!(!said.contains(secret), "a secret is in the record");
    }
    Ok(())
}

#[tokio::test]
async fn guessing_waits_longer_each_time_and_locks_nobody_else_out() -> Result<()> {
    let hoop = hoop(1).await?;
    let api = at(&hoop, 0)?;
    let from = |address: &'static str| [("X-Forwarded-For", address)];
    let wrong = |name: &str| json!({"username": name, "password": "a guess of somebody"});
    let stranger = from("203.0.113.5");
    let known = expect(&api, "POST /api/login", wrong("ada"), &stranger, 401).await?;
    let unknown = expect(&api, "POST /api/login", wrong("nobody"), &stranger, 401).await?;
    ensure!(known.text() == unknown.text(), "{} {}", known.text(), unknown.text());
    // until the wait is long enough for what follows, whatever else this machine does
    let (mut guesses, mut wait_s) = (1, 0);
    eventually(
        "guesses have to wait for longer and longer",
        WAIT_DEADLINE,
        async || {
            let answer = send(&api, "POST /api/login", wrong("ada"), &stranger).await?;
            match answer.status {
                401 => guesses += 1,
                429 => wait_s = wait_s.max(answer.header("retry-after").context("no time")?.parse()?),
                other => anyhow::bail!("{other} {}", answer.text()),
            }
            Ok((wait_s >= 8).then_some(()))
        },
    )
    .await?;
    ensure!(
        (8..=9).contains(&guesses),
        "{guesses} guesses before a wait of {wait_s} s"
    );
    // not even the right one is looked at
    expect(&api, "POST /api/login", login("ada", "token"), &stranger, 429).await?;
    // others, and the person elsewhere
    expect(
        &api,
        "POST /api/login",
        login("ada", "token"),
        &from("198.51.100.9"),
        200,
    )
    .await?;

    let failed = recorded(&hoop, "login.failed").await?;
    let of_ada = failed.iter().filter(|record| text(record, "subject") == "ada").count();
    ensure!(
        of_ada == guesses && failed.len() == guesses + 1,
        "{guesses}: {failed:?}"
    );
    ensure!(
        failed.iter().all(|record| record["by"]["address"] == "203.0.113.5"),
        "{failed:?}"
    );
    ensure!(!format!("{failed:?}").contains("nobody\"") && !format!("{failed:?}").contains("a guess"));
    Ok(())
}

#[tokio::test]
async fn the_set_up_link_makes_one_administrator_once_who_must_get_a_second_factor() -> Result<()> {
    let scratch = scratch()?;
    let store = Cluster::start(&scratch.path().join("store"), Make::default()).await?;
    let environment = [
        ("HOOP_LISTEN_API", "127.0.0.1:0"),
        ("HOOP_LISTEN_LINK", "127.0.0.1:0"),
        ("HOOP_LISTEN_POSTGRES", "127.0.0.1:0"),
        ("HOOP_API_TLS", "off"),
        ("HOOP_FIRST_ADMIN", "link"),
        ("HOOP_SECOND_FACTOR", "required"),
        ("DATABASE_URL", &store.url(STORE)),
    ];
    let environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let gateway = Gateway::start(&scratch.path().join("gateway"), environment, &[], "KILL").await?;
    ensure!(!gateway.ready.admin_password_file.exists());
    let log = gateway.process.log();
    let (_, token) = log.split_once("/setup#").context("no set-up link was printed")?;
    let token = token.split_whitespace().next().unwrap_or_default();
    let api = Api::anonymous(&gateway.ready.api);
    let body = |token: &str, username: &str, password: &str| json!({"token": token, "username": username, "password": password});
    let call = "POST /api/setup";
    expect(&api, call, body("hoop_i_made-up", "root", PASSWORD), &[], 401).await?;
    expect(&api, call, body(token, "root", "password1234"), &[], 422).await?;
    let made = expect(&api, call, body(token, "root", PASSWORD), &[], 200).await?;
    let bearer = format!("Bearer {}", text(&made.json(), "token"));
    let me = expect(&api, "GET /api/me", Value::Null, &[("Authorization", &bearer)], 200).await?;
    ensure!(text(&me.json(), "role") == "admin");
    expect(&api, call, body(token, "second", PASSWORD), &[], 401).await?;

    // and from then on only with a second factor, which the first sign-in sets up
    let root = json!({"username": "root", "password": PASSWORD});
    let wanted = expect(&api, "POST /api/login", root.clone(), &[], 202).await?.json();
    ensure!(wanted["enrol"] == true, "{wanted}");
    let challenge = json!({"challenge": wanted["challenge"]});
    let enrolment = expect(&api, "POST /api/login/enrol", challenge, &[], 200).await?.json();
    let totp = Totp::from_url(text(&enrolment, "uri"))
        .ok()
        .context("no otpauth address")?;
    let step = "POST /api/login/second-factor";
    let with = |code: &str| json!({"challenge": wanted["challenge"], "code": code});
    expect(&api, step, with("12345"), &[], 422).await?;
    let signed_in = expect(&api, step, with(&next_code(&totp)?), &[], 200).await?.json();
    ensure!(
        signed_in["recovery_codes"]
            .as_array()
            .is_some_and(|codes| codes.len() == 10)
    );
    let wanted = expect(&api, "POST /api/login", root, &[], 202).await?.json();
    ensure!(wanted["enrol"] == false, "{wanted}");
    let challenge = json!({"challenge": wanted["challenge"]});
    expect(&api, "POST /api/login/enrol", challenge, &[], 409).await?;
    Ok(())
}

#[tokio::test]
async fn a_new_password_of_ones_own_ends_all_other_sessions() -> Result<()> {
    let hoop = hoop(1).await?;
    let base = &hoop.gateway()?.ready.api;
    let (here, elsewhere) = (
        Api::login(base, "ada", PASSWORD).await?,
        Api::login(base, "ada", PASSWORD).await?,
    );
    let new = "other words, as different";
    let change = |old: &str, new: &str| json!({"old_password": old, "new_password": new});
    let refused = [
        (change("not the old one", new), "old_password"),
        (change(PASSWORD, "password1234"), "new_password"),
    ];
    for (body, field) in refused {
        let answer = here.send("PUT", "/api/me/password", Some(&body)).await?;
        ensure!(
            answer.status == 422 && text(&answer.json(), "field") == field,
            "{}",
            answer.text()
        );
    }
    here.put("/api/me/password", change(PASSWORD, new)).await?;
    here.get("/api/me").await?;
    ensure!(elsewhere.send("GET", "/api/me", None).await?.status == 401);
    Api::login(base, "ada", new).await?;
    Ok(())
}
