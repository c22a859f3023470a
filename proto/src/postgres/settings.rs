//! Start-up parameters that stand for a statement: `role`, `session_authorization`, and every setting in `options`.
//!
//! `options` is taken apart as PostgreSQL does it (`pg_split_opts`, `process_postgres_switches`, `ParseLongOption`), so
//! that what is judged is what the target will set. What might be read in another way is refused.

use thiserror::Error;

/// Settings that change who the session is. PostgreSQL compares names of settings without regard to ASCII case.
const JUDGED: [&str; 2] = ["role", "session_authorization"];
/// The parameter that holds a command line; its name is compared exactly.
const OPTIONS: &str = "options";

/// A setting that the client asks for at start-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// Why `options` is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionsError {
    /// PostgreSQL knows more switches; each that it takes from a client is short for a setting.
    #[error("invalid command-line argument in \"options\": {0}")]
    Unknown(String),
    #[error("the command-line argument -c in \"options\" lacks its setting")]
    Missing,
    #[error("the command-line argument {0} in \"options\" requires a value")]
    NoValue(String),
    /// Which of these bytes part words depends on the target's locale.
    #[error("\"options\" holds characters beyond ASCII")]
    NotAscii,
}

impl Setting {
    /// The `SET` that it stands for. The value is one literal, also where the setting is a list.
    #[must_use]
    pub fn statement(&self) -> String {
        let name: Vec<_> = self.name.split('.').map(identifier).collect();
        format!("SET {} TO {}", name.join("."), literal(&self.value))
    }
}

/// The settings among these parameters that are judged, in the order in which PostgreSQL sets them: those in `options`
/// first.
///
/// # Errors
/// `OptionsError` where `options` holds anything but settings.
pub fn judged(parameters: &[(String, String)]) -> Result<Vec<Setting>, OptionsError> {
    let mut settings = Vec::new();
    for (name, value) in parameters {
        if name == OPTIONS {
            in_options(value, &mut settings)?;
        }
    }
    let named = |name: &str| JUDGED.iter().any(|judged| judged.eq_ignore_ascii_case(name));
    let plain = parameters.iter().filter(|(name, _)| named(name));
    settings.extend(plain.map(|(name, value)| Setting {
        name: name.to_ascii_lowercase(),
        value: value.clone(),
    }));
    Ok(settings)
}

/// `-c name=value`, `-cname=value` and `--name=value`, as getopt reads them.
fn in_options(options: &str, settings: &mut Vec<Setting>) -> Result<(), OptionsError> {
    if !options.is_ascii() {
        return Err(OptionsError::NotAscii);
    }
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            let setting = words.next().ok_or(OptionsError::Missing)?;
            long_option(&setting, "-c ")?
        } else if let Some(setting) = word.strip_prefix("-c") {
            long_option(setting, "-c ")?
        } else if let Some(setting) = word.strip_prefix("--").filter(|setting| !setting.is_empty()) {
            long_option(setting, "--")?
        } else {
            return Err(OptionsError::Unknown(word));
        };
        settings.push(setting);
    }
    Ok(())
}

/// `ParseLongOption`: the name ends at the first `=`, and its dashes stand for underscores.
fn long_option(text: &str, switch: &str) -> Result<Setting, OptionsError> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| OptionsError::NoValue(format!("{switch}{text}")))?;
    Ok(Setting {
        name: name.replace('-', "_"),
        value: value.to_owned(),
    })
}

/// `pg_split_opts`: words parted by white space; a backslash takes the next character as it is.
fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' => words.extend(word.take()),
            '\\' => {
                let word = word.get_or_insert_default();
                word.extend(characters.next());
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// As it is where that is a plain name, and quoted where it is not.
fn identifier(name: &str) -> String {
    let plain = name.bytes().enumerate().all(|(at, byte)| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' => true,
        b'0'..=b'9' | b'$' => at > 0,
        _ => false,
    });
    if plain && !name.is_empty() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Reads the same whatever `standard_conforming_strings` says.
fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if value.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(parameters: &[(&str, &str)]) -> Result<Vec<String>, OptionsError> {
        let owned: Vec<_> = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Ok(judged(&owned)?.iter().map(Setting::statement).collect())
    }

    #[test]
    fn options_are_read_as_postgresql_reads_them() {
        let cases: [(&str, &[&str]); 14] = [
            ("", &[]),
            ("  ", &[]),
            ("-c role=boss", &["SET role TO 'boss'"]),
            ("-crole=boss", &["SET role TO 'boss'"]),
            ("--role=boss", &["SET role TO 'boss'"]),
            (
                " -c\tstatement_timeout=5s  --search-path=a,b ",
                &["SET statement_timeout TO '5s'", "SET search_path TO 'a,b'"],
            ),
            ("-c search_path=a,\\ b", &["SET search_path TO 'a, b'"]),
            ("-c a.b=\\\\x", &["SET a.b TO E'\\\\x'"]),
            ("-c role=o'neil", &["SET role TO 'o''neil'"]),
            ("-c ro\\le=x", &["SET role TO 'x'"]),
            ("-c geqo=a=b", &["SET geqo TO 'a=b'"]),
            ("-c geqo=", &["SET geqo TO ''"]),
            ("-c geqo=x\\", &["SET geqo TO 'x'"]),
            ("-c \"x\\ y=1", &["SET \"\"\"x y\" TO '1'"]),
        ];
        for (options, expected) in cases {
            assert_eq!(
                statements(&[("options", options)]).as_deref().unwrap_or_default(),
                expected,
                "{options:?}"
            );
        }
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        let unknown = |word: &str| Err(OptionsError::Unknown(word.into()));
        let cases = [
            ("-F", unknown("-F")),
            ("-c geqo=on -O", unknown("-O")),
            ("-ec role=boss", unknown("-ec")),
            ("--", unknown("--")),
            ("-", unknown("-")),
            ("word", unknown("word")),
            ("-c", Err(OptionsError::Missing)),
            ("-c role", Err(OptionsError::NoValue("-c role".into()))),
            ("--role", Err(OptionsError::NoValue("--role".into()))),
            ("-c search_path=é", Err(OptionsError::NotAscii)),
        ];
        for (options, expected) in cases {
            assert_eq!(statements(&[("options", options)]), expected, "{options:?}");
        }
    }

    #[test]
    fn what_changes_the_sessions_account_is_judged_in_any_case_and_other_settings_are_not() {
        let found = statements(&[
            ("application_name", "psql"),
            ("ROLE", "boss"),
            ("search_path", "x"),
            ("options", "-c geqo=on"),
            ("session_authorization", "root"),
        ]);
        let expected = [
            "SET geqo TO 'on'",
            "SET role TO 'boss'",
            "SET session_authorization TO 'root'",
        ];
        assert_eq!(found.as_deref().unwrap_or_default(), expected);
    }
}
