//! Sign-ins that a command line waits for, while the person says yes in a browser: by device code (RFC 8628), or by a
//! one-time code that comes back to the command line's own machine (RFC 8252, RFC 7636).

use std::net::Ipv6Addr;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use subtle::ConstantTimeEq;
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use crate::change::get;
use crate::users::{USER_COLUMNS, User};
use crate::{Store, StoreError, random};

/// How long a device code is good, in seconds.
pub const DEVICE_TTL_S: i64 = 600;
/// How long a one-time code is good, in seconds: the browser brings it at once.
pub const CODE_TTL_S: i64 = 60;
/// Least time between two questions for one device code, in seconds.
pub const POLL_INTERVAL_S: i64 = 5;
/// What is let pass of that: clocks and networks are not exact.
const POLL_SLACK_S: i64 = 1;
/// Device codes that wait at once: of one network, of one IPv6 /48, within which its owner makes networks at will, and in
/// all.
pub const WAITING_OF_NETWORK_MAX: i64 = 20;
pub const WAITING_OF_SITE_MAX: i64 = 200;
pub const WAITING_MAX: i64 = 10_000;
/// Random bytes of a device code and of a one-time code.
const SECRET_BYTES: usize = 32;
/// Characters of a user code, without the hyphen: 20 to the 8th, 34 bits (RFC 8628, section 6.1).
const USER_CODE_CHARS: usize = 8;
/// Consonants: easy to tell apart, and no words come of them.
const USER_CODE_ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// A sign-in that waits for the person.
pub struct DeviceSignIn {
    /// For the command line alone.
    pub device_code: Zeroizing<String>,
    /// For the person, as `BCDF-GHJK`.
    pub user_code: String,
    pub expires_at: DateTime<Utc>,
}

/// Who asks, as the person is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub client_name: String,
    /// The address or network whence it was asked for.
    pub network: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// What a command line hears.
#[derive(Debug)]
pub enum Polled {
    Pending,
    /// Asked again too soon.
    SlowDown,
    Denied,
    /// Unknown, expired, answered already, or of a user who was changed since the yes.
    Gone,
    /// Only once.
    Approved(User),
}

impl Store {
    /// Begins a sign-in by device code; `None` where too many wait, of this network or in all. `network` is an IPv4 address,
    /// an IPv6 /64, or any text where neither is known.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn begin_device_sign_in(
        &self,
        client_name: &str,
        network: &str,
    ) -> Result<Option<DeviceSignIn>, StoreError> {
        let device_code = secret()?;
        let user_code = new_user_code()?;
        let sql = "with past as (delete from cli_sign_ins where expires_at < now()), \
                   waiting as (select count(*) as all, count(*) filter (where network = $4) as own, \
                   count(*) filter (where case when network like '%/64' then network::cidr <<= $8::text::cidr end) as near \
                   from cli_sign_ins where expires_at >= now()) \
                   insert into cli_sign_ins (secret_sha256, user_code_sha256, client_name, network, state, expires_at) \
                   select $1, $2, $3, $4, 'pending', now() + $5 * interval '1 second' from waiting \
                   where waiting.all < $6 and waiting.own < $7 and waiting.near < $9 returning expires_at";
        let parameters = [
            (&sha256(&device_code) as _, Type::BYTEA),
            (&sha256(&normal(&user_code)) as _, Type::BYTEA),
            (&client_name as _, Type::TEXT),
            (&network as _, Type::TEXT),
            (&DEVICE_TTL_S as _, Type::INT8),
            (&WAITING_MAX as _, Type::INT8),
            (&WAITING_OF_NETWORK_MAX as _, Type::INT8),
            (&site(network) as _, Type::TEXT),
            (&WAITING_OF_SITE_MAX as _, Type::INT8),
        ];
        let row = self.read_opt("beginning a device sign-in", sql, &parameters).await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(DeviceSignIn {
            device_code,
            user_code,
            expires_at: get(&row, "expires_at")?,
        }))
    }

    /// The sign-in that waits for a yes to this user code.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn waiting_device_sign_in(&self, user_code: &str) -> Result<Option<Waiting>, StoreError> {
        let sql = "select client_name, network, created_at, expires_at from cli_sign_ins \
                   where user_code_sha256 = $1 and state = 'pending' and expires_at > now()";
        let key = sha256(&normal(user_code));
        let row = self
            .read_opt("finding a device sign-in", sql, &[(&key, Type::BYTEA)])
            .await?;
        let read = |row: tokio_postgres::Row| {
            Ok(Waiting {
                client_name: get(&row, "client_name")?,
                network: get(&row, "network")?,
                created_at: get(&row, "created_at")?,
                expires_at: get(&row, "expires_at")?,
            })
        };
        row.map(read).transpose()
    }

    /// The person's yes or no: of `user` as it was when the person said so. `false` where nothing waits for it any more.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn answer_device_sign_in(
        &self,
        user_code: &str,
        user: &User,
        approves: bool,
    ) -> Result<bool, StoreError> {
        let sql = "update cli_sign_ins set state = $2, user_id = $3, user_version = $4 \
                   where user_code_sha256 = $1 and state = 'pending' and expires_at > now() returning 1";
        let parameters = [
            (&sha256(&normal(user_code)) as _, Type::BYTEA),
            (&(if approves { "approved" } else { "denied" }) as _, Type::TEXT),
            (&user.id as _, Type::UUID),
            (&user.version as _, Type::INT8),
        ];
        let answered = self.read_opt("answering a device sign-in", sql, &parameters).await?;
        Ok(answered.is_some())
    }

    /// What became of a device code. An answer is given once.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn poll_device_sign_in(&self, device_code: &str) -> Result<Polled, StoreError> {
        let key = sha256(device_code);
        let sql = "with found as (select secret_sha256, state, polled_at from cli_sign_ins where secret_sha256 = $1 \
                   and user_code_sha256 is not null and expires_at > now() for update) \
                   update cli_sign_ins c set polled_at = now() from found where c.secret_sha256 = found.secret_sha256 \
                   returning found.state, coalesce(found.polled_at > now() - $2 * interval '1 second', false) as soon";
        let pause = POLL_INTERVAL_S - POLL_SLACK_S;
        let parameters = [(&key as _, Type::BYTEA), (&pause as _, Type::INT8)];
        let Some(row) = self.read_opt("asking for a device sign-in", sql, &parameters).await? else {
            return Ok(Polled::Gone);
        };
        if get(&row, "soon")? {
            return Ok(Polled::SlowDown);
        }
        match get::<String>(&row, "state")?.as_str() {
            "approved" => Ok(match self.take(&key).await? {
                Some((user, _)) => Polled::Approved(user),
                None => Polled::Gone,
            }),
            "denied" => Ok(Polled::Denied),
            _ => Ok(Polled::Pending),
        }
    }

    /// A one-time code for whoever holds the verifier of this challenge, of `user` as it is now.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn issue_code(
        &self,
        user: &User,
        challenge: &str,
        client_name: &str,
        network: &str,
    ) -> Result<Zeroizing<String>, StoreError> {
        let code = secret()?;
        let sql = "with past as (delete from cli_sign_ins where expires_at < now()) \
                   insert into cli_sign_ins (secret_sha256, challenge, client_name, network, state, user_id, user_version, \
                   expires_at) values ($1, $2, $3, $4, 'approved', $5, $6, now() + $7 * interval '1 second')";
        let parameters = [
            (&sha256(&code) as _, Type::BYTEA),
            (&challenge as _, Type::TEXT),
            (&client_name as _, Type::TEXT),
            (&network as _, Type::TEXT),
            (&user.id as _, Type::UUID),
            (&user.version as _, Type::INT8),
            (&CODE_TTL_S as _, Type::INT8),
        ];
        self.read("issuing a one-time code", sql, &parameters).await?;
        Ok(code)
    }

    /// The user of a one-time code, with its verifier. A code is used up by the first who brings it, right or wrong.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn redeem_code(&self, code: &str, verifier: &str) -> Result<Option<User>, StoreError> {
        let found = self.take(&sha256(code)).await?;
        let fits = |challenge: &str| {
            let expected = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
            bool::from(expected.as_bytes().ct_eq(challenge.as_bytes()))
        };
        Ok(found.and_then(|(user, challenge)| challenge.is_some_and(|it| fits(&it)).then_some(user)))
    }

    /// Removes an approved sign-in, and answers its user, who must be unchanged since the yes: a new password, a
    /// deactivation or an unlinking takes back what was approved before.
    async fn take(&self, key: &[u8]) -> Result<Option<(User, Option<String>)>, StoreError> {
        let sql = format!(
            "with taken as (delete from cli_sign_ins where secret_sha256 = $1 and state = 'approved' \
             and expires_at > now() returning user_id, user_version, challenge) \
             select {USER_COLUMNS}, taken.challenge from taken join users u on u.id = taken.user_id and u.version = taken.user_version \
             where u.active and u.deleted_at is null"
        );
        let row = self.read_opt("taking a sign-in", &sql, &[(&key, Type::BYTEA)]).await?;
        row.map(|row| Ok((User::from_row(&row)?, get(&row, "challenge")?)))
            .transpose()
    }
}

/// The IPv6 /48 of a /64.
fn site(network: &str) -> Option<String> {
    let address: Ipv6Addr = network.strip_suffix("/64")?.parse().ok()?;
    let [a, b, c, ..] = address.segments();
    Some(format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)))
}

fn secret() -> Result<Zeroizing<String>, StoreError> {
    let random = Zeroizing::new(random::bytes::<SECRET_BYTES>()?);
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_ref())))
}

fn new_user_code() -> Result<String, StoreError> {
    /// Bytes from here on are thrown away: each letter is as likely as the others.
    const LIMIT: u8 = 240;
    let mut code = String::new();
    while code.len() < USER_CODE_CHARS {
        let letters = random::bytes::<USER_CODE_CHARS>()?;
        let letters = letters.iter().filter(|byte| **byte < LIMIT);
        let letters = letters.filter_map(|byte| USER_CODE_ALPHABET.get(usize::from(byte % 20)));
        code.extend(letters.map(|letter| char::from(*letter)));
    }
    code.truncate(USER_CODE_CHARS);
    code.insert(USER_CODE_CHARS / 2, '-');
    Ok(code)
}

/// A user code as it is compared: however it was typed.
fn normal(user_code: &str) -> String {
    let letters = user_code.chars().filter(char::is_ascii_alphanumeric);
    letters
        .map(|c| c.to_ascii_uppercase())
        .take(USER_CODE_CHARS + 1)
        .collect()
}

fn sha256(text: &str) -> Vec<u8> {
    digest(&SHA256, text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Unrecorded;
    use crate::testing;
    use crate::users::{Role, UserSettings};

    /// The example of RFC 7636, appendix B.
    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    async fn alice(store: &Store) -> User {
        let password = "correct horse battery";
        let made = store.create_user("alice", password, Role::Member, "", &Unrecorded);
        made.await.unwrap()
    }

    #[test]
    fn a_user_code_is_of_its_letters_and_compared_as_people_type_it() {
        let code = new_user_code().unwrap();
        assert_eq!((code.len(), code.find('-')), (9, Some(4)));
        assert!(
            code.bytes().all(|b| b == b'-' || USER_CODE_ALPHABET.contains(&b)),
            "{code}"
        );
        assert_ne!(code, new_user_code().unwrap());
        assert_eq!(normal("bcdf ghjk"), normal("BCDF-GHJK"));
        assert_ne!(normal("BCDF-GHJKL"), normal("BCDF-GHJK"));
    }

    #[tokio::test]
    async fn a_device_code_gives_its_user_once_after_a_yes() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let user = alice(&store).await;
        let begun = store.begin_device_sign_in("hoop", "192.0.2.7").await.unwrap().unwrap();
        let poll = async || {
            let client = store.client().await.unwrap();
            client
                .batch_execute("update cli_sign_ins set polled_at = now() - interval '1 min'")
                .await
                .unwrap();
            store.poll_device_sign_in(&begun.device_code).await.unwrap()
        };
        assert!(matches!(poll().await, Polled::Pending));
        let soon = store.poll_device_sign_in(&begun.device_code).await.unwrap();
        assert!(matches!(soon, Polled::SlowDown), "{soon:?}");
        assert!(store.waiting_device_sign_in("BCDF-BCDF").await.unwrap().is_none());
        let typed = begun.user_code.to_lowercase().replace('-', " ");
        let waiting = store.waiting_device_sign_in(&typed).await.unwrap().unwrap();
        assert_eq!(
            (waiting.client_name.as_str(), waiting.network.as_str()),
            ("hoop", "192.0.2.7")
        );
        assert!(store.answer_device_sign_in(&typed, &user, true).await.unwrap());
        assert!(
            !store.answer_device_sign_in(&typed, &user, false).await.unwrap(),
            "answered once"
        );
        assert!(matches!(poll().await, Polled::Approved(found) if found.id == user.id));
        assert!(matches!(poll().await, Polled::Gone));
    }

    #[tokio::test]
    async fn a_no_an_expired_code_and_a_user_who_went_give_nothing() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let user = alice(&store).await;
        let no = store.begin_device_sign_in("", "n").await.unwrap().unwrap();
        store.answer_device_sign_in(&no.user_code, &user, false).await.unwrap();
        assert!(matches!(
            store.poll_device_sign_in(&no.device_code).await.unwrap(),
            Polled::Denied
        ));
        let late = store.begin_device_sign_in("", "n").await.unwrap().unwrap();
        store.answer_device_sign_in(&late.user_code, &user, true).await.unwrap();
        let client = store.client().await.unwrap();
        client
            .batch_execute("update cli_sign_ins set expires_at = now()")
            .await
            .unwrap();
        assert!(matches!(
            store.poll_device_sign_in(&late.device_code).await.unwrap(),
            Polled::Gone
        ));
        let gone = store.begin_device_sign_in("", "n").await.unwrap().unwrap();
        store.answer_device_sign_in(&gone.user_code, &user, true).await.unwrap();
        store.delete_user("alice", None, &Unrecorded).await.unwrap();
        assert!(matches!(
            store.poll_device_sign_in(&gone.device_code).await.unwrap(),
            Polled::Gone
        ));
    }

    #[tokio::test]
    async fn one_network_cannot_fill_the_table() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        for _ in 0..WAITING_OF_NETWORK_MAX {
            assert!(store.begin_device_sign_in("", "192.0.2.7").await.unwrap().is_some());
        }
        assert!(store.begin_device_sign_in("", "192.0.2.7").await.unwrap().is_none());
        assert!(store.begin_device_sign_in("", "192.0.2.8").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn nor_can_somebody_who_makes_networks_at_will() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let begins = async |network: &str| store.begin_device_sign_in("", network).await.unwrap().is_some();
        for n in 0..WAITING_OF_SITE_MAX {
            assert!(begins(&format!("2001:db8:1:{:x}::/64", n / 10)).await, "{n}");
        }
        assert!(!begins("2001:db8:1:ffff::/64").await);
        for other in ["2001:db8:2::/64", "192.0.2.8", "an unknown address"] {
            assert!(begins(other).await, "{other}");
        }
    }

    #[tokio::test]
    async fn a_one_time_code_is_good_once_and_only_with_its_verifier() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        let user = alice(&store).await;
        let code = store.issue_code(&user, CHALLENGE, "hoop", "n").await.unwrap();
        assert!(
            matches!(store.poll_device_sign_in(&code).await.unwrap(), Polled::Gone),
            "no device code"
        );
        assert_eq!(store.redeem_code(&code, VERIFIER).await.unwrap().unwrap().id, user.id);
        assert!(store.redeem_code(&code, VERIFIER).await.unwrap().is_none());
        let code = store.issue_code(&user, CHALLENGE, "hoop", "n").await.unwrap();
        assert!(store.redeem_code(&code, "another verifier").await.unwrap().is_none());
        assert!(
            store.redeem_code(&code, VERIFIER).await.unwrap().is_none(),
            "a wrong verifier uses it up"
        );
    }

    /// What takes a user's sign-ins away takes those along that were approved and not yet handed out.
    #[tokio::test]
    async fn a_yes_to_a_command_line_is_taken_back_by_what_ends_sign_ins() {
        let Some(store) = testing::try_store().await else {
            return;
        };
        alice(&store).await;
        let linked = store.link_identity("alice", "corp", "u-1", &Unrecorded).await;
        linked.unwrap();
        let set_active = async |active: bool| {
            let user = store.find_user("alice").await.unwrap().unwrap();
            let settings = UserSettings {
                email: user.email,
                role: user.role,
                groups: user.groups,
                active,
            };
            store.update_user("alice", settings, None, &Unrecorded).await.unwrap();
        };
        for change in ["a new password", "deactivated for a while", "unlinked"] {
            let user = store.find_user("alice").await.unwrap().unwrap();
            let waits = store.begin_device_sign_in("", "n").await.unwrap().unwrap();
            assert!(
                store
                    .answer_device_sign_in(&waits.user_code, &user, true)
                    .await
                    .unwrap()
            );
            let code = store.issue_code(&user, CHALLENGE, "hoop", "n").await.unwrap();
            match change {
                "a new password" => {
                    let password = "another good one";
                    store.set_password("alice", password, &Unrecorded).await.unwrap();
                }
                "unlinked" => store
                    .unlink_identity("alice", "corp", "u-1", &Unrecorded)
                    .await
                    .unwrap(),
                _ => {
                    set_active(false).await;
                    set_active(true).await;
                }
            }
            let polled = store.poll_device_sign_in(&waits.device_code).await.unwrap();
            assert!(matches!(polled, Polled::Gone), "{change}: {polled:?}");
            assert_eq!(store.redeem_code(&code, VERIFIER).await.unwrap(), None, "{change}");
        }
    }
}
