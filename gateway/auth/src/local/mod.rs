//! Local accounts: which passwords are taken, one-time codes (RFC 6238) with recovery codes, and how attempts to guess
//! are slowed. Hashing of passwords is the store's.

mod password;
mod recovery;
mod slowdown;
mod totp;

pub use password::{PASSWORD_MAX_CHARS, PASSWORD_MIN_CHARS, PasswordFault, PasswordRules, normalise};
pub use recovery::{RECOVERY_CODES, RecoveryCodes, RecoveryHash};
pub use slowdown::{Attempt, Slowdown, TooMany};
pub use totp::{TOTP_SECRET_BYTES, TotpFault, TotpSecret};

/// The system's source of randomness failed; nothing secret can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

fn random<const N: usize>() -> Result<zeroize::Zeroizing<[u8; N]>, NoRandomness> {
    let mut bytes = zeroize::Zeroizing::new([0; N]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
    Ok(bytes)
}
