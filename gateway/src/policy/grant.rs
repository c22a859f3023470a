//! `Grant`: proof that a person may open a session on a connection. Only `authorise` can make one, and nothing reaches
//! a target without it.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use hoop_access::{Circumstances, Decision, Mode, RuleSet};
use hoop_proto::end::{End, Refusal};
use hoop_store::connections::Connection;
use hoop_store::credentials::{CredentialRecord, CredentialState};
use hoop_store::users::User;

/// What a native client asks for, after it has proved a credential.
pub struct Request<'a> {
    pub credential: &'a str,
    pub database: Option<&'a str>,
    pub replication: bool,
    /// Where the client is, and when it asks.
    pub address: IpAddr,
    pub now: DateTime<Utc>,
}

/// The right to open one session. Its fields are private so that nothing else can make one.
#[derive(Debug)]
pub struct Grant {
    user: User,
    connection: Connection,
    database: String,
    credential: String,
}

impl Grant {
    #[must_use]
    pub const fn user(&self) -> &User {
        &self.user
    }

    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The database at the target.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The id of the credential that was proved: no secret.
    #[must_use]
    pub fn credential(&self) -> &str {
        &self.credential
    }
}

/// Decides by the rules. `credentials_url` is where a person makes a new credential.
///
/// # Errors
/// The `Refusal` to tell the person.
pub fn authorise(
    record: CredentialRecord,
    request: &Request<'_>,
    rules: &RuleSet,
    credentials_url: &str,
) -> Result<Grant, Refusal> {
    let remedy = || format!("Make a new credential at {credentials_url} and connect with its user and password.");
    match record.state {
        CredentialState::Active => {}
        CredentialState::Expired => {
            return Err(Refusal::new(
                End::CredentialExpired,
                format!("the credential \"{}\" has expired", request.credential),
                remedy(),
            ));
        }
        CredentialState::Revoked => {
            return Err(Refusal::new(
                End::CredentialRevoked,
                format!("the credential \"{}\" was revoked", request.credential),
                remedy(),
            ));
        }
    }
    let connection = record.connection;
    if !connection.modes.contains(&Mode::Native) {
        return Err(Refusal::new(
            End::AccessDenied,
            format!(
                "the connection \"{}\" does not serve clients of its own protocol",
                connection.name
            ),
            "Use it in the way that it offers, or ask an administrator of Hoop to add native to its modes.",
        ));
    }
    let circumstances = Circumstances {
        mode: Mode::Native,
        using: Some((request.now, request.address)),
    };
    let decision = rules.decide(&record.user.subject(), &connection.object(), &circumstances);
    if !decision.is_allowed() {
        let ever = Circumstances {
            using: None,
            ..circumstances
        };
        return Err(no_access(
            &connection.name,
            rules.decide(&record.user.subject(), &connection.object(), &ever),
        ));
    }
    if connection.protocol != "postgres" {
        return Err(Refusal::new(
            End::AccessDenied,
            format!("the connection \"{}\" is not a PostgreSQL connection", connection.name),
            "Use the client of its protocol.",
        ));
    }
    if request.replication {
        return Err(Refusal::new(
            End::ReplicationRefused,
            "replication connections are not served by Hoop",
            "Use pg_dump or COPY to move data; a replica must connect to the database itself.",
        ));
    }
    let database = match request.database {
        None => connection.default_database.clone(),
        Some(name) if name == request.credential || name == connection.default_database => {
            connection.default_database.clone()
        }
        Some(name)
            if connection
                .databases
                .iter()
                .any(|allowed| allowed == "*" || allowed == name) =>
        {
            name.to_owned()
        }
        Some(name) => {
            let mut allowed = vec![connection.default_database.as_str()];
            let others = connection.databases.iter().map(String::as_str);
            allowed.extend(others.filter(|other| *other != connection.default_database));
            return Err(Refusal::new(
                End::DatabaseNotAllowed,
                format!(
                    "the connection \"{}\" does not allow the database \"{name}\"",
                    connection.name
                ),
                format!(
                    "It allows: {}. Leave the database out to get the first.",
                    allowed.join(", ")
                ),
            ));
        }
    };
    Ok(Grant {
        user: record.user,
        connection,
        database,
        credential: request.credential.to_owned(),
    })
}

/// `ever`: what the rules say without regard to time and place. A person who may use a connection at other times or from
/// other networks is told so; nobody learns more of a rule.
fn no_access(connection: &str, ever: Decision) -> Refusal {
    if ever.is_allowed() {
        return Refusal::new(
            End::AccessDenied,
            format!("your account may not use the connection \"{connection}\" now, or not from your network"),
            "Its access rules allow it at other hours or from other networks only. Ask an administrator of Hoop.",
        );
    }
    Refusal::new(
        End::AccessDenied,
        format!("your account may not use the connection \"{connection}\""),
        "Ask an administrator of Hoop for access to it.",
    )
}
