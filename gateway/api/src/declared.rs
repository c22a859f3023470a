//! What a declaration (`hoop-gateway apply`) would make of a resource: checked as the API checks it, with every default
//! filled in, in the form in which the API shows it.

use chrono::DateTime;
use hoop_access::Rule as AccessRule;
use hoop_store::connections::{Connection as StoredConnection, Secret, SecretChange, SecretKind};
use hoop_store::rules::StoredRule;
use hoop_store::settings::{REFERENCE_MAX_BYTES, SECRET_MAX_BYTES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;
use uuid::Uuid;

use crate::connection_view::{Connection, ConnectionSettings};
use crate::problem::Problem;
use crate::rule_view::{self, Rule, RuleSettings};
use crate::{body, connections};

/// Members that the gateway or apply gives, and nobody declares.
const GIVEN: [&str; 5] = ["id", "version", "created_at", "updated_at", "managed_by"];

/// A declaration is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct Fault {
    /// The member that is wrong, where it is one.
    pub field: Option<String>,
    pub problem: String,
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self {
            field: problem.field,
            problem: problem.detail,
        }
    }
}

fn read<T: DeserializeOwned>(declared: &Map<String, Value>) -> Result<T, Fault> {
    if declared.contains_key("managed_by") {
        return Err(Fault {
            field: Some("managed_by".into()),
            problem: "managed_by is not declared: apply sets it, with --set.".into(),
        });
    }
    let bytes = serde_json::to_vec(declared).unwrap_or_default();
    Ok(body::parse(&bytes)?)
}

fn shown(view: impl Serialize) -> Map<String, Value> {
    let Ok(Value::Object(mut members)) = serde_json::to_value(view) else {
        return Map::new();
    };
    for name in GIVEN {
        members.remove(name);
    }
    members
}

/// A connection as `GET /api/connections/{name}` would show it. Where no secret is declared, none is shown.
///
/// # Errors
/// `Fault` where the API would refuse it.
pub fn connection(declared: &Map<String, Value>) -> Result<Map<String, Value>, Fault> {
    let (name, settings, secret) = connections::parts(read::<ConnectionSettings>(declared)?);
    settings.check().map_err(Problem::from)?;
    let kept = matches!(secret, SecretChange::Keep);
    let too_long = |most: usize| Fault {
        field: Some("secret".into()),
        problem: format!("secret must be at most {most} bytes."),
    };
    let secret = match secret {
        SecretChange::Keep | SecretChange::Remove => SecretKind::None,
        SecretChange::Set(Secret::Value(value)) if value.len() > SECRET_MAX_BYTES => {
            return Err(too_long(SECRET_MAX_BYTES));
        }
        SecretChange::Set(Secret::Value(_)) => SecretKind::Value,
        SecretChange::Set(Secret::Reference(text)) if text.len() > REFERENCE_MAX_BYTES => {
            return Err(too_long(REFERENCE_MAX_BYTES));
        }
        SecretChange::Set(Secret::Reference(text)) => SecretKind::Reference(text),
    };
    let mut view = shown(Connection::whole(StoredConnection {
        id: Uuid::nil(),
        name,
        version: 0,
        settings,
        secret,
        created_at: DateTime::UNIX_EPOCH,
        updated_at: DateTime::UNIX_EPOCH,
        deleted: false,
    }));
    if kept && let Some(Value::Object(target)) = view.get_mut("target") {
        target.remove("secret");
        target.remove("secret_reference");
    }
    Ok(view)
}

/// A rule as `GET /api/access/rules/{name}` would show it.
///
/// # Errors
/// `Fault` where the API would refuse it.
pub fn rule(declared: &Map<String, Value>) -> Result<Map<String, Value>, Fault> {
    let (name, spec) = rule_view::parts(read::<RuleSettings>(declared)?)?;
    spec.check().map_err(|fault| Fault {
        field: Some(fault.field.to_owned()),
        problem: format!("{} {}.", fault.field, fault.problem),
    })?;
    Ok(shown(Rule::from(StoredRule {
        rule: AccessRule {
            id: Uuid::nil(),
            name,
            spec,
        },
        version: 0,
        created_at: DateTime::UNIX_EPOCH,
        updated_at: DateTime::UNIX_EPOCH,
    })))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn defaults_are_filled_in_and_what_the_gateway_gives_is_left_out() {
        let view = rule(&object(
            json!({"name": "sre", "groups": ["b", "a", "a"], "connections": ["x"]}),
        ))
        .unwrap();
        assert_eq!(view["groups"], json!(["a", "b"]));
        assert_eq!(
            (view["enabled"].clone(), view["max_credential_s"].clone()),
            (json!(true), json!(0))
        );
        assert!(GIVEN.iter().all(|name| !view.contains_key(*name)));
    }

    #[test]
    fn what_the_api_would_refuse_is_refused_with_its_field() {
        for (declared, field) in [
            (json!({"name": "sre", "gruops": []}), "gruops"),
            (
                json!({"name": "sre", "groups": ["sre"], "connections": ["x"], "schedule": {"days": ["mon"], "from": "8", "until": "9", "timezone": "UTC"}}),
                "schedule",
            ),
            (json!({"name": "sre", "networks": ["ten"]}), "networks"),
            (json!({"name": "sre", "groups": ["sre"]}), "connections"),
            (json!({"groups": ["sre"]}), "name"),
            (
                json!({"name": "sre", "groups": ["sre"], "connections": ["x"], "managed_by": "a"}),
                "managed_by",
            ),
        ] {
            let fault = rule(&object(declared.clone())).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some(field), "{declared}: {fault:?}");
        }
    }
}
