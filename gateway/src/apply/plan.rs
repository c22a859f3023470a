//! What has to be done so that a gateway has what is declared, and how that is told.

use std::fmt;

use serde_json::{Map, Value};

use super::client::Found;
use super::declaration::{Declaration, Kind};

/// Longest value that is shown.
const SHOWN_MAX_CHARS: usize = 120;

/// One resource's part.
pub enum Step<'a> {
    Create(&'a Declaration),
    Change {
        declared: &'a Declaration,
        tag: Option<String>,
        differences: Vec<Difference>,
        /// The secret is read and set too.
        set_secret: bool,
        /// The set that made it; empty: none.
        managed_by: String,
    },
    /// Of a group.
    Members {
        declared: &'a Declaration,
        join: Vec<String>,
        leave: Vec<String>,
    },
    /// Nobody declares any more what the set has made.
    Remove {
        kind: Kind,
        name: String,
        tag: Option<String>,
    },
}

/// A member that is other than declared.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    pub member: String,
    pub is: String,
    pub shall_be: String,
}

/// `None` where it is as declared. A sealed secret cannot be compared: it is set where there is none, and where
/// `set_secrets` asks for it.
pub fn step(declared: &Declaration, found: Option<Found>, set_secrets: bool) -> Option<Step<'_>> {
    let Some(found) = found else {
        return Some(Step::Create(declared));
    };
    let mut differences = Vec::new();
    compare("", &declared.view, &found.view, &mut differences);
    let unset = differences
        .iter()
        .any(|difference| difference.member == "target.secret");
    let set_secret = declared.secret.is_some() && (set_secrets || unset);
    if set_secret && !unset {
        differences.push(Difference {
            member: "secret".into(),
            is: "sealed".into(),
            shall_be: "set anew".into(),
        });
    }
    (!differences.is_empty()).then_some(Step::Change {
        declared,
        managed_by: managed_by(&found.view).to_owned(),
        tag: found.tag,
        differences,
        set_secret,
    })
}

/// The set that made a resource; empty: none.
pub fn managed_by(view: &Map<String, Value>) -> &str {
    view.get("managed_by").and_then(Value::as_str).unwrap_or_default()
}

/// Members that are not declared are not looked at.
fn compare(above: &str, declared: &Map<String, Value>, found: &Map<String, Value>, out: &mut Vec<Difference>) {
    for (name, wanted) in declared {
        let member = format!("{above}{name}");
        match (wanted, found.get(name)) {
            (Value::Object(wanted), Some(Value::Object(found))) => {
                compare(&format!("{member}."), wanted, found, out);
            }
            (wanted, found) if found == Some(wanted) => {}
            (wanted, found) => out.push(Difference {
                member,
                is: shown(found.unwrap_or(&Value::Null)),
                shall_be: shown(wanted),
            }),
        }
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > SHOWN_MAX_CHARS {
        format!("{}…", text.chars().take(SHOWN_MAX_CHARS).collect::<String>())
    } else {
        text
    }
}

impl Step<'_> {
    /// File and line; of what no file names, what it is.
    pub fn place(&self) -> String {
        match self {
            Self::Create(declared) | Self::Change { declared, .. } | Self::Members { declared, .. } => {
                declared.place.clone()
            }
            Self::Remove { kind, name, .. } => format!("{kind} {name}"),
        }
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(Declaration { kind, name, body, .. }) => {
                write!(f, "+ {kind} {name}")?;
                for (member, value) in body.iter().filter(|_| *kind != Kind::Agent) {
                    if member != "name" {
                        write!(f, "\n    {member}: {}", shown(value))?;
                    }
                }
                Ok(())
            }
            Self::Change {
                declared, differences, ..
            } => {
                write!(f, "~ {} {}", declared.kind, declared.name)?;
                for Difference { member, is, shall_be } in differences {
                    write!(f, "\n    {member}: {is} -> {shall_be}")?;
                }
                Ok(())
            }
            Self::Members { declared, join, leave } => {
                write!(f, "~ group {}", declared.name)?;
                join.iter().try_for_each(|user| write!(f, "\n    + {user}"))?;
                leave.iter().try_for_each(|user| write!(f, "\n    - {user}"))
            }
            Self::Remove { kind, name, .. } => write!(f, "- {kind} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_declared_and_differs_is_told() {
        let object = |value: Value| value.as_object().cloned().unwrap();
        let declared = object(json!({"a": 1, "same": [1], "target": {"host": "x", "port": 1}}));
        let found = object(json!({"a": 2, "same": [1], "other": 3, "target": {"host": "y", "port": 1, "user": "u"}}));
        let mut out = Vec::new();
        compare("", &declared, &found, &mut out);
        let told: Vec<String> = (out.iter())
            .map(|d| format!("{} {} {}", d.member, d.is, d.shall_be))
            .collect();
        assert_eq!(told, ["a 2 1", "target.host \"y\" \"x\""]);
    }
}
