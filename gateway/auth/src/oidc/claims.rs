//! From a provider's claims to an [`Identity`].

use super::config::OidcConfig;
use super::error::OidcError;
use crate::Identity;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Most groups of one person that are taken.
const GROUPS_MAX: usize = 5_000;
/// Longest text of a claim, in bytes.
const TEXT_MAX_BYTES: usize = 1_024;

/// Every claim that OpenID Connect Core 1.0 does not name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Extra {
    #[serde(flatten)]
    pub(super) claims: Map<String, Value>,
}

impl openidconnect::AdditionalClaims for Extra {}

/// The claims about one person, of an ID token and of user info.
#[derive(Debug)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    pub(super) fn new(claims: &impl Serialize) -> Self {
        match serde_json::to_value(claims) {
            Ok(Value::Object(claims)) => Self(claims),
            _ => Self(Map::new()),
        }
    }

    /// Takes over what is not there yet: what a signed token says stands.
    pub(super) fn fill_from(&mut self, others: Self) {
        for (name, value) in others.0 {
            self.0.entry(name).or_insert(value);
        }
    }

    /// Whether user info could add something.
    pub(super) fn lacks(&self, config: &OidcConfig) -> bool {
        [&config.groups_claim, &config.email_claim]
            .into_iter()
            .any(|claim| self.get(claim).is_none())
    }

    fn get(&self, claim: &str) -> Option<&Value> {
        self.0.get(claim).filter(|value| !value.is_null())
    }

    /// # Errors
    /// Where a claim has another form than it should.
    pub(super) fn into_identity(self, config: &OidcConfig, subject: &str) -> Result<Identity, OidcError> {
        let name = match self.text("name")? {
            name if name.is_empty() => self.text("preferred_username")?,
            name => name,
        };
        Ok(Identity {
            provider: config.name.clone(),
            subject: subject.to_owned(),
            email: self.email(&config.email_claim)?,
            display_name: name,
            groups: self.groups(&config.groups_claim)?,
        })
    }

    /// The address; empty where the provider says that it has not verified it.
    fn email(&self, claim: &str) -> Result<String, OidcError> {
        if claim == "email" && self.get("email_verified") == Some(&Value::Bool(false)) {
            return Ok(String::new());
        }
        self.text(claim)
    }

    fn text(&self, claim: &str) -> Result<String, OidcError> {
        match self.get(claim) {
            None => Ok(String::new()),
            Some(Value::String(text)) if text.len() <= TEXT_MAX_BYTES => Ok(text.clone()),
            Some(other) => Err(wrong(claim, other, "a text of at most 1,024 bytes")),
        }
    }

    fn groups(&self, claim: &str) -> Result<Option<Vec<String>>, OidcError> {
        let expected = "a list of at most 5,000 texts of 1 to 1,024 bytes";
        let found = match self.get(claim) {
            None => return Ok(None),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) if many.len() <= GROUPS_MAX => {
                let texts = many.iter().map(|group| group.as_str().map(String::from));
                let texts: Option<Vec<String>> = texts.collect();
                texts.ok_or_else(|| wrong(claim, &Value::Array(Vec::new()), expected))?
            }
            Some(other) => return Err(wrong(claim, other, expected)),
        };
        if found
            .iter()
            .any(|group| group.is_empty() || group.len() > TEXT_MAX_BYTES)
        {
            return Err(wrong(claim, &Value::Array(Vec::new()), expected));
        }
        Ok(Some(found))
    }
}

fn wrong(claim: &str, found: &Value, expected: &'static str) -> OidcError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "another text",
        Value::Array(_) => "another list",
        Value::Object(_) => "an object",
    };
    let claim = claim.to_owned();
    OidcError::Claim { claim, found, expected }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Secret;
    use super::*;
    use serde_json::json;

    fn read(claims: Value) -> Result<Identity, OidcError> {
        let config = OidcConfig::new("corp", "https://a", "id", Secret::new("s"), "https://b");
        Claims::new(&claims).into_identity(&config, "u-1")
    }

    #[test]
    fn no_groups_and_not_a_word_of_groups_differ() {
        assert_eq!(read(json!({})).unwrap().groups, None);
        assert_eq!(read(json!({ "groups": null })).unwrap().groups, None);
        assert_eq!(read(json!({ "groups": [] })).unwrap().groups, Some(vec![]));
        assert_eq!(
            read(json!({ "groups": "dev" })).unwrap().groups,
            Some(vec!["dev".into()])
        );
        assert_eq!(
            read(json!({ "groups": ["a", "b"] })).unwrap().groups,
            Some(vec!["a".into(), "b".into()])
        );
    }

    #[test]
    fn a_claim_of_another_form_is_refused_and_named() {
        let many: Vec<String> = (0..=GROUPS_MAX).map(|n| n.to_string()).collect();
        for groups in [
            json!(1),
            json!({ "a": 1 }),
            json!(["a", 1]),
            json!([""]),
            json!(["x".repeat(1_025)]),
            json!(many),
        ] {
            let error = read(json!({ "groups": groups })).unwrap_err();
            assert!(
                matches!(&error, OidcError::Claim { claim, .. } if claim == "groups"),
                "{error}"
            );
        }
        let error = read(json!({ "email": ["a@b"] })).unwrap_err();
        assert!(
            matches!(&error, OidcError::Claim { claim, .. } if claim == "email"),
            "{error}"
        );
    }

    #[test]
    fn an_unverified_address_is_not_taken() {
        assert_eq!(read(json!({ "email": "a@b" })).unwrap().email, "a@b");
        assert_eq!(
            read(json!({ "email": "a@b", "email_verified": true })).unwrap().email,
            "a@b"
        );
        assert_eq!(
            read(json!({ "email": "a@b", "email_verified": false })).unwrap().email,
            ""
        );
    }

    #[test]
    fn the_name_for_people_falls_back_on_the_user_name() {
        assert_eq!(
            read(json!({ "name": "Ada L", "preferred_username": "ada" }))
                .unwrap()
                .display_name,
            "Ada L"
        );
        assert_eq!(
            read(json!({ "preferred_username": "ada" })).unwrap().display_name,
            "ada"
        );
    }

    #[test]
    fn what_the_signed_token_says_stands() {
        let mut claims = Claims::new(&json!({ "groups": ["dev"] }));
        claims.fill_from(Claims::new(&json!({ "groups": ["admin"], "email": "a@b" })));
        let config = OidcConfig::new("corp", "https://a", "id", Secret::new("s"), "https://b");
        assert!(!claims.lacks(&config));
        let identity = claims.into_identity(&config, "u-1").unwrap();
        assert_eq!(identity.groups, Some(vec!["dev".into()]));
        assert_eq!(identity.email, "a@b");
    }
}
