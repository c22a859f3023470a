//! What an administrator says about an OpenID provider, and whether it can be right.

use super::secret::Secret;
use openidconnect::core::CoreJwsSigningAlgorithm as Jws;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;
use url::{Host, Url};

/// Longest name of a provider, in characters; it stands in addresses.
const NAME_MAX_CHARS: usize = 64;
/// Longest value of any other field, in bytes.
const FIELD_MAX_BYTES: usize = 2_048;
/// Longest bundle of certificates, in bytes.
const CA_MAX_BYTES: usize = 256 * 1_024;
/// Most scopes that one provider is asked for.
const SCOPES_MAX: usize = 32;
/// How long one request to the provider may take, by default.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
const DEADLINE_MIN: Duration = Duration::from_secs(1);
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// One OpenID provider. The person's lasting name is always the claim `sub`: no setting changes that, because every
/// other claim can be given to somebody else.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// Our name of the provider, in addresses and in [`Identity`](crate::Identity): lower-case letters, digits, `-`.
    pub name: String,
    /// The issuer's address, letter by letter as its discovery document and tokens have it.
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Secret,
    /// How the secret is presented; `None` takes what the discovery document offers, `Basic` before `Post`.
    pub client_auth: Option<ClientAuth>,
    /// Asked for beside `openid`, which always is. Some providers give groups for `groups`, and others refuse a scope that
    /// they do not know. `offline_access` is what most providers give a refresh token for.
    pub scopes: Vec<String>,
    /// Ask the provider to show its consent page each time. Some give a refresh token only then (OpenID Connect Core
    /// 1.0, section 11); others trouble people with it for nothing.
    pub ask_consent: bool,
    /// The claim with the person's groups: a list of texts, or one text.
    pub groups_claim: String,
    pub email_claim: String,
    /// Where the provider sends the browser back to; registered there letter by letter.
    pub redirect_uri: String,
    /// PEM certificates of the authorities that vouch for the provider, in place of the system's.
    pub ca_pem: Option<String>,
    /// What an ID token may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// How long one request to the provider may take, 1 to 60 s. The end of a sign-in makes at most five.
    pub deadline: Duration,
}

impl OidcConfig {
    /// A configuration with the defaults for all that most providers agree on.
    pub fn new(
        name: impl Into<String>,
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: Secret,
        redirect_uri: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            client_id: client_id.into(),
            client_secret,
            client_auth: None,
            scopes: ["email", "profile"].map(String::from).to_vec(),
            ask_consent: false,
            groups_claim: "groups".into(),
            email_claim: "email".into(),
            redirect_uri: redirect_uri.into(),
            ca_pem: None,
            algorithms: vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa],
            deadline: DEADLINE_DEFAULT,
        }
    }

    /// Looks at every field.
    ///
    /// # Errors
    /// The first field that cannot be right, and what to write in its place.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_name(&self.name)?;
        check_issuer(&self.issuer)?;
        check_filled(
            "client_id",
            &self.client_id,
            "give the client id that the provider assigned",
        )?;
        let secret = self.client_secret.expose();
        check_filled(
            "client_secret",
            secret,
            "give the client secret that the provider assigned",
        )?;
        check_scopes(&self.scopes)?;
        check_filled("groups_claim", &self.groups_claim, "name a claim; \"groups\" is usual")?;
        check_filled("email_claim", &self.email_claim, "name a claim; \"email\" is usual")?;
        check_redirect(&self.redirect_uri)?;
        check_ca(self.ca_pem.as_deref())?;
        if self.algorithms.is_empty() {
            let remedy = "name at least one, RS256 for most providers";
            return Err(ConfigError::new("algorithms", "there is none", remedy));
        }
        if self.deadline < DEADLINE_MIN || self.deadline > DEADLINE_MAX {
            let problem = format!("{:?} is out of range", self.deadline);
            return Err(ConfigError::new("deadline", problem, "use 1 to 60 seconds"));
        }
        Ok(())
    }

    /// Whether the issuer is on this machine, where plain HTTP crosses no wire.
    pub(super) fn is_loopback(&self) -> bool {
        Url::parse(&self.issuer).is_ok_and(|url| is_loopback(&url))
    }
}

/// How a client proves itself at the token endpoint (OpenID Connect Core 1.0, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_basic`: in the `Authorization` header.
    Basic,
    /// `client_secret_post`: in the body.
    Post,
}

/// A signature with a public key (RFC 7518, RFC 8037). `none` and the HMAC family have no value here: a secret that
/// both sides know proves nothing about who wrote a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    const ALL: [(Self, &'static str, Jws); 9] = [
        (Self::Rs256, "RS256", Jws::RsaSsaPkcs1V15Sha256),
        (Self::Rs384, "RS384", Jws::RsaSsaPkcs1V15Sha384),
        (Self::Rs512, "RS512", Jws::RsaSsaPkcs1V15Sha512),
        (Self::Ps256, "PS256", Jws::RsaSsaPssSha256),
        (Self::Ps384, "PS384", Jws::RsaSsaPssSha384),
        (Self::Ps512, "PS512", Jws::RsaSsaPssSha512),
        (Self::Es256, "ES256", Jws::EcdsaP256Sha256),
        (Self::Es384, "ES384", Jws::EcdsaP384Sha384),
        (Self::EdDsa, "EdDSA", Jws::EdDsa),
    ];

    /// The library's values of these algorithms.
    pub(super) fn to_jws(allowed: &[Self]) -> Vec<Jws> {
        let chosen = Self::ALL
            .into_iter()
            .filter(|(algorithm, _, _)| allowed.contains(algorithm));
        chosen.map(|(_, _, jws)| jws).collect()
    }
}

impl FromStr for Algorithm {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let found = Self::ALL.into_iter().find(|(_, known, _)| *known == name);
        found.map(|(algorithm, _, _)| algorithm).ok_or_else(|| {
            let problem = format!(
                "{} is no signature with a public key that is known here",
                printable(name)
            );
            let remedy = "use some of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA";
            ConfigError::new("algorithms", problem, remedy)
        })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.into_iter().find(|(algorithm, _, _)| algorithm == self);
        f.write_str(found.map_or("", |(_, name, _)| name))
    }
}

/// A field that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct ConfigError {
    /// As it is called in [`OidcConfig`].
    pub field: &'static str,
    pub problem: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl ConfigError {
    pub(super) fn new(field: &'static str, problem: impl Into<String>, remedy: &'static str) -> Self {
        let problem = problem.into();
        Self { field, problem, remedy }
    }
}

/// Foreign text, made fit for one line of a log or a page.
pub(super) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}

/// Whether this address is on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

/// HTTPS, or plain HTTP that does not leave this machine.
pub(super) fn is_safe(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_MAX_CHARS || !name.chars().all(fits) {
        let problem = format!("\"{}\" cannot stand in an address", printable(name));
        let remedy = "use 1 to 64 lower-case letters, digits and hyphens";
        return Err(ConfigError::new("name", problem, remedy));
    }
    Ok(())
}

fn check_filled(field: &'static str, value: &str, remedy: &'static str) -> Result<(), ConfigError> {
    if value.trim().is_empty() {
        return Err(ConfigError::new(field, "it is empty", remedy));
    }
    if value.len() > FIELD_MAX_BYTES {
        return Err(ConfigError::new(
            field,
            format!("it is longer than {FIELD_MAX_BYTES} bytes"),
            remedy,
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(ConfigError::new(field, "it has a control character", remedy));
    }
    Ok(())
}

fn check_url(field: &'static str, value: &str, remedy: &'static str) -> Result<Url, ConfigError> {
    check_filled(field, value, remedy)?;
    let url = Url::parse(value).map_err(|why| ConfigError::new(field, format!("it is no address ({why})"), remedy))?;
    if url.cannot_be_a_base() || !matches!(url.scheme(), "http" | "https") {
        return Err(ConfigError::new(field, "it is no web address", remedy));
    }
    if !is_safe(&url) {
        let problem = "plain http is taken from this machine alone";
        return Err(ConfigError::new(field, problem, "write https:// before the name"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConfigError::new(field, "it has a user name or password in it", remedy));
    }
    Ok(url)
}

fn check_issuer(issuer: &str) -> Result<(), ConfigError> {
    let remedy = "write the issuer as the provider's /.well-known/openid-configuration has it";
    let url = check_url("issuer", issuer, remedy)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(ConfigError::new("issuer", "it has a query or a fragment", remedy));
    }
    if url.path().contains("/.well-known/") {
        return Err(ConfigError::new(
            "issuer",
            "it is the address of the discovery document",
            remedy,
        ));
    }
    Ok(())
}

fn check_redirect(redirect_uri: &str) -> Result<(), ConfigError> {
    let remedy = "write this gateway's own address of the sign-in, as it is registered at the provider";
    let url = check_url("redirect_uri", redirect_uri, remedy)?;
    if url.fragment().is_some() {
        return Err(ConfigError::new("redirect_uri", "it has a fragment", remedy));
    }
    Ok(())
}

fn check_scopes(scopes: &[String]) -> Result<(), ConfigError> {
    let remedy = "list at most 32 scopes, one word each";
    if scopes.len() > SCOPES_MAX {
        return Err(ConfigError::new(
            "scopes",
            format!("there are {}", scopes.len()),
            remedy,
        ));
    }
    // RFC 6749, section 3.3: printable ASCII but the space, the quote and the backslash.
    let is_word = |scope: &String| {
        (1..=FIELD_MAX_BYTES).contains(&scope.len())
            && scope.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    };
    match scopes.iter().find(|scope| !is_word(scope)) {
        Some(wrong) => {
            let problem = format!("\"{}\" is no scope", printable(wrong));
            Err(ConfigError::new("scopes", problem, remedy))
        }
        None => Ok(()),
    }
}

fn check_ca(ca_pem: Option<&str>) -> Result<(), ConfigError> {
    let remedy = "give the certificates between BEGIN CERTIFICATE and END CERTIFICATE, or leave it out";
    let Some(pem) = ca_pem else { return Ok(()) };
    if pem.len() > CA_MAX_BYTES {
        let problem = format!("it is longer than {CA_MAX_BYTES} bytes");
        return Err(ConfigError::new("ca_pem", problem, remedy));
    }
    match reqwest::Certificate::from_pem_bundle(pem.as_bytes()) {
        Ok(found) if !found.is_empty() => Ok(()),
        Ok(_) => Err(ConfigError::new("ca_pem", "there is no certificate in it", remedy)),
        Err(why) => Err(ConfigError::new("ca_pem", format!("it cannot be read ({why})"), remedy)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> OidcConfig {
        let secret = Secret::new("s3cr3t-of-the-client");
        OidcConfig::new(
            "corp",
            "https://id.example.test",
            "hoop",
            secret,
            "https://hoop.example.test/cb",
        )
    }

    type Mend = fn(&mut OidcConfig);

    #[test]
    fn each_field_that_cannot_be_right_is_named_with_its_remedy() {
        config().check().unwrap();
        let wrong: [(&str, Mend); 19] = [
            ("name", |c| c.name = "Corp ID".into()),
            ("name", |c| c.name = String::new()),
            ("name", |c| c.name = "a".repeat(65)),
            ("issuer", |c| c.issuer = "http://id.example.test".into()),
            ("issuer", |c| c.issuer = "id.example.test".into()),
            ("issuer", |c| c.issuer = "https://u:p@id.example.test".into()),
            ("issuer", |c| c.issuer = "https://id.example.test?x=1".into()),
            ("issuer", |c| {
                c.issuer = "https://id.example.test/.well-known/openid-configuration".into()
            }),
            ("client_id", |c| c.client_id = " ".into()),
            ("client_secret", |c| c.client_secret = Secret::new("")),
            ("scopes", |c| c.scopes = vec!["two words".into()]),
            ("scopes", |c| c.scopes = vec!["x".into(); 33]),
            ("groups_claim", |c| c.groups_claim = String::new()),
            ("email_claim", |c| c.email_claim = "e\n".into()),
            ("redirect_uri", |c| {
                c.redirect_uri = "https://hoop.example.test/cb#here".into()
            }),
            ("redirect_uri", |c| {
                c.redirect_uri = "http://hoop.example.test/cb".into()
            }),
            ("ca_pem", |c| c.ca_pem = Some("no certificate".into())),
            ("algorithms", |c| c.algorithms.clear()),
            ("deadline", |c| c.deadline = Duration::ZERO),
        ];
        for (field, mend) in wrong {
            let mut config = config();
            mend(&mut config);
            let error = config.check().unwrap_err();
            assert_eq!(error.field, field, "{error}");
            assert!(
                !error.remedy.is_empty() && error.to_string().starts_with(field),
                "{error}"
            );
        }
    }

    #[test]
    fn plain_http_is_taken_from_this_machine() {
        for issuer in ["http://localhost:9400", "http://127.0.0.1:1/x", "http://[::1]:2"] {
            let mut config = config();
            config.issuer = issuer.into();
            config.check().unwrap();
            assert!(config.is_loopback());
        }
        for issuer in [
            "http://localhost.example.test",
            "http://127.0.0.1.example.test",
            "http://10.0.0.1",
        ] {
            let mut config = config();
            config.issuer = issuer.into();
            assert_eq!(config.check().unwrap_err().field, "issuer");
        }
    }

    #[test]
    fn a_shared_secret_signs_nothing_here() {
        for name in ["none", "HS256", "HS384", "HS512", "ES512", "rs256", ""] {
            assert_eq!(name.parse::<Algorithm>().unwrap_err().field, "algorithms", "{name}");
        }
        for (algorithm, name, _) in Algorithm::ALL {
            assert_eq!(name.parse::<Algorithm>().unwrap(), algorithm);
            assert_eq!(algorithm.to_string(), name);
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        let shown = format!("{:?}", config());
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
}
