//! Signing in at providers outside, and from a command line: real gateways, real providers, a browser with cookies.

pub mod chromium;
mod command_line;
mod openid;
mod openid_lies;
mod saml;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::browser::{Browser, Page};
use hoop_tests::cluster::{STORE, free_port};
use hoop_tests::hoop::{Credential, Hoop, Options};
use hoop_tests::oidc::{CLIENT_ID, CLIENT_SECRET, OpenIdProvider};
use hoop_tests::record::text;
use serde_json::{Value, json};

/// Gateways behind one public address that leads nowhere: the test's browsers go to the replica that they are told.
pub struct Site {
    hoop: Hoop,
    pub public: String,
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

    pub fn at(&self, path: &str) -> String {
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

pub fn oidc_table(files: &tempfile::TempDir, issuer: &str, more: &str) -> Result<String> {
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
