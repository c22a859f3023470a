//! The agent's configuration: compiled-in defaults, then a TOML file, then `HOOP_AGENT_*`; checked whole before anything
//! is dialled.
//!
//! It holds what no gateway can widen: allowed targets, references, protocols, sessions. An error names the key, the
//! value and what would be right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use serde::Deserialize;

use crate::key::{AgentKey, KEY_MAX_BYTES, KeyError};
use crate::secrets::ReferenceRules;
use crate::targets::allow::{AllowList, RULES_MAX, Rule, RuleError};

/// The protocols that this release speaks to targets.
pub const PROTOCOLS: [&str; 1] = ["postgres"];
/// Most arbiters: a gateway takes at most as many connections of one agent.
pub const ARBITERS_MAX: usize = 8;
/// Most sessions at a time unless configured.
pub const MAX_SESSIONS_DEFAULT: usize = 10_000;
/// How long a stopping agent waits for its sessions unless configured, in seconds.
pub const DRAIN_DEADLINE_DEFAULT_S: u64 = 30;

/// Everything that the agent runs by.
#[derive(Debug, Clone)]
pub struct Config {
    pub key: AgentKey,
    pub allow: AllowList,
    pub references: ReferenceRules,
    pub protocols: Vec<String>,
    pub arbiters: usize,
    pub max_sessions: usize,
    pub drain_deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "no key: set HOOP_KEY to the key shown when the agent was registered, or HOOP_KEY_FILE to a file that holds it"
    )]
    NoKey,
    #[error("both HOOP_KEY and HOOP_KEY_FILE are set; keep one")]
    TwoKeys,
    #[error("the key file {path} cannot be read")]
    KeyFile { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the configuration file {path} is not valid: {why}")]
    File { path: PathBuf, why: String },
    #[error("{key}: {source}")]
    Rule { key: &'static str, source: RuleError },
    #[error("{key} has more than {RULES_MAX} rules")]
    TooManyRules { key: &'static str },
    #[error("{key} = \"{value}\": must be {right}")]
    Value {
        key: &'static str,
        value: String,
        right: String,
    },
}

/// The file's form. Every member is optional; an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    key_file: Option<PathBuf>,
    allow: Vec<String>,
    deny: Vec<String>,
    protocols: Option<Vec<String>>,
    arbiters: Option<usize>,
    max_sessions: Option<usize>,
    drain_deadline_s: Option<u64>,
    references: RawReferences,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawReferences {
    env: Option<bool>,
    file_dir: Option<PathBuf>,
}

impl Config {
    /// Reads file (`path`, or the one that `HOOP_AGENT_CONFIG` names) and environment. `variable` looks a name up in the
    /// environment; an empty value counts as unset.
    pub fn load(path: Option<&Path>, variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = path
            .map(Path::to_path_buf)
            .or_else(|| variable("HOOP_AGENT_CONFIG").map(PathBuf::from));
        let mut raw = match &path {
            None => Raw::default(),
            Some(path) => read_file(path)?,
        };
        overlay(&mut raw, &variable)?;
        let key = load_key(raw.key_file.take(), &variable)?;
        check(raw, key)
    }
}

fn read_file(path: &Path) -> Result<Raw, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
        path: path.to_path_buf(),
        why: error.to_string(),
    })?;
    Figment::from(Toml::string(&text))
        .extract()
        .map_err(|error| ConfigError::File {
            path: path.to_path_buf(),
            why: error.to_string(),
        })
}

fn overlay(raw: &mut Raw, variable: &impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    if let Some(value) = variable("HOOP_AGENT_ALLOW") {
        raw.allow = list(&value);
    }
    if let Some(value) = variable("HOOP_AGENT_DENY") {
        raw.deny = list(&value);
    }
    if let Some(value) = variable("HOOP_AGENT_PROTOCOLS") {
        raw.protocols = Some(list(&value));
    }
    if let Some(value) = variable("HOOP_AGENT_ARBITERS") {
        raw.arbiters = Some(number("HOOP_AGENT_ARBITERS", value)?);
    }
    if let Some(value) = variable("HOOP_AGENT_MAX_SESSIONS") {
        raw.max_sessions = Some(number("HOOP_AGENT_MAX_SESSIONS", value)?);
    }
    if let Some(value) = variable("HOOP_AGENT_DRAIN_DEADLINE_S") {
        raw.drain_deadline_s = Some(number("HOOP_AGENT_DRAIN_DEADLINE_S", value)?);
    }
    if let Some(value) = variable("HOOP_AGENT_REFERENCES_ENV") {
        raw.references.env = Some(match value.trim() {
            "true" | "1" | "on" => true,
            "false" | "0" | "off" => false,
            _ => {
                let right = "true or false".to_owned();
                return Err(ConfigError::Value {
                    key: "HOOP_AGENT_REFERENCES_ENV",
                    value,
                    right,
                });
            }
        });
    }
    if let Some(value) = variable("HOOP_AGENT_REFERENCES_FILE_DIR") {
        raw.references.file_dir = Some(PathBuf::from(value));
    }
    Ok(())
}

fn list(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn number<N: std::str::FromStr>(key: &'static str, value: String) -> Result<N, ConfigError> {
    value.trim().parse().map_err(|_| ConfigError::Value {
        key,
        value,
        right: "a whole number".to_owned(),
    })
}

fn load_key(file: Option<PathBuf>, variable: &impl Fn(&str) -> Option<String>) -> Result<AgentKey, ConfigError> {
    let direct = variable("HOOP_KEY");
    let named = variable("HOOP_KEY_FILE").map(PathBuf::from);
    let path = match (direct, named, file) {
        (Some(_), Some(_), _) => return Err(ConfigError::TwoKeys),
        (Some(key), None, _) => return Ok(AgentKey::parse(&key)?),
        (None, Some(path), _) | (None, None, Some(path)) => path,
        (None, None, None) => return Err(ConfigError::NoKey),
    };
    let text = read_bounded(&path).map_err(|source| ConfigError::KeyFile { path, source })?;
    Ok(AgentKey::parse(&text)?)
}

/// One byte above the limit is read, so that the key's own check sees that there is more.
fn read_bounded(path: &Path) -> std::io::Result<zeroize::Zeroizing<String>> {
    use std::io::Read;
    let mut text = zeroize::Zeroizing::new(String::new());
    std::fs::File::open(path)?
        .take(KEY_MAX_BYTES as u64 + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn check(raw: Raw, key: AgentKey) -> Result<Config, ConfigError> {
    let allow = AllowList::new(rules("allow", &raw.allow)?, rules("deny", &raw.deny)?);
    let protocols = raw.protocols.unwrap_or_else(|| PROTOCOLS.map(str::to_owned).to_vec());
    if let Some(unknown) = protocols.iter().find(|name| !PROTOCOLS.contains(&name.as_str())) {
        let right = format!("one of {}", PROTOCOLS.join(", "));
        return Err(ConfigError::Value {
            key: "protocols",
            value: unknown.clone(),
            right,
        });
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let arbiters = raw.arbiters.unwrap_or(cores.min(ARBITERS_MAX));
    if !(1..=ARBITERS_MAX).contains(&arbiters) {
        let right = format!("between 1 and {ARBITERS_MAX}");
        return Err(ConfigError::Value {
            key: "arbiters",
            value: arbiters.to_string(),
            right,
        });
    }
    let max_sessions = raw.max_sessions.unwrap_or(MAX_SESSIONS_DEFAULT);
    if max_sessions == 0 {
        return Err(ConfigError::Value {
            key: "max_sessions",
            value: "0".into(),
            right: "at least 1".into(),
        });
    }
    if let Some(dir) = &raw.references.file_dir
        && !dir.is_dir()
    {
        let right = "a folder that exists".to_owned();
        return Err(ConfigError::Value {
            key: "references.file_dir",
            value: dir.display().to_string(),
            right,
        });
    }
    Ok(Config {
        key,
        allow,
        references: ReferenceRules {
            env: raw.references.env.unwrap_or(true),
            file_dir: raw.references.file_dir,
        },
        protocols,
        arbiters,
        max_sessions,
        drain_deadline: Duration::from_secs(raw.drain_deadline_s.unwrap_or(DRAIN_DEADLINE_DEFAULT_S)),
    })
}

fn rules(key: &'static str, texts: &[String]) -> Result<Vec<Rule>, ConfigError> {
    if texts.len() > RULES_MAX {
        return Err(ConfigError::TooManyRules { key });
    }
    texts
        .iter()
        .map(|text| text.parse().map_err(|source| ConfigError::Rule { key, source }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "grpcs://a:t@gw.example";

    fn load(file: Option<&str>, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = file.map(|text| {
            let path = dir.path().join("agent.toml");
            std::fs::write(&path, text).unwrap();
            path
        });
        Config::load(path.as_deref(), |name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_key_is_enough() {
        let config = load(None, &[("HOOP_KEY", KEY)]).unwrap();
        assert_eq!(config.max_sessions, 10_000);
        assert_eq!(config.protocols, ["postgres"]);
        assert!(config.references.env && config.references.file_dir.is_none());
        assert!((1..=8).contains(&config.arbiters));
    }

    #[test]
    fn environment_wins_over_the_file() {
        let file = "allow = [\"10.0.0.0/8:5432\"]\nmax_sessions = 5\narbiters = 3\n[references]\nenv = false\n";
        let config = load(
            Some(file),
            &[
                ("HOOP_KEY", KEY),
                ("HOOP_AGENT_ALLOW", "*.db:1, 1.2.3.4:2"),
                ("HOOP_AGENT_ARBITERS", "2"),
            ],
        )
        .unwrap();
        assert_eq!(
            (config.max_sessions, config.arbiters, config.references.env),
            (5, 2, false)
        );
        assert!(config.allow.check("x", "10.0.0.1:5432".parse().unwrap()).is_err());
        assert!(config.allow.check("x.db", "10.0.0.1:1".parse().unwrap()).is_ok());
    }

    #[test]
    fn the_key_comes_from_a_file_or_from_the_environment_and_not_from_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, format!("{KEY}\n")).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(load(None, &[("HOOP_KEY_FILE", path)]).unwrap().key.host, "gw.example");
        assert_eq!(
            load(Some(&format!("key_file = \"{path}\"")), &[]).unwrap().key.host,
            "gw.example"
        );
        assert!(matches!(
            load(None, &[("HOOP_KEY_FILE", path), ("HOOP_KEY", KEY)]),
            Err(ConfigError::TwoKeys)
        ));
        assert!(matches!(load(None, &[]), Err(ConfigError::NoKey)));
    }

    #[test]
    fn mistakes_name_the_key_and_what_would_be_right() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 6] = [
            ("allow = [\"db\"]", &[], "allow: \"db\" has no port"),
            ("colour = 1", &[], "colour"),
            (
                "protocols = [\"ssh\"]",
                &[],
                "protocols = \"ssh\": must be one of postgres",
            ),
            ("arbiters = 9", &[], "arbiters = \"9\": must be between 1 and 8"),
            (
                "",
                &[("HOOP_AGENT_MAX_SESSIONS", "many")],
                "HOOP_AGENT_MAX_SESSIONS = \"many\": must be a whole number",
            ),
            (
                "[references]\nfile_dir = \"/no/such\"",
                &[],
                "references.file_dir = \"/no/such\"",
            ),
        ];
        for (file, variables, expected) in cases {
            let mut all = vec![("HOOP_KEY", KEY)];
            all.extend_from_slice(variables);
            let error = load(Some(file), &all).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
