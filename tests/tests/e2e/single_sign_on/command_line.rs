//! From a command line: by device code, and on the browser's own machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::browser::{Browser, Page};
use hoop_tests::http::Api;
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use serde_json::{Value, json};

use super::{Site, public_address};

/// A browser in which the administrator is signed in with a password.
async fn local_browser(site: &Site) -> Result<Browser> {
    let gateway = site.hoop.gateway()?;
    let password = fs::read_to_string(&gateway.ready.admin_password_file)?;
    let mut browser = site.browser(0)?;
    let login = json!({"username": gateway.ready.admin_user, "password": password.trim(), "hold": "cookie"});
    let (status, answer) = browser.api(&site.public, "POST", "/api/login", Some(&login)).await?;
    ensure!(status == 200, "{answer}");
    Ok(browser)
}

async fn poll(api: &Api, device_code: &str) -> Result<(u16, Value)> {
    let body = json!({"device_code": device_code});
    let answer = api.send("POST", "/api/sign-in/device/token", Some(&body)).await?;
    Ok((answer.status, answer.json()))
}

/// As a command line does: it waits as long as it is told.
pub(super) async fn poll_until(api: &Api, device_code: &str) -> Result<(u16, Value)> {
    eventually("an answer to the command line", Duration::from_secs(30), async || {
        let (status, answer) = poll(api, device_code).await?;
        let waits = ["authorization_pending", "slow_down"].contains(&text(&answer, "error").as_str());
        if waits {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        Ok((!waits).then_some((status, answer)))
    })
    .await
}

#[tokio::test]
async fn a_command_line_gets_a_token_after_a_yes_in_a_browser() -> Result<()> {
    let site = Site::start(1, public_address()?, String::new()).await?;
    let base = site.hoop.gateway()?.ready.api.clone();
    let command_line = Api::anonymous(&base);
    let begun = command_line
        .post("/api/sign-in/device", json!({"client_name": "hoop on laptop-7"}))
        .await?;
    let (code, device_code) = (text(&begun, "user_code"), text(&begun, "device_code"));
    ensure!(
        text(&begun, "verification_uri") == site.at("/api/sign-in/device"),
        "{begun}"
    );
    let (status, waiting) = poll(&command_line, &device_code).await?;
    ensure!(
        status == 400 && text(&waiting, "error") == "authorization_pending",
        "{waiting}"
    );
    let (_, soon) = poll(&command_line, &device_code).await?;
    ensure!(text(&soon, "error") == "slow_down", "{soon}");

    let mut nobody = site.browser(0)?;
    let to_sign_in = nobody.open(&text(&begun, "verification_uri_complete")).await?;
    ensure!(to_sign_in.url.path() == "/api/sign-in", "{}", to_sign_in.url);
    let mut browser = local_browser(&site).await?;
    let wrong = browser
        .open(&site.at("/api/sign-in/device?user_code=BCDF-BCDF"))
        .await?;
    ensure!(wrong.status == 404, "{}", wrong.text);
    let question = browser.open(&text(&begun, "verification_uri_complete")).await?;
    for words in [
        "hoop on laptop-7",
        "from 127.0.0.1",
        "signed in as <strong>admin</strong>",
        &code,
    ] {
        ensure!(question.text.contains(words), "no {words:?} in {}", question.text);
    }
    let to = question.action()?;
    let token = question.field("form_token")?;
    let forged = [("user_code", code.as_str()), ("form_token", "x"), ("answer", "yes")];
    ensure!(browser.submit(&question, to.clone(), &forged).await?.status == 403);
    let yes = [
        ("user_code", code.as_str()),
        ("form_token", token.as_str()),
        ("answer", "yes"),
    ];
    let evil = Page {
        url: "http://evil.test/".parse()?,
        ..question.clone()
    };
    ensure!(
        browser.submit(&evil, to.clone(), &yes).await?.status != 200,
        "another site's form"
    );
    let said = browser.submit(&question, to, &yes).await?;
    ensure!(
        said.status == 200 && said.text.contains("is signed in"),
        "{}",
        said.text
    );

    let (status, answer) = poll_until(&command_line, &device_code).await?;
    ensure!(status == 200, "{answer}");
    let me = Api::with_token(&base, &text(&answer, "token")).get("/api/me").await?;
    ensure!(text(&me, "username") == "admin", "{me}");
    let (_, again) = poll(&command_line, &device_code).await?;
    ensure!(
        text(&again, "error") == "expired_token",
        "a token is given once: {again}"
    );
    let succeeded = site.records("login.succeeded").await?;
    let last = succeeded.last().context("no record")?;
    ensure!(last.pointer("/after/method") == Some(&json!("command-line")), "{last}");

    for number in 0..20 {
        let page = browser
            .open(&site.at(&format!("/api/sign-in/device?user_code=BCDF-BCD{number}")))
            .await?;
        if page.status == 429 {
            return Ok(());
        }
    }
    anyhow::bail!("codes can be guessed for ever")
}

#[tokio::test]
async fn a_no_reaches_the_command_line() -> Result<()> {
    let site = Site::start(1, public_address()?, String::new()).await?;
    let command_line = Api::anonymous(&site.hoop.gateway()?.ready.api);
    let begun = command_line.post("/api/sign-in/device", json!({})).await?;
    let mut browser = local_browser(&site).await?;
    let question = browser.open(&text(&begun, "verification_uri_complete")).await?;
    let (code, token) = (question.field("user_code")?, question.field("form_token")?);
    let no = [
        ("user_code", code.as_str()),
        ("form_token", token.as_str()),
        ("answer", "no"),
    ];
    browser.submit(&question, question.action()?, &no).await?;
    let (status, answer) = poll_until(&command_line, &text(&begun, "device_code")).await?;
    ensure!(status == 400 && text(&answer, "error") == "access_denied", "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_command_line_on_the_browsers_machine_gets_a_code_that_only_it_can_use() -> Result<()> {
    // the example of RFC 7636, appendix B
    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let site = Site::start(1, public_address()?, String::new()).await?;
    let base = site.hoop.gateway()?.ready.api.clone();
    let command_line = Api::anonymous(&base);
    let mut browser = local_browser(&site).await?;
    let ask = |redirect: &str| {
        site.at(&format!(
            "/api/sign-in/loopback?redirect_uri={redirect}&code_challenge={CHALLENGE}&state=st4te&client_name=hoop"
        ))
    };
    let elsewhere = browser.open(&ask("http://192.0.2.1:4711/")).await?;
    ensure!(
        elsewhere.status == 422 && elsewhere.text.contains("redirect_uri must be"),
        "{}",
        elsewhere.text
    );
    let mut codes = Vec::new();
    for _ in 0..2 {
        let question = browser.open(&ask("http://127.0.0.1:4711/back")).await?;
        let mut fields = vec![("answer", "yes".to_owned())];
        for name in ["redirect_uri", "code_challenge", "state", "client_name", "form_token"] {
            fields.push((name, question.field(name)?));
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        browser.stop_before("http://127.0.0.1:4711");
        let back = browser.submit(&question, question.action()?, &fields).await?;
        browser.stop_nowhere();
        let answer: std::collections::HashMap<_, _> = back.url.query_pairs().into_owned().collect();
        ensure!(
            answer.get("state").is_some_and(|state| state == "st4te"),
            "{}",
            back.url
        );
        codes.push(answer.get("code").context("no code")?.clone());
    }
    let redeem = async |code: &str, verifier: &str| {
        let body = json!({"code": code, "code_verifier": verifier});
        command_line
            .send("POST", "/api/sign-in/loopback/token", Some(&body))
            .await
    };
    let [first, second] = codes.as_slice() else {
        anyhow::bail!("two codes")
    };
    ensure!(redeem(first, &"x".repeat(43)).await?.status == 401);
    ensure!(redeem(first, VERIFIER).await?.status == 401, "used up");
    let good = redeem(second, VERIFIER).await?;
    ensure!(good.status == 200, "{}", good.text());
    let me = Api::with_token(&base, &text(&good.json(), "token"))
        .get("/api/me")
        .await?;
    ensure!(text(&me, "username") == "admin", "{me}");
    Ok(())
}
