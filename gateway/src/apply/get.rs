//! `hoop-gateway get`: what a gateway has, as declarations without secrets. Applied again, they change nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use hoop_api::declared;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::declaration::Kind;
use super::gateway::{self, Gateway};
use super::plan::managed_by;
use super::{groups, named, print};

/// Members that the gateway or apply gives.
const GIVEN: [&str; 7] = [
    "id",
    "version",
    "created_at",
    "updated_at",
    "managed_by",
    "online",
    "target",
];
/// What has no value in common between two connections, or two rules.
const OWN: [&str; 4] = ["name", "agents", "host", "user"];

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Yaml,
}

#[derive(Args)]
pub struct Get {
    /// Only these kinds.
    #[arg(value_enum, value_name = "KIND")]
    kinds: Vec<Kind>,
    #[command(flatten)]
    gateway: Gateway,
    /// Only what this set of declarations has made; groups belong to none.
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Output::Yaml, value_name = "FORMAT")]
    output: Output,
}

impl Get {
    pub fn main(self) -> ExitCode {
        gateway::alone(self.run())
    }

    async fn run(self) -> Result<ExitCode> {
        let client = self.gateway.client()?;
        let Output::Yaml = self.output;
        let mut documents = Vec::new();
        for kind in Kind::ALL {
            if self.kinds.is_empty() || self.kinds.contains(&kind) {
                documents.extend(self.documents(&client, kind).await?);
            }
        }
        print!("{}", documents.join("---\n"));
        Ok(ExitCode::SUCCESS)
    }

    async fn documents(&self, client: &Client, kind: Kind) -> Result<Vec<String>> {
        if kind == Kind::Group {
            return match &self.set {
                Some(_) => Ok(Vec::new()),
                None => declared_groups(client).await,
            };
        }
        let usual = usual(kind)?;
        let all = client.all(kind).await?;
        let wanted = all
            .into_iter()
            .filter(|view| self.set.as_ref().is_none_or(|set| managed_by(view) == set));
        let document = |(name, view): (String, Map<String, Value>)| {
            let (body, sealed) = body(view);
            let body = body
                .into_iter()
                .filter(|(member, value)| usual.get(member) != Some(value) || OWN.contains(&member.as_str()));
            let remark = match kind {
                Kind::Agent => Some("where there is none of this name, add key_file"),
                _ if sealed => Some("its sealed secret is not shown, and kept; elsewhere give one"),
                _ => None,
            };
            print::document(kind.name(), &name, &body.collect(), remark)
        };
        Ok(wanted.map(named).map(document).collect())
    }
}

async fn declared_groups(client: &Client) -> Result<Vec<String>> {
    let document = |(name, members): (String, BTreeSet<String>)| {
        let body = Map::from_iter([("members".to_owned(), json!(members))]);
        print::document(Kind::Group.name(), &name, &body, None)
    };
    Ok(groups::all(client).await?.into_iter().map(document).collect())
}

/// What a declaration has that says as little as it can; what is so is not printed.
fn usual(kind: Kind) -> Result<Map<String, Value>> {
    let least = |value: Value| value.as_object().cloned().unwrap_or_default();
    let view = match kind {
        Kind::Agent | Kind::Group => Ok(Map::new()),
        Kind::Connection => {
            declared::connection(&least(json!({"name": "x", "agents": ["x"], "host": "x", "user": "x"})))
        }
        // people and connections are given by lists, of which one of each may be empty
        Kind::Rule => {
            declared::rule(&least(json!({"name": "x", "groups": ["x"], "connections": ["x"]}))).map(|mut rule| {
                rule.insert("groups".into(), json!([]));
                rule.insert("connections".into(), json!([]));
                rule
            })
        }
    };
    Ok(body(view.map_err(|fault| anyhow!(fault.problem))?).0)
}

/// A view as a declaration has it, and whether it has a secret that cannot be shown.
fn body(mut view: Map<String, Value>) -> (Map<String, Value>, bool) {
    let target = view.remove("target");
    view.retain(|member, _| !GIVEN.contains(&member.as_str()));
    let Some(Value::Object(mut target)) = target else {
        return (view, false);
    };
    let secret = target.remove("secret");
    if let Some(reference) = target.remove("secret_reference") {
        target.insert("secret".into(), json!({"reference": reference}));
    }
    view.extend(target);
    (view, secret == Some(json!("sealed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_becomes_a_declaration_of_itself() {
        let least = json!({"name": "x", "agents": ["e"], "host": "h", "user": "u", "secret": {"reference": "env:X"}, "port": 1});
        let view = declared::connection(least.as_object().unwrap()).unwrap();
        let (again, sealed) = body(view.clone());
        assert!(!sealed);
        assert_eq!(declared::connection(&again).unwrap(), view);
        let usual = usual(Kind::Connection).unwrap();
        assert_eq!(usual.get("port"), Some(&json!(5432)));
        assert_eq!(again.get("secret"), Some(&json!({"reference": "env:X"})));
    }
}
