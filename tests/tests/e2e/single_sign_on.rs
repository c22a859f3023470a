//! Signing in at providers outside, and from a command line: real gateways, real providers, a browser with cookies.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::browser::{Browser, Page};
use hoop_tests::chromium::Chromium;
use hoop_tests::cluster::{STORE, free_port};
use hoop_tests::hoop::{Credential, Hoop, Options};
use hoop_tests::http::Api;
use hoop_tests::oidc::{CLIENT_ID, CLIENT_SECRET, OpenIdProvider};
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use hoop_tests::saml::{IdentityProvider, Kind, ServiceProvider, write_key};
use serde_json::{Value, json};

/// Longest wait for what a provider changed to have its effect: a refresh interval of one second, a look each half
/// second, and the way to another replica.
const FOLLOWS: Duration = Duration::from_secs(15);
const LINK_DEADLINE: Duration = Duration::from_secs(30);

/// Gateways behind one public address that leads nowhere: the test's browsers go to the replica that they are told.
struct Site {
    hoop: Hoop,
    public: String,
}

impl Site {
    /// `config` is given the public address.
    async fn start(replicas: usize, public: String, config: String) -> Result<Self> {
        let hoop = Hoop::with(Options {
            replicas,
            gateway_env: vec![
                ("HOOP_PUBLIC_URL".into(), public.clone()),
                ("HOOP_SIGN_IN_REFRESH_S".into(), "1".into()),
            ],
            gateway_config: config,
            ..Options::default()
        })
        .await?;
        Ok(Self { hoop, public })
    }

    fn browser(&self, replica: usize) -> Result<Browser> {
        let mut browser = Browser::new()?;
        self.turn(&mut browser, replica)?;
        Ok(browser)
    }

    /// The balancer sends this browser to another replica.
    fn turn(&self, browser: &mut Browser, replica: usize) -> Result<()> {
        let gateway = self.hoop.gateways.get(replica).context("no such replica")?;
        browser.lead(&self.public, &gateway.ready.api);
        Ok(())
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.public)
    }

    async fn me(&self, browser: &mut Browser) -> Result<(u16, Value)> {
        browser.api(&self.public, "GET", "/api/me", None).await
    }

    /// A credential of whoever is signed in at this browser.
    async fn credential(&self, browser: &mut Browser, connection: &str) -> Result<Credential> {
        let path = format!("/api/connections/{connection}/credentials");
        let (status, answer) = browser.api(&self.public, "POST", &path, Some(&json!({}))).await?;
        ensure!(status == 201, "{status} {answer}");
        Ok(Credential {
            user: text(&answer, "user"),
            password: text(&answer, "password"),
            answer,
        })
    }

    /// Kinds and payloads of the administrative record.
    async fn records(&self, kind: &str) -> Result<Vec<Value>> {
        let rows = self.hoop.target.superuser(STORE).await?;
        let found = rows
            .query(
                "select payload from writer_log where kind = $1 order by at_us",
                &[&kind],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| Ok(serde_json::from_str(row.try_get::<_, &str>(0)?)?);
        found.iter().map(read).collect()
    }
}

/// An address of this machine that nobody has.
fn public_address() -> Result<String> {
    Ok(format!("http://localhost:{}", free_port()?))
}

/// A gateway's site and the OpenID provider `corp` that it knows.
struct Corp {
    site: Site,
    provider: OpenIdProvider,
    _files: tempfile::TempDir,
}

impl Corp {
    /// `None` where the provider cannot be had, which is said.
    async fn start(test: &str, replicas: usize, more: &str) -> Result<Option<Self>> {
        let public = public_address()?;
        let redirect = format!("{public}/api/sign-in/corp/callback");
        let Some(provider) = OpenIdProvider::start(test, &redirect, &format!("{public}/")).await? else {
            return Ok(None);
        };
        let files = tempfile::tempdir()?;
        let config = oidc_table(&files, &provider.issuer, more)?;
        let site = Site::start(replicas, public, config).await?;
        Ok(Some(Self {
            site,
            provider,
            _files: files,
        }))
    }

    /// Signs in, from our page to our page.
    async fn sign_in(&self, browser: &mut Browser, user: &str) -> Result<Page> {
        let page = browser
            .open(&self.site.at("/api/sign-in/corp?return_to=/api/me"))
            .await?;
        self.provider.pass(browser, page, user).await
    }

    /// To the provider and back to our door, where the browser stops with the answer in its hands.
    async fn answer(&self, browser: &mut Browser, user: &str) -> Result<Page> {
        let begin = browser.open(&self.site.at("/api/sign-in/corp")).await?;
        browser.stop_before(&self.site.public);
        let answer = self.provider.pass(browser, begin, user).await?;
        browser.stop_nowhere();
        ensure!(answer.status == 0, "{} {}", answer.url, answer.text);
        Ok(answer)
    }
}

fn oidc_table(files: &tempfile::TempDir, issuer: &str, more: &str) -> Result<String> {
    let secret = files.path().join("client-secret");
    fs::write(&secret, format!("{CLIENT_SECRET}\n"))?;
    Ok(format!(
        "[[oidc]]\nname = \"corp\"\ndisplay_name = \"Corp <accounts>\"\nissuer = \"{issuer}\"\nclient_id = \"{CLIENT_ID}\"\n\
         client_secret_file = \"{}\"\nscopes = [\"email\", \"profile\", \"groups\", \"offline_access\"]\nask_consent = true\n{more}\n",
        secret.display()
    ))
}

fn groups(me: &Value) -> Vec<String> {
    let groups = me.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
    groups
        .iter()
        .filter_map(|group| group.as_str().map(str::to_owned))
        .collect()
}

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

/// The site and a SAML identity provider `idp` that it knows.
struct Saml {
    site: Site,
    idp: IdentityProvider,
    _files: tempfile::TempDir,
}

impl Saml {
    async fn start(test: &str, kind: Kind, replicas: usize, audience: Option<&str>) -> Result<Option<Self>> {
        let public = public_address()?;
        let Some((idp, files, config)) = saml_table(test, kind, &public, audience).await? else {
            return Ok(None);
        };
        let site = Site::start(replicas, public, config).await?;
        Ok(Some(Self {
            site,
            idp,
            _files: files,
        }))
    }

    /// To the page whose form holds the response.
    async fn response(&self, browser: &mut Browser, user: &str) -> Result<Page> {
        let begin = self.site.at("/api/sign-in/idp?return_to=/api/me");
        self.idp.log_in(browser, &begin, user).await
    }

    async fn post(&self, browser: &mut Browser, response: &Page) -> Result<Page> {
        let (saml, relay) = (response.field("SAMLResponse")?, response.field("RelayState")?);
        let fields = [("SAMLResponse", saml.as_str()), ("RelayState", relay.as_str())];
        let acs = self.site.at("/api/sign-in/idp/acs").parse()?;
        browser.submit(response, acs, &fields).await
    }
}

/// An identity provider, the files that the configuration names, and the configuration.
async fn saml_table(
    test: &str,
    kind: Kind,
    public: &str,
    audience: Option<&str>,
) -> Result<Option<(IdentityProvider, tempfile::TempDir, String)>> {
    let files = tempfile::tempdir()?;
    let folder = files.path();
    write_key(folder, "sp")?;
    let service = ServiceProvider {
        entity_id: &format!("{public}/api/sign-in/idp/metadata"),
        acs_url: &format!("{public}/api/sign-in/idp/acs"),
        certificate: &folder.join("sp.crt"),
    };
    let Some(idp) = IdentityProvider::start(test, kind, &folder.join("idp"), service, audience).await? else {
        return Ok(None);
    };
    fs::write(folder.join("metadata.xml"), idp.metadata().await?)?;
    let at = folder.display();
    let config = format!(
        "[[saml]]\nname = \"idp\"\nmetadata_file = \"{at}/metadata.xml\"\nsigning_key_file = \"{at}/sp.key\"\n\
         signing_certificate_file = \"{at}/sp.crt\"\ngroups_attribute = \"groups\"\nauditor_groups = [\"sre\"]\n"
    );
    Ok(Some((idp, files, config)))
}

async fn saml_signs_in(test: &str, kind: Kind) -> Result<()> {
    let Some(saml) = Saml::start(test, kind, 2, None).await? else {
        return Ok(());
    };
    let mut browser = saml.site.browser(0)?;
    let metadata = browser.open(&saml.site.at("/api/sign-in/idp/metadata")).await?;
    ensure!(
        metadata.text.contains(&saml.site.at("/api/sign-in/idp/acs")),
        "{}",
        metadata.text
    );
    let response = saml.response(&mut browser, "alice").await?;

    let mut mallory = saml.site.browser(0)?;
    let stranger = saml.post(&mut mallory, &response).await?;
    ensure!(
        stranger.status == 403 && stranger.text.contains("begin here"),
        "{}",
        stranger.text
    );
    saml.response(&mut mallory, "bob").await?;
    let swapped = saml.post(&mut mallory, &response).await?;
    ensure!(swapped.status == 403, "another sign-in's cookie: {}", swapped.text);
    ensure!(saml.site.me(&mut mallory).await?.0 == 401);

    let mut copy = saml.site.browser(0)?;
    copy.steal_cookies(&browser);
    let mut elsewhere = saml.site.browser(1)?;
    elsewhere.steal_cookies(&browser);
    let page = saml.post(&mut browser, &response).await?;
    ensure!(
        page.status == 200 && page.url.path() == "/api/me",
        "{} {}",
        page.url,
        page.text
    );
    let (_, me) = saml.site.me(&mut browser).await?;
    ensure!(
        text(&me, "role") == "auditor" && groups(&me) == ["admin", "sre"],
        "{me}"
    );
    for replayer in [&mut copy, &mut elsewhere] {
        let replayed = saml.post(replayer, &response).await?;
        ensure!(
            replayed.status == 403 && replayed.text.contains("already used"),
            "{}",
            replayed.text
        );
        ensure!(saml.site.me(replayer).await?.0 == 401);
    }
    let mut bob = saml.site.browser(1)?;
    let response = saml.response(&mut bob, "bob").await?;
    saml.post(&mut bob, &response).await?;
    let (_, me) = saml.site.me(&mut bob).await?;
    ensure!(text(&me, "role") == "member" && groups(&me) == ["dev"], "{me}");
    let failed = saml.site.records("login.failed").await?;
    ensure!(failed.len() == 3, "the swapped one and two replays: {failed:?}");
    Ok(())
}

#[tokio::test]
async fn samlp_signs_people_in_and_a_response_is_good_once_on_whichever_replica() -> Result<()> {
    let test = "samlp_signs_people_in_and_a_response_is_good_once_on_whichever_replica";
    saml_signs_in(test, Kind::Samlp).await
}

#[tokio::test]
async fn simplesamlphp_signs_people_in_and_a_response_is_good_once_on_whichever_replica() -> Result<()> {
    let test = "simplesamlphp_signs_people_in_and_a_response_is_good_once_on_whichever_replica";
    saml_signs_in(test, Kind::SimpleSamlPhp).await
}

#[tokio::test]
async fn an_assertion_for_another_audience_is_refused_and_the_log_says_what_to_mend() -> Result<()> {
    let test = "an_assertion_for_another_audience_is_refused_and_the_log_says_what_to_mend";
    let Some(saml) = Saml::start(test, Kind::Samlp, 1, Some("urn:another:service")).await? else {
        return Ok(());
    };
    let mut browser = saml.site.browser(0)?;
    let response = saml.response(&mut browser, "alice").await?;
    let refused = saml.post(&mut browser, &response).await?;
    ensure!(
        refused.status == 403 && refused.text.contains("was refused"),
        "{}",
        refused.text
    );
    ensure!(saml.site.me(&mut browser).await?.0 == 401);
    let log = saml.site.hoop.gateway()?.process.log();
    ensure!(log.contains("(Audience)") && log.contains("sp_entity_id"), "{log}");
    let failed = saml.site.records("login.failed").await?;
    let why = failed
        .first()
        .and_then(|record| record.pointer("/after/why"))
        .and_then(Value::as_str);
    ensure!(why.is_some_and(|why| why.contains("Audience")), "{failed:?}");
    Ok(())
}

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
async fn poll_until(api: &Api, device_code: &str) -> Result<(u16, Value)> {
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

/// A gateway at an address that a real browser reaches.
async fn reachable(public: String, config: String) -> Result<Site> {
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
