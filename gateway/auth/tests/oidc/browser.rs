//! What a person's browser does: it follows redirects and sends forms, with its cookies.

use crate::REDIRECT;
use hoop_auth::oidc::Callback;
use std::collections::HashMap;
use url::Url;

/// Pages between the gateway and the way back, at most.
const PAGES_MAX: usize = 20;

pub struct Browser {
    client: reqwest::Client,
    cookies: HashMap<String, String>,
}

/// What a browser shows, or where it was sent that is not the provider's.
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub text: String,
    /// Set where the provider sent the browser away.
    pub left_for: Option<Url>,
}

impl Page {
    /// The value of `name="…"` in this page's first form, by the attribute that follows.
    fn attribute(&self, after: &str) -> String {
        let (_, rest) = self
            .text
            .split_once(after)
            .unwrap_or_else(|| panic!("no {after} in {}", self.text));
        rest.split('"').next().unwrap_or_default().to_owned()
    }

    /// The query that the provider sent the browser back with.
    pub fn callback(&self) -> Callback {
        let left_for = self
            .left_for
            .as_ref()
            .unwrap_or_else(|| panic!("still at {}: {}", self.url, self.text));
        assert!(left_for.as_str().starts_with(REDIRECT), "{left_for}");
        let query: HashMap<String, String> = left_for.query_pairs().into_owned().collect();
        serde_json::from_value(serde_json::to_value(query).unwrap()).unwrap()
    }
}

impl Browser {
    pub fn new() -> Self {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        // nothing here speaks TLS, and the system's certificates take a while to read
        Self {
            client: client.tls_certs_only([]).build().unwrap(),
            cookies: HashMap::new(),
        }
    }

    pub async fn open(&mut self, url: Url) -> Page {
        self.follow(self.client.get(url)).await
    }

    /// Sends the form of a page.
    pub async fn submit(&mut self, page: &Page, fields: &[(&str, &str)]) -> Page {
        let action = page.url.join(&page.attribute("action=\"")).unwrap();
        self.follow(self.client.post(action).form(fields)).await
    }

    /// Goes through login and consent as `user`, from the address that `begin` gave to the way back.
    pub async fn sign_in(&mut self, url: Url, user: &str) -> Callback {
        let mut page = self.open(url).await;
        while page.left_for.is_none() {
            let prompt = page.attribute("name=\"prompt\" value=\"");
            page = self
                .submit(&page, &[("prompt", &prompt), ("login", user), ("password", "any")])
                .await;
        }
        page.callback()
    }

    async fn follow(&mut self, request: reqwest::RequestBuilder) -> Page {
        let mut request = request;
        for _ in 0..PAGES_MAX {
            let cookies: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let response = request.header("cookie", cookies.join("; ")).send().await.unwrap();
            for cookie in response.headers().get_all("set-cookie") {
                let pair = cookie.to_str().unwrap().split(';').next().unwrap();
                let (name, value) = pair.split_once('=').unwrap();
                match value {
                    "" => self.cookies.remove(name),
                    _ => self.cookies.insert(name.to_owned(), value.to_owned()),
                };
            }
            let (url, status) = (response.url().clone(), response.status().as_u16());
            let Some(next) = response.headers().get("location").cloned() else {
                let text = response.text().await.unwrap();
                return Page {
                    url,
                    status,
                    text,
                    left_for: None,
                };
            };
            let next = url.join(next.to_str().unwrap()).unwrap();
            if next.origin() != url.origin() {
                return Page {
                    url,
                    status,
                    text: String::new(),
                    left_for: Some(next),
                };
            }
            request = self.client.get(next);
        }
        panic!("more than {PAGES_MAX} redirects");
    }
}
