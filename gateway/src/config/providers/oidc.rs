//! A table `[[oidc]]`.

use std::path::PathBuf;
use std::time::Duration;

use hoop_api::single_sign_on::{Policy, Protocol, Provider};
use hoop_auth::oidc::{Algorithm, ClientAuth, ConfigError as Refused, OidcConfig, OidcProvider, Secret};
use serde::{Deserialize, Serialize};

use super::{Table, member, yes};
use crate::config::ConfigError;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawOidc {
    name: String,
    display_name: Option<String>,
    issuer: String,
    client_id: String,
    client_secret_file: PathBuf,
    client_auth: Option<String>,
    redirect_uri: Option<String>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    ask_consent: bool,
    groups_claim: Option<String>,
    email_claim: Option<String>,
    ca_file: Option<PathBuf>,
    algorithms: Option<Vec<String>>,
    deadline_s: Option<u64>,
    #[serde(default = "yes")]
    create_users: bool,
    #[serde(default = "member")]
    default_role: String,
    #[serde(default)]
    admin_groups: Vec<String>,
    #[serde(default)]
    auditor_groups: Vec<String>,
}

impl RawOidc {
    pub(super) fn build(&self, public_url: &str) -> Result<Provider, ConfigError> {
        let table = Table {
            kind: "oidc",
            name: &self.name,
        };
        let config = self.config(&table, public_url)?;
        let redirect_uri = config.redirect_uri.clone();
        let provider = OidcProvider::new(config).map_err(|refused| self.refused(&table, &redirect_uri, &refused))?;
        let policy = table.policy(
            self.create_users,
            &self.default_role,
            &self.admin_groups,
            &self.auditor_groups,
        )?;
        Ok(Provider {
            display_name: table.display_name(self.display_name.as_deref())?,
            policy: Policy {
                silence_is_no_groups: self.groups_claim.is_some(),
                ..policy
            },
            protocol: Protocol::Oidc(Box::new(provider)),
        })
    }

    fn config(&self, table: &Table<'_>, public_url: &str) -> Result<OidcConfig, ConfigError> {
        let secret = table.read("client_secret_file", &self.client_secret_file)?;
        let callback = || format!("{public_url}/api/sign-in/{}/callback", self.name);
        let redirect_uri = self.redirect_uri.clone().unwrap_or_else(callback);
        let secret = Secret::new(secret.trim());
        let mut config = OidcConfig::new(&self.name, &self.issuer, &self.client_id, secret, redirect_uri);
        config.client_auth = match self.client_auth.as_deref() {
            None => None,
            Some("basic") => Some(ClientAuth::Basic),
            Some("post") => Some(ClientAuth::Post),
            Some(other) => return Err(table.wrong("client_auth", other, "\"basic\" or \"post\"")),
        };
        if let Some(scopes) = &self.scopes {
            config.scopes.clone_from(scopes);
        }
        config.ask_consent = self.ask_consent;
        if let Some(claim) = &self.groups_claim {
            config.groups_claim.clone_from(claim);
        }
        if let Some(claim) = &self.email_claim {
            config.email_claim.clone_from(claim);
        }
        if let Some(path) = &self.ca_file {
            config.ca_pem = Some(table.read("ca_file", path)?.to_string());
        }
        if let Some(names) = &self.algorithms {
            let read: Result<Vec<Algorithm>, Refused> = names.iter().map(|name| name.parse()).collect();
            config.algorithms = read.map_err(|refused| self.refused(table, "", &refused))?;
        }
        if let Some(seconds) = self.deadline_s {
            config.deadline = Duration::from_secs(seconds);
        }
        Ok(config)
    }

    /// A refused field under the name and with the value that the file has.
    fn refused(&self, table: &Table<'_>, redirect_uri: &str, refused: &Refused) -> ConfigError {
        let or_default = |text: &Option<String>| text.clone().unwrap_or_default();
        let (key, value) = match refused.field {
            "client_secret" => ("client_secret_file", self.client_secret_file.display().to_string()),
            "ca_pem" => (
                "ca_file",
                self.ca_file
                    .as_ref()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
            ),
            "deadline" => ("deadline_s", self.deadline_s.unwrap_or_default().to_string()),
            "name" => ("name", self.name.clone()),
            "issuer" => ("issuer", self.issuer.clone()),
            "client_id" => ("client_id", self.client_id.clone()),
            "scopes" => ("scopes", format!("{:?}", self.scopes.clone().unwrap_or_default())),
            "algorithms" => (
                "algorithms",
                format!("{:?}", self.algorithms.clone().unwrap_or_default()),
            ),
            "groups_claim" => ("groups_claim", or_default(&self.groups_claim)),
            "email_claim" => ("email_claim", or_default(&self.email_claim)),
            "redirect_uri" => ("redirect_uri", redirect_uri.to_owned()),
            other => (other, String::new()),
        };
        table.wrong(key, value, format!("{}; {}", refused.problem, refused.remedy))
    }
}
