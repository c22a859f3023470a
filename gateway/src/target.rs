//! What an agent is told of a connection's target.

use bytes::Bytes;
use hoop_proto::link::{Target, target};
use hoop_store::connections::Secret;
use hoop_store::settings::Settings;

/// For a login to `database`. What a client asked for is added by whoever opens its session.
#[must_use]
pub fn target(settings: &Settings, secret: Option<Secret>, database: &str) -> Target {
    Target {
        protocol: settings.protocol.clone(),
        host: settings.host.clone(),
        port: u32::from(settings.port),
        user: settings.user.clone(),
        secret: secret.map(|secret| match secret {
            Secret::Value(value) => target::Secret::Value(Bytes::copy_from_slice(value.as_bytes())),
            Secret::Reference(reference) => target::Secret::Reference(reference),
        }),
        tls: settings.tls.as_str().into(),
        tls_ca_pem: Bytes::copy_from_slice(settings.tls_ca_pem.as_bytes()),
        tls_server_name: settings.tls_server_name.clone(),
        allow_cleartext_login: settings.allow_cleartext_login,
        options: [("database".to_owned(), database.to_owned())].into(),
        ..Target::default()
    }
}
