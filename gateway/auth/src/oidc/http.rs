//! Requests to the provider: bounded in time and size, never redirected, never in clear text over a wire.

use super::config::{ConfigError, OidcConfig, printable};
use super::error::OidcError;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use reqwest::redirect::Policy;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use url::Url;

/// Largest answer that is read, in bytes. A token of somebody in a thousand groups has about 100 KB.
pub(super) const RESPONSE_MAX_BYTES: usize = 1_024 * 1_024;
/// Most causes of a failure that are told.
const CAUSES_MAX: usize = 4;

/// A client for one provider.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    deadline: Duration,
}

impl Http {
    /// # Errors
    /// Where there is no certificate authority to trust.
    pub(super) fn new(config: &OidcConfig) -> Result<Self, ConfigError> {
        let remedy = "install the system's certificate authorities, or set ca_pem";
        let failed = |why: reqwest::Error| ConfigError::new("ca_pem", causes(&why), remedy);
        let mut builder = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(config.deadline)
            .https_only(!config.is_loopback());
        if config.is_loopback() {
            builder = builder.no_proxy();
        }
        if let Some(pem) = &config.ca_pem {
            let trusted = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)?;
            builder = builder.tls_certs_only(trusted);
        }
        let client = builder.build().map_err(failed)?;
        let deadline = config.deadline;
        Ok(Self { client, deadline })
    }

    /// Fetches a document.
    ///
    /// # Errors
    /// Where it does not come, comes with another status than 200, or is not what was expected.
    pub(super) async fn get_json<T: DeserializeOwned>(&self, url: &Url) -> Result<T, OidcError> {
        let request = self
            .client
            .get(url.clone())
            .header(http::header::ACCEPT, "application/json");
        let request = request.build().map_err(|why| self.failed(url, &why))?;
        let response = self.send(request).await?;
        if response.status() != http::StatusCode::OK {
            let status = response.status().as_u16();
            return Err(OidcError::Status {
                url: shown(url),
                status,
            });
        }
        serde_json::from_slice(response.body()).map_err(|why| OidcError::Unreadable {
            url: shown(url),
            cause: printable(&why.to_string()),
        })
    }

    async fn send(&self, request: reqwest::Request) -> Result<HttpResponse, OidcError> {
        let url = request.url().clone();
        let mut response = self
            .client
            .execute(request)
            .await
            .map_err(|why| self.failed(&url, &why))?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|why| self.failed(&url, &why))? {
            if body.len().saturating_add(chunk.len()) > RESPONSE_MAX_BYTES {
                let max_bytes = RESPONSE_MAX_BYTES;
                return Err(OidcError::TooLarge {
                    url: shown(&url),
                    max_bytes,
                });
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = HttpResponse::new(body);
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }

    fn failed(&self, url: &Url, why: &reqwest::Error) -> OidcError {
        let url = shown(url);
        if why.is_timeout() {
            let deadline_ms = self.deadline.as_millis();
            return OidcError::TimedOut { url, deadline_ms };
        }
        OidcError::Unreachable {
            url,
            cause: causes(why),
        }
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = OidcError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, OidcError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let url = request.uri().to_string();
            let request = reqwest::Request::try_from(request);
            let unreadable = |why: reqwest::Error| OidcError::Unreachable {
                url: printable(url.split(['?', '#']).next().unwrap_or_default()),
                cause: causes(&why),
            };
            self.send(request.map_err(unreadable)?).await
        })
    }
}

/// An address without what may be private in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Neither can fail for a web address.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    printable(url.as_str())
}

/// A failure and what it came of, without addresses.
fn causes(why: &reqwest::Error) -> String {
    let mut text = Vec::new();
    let mut next = why.source();
    while let Some(cause) = next.filter(|_| text.len() < CAUSES_MAX) {
        text.push(cause.to_string());
        next = cause.source();
    }
    if text.is_empty() {
        text.push(kind(why).to_owned());
    }
    printable(&text.join(": "))
}

fn kind(why: &reqwest::Error) -> &'static str {
    if why.is_builder() {
        "the request could not be made"
    } else if why.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    }
}
