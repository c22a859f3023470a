//! The gateway's API as apply uses it: JSON, a bearer token, versions as entity tags.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH, RETRY_AFTER};
use reqwest::{Certificate, Method, StatusCode};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::declaration::Kind;

/// Longest time of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Waits that one request may be told, and the longest of them.
const WAITS_MAX: u32 = 10;
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Items of a page, at most what the API gives.
const PAGE_ITEMS: u32 = 200;
/// Longest text of a refusal that is no problem document.
const REFUSAL_MAX_CHARS: usize = 200;

/// A resource as the gateway has it.
pub struct Found {
    pub view: Map<String, Value>,
    /// For `If-Match`; a resource without versions has none.
    pub tag: Option<String>,
}

pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Zeroizing<String>,
}

/// How long the gateway wants to be left alone: it takes so many requests a second from one account.
fn wanted_wait(answer: &reqwest::Response) -> Option<Duration> {
    if answer.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let wanted = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(wanted).min(WAIT_MAX))
}

/// The token must not go over a wire in clear.
fn check_server(url: &url::Url) -> Result<()> {
    let own_machine = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if own_machine => Ok(()),
        "http" => bail!("--server: http would carry the token in clear to another machine; use https"),
        _ => bail!("--server: must begin with https://"),
    }
}

impl Client {
    /// `ca_file` holds certificates that are trusted besides the system's.
    ///
    /// # Errors
    /// Where the server's URL, the token or the file cannot be used.
    pub fn new(server: &str, token: Zeroizing<String>, ca_file: Option<&Path>) -> Result<Self> {
        let url = url::Url::parse(server).with_context(|| format!("--server {server}"))?;
        check_server(&url)?;
        HeaderValue::from_str(&token).map_err(|_| anyhow!("the token holds a character that no token has"))?;
        let mut builder = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if url.scheme() == "http" {
            // to the own machine, and so not by way of a proxy, to which the token would go in clear
            builder = builder.no_proxy();
        }
        if let Some(file) = ca_file {
            let pem = fs::read(file).with_context(|| file.display().to_string())?;
            for certificate in Certificate::from_pem_bundle(&pem).with_context(|| file.display().to_string())? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            http: builder.build().context("cannot make an HTTP client")?,
            base: server.trim_end_matches('/').to_owned(),
            token,
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        tag: Option<&str>,
        body: Option<&Map<String, Value>>,
    ) -> reqwest::RequestBuilder {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token.as_str());
        if let Some(tag) = tag {
            request = request.header(IF_MATCH, tag);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        tag: Option<&str>,
        body: Option<&Map<String, Value>>,
    ) -> Result<(StatusCode, HeaderMap, Value)> {
        let what = format!("{method} {path}");
        let mut waits = WAITS_MAX;
        let answer = loop {
            let request = self.request(method.clone(), path, tag, body);
            let answer = request.send().await.with_context(|| what.clone())?;
            match wanted_wait(&answer) {
                Some(wait) if waits > 0 => tokio::time::sleep(wait).await,
                _ => break answer,
            }
            waits -= 1;
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.with_context(|| what.clone())?;
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok((status, headers, json));
        }
        let detail = json
            .get("detail")
            .and_then(Value::as_str)
            .map_or_else(|| text.chars().take(REFUSAL_MAX_CHARS).collect(), ToOwned::to_owned);
        bail!("{what}: {status}: {detail}")
    }

    /// `None` where there is none of this name.
    pub async fn find(&self, kind: Kind, name: &str) -> Result<Option<Found>> {
        self.read(&path(kind, name)).await
    }

    /// `None` where nothing is there.
    pub async fn read(&self, path: &str) -> Result<Option<Found>> {
        let (status, headers, json) = self.send(Method::GET, path, None, None).await?;
        let tag = headers
            .get(ETAG)
            .and_then(|tag| tag.to_str().ok())
            .map(ToOwned::to_owned);
        match json {
            Value::Object(view) if status.is_success() => Ok(Some(Found { view, tag })),
            _ => Ok(None),
        }
    }

    /// Every item of a list, whose path has a query.
    pub async fn items(&self, list: &str) -> Result<Vec<Map<String, Value>>> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let page = format!("{list}&limit={PAGE_ITEMS}{next}");
            let (_, _, mut json) = self.send(Method::GET, &page, None, None).await?;
            let Some(Value::Array(items)) = json.get_mut("items").map(Value::take) else {
                bail!("GET {list}: no list: is --server the gateway's API?");
            };
            all.extend(items.into_iter().filter_map(|item| match item {
                Value::Object(members) => Some(members),
                _ => None,
            }));
            match json.get("next").and_then(Value::as_str) {
                Some(cursor) => next = format!("&cursor={}", encoded(cursor)),
                None => return Ok(all),
            }
        }
    }

    /// Every resource of a kind, by name.
    pub async fn all(&self, kind: Kind) -> Result<Vec<Map<String, Value>>> {
        self.items(&format!("{}?sort=name", kind.path())).await
    }

    /// Answers what the gateway answered.
    pub async fn create(&self, kind: Kind, body: &Map<String, Value>) -> Result<Value> {
        let (status, _, json) = self.send(Method::POST, kind.path(), None, Some(body)).await?;
        if !status.is_success() {
            bail!("POST {}: {status}: is --server the gateway's API?", kind.path());
        }
        Ok(json)
    }

    pub async fn replace(&self, path: &str, tag: Option<&str>, body: &Map<String, Value>) -> Result<()> {
        let (status, ..) = self.send(Method::PUT, path, tag, Some(body)).await?;
        if !status.is_success() {
            bail!("{path} is no more; run apply again");
        }
        Ok(())
    }

    /// One that is gone already is as good as deleted.
    pub async fn delete(&self, kind: Kind, name: &str, tag: Option<&str>) -> Result<()> {
        self.send(Method::DELETE, &path(kind, name), tag, None).await.map(drop)
    }
}

pub fn path(kind: Kind, name: &str) -> String {
    format!("{}/{}", kind.path(), encoded(name))
}

pub fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::check_server;

    #[test]
    fn a_token_goes_in_clear_to_the_own_machine_alone() {
        let taken = |text: &str| check_server(&url::Url::parse(text).unwrap()).is_ok();
        for good in [
            "https://hoop.test:8009",
            "http://127.0.0.1:8009",
            "http://[::1]:8009",
            "http://localhost:8009",
        ] {
            assert!(taken(good), "{good}");
        }
        for bad in [
            "http://hoop.test:8009",
            "http://localhost.hoop.test",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
        ] {
            assert!(!taken(bad), "{bad}");
        }
    }
}
