//! A table `[[saml]]`.

use std::path::{Path, PathBuf};

use hoop_api::single_sign_on::{Protocol, Provider};
use hoop_auth::saml::{ConfigError as Refused, IdentityProvider, NameIdFormat, SamlConfig, SamlProvider, SigningKey};
use serde::{Deserialize, Serialize};

use super::{Table, member, yes};
use crate::config::ConfigError;

/// Longest name in addresses, in characters.
const NAME_MAX_CHARS: usize = 64;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSaml {
    name: String,
    display_name: Option<String>,
    metadata_file: Option<PathBuf>,
    idp_entity_id: Option<String>,
    idp_sso_url: Option<String>,
    #[serde(default)]
    idp_certificate_files: Vec<PathBuf>,
    sp_entity_id: Option<String>,
    acs_url: Option<String>,
    groups_attribute: Option<String>,
    email_attribute: Option<String>,
    display_name_attribute: Option<String>,
    name_id_format: Option<String>,
    #[serde(default)]
    require_signed_response: bool,
    #[serde(default)]
    allow_idp_initiated: bool,
    signing_key_file: Option<PathBuf>,
    signing_certificate_file: Option<PathBuf>,
    #[serde(default = "yes")]
    create_users: bool,
    #[serde(default = "member")]
    default_role: String,
    #[serde(default)]
    admin_groups: Vec<String>,
    #[serde(default)]
    auditor_groups: Vec<String>,
}

impl RawSaml {
    pub(super) fn build(&self, public_url: &str) -> Result<Provider, ConfigError> {
        let table = Table {
            kind: "saml",
            name: &self.name,
        };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=NAME_MAX_CHARS).contains(&self.name.len()) || !self.name.chars().all(fits) {
            let wanted = "1 to 64 lower-case letters, digits and hyphens";
            return Err(table.wrong("name", &self.name, wanted));
        }
        let base = format!("{public_url}/api/sign-in/{}", self.name);
        let config = SamlConfig {
            name: self.name.clone(),
            sp_entity_id: self.sp_entity_id.clone().unwrap_or_else(|| format!("{base}/metadata")),
            acs_url: self.acs_url.clone().unwrap_or_else(|| format!("{base}/acs")),
            identity_provider: self.identity_provider(&table)?,
            groups_attribute: self.groups_attribute.clone(),
            email_attribute: self.email_attribute.clone(),
            display_name_attribute: self.display_name_attribute.clone(),
            name_id_format: self.name_id_format(&table)?,
            require_signed_response: self.require_signed_response,
            allow_idp_initiated: self.allow_idp_initiated,
            signing_key: self.signing_key(&table)?,
        };
        let provider = SamlProvider::new(config).map_err(|refused| self.refused(&table, &refused))?;
        Ok(Provider {
            display_name: table.display_name(self.display_name.as_deref())?,
            policy: table.policy(
                self.create_users,
                &self.default_role,
                &self.admin_groups,
                &self.auditor_groups,
            )?,
            protocol: Protocol::Saml(Box::new(provider)),
        })
    }

    fn identity_provider(&self, table: &Table<'_>) -> Result<IdentityProvider, ConfigError> {
        let by_hand = self.idp_entity_id.is_some() || self.idp_sso_url.is_some();
        match (&self.metadata_file, &self.idp_entity_id, &self.idp_sso_url) {
            (Some(path), None, None) if self.idp_certificate_files.is_empty() => Ok(IdentityProvider::Metadata {
                xml: table.read("metadata_file", path)?.to_string(),
            }),
            (None, Some(entity_id), Some(sso_url)) if by_hand => {
                let read = |path: &PathBuf| table.read("idp_certificate_files", path).map(|text| text.to_string());
                Ok(IdentityProvider::Manual {
                    entity_id: entity_id.clone(),
                    sso_url: sso_url.clone(),
                    certificates: self.idp_certificate_files.iter().map(read).collect::<Result<_, _>>()?,
                })
            }
            (path, _, _) => Err(table.wrong(
                "metadata_file",
                path.as_deref().map_or_else(String::new, shown),
                "the identity provider's metadata, or, without it, idp_entity_id, idp_sso_url and idp_certificate_files",
            )),
        }
    }

    fn name_id_format(&self, table: &Table<'_>) -> Result<Option<NameIdFormat>, ConfigError> {
        Ok(Some(match self.name_id_format.as_deref() {
            None => return Ok(None),
            Some("persistent") => NameIdFormat::Persistent,
            Some("email_address") => NameIdFormat::EmailAddress,
            Some("unspecified") => NameIdFormat::Unspecified,
            Some(other) => {
                let wanted = "\"persistent\", \"email_address\" or \"unspecified\"";
                return Err(table.wrong("name_id_format", other, wanted));
            }
        }))
    }

    fn signing_key(&self, table: &Table<'_>) -> Result<Option<SigningKey>, ConfigError> {
        match (&self.signing_key_file, &self.signing_certificate_file) {
            (None, None) => Ok(None),
            (Some(key), Some(certificate)) => Ok(Some(SigningKey {
                private_key_pem: table.read("signing_key_file", key)?,
                certificate_pem: table.read("signing_certificate_file", certificate)?.to_string(),
            })),
            (Some(one), None) | (None, Some(one)) => Err(table.wrong(
                "signing_key_file, signing_certificate_file",
                shown(one),
                "both files or none: an RSA key (PKCS#8, PEM) and its certificate",
            )),
        }
    }

    /// A refused field under the name and with the value that the file has.
    fn refused(&self, table: &Table<'_>, refused: &Refused) -> ConfigError {
        let path = |path: &Option<PathBuf>| path.as_deref().map_or_else(String::new, shown);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (key, value) = match refused.field {
            "identity_provider.metadata" => ("metadata_file", path(&self.metadata_file)),
            "identity_provider.entity_id" => ("idp_entity_id", text(&self.idp_entity_id)),
            "identity_provider.sso_url" => ("idp_sso_url", text(&self.idp_sso_url)),
            "identity_provider.certificates" => ("idp_certificate_files", format!("{:?}", self.idp_certificate_files)),
            "signing_key" => ("signing_key_file", path(&self.signing_key_file)),
            "signing_key.certificate" => ("signing_certificate_file", path(&self.signing_certificate_file)),
            "sp_entity_id" => ("sp_entity_id", text(&self.sp_entity_id)),
            "acs_url" => ("acs_url", text(&self.acs_url)),
            "groups_attribute" => ("groups_attribute", text(&self.groups_attribute)),
            "email_attribute" => ("email_attribute", text(&self.email_attribute)),
            "display_name_attribute" => ("display_name_attribute", text(&self.display_name_attribute)),
            other => (other, String::new()),
        };
        table.wrong(key, value, &refused.remedy)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
