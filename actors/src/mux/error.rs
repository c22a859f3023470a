//! How a link fails, and how a session's end is written on the wire.

use hoop_proto::end::{End, Refusal};
use hoop_proto::link::Close;
use thiserror::Error;

/// Why nothing more can be sent or received on a stream.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LinkError {
    /// The transport failed or ended without a `Close`.
    #[error("the link was lost: {0}")]
    Lost(String),
    /// The peer closed the session and said why.
    #[error("the peer closed the session: {0}")]
    Closed(Refusal),
    /// The session was closed in order, by the peer or by this side.
    #[error("the session is closed")]
    Finished,
    /// The peer sent what it had no credit for.
    #[error("the peer overstepped its credit on channel {channel}: {what}")]
    Overstepped { channel: u32, what: &'static str },
    /// The peer sent a frame that makes no sense.
    #[error("the peer broke the link's rules: {0}")]
    Malformed(String),
}

impl LinkError {
    /// The session's end that this failure means, for record and client.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Closed(refusal) => refusal.clone(),
            Self::Finished => Refusal::new(
                End::TargetClosed,
                "the target closed the connection",
                "Connect again; if it goes on, ask an administrator to look at the target's log.",
            ),
            Self::Lost(_) => Refusal::new(
                End::LinkLost,
                "the link to the agent was lost",
                "Connect again; if it goes on, ask an administrator about the agent.",
            ),
            Self::Overstepped { .. } | Self::Malformed(_) => Refusal::new(
                End::CreditViolation,
                "the link to the agent broke its flow-control rules",
                "Connect again; if it goes on, ask an administrator to compare the agent's version with the gateway's.",
            ),
        }
    }
}

/// Why a control frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ControlError {
    /// So many wait for the transport that it must be stuck.
    #[error("too many control frames wait for the link")]
    Full,
    #[error("the link is closed")]
    Closed,
}

/// A `Close` frame's body for a reason. Its code is the end's name, followed by `/` and the protocol's own code where
/// there is one (a target's SQLSTATE).
#[must_use]
pub fn close_of(refusal: Option<&Refusal>) -> Close {
    let Some(refusal) = refusal else {
        return Close::default();
    };
    let code = if refusal.code.is_empty() {
        refusal.end.code().to_owned()
    } else {
        format!("{}/{}", refusal.end.code(), refusal.code)
    };
    Close {
        code,
        message: refusal.message.clone(),
        hint: refusal.hint.clone(),
    }
}

/// The reason that a `Close` frame gives; `None` for an orderly end.
#[must_use]
pub fn refusal_of(close: &Close) -> Option<Refusal> {
    if close.code.is_empty() {
        return None;
    }
    let (end, code) = close.code.split_once('/').unwrap_or((&close.code, ""));
    Some(Refusal {
        end: End::from_code(end),
        message: close.message.clone(),
        hint: close.hint.clone(),
        code: code.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire_with_the_targets_own_code() {
        assert_eq!(refusal_of(&close_of(None)), None);
        let mut refusal = Refusal::new(End::TargetRefusedLogin, "no such role", "Ask.");
        assert_eq!(refusal_of(&close_of(Some(&refusal))), Some(refusal.clone()));
        refusal.code = "28P01".to_owned();
        assert_eq!(refusal_of(&close_of(Some(&refusal))), Some(refusal));
    }
}
