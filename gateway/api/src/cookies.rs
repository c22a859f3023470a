//! What a browser signs in with, and what keeps another site from using it: a cookie that scripts cannot read, and a
//! token in a header, and the right `Origin`, with every request that changes something.
//!
//! Whether the cookie is `Secure`, and so has the `__Host-` prefix (RFC 6265bis, section 4.1.3.2), is decided by the
//! scheme of `public_url`: that is what the browser sees, whoever ends TLS.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::{COOKIE, HeaderName, HeaderValue, ORIGIN};
use hoop_store::browser_sessions::{self, Lifetimes};
use url::Url;
use zeroize::Zeroizing;

use crate::problem::Problem;

/// Holds what `GET /api/session` answers as `csrf_token`.
pub const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

const SECURE_NAME: &str = "__Host-hoop_session";
const CLEAR_NAME: &str = "hoop_session";

/// How browsers are served under this gateway's public address.
#[derive(Debug, Clone)]
pub(crate) struct Browsers {
    /// Of the pages that may ask (RFC 6454).
    origin: String,
    is_https: bool,
    pub lifetimes: Lifetimes,
}

impl Browsers {
    pub fn new(public_url: &str) -> Self {
        let parsed = Url::parse(public_url).ok();
        Self {
            origin: parsed.map_or_else(|| public_url.to_owned(), |url| url.origin().ascii_serialization()),
            is_https: public_url.starts_with("https://"),
            lifetimes: Lifetimes::default(),
        }
    }

    pub const fn cookie_name(&self) -> &'static str {
        if self.is_https { SECURE_NAME } else { CLEAR_NAME }
    }

    /// `Set-Cookie` for a session. `value` is ours: letters, digits, `-` and `_`.
    pub fn cookie(&self, value: &str) -> Result<HeaderValue, Problem> {
        self.set(value, self.lifetimes.absolute)
    }

    /// `Set-Cookie` that takes the cookie away.
    pub fn no_cookie(&self) -> Result<HeaderValue, Problem> {
        self.set("", Duration::ZERO)
    }

    fn set(&self, value: &str, life: Duration) -> Result<HeaderValue, Problem> {
        let secure = if self.is_https { "; Secure" } else { "" };
        let (name, life_s) = (self.cookie_name(), life.as_secs());
        let text = Zeroizing::new(format!(
            "{name}={value}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Lax{secure}"
        ));
        let mut header =
            HeaderValue::from_str(&text).map_err(|_| Problem::unavailable("The session's cookie cannot be made."))?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// The session's cookie of a request, if it brings one.
    ///
    /// # Errors
    /// Where it brings two: then one of them is somebody else's.
    pub fn presented(&self, request: &HttpRequest) -> Result<Option<Zeroizing<String>>, Problem> {
        let name = self.cookie_name();
        let headers = request
            .headers()
            .get_all(COOKIE)
            .filter_map(|value| value.to_str().ok());
        let pairs = headers
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        let mut found = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
        let first = found.next().map(|value| Zeroizing::new(value.to_owned()));
        if found.next().is_some() {
            return Err(Problem::unauthorized(format!(
                "The request has the cookie {name} twice. Delete this site's cookies and sign in again."
            )));
        }
        Ok(first)
    }

    /// A request that changes something, or signs somebody in, must come from our own pages where a browser says from
    /// whose it comes.
    ///
    /// # Errors
    /// `Origin` is another's.
    pub fn check_origin(&self, request: &HttpRequest) -> Result<(), Problem> {
        let mut given = request.headers().get_all(ORIGIN);
        match (given.next(), given.next()) {
            (None, _) => Ok(()),
            (Some(origin), None) if origin.as_bytes() == self.origin.as_bytes() => Ok(()),
            _ => Err(Problem::forbidden(format!(
                "The request comes from a page of another site. Open the gateway at {}, its public_url.",
                self.origin
            ))
            .of("Origin")),
        }
    }

    /// What a request must bring when a cookie says who asks.
    ///
    /// # Errors
    /// It changes something, and its origin or its token is not ours.
    pub fn check_forgery(&self, request: &HttpRequest, cookie: &str) -> Result<(), Problem> {
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
            return Ok(());
        }
        self.check_origin(request)?;
        let given = request.headers().get(CSRF_HEADER);
        if given.is_some_and(|given| browser_sessions::is_csrf_token(cookie, given.as_bytes())) {
            return Ok(());
        }
        Err(Problem::forbidden(
            "With a session's cookie, a request that changes something needs the header X-CSRF-Token. GET /api/session \
             answers its value as csrf_token.",
        )
        .of("X-CSRF-Token"))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> HttpRequest {
        let mut request = TestRequest::post();
        for header in headers {
            request = request.append_header(*header);
        }
        request.to_http_request()
    }

    #[test]
    fn the_scheme_of_the_public_address_decides_what_the_cookie_is() {
        let cookie = |url| Browsers::new(url).cookie("v").unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            cookie("https://hoop.test"),
            "__Host-hoop_session=v; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure"
        );
        assert_eq!(
            cookie("http://localhost:8009"),
            "hoop_session=v; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax"
        );
        let gone = Browsers::new("https://hoop.test").no_cookie().unwrap();
        assert!(
            gone.to_str()
                .unwrap()
                .starts_with("__Host-hoop_session=; Path=/; Max-Age=0;")
        );
    }

    #[test]
    fn one_cookie_is_found_among_others_and_two_are_refused() {
        let browsers = Browsers::new("http://localhost:8009");
        let found = |cookie| browsers.presented(&request(&[("cookie", cookie)])).map_err(drop);
        let value = |cookie| found(cookie).unwrap().map(|value| value.to_string());
        assert_eq!(value("a=b; hoop_session=x; xhoop_session=y"), Some("x".into()));
        assert_eq!(value("a=b; __Host-hoop_session=x"), None);
        assert!(found("hoop_session=x; hoop_session=y").is_err());
        let two = request(&[("cookie", "hoop_session=x"), ("cookie", "hoop_session=x")]);
        assert!(browsers.presented(&two).is_err());
    }

    #[test]
    fn only_our_own_origin_may_ask() {
        let browsers = Browsers::new("https://Hoop.test:443/behind/a/path");
        let allowed = |origins: &[&str]| {
            let headers: Vec<_> = origins.iter().map(|origin| ("origin", *origin)).collect();
            browsers.check_origin(&request(&headers)).is_ok()
        };
        assert!(allowed(&[]));
        assert!(allowed(&["https://hoop.test"]));
        for foreign in [
            "http://hoop.test",
            "https://hoop.test.evil",
            "https://hoop.test:8443",
            "null",
            "",
        ] {
            assert!(!allowed(&[foreign]), "{foreign}");
        }
        assert!(!allowed(&["https://hoop.test", "https://evil.test"]));
    }

    #[test]
    fn what_changes_something_needs_the_token_and_the_origin() {
        let browsers = Browsers::new("https://hoop.test");
        let token = browser_sessions::csrf_token("cookie");
        let checked = |headers: &[(&str, &str)]| browsers.check_forgery(&request(headers), "cookie");
        assert!(checked(&[("x-csrf-token", &token)]).is_ok());
        assert!(checked(&[("x-csrf-token", &token), ("origin", "https://hoop.test")]).is_ok());
        for (refused, field) in [
            (vec![], "X-CSRF-Token"),
            (vec![("x-csrf-token", "")], "X-CSRF-Token"),
            (vec![("x-csrf-token", "other")], "X-CSRF-Token"),
            (
                vec![("x-csrf-token", token.as_str()), ("origin", "https://evil.test")],
                "Origin",
            ),
        ] {
            assert_eq!(
                checked(&refused).unwrap_err().field.as_deref(),
                Some(field),
                "{refused:?}"
            );
        }
        let get = TestRequest::get().to_http_request();
        assert!(browsers.check_forgery(&get, "cookie").is_ok());
    }
}
