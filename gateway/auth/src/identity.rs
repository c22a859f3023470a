//! What a provider vouches for.

/// A person as an outside provider knows them. Provider and subject together are the key: never the e-mail address,
/// which can be given to somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The provider's name in our configuration.
    pub provider: String,
    /// The provider's own, lasting name of the person (OIDC `sub`, SAML NameID).
    pub subject: String,
    /// Empty where the provider gave none.
    pub email: String,
    /// For people to read; empty where the provider gave none.
    pub display_name: String,
    /// `None` where the provider said nothing of groups, which is not the same as none.
    pub groups: Option<Vec<String>>,
}
