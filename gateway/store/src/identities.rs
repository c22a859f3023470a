//! Whom providers vouch for: which user a provider's subject is, and what the provider said of that person last.
//!
//! INVARIANT: a user is found by provider and subject. E-mail address and name never decide who somebody is.

use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use chrono::{DateTime, Utc};

use crate::browser_sessions;
use crate::change::{Change, Witness, get};
use crate::identity_names;
use crate::names;
use crate::personal_tokens;
use crate::users::{USER_COLUMNS, User, check_email, checked_groups, locked};
use crate::{Store, StoreError, changes};

pub use hoop_access::Role;

/// Longest subject: OpenID Connect allows 255 ASCII characters, SAML persistent names 256.
pub const SUBJECT_MAX_BYTES: usize = 1_024;
/// Most identities of one user.
pub const IDENTITIES_MAX: i64 = 20;
/// How often a new user's name is looked for again where somebody else took it in between.
const CREATE_ATTEMPTS: usize = 3;

/// What a provider said of a person.
#[derive(Debug, Clone)]
pub struct Vouched {
    /// Our name of the provider.
    pub provider: String,
    pub subject: String,
    /// Empty where the provider gave none.
    pub email: String,
    pub display_name: String,
    /// `None` where the provider said nothing of groups.
    pub groups: Option<Vec<String>>,
}

/// What the configuration makes of it.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Whether somebody unknown becomes a user.
    pub creates: bool,
    /// Of somebody who becomes one.
    pub first_role: Role,
    /// What the groups say that the role is; `None`: they say nothing, and it stays.
    pub role: Option<Role>,
}

/// Whom the store takes the person for.
#[derive(Debug)]
pub enum Recognised {
    Known(User),
    Created(User),
    /// A user who may not sign in.
    Inactive(User),
    /// Nobody is linked, and nobody is created.
    Stranger,
}

/// One identity of a user, as administrators see it.
#[derive(Debug, Clone)]
pub struct Identity {
    pub provider: String,
    pub subject: String,
    pub email: String,
    pub display_name: String,
    pub groups: Option<Vec<String>>,
    pub linked_at: DateTime<Utc>,
    pub last_sign_in_at: Option<DateTime<Utc>>,
    /// When the provider last confirmed the sign-in, without the person.
    pub refreshed_at: Option<DateTime<Utc>>,
    /// Whether the provider is asked again while the person is signed in.
    pub refreshes: bool,
}

const IDENTITY_COLUMNS: &str = "i.provider, i.subject, i.email, i.display_name, i.groups, i.linked_at, \
     i.last_sign_in_at, i.refreshed_at, i.refresh_sealed is not null as refreshes";

impl Identity {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            provider: get(row, "provider")?,
            subject: get(row, "subject")?,
            email: get(row, "email")?,
            display_name: get(row, "display_name")?,
            groups: get(row, "groups")?,
            linked_at: get(row, "linked_at")?,
            last_sign_in_at: get(row, "last_sign_in_at")?,
            refreshed_at: get(row, "refreshed_at")?,
            refreshes: get(row, "refreshes")?,
        })
    }
}

impl Store {
    /// Finds the user whom a provider vouches for, or makes one; groups, role and e-mail address become those that the
    /// provider says now. Sessions that this no longer allows end.
    ///
    /// # Errors
    /// `Invalid` (groups, subject), `Unrecorded`, or the store is away.
    pub async fn recognise(
        &self,
        vouched: &Vouched,
        terms: &Terms,
        witness: &dyn Witness,
    ) -> Result<Recognised, StoreError> {
        let vouched = checked(vouched)?;
        let mut attempt = 1;
        loop {
            match self.recognise_once(&vouched, terms, witness).await {
                Err(StoreError::Conflict { .. }) if attempt < CREATE_ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    async fn recognise_once(
        &self,
        vouched: &Vouched,
        terms: &Terms,
        witness: &dyn Witness,
    ) -> Result<Recognised, StoreError> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "finding whom a provider vouches for").await?;
        lock_identity(&change, vouched).await?;
        let Some(user) = linked_user(&change, &vouched.provider, &vouched.subject).await? else {
            if !terms.creates {
                return Ok(Recognised::Stranger);
            }
            return self
                .create(change, vouched, terms, witness)
                .await
                .map(Recognised::Created);
        };
        if !user.active {
            return Ok(Recognised::Inactive(user));
        }
        note(&change, vouched, true).await?;
        apply(change, user, &vouched.email, terms.role, Recorded::IfChanged, witness)
            .await
            .map(Recognised::Known)
    }

    /// Takes over what a provider says of somebody who signed in there before, without the person. Nothing happens
    /// where nobody is linked any more, or the user may not sign in.
    ///
    /// # Errors
    /// `Invalid` (groups), `Unrecorded`, or the store is away.
    pub async fn confirm(
        &self,
        vouched: &Vouched,
        role: Option<Role>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let vouched = checked(vouched)?;
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "asking a provider again").await?;
        lock_identity(&change, &vouched).await?;
        match linked_user(&change, &vouched.provider, &vouched.subject).await? {
            Some(user) if user.active => {
                note(&change, &vouched, false).await?;
                apply(change, user, &vouched.email, role, Recorded::IfChanged, witness)
                    .await
                    .map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn create(
        &self,
        mut change: Change<'_>,
        vouched: &Vouched,
        terms: &Terms,
        witness: &dyn Witness,
    ) -> Result<User, StoreError> {
        let username = identity_names::free(&change, &self.rules(), vouched).await?;
        let id = Uuid::now_v7();
        let groups = vouched.groups.clone().unwrap_or_default();
        let sql = format!(
            "insert into users as u (id, username, email, role, groups) values ($1, $2, $3, $4, $5) \
             returning {USER_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::UUID),
                    (&username, Type::TEXT),
                    (&vouched.email, Type::TEXT),
                    (&terms.first_role.as_str(), Type::TEXT),
                    (&groups, Type::TEXT_ARRAY),
                ],
            )
            .await
            .map_err(|e| crate::change::conflict(e, || format!("user {username}")))?;
        let user = User::from_row(&row.ok_or_else(|| StoreError::Setup("the store made no user".into()))?)?;
        let sql = "insert into identities (provider, subject, email, display_name, groups, user_id, last_sign_in_at) \
                   values ($1, $2, $3, $4, $5, $6, now()) \
                   on conflict (provider, subject) do update set user_id = excluded.user_id, \
                   email = excluded.email, display_name = excluded.display_name, groups = excluded.groups, \
                   last_sign_in_at = now(), linked_at = now(), refresh_sealed = null, refresh_due_at = null";
        let [provider, subject, email, display_name, groups] = told(vouched);
        let parameters = [provider, subject, email, display_name, groups, (&id, Type::UUID)];
        change.query(sql, &parameters).await?;
        change.announce(changes::USER_CHANGED, id.to_string());
        let mut after = user.described();
        if let Some(members) = after.as_object_mut() {
            let identity = json!({"provider": vouched.provider, "subject": vouched.subject});
            members.insert("identity".into(), identity);
        }
        let payload = json!({"subject": username, "before": null, "after": after});
        change.commit(witness, "user.create", payload).await?;
        Ok(user)
    }

    /// Links a provider's subject to a user, so that the person signs in as that user.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (subject), `Conflict` where the subject is somebody's already, `Unrecorded`, or the store is
    /// away.
    pub async fn link_identity(
        &self,
        username: &str,
        provider: &str,
        subject: &str,
        witness: &dyn Witness,
    ) -> Result<Identity, StoreError> {
        check_subject(subject)?;
        let username = names::username(username)?;
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, "linking an identity").await?;
        let user = locked(&change, &username, None).await?;
        if user.service {
            return Err(names::invalid(
                "username",
                "cannot be a service account: those sign in nowhere",
            ));
        }
        let count = "select count(*) as count from identities where user_id = $1";
        let count = change.query_opt(count, &[(&user.id, Type::UUID)]).await?;
        let count: i64 = count.as_ref().map(|row| get(row, "count")).transpose()?.unwrap_or(0);
        if count >= IDENTITIES_MAX {
            let problem = format!("cannot be linked: a user has at most {IDENTITIES_MAX} identities");
            return Err(names::invalid("subject", problem));
        }
        let sql = format!(
            "insert into identities as i (provider, subject, user_id) values ($1, $2, $3) returning {IDENTITY_COLUMNS}"
        );
        let parameters = [
            (&provider as _, Type::TEXT),
            (&subject as _, Type::TEXT),
            (&user.id as _, Type::UUID),
        ];
        let what = || format!("an identity of this subject at {provider}");
        let row = change
            .query_opt(&sql, &parameters)
            .await
            .map_err(|e| crate::change::conflict(e, what))?;
        let row = row.ok_or_else(|| StoreError::Setup("the store kept no identity".into()))?;
        let identity = Identity::from_row(&row)?;
        let after = json!({"id": user.id, "provider": provider, "subject": subject});
        let payload = json!({"subject": username, "before": null, "after": after});
        change.commit(witness, "identity.link", payload).await?;
        Ok(identity)
    }

    /// Unlinks: the groups that this provider gave go, and the person's tokens, personal ones too, and browser sessions end.
    ///
    /// # Errors
    /// `NotFound`, `Unrecorded`, or the store is away.
    pub async fn unlink_identity(
        &self,
        username: &str,
        provider: &str,
        subject: &str,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let username = names::username(username)?;
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "unlinking an identity").await?;
        let user = locked(&change, &username, None).await?;
        let sql = "delete from identities where provider = $1 and subject = $2 and user_id = $3 \
                   returning groups is not null as told";
        let parameters = [
            (&provider as _, Type::TEXT),
            (&subject as _, Type::TEXT),
            (&user.id as _, Type::UUID),
        ];
        let gone = change.query_opt(sql, &parameters).await?;
        let gone = gone.ok_or_else(|| StoreError::NotFound {
            what: format!("an identity of {username} with this subject at {provider}"),
        })?;
        let left = if get(&gone, "told")? {
            told_groups(&change, user.id).await?.unwrap_or_default()
        } else {
            user.groups
        };
        // another version: no sign-in that was begun before is completed after this
        let sql = "update users set groups = $2, version = version + 1, updated_at = now() where id = $1";
        let parameters = [(&user.id as _, Type::UUID), (&left as _, Type::TEXT_ARRAY)];
        change.query(sql, &parameters).await?;
        end_sign_ins(&change, user.id).await?;
        change.announce(changes::USER_CHANGED, user.id.to_string());
        let before = json!({"id": user.id, "provider": provider, "subject": subject});
        let payload = json!({"subject": username, "before": before, "after": null});
        change.commit(witness, "identity.unlink", payload).await
    }

    /// A user's identities, those that signed in last first.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn identities_of(&self, user: Uuid) -> Result<Vec<Identity>, StoreError> {
        let sql = format!(
            "select {IDENTITY_COLUMNS} from identities i where user_id = $1 \
             order by last_sign_in_at desc nulls last, provider, subject"
        );
        let rows = self.read("listing identities", &sql, &[(&user, Type::UUID)]).await?;
        rows.iter().map(Identity::from_row).collect()
    }
}

type Told<'a> = [(&'a (dyn tokio_postgres::types::ToSql + Sync), Type); 5];

/// `$1` to `$5`: provider, subject, e-mail address, name, groups.
fn told(vouched: &Vouched) -> Told<'_> {
    [
        (&vouched.provider, Type::TEXT),
        (&vouched.subject, Type::TEXT),
        (&vouched.email, Type::TEXT),
        (&vouched.display_name, Type::TEXT),
        (&vouched.groups, Type::TEXT_ARRAY),
    ]
}

/// What a provider says, made fit to be kept.
fn checked(vouched: &Vouched) -> Result<Vouched, StoreError> {
    check_subject(&vouched.subject)?;
    Ok(Vouched {
        email: fit_email(&vouched.email),
        display_name: shortened(&vouched.display_name),
        groups: vouched.groups.clone().map(checked_groups).transpose()?,
        ..vouched.clone()
    })
}

/// Keeps what a provider says now; of groups, what it said last where it says nothing.
async fn note(change: &Change<'_>, vouched: &Vouched, is_sign_in: bool) -> Result<(), StoreError> {
    let sql = "update identities set email = $3, display_name = $4, groups = coalesce($5, groups), \
               last_sign_in_at = case when $6 then now() else last_sign_in_at end where provider = $1 and subject = $2";
    let [provider, subject, email, display_name, groups] = told(vouched);
    let parameters = [
        provider,
        subject,
        email,
        display_name,
        groups,
        (&is_sign_in, Type::BOOL),
    ];
    change.query(sql, &parameters).await.map(drop)
}

/// Two first sign-ins of one person make one user.
async fn lock_identity(change: &Change<'_>, vouched: &Vouched) -> Result<(), StoreError> {
    let sql = "select pg_advisory_xact_lock(hashtextextended($1 || chr(10) || $2, 6))";
    let parameters = [
        (&vouched.provider as _, Type::TEXT),
        (&vouched.subject as _, Type::TEXT),
    ];
    change.query(sql, &parameters).await.map(drop)
}

pub(crate) async fn linked_user(
    change: &Change<'_>,
    provider: &str,
    subject: &str,
) -> Result<Option<User>, StoreError> {
    let sql = format!(
        "select {USER_COLUMNS} from identities i join users u on u.id = i.user_id \
         where i.provider = $1 and i.subject = $2 and u.deleted_at is null for update of u"
    );
    let parameters = [(&provider as _, Type::TEXT), (&subject as _, Type::TEXT)];
    let row = change.query_opt(&sql, &parameters).await?;
    row.as_ref().map(User::from_row).transpose()
}

/// Every group that one of the user's providers told; `None` where none ever told any.
async fn told_groups(change: &Change<'_>, user: Uuid) -> Result<Option<Vec<String>>, StoreError> {
    let sql = "select groups from identities where user_id = $1 and groups is not null";
    let rows = change.query(sql, &[(&user, Type::UUID)]).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut all = Vec::new();
    for row in &rows {
        all.extend(get::<Vec<String>>(row, "groups")?);
    }
    checked_groups(all).map(Some)
}

/// When a record is written of what a provider's word changed.
pub(crate) enum Recorded {
    /// As a change of the user, where it is one.
    IfChanged,
    /// Under this kind, for more ends with it.
    Always(&'static str),
}

/// Makes the user what the identities say.
pub(crate) async fn apply(
    mut change: Change<'_>,
    before: User,
    email: &str,
    role: Option<Role>,
    recorded: Recorded,
    witness: &dyn Witness,
) -> Result<User, StoreError> {
    let groups = told_groups(&change, before.id).await?;
    let wanted = User {
        email: if email.is_empty() {
            before.email.clone()
        } else {
            email.to_owned()
        },
        role: role.unwrap_or(before.role),
        groups: groups.unwrap_or_else(|| before.groups.clone()),
        ..before.clone()
    };
    let kind = match recorded {
        Recorded::IfChanged if wanted == before => {
            change.commit_unrecorded().await?;
            return Ok(before);
        }
        Recorded::IfChanged => "user.update",
        Recorded::Always(kind) => kind,
    };
    let sql = format!(
        "update users u set email = $2, role = $3, groups = $4, version = version + 1, updated_at = now() \
         where id = $1 returning {USER_COLUMNS}"
    );
    let parameters = [
        (&before.id as _, Type::UUID),
        (&wanted.email as _, Type::TEXT),
        (&wanted.role.as_str() as _, Type::TEXT),
        (&wanted.groups as _, Type::TEXT_ARRAY),
    ];
    let row = change.query_opt(&sql, &parameters).await?;
    let after = User::from_row(&row.ok_or_else(|| StoreError::Setup("the store lost a user".into()))?)?;
    change.announce(changes::USER_CHANGED, before.id.to_string());
    let payload = json!({"subject": before.username, "before": before.described(), "after": after.described()});
    change.commit(witness, kind, payload).await?;
    Ok(after)
}

/// Ends what the person signed in to, and the tokens that were made from there.
pub(crate) async fn end_sign_ins(change: &Change<'_>, user: Uuid) -> Result<(), StoreError> {
    let sql = "delete from api_tokens where user_id = $1";
    change.query(sql, &[(&user, Type::UUID)]).await?;
    personal_tokens::revoke_all(change, user).await?;
    browser_sessions::end_all(change, user).await
}

fn check_subject(subject: &str) -> Result<(), StoreError> {
    if subject.is_empty() || subject.len() > SUBJECT_MAX_BYTES || subject.chars().any(char::is_control) {
        let problem = format!("must be 1 to {SUBJECT_MAX_BYTES} bytes without control characters");
        return Err(names::invalid("subject", problem));
    }
    Ok(())
}

/// What cannot be an address is left out: nobody is known by it.
fn fit_email(email: &str) -> String {
    check_email(email).map_or_else(|_| String::new(), |()| email.to_owned())
}

/// A name for people, fit for a list.
fn shortened(name: &str) -> String {
    const MAX_CHARS: usize = 200;
    name.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect()
}
