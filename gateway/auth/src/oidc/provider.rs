//! One OpenID provider: begins sign-ins, finishes them, refreshes what is known of a person, ends them.

use super::claims::{Claims, Extra};
use super::config::{Algorithm, ClientAuth, ConfigError, OidcConfig, printable};
use super::directory::{Announcement, Directory, Metadata};
use super::error::{OidcError, TokenFault};
use super::http::{Http, shown};
use super::pending::{Callback, Pending};
use super::secret::Secret;
use crate::Identity;
use chrono::{DateTime, TimeDelta, Utc};
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreRevocableToken,
    CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AuthType, AuthorizationCode, ClaimsVerificationError, Client, ClientId, ClientSecret,
    CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, IdToken, IdTokenClaims,
    IdTokenFields, IdTokenVerifier, IssuerUrl, Nonce, NonceVerifier, OAuth2TokenResponse, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, Scope, SignatureVerificationError,
    StandardErrorResponse, StandardTokenResponse, SubjectIdentifier, UserInfoClaims, UserInfoError,
};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How far the provider's clock may be from ours, in seconds.
const CLOCK_SKEW_S: i64 = 60;
/// Random bytes of a state, a nonce and a PKCE verifier.
const RANDOM_BYTES: u32 = 32;
/// Asked for in any case.
const OPENID_SCOPE: &str = "openid";

type TokenResponse = StandardTokenResponse<TokenFields, CoreTokenType>;
type TokenFields = IdTokenFields<
    Extra,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type OurIdToken = IdToken<Extra, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;
type OurClaims = IdTokenClaims<Extra, CoreGenderClaim>;
type ErrorResponse = StandardErrorResponse<CoreErrorResponseType>;
type OurClient = Client<
    Extra,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    ErrorResponse,
    TokenResponse,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// One provider. Cheap to make: nothing is asked of the provider before the first sign-in. Share it, for it remembers
/// what the provider announced.
#[derive(Debug)]
pub struct OidcProvider {
    config: OidcConfig,
    issuer: IssuerUrl,
    redirect: RedirectUrl,
    http: Http,
    directory: Directory,
}

/// The first half of a sign-in.
#[derive(Debug)]
pub struct Begun {
    /// Where to send the browser.
    pub url: Url,
    /// What to keep until it comes back.
    pub pending: Pending,
}

/// Somebody whom the provider vouches for.
#[derive(Debug)]
pub struct SignedIn {
    pub identity: Identity,
    /// For [`OidcProvider::refresh`]; after a refresh, the one to use next. `None` where the provider gave none.
    pub refresh_token: Option<Secret>,
    /// For [`OidcProvider::logout_url`].
    pub id_token_hint: Option<Secret>,
    /// How long the provider's access token lives, where it says so: a good time to refresh after.
    pub refresh_after: Option<Duration>,
}

impl OidcProvider {
    /// # Errors
    /// The field of the configuration that cannot be right.
    pub fn new(config: OidcConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let unusable = |field| move |why: url::ParseError| ConfigError::new(field, why.to_string(), "mend the address");
        Ok(Self {
            issuer: IssuerUrl::new(config.issuer.clone()).map_err(unusable("issuer"))?,
            redirect: RedirectUrl::new(config.redirect_uri.clone()).map_err(unusable("redirect_uri"))?,
            http: Http::new(&config)?,
            directory: Directory::new(&config),
            config,
        })
    }

    #[must_use]
    pub fn config(&self) -> &OidcConfig {
        &self.config
    }

    /// Asks the provider for its announcement, unless it is known: for a test of a new configuration.
    ///
    /// # Errors
    /// Where it does not answer, or announces what cannot be.
    pub async fn probe(&self) -> Result<(), OidcError> {
        self.directory.current(&self.http).await.map(drop)
    }

    /// Begins a sign-in.
    ///
    /// # Errors
    /// Where the provider's announcement is not known yet and cannot be had.
    pub async fn begin(&self) -> Result<Begun, OidcError> {
        let announced = self.directory.current(&self.http).await?;
        let client = self.client(&announced.metadata);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let mut request = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                || CsrfToken::new_random_len(RANDOM_BYTES),
                || Nonce::new_random_len(RANDOM_BYTES),
            )
            .set_pkce_challenge(challenge);
        for scope in self.config.scopes.iter().filter(|scope| *scope != OPENID_SCOPE) {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        if self.config.ask_consent {
            request = request.add_prompt(CoreAuthPrompt::Consent);
        }
        let (url, state, nonce) = request.url();
        let pending = Pending {
            provider: self.config.name.clone(),
            state: Secret::new(state.into_secret()),
            nonce: Secret::new(nonce.secret()),
            verifier: Secret::new(verifier.into_secret()),
            made_at: Utc::now(),
        };
        Ok(Begun { url, pending })
    }

    /// Finishes a sign-in. The caller has found `pending` by the browser's own cookie, and has forgotten it there.
    ///
    /// # Errors
    /// Where the answer does not belong to `pending`, the provider refuses or does not answer, or what it vouches with
    /// does not hold.
    pub async fn finish(&self, pending: Pending, callback: Callback) -> Result<SignedIn, OidcError> {
        pending.accept(&self.config.name, &callback, Utc::now())?;
        let announced = self.directory.current(&self.http).await?;
        let says_issuer = announced
            .metadata
            .additional_metadata()
            .authorization_response_iss_parameter_supported;
        callback.check_issuer(&self.config.issuer, says_issuer)?;
        let code = AuthorizationCode::new(callback.into_code()?.expose().to_owned());
        let verifier = PkceCodeVerifier::new(pending.verifier.expose().to_owned());
        let client = self.client(&announced.metadata);
        let request = client.exchange_code(code).map_err(|_| missing_token_endpoint())?;
        let response = request.set_pkce_verifier(verifier).request_async(&self.http).await;
        let tokens = response.map_err(|why| token_error(&announced.metadata, why))?;
        let nonce = Nonce::new(pending.nonce.expose().to_owned());
        let id_token = tokens.extra_fields().id_token().ok_or(OidcError::NoIdToken)?;
        let claims = self
            .verify(id_token, NonceRule::Is(&nonce), tokens.access_token())
            .await?;
        let subject = claims.subject().clone();
        self.signed_in(&announced, &tokens, Some(claims), &subject, None).await
    }

    /// Asks the provider anew who a person is: their groups as they are now. `subject` is the one of the sign-in that
    /// gave the refresh token. Keep the refresh token of the answer: many providers take each but once.
    ///
    /// # Errors
    /// As [`OidcProvider::finish`]; [`OidcError::ends_sign_in`] tells the provider's no from its absence.
    pub async fn refresh(&self, refresh_token: &Secret, subject: &str) -> Result<SignedIn, OidcError> {
        let announced = self.directory.current(&self.http).await?;
        let client = self.client(&announced.metadata);
        let token = RefreshToken::new(refresh_token.expose().to_owned());
        let request = client
            .exchange_refresh_token(&token)
            .map_err(|_| missing_token_endpoint())?;
        let response = request.request_async(&self.http).await;
        let tokens = response.map_err(|why| token_error(&announced.metadata, why))?;
        // OpenID Connect Core 1.0, section 12.2: an ID token may come, its nonce may not; its subject is the same.
        let claims = match tokens.extra_fields().id_token() {
            Some(id_token) => Some(self.verify(id_token, NonceRule::Any, tokens.access_token()).await?),
            None => None,
        };
        let subject = SubjectIdentifier::new(subject.to_owned());
        if claims.as_ref().is_some_and(|claims| *claims.subject() != subject) {
            return Err(OidcError::SubjectDiffers);
        }
        self.signed_in(&announced, &tokens, claims, &subject, Some(refresh_token))
            .await
    }

    /// Where to send the browser so that the provider ends its own session too (OpenID Connect RP-Initiated Logout 1.0);
    /// `None` where the provider announces no such place. `return_to` must be registered at the provider.
    ///
    /// # Errors
    /// Where the provider's announcement is not known yet and cannot be had.
    pub async fn logout_url(
        &self,
        id_token_hint: Option<&Secret>,
        return_to: Option<&Url>,
    ) -> Result<Option<Url>, OidcError> {
        let announced = self.directory.current(&self.http).await?;
        let Some(mut url) = announced.metadata.additional_metadata().end_session_endpoint.clone() else {
            return Ok(None);
        };
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("client_id", &self.config.client_id);
            if let Some(hint) = id_token_hint {
                query.append_pair("id_token_hint", hint.expose());
            }
            if let Some(return_to) = return_to {
                query.append_pair("post_logout_redirect_uri", return_to.as_str());
            }
        }
        Ok(Some(url))
    }

    fn client(&self, metadata: &Metadata) -> OurClient {
        let secret = ClientSecret::new(self.config.client_secret.expose().to_owned());
        let auth = self.config.client_auth.unwrap_or_else(|| offered_auth(metadata));
        OurClient::from_provider_metadata(
            metadata.clone(),
            ClientId::new(self.config.client_id.clone()),
            Some(secret),
        )
        .set_redirect_uri(self.redirect.clone())
        .set_auth_type(match auth {
            ClientAuth::Basic => AuthType::BasicAuth,
            ClientAuth::Post => AuthType::RequestBody,
        })
    }

    /// Verifies an ID token with the keys that are known, and once more with newer ones where they may have changed.
    async fn verify(
        &self,
        token: &OurIdToken,
        nonce: NonceRule<'_>,
        access_token: &AccessToken,
    ) -> Result<OurClaims, OidcError> {
        let known = self.directory.current(&self.http).await?;
        let first = self.verify_with(&known, token, nonce, access_token);
        match first {
            Err(fault) if fault.may_be_new_key() => match self.directory.newer(&self.http, &known).await? {
                Some(newer) => Ok(self.verify_with(&newer, token, nonce, access_token)?),
                None => Err(fault.into()),
            },
            other => Ok(other?),
        }
    }

    /// OpenID Connect Core 1.0, section 3.1.3.7.
    fn verify_with(
        &self,
        announced: &Arc<Announcement>,
        token: &OurIdToken,
        nonce: NonceRule<'_>,
        access_token: &AccessToken,
    ) -> Result<OurClaims, TokenFault> {
        let now = Utc::now();
        let skew = TimeDelta::seconds(CLOCK_SKEW_S);
        // A verifier without the client's secret, so that nothing symmetric can verify.
        let client_id = ClientId::new(self.config.client_id.clone());
        let verifier = IdTokenVerifier::new_public_client(client_id, self.issuer.clone(), announced.keys.clone())
            .set_allowed_algs(Algorithm::to_jws(&self.config.algorithms))
            .set_other_audience_verifier_fn(|_| true) // see check_party
            .set_time_fn(move || now - skew);
        let claims = token.claims(&verifier, nonce).map_err(|why| token_fault(&why))?;
        self.check_party(claims)?;
        check_start(claims, now + skew)?;
        check_access_token(token, claims, &verifier, access_token)?;
        Ok(claims.clone())
    }

    /// A token for several audiences has to say that it was made for us; one that says so has to say us.
    fn check_party(&self, claims: &OurClaims) -> Result<(), TokenFault> {
        match claims.authorized_party() {
            Some(party) if party.as_str() == self.config.client_id => Ok(()),
            None if claims.audiences().len() <= 1 => Ok(()),
            _ => Err(TokenFault::AuthorizedParty),
        }
    }

    async fn signed_in(
        &self,
        announced: &Announcement,
        tokens: &TokenResponse,
        id_claims: Option<OurClaims>,
        subject: &SubjectIdentifier,
        refreshed: Option<&Secret>,
    ) -> Result<SignedIn, OidcError> {
        let is_verified = id_claims.is_some();
        let mut claims = Claims::new(&id_claims);
        if claims.lacks(&self.config) {
            match self.user_info(announced, tokens.access_token(), subject).await? {
                Some(more) => claims.fill_from(more),
                None if is_verified => {}
                None => return Err(OidcError::NoIdToken),
            }
        }
        let next = tokens.refresh_token().map(|token| Secret::new(token.secret()));
        let hint = tokens
            .extra_fields()
            .id_token()
            .map(|token| Secret::new(token.to_string()));
        Ok(SignedIn {
            identity: claims.into_identity(&self.config, subject.as_str())?,
            refresh_token: next.or_else(|| refreshed.cloned()),
            id_token_hint: hint,
            refresh_after: tokens.expires_in(),
        })
    }

    /// OpenID Connect Core 1.0, section 5.3; `None` where the provider has no such place.
    async fn user_info(
        &self,
        announced: &Announcement,
        access_token: &AccessToken,
        subject: &SubjectIdentifier,
    ) -> Result<Option<Claims>, OidcError> {
        let Some(url) = announced.metadata.userinfo_endpoint() else {
            return Ok(None);
        };
        let unreadable = |cause: &str| OidcError::Unreadable {
            url: shown(url.url()),
            cause: printable(cause),
        };
        // The library panics over a token that cannot stand in a header.
        if !access_token.secret().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unreadable("the access token has a character that none may have"));
        }
        let client = self.client(&announced.metadata);
        let request = client.user_info(access_token.clone(), Some(subject.clone()));
        let request = request.map_err(|_| OidcError::MissingEndpoint {
            endpoint: "userinfo_endpoint",
        })?;
        let found: Result<UserInfoClaims<Extra, CoreGenderClaim>, _> = request.request_async(&self.http).await;
        let found = found.map_err(|why| match why {
            UserInfoError::Request(why) => why,
            UserInfoError::Response(status, _, _) => OidcError::Status {
                url: shown(url.url()),
                status: status.as_u16(),
            },
            UserInfoError::ClaimsVerification(ClaimsVerificationError::InvalidSubject(_)) => OidcError::SubjectDiffers,
            UserInfoError::ClaimsVerification(why) => token_fault(&why).into(),
            UserInfoError::Parse(why) => unreadable(&format!("at {}", why.path())),
            _ => unreadable("it is no user info"),
        })?;
        let mut claims = Claims::new(found.standard_claims());
        claims.fill_from(Claims::new(found.additional_claims()));
        Ok(Some(claims))
    }
}

/// What an ID token's nonce has to be.
#[derive(Debug, Clone, Copy)]
enum NonceRule<'a> {
    Is(&'a Nonce),
    Any,
}

impl NonceVerifier for NonceRule<'_> {
    fn verify(self, found: Option<&Nonce>) -> Result<(), String> {
        match self {
            Self::Is(expected) => expected.verify(found),
            Self::Any => Ok(()),
        }
    }
}

/// `Basic` is what the standard takes where nothing is announced.
fn offered_auth(metadata: &Metadata) -> ClientAuth {
    let offered = metadata.token_endpoint_auth_methods_supported();
    let offers = |method| offered.is_none_or(|methods| methods.contains(&method));
    if !offers(CoreClientAuthMethod::ClientSecretBasic) && offers(CoreClientAuthMethod::ClientSecretPost) {
        return ClientAuth::Post;
    }
    ClientAuth::Basic
}

fn check_start(claims: &OurClaims, latest: DateTime<Utc>) -> Result<(), TokenFault> {
    let not_before = claims
        .additional_claims()
        .claims
        .get("nbf")
        .and_then(serde_json::Value::as_f64);
    let begins_later = not_before.is_some_and(|at| at > latest.timestamp() as f64);
    if begins_later || claims.issue_time() > latest {
        return Err(TokenFault::NotYetValid);
    }
    Ok(())
}

/// OpenID Connect Core 1.0, section 3.1.3.8.
fn check_access_token(
    token: &OurIdToken,
    claims: &OurClaims,
    verifier: &IdTokenVerifier<'_, CoreJsonWebKey>,
    access_token: &AccessToken,
) -> Result<(), TokenFault> {
    let Some(expected) = claims.access_token_hash() else {
        return Ok(());
    };
    let algorithm = token.signing_alg().map_err(|_| TokenFault::Unsigned)?;
    let key = token.signing_key(verifier).map_err(|_| TokenFault::UnknownKey)?;
    match AccessTokenHash::from_token(access_token, algorithm, key) {
        Ok(found) if found == *expected => Ok(()),
        _ => Err(TokenFault::AccessTokenHash),
    }
}

fn token_fault(why: &ClaimsVerificationError) -> TokenFault {
    match why {
        ClaimsVerificationError::Expired(_) => TokenFault::Expired,
        ClaimsVerificationError::InvalidAudience(_) => TokenFault::Audience,
        ClaimsVerificationError::InvalidIssuer(_) => TokenFault::Issuer,
        ClaimsVerificationError::InvalidNonce(_) => TokenFault::Nonce,
        ClaimsVerificationError::SignatureVerification(why) => signature_fault(why),
        _ => TokenFault::Malformed,
    }
}

fn signature_fault(why: &SignatureVerificationError) -> TokenFault {
    match why {
        SignatureVerificationError::NoSignature => TokenFault::Unsigned,
        SignatureVerificationError::DisallowedAlg(_) | SignatureVerificationError::UnsupportedAlg(_) => {
            TokenFault::Algorithm
        }
        SignatureVerificationError::NoMatchingKey | SignatureVerificationError::AmbiguousKeyId(_) => {
            TokenFault::UnknownKey
        }
        _ => TokenFault::Signature,
    }
}

fn missing_token_endpoint() -> OidcError {
    OidcError::MissingEndpoint {
        endpoint: "token_endpoint",
    }
}

/// The token endpoint's failure. Its body may hold tokens, so of what cannot be read only the place is told.
fn token_error(metadata: &Metadata, why: RequestTokenError<OidcError, ErrorResponse>) -> OidcError {
    let url = metadata
        .token_endpoint()
        .map(|url| shown(url.url()))
        .unwrap_or_default();
    match why {
        RequestTokenError::Request(why) => why,
        RequestTokenError::ServerResponse(response) => OidcError::TokenRefused {
            error: printable(response.error().as_ref()),
            description: printable(response.error_description().map_or("", String::as_str)),
        },
        RequestTokenError::Parse(why, _) => OidcError::Unreadable {
            url,
            cause: printable(&format!(
                "at {}, line {} column {}",
                why.path(),
                why.inner().line(),
                why.inner().column()
            )),
        },
        RequestTokenError::Other(_) => OidcError::Unreadable {
            url,
            cause: "it is no token response".into(),
        },
    }
}
