//! Why and on whose side a session ended. Audit, UI and the client's error all derive from it.

use std::fmt;

/// Why the session (or the attempt to start one) is over. Closed: a new reason is added here and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    // orderly
    ClientClosed,
    TargetClosed,
    Shutdown,
    // refused at the door
    WrongCredential,
    CredentialExpired,
    CredentialRevoked,
    AccessDenied,
    DatabaseNotAllowed,
    ReplicationRefused,
    ParameterRefused,
    TooManySessions,
    PolicyStale,
    // the agent's side
    AgentOffline,
    AgentTooOld,
    AgentRefused,
    DispatchTimeout,
    LinkLost,
    // the target's side
    TargetUnreachable,
    TargetTls,
    TargetRefusedLogin,
    TargetSecretMissing,
    // while it ran
    Killed,
    IdleTimeout,
    SessionTooLong,
    ResultLimit,
    HoldExpired,
    Refused,
    ClientViolation,
    TargetViolation,
    CreditViolation,
    StageFailed,
    RecordFailed,
    ReplicaLost,
    Internal,
}

/// On whose side the reason lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Gateway,
    Agent,
    Target,
}

impl End {
    /// Every reason, for tests, documentation and decoding.
    pub const ALL: [Self; 34] = [
        Self::ClientClosed,
        Self::TargetClosed,
        Self::Shutdown,
        Self::WrongCredential,
        Self::CredentialExpired,
        Self::CredentialRevoked,
        Self::AccessDenied,
        Self::DatabaseNotAllowed,
        Self::ReplicationRefused,
        Self::ParameterRefused,
        Self::TooManySessions,
        Self::PolicyStale,
        Self::AgentOffline,
        Self::AgentTooOld,
        Self::AgentRefused,
        Self::DispatchTimeout,
        Self::LinkLost,
        Self::TargetUnreachable,
        Self::TargetTls,
        Self::TargetRefusedLogin,
        Self::TargetSecretMissing,
        Self::Killed,
        Self::IdleTimeout,
        Self::SessionTooLong,
        Self::ResultLimit,
        Self::HoldExpired,
        Self::Refused,
        Self::ClientViolation,
        Self::TargetViolation,
        Self::CreditViolation,
        Self::StageFailed,
        Self::RecordFailed,
        Self::ReplicaLost,
        Self::Internal,
    ];

    /// The stable name: in records, on the link and in the API.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::TargetClosed => "target_closed",
            Self::Shutdown => "shutdown",
            Self::WrongCredential => "wrong_credential",
            Self::CredentialExpired => "credential_expired",
            Self::CredentialRevoked => "credential_revoked",
            Self::AccessDenied => "access_denied",
            Self::DatabaseNotAllowed => "database_not_allowed",
            Self::ReplicationRefused => "replication_refused",
            Self::ParameterRefused => "parameter_refused",
            Self::TooManySessions => "too_many_sessions",
            Self::PolicyStale => "policy_stale",
            Self::AgentOffline => "agent_offline",
            Self::AgentTooOld => "agent_too_old",
            Self::AgentRefused => "agent_refused",
            Self::DispatchTimeout => "dispatch_timeout",
            Self::LinkLost => "link_lost",
            Self::TargetUnreachable => "target_unreachable",
            Self::TargetTls => "target_tls",
            Self::TargetRefusedLogin => "target_refused_login",
            Self::TargetSecretMissing => "target_secret_missing",
            Self::Killed => "killed",
            Self::IdleTimeout => "idle_timeout",
            Self::SessionTooLong => "session_too_long",
            Self::ResultLimit => "result_limit",
            Self::HoldExpired => "hold_expired",
            Self::Refused => "refused",
            Self::ClientViolation => "client_violation",
            Self::TargetViolation => "target_violation",
            Self::CreditViolation => "credit_violation",
            Self::StageFailed => "stage_failed",
            Self::RecordFailed => "record_failed",
            Self::ReplicaLost => "replica_lost",
            Self::Internal => "internal",
        }
    }

    /// The reason with this code; `Internal` for one that this release does not know.
    #[must_use]
    pub fn from_code(code: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|end| end.code() == code)
            .unwrap_or(Self::Internal)
    }

    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::ClientClosed
            | Self::WrongCredential
            | Self::CredentialExpired
            | Self::CredentialRevoked
            | Self::AccessDenied
            | Self::DatabaseNotAllowed
            | Self::ReplicationRefused
            | Self::ParameterRefused
            | Self::ClientViolation => Side::Client,
            Self::AgentOffline | Self::AgentTooOld | Self::AgentRefused | Self::LinkLost | Self::DispatchTimeout => {
                Side::Agent
            }
            Self::TargetClosed
            | Self::TargetUnreachable
            | Self::TargetTls
            | Self::TargetRefusedLogin
            | Self::TargetSecretMissing
            | Self::TargetViolation => Side::Target,
            Self::Shutdown
            | Self::TooManySessions
            | Self::PolicyStale
            | Self::Killed
            | Self::IdleTimeout
            | Self::SessionTooLong
            | Self::ResultLimit
            | Self::HoldExpired
            | Self::Refused
            | Self::CreditViolation
            | Self::StageFailed
            | Self::RecordFailed
            | Self::ReplicaLost
            | Self::Internal => Side::Gateway,
        }
    }

    /// The SQLSTATE told to a PostgreSQL client (PostgreSQL manual, appendix A).
    #[must_use]
    pub const fn sqlstate(self) -> &'static str {
        match self {
            Self::WrongCredential => "28P01",
            Self::CredentialExpired | Self::CredentialRevoked | Self::AccessDenied | Self::TargetRefusedLogin => {
                "28000"
            }
            Self::DatabaseNotAllowed => "3D000",
            Self::ReplicationRefused => "0A000",
            Self::ParameterRefused | Self::Refused => "42501",
            Self::TooManySessions => "53300",
            Self::Killed | Self::Shutdown | Self::SessionTooLong => "57P01",
            Self::IdleTimeout => "57P05",
            Self::ResultLimit => "53400",
            Self::HoldExpired => "57014",
            Self::ClientViolation => "08P01",
            Self::AgentOffline
            | Self::AgentTooOld
            | Self::AgentRefused
            | Self::DispatchTimeout
            | Self::TargetUnreachable
            | Self::TargetTls
            | Self::TargetSecretMissing => "08001",
            Self::ClientClosed
            | Self::TargetClosed
            | Self::LinkLost
            | Self::ReplicaLost
            | Self::TargetViolation
            | Self::CreditViolation => "08006",
            Self::PolicyStale | Self::StageFailed | Self::RecordFailed | Self::Internal => "58000",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A refusal as a person reads it: what happened, to what, and what to do now. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub end: End,
    /// One sentence without a full stop, as PostgreSQL words its messages.
    pub message: String,
    /// What to do now; empty where nothing can be done.
    pub hint: String,
    /// A protocol's own code that replaces `end`'s (the target's SQLSTATE); empty for none.
    pub code: String,
}

impl Refusal {
    #[must_use]
    pub fn new(end: End, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            end,
            message: message.into(),
            hint: hint.into(),
            code: String::new(),
        }
    }

    /// The SQLSTATE to tell: the target's own where it gave one.
    #[must_use]
    pub fn sqlstate(&self) -> &str {
        if self.code.len() == 5 {
            &self.code
        } else {
            self.end.sqlstate()
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.end, self.message)
    }
}
