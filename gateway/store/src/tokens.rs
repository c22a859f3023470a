//! Bearer tokens of the API: 32 random bytes, shown once, kept as SHA-256, always expiring.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use crate::change::get;
use crate::random;
use crate::users::{USER_COLUMNS, User};
use crate::{Store, StoreError};

/// What a token begins with, so that scanners of source code find a leaked one.
pub const PREFIX: &str = "hoop_";
/// How long a login lasts, in seconds.
pub const LOGIN_TTL_S: u64 = 12 * 3600;
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Prefix and 32 bytes in base64url.
const TOKEN_CHARS: usize = PREFIX.len() + 43;

/// A token and when it stops working. The token is not kept: this is the only time it can be read.
pub struct IssuedToken {
    pub token: Zeroizing<String>,
    pub expires_at: DateTime<Utc>,
}

/// What is kept of a token.
pub(crate) fn kept(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

impl Store {
    /// A token for this user, valid for `ttl` by the store's clock. `None` where the user was changed, deactivated or
    /// deleted since `user` was read. Clears away expired ones.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn issue_token(&self, user: &User, ttl: Duration) -> Result<Option<IssuedToken>, StoreError> {
        let mut random = Zeroizing::new(random::bytes::<TOKEN_BYTES>()?);
        let token = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random.as_ref())));
        random.fill(0);
        let sha256 = digest(&SHA256, token.as_bytes());
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let row = self
            .read_opt(
                "issuing a token",
                // the lock on the user makes a change of the password, which ends all tokens, come before or after this
                "with owner as (select u.id from users u where u.id = $2 and u.version = $4 and u.active \
                                and u.deleted_at is null for share), \
                 expired as (delete from api_tokens where expires_at < now()) \
                 insert into api_tokens (sha256, user_id, expires_at) \
                 select $1, owner.id, now() + $3 * interval '1 second' from owner returning expires_at",
                &[
                    (&sha256.as_ref(), Type::BYTEA),
                    (&user.id, Type::UUID),
                    (&seconds, Type::INT8),
                    (&user.version, Type::INT8),
                ],
            )
            .await?;
        row.map(|row| {
            let expires_at = get(&row, "expires_at")?;
            Ok(IssuedToken { token, expires_at })
        })
        .transpose()
    }

    /// The active user whose valid token this is. The look-up is by the token's hash, so its time tells nothing.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn token_user(&self, token: &str) -> Result<Option<User>, StoreError> {
        if token.len() != TOKEN_CHARS || !token.starts_with(PREFIX) {
            return Ok(None);
        }
        let sha256 = digest(&SHA256, token.as_bytes());
        let sql = format!(
            "select {USER_COLUMNS} from api_tokens t join users u on u.id = t.user_id \
             where t.sha256 = $1 and t.expires_at > now() and u.active and u.deleted_at is null"
        );
        let row = self
            .read_opt("checking a token", &sql, &[(&sha256.as_ref(), Type::BYTEA)])
            .await?;
        row.as_ref().map(User::from_row).transpose()
    }

    /// Ends a token at once; one that does not exist is no error.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn revoke_token(&self, token: &str) -> Result<(), StoreError> {
        let sha256 = digest(&SHA256, token.as_bytes());
        let sql = "delete from api_tokens where sha256 = $1";
        self.read("revoking a token", sql, &[(&sha256.as_ref(), Type::BYTEA)])
            .await?;
        Ok(())
    }
}
