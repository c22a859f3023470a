//! `hoop login`, in each of its ways, against the real gateway and a real provider: what is kept, used and ended.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::browser::{Browser, Page};
use hoop_tests::chromium::Chromium;
use hoop_tests::cluster::{Cluster, Make, STORE, free_port, scratch};
use hoop_tests::hoop::Gateway;
use hoop_tests::http::Api;
use hoop_tests::oidc::OpenIdProvider;
use hoop_tests::process::{Said, eventually, run};
use hoop_tests::record::text;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use totp_rs::Totp;

use crate::client::hoop;
use crate::single_sign_on::chromium::reachable;
use crate::single_sign_on::{Site, oidc_table};

const DEADLINE: Duration = Duration::from_secs(60);

/// A gateway at an address of its own, a provider that it knows, and the home of somebody who has `hoop`.
struct Desk {
    site: Site,
    provider: OpenIdProvider,
    home: tempfile::TempDir,
    _files: tempfile::TempDir,
}

impl Desk {
    async fn start(test: &str) -> Result<Option<Self>> {
        let public = format!("http://127.0.0.1:{}", free_port()?);
        let redirect = format!("{public}/api/sign-in/corp/callback");
        let Some(provider) = OpenIdProvider::start(test, &redirect, &format!("{public}/")).await? else {
            return Ok(None);
        };
        let files = tempfile::tempdir()?;
        let site = reachable(public, oidc_table(&files, &provider.issuer, "")?).await?;
        Ok(Some(Self {
            site,
            provider,
            home: tempfile::tempdir()?,
            _files: files,
        }))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        hoop(self.home.path(), None, arguments)
    }

    async fn say(&self, arguments: &[&str]) -> Result<Said> {
        run(self.command(arguments)?, DEADLINE).await
    }

    /// To the page that asks, by way of the provider, as `user`.
    async fn question(&self, browser: &mut Browser, url: &str, user: &str) -> Result<Page> {
        let ways = browser.open(url).await?;
        ensure!(ways.url.path() == "/api/sign-in", "{}: {}", ways.url, ways.text);
        let way = ways
            .text
            .split("href=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let way = way.context("no way to sign in")?.replace("&amp;", "&");
        let begun = browser.open(&self.site.at(&way)).await?;
        self.provider.pass(browser, begun, user).await
    }
}

/// Answers the page with all of its fields.
async fn answer(browser: &mut Browser, question: &Page, answer: &str) -> Result<Page> {
    let names = question
        .text
        .split("name=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    let mut fields = vec![("answer", answer.to_owned())];
    for name in names.filter(|name| !["answer", "viewport"].contains(name)) {
        fields.push((name, question.field(name)?));
    }
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    browser.submit(question, question.action()?, &fields).await
}

fn account(home: &Path) -> PathBuf {
    home.join("account.json")
}

/// What a sign-in leaves: a file for this person alone, with a token that is good.
fn kept(home: &Path) -> Result<String> {
    let file = account(home);
    let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let account: Value = serde_json::from_slice(&fs::read(&file)?)?;
    Ok(text(&account, "token"))
}

/// Signed in as this person, it works; signed out, the token is good for nobody.
async fn used_and_ended(desk: &Desk, said: &Said, person: &str) -> Result<()> {
    let who = format!("{person} (");
    ensure!(said.ok && said.out.starts_with(&who), "{said:?}");
    let token = kept(desk.home.path())?;
    ensure!(
        !said.out.contains(&token) && !said.err.contains(&token),
        "the token is told"
    );
    let status = desk.say(&["status"]).await?.success()?;
    ensure!(status.out.starts_with(&who), "{}", status.out);
    desk.say(&["connections"]).await?.success()?;

    let holder = Api::with_token(&desk.site.public, &token);
    ensure!(holder.send("GET", "/api/me", None).await?.status == 200);
    let out = desk.say(&["logout"]).await?.success()?;
    ensure!(out.err.contains("Signed out."), "{out:?}");
    ensure!(!account(desk.home.path()).exists(), "something is kept");
    ensure!(
        holder.send("GET", "/api/me", None).await?.status == 401,
        "the token lives on"
    );
    let status = desk.say(&["status"]).await?;
    ensure!(
        !status.ok && status.err.contains("hoop login https://HOST:8009"),
        "{status:?}"
    );
    Ok(())
}

/// A program that a test talks to while it runs.
struct Running {
    child: tokio::process::Child,
    told: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
    err: String,
}

impl Running {
    fn start(command: Command) -> Result<Self> {
        let mut command = tokio::process::Command::from(command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let told = BufReader::new(child.stderr.take().context("no standard error")?).lines();
        Ok(Self {
            child,
            told,
            err: String::new(),
        })
    }

    async fn type_line(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("no input")?;
        Ok(input.write_all(format!("{line}\n").as_bytes()).await?)
    }

    /// The first line from here on for which `wanted` answers something.
    async fn hear<T>(&mut self, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        let heard = async {
            while let Some(line) = self.told.next_line().await? {
                self.err.push_str(&line);
                self.err.push('\n');
                if let Some(found) = wanted(line.trim()) {
                    return Ok(found);
                }
            }
            anyhow::bail!("it ended")
        };
        let heard = tokio::time::timeout(DEADLINE, heard).await;
        heard
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| self.err.clone())
    }

    async fn end(mut self) -> Result<Said> {
        drop(self.child.stdin.take());
        let rest = async {
            while let Some(line) = self.told.next_line().await? {
                self.err.push_str(&line);
                self.err.push('\n');
            }
            anyhow::Ok(self.child.wait_with_output().await?)
        };
        let output = tokio::time::timeout(DEADLINE, rest).await??;
        Ok(Said {
            err: self.err,
            ..Said::from(output)
        })
    }
}

fn code_in(line: &str) -> Option<String> {
    let is_code = line.len() == 9 && line.as_bytes().get(4) == Some(&b'-');
    is_code.then(|| line.to_owned())
}

#[tokio::test]
async fn a_code_that_is_typed_elsewhere_signs_in_until_logout() -> Result<()> {
    let test = "a_code_that_is_typed_elsewhere_signs_in_until_logout";
    let Some(desk) = Desk::start(test).await? else {
        return Ok(());
    };
    // no browser is here, so that a code is shown unasked
    let mut login = Running::start(desk.command(&["login", &desk.site.public])?)?;
    let code = login.hear(code_in).await?;
    let page = desk.site.at(&format!("/api/sign-in/device?user_code={code}"));
    let mut browser = Browser::new()?;
    let question = desk.question(&mut browser, &page, "alice").await?;
    ensure!(
        question.text.contains("signed in as <strong>alice"),
        "{}",
        question.text
    );
    answer(&mut browser, &question, "yes").await?;
    used_and_ended(&desk, &login.end().await?, "alice").await?;

    let mut login = Running::start(desk.command(&["login", &desk.site.public, "--device"])?)?;
    let code = login.hear(code_in).await?;
    let page = desk.site.at(&format!("/api/sign-in/device?user_code={code}"));
    let question = browser.open(&page).await?;
    answer(&mut browser, &question, "no").await?;
    let refused = login.end().await?;
    ensure!(
        !refused.ok && refused.err.contains("refused in the browser"),
        "{refused:?}"
    );
    ensure!(!account(desk.home.path()).exists(), "something is kept");
    Ok(())
}

/// Stands for the browser: it leaves the address to the test.
fn browser_that_notes(desk: &Desk, command: &mut Command) -> Result<PathBuf> {
    let (program, noted) = (desk.home.path().join("browser"), desk.home.path().join("opened"));
    let script = format!(
        "#!/bin/sh\nprintf %s \"$1\" >'{0}.part' && mv '{0}.part' '{0}'\n",
        noted.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    command.env("BROWSER", program);
    Ok(noted)
}

async fn opened(noted: &Path) -> Result<String> {
    eventually("the browser is opened", DEADLINE, async || {
        match fs::read_to_string(noted) {
            Ok(url) => {
                fs::remove_file(noted)?;
                Ok(Some(url))
            }
            Err(_) => Ok(None),
        }
    })
    .await
}

#[tokio::test]
async fn the_browser_of_this_machine_signs_in_until_logout() -> Result<()> {
    let Some(desk) = Desk::start("the_browser_of_this_machine_signs_in_until_logout").await? else {
        return Ok(());
    };
    let mut browser = Browser::new()?;
    let mut command = desk.command(&["login", &desk.site.public])?;
    let noted = browser_that_notes(&desk, &mut command)?;
    let login = Running::start(command)?;
    let question = desk.question(&mut browser, &opened(&noted).await?, "alice").await?;
    ensure!(
        question.text.contains("signed in as <strong>alice"),
        "{}",
        question.text
    );
    let back = answer(&mut browser, &question, "yes").await?;
    ensure!(
        back.url.host_str() == Some("127.0.0.1") && back.text.contains("Go back to your terminal"),
        "{}: {}",
        back.url,
        back.text
    );
    used_and_ended(&desk, &login.end().await?, "alice").await?;

    let mut command = desk.command(&["login", &desk.site.public])?;
    let noted = browser_that_notes(&desk, &mut command)?;
    let login = Running::start(command)?;
    let question = browser.open(&opened(&noted).await?).await?;
    answer(&mut browser, &question, "no").await?;
    let refused = login.end().await?;
    ensure!(
        !refused.ok && refused.err.contains("refused in the browser"),
        "{refused:?}"
    );
    ensure!(!account(desk.home.path()).exists(), "something is kept");
    Ok(())
}

#[tokio::test]
async fn chromium_brings_the_code_to_the_command_line() -> Result<()> {
    let test = "chromium_brings_the_code_to_the_command_line";
    let Some(mut chromium) = Chromium::start(test)? else {
        return Ok(());
    };
    let Some(desk) = Desk::start(test).await? else {
        return Ok(());
    };
    let mut command = desk.command(&["login", &desk.site.public])?;
    let noted = browser_that_notes(&desk, &mut command)?;
    let login = Running::start(command)?;
    chromium.open(&opened(&noted).await?).await?;
    chromium.click("a").await?;
    chromium
        .step(json!({"fill": {"[name=login]": "alice", "[name=password]": "any"}}))
        .await?;
    chromium.click("button[type=submit]").await?;
    let question = chromium.click("button[type=submit]").await?;
    ensure!(question.text.contains("signed in as alice"), "{question:?}");
    let back = chromium.click("button[value=yes]").await?;
    ensure!(back.text.contains("Go back to your terminal"), "{back:?}");
    used_and_ended(&desk, &login.end().await?, "alice").await
}

/// A local account at a gateway that asks everybody for a second factor.
#[tokio::test]
async fn a_local_account_signs_in_at_the_terminal_and_gets_its_second_factor_there() -> Result<()> {
    let scratch = scratch()?;
    let store = Cluster::start(&scratch.path().join("store"), Make::default()).await?;
    let environment = [
        ("HOOP_LISTEN_API", "127.0.0.1:0"),
        ("HOOP_LISTEN_LINK", "127.0.0.1:0"),
        ("HOOP_LISTEN_POSTGRES", "127.0.0.1:0"),
        ("HOOP_API_TLS", "off"),
        ("HOOP_SECOND_FACTOR", "required"),
        ("DATABASE_URL", &store.url(STORE)),
    ];
    let environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let gateway = Gateway::start(&scratch.path().join("gateway"), environment, &[], "KILL").await?;
    let (address, admin) = (gateway.ready.api.clone(), gateway.ready.admin_user.clone());
    let password = fs::read_to_string(&gateway.ready.admin_password_file)?
        .trim()
        .to_owned();
    let home = tempfile::tempdir()?;
    let login =
        || -> Result<Running> { Running::start(hoop(home.path(), None, &["login", &address, "--user", &admin])?) };

    let mut first = login()?;
    first.type_line(&password).await?;
    let uri = first
        .hear(|line| line.starts_with("otpauth://").then(|| line.to_owned()))
        .await?;
    let totp = Totp::from_url(&uri).ok().context("no otpauth address")?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    first.type_line(&totp.generate(now_s).to_string()).await?;
    first
        .hear(|line| line.starts_with("Keep these codes").then_some(()))
        .await?;
    first.hear(|line| line.is_empty().then_some(())).await?;
    let recovery = first.hear(|line| Some(line.to_owned())).await?;
    let said = first.end().await?;
    ensure!(said.ok && said.out.starts_with(&format!("{admin} (admin")), "{said:?}");
    ensure!(!said.err.contains(&password), "the password is told");
    let before = kept(home.path())?;

    let mut second = login()?;
    second.type_line(&password).await?;
    second.type_line(&recovery).await?;
    second.end().await?.success()?;
    ensure!(kept(home.path())? != before, "the old token was kept");
    run(hoop(home.path(), None, &["status"])?, DEADLINE).await?.success()?;

    for (typed, code, told) in [
        ("wrong", "", "The user name or the password is wrong."),
        (password.as_str(), recovery.as_str(), "code"),
    ] {
        let mut refused = login()?;
        refused.type_line(typed).await?;
        // it may have ended already
        let _ = refused.type_line(code).await;
        let refused = refused.end().await?;
        ensure!(!refused.ok && refused.err.contains(told), "{refused:?}");
    }
    ensure!(kept(home.path())? != before, "a sign-in that failed takes nothing away");
    Ok(())
}
