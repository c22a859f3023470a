//! Declared groups: who of the people whose groups are given here is in them. Whose groups an identity provider tells is
//! that provider's to say, and is left alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::declaration::{self, Declaration, Kind};
use super::plan::Step;

/// People whose groups are given here.
const LOCAL: &str = "/api/users?provider_groups=false";
/// What a user is set to: all of it goes with every change.
const SETTINGS: [&str; 4] = ["role", "email", "groups", "active"];

/// `None` where the members are as declared.
///
/// # Errors
/// Where somebody is no user here, or cannot be put into the group here.
pub async fn step<'a>(client: &Client, declared: &'a Declaration) -> Result<Option<Step<'a>>> {
    let wanted = declaration::members(&declared.body).map_err(|fault| anyhow!(fault.problem))?;
    let list = format!("{LOCAL}&group={}", encoded(&declared.name));
    let present: BTreeSet<String> = client.items(&list).await?.iter().map(username).collect();
    let mut join = Vec::new();
    for user in wanted.difference(&present) {
        if !told_by_provider(client, user, &declared.name).await? {
            join.push(user.clone());
        }
    }
    let leave: Vec<String> = present.difference(&wanted).cloned().collect();
    let done = join.is_empty() && leave.is_empty();
    Ok((!done).then_some(Step::Members { declared, join, leave }))
}

/// Whether a provider has put this person into the group, so that nothing is to be done.
async fn told_by_provider(client: &Client, user: &str, group: &str) -> Result<bool> {
    let path = user_path(user);
    let found = client.read(&path).await?;
    let found = found.with_context(|| format!("user {user} does not exist: make the account first, or take it out"))?;
    if groups(&found.view).contains(group) {
        return Ok(true);
    }
    let identities = client.read(&format!("{path}/identities")).await?;
    let listed = identities
        .as_ref()
        .and_then(|found| found.view.get("items")?.as_array());
    let telling = |identity: &&Value| identity.get("groups").is_some_and(|groups| !groups.is_null());
    if let Some(identity) = listed.into_iter().flatten().find(telling) {
        let provider = identity.get("provider").and_then(Value::as_str).unwrap_or_default();
        bail!(
            "the groups of {user} are those that the provider {provider} tells: put {user} into {group} there, or take \
             the name out"
        );
    }
    Ok(false)
}

/// One person after the other, each as the person is then.
///
/// # Errors
/// Where somebody is gone, or was changed meanwhile.
pub async fn carry_out(client: &Client, group: &str, join: &[String], leave: &[String]) -> Result<()> {
    for (user, joins) in join
        .iter()
        .map(|user| (user, true))
        .chain(leave.iter().map(|user| (user, false)))
    {
        let path = user_path(user);
        let found = client.read(&path).await?;
        let found = found.with_context(|| format!("user {user} is no more; run apply again"))?;
        let mut set = groups(&found.view);
        if joins {
            set.insert(group.to_owned());
        } else {
            set.remove(group);
        }
        let mut body: Map<String, Value> = (found.view.into_iter())
            .filter(|(member, _)| SETTINGS.contains(&member.as_str()))
            .collect();
        body.insert("groups".into(), json!(set));
        client.replace(&path, found.tag.as_deref(), &body).await?;
    }
    Ok(())
}

/// Every group with its local members.
pub async fn all(client: &Client) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for user in client.items(LOCAL).await? {
        for group in groups(&user) {
            all.entry(group).or_default().insert(username(&user));
        }
    }
    Ok(all)
}

fn user_path(user: &str) -> String {
    super::client::path(Kind::Group, user)
}

fn username(view: &Map<String, Value>) -> String {
    view.get("username")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn groups(view: &Map<String, Value>) -> BTreeSet<String> {
    let listed = view.get("groups").and_then(Value::as_array).into_iter().flatten();
    listed.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}
