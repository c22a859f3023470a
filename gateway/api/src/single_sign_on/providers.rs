//! The configured providers, and what each one's word makes of a person.

use std::sync::Arc;

use hoop_auth::Identity;
use hoop_auth::oidc::OidcProvider;
use hoop_auth::saml::SamlProvider;
use hoop_store::identities::{Role, Terms, Vouched};

/// One provider.
pub struct Provider {
    /// For people, on the page with the ways in.
    pub display_name: String,
    pub policy: Policy,
    pub protocol: Protocol,
}

pub enum Protocol {
    Oidc(Box<OidcProvider>),
    Saml(Box<SamlProvider>),
}

/// What a person whom a provider vouches for becomes here.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whether somebody unknown becomes a user.
    pub create_users: bool,
    /// Of somebody whom no group makes more.
    pub default_role: Role,
    pub admin_groups: Vec<String>,
    pub auditor_groups: Vec<String>,
    /// Some providers leave the claim of somebody without groups out: then silence means none.
    pub silence_is_no_groups: bool,
}

impl Policy {
    /// What the provider says, as the store takes it.
    #[must_use]
    pub fn vouched(&self, identity: Identity) -> Vouched {
        let none = self.silence_is_no_groups.then(Vec::new);
        Vouched {
            provider: identity.provider,
            subject: identity.subject,
            email: identity.email,
            display_name: identity.display_name,
            groups: identity.groups.or(none),
        }
    }

    /// `groups` `None`: the provider said nothing of them.
    #[must_use]
    pub fn terms(&self, groups: Option<&[String]>) -> Terms {
        let role = groups.and_then(|groups| self.role(groups));
        Terms {
            creates: self.create_users,
            first_role: role.unwrap_or(self.default_role),
            role,
        }
    }

    /// What the groups say; `None` where no group is configured to say anything, so that roles are given here.
    #[must_use]
    pub fn role(&self, groups: &[String]) -> Option<Role> {
        if self.admin_groups.is_empty() && self.auditor_groups.is_empty() {
            return None;
        }
        let is_in = |these: &[String]| groups.iter().any(|group| these.contains(group));
        Some(if is_in(&self.admin_groups) {
            Role::Admin
        } else if is_in(&self.auditor_groups) {
            Role::Auditor
        } else {
            self.default_role
        })
    }
}

impl Provider {
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.protocol {
            Protocol::Oidc(provider) => &provider.config().name,
            Protocol::Saml(provider) => provider.name(),
        }
    }

    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self.protocol {
            Protocol::Oidc(_) => "oidc",
            Protocol::Saml(_) => "saml",
        }
    }
}

/// All of them, in the order of the configuration. Cheap to clone.
#[derive(Clone, Default)]
pub struct Providers(Arc<Vec<Arc<Provider>>>);

impl Providers {
    #[must_use]
    pub fn new(providers: Vec<Provider>) -> Self {
        Self(Arc::new(providers.into_iter().map(Arc::new).collect()))
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Provider>> {
        self.iter().find(|provider| provider.name() == name).cloned()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(admin: &[&str], auditor: &[&str]) -> Policy {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Policy {
            create_users: true,
            default_role: Role::Member,
            admin_groups: texts(admin),
            auditor_groups: texts(auditor),
            silence_is_no_groups: false,
        }
    }

    #[test]
    fn silence_means_no_groups_only_where_it_is_configured_to() {
        let said = |silence_is_no_groups, groups: Option<Vec<String>>| {
            let identity = Identity {
                provider: "corp".into(),
                subject: "u-1".into(),
                email: String::new(),
                display_name: String::new(),
                groups,
            };
            let policy = Policy {
                silence_is_no_groups,
                ..policy(&[], &[])
            };
            policy.vouched(identity).groups
        };
        assert_eq!(said(false, None), None);
        assert_eq!(said(true, None), Some(vec![]));
        for configured in [false, true] {
            assert_eq!(said(configured, Some(vec!["dev".into()])), Some(vec!["dev".into()]));
        }
    }

    #[test]
    fn groups_say_the_role_only_where_they_are_configured_to_and_known() {
        let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mapped = policy(&["ops"], &["audit"]);
        for (of, role) in [
            (groups(&["ops", "audit"]), Role::Admin),
            (groups(&["audit", "dev"]), Role::Auditor),
            (groups(&["Ops"]), Role::Member),
            (groups(&[]), Role::Member),
        ] {
            let terms = mapped.terms(Some(&of));
            assert_eq!((terms.role, terms.first_role), (Some(role), role), "{of:?}");
        }
        let silent = mapped.terms(None);
        assert_eq!((silent.role, silent.first_role), (None, Role::Member));
        let unmapped = policy(&[], &[]).terms(Some(&groups(&["ops"])));
        assert_eq!((unmapped.role, unmapped.first_role), (None, Role::Member));
    }
}
