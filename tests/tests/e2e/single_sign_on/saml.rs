//! At a SAML identity provider.

use std::fs;

use anyhow::{Result, ensure};
use hoop_tests::browser::{Browser, Page};
use hoop_tests::cluster::STORE;
use hoop_tests::record::text;
use hoop_tests::saml::{IdentityProvider, Kind, ServiceProvider, write_key};
use serde_json::Value;

use super::{Site, groups, public_address};

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
pub(super) async fn saml_table(
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
    if kind == Kind::SimpleSamlPhp {
        // it says that a session is over after eight hours; by ourselves it would be twelve
        let store = saml.site.hoop.target.superuser(STORE).await?;
        let sql = "select bool_and(expires_at < created_at + interval '9 hours') from browser_sessions";
        let is_shorter: bool = store.query_one(sql, &[]).await?.try_get(0)?;
        ensure!(is_shorter, "our session outlives the identity provider's");
    }
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
