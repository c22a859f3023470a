//! At an OpenID provider.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::cluster::STORE;
use hoop_tests::oidc::CLIENT_SECRET;
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use serde_json::json;

use super::{Corp, Site, groups};

/// Longest wait for what a provider changed to have its effect: a refresh interval of one second, a look each half
/// second, and the way to another replica.
const FOLLOWS: Duration = Duration::from_secs(15);
const LINK_DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_person_signs_in_with_the_groups_and_the_role_of_now_and_signs_out_at_the_provider_too() -> Result<()> {
    let test = "a_person_signs_in_with_the_groups_and_the_role_of_now_and_signs_out_at_the_provider_too";
    let Some(mut corp) = Corp::start(test, 1, "admin_groups = [\"admin\"]").await? else {
        return Ok(());
    };
    let local =
        json!({"username": "alice", "password": "a local password 1", "role": "member", "email": "alice@example.test"});
    corp.site.hoop.api.post("/api/users", local).await?;
    let mut browser = corp.site.browser(0)?;
    let ways = browser.open(&corp.site.at("/api/sign-in")).await?;
    ensure!(
        ways.text.contains("Sign in with Corp &lt;accounts&gt;"),
        "{}",
        ways.text
    );
    let page = corp.sign_in(&mut browser, "alice").await?;
    ensure!(
        page.status == 200 && page.url.path() == "/api/me",
        "{} {}",
        page.url,
        page.text
    );
    let (_, me) = corp.site.me(&mut browser).await?;
    ensure!(
        text(&me, "username") == "alice-2",
        "a local user is not taken over by an address: {me}"
    );
    ensure!(text(&me, "role") == "admin" && groups(&me) == ["admin", "sre"], "{me}");
    let (_, session) = browser.api(&corp.site.public, "GET", "/api/session", None).await?;
    ensure!(text(&session, "method") == "oidc:corp", "{session}");
    let pending = browser.cookie(&corp.site.public, "hoop_sign_in_corp");
    ensure!(pending.is_none(), "what was carried to the provider is gone");

    corp.provider.tell("groups alice dev").await?;
    let mut other = corp.site.browser(0)?;
    corp.sign_in(&mut other, "alice").await?;
    let (_, again) = corp.site.me(&mut other).await?;
    ensure!(again.get("id") == me.get("id"), "the same person: {me} {again}");
    ensure!(text(&again, "role") == "member" && groups(&again) == ["dev"], "{again}");

    let (_, out) = other
        .api(&corp.site.public, "GET", "/api/sign-in/log-out-address", None)
        .await?;
    let (status, _) = other.api(&corp.site.public, "POST", "/api/logout", None).await?;
    ensure!(status == 204);
    ensure!(corp.site.me(&mut other).await?.0 == 401);
    let question = other.open(&text(&out, "url")).await?;
    let xsrf = question.field("xsrf")?;
    other.stop_before(&corp.site.public);
    let left = other
        .submit(&question, question.action()?, &[("xsrf", &xsrf), ("logout", "yes")])
        .await?;
    ensure!(left.url.as_str() == corp.site.at("/"), "{} {}", left.url, left.text);
    other.stop_nowhere();
    let asked = other.open(&corp.site.at("/api/sign-in/corp")).await?;
    ensure!(
        asked.text.contains("name=\"login\""),
        "the provider asks who it is: {}",
        asked.text
    );

    let succeeded = corp.site.records("login.succeeded").await?;
    let by_provider = succeeded
        .iter()
        .filter(|record| record.pointer("/after/method") == Some(&json!("oidc:corp")));
    ensure!(by_provider.count() == 2, "{succeeded:?}");
    let created = corp.site.records("user.create").await?;
    let created = created.last().context("no record of the new user")?;
    ensure!(created.pointer("/by/provider") == Some(&json!("corp")), "{created}");
    Ok(())
}

#[tokio::test]
async fn an_answer_is_good_for_the_browser_that_asked_and_once() -> Result<()> {
    let test = "an_answer_is_good_for_the_browser_that_asked_and_once";
    let Some(corp) = Corp::start(test, 1, "").await? else {
        return Ok(());
    };
    let mut alice = corp.site.browser(0)?;
    let answer = corp.answer(&mut alice, "alice").await?;
    let mut mallory = corp.site.browser(0)?;
    let stranger = mallory.open(answer.url.as_str()).await?;
    ensure!(
        stranger.status == 403 && stranger.text.contains("not belong to a sign-in"),
        "{}",
        stranger.text
    );
    corp.answer(&mut mallory, "bob").await?;
    let swapped = mallory.open(answer.url.as_str()).await?;
    ensure!(swapped.status == 403, "another sign-in's cookie: {}", swapped.text);
    ensure!(
        mallory.cookie(&corp.site.public, "hoop_sign_in_corp").is_none(),
        "used up"
    );
    let mut tampered = corp.site.browser(0)?;
    let theirs = corp.answer(&mut tampered, "bob").await?;
    let forged = theirs.url.as_str().replace("state=", "state=x");
    ensure!(tampered.open(&forged).await?.status == 403);
    for browser in [&mut mallory, &mut tampered] {
        ensure!(corp.site.me(browser).await?.0 == 401);
    }

    let mut copy = corp.site.browser(0)?;
    copy.steal_cookies(&alice);
    let good = alice.open(answer.url.as_str()).await?;
    ensure!(
        !good.url.path().contains("callback") && good.status == 404,
        "to the app's first page: {} {}",
        good.url,
        good.text
    );
    ensure!(corp.site.me(&mut alice).await?.0 == 200);
    let replayed = copy.open(answer.url.as_str()).await?;
    ensure!(replayed.status == 403, "{}", replayed.text);
    ensure!(corp.site.me(&mut copy).await?.0 == 401);

    for away in ["//evil.test", "https://evil.test/", "/\\evil.test"] {
        let url = format!(
            "/api/sign-in/corp?return_to={}",
            away.replace('/', "%2F").replace('\\', "%5C")
        );
        let refused = alice.open(&corp.site.at(&url)).await?;
        ensure!(
            refused.status == 422 && refused.text.contains("a path of this gateway"),
            "{away}: {}",
            refused.text
        );
    }
    let failed = corp.site.records("login.failed").await?;
    ensure!(
        failed.len() == 3,
        "those of browsers that had begun a sign-in: {failed:?}"
    );
    ensure!(
        failed
            .iter()
            .all(|record| record.pointer("/after/method") == Some(&json!("oidc:corp"))),
        "{failed:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_group_that_the_provider_takes_away_ends_running_sessions_and_its_no_ends_the_sign_in() -> Result<()> {
    let test = "a_group_that_the_provider_takes_away_ends_running_sessions_and_its_no_ends_the_sign_in";
    let Some(mut corp) = Corp::start(test, 2, "").await? else {
        return Ok(());
    };
    let hoop = &corp.site.hoop;
    hoop.connection("prod", json!({"allow_members": false})).await?;
    let rule = json!({"name": "dev", "groups": ["dev"], "connections": ["prod"]});
    hoop.api.post("/api/access/rules", rule).await?;
    let mut browser = corp.site.browser(0)?;
    corp.sign_in(&mut browser, "bob").await?;
    let credential = corp.site.credential(&mut browser, "prod").await?;
    let mut running = Vec::new();
    for replica in 0..2 {
        let login = corp.site.hoop.login_at(replica, &credential)?.sslmode("require");
        let client = eventually("each replica serves", LINK_DEADLINE, async || {
            login.connect().await.map(Some)
        })
        .await?;
        client.simple_query("select 1").await?;
        running.push(client);
    }
    // several refreshes later, with a token that is good once each time
    let refreshed = async |corp: &Corp| {
        let user = corp.site.hoop.api.get("/api/users/bob/identities").await?;
        Ok::<_, anyhow::Error>(user.pointer("/items/0/refreshed_at").cloned().unwrap_or_default())
    };
    for _ in 0..3 {
        let before = refreshed(&corp).await?;
        eventually("the provider is asked again", FOLLOWS, async || {
            Ok((refreshed(&corp).await? != before).then_some(()))
        })
        .await?;
    }
    for client in &running {
        client
            .simple_query("select 1")
            .await
            .context("nothing was taken away yet")?;
    }
    corp.provider.tell("groups bob other").await?;
    for client in &running {
        eventually("the session has ended", FOLLOWS, async || {
            Ok(client.is_closed().then_some(()))
        })
        .await?;
    }
    let (status, me) = corp.site.me(&mut browser).await?;
    ensure!(
        status == 200 && groups(&me) == ["other"],
        "still signed in, with the groups of now: {me}"
    );

    corp.provider.tell("forget").await?;
    eventually("the provider's no has ended the sign-in", FOLLOWS, async || {
        Ok((corp.site.me(&mut browser).await?.0 == 401).then_some(()))
    })
    .await?;
    let bob = corp.site.hoop.api.get("/api/users/bob").await?;
    ensure!(groups(&bob).is_empty(), "{bob}");
    Ok(())
}

#[tokio::test]
async fn a_provider_that_is_away_keeps_nobody_else_out_and_takes_nothing_away() -> Result<()> {
    let test = "a_provider_that_is_away_keeps_nobody_else_out_and_takes_nothing_away";
    let Some(mut corp) = Corp::start(test, 1, "").await? else {
        return Ok(());
    };
    let mut browser = corp.site.browser(0)?;
    corp.sign_in(&mut browser, "alice").await?;
    corp.provider.tell("groups alice dev").await?;
    let Corp {
        mut site,
        provider,
        _files,
    } = corp;
    let has = async |site: &Site, groups: &[&str]| {
        let alice = site.hoop.api.get("/api/users/alice").await?;
        Ok::<_, anyhow::Error>(self::groups(&alice) == groups)
    };
    eventually("a last refresh", FOLLOWS, async || {
        Ok(has(&site, &["dev"]).await?.then_some(()))
    })
    .await?;
    provider.end().await?;
    eventually("the provider is missed", FOLLOWS, async || {
        let log = site.hoop.gateway()?.process.log();
        Ok(log
            .contains("an identity provider could not be asked; nothing changes")
            .then_some(()))
    })
    .await?;
    ensure!(site.me(&mut browser).await?.0 == 200 && has(&site, &["dev"]).await?);

    // a start without it
    let gateway = site.hoop.gateway_mut()?;
    gateway.process.kill_hard()?;
    gateway.start_again().await?;
    site.turn(&mut browser, 0)?;
    ensure!(site.me(&mut browser).await?.0 == 200, "who is signed in stays so");
    let begin = site.browser(0)?.open(&site.at("/api/sign-in/corp")).await?;
    ensure!(
        begin.status == 503 && begin.text.contains("does not answer"),
        "{}",
        begin.text
    );
    site.hoop
        .gateway()?
        .admin()
        .await
        .context("local accounts do not need it")?;
    Ok(())
}

#[tokio::test]
async fn only_linked_people_come_in_where_nobody_is_created_and_deactivated_ones_do_not() -> Result<()> {
    let test = "only_linked_people_come_in_where_nobody_is_created_and_deactivated_ones_do_not";
    let Some(corp) = Corp::start(test, 1, "create_users = false").await? else {
        return Ok(());
    };
    let api = &corp.site.hoop.api;
    let mut browser = corp.site.browser(0)?;
    let stranger = corp.sign_in(&mut browser, "bob").await?;
    ensure!(
        stranger.status == 403 && stranger.text.contains("Nobody here is linked"),
        "{}",
        stranger.text
    );
    let robert = json!({"username": "robert", "password": "a local password 1", "role": "member"});
    api.post("/api/users", robert).await?;
    let link = json!({"provider": "corp", "subject": "bob"});
    api.post("/api/users/robert/identities", link.clone()).await?;
    let again = api.send("POST", "/api/users/admin/identities", Some(&link)).await?;
    ensure!(again.status == 409, "{}", again.text());
    corp.sign_in(&mut browser, "bob").await?;
    let (_, me) = corp.site.me(&mut browser).await?;
    ensure!(text(&me, "username") == "robert" && groups(&me) == ["dev"], "{me}");

    let inactive = json!({"role": "member", "email": "", "groups": ["dev"], "active": false});
    api.put("/api/users/robert", inactive).await?;
    let mut other = corp.site.browser(0)?;
    let refused = corp.sign_in(&mut other, "bob").await?;
    ensure!(
        refused.status == 403 && refused.text.contains("was deactivated"),
        "{}",
        refused.text
    );
    api.delete("/api/users/robert/identities?provider=corp&subject=bob")
        .await?;
    let stranger = corp.sign_in(&mut other, "bob").await?;
    ensure!(stranger.text.contains("Nobody here is linked"), "{}", stranger.text);
    Ok(())
}

#[tokio::test]
async fn no_secret_of_a_provider_is_in_any_log_or_in_the_database() -> Result<()> {
    let test = "no_secret_of_a_provider_is_in_any_log_or_in_the_database";
    let Some(corp) = Corp::start(test, 1, "").await? else {
        return Ok(());
    };
    let mut browser = corp.site.browser(0)?;
    let answer = corp.answer(&mut browser, "alice").await?;
    let code = answer
        .url
        .query_pairs()
        .find(|(name, _)| name == "code")
        .context("no code")?
        .1
        .into_owned();
    browser.open(answer.url.as_str()).await?;
    let session = browser
        .cookie(&corp.site.public, "hoop_session")
        .context("not signed in")?
        .to_owned();
    let dump = corp.site.hoop.target.dump(STORE).await?;
    let log = corp.site.hoop.gateway()?.process.log();
    ensure!(dump.contains("alice@example.test"), "the dump is whole");
    for secret in [CLIENT_SECRET, code.as_str(), session.as_str()] {
        ensure!(!dump.contains(secret) && !log.contains(secret), "{secret}");
    }
    Ok(())
}
