//! From what a provider vouches for to somebody who is signed in here.

use std::net::IpAddr;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use hoop_auth::Identity;
use hoop_auth::oidc::Secret;
use hoop_store::StoreError;
use hoop_store::change::Witness;
use hoop_store::identities::{Recognised, Vouched};
use serde_json::{Value, json};

use super::html;
use super::providers::Provider;
use crate::AppState;
use crate::client_address::client_address;
use crate::control::Control;
use crate::sign_in::{self, Hold, Method};

/// Puts the provider into every record of what its word changes.
pub struct ProviderWitness<'a> {
    pub control: &'a dyn Control,
    pub provider: &'a str,
    pub subject: &'a str,
    /// Of the browser; `None` where nobody asked.
    pub address: Option<IpAddr>,
}

impl Witness for ProviderWitness<'_> {
    fn record<'a>(&'a self, kind: &'static str, mut payload: Value) -> BoxFuture<'a, Result<(), String>> {
        if let Value::Object(members) = &mut payload {
            let mut by = sign_in::by(None, self.address);
            if let Value::Object(by) = &mut by {
                by.insert("provider".into(), json!(self.provider));
                by.insert("subject".into(), json!(self.subject));
            }
            members.insert("by".into(), by);
        }
        self.control.record(kind, payload)
    }
}

/// A person whom a provider vouches for.
pub struct Vouching<'a> {
    pub identity: Identity,
    pub refresh_token: Option<&'a Secret>,
    /// When the provider wants the session to end, if it says so.
    pub until: Option<DateTime<Utc>>,
}

/// Signs the person in and sends the browser to `return_to`, or says why not.
pub async fn finish(
    state: &AppState,
    request: &HttpRequest,
    provider: &Provider,
    vouching: Vouching<'_>,
    return_to: &str,
) -> HttpResponse {
    let Vouching {
        identity,
        refresh_token,
        until,
    } = vouching;
    let vouched = provider.policy.vouched(identity);
    let address = client_address(request, &state.trusted_proxies);
    let witness = ProviderWitness {
        control: state.control.as_ref(),
        provider: provider.name(),
        subject: &vouched.subject,
        address,
    };
    let terms = provider.policy.terms(vouched.groups.as_deref());
    let recognised = state.store.recognise(&vouched, &terms, &witness).await;
    let method = method(provider);
    let user = match recognised {
        Ok(Recognised::Known(user) | Recognised::Created(user)) => user,
        Ok(Recognised::Inactive(user)) => {
            sign_in::failed(state, address, Some(&user), &method, "the account is not active").await;
            let text = "Your account was deactivated. Ask an administrator.";
            return html::refusal(StatusCode::FORBIDDEN, text);
        }
        Ok(Recognised::Stranger) => {
            let why = "no user is linked to this identity, and create_users is off";
            sign_in::failed(state, address, None, &method, why).await;
            let text =
                "Nobody here is linked to your account at the identity provider. Ask an administrator to link it.";
            return html::refusal(StatusCode::FORBIDDEN, text);
        }
        Err(StoreError::Invalid { field, problem }) => {
            let why = format!("the provider's {field} {problem}");
            sign_in::failed(state, address, None, &method, &why).await;
            let text = format!(
                "The identity provider said something of you that cannot be taken: {field} {problem}. Tell your administrator."
            );
            return html::refusal(StatusCode::FORBIDDEN, &text);
        }
        Err(error) => return html::problem(&error.into()),
    };
    if let Err(error) = keep_refresh_token(state, &vouched, refresh_token).await {
        return html::problem(&error.into());
    }
    match sign_in::start_until(state, request, &user, &method, Hold::Cookie, until).await {
        Ok(started) => started.redirect(return_to),
        Err(problem) => html::problem(&problem),
    }
}

async fn keep_refresh_token(state: &AppState, vouched: &Vouched, token: Option<&Secret>) -> Result<(), StoreError> {
    let token = token.map(Secret::expose);
    let interval: Duration = state.refresh_interval;
    let store = &state.store;
    store
        .keep_refresh_token(&vouched.provider, &vouched.subject, token, interval)
        .await
}

/// As records and sessions name it.
pub fn method(provider: &Provider) -> Method {
    Method::Provider(provider.kind(), provider.name().to_owned())
}

/// Records and logs a sign-in that failed on the way; `why` and `remedy` are for the log and the administrator.
pub async fn failed(state: &AppState, request: &HttpRequest, provider: &Provider, why: &str, remedy: &str) {
    let address = client_address(request, &state.trusted_proxies);
    tracing::warn!(provider = provider.name(), why, remedy, ?address, "a sign-in failed");
    sign_in::failed(state, address, None, &method(provider), why).await;
}
