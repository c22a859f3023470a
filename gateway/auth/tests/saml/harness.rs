//! A provider that trusts the forge's key, and what every test asks of it.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Mutex;

use chrono::{DateTime, Utc};
use hoop_auth::saml::{
    Asserted, IdentityProvider, Pending, ReplayCache, SamlConfig, SamlError, SamlForm, SamlProvider, SignedIn,
};

use crate::forge::{ACS, Forge, IDP, NOW, SP, Signer, TRUSTED};

pub fn now() -> DateTime<Utc> {
    NOW.parse().unwrap()
}

pub fn config_trusting(signers: &[&Signer]) -> SamlConfig {
    SamlConfig {
        name: "corp".into(),
        sp_entity_id: SP.into(),
        acs_url: ACS.into(),
        identity_provider: IdentityProvider::Manual {
            entity_id: IDP.into(),
            sso_url: "https://idp.example.test/sso?tenant=7".into(),
            certificates: signers.iter().map(|signer| signer.certificate_pem.clone()).collect(),
        },
        groups_attribute: Some("groups".into()),
        email_attribute: None,
        display_name_attribute: None,
        name_id_format: None,
        require_signed_response: false,
        allow_idp_initiated: false,
        signing_key: None,
    }
}

pub fn config() -> SamlConfig {
    config_trusting(&[&TRUSTED])
}

pub fn provider(config: SamlConfig) -> SamlProvider {
    SamlProvider::new(config).unwrap()
}

pub fn pending() -> Pending {
    Pending {
        provider: "corp".into(),
        request_id: "_request".into(),
        relay_state: "relay".into(),
        made_at: now() - chrono::TimeDelta::minutes(1),
    }
}

pub fn form(response: &str) -> SamlForm {
    SamlForm {
        saml_response: response.into(),
        relay_state: Some("relay".into()),
    }
}

/// Finishes the pending sign-in with this response.
pub fn finish_with(config: SamlConfig, response: &str) -> Result<Asserted, SamlError> {
    provider(config).finish(Some(&pending()), &form(response), now())
}

pub fn finish(forge: &Forge) -> Result<Asserted, SamlError> {
    finish_with(config(), &forge.form())
}

pub fn finish_xml(xml: &str) -> Result<Asserted, SamlError> {
    finish_with(config(), &crate::forge::encode(xml))
}

/// Redeems with a cache of its own.
pub fn redeem(asserted: Asserted) -> SignedIn {
    futures_util::FutureExt::now_or_never(asserted.redeem(&Cache::default()))
        .unwrap()
        .unwrap()
}

/// Remembers in memory.
#[derive(Default)]
pub struct Cache {
    pub seen: Mutex<HashSet<String>>,
    pub until: Mutex<Option<DateTime<Utc>>>,
}

impl ReplayCache for Cache {
    type Error = Infallible;

    async fn first_use(&self, id: &str, until: DateTime<Utc>) -> Result<bool, Infallible> {
        *self.until.lock().unwrap() = Some(until);
        Ok(self.seen.lock().unwrap().insert(id.to_owned()))
    }
}

/// Asserts that a result is this refusal, and says what it was if not.
#[macro_export]
macro_rules! refused {
    ($result:expr, $variant:pat $(if $guard:expr)?) => {
        match $result {
            Err($variant) $(if $guard)? => {}
            Err(other) => panic!("refused for another reason: {other:?}"),
            Ok(_) => panic!("accepted"),
        }
    };
}
