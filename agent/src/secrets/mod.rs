//! A target's secret: given by the gateway, or a reference that only this agent resolves within its own limits.
//!
//! INVARIANT: no error here holds a secret, a path or a variable's value; the reference itself is named, for it is what
//! an administrator typed.

mod env;
mod file;

use std::path::PathBuf;

use hoop_proto::end::{End, Refusal};
use hoop_proto::link::target::Secret;
use zeroize::Zeroizing;

/// Longest secret that is taken, in bytes.
pub const SECRET_MAX_BYTES: usize = 64 * 1_024;
/// Longest reference that is read, in bytes.
pub const REFERENCE_MAX_BYTES: usize = 1_024;
/// `env:` references may name only variables that begin so: the rest of the environment is the agent's own.
pub const ENV_PREFIX: &str = "HOOP_TARGET_";

/// Which references this agent resolves.
#[derive(Debug, Clone, Default)]
pub struct ReferenceRules {
    /// `env:` references are resolved.
    pub env: bool,
    /// `file:` references are resolved below this folder only; none: never.
    pub file_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    #[error("the agent does not resolve {0} references")]
    Scheme(String),
    #[error("the agent's configuration does not allow {0}: references")]
    NotAllowed(&'static str),
    #[error("the reference is no \"env:NAME\" or \"file:NAME\"")]
    Malformed,
    #[error("an env: reference must name a variable that begins with {ENV_PREFIX}")]
    EnvName,
    #[error("the agent's environment has no variable {0}")]
    EnvMissing(String),
    #[error("a file: reference must stay below the agent's references folder")]
    FileOutside,
    #[error("the agent has no such file in its references folder, or may not read it")]
    FileMissing,
    #[error("the secret is longer than {SECRET_MAX_BYTES} bytes")]
    TooLong,
    #[error("the secret is not UTF-8 text")]
    NotText,
    #[error("the gateway sealed the secret to a key that this agent does not have")]
    Sealed,
}

impl SecretError {
    /// As the client is told. A rule of this agent's own is `AgentRefused`, a secret that is not there its own end.
    #[must_use]
    pub fn refusal(&self, agent: &str) -> Refusal {
        let end = match self {
            Self::NotAllowed(_) | Self::EnvName | Self::FileOutside => End::AgentRefused,
            _ => End::TargetSecretMissing,
        };
        Refusal::new(
            end,
            format!("agent \"{agent}\" cannot use the target's secret: {self}"),
            "An administrator must correct the connection's secret or the agent's [references] configuration.",
        )
    }
}

/// The target's password; `None` where the connection has no secret.
pub async fn resolve(secret: Option<Secret>, rules: &ReferenceRules) -> Result<Option<Zeroizing<String>>, SecretError> {
    match secret {
        None => Ok(None),
        Some(Secret::Value(bytes)) => {
            if bytes.len() > SECRET_MAX_BYTES {
                return Err(SecretError::TooLong);
            }
            let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText)?;
            Ok(Some(Zeroizing::new(text.to_owned())))
        }
        Some(Secret::Reference(reference)) => resolve_reference(&reference, rules).await.map(Some),
        Some(Secret::Sealed(_)) => Err(SecretError::Sealed),
    }
}

async fn resolve_reference(reference: &str, rules: &ReferenceRules) -> Result<Zeroizing<String>, SecretError> {
    if reference.len() > REFERENCE_MAX_BYTES {
        return Err(SecretError::Malformed);
    }
    let (scheme, name) = reference.split_once(':').ok_or(SecretError::Malformed)?;
    match scheme {
        "env" => {
            if !rules.env {
                return Err(SecretError::NotAllowed("env"));
            }
            env::read(name)
        }
        "file" => {
            let Some(dir) = rules.file_dir.clone() else {
                return Err(SecretError::NotAllowed("file"));
            };
            let name = name.to_owned();
            tokio::task::spawn_blocking(move || file::read(&dir, &name))
                .await
                .unwrap_or(Err(SecretError::FileMissing))
        }
        other if !other.is_empty() && other.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            Err(SecretError::Scheme(other.to_owned()))
        }
        _ => Err(SecretError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_is_taken_as_it_is_and_no_secret_is_none() {
        let rules = ReferenceRules::default();
        let secret = resolve(Some(Secret::Value("p w".into())), &rules)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(secret.as_str(), "p w");
        assert!(resolve(None, &rules).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn references_are_refused_unless_the_agent_allows_them() {
        let rules = ReferenceRules::default();
        for (reference, expected) in [
            ("env:HOOP_TARGET_X", SecretError::NotAllowed("env")),
            ("file:db", SecretError::NotAllowed("file")),
            ("vault:kv/db", SecretError::Scheme("vault".into())),
            ("plain", SecretError::Malformed),
        ] {
            let error = resolve(Some(Secret::Reference(reference.into())), &rules)
                .await
                .unwrap_err();
            assert_eq!(error, expected, "{reference}");
        }
    }

    #[test]
    fn a_rule_of_the_agent_and_a_missing_secret_end_differently() {
        assert_eq!(SecretError::EnvName.refusal("a").end, End::AgentRefused);
        assert_eq!(SecretError::FileMissing.refusal("a").end, End::TargetSecretMissing);
        assert!(SecretError::EnvName.refusal("prod").message.contains("prod"));
    }
}
