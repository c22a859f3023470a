//! What a person's browser does without a script: it follows redirects, keeps cookies and sends forms.
//!
//! Stricter than a browser in one thing: two ports of one host are two sites, so that a cookie must say `SameSite=None`
//! to come along with another's form.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use reqwest::Method;
use serde_json::Value;
use url::Url;

/// Pages in a row, at most.
const PAGES_MAX: usize = 20;

/// A person's browser.
pub struct Browser {
    client: reqwest::Client,
    /// By site, then by name.
    cookies: HashMap<String, HashMap<String, Cookie>>,
    /// Addresses that lead elsewhere than they say, as those of a balancer do.
    leads: HashMap<String, String>,
    /// Sites at whose door it stops.
    stops: Vec<String>,
}

#[derive(Debug, Clone)]
struct Cookie {
    value: String,
    path: String,
    with_foreign_forms: bool,
}

/// What the browser shows in the end.
#[derive(Debug, Clone)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub text: String,
}

impl Page {
    /// The value of the form's field with this name, as text.
    ///
    /// # Errors
    /// Where there is none.
    pub fn field(&self, name: &str) -> Result<String> {
        let is_it = |tag: &&str| tag.starts_with("input") && tag.contains(&format!("name=\"{name}\""));
        let tag = self.text.split('<').find(is_it);
        let value = tag.and_then(|tag| tag.split("value=\"").nth(1)?.split('"').next());
        value
            .map(unescaped)
            .with_context(|| format!("no field {name} at {}: {}", self.url, self.text))
    }

    /// Where the first form goes.
    ///
    /// # Errors
    /// Where there is none.
    pub fn action(&self) -> Result<Url> {
        let (_, rest) = self
            .text
            .split_once("action=\"")
            .with_context(|| format!("no form at {}: {}", self.url, self.text))?;
        Ok(self.url.join(&unescaped(rest.split('"').next().unwrap_or_default()))?)
    }
}

/// Character references as providers write them.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';').unwrap_or(("", part));
        let code = match entity.strip_prefix('#') {
            Some(hex) if hex.starts_with('x') => u32::from_str_radix(&hex[1..], 16).ok(),
            Some(number) => number.parse().ok(),
            None => match entity {
                "amp" => Some(38),
                "quot" => Some(34),
                "lt" => Some(60),
                "gt" => Some(62),
                _ => None,
            },
        };
        plain.push(code.and_then(char::from_u32).unwrap_or('&'));
        plain.push_str(rest);
    }
    plain
}

impl Browser {
    /// # Errors
    /// Where there is no HTTP client.
    pub fn new() -> Result<Self> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // nothing here speaks TLS, and the system's certificates take a while to read
            .tls_certs_only([])
            .build()?;
        Ok(Self {
            client,
            cookies: HashMap::new(),
            leads: HashMap::new(),
            stops: Vec::new(),
        })
    }

    /// Whatever is asked of `origin` goes to `server` (`http://host:port` both).
    pub fn lead(&mut self, origin: &str, server: &str) {
        self.leads.insert(site_of(origin), site_of(server));
    }

    /// Stops before this site is asked, and shows its address.
    pub fn stop_before(&mut self, origin: &str) {
        self.stops.push(site_of(origin));
    }

    /// As before, with no stops.
    pub fn stop_nowhere(&mut self) {
        self.stops.clear();
    }

    /// Everything that another browser had of a site, as somebody would who copied it.
    pub fn steal_cookies(&mut self, from: &Self) {
        self.cookies.clone_from(&from.cookies);
    }

    /// A cookie's value, if it is there.
    #[must_use]
    pub fn cookie(&self, origin: &str, name: &str) -> Option<&str> {
        let site = self.cookies.get(&site_of(origin))?;
        site.get(name).map(|cookie| cookie.value.as_str())
    }

    /// # Errors
    /// Where an address does not answer.
    pub async fn open(&mut self, url: &str) -> Result<Page> {
        let url = Url::parse(url).with_context(|| url.to_owned())?;
        self.follow(Method::GET, url, None, None).await
    }

    /// Sends a form with these fields from a page of ours or of another's.
    ///
    /// # Errors
    /// Where an address does not answer.
    pub async fn submit(&mut self, from: &Page, to: Url, fields: &[(&str, &str)]) -> Result<Page> {
        let fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let fields = fields.collect();
        self.follow(Method::POST, to, Some(fields), Some(&from.url)).await
    }

    /// What a page's script asks of its own gateway, with the session's cookie and the token against forged requests.
    ///
    /// # Errors
    /// Where the gateway does not answer.
    pub async fn api(&mut self, origin: &str, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let site = site_of(origin);
        let mut request = self.request(
            &method.parse()?,
            &Url::parse(&format!("{origin}{path}"))?,
            None,
            None,
            false,
        )?;
        if method != "GET" {
            let session = Box::pin(self.api(origin, "GET", "/api/session", None)).await?.1;
            let token = session.get("csrf_token").and_then(Value::as_str).unwrap_or_default();
            request = request.header("x-csrf-token", token).header("origin", origin);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        self.keep_cookies(&site, &response);
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    async fn follow(
        &mut self,
        mut method: Method,
        mut url: Url,
        mut form: Option<Vec<(String, String)>>,
        from: Option<&Url>,
    ) -> Result<Page> {
        for _ in 0..PAGES_MAX {
            let site = site(&url);
            if self.stops.contains(&site) {
                return Ok(Page {
                    url,
                    status: 0,
                    text: String::new(),
                });
            }
            let foreign = method == Method::POST && from.is_some_and(|from| self::site(from) != site);
            let request = self.request(&method, &url, form.as_ref(), from, foreign)?;
            let response = request.send().await.with_context(|| format!("{method} {url}"))?;
            self.keep_cookies(&site, &response);
            let status = response.status().as_u16();
            let Some(next) = response.headers().get("location").cloned() else {
                let text = response.text().await?;
                return Ok(Page { url, status, text });
            };
            url = url.join(next.to_str()?)?;
            method = Method::GET;
            form = None;
        }
        bail!("more than {PAGES_MAX} redirects")
    }

    fn request(
        &self,
        method: &Method,
        url: &Url,
        form: Option<&Vec<(String, String)>>,
        from: Option<&Url>,
        foreign: bool,
    ) -> Result<reqwest::RequestBuilder> {
        let site = site(url);
        let mut target = url.clone();
        if let Some(server) = self.leads.get(&site) {
            let (host, port) = server.rsplit_once(':').context("a server has a port")?;
            target.set_host(Some(host))?;
            let _ = target.set_port(Some(port.parse()?));
        }
        let mut request = self.client.request(method.clone(), target).header("host", &site);
        let sent: Vec<String> = (self.cookies.get(&site).into_iter().flatten())
            .filter(|(_, cookie)| url.path().starts_with(&cookie.path) && (cookie.with_foreign_forms || !foreign))
            .map(|(name, cookie)| format!("{name}={}", cookie.value))
            .collect();
        if !sent.is_empty() {
            request = request.header("cookie", sent.join("; "));
        }
        if let Some(form) = form {
            request = request.form(form);
            if let Some(from) = from {
                request = request.header("origin", from.origin().ascii_serialization());
            }
        }
        Ok(request)
    }

    fn keep_cookies(&mut self, site: &str, response: &reqwest::Response) {
        let jar = self.cookies.entry(site.to_owned()).or_default();
        for header in response.headers().get_all("set-cookie") {
            let text = header.to_str().unwrap_or_default();
            let mut parts = text.split(';').map(str::trim);
            let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else {
                continue;
            };
            let mut path = "/";
            let (mut is_over, mut with_foreign_forms) = (value.is_empty(), false);
            for (name, value) in parts.filter_map(|attribute| attribute.split_once('=')) {
                match name.to_ascii_lowercase().as_str() {
                    "path" => path = value,
                    "max-age" => is_over |= value == "0",
                    "samesite" => with_foreign_forms = value.eq_ignore_ascii_case("none"),
                    _ => {}
                }
            }
            if is_over {
                jar.remove(name);
                continue;
            }
            let cookie = Cookie {
                value: value.to_owned(),
                path: path.to_owned(),
                with_foreign_forms,
            };
            jar.insert(name.to_owned(), cookie);
        }
    }
}

fn site(url: &Url) -> String {
    site_of(&url.origin().ascii_serialization())
}

fn site_of(origin: &str) -> String {
    origin.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn character_references_are_read() {
        assert_eq!(unescaped("a&amp;b&#x3D;&#61;&quot;"), "a&b==\"");
    }
}
