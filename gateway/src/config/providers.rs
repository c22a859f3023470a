//! `[[oidc]]` and `[[saml]]` of the configuration file: identity providers. Secrets, keys and certificates are named by
//! file, so that none is in the file itself, in the environment or in a list of arguments.

mod oidc;
mod saml;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use hoop_api::single_sign_on::{Policy, Provider, Providers, RESERVED_NAMES};
use hoop_store::identities::Role;
use zeroize::Zeroizing;

pub use self::oidc::RawOidc;
pub use self::saml::RawSaml;
use super::ConfigError;

/// Most providers: each is a line on the sign-in page.
const PROVIDERS_MAX: usize = 16;
/// Longest name for people, in characters.
const DISPLAY_NAME_MAX_CHARS: usize = 64;
/// Largest file that a provider names, in bytes.
const FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Most groups that a role is given for.
const ROLE_GROUPS_MAX: usize = 100;

/// The tables as they stand in the file.
#[derive(Debug, Clone, Default)]
pub struct ProviderTables {
    pub oidc: Vec<RawOidc>,
    pub saml: Vec<RawSaml>,
}

impl ProviderTables {
    /// The providers, under the address that people know. Asks none of them anything.
    ///
    /// # Errors
    /// The key, its value, and what would be right.
    pub fn build(&self, public_url: &str) -> Result<Providers, ConfigError> {
        let mut built = Vec::new();
        for table in &self.oidc {
            built.push(table.build(public_url)?);
        }
        for table in &self.saml {
            built.push(table.build(public_url)?);
        }
        check_names(&built)?;
        Ok(Providers::new(built))
    }
}

fn check_names(built: &[Provider]) -> Result<(), ConfigError> {
    if built.len() > PROVIDERS_MAX {
        return Err(wrong("oidc, saml".into(), built.len(), "at most 16 providers"));
    }
    let mut seen = HashSet::new();
    for provider in built {
        let key = || format!("{}.name", provider.kind());
        if RESERVED_NAMES.contains(&provider.name()) {
            return Err(wrong(
                key(),
                provider.name(),
                "another name: this one stands in addresses already",
            ));
        }
        if !seen.insert(provider.name()) {
            return Err(wrong(key(), provider.name(), "a name that no other provider has"));
        }
    }
    Ok(())
}

fn wrong(key: String, value: impl ToString, wanted: impl Into<String>) -> ConfigError {
    ConfigError::Provider {
        key,
        value: value.to_string(),
        wanted: wanted.into(),
    }
}

/// One table: which of its keys an error speaks of.
struct Table<'a> {
    kind: &'static str,
    name: &'a str,
}

impl Table<'_> {
    fn wrong(&self, key: &str, value: impl ToString, wanted: impl Into<String>) -> ConfigError {
        wrong(format!("{}[{}].{key}", self.kind, self.name), value, wanted)
    }

    fn read(&self, key: &str, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
        let unreadable = |why: String| self.wrong(key, path.display(), format!("a file that can be read ({why})"));
        let mut text = Zeroizing::new(String::new());
        let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
        let read = file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text);
        let bytes = read.map_err(|error| unreadable(error.to_string()))?;
        if u64::try_from(bytes).unwrap_or(u64::MAX) > FILE_MAX_BYTES {
            return Err(unreadable("it has more than 1 MiB".into()));
        }
        Ok(text)
    }

    fn display_name(&self, given: Option<&str>) -> Result<String, ConfigError> {
        let name = given.unwrap_or(self.name);
        let fits = (1..=DISPLAY_NAME_MAX_CHARS).contains(&name.chars().count());
        if !fits || name.chars().any(char::is_control) {
            return Err(self.wrong("display_name", name, "1 to 64 characters on one line"));
        }
        Ok(name.to_owned())
    }

    fn policy(
        &self,
        create_users: bool,
        default_role: &str,
        admin_groups: &[String],
        auditor_groups: &[String],
    ) -> Result<Policy, ConfigError> {
        let default_role = match default_role {
            "member" => Role::Member,
            "auditor" => Role::Auditor,
            other => {
                let wanted = "\"member\" or \"auditor\"; name the administrators' groups in admin_groups";
                return Err(self.wrong("default_role", other, wanted));
            }
        };
        for (key, groups) in [("admin_groups", admin_groups), ("auditor_groups", auditor_groups)] {
            if groups.len() > ROLE_GROUPS_MAX || groups.iter().any(|group| group.trim().is_empty()) {
                return Err(self.wrong(key, groups.join(", "), "at most 100 names of groups"));
            }
        }
        Ok(Policy {
            create_users,
            default_role,
            admin_groups: admin_groups.to_vec(),
            auditor_groups: auditor_groups.to_vec(),
            silence_is_no_groups: false,
        })
    }
}

/// Where a table says nothing.
const fn yes() -> bool {
    true
}

fn member() -> String {
    "member".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC_URL: &str = "https://hoop.test";

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("secret"), "s3cret\n").unwrap();
            Self(folder)
        }

        fn build(&self, oidc: &str) -> Result<Providers, String> {
            #[derive(serde::Deserialize)]
            struct Tables {
                #[serde(default)]
                oidc: Vec<RawOidc>,
                #[serde(default)]
                saml: Vec<RawSaml>,
            }
            use figment::providers::{Format, Toml};
            let text = oidc.replace("@", &format!("{}/", self.0.path().display()));
            let tables: Tables = figment::Figment::from(Toml::string(&text))
                .extract()
                .map_err(|e| e.to_string())?;
            let tables = ProviderTables {
                oidc: tables.oidc,
                saml: tables.saml,
            };
            let built = tables.build(PUBLIC_URL).map_err(|e| e.to_string());
            assert!(!built.as_ref().is_err_and(|e| e.contains("s3cret")));
            built
        }
    }

    fn oidc(more: &str) -> String {
        format!(
            "[[oidc]]\nname = \"corp\"\nissuer = \"https://id.test\"\nclient_id = \"hoop\"\n\
             client_secret_file = \"@secret\"\n{more}\n"
        )
    }

    #[test]
    fn a_provider_needs_four_keys_and_the_rest_has_defaults() {
        let built = Folder::new().build(&oidc("")).unwrap();
        let corp = built.get("corp").unwrap();
        assert_eq!((corp.kind(), corp.display_name.as_str()), ("oidc", "corp"));
        assert!(corp.policy.create_users && corp.policy.default_role == Role::Member);
        let hoop_api::single_sign_on::Protocol::Oidc(provider) = &corp.protocol else {
            panic!()
        };
        assert_eq!(
            provider.config().redirect_uri,
            "https://hoop.test/api/sign-in/corp/callback"
        );
        assert_eq!(provider.config().client_secret.expose(), "s3cret");
    }

    #[test]
    fn every_mistake_is_named_with_its_key_its_value_and_what_would_be_right() {
        let folder = Folder::new();
        for (more, words) in [
            (
                "default_role = \"admin\"",
                ["oidc[corp].default_role", "admin", "admin_groups"],
            ),
            (
                "client_auth = \"jwt\"",
                ["oidc[corp].client_auth", "jwt", "\"basic\" or \"post\""],
            ),
            ("algorithms = [\"HS256\"]", ["oidc[corp].algorithms", "HS256", "RS256"]),
            ("deadline_s = 90", ["oidc[corp].deadline_s", "90", "1 to 60"]),
            (
                "ca_file = \"@gone.pem\"",
                ["oidc[corp].ca_file", "gone.pem", "can be read"],
            ),
            (
                "redirect_uri = \"http://hoop.test/x\"",
                ["oidc[corp].redirect_uri", "http://hoop.test/x", "https://"],
            ),
            (
                "admin_groups = [\" \"]",
                ["oidc[corp].admin_groups", "\" \"", "names of groups"],
            ),
            ("display_name = \"\"", ["oidc[corp].display_name", "\"\"", "1 to 64"]),
            ("secret = \"x\"", ["unknown field", "secret", "client_secret_file"]),
        ] {
            let error = folder.build(&oidc(more)).err().unwrap();
            for word in words {
                assert!(error.contains(word), "{more}: no {word:?} in {error}");
            }
        }
        for (text, words) in [
            (
                oidc("").replace("\"corp\"", "\"Corp!\""),
                ["oidc[Corp!].name", "Corp!", "lower-case"],
            ),
            (
                oidc("").replace("\"corp\"", "\"device\""),
                ["oidc.name", "device", "another name"],
            ),
            (oidc("") + &oidc(""), ["oidc.name", "corp", "no other provider"]),
            (
                oidc("").replace("@secret", "@none"),
                ["oidc[corp].client_secret_file", "none", "can be read"],
            ),
            (
                oidc("").replace("https://id", "http://id"),
                ["oidc[corp].issuer", "http://id.test", "https://"],
            ),
            (
                "[[saml]]\nname = \"idp\"\n".into(),
                ["saml[idp].metadata_file", "", "idp_entity_id"],
            ),
            (
                "[[saml]]\nname = \"idp\"\nmetadata_file = \"@secret\"\n".into(),
                ["saml[idp].metadata_file", "secret", "not XML"],
            ),
        ] {
            let error = folder.build(&text).err().unwrap();
            for word in words {
                assert!(error.contains(word), "{text}: no {word:?} in {error}");
            }
        }
    }
}
