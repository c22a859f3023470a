//! Between the two halves of a sign-in: what the browser takes to the provider, and what it brings back.

use super::config::printable;
use super::error::OidcError;
use super::secret::{Secret, exposed};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How long a person may take at the provider, in seconds.
pub const PENDING_MAX_S: i64 = 600;

/// A sign-in that was begun. Keep it where only that browser's next request finds it (sealed in a cookie, or in a row that
/// a cookie names), and forget it when it is used: it is good for one [`finish`](super::OidcProvider::finish). It
/// serialises with its secrets in clear, so seal what comes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub(super) provider: String,
    #[serde(with = "exposed")]
    pub(super) state: Secret,
    #[serde(with = "exposed")]
    pub(super) nonce: Secret,
    /// PKCE (RFC 7636).
    #[serde(with = "exposed")]
    pub(super) verifier: Secret,
    pub(super) made_at: DateTime<Utc>,
}

impl Pending {
    /// The provider with which it was begun.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The `state` that the answer must bring, to find this value again by; not a secret from this browser.
    #[must_use]
    pub fn state(&self) -> &str {
        self.state.expose()
    }

    /// From when on it is refused.
    #[must_use]
    pub fn expires_at(&self) -> DateTime<Utc> {
        let life = TimeDelta::seconds(PENDING_MAX_S);
        self.made_at.checked_add_signed(life).unwrap_or(self.made_at)
    }

    /// Whether the answer may be looked at: this provider, this browser, in time. Nothing is asked of the provider before.
    pub(super) fn accept(&self, provider: &str, callback: &Callback, now: DateTime<Utc>) -> Result<(), OidcError> {
        if self.provider != provider {
            return Err(OidcError::OtherProvider {
                begun_with: printable(&self.provider),
                came_back_for: provider.to_owned(),
            });
        }
        if !self.state.is(callback.state.as_deref().unwrap_or_default()) {
            return Err(OidcError::StateDiffers);
        }
        if now >= self.expires_at() || now < self.made_at - TimeDelta::seconds(PENDING_MAX_S) {
            return Err(OidcError::PendingExpired { max_s: PENDING_MAX_S });
        }
        Ok(())
    }
}

/// The query with which the provider sends the browser back (RFC 6749, section 4.1.2; RFC 9207).
#[derive(Default, Clone, Deserialize)]
pub struct Callback {
    pub code: Option<String>,
    pub state: Option<String>,
    pub iss: Option<String>,
    pub error: Option<String>,
    pub error_description: Option<String>,
}

impl Callback {
    /// RFC 9207, section 2.4: the issuer of the answer, required where the provider says that it gives it.
    pub(super) fn check_issuer(&self, issuer: &str, announced: bool) -> Result<(), OidcError> {
        match &self.iss {
            Some(found) if found == issuer => Ok(()),
            None if !announced => Ok(()),
            found => Err(OidcError::ResponseIssuer {
                found: found.as_deref().map_or_else(|| "nobody".to_owned(), printable),
            }),
        }
    }

    /// The code, or the provider's reason for not giving one.
    pub(super) fn into_code(self) -> Result<Secret, OidcError> {
        if let Some(error) = self.error {
            return Err(OidcError::Refused {
                error: printable(&error),
                description: printable(&self.error_description.unwrap_or_default()),
            });
        }
        let code = self.code.filter(|code| !code.is_empty());
        code.map(Secret::new).ok_or(OidcError::CodeMissing)
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = if self.code.is_some() { "given" } else { "missing" };
        f.debug_struct("Callback")
            .field("code", &code)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        Pending {
            provider: "corp".into(),
            state: Secret::new("st4te"),
            nonce: Secret::new("n0nce"),
            verifier: Secret::new("v3rifier"),
            made_at: DateTime::UNIX_EPOCH,
        }
    }

    fn answer(state: &str) -> Callback {
        Callback {
            state: Some(state.into()),
            code: Some("c0de".into()),
            ..Callback::default()
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    #[test]
    fn it_is_good_for_its_browser_its_provider_and_ten_minutes() {
        let pending = pending();
        assert_eq!(pending.accept("corp", &answer("st4te"), at(PENDING_MAX_S - 1)), Ok(()));
        let expired = OidcError::PendingExpired { max_s: PENDING_MAX_S };
        assert_eq!(
            pending.accept("corp", &answer("st4te"), at(PENDING_MAX_S)),
            Err(expired.clone())
        );
        assert_eq!(
            pending.accept("corp", &answer("st4te"), at(-PENDING_MAX_S - 1)),
            Err(expired)
        );
        for wrong in [answer("st4t"), answer("st4tf"), answer(""), Callback::default()] {
            assert_eq!(pending.accept("corp", &wrong, at(0)), Err(OidcError::StateDiffers));
        }
        let other = pending.accept("other", &answer("st4te"), at(0)).unwrap_err();
        assert!(matches!(other, OidcError::OtherProvider { .. }), "{other}");
    }

    #[test]
    fn it_comes_back_from_its_seal_unchanged_and_is_never_printed() {
        let text = serde_json::to_string(&pending()).unwrap();
        assert_eq!(serde_json::from_str::<Pending>(&text).unwrap(), pending());
        let shown = format!("{:?} {:?}", pending(), answer("st4te"));
        for secret in ["st4te", "n0nce", "v3rifier", "c0de"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn the_issuer_of_an_answer_is_checked_where_it_is_given_or_announced() {
        let by = |iss: Option<&str>| Callback {
            iss: iss.map(String::from),
            ..Callback::default()
        };
        assert_eq!(by(Some("https://a")).check_issuer("https://a", true), Ok(()));
        assert_eq!(by(None).check_issuer("https://a", false), Ok(()));
        for (iss, announced) in [(None, true), (Some("https://b"), true), (Some("https://b"), false)] {
            let error = by(iss).check_issuer("https://a", announced).unwrap_err();
            assert!(matches!(error, OidcError::ResponseIssuer { .. }), "{error}");
        }
    }

    #[test]
    fn an_error_of_the_provider_is_told_in_one_line() {
        let refused = Callback {
            error: Some("access_denied\n".into()),
            error_description: Some("x".repeat(5_000)),
            code: Some("c0de".into()),
            ..Callback::default()
        };
        let OidcError::Refused { error, description } = refused.into_code().unwrap_err() else {
            panic!()
        };
        assert_eq!(error, "access_denied");
        assert!(description.len() < 300);
        assert_eq!(Callback::default().into_code().unwrap_err(), OidcError::CodeMissing);
    }
}
