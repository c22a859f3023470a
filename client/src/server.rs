//! The gateway's REST API, with its problem documents (RFC 9457) as errors.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::account::Account;
use crate::secret::Secret;

/// One request and its answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Items of one page of a list.
const PAGE_ITEMS: usize = 200;
/// Pages of one list at most.
const PAGES_MAX: usize = 500;

/// A gateway, and who asks.
pub struct Server {
    address: String,
    client: reqwest::Client,
    token: Option<Secret>,
}

/// What the gateway answered in place of what was asked.
#[derive(Debug, Deserialize)]
pub struct Problem {
    #[serde(skip)]
    pub status: u16,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    /// Of a sign-in that waits (RFC 8628, section 3.5).
    pub error: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.detail.as_str(), self.title.as_str()) {
            ("", "") => write!(f, "The gateway answered {} and said no more.", self.status),
            ("", title) => write!(f, "{title} ({}).", self.status),
            (detail, _) => f.write_str(detail),
        }
    }
}

impl std::error::Error for Problem {}

/// The gateway says that the token is not good (any more).
pub fn is_signed_out(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Problem>()
        .is_some_and(|problem| problem.status == StatusCode::UNAUTHORIZED.as_u16())
}

/// Scheme, host and port, as it is kept.
///
/// # Errors
/// Where it is no address of a gateway, or would carry the token in clear.
pub fn address(text: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let url =
        Url::parse(text).with_context(|| format!("{text} is not an address such as https://hoop.example.com:8009"))?;
    let own_machine = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if own_machine => {}
        "http" => bail!("{text} would carry your token in clear: use https"),
        _ => bail!("{text} is not an address such as https://hoop.example.com:8009"),
    }
    if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
        bail!("{text} must be scheme, host and port alone");
    }
    Ok(text.to_owned())
}

impl Server {
    /// # Errors
    /// Where the certificates cannot be read.
    pub fn anonymous(address: &str, ca_pem: Option<&str>) -> Result<Self> {
        let mut builder = reqwest::Client::builder().redirect(Policy::none()).timeout(DEADLINE);
        if address.starts_with("http://") {
            // to the own machine, and so not by way of a proxy, to which the token would go in clear
            builder = builder.no_proxy();
        }
        if let Some(pem) = ca_pem {
            let trusted = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).context("the CA's certificates")?;
            builder = builder.tls_certs_only(trusted);
        }
        Ok(Self {
            address: address.to_owned(),
            client: builder.build().context("no HTTP client")?,
            token: None,
        })
    }

    /// # Errors
    /// Where the certificates cannot be read.
    pub fn of(account: &Account) -> Result<Self> {
        let mut server = Self::anonymous(&account.server, account.ca_pem.as_deref())?;
        server.token = Some(account.token.clone());
        Ok(server)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// # Errors
    /// A `Problem`; where the gateway cannot be reached or answers something else.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, None).await
    }

    /// # Errors
    /// As `get`.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// # Errors
    /// As `get`.
    pub async fn post_nothing(&self, path: &str) -> Result<()> {
        self.send(Method::POST, path, None).await.map(drop)
    }

    /// # Errors
    /// As `get`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, None).await.map(drop)
    }

    /// # Errors
    /// As `get`.
    pub async fn text(&self, path: &str) -> Result<String> {
        String::from_utf8(self.send(Method::GET, path, None).await?.to_vec()).map_err(|_| not_a_gateway(&self.address))
    }

    /// All items of a list that comes in pages. `path` may have a query.
    ///
    /// # Errors
    /// As `get`.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct Page<T> {
            items: Vec<T>,
            next: Option<String>,
        }
        let and = if path.contains('?') { '&' } else { '?' };
        let first = format!("{path}{and}limit={PAGE_ITEMS}");
        let mut asked = first.clone();
        let mut all = Vec::new();
        for _ in 0..PAGES_MAX {
            let page: Page<T> = self.get(&asked).await?;
            all.extend(page.items);
            let Some(next) = page.next else { break };
            let cursor: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
            asked = format!("{first}&cursor={cursor}");
        }
        Ok(all)
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> Result<T> {
        let answer = self.send(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|_| not_a_gateway(&self.address))
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Zeroizing<Vec<u8>>> {
        let mut request = self.client.request(method, format!("{}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.bearer_auth(&**token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(error))? {
            if bytes.len().saturating_add(chunk.len()) > ANSWER_MAX_BYTES {
                bail!("{} answered more than {ANSWER_MAX_BYTES} bytes", self.address);
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(bytes);
        }
        let mut problem: Problem = serde_json::from_slice(&bytes).map_err(|_| not_a_gateway(&self.address))?;
        problem.status = status.as_u16();
        let signed_out = problem.status == StatusCode::UNAUTHORIZED.as_u16() && self.token.is_some();
        let error = anyhow::Error::new(problem);
        Err(if signed_out {
            error.context(format!(
                "{} does not take your token any more: hoop login",
                self.address
            ))
        } else {
            error
        })
    }

    /// What went wrong on the way, and what to do about a certificate that nobody here vouches for.
    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        let why = causes.pop().unwrap_or_else(|| "the connection broke".to_owned());
        let hint = if why.contains("certificate") {
            "\nIf the gateway uses its installation's own CA, get that certificate from your administrator and sign in with \
             hoop login --ca FILE."
        } else {
            ""
        };
        anyhow!("{} cannot be reached: {why}{hint}", self.address)
    }
}

fn not_a_gateway(address: &str) -> anyhow::Error {
    anyhow!("{address} answered something that no Hoop gateway answers: is the address right?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_in_clear_to_the_own_machine_alone() {
        for (good, kept) in [
            ("https://hoop.example.com:8009/", "https://hoop.example.com:8009"),
            ("https://hoop.example.com", "https://hoop.example.com"),
            ("http://127.0.0.1:8009", "http://127.0.0.1:8009"),
            ("http://localhost:8009", "http://localhost:8009"),
        ] {
            assert_eq!(address(good).unwrap(), kept);
        }
        for bad in [
            "http://hoop.example.com:8009",
            "http://localhost.example.com",
            "ftp://127.0.0.1",
            "hoop.example.com",
            "https://hoop.example.com/api",
            "https://u:p@hoop.example.com",
            "",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_problem_is_told_in_the_gateways_words() {
        let problem: Problem =
            serde_json::from_str(r#"{"title":"Not found","detail":"connection x does not exist."}"#).unwrap();
        assert_eq!(problem.to_string(), "connection x does not exist.");
        let empty: Problem = serde_json::from_str("{}").unwrap();
        assert_eq!(empty.to_string(), "The gateway answered 0 and said no more.");
    }
}
