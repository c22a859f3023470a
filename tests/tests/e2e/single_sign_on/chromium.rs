//! With a real browser.

use anyhow::{Result, ensure};
use hoop_tests::chromium::Chromium;
use hoop_tests::cluster::free_port;
use hoop_tests::hoop::{Hoop, Options};
use hoop_tests::http::Api;
use hoop_tests::oidc::OpenIdProvider;
use hoop_tests::record::text;
use hoop_tests::saml::Kind;
use serde_json::json;

use super::command_line::poll_until;
use super::saml::saml_table;
use super::{Site, oidc_table};

/// A gateway at an address that a real browser reaches.
pub async fn reachable(public: String, config: String) -> Result<Site> {
    let listen = public.trim_start_matches("http://").to_owned();
    let hoop = Hoop::with(Options {
        gateway_env: vec![
            ("HOOP_PUBLIC_URL".into(), public.clone()),
            ("HOOP_LISTEN_API".into(), listen),
        ],
        gateway_config: config,
        ..Options::default()
    })
    .await?;
    Ok(Site { hoop, public })
}

#[tokio::test]
async fn chromium_signs_in_at_an_openid_provider_and_says_yes_to_a_command_line() -> Result<()> {
    let test = "chromium_signs_in_at_an_openid_provider_and_says_yes_to_a_command_line";
    let Some(mut chromium) = Chromium::start(test)? else {
        return Ok(());
    };
    let public = format!("http://127.0.0.1:{}", free_port()?);
    let redirect = format!("{public}/api/sign-in/corp/callback");
    let Some(provider) = OpenIdProvider::start(test, &redirect, &format!("{public}/")).await? else {
        return Ok(());
    };
    let files = tempfile::tempdir()?;
    let site = reachable(public, oidc_table(&files, &provider.issuer, "")?).await?;
    let command_line = Api::anonymous(&site.public);
    let begun = command_line
        .post("/api/sign-in/device", json!({"client_name": "hoop"}))
        .await?;

    let ways = chromium.open(&text(&begun, "verification_uri_complete")).await?;
    ensure!(ways.url.contains("/api/sign-in?return_to="), "{ways:?}");
    chromium.click("a").await?;
    chromium
        .step(json!({"fill": {"[name=login]": "alice", "[name=password]": "any"}}))
        .await?;
    chromium.click("button[type=submit]").await?;
    let question = chromium.click("button[type=submit]").await?;
    ensure!(
        question.text.contains("signed in as alice"),
        "back at the command line's page: {question:?}"
    );
    let said = chromium.click("button[value=yes]").await?;
    ensure!(
        said.text.contains("is signed in"),
        "a real browser's Origin is taken: {said:?}"
    );
    let (status, answer) = poll_until(&command_line, &text(&begun, "device_code")).await?;
    ensure!(status == 200, "{answer}");
    Ok(())
}

#[tokio::test]
async fn chromium_carries_a_saml_response_across_sites() -> Result<()> {
    let test = "chromium_carries_a_saml_response_across_sites";
    let Some(mut chromium) = Chromium::start(test)? else {
        return Ok(());
    };
    // the identity provider is at `localhost`, another site than `127.0.0.1`
    let public = format!("http://127.0.0.1:{}", free_port()?);
    let Some((idp, files, config)) = saml_table(test, Kind::SimpleSamlPhp, &public, None).await? else {
        return Ok(());
    };
    let site = reachable(public, config).await?;
    chromium.open(&site.at("/api/sign-in/idp?return_to=/api/me")).await?;
    chromium
        .step(json!({"fill": {"[name=username]": "alice", "[name=password]": "alicepw"}}))
        .await?;
    chromium.click("[type=submit]").await?;
    let me = chromium.step(json!({"until": "/api/me"})).await?;
    ensure!(me.text.contains("\"groups\":[\"admin\",\"sre\"]"), "{me:?}");
    drop((idp, files));
    Ok(())
}
