//! Looking at what somebody proves themselves with, so that guessing is slowed and each guess is in the record:
//! passwords, at sign-in and before a change of what one signs in with, and second factors.

use std::net::IpAddr;
use std::time::Instant;

use hoop_auth::local::{Attempt, RecoveryHash, TOTP_SECRET_BYTES, TotpFault, TotpSecret};
use hoop_store::StoreError;
use hoop_store::second_factors::CodeCheck;
use hoop_store::users::{PasswordCheck, User};
use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::AppState;
use crate::caller::Caller;
use crate::passwords::forms;
use crate::problem::Problem;
use crate::refusals::{self, Guess, Whose};
use crate::sign_in::{self, Method};

/// Counts an attempt, and waits where the account is slowed.
///
/// # Errors
/// 429 where there were too many; the record has that.
pub async fn begin_attempt(state: &AppState, guess: &Guess<'_>) -> Result<Attempt, Problem> {
    let begun = state.slowdown.begin(guess.account, guess.address, Instant::now());
    let attempt = match begun {
        Ok(attempt) => attempt,
        Err(many) => {
            refusals::refused(state, guess).await;
            return Err(Problem::too_many(many.retry_after_s()));
        }
    };
    if !attempt.slow.is_zero() {
        tokio::time::sleep(attempt.slow).await;
    }
    Ok(attempt)
}

/// Looks at the password of whoever has this name.
///
/// # Errors
/// 429, or the store's.
pub async fn password(
    state: &AppState,
    username: &str,
    password: &Zeroizing<String>,
    address: Option<IpAddr>,
    method: &Method,
) -> Result<Option<User>, Problem> {
    let guess = Guess {
        account: username,
        whose: Whose::Typed(username),
        address,
        method,
    };
    let attempt = begin_attempt(state, &guess).await?;
    let checked = state.store.check_password(username, forms(password)).await;
    match checked {
        Ok(PasswordCheck::Right(user)) => {
            state.slowdown.succeeded(attempt);
            Ok(Some(user))
        }
        Ok(PasswordCheck::Wrong(known)) => {
            state.slowdown.failed(attempt);
            let why = match &known {
                None => "nobody has this name",
                Some(user) if !user.active => "the account is not active",
                Some(_) => "wrong password",
            };
            sign_in::failed(state, address, known.as_ref(), method, why).await;
            Ok(None)
        }
        Err(error) => {
            state.slowdown.withdrawn(attempt);
            Err(error.into())
        }
    }
}

/// The caller's own password, before a change of what the caller signs in with.
///
/// # Errors
/// 422 naming `field` where it is wrong, 429.
pub async fn own_password(caller: &Caller, field: &'static str, given: &Zeroizing<String>) -> Result<(), Problem> {
    let (state, username) = (caller.state(), caller.user.username.as_str());
    match password(state, username, given, caller.address, &Method::Again).await? {
        Some(_) => Ok(()),
        None => Err(Problem::field(field, "This is not your password.")),
    }
}

/// A second factor, as somebody gives it: one of the two.
#[derive(Deserialize, ToSchema)]
pub struct Factor {
    /// Six digits, from the authenticator.
    #[serde(default)]
    #[schema(max_length = 64)]
    code: Option<String>,
    /// One of the codes that were shown when the second factor was set up.
    #[serde(default)]
    #[schema(max_length = 64)]
    recovery_code: Option<String>,
}

impl Factor {
    /// How somebody signs in with it.
    pub const fn method(&self) -> Method {
        match self.recovery_code {
            None => Method::PasswordAndCode,
            Some(_) => Method::PasswordAndRecoveryCode,
        }
    }

    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// # Errors
    /// 422 where it is not one of the two.
    pub fn check(&self) -> Result<(), Problem> {
        if self.code.is_some() == self.recovery_code.is_some() {
            return Err(Problem::field("code", "Send either code or recovery_code."));
        }
        Ok(())
    }
}

/// Longest code that is looked at, in bytes.
const CODE_MAX_BYTES: usize = 64;

/// Uses a second factor up.
///
/// # Errors
/// What is wrong with it, for the person: who is asked for it has proved the password. 429, or the store's.
pub async fn second_factor(
    state: &AppState,
    user: &User,
    factor: &Factor,
    address: Option<IpAddr>,
    wrong: impl Fn(String) -> Problem,
) -> Result<(), Problem> {
    factor.check()?;
    // another count than the password's, which each right password begins anew
    let account = format!("second factor of {}", user.username);
    let guess = Guess {
        account: &account,
        whose: Whose::Of(user),
        address,
        method: &factor.method(),
    };
    let attempt = begin_attempt(state, &guess).await?;
    let checked = match (&factor.code, &factor.recovery_code) {
        (Some(code), _) => state.store.take_code(user.id, judge(code)).await,
        (None, recovery) => recovery_code(state, user, recovery.as_deref().unwrap_or_default()).await,
    };
    let why = match checked {
        Ok(CodeCheck::Right) => {
            state.slowdown.succeeded(attempt);
            return Ok(());
        }
        Ok(CodeCheck::Wait(seconds)) => {
            state.slowdown.withdrawn(attempt);
            refusals::refused(state, &guess).await;
            return Err(Problem::too_many(seconds));
        }
        Ok(CodeCheck::Wrong(why)) => why,
        Ok(CodeCheck::NotEnrolled) => "there is no second factor".to_owned(),
        Err(error) => {
            state.slowdown.withdrawn(attempt);
            return Err(error.into());
        }
    };
    state.slowdown.failed(attempt);
    sign_in::failed(state, address, Some(user), &factor.method(), &why).await;
    Err(wrong(format!("It is not taken: {why}.")))
}

/// What makes a code right, and which step it is of.
pub fn judge(code: &str) -> impl FnOnce(&[u8], u64, Option<u64>) -> Result<u64, String> + Send {
    let code = Zeroizing::new(code.to_owned());
    move |secret: &[u8], now_s: u64, last_step: Option<u64>| {
        if code.len() > CODE_MAX_BYTES {
            return Err(TotpFault::Malformed.to_string());
        }
        let secret: [u8; TOTP_SECRET_BYTES] = secret.try_into().map_err(|_| "the secret is damaged".to_owned())?;
        let secret = TotpSecret::from_bytes(secret);
        secret.check(&code, now_s, last_step).map_err(|fault| fault.to_string())
    }
}

async fn recovery_code(state: &AppState, user: &User, code: &str) -> Result<CodeCheck<String>, StoreError> {
    let hash = RecoveryHash::of(code.get(..code.len().min(CODE_MAX_BYTES)).unwrap_or_default());
    Ok(if state.store.take_recovery_code(user.id, &hash.0).await? {
        CodeCheck::Right
    } else {
        CodeCheck::Wrong("the recovery code is wrong or was used already".to_owned())
    })
}
