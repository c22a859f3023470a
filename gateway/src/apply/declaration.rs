//! Declarations: what the files say shall be, checked before anything is asked of a gateway.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hoop_api::declared;
use hoop_store::names;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::yaml::{self, Node};

/// Largest file.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Most files of one folder.
const FILES_MAX: usize = 1_000;

/// What can be declared, in the order in which it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Kind {
    Agent,
    Connection,
    Rule,
    /// Local members of a group; a group has no resource of its own.
    Group,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Agent, Self::Connection, Self::Rule, Self::Group];
    /// Those that the gateway keeps under their own names, in the order in which they can be removed.
    pub const REMOVABLE: [Self; 3] = [Self::Rule, Self::Connection, Self::Agent];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Connection => "connection",
            Self::Rule => "rule",
            Self::Group => "group",
        }
    }

    /// Where the API has them; of a group, its members.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Agent => "/api/agents",
            Self::Connection => "/api/connections",
            Self::Rule => "/api/access/rules",
            Self::Group => "/api/users",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A secret that apply reads itself when it is needed; it is never in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    Environment(String),
    File(PathBuf),
}

impl SecretFrom {
    pub fn read(&self) -> Result<Zeroizing<String>> {
        match self {
            Self::Environment(name) => std::env::var(name)
                .map(Zeroizing::new)
                .with_context(|| format!("the environment has no {name}")),
            Self::File(path) => fs::read_to_string(path)
                .map(|text| Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
                .with_context(|| path.display().to_string()),
        }
    }
}

/// One resource as it shall be.
#[derive(Debug, Clone)]
pub struct Declaration {
    pub kind: Kind,
    pub name: String,
    /// File and line, for messages.
    pub place: String,
    /// The body for the API, without a secret's value.
    pub body: Map<String, Value>,
    /// As the API would show it.
    pub view: Map<String, Value>,
    /// Of a connection: its sealed secret.
    pub secret: Option<SecretFrom>,
    /// Of an agent: where its `HOOP_KEY` goes when it is registered.
    pub key_file: Option<PathBuf>,
}

/// Everything that these files and folders declare, each thing once.
///
/// # Errors
/// Names the file, the line and the field.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Declaration>> {
    let mut all = Vec::new();
    for file in files(paths)? {
        let size = fs::metadata(&file).with_context(|| file.display().to_string())?.len();
        if size > FILE_MAX_BYTES {
            bail!(
                "{}: {size} bytes are too many; at most {FILE_MAX_BYTES}",
                file.display()
            );
        }
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        all.extend(parse(&file, &text)?);
    }
    let mut known: HashMap<(Kind, &str), &str> = HashMap::new();
    for one in &all {
        if let Some(first) = known.insert((one.kind, &one.name), &one.place) {
            bail!(
                "{}: {} {} is declared at {first} already",
                one.place,
                one.kind,
                one.name
            );
        }
    }
    all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Ok(all)
}

/// A folder stands for its files that end in `.yaml` or `.yml`, by name.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            let file = entry?.path();
            if file.is_file() && file.extension().is_some_and(|end| end == "yaml" || end == "yml") {
                found.push(file);
            }
        }
        if found.is_empty() {
            bail!("{}: no .yaml file is in this folder", path.display());
        }
        found.sort();
        files.extend(found);
    }
    if files.len() > FILES_MAX {
        bail!("{} files are too many; at most {FILES_MAX}", files.len());
    }
    Ok(files)
}

fn parse(file: &Path, text: &str) -> Result<Vec<Declaration>> {
    let at = |line: usize| format!("{}:{line}", file.display());
    let documents = yaml::documents(text).map_err(|fault| anyhow!("{}: {}", at(fault.line), fault.problem))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let one = |node: &Node| {
        declaration(node, folder, at(node.line)).map_err(|fault| {
            let line = fault.field.as_deref().and_then(|field| node.line_of(field));
            anyhow!("{}: {}", at(line.unwrap_or(node.line)), fault.problem)
        })
    };
    documents.iter().map(one).collect()
}

fn wrong(field: &str, problem: impl Into<String>) -> declared::Fault {
    declared::Fault {
        field: Some(field.to_owned()),
        problem: problem.into(),
    }
}

fn declaration(node: &Node, folder: &Path, place: String) -> Result<Declaration, declared::Fault> {
    let Value::Object(mut body) = node.json() else {
        return Err(wrong("", "a declaration must be a mapping with kind and name."));
    };
    let kind = body.remove("kind").unwrap_or_default();
    let Some(kind) = Kind::ALL.into_iter().find(|known| kind == known.name()) else {
        return Err(wrong("kind", "kind must be agent, connection, rule or group."));
    };
    let Some(name) = body.get("name").and_then(Value::as_str).map(ToOwned::to_owned) else {
        return Err(wrong("name", format!("a declared {kind} must have a name, as text.")));
    };
    let (mut secret, mut key_file) = (None, None);
    let view = match kind {
        Kind::Rule => declared::rule(&body)?,
        Kind::Connection => {
            secret = secret_from(&mut body, folder)?;
            let mut whole = body.clone();
            if secret.is_some() {
                whole.insert("secret".into(), serde_json::json!({"value": ""}));
            }
            declared::connection(&whole)?
        }
        Kind::Agent => {
            key_file = key_file_of(&mut body, folder)?;
            only(&body, &["name"])?;
            body.clone()
        }
        Kind::Group => {
            only(&body, &["name", "members"])?;
            members(&body)?;
            body.clone()
        }
    };
    Ok(Declaration {
        kind,
        name,
        place,
        body,
        view,
        secret,
        key_file,
    })
}

fn only(body: &Map<String, Value>, known: &[&str]) -> Result<(), declared::Fault> {
    match body.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(other) => Err(wrong(
            other,
            format!("The member {other} is not known here. Remove it."),
        )),
    }
}

/// User names of a declared group, as they are stored.
///
/// # Errors
/// Where they are no list of names, each there once.
pub fn members(body: &Map<String, Value>) -> Result<BTreeSet<String>, declared::Fault> {
    let refused = || wrong("members", "members must be a list of user names, each there once.");
    let listed = body.get("members").and_then(Value::as_array).ok_or_else(refused)?;
    let mut members = BTreeSet::new();
    for member in listed {
        let name = member.as_str().and_then(|name| names::username(name).ok());
        if !members.insert(name.ok_or_else(refused)?) {
            return Err(refused());
        }
    }
    Ok(members)
}

fn key_file_of(body: &mut Map<String, Value>, folder: &Path) -> Result<Option<PathBuf>, declared::Fault> {
    match body.remove("key_file") {
        None => Ok(None),
        Some(Value::String(path)) if !path.is_empty() => Ok(Some(folder.join(path))),
        Some(_) => Err(wrong("key_file", "key_file must be the path of a file.")),
    }
}

/// `secret: {value: …}` is refused: such files are kept where many read them.
fn secret_from(body: &mut Map<String, Value>, folder: &Path) -> Result<Option<SecretFrom>, declared::Fault> {
    let Some(Value::Object(secret)) = body.get("secret") else {
        return Ok(None);
    };
    let text = |name: &str| secret.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let found = match secret.keys().next().map(String::as_str) {
        Some("value") => {
            return Err(wrong(
                "secret",
                "a secret must not stand in a file. Use reference (env:… or file:…, which the agent resolves), \
                 value_from_env or value_from_file (which apply reads).",
            ));
        }
        Some("value_from_env") => text("value_from_env").map(|name| SecretFrom::Environment(name.to_owned())),
        Some("value_from_file") => text("value_from_file").map(|path| SecretFrom::File(folder.join(path))),
        _ => return Ok(None),
    };
    if found.is_none() || secret.len() != 1 {
        return Err(wrong("secret", "secret must have one member, with a text."));
    }
    body.remove("secret");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Declaration>, String> {
        parse(Path::new("dir/a.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_fault_names_file_line_and_field() {
        for (text, expected) in [
            (
                "kind: rule\nname: a\ngruops: [x]\n",
                "dir/a.yaml:3: The member gruops is not known here. Remove it.",
            ),
            (
                "\nkind: rulle\nname: a\n",
                "dir/a.yaml:2: kind must be agent, connection, rule or group.",
            ),
            (
                "kind: agent\nname: a\nport: 1\n",
                "dir/a.yaml:3: The member port is not known here. Remove it.",
            ),
            (
                "kind: rule\n",
                "dir/a.yaml:1: a declared rule must have a name, as text.",
            ),
            (
                "kind: rule\nname: a\nconnections: x\n",
                "dir/a.yaml:3: The member connections must be a sequence.",
            ),
            (
                "- a\n",
                "dir/a.yaml:1: a declaration must be a mapping with kind and name.",
            ),
            ("kind: rule\nname: [\n", "dir/a.yaml:3:"),
            (
                "kind: group\nname: a\nmembers: [ada, ADA]\n",
                "dir/a.yaml:3: members must be a list of user names, each there once.",
            ),
            (
                "kind: group\nname: a\n",
                "dir/a.yaml:1: members must be a list of user names, each there once.",
            ),
            (
                "kind: rule\nname: a\ngroups: [x]\nconnections: [x]\nmanaged_by: x\n",
                "dir/a.yaml:5: managed_by is not declared: apply sets it, with --set.",
            ),
        ] {
            let refused = read_text(text).unwrap_err();
            assert!(refused.starts_with(expected), "{text}: {refused}");
        }
    }

    #[test]
    fn a_secret_in_the_file_is_refused_and_not_repeated() {
        let start = "kind: connection\nname: a\nagents: [e]\nhost: h\nuser: u\n";
        let refused = read_text(&format!("{start}secret:\n  value: hunter2\n")).unwrap_err();
        assert!(
            refused.starts_with("dir/a.yaml:6: a secret must not stand in a file."),
            "{refused}"
        );
        assert!(!refused.contains("hunter2"));
    }
}
