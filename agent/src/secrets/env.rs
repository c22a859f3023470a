//! `env:NAME`: a variable of the agent's own environment, of those that are meant for targets.

use zeroize::Zeroizing;

use super::{ENV_PREFIX, SECRET_MAX_BYTES, SecretError};

pub(super) fn read(name: &str) -> Result<Zeroizing<String>, SecretError> {
    read_from(name, |name| std::env::var_os(name))
}

fn read_from(
    name: &str,
    lookup: impl FnOnce(&str) -> Option<std::ffi::OsString>,
) -> Result<Zeroizing<String>, SecretError> {
    let well_formed = name.len() > ENV_PREFIX.len()
        && name.starts_with(ENV_PREFIX)
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !well_formed {
        return Err(SecretError::EnvName);
    }
    let value = lookup(name).ok_or_else(|| SecretError::EnvMissing(name.to_owned()))?;
    let value = Zeroizing::new(value.into_string().map_err(|_| SecretError::NotText)?);
    if value.len() > SECRET_MAX_BYTES {
        Err(SecretError::TooLong)
    } else {
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_the_prefix_are_looked_up() {
        for name in [
            "PATH",
            "HOOP_KEY",
            "HOOP_TARGET_",
            "hoop_target_x",
            "HOOP_TARGET_A=B",
            "",
        ] {
            let error = read_from(name, |_| panic!("looked up {name}")).unwrap_err();
            assert_eq!(error, SecretError::EnvName);
        }
    }

    #[test]
    fn a_variable_is_read_and_a_missing_one_is_named() {
        assert_eq!(read_from("HOOP_TARGET_DB", |_| Some("s".into())).unwrap().as_str(), "s");
        let error = read_from("HOOP_TARGET_DB", |_| None).unwrap_err();
        assert_eq!(error, SecretError::EnvMissing("HOOP_TARGET_DB".into()));
    }
}
