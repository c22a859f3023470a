//! What a browser carries on its way to a provider and back: sealed, in a cookie of its own, for one provider, for ten
//! minutes, used once.

use actix_web::HttpRequest;
use actix_web::cookie::time::Duration;
use actix_web::cookie::{Cookie, SameSite};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hoop_auth::oidc::PENDING_MAX_S;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::providers::{Protocol, Provider};
use crate::AppState;
use crate::problem::Problem;

/// Only these routes see it, where there is no `__Host-`.
const PATH: &str = "/api/sign-in";
/// Longest path to return to, in bytes.
const RETURN_TO_MAX_BYTES: usize = 2_048;

/// A sign-in under way. `P` is what the provider's answer is checked against.
#[derive(Serialize, Deserialize)]
pub struct Journey<P> {
    pub pending: P,
    /// A path of ours.
    pub return_to: String,
}

impl<P: Serialize + DeserializeOwned> Journey<P> {
    pub fn cookie(&self, state: &AppState, provider: &Provider) -> Result<Cookie<'static>, Problem> {
        let failed = || Problem::unavailable("The sign-in cannot be begun now. Try again.");
        let plain = serde_json::to_vec(self).map(Zeroizing::new).map_err(|_| failed())?;
        let key = state.store.installation().browser_key().map_err(|_| failed())?;
        let sealed = key.seal(seal_name(provider).as_bytes(), &plain).map_err(|_| failed())?;
        Ok(cookie(state, provider, URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// The one that this browser began with this provider.
    pub fn of(request: &HttpRequest, state: &AppState, provider: &Provider) -> Option<Self> {
        let cookie = request.cookie(&cookie_name(provider.name(), is_https(state)))?;
        let sealed = URL_SAFE_NO_PAD.decode(cookie.value()).ok()?;
        let key = state.store.installation().browser_key().ok()?;
        let plain = key.open(seal_name(provider).as_bytes(), &sealed).ok()?;
        serde_json::from_slice(&Zeroizing::new(plain)).ok()
    }
}

/// Takes the cookie away.
pub fn over(state: &AppState, provider: &Provider) -> Cookie<'static> {
    let mut gone = cookie(state, provider, String::new());
    gone.set_max_age(Duration::ZERO);
    gone
}

fn cookie(state: &AppState, provider: &Provider, value: String) -> Cookie<'static> {
    // A SAML answer is a POST from another site, which brings no cookie that is Lax.
    let comes_by_post = matches!(provider.protocol, Protocol::Saml(_));
    made(provider.name(), is_https(state), comes_by_post, value)
}

fn made(provider: &str, is_https: bool, comes_by_post: bool, value: String) -> Cookie<'static> {
    let same_site = if comes_by_post { SameSite::None } else { SameSite::Lax };
    Cookie::build(cookie_name(provider, is_https), value)
        .path(if is_https { "/" } else { PATH })
        .max_age(Duration::seconds(PENDING_MAX_S))
        .http_only(true)
        .same_site(same_site)
        .secure(is_https || comes_by_post)
        .finish()
}

/// With `__Host-` (RFC 6265bis, section 4.1.3.2) no other host of the same site can plant a sign-in of its own here, whose
/// answer would then be taken for this browser's.
fn cookie_name(provider: &str, is_https: bool) -> String {
    let prefix = if is_https { "__Host-" } else { "" };
    format!("{prefix}hoop_sign_in_{provider}")
}

fn is_https(state: &AppState) -> bool {
    state.public_url.starts_with("https://")
}

/// What is sealed for one provider opens for no other.
fn seal_name(provider: &Provider) -> String {
    format!("sign-in/{}/{}", provider.kind(), provider.name())
}

/// A path of our own to go to afterwards; anything else would let a link of ours lead anywhere.
pub fn return_to(asked: Option<&str>) -> Result<String, Problem> {
    let Some(path) = asked else { return Ok("/".to_owned()) };
    let is_ours = path.starts_with('/') && !path.starts_with("//") && path.len() <= RETURN_TO_MAX_BYTES;
    // Browsers take a backslash for a slash, and leave out tabs and line ends.
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_ours && is_plain {
        return Ok(path.to_owned());
    }
    Err(Problem::field(
        "return_to",
        "return_to must be a path of this gateway, such as /sessions?page=2, in at most 2,048 ASCII characters.",
    ))
}

#[cfg(test)]
mod tests {
    use super::{made, return_to};

    #[test]
    fn only_this_host_can_set_what_a_browser_carries() {
        let cookie = |is_https, by_post| made("corp", is_https, by_post, "v".into()).to_string();
        let host = "__Host-hoop_sign_in_corp=v; HttpOnly;";
        for (by_post, same_site) in [(false, "Lax"), (true, "None")] {
            assert_eq!(
                cookie(true, by_post),
                format!("{host} SameSite={same_site}; Secure; Path=/; Max-Age=600")
            );
        }
        assert_eq!(
            cookie(false, false),
            "hoop_sign_in_corp=v; HttpOnly; SameSite=Lax; Path=/api/sign-in; Max-Age=600"
        );
    }

    #[test]
    fn only_a_path_of_our_own_is_returned_to() {
        assert_eq!(return_to(None).unwrap(), "/");
        for path in ["/", "/a/b?c=d#e", "/a//b", "/?next=https://x"] {
            assert_eq!(return_to(Some(path)).unwrap(), path);
        }
        for other in [
            "",
            "a",
            "//evil.test",
            "/\\evil.test",
            "\\\\evil.test",
            "https://evil.test",
            "javascript:alert(1)",
            "/\t/evil.test",
            "/a\r\nset-cookie:b",
            "/ä",
            "/a b",
        ] {
            assert!(return_to(Some(other)).is_err(), "{other:?}");
        }
        assert!(return_to(Some(&format!("/{}", "x".repeat(2_048)))).is_err());
    }
}
