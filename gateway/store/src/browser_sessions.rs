//! Who is signed in from a browser: an opaque cookie, with an idle and an absolute life, and the token against forged
//! requests that belongs to it.
//!
//! The latter is an HMAC under the cookie's value, so that it need not be kept, and neither can be had from the other
//! or from the database.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::change::{Change, Witness, get};
use crate::users::{USER_COLUMNS, User};
use crate::{Store, StoreError, opaque};

/// What a cookie's value begins with.
pub const PREFIX: &str = "hoop_s_";
/// Sessions of one person; one more ends the one that was not used for longest.
pub const BROWSER_SESSIONS_MAX: i64 = 50;
/// Longest `User-Agent` that is kept, in characters.
const USER_AGENT_MAX_CHARS: usize = 256;
/// Uses are noted this much after the last noted one, in seconds, or a quarter of the idle time if that is less: so that
/// reading does not write each time.
const NOTED_EVERY_S: i64 = 60;

/// How long a browser stays signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Without a request.
    pub idle: Duration,
    /// With requests.
    pub absolute: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(3_600),
            absolute: Duration::from_secs(12 * 3_600),
        }
    }
}

impl Lifetimes {
    fn idle_s(&self) -> i64 {
        i64::try_from(self.idle.as_secs()).unwrap_or(i64::MAX)
    }
}

/// A sign-in that lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrowserSession {
    pub id: Uuid,
    /// How the person signed in, for example `password` or `oidc:NAME`.
    pub method: String,
    /// Where the sign-in came from; empty where that is not known.
    pub address: String,
    pub user_agent: String,
    pub created_at: DateTime<Utc>,
    pub last_used_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// What a session is begun with.
#[derive(Debug, Clone, Copy)]
pub struct NewBrowserSession<'a> {
    pub id: Uuid,
    /// As it was when the person proved who they are: if it was changed since, nothing is begun.
    pub user: &'a User,
    pub method: &'a str,
    pub address: Option<IpAddr>,
    pub user_agent: &'a str,
    pub lifetimes: Lifetimes,
    /// The cookie that came with the sign-in: what it stands for ends.
    pub replaces: Option<&'a str>,
}

/// A session and its cookie's value, which is not kept.
pub struct BegunBrowserSession {
    pub session: BrowserSession,
    pub cookie: Zeroizing<String>,
}

const COLUMNS: &str = "s.id as s_id, s.method as s_method, s.address as s_address, s.user_agent as s_user_agent, \
     s.created_at as s_created_at, s.last_used_at as s_last_used_at, s.expires_at as s_expires_at";

impl BrowserSession {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "s_id")?,
            method: get(row, "s_method")?,
            address: get(row, "s_address")?,
            user_agent: get(row, "s_user_agent")?,
            created_at: get(row, "s_created_at")?,
            last_used_at: get(row, "s_last_used_at")?,
            expires_at: get(row, "s_expires_at")?,
        })
    }
}

/// What must come in a header with every request that changes something, when this cookie says who asks.
#[must_use]
pub fn csrf_token(cookie: &str) -> Zeroizing<String> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, cookie.as_bytes());
    let tag = hmac::sign(&key, b"hoop csrf token");
    Zeroizing::new(URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

/// In constant time.
#[must_use]
pub fn is_csrf_token(cookie: &str, given: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(csrf_token(cookie).as_bytes(), given).is_ok()
}

impl Store {
    /// Begins a session. `None` where the user was changed, deactivated or deleted since `new.user` was read.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn begin_browser_session(
        &self,
        new: NewBrowserSession<'_>,
    ) -> Result<Option<BegunBrowserSession>, StoreError> {
        let cookie = opaque::make(PREFIX)?;
        let sha256 = opaque::kept(PREFIX, &cookie);
        let replaced = new.replaces.and_then(|cookie| opaque::kept(PREFIX, cookie));
        let user_agent: String = new.user_agent.chars().take(USER_AGENT_MAX_CHARS).collect();
        let address = new.address.map(|address| address.to_string()).unwrap_or_default();
        let absolute_s = i64::try_from(new.lifetimes.absolute.as_secs()).unwrap_or(i64::MAX);
        // the lock on the user makes a change of the password, which ends all sessions, come before or after this
        let sql = format!(
            "with owner as (select u.id from users u where u.id = $1 and u.version = $2 and u.active \
                            and u.deleted_at is null for share), \
             expired as (delete from browser_sessions where expires_at < now()), \
             ended as (delete from browser_sessions where sha256 = $3 or id in \
                       (select id from browser_sessions where user_id = $1 \
                        order by last_used_at desc offset {BROWSER_SESSIONS_MAX} - 1)) \
             insert into browser_sessions as s (id, sha256, user_id, method, address, user_agent, expires_at) \
             select $4, $5, owner.id, $6, $7, $8, now() + $9 * interval '1 second' from owner returning {COLUMNS}"
        );
        let row = self
            .read_opt(
                "beginning a browser session",
                &sql,
                &[
                    (&new.user.id, Type::UUID),
                    (&new.user.version, Type::INT8),
                    (&replaced, Type::BYTEA),
                    (&new.id, Type::UUID),
                    (&sha256, Type::BYTEA),
                    (&new.method, Type::TEXT),
                    (&address, Type::TEXT),
                    (&user_agent, Type::TEXT),
                    (&absolute_s, Type::INT8),
                ],
            )
            .await?;
        let session = row.as_ref().map(BrowserSession::from_row).transpose()?;
        Ok(session.map(|session| BegunBrowserSession { session, cookie }))
    }

    /// The active user whose session has this cookie, neither idle for too long nor over, and notes that it was used.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn use_browser_session(
        &self,
        cookie: &str,
        lifetimes: Lifetimes,
    ) -> Result<Option<(User, BrowserSession)>, StoreError> {
        self.browser_session(cookie, lifetimes, true).await
    }

    /// As `use_browser_session`, for what goes on without the person: it does not keep the session from being idle.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn look_at_browser_session(
        &self,
        cookie: &str,
        lifetimes: Lifetimes,
    ) -> Result<Option<(User, BrowserSession)>, StoreError> {
        self.browser_session(cookie, lifetimes, false).await
    }

    async fn browser_session(
        &self,
        cookie: &str,
        lifetimes: Lifetimes,
        is_use: bool,
    ) -> Result<Option<(User, BrowserSession)>, StoreError> {
        let Some(sha256) = opaque::kept(PREFIX, cookie) else {
            return Ok(None);
        };
        let idle_s = lifetimes.idle_s();
        let noted_s = NOTED_EVERY_S.min(idle_s / 4);
        let sql = format!(
            "with found as (select {COLUMNS}, {USER_COLUMNS} from browser_sessions s join users u on u.id = s.user_id \
                            where s.sha256 = $1 and s.expires_at > now() \
                            and s.last_used_at > now() - $2 * interval '1 second' \
                            and u.active and u.deleted_at is null), \
             noted as (update browser_sessions set last_used_at = now() from found \
                       where $4 and id = s_id and s_last_used_at <= now() - $3 * interval '1 second') \
             select * from found"
        );
        let params = &[
            (&sha256 as _, Type::BYTEA),
            (&idle_s as _, Type::INT8),
            (&noted_s as _, Type::INT8),
            (&is_use as _, Type::BOOL),
        ];
        let row = self.read_opt("checking a browser session", &sql, params).await?;
        let both = |row: &Row| Ok((User::from_row(row)?, BrowserSession::from_row(row)?));
        row.as_ref().map(both).transpose()
    }

    /// Sessions of a user that have not ended, those used last first.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn browser_sessions(&self, user: Uuid, lifetimes: Lifetimes) -> Result<Vec<BrowserSession>, StoreError> {
        let sql = format!(
            "select {COLUMNS} from browser_sessions s where s.user_id = $1 and s.expires_at > now() \
             and s.last_used_at > now() - $2 * interval '1 second' order by s.last_used_at desc, s.id \
             limit {BROWSER_SESSIONS_MAX}"
        );
        let params = &[(&user as _, Type::UUID), (&lifetimes.idle_s() as _, Type::INT8)];
        let rows = self.read("listing browser sessions", &sql, params).await?;
        rows.iter().map(BrowserSession::from_row).collect()
    }

    /// The person signs out: never kept from it by what cannot be recorded.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn sign_out(&self, session: Uuid) -> Result<(), StoreError> {
        let sql = "delete from browser_sessions where id = $1";
        self.read("ending a browser session", sql, &[(&session, Type::UUID)])
            .await?;
        Ok(())
    }

    /// Ends one session of a user, or all.
    ///
    /// # Errors
    /// `NotFound` where the user has no such session, `Unrecorded`, or the store is away.
    pub async fn end_browser_sessions(
        &self,
        user: &User,
        which: Option<Uuid>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "ending browser sessions").await?;
        let sql = "delete from browser_sessions where user_id = $1 and ($2::uuid is null or id = $2) returning id";
        let ended = change
            .query(sql, &[(&user.id, Type::UUID), (&which, Type::UUID)])
            .await?;
        let ended: Vec<Uuid> = ended.iter().map(|row| get(row, "id")).collect::<Result<_, _>>()?;
        if let Some(id) = which.filter(|_| ended.is_empty()) {
            return Err(StoreError::NotFound {
                what: format!("browser session {id}"),
            });
        }
        let payload = json!({"subject": user.username, "before": {"sessions": ended}, "after": null});
        change.commit(witness, "browser_session.end", payload).await
    }
}

/// Within the change that takes from the user what the sessions stood for.
pub(crate) async fn end_all(change: &Change<'_>, user: Uuid) -> Result<(), StoreError> {
    end_all_but(change, user, None).await
}

pub(crate) async fn end_all_but(change: &Change<'_>, user: Uuid, kept: Option<Uuid>) -> Result<(), StoreError> {
    let sql = "with begun as (delete from sign_in_challenges where user_id = $1) \
               delete from browser_sessions where user_id = $1 and id is distinct from $2";
    let params = &[(&user as _, Type::UUID), (&kept as _, Type::UUID)];
    change.query(sql, params).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Unrecorded;
    use crate::testing;
    use crate::users::{Role, UserSettings};

    const PASSWORD: &str = "correct horse battery";

    fn new<'a>(user: &'a User, replaces: Option<&'a str>) -> NewBrowserSession<'a> {
        NewBrowserSession {
            id: Uuid::now_v7(),
            user,
            method: "password",
            address: Some([192, 0, 2, 7].into()),
            user_agent: "a browser",
            lifetimes: Lifetimes::default(),
            replaces,
        }
    }

    async fn ada(store: &Store) -> User {
        let made = store.create_user("ada", PASSWORD, Role::Member, "", &Unrecorded).await;
        made.unwrap()
    }

    async fn begin(store: &Store, user: &User, replaces: Option<&str>) -> BegunBrowserSession {
        store.begin_browser_session(new(user, replaces)).await.unwrap().unwrap()
    }

    async fn works(store: &Store, cookie: &str) -> bool {
        let used = store.use_browser_session(cookie, Lifetimes::default()).await;
        used.unwrap().is_some()
    }

    async fn sql(store: &Store, sql: &str) {
        store.client().await.unwrap().batch_execute(sql).await.unwrap();
    }

    #[test]
    fn the_token_against_forgery_is_of_one_cookie() {
        let token = csrf_token("one");
        assert!(is_csrf_token("one", token.as_bytes()));
        assert!(!is_csrf_token("other", token.as_bytes()));
        assert!(!is_csrf_token("one", b""));
    }

    #[tokio::test]
    async fn a_session_ends_by_idleness_by_age_and_by_the_next_sign_in_of_its_browser() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let ada = ada(&store).await;
        let first = begin(&store, &ada, None).await;
        assert!(works(&store, &first.cookie).await);
        let second = begin(&store, &ada, Some(&first.cookie)).await;
        assert!(!works(&store, &first.cookie).await);
        let (user, used) = store
            .use_browser_session(&second.cookie, Lifetimes::default())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&user, &used), (&ada, &second.session));

        sql(
            &store,
            "update browser_sessions set last_used_at = now() - interval '59 minutes'",
        )
        .await;
        let looked = store
            .look_at_browser_session(&second.cookie, Lifetimes::default())
            .await;
        assert!(looked.unwrap().is_some());
        let listed = store.browser_sessions(ada.id, Lifetimes::default()).await.unwrap();
        assert!(
            listed[0].last_used_at < second.session.last_used_at,
            "a look counted as a use"
        );
        assert!(works(&store, &second.cookie).await);
        let listed = store.browser_sessions(ada.id, Lifetimes::default()).await.unwrap();
        assert!(
            listed[0].last_used_at >= second.session.last_used_at,
            "the use was not noted"
        );
        sql(
            &store,
            "update browser_sessions set last_used_at = now() - interval '61 minutes'",
        )
        .await;
        assert!(!works(&store, &second.cookie).await);
        assert_eq!(store.browser_sessions(ada.id, Lifetimes::default()).await.unwrap(), []);

        let third = begin(&store, &ada, None).await;
        sql(
            &store,
            "update browser_sessions set expires_at = now() - interval '1 second'",
        )
        .await;
        assert!(!works(&store, &third.cookie).await);
    }

    #[tokio::test]
    async fn a_new_password_and_a_deactivation_end_all_sessions_and_the_sign_in_under_way() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let before = ada(&store).await;
        let session = begin(&store, &before, None).await;
        store
            .set_password("ada", "another good one", &Unrecorded)
            .await
            .unwrap();
        assert!(!works(&store, &session.cookie).await);
        assert!(store.begin_browser_session(new(&before, None)).await.unwrap().is_none());

        let after = store.find_user("ada").await.unwrap().unwrap();
        let session = begin(&store, &after, None).await;
        let set = async |active: bool| {
            let settings = UserSettings {
                email: String::new(),
                role: Role::Member,
                groups: Vec::new(),
                active,
            };
            store.update_user("ada", settings, None, &Unrecorded).await.unwrap()
        };
        let token = store.issue_token(&after, Duration::from_secs(60)).await;
        let token = token.unwrap().unwrap().token;
        let inactive = set(false).await;
        assert!(!works(&store, &session.cookie).await);
        assert!(
            store
                .begin_browser_session(new(&inactive, None))
                .await
                .unwrap()
                .is_none()
        );
        set(true).await;
        assert!(!works(&store, &session.cookie).await, "an ended session came back");
        assert_eq!(
            store.token_user(&token).await.unwrap(),
            None,
            "an ended token came back"
        );
    }

    #[tokio::test]
    async fn sessions_of_one_person_are_bounded_and_the_idlest_goes() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let ada = ada(&store).await;
        let first = begin(&store, &ada, None).await;
        sql(
            &store,
            "update browser_sessions set last_used_at = now() - interval '1 minute'",
        )
        .await;
        for _ in 0..BROWSER_SESSIONS_MAX {
            begin(&store, &ada, None).await;
        }
        assert!(!works(&store, &first.cookie).await);
        let left = store.browser_sessions(ada.id, Lifetimes::default()).await.unwrap();
        assert_eq!(i64::try_from(left.len()).unwrap(), BROWSER_SESSIONS_MAX);
        store
            .end_browser_sessions(&ada, Some(left[0].id), &Unrecorded)
            .await
            .unwrap();
        let again = store.end_browser_sessions(&ada, Some(left[0].id), &Unrecorded).await;
        assert!(matches!(again, Err(StoreError::NotFound { .. })), "{again:?}");
        store.end_browser_sessions(&ada, None, &Unrecorded).await.unwrap();
        assert_eq!(store.browser_sessions(ada.id, Lifetimes::default()).await.unwrap(), []);
    }
}
