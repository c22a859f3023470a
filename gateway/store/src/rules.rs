//! Access rules, and the set of all of them that this process decides by.

use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use hoop_access::{Role, Rule, RuleSet, RuleSpec};
use serde_json::{Value, json};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::change::{Change, Witness, check_version, conflict, get, policy_change};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::names::{check_label, check_set, invalid};
use crate::{Store, StoreError, changes};

/// Most rules of an installation: every replica holds them all.
pub const RULES_MAX: i64 = 20_000;

/// A rule as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRule {
    pub rule: Rule,
    /// Of the policy: numbers every change of any rule or connection, so it only grows.
    pub version: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

const RULE_COLUMNS: &str = "r.id as r_id, r.name as r_name, r.version as r_version, r.spec as r_spec, \
     r.created_at as r_created_at, r.updated_at as r_updated_at";

/// How rules can be listed.
pub static RULES: Listing = Listing {
    name: "rules",
    columns: &[RULE_COLUMNS],
    from: "access_rules r",
    whole: "r.deleted_at is null",
    id: SortKey::uuid("id", "r.id"),
    sorts: &[
        SortKey::text("name", "r.name"),
        SortKey::time("created_at", "r.created_at"),
        SortKey::time("updated_at", "r.updated_at"),
    ],
    default_sort: "name",
};

/// Which rules: those that hold these entries, letter by letter.
#[derive(Debug, Clone, Default)]
pub struct RuleFilter {
    pub group: Option<String>,
    pub user: Option<String>,
    pub role: Option<Role>,
    pub connection: Option<String>,
    pub tag: Option<String>,
    pub enabled: Option<bool>,
    /// In the name or the description.
    pub q: Option<String>,
}

impl StoredRule {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        let name: String = get(row, "r_name")?;
        let spec = serde_json::from_value(get::<Value>(row, "r_spec")?)
            .map_err(|e| StoreError::Setup(format!("the access rule {name} cannot be read: {e}")))?;
        Ok(Self {
            rule: Rule {
                id: get(row, "r_id")?,
                name,
                spec,
            },
            version: get(row, "r_version")?,
            created_at: get(row, "r_created_at")?,
            updated_at: get(row, "r_updated_at")?,
        })
    }

    fn described(&self) -> Value {
        json!({"id": self.rule.id, "name": self.rule.name, "version": self.version, "spec": self.rule.spec})
    }
}

/// The rules that this process knows: none, which allows nothing, until they were read.
#[derive(Debug, Default)]
pub struct KnownRules(RwLock<Arc<RuleSet>>);

impl KnownRules {
    fn get(&self) -> Arc<RuleSet> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// An older state never replaces a newer one.
    fn put(&self, rules: RuleSet) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if rules.version() >= known.version() {
            *known = Arc::new(rules);
        }
    }
}

impl Store {
    /// The rules as this process knows them. Those of another replica's change arrive with the change log.
    #[must_use]
    pub fn rules(&self) -> Arc<RuleSet> {
        self.known_rules().get()
    }

    /// Reads all rules anew. Answers the newest that are known.
    ///
    /// # Errors
    /// Where the store is away, or a rule cannot be read.
    pub async fn refresh_rules(&self) -> Result<Arc<RuleSet>, StoreError> {
        let sql = format!(
            "select {RULE_COLUMNS}, (select coalesce(max(version), 0) from policy_versions) as p_version \
             from access_rules r where deleted_at is null order by name limit $1"
        );
        let rows = self
            .read("reading access rules", &sql, &[(&RULES_MAX, Type::INT8)])
            .await?;
        let version = match rows.first() {
            Some(row) => get(row, "p_version")?,
            None => self.policy_version().await?,
        };
        let rules = rows
            .iter()
            .map(|row| StoredRule::from_row(row).map(|stored| stored.rule));
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        self.known_rules().put(RuleSet::new(rules, version));
        Ok(self.rules())
    }

    /// The rules as they are stored now, whether this process has heard of the last change or not. They are read only
    /// where there is a newer one.
    ///
    /// # Errors
    /// Where the store is away, or a rule cannot be read.
    pub async fn current_rules(&self) -> Result<Arc<RuleSet>, StoreError> {
        let known = self.rules();
        let sql =
            "select exists (select from policy_versions where version > $1 and starts_with(kind, 'rule.')) as newer";
        let row = self
            .read_opt("asking for newer rules", sql, &[(&known.version(), Type::INT8)])
            .await?;
        match row.as_ref().map_or(Ok(true), |row| get(row, "newer"))? {
            true => self.refresh_rules().await,
            false => Ok(known),
        }
    }

    /// A change that this process made itself is known to it at once. The change stands whether it can be read again now
    /// or only with the change log.
    async fn follow_own_change(&self) {
        if let Err(error) = self.refresh_rules().await {
            tracing::warn!(%error, "the changed access rules are not read yet; they follow with the change log");
        }
    }

    /// # Errors
    /// `Invalid` naming the field, `Conflict` where the name is taken, `Unrecorded`, or the store is away.
    pub async fn create_rule(
        &self,
        name: &str,
        spec: RuleSpec,
        witness: &dyn Witness,
    ) -> Result<StoredRule, StoreError> {
        check_label("name", name)?;
        check(&spec)?;
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "creating an access rule").await?;
        let count = change.query_opt("select count(*) as n from access_rules where deleted_at is null", &[]);
        let count = count.await?.map_or(Ok(0), |row| get::<i64>(&row, "n"))?;
        if count >= RULES_MAX {
            return Err(invalid(
                "name",
                format!("is one too many: there can be {RULES_MAX} rules"),
            ));
        }
        let (version, stored) = new_version(&change, "create", name, Some(&spec)).await?;
        let id = Uuid::now_v7();
        let sql = format!(
            "insert into access_rules as r (id, name, version, spec) values ($1, $2, $3, $4) returning {RULE_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&id, Type::UUID),
                    (&name, Type::TEXT),
                    (&version, Type::INT8),
                    (&stored, Type::JSONB),
                ],
            )
            .await
            .map_err(|e| conflict(e, || format!("rule {name}")))?
            .ok_or_else(|| unknown(name))?;
        let rule = StoredRule::from_row(&row)?;
        change.announce(changes::RULES_CHANGED, name);
        let payload = json!({"subject": name, "before": null, "after": rule.described()});
        change.commit(witness, "rule.create", payload).await?;
        self.follow_own_change().await;
        Ok(rule)
    }

    /// Replaces what a rule says. With `if_version`, only where it still has that version.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Stale` where the version is another, `Unrecorded`, or the store is away.
    pub async fn update_rule(
        &self,
        name: &str,
        spec: RuleSpec,
        if_version: Option<i64>,
        witness: &dyn Witness,
    ) -> Result<StoredRule, StoreError> {
        check(&spec)?;
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "updating an access rule").await?;
        let before = locked(&change, name, if_version).await?;
        let (version, stored) = new_version(&change, "update", name, Some(&spec)).await?;
        let sql = format!(
            "update access_rules r set version = $2, spec = $3, updated_at = now() where id = $1 \
             returning {RULE_COLUMNS}"
        );
        let row = change
            .query_opt(
                &sql,
                &[
                    (&before.rule.id, Type::UUID),
                    (&version, Type::INT8),
                    (&stored, Type::JSONB),
                ],
            )
            .await?
            .ok_or_else(|| unknown(name))?;
        let after = StoredRule::from_row(&row)?;
        change.announce(changes::RULES_CHANGED, name);
        let payload = json!({"subject": name, "before": before.described(), "after": after.described()});
        change.commit(witness, "rule.update", payload).await?;
        self.follow_own_change().await;
        Ok(after)
    }

    /// Deletes a rule. Sessions that it alone allowed end.
    ///
    /// # Errors
    /// `NotFound`, `Stale` where the version is another, `Unrecorded`, or the store is away.
    pub async fn delete_rule(
        &self,
        name: &str,
        if_version: Option<i64>,
        witness: &dyn Witness,
    ) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "deleting an access rule").await?;
        let before = locked(&change, name, if_version).await?;
        let (version, _) = new_version(&change, "delete", name, None).await?;
        change
            .query(
                "update access_rules set version = $2, deleted_at = now(), updated_at = now() where id = $1",
                &[(&before.rule.id, Type::UUID), (&version, Type::INT8)],
            )
            .await?;
        change.announce(changes::RULES_CHANGED, name);
        let payload = json!({"subject": name, "before": before.described(), "after": null});
        change.commit(witness, "rule.delete", payload).await?;
        self.follow_own_change().await;
        Ok(())
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_rule(&self, name: &str) -> Result<Option<StoredRule>, StoreError> {
        let sql = format!("select {RULE_COLUMNS} from access_rules r where name = $1 and deleted_at is null");
        let row = self
            .read_opt("finding an access rule", &sql, &[(&name, Type::TEXT)])
            .await?;
        row.as_ref().map(StoredRule::from_row).transpose()
    }

    /// A page of the rules.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_rules(&self, filter: &RuleFilter, window: &Window) -> Result<Listed<StoredRule>, StoreError> {
        let text = filter.q.as_ref().map(|q| q.to_lowercase());
        let role = filter.role.map(Role::as_str);
        let conditions = Conditions::default()
            .when(filter.group.as_ref(), Type::TEXT, "r.spec -> 'groups' @> to_jsonb($?)")
            .when(
                filter.user.as_ref(),
                Type::TEXT,
                "r.spec -> 'users' @> to_jsonb(lower($?))",
            )
            .when(role.as_ref(), Type::TEXT, "r.spec -> 'roles' @> to_jsonb($?)")
            .when(
                filter.connection.as_ref(),
                Type::TEXT,
                "r.spec -> 'connections' @> to_jsonb($?)",
            )
            .when(filter.tag.as_ref(), Type::TEXT, "r.spec -> 'tags' @> to_jsonb($?)")
            .either(
                filter.enabled,
                "coalesce((r.spec ->> 'enabled')::boolean, true)",
                "not coalesce((r.spec ->> 'enabled')::boolean, true)",
            )
            .when(
                text.as_ref(),
                Type::TEXT,
                "strpos(r.name, $?) > 0 or strpos(lower(r.spec ->> 'description'), $?) > 0",
            );
        self.list("listing access rules", &RULES, conditions, window, StoredRule::from_row)
            .await
    }
}

fn unknown(name: &str) -> StoreError {
    StoreError::NotFound {
        what: format!("rule {name}"),
    }
}

fn check(spec: &RuleSpec) -> Result<(), StoreError> {
    check_set(&spec.managed_by)?;
    spec.check().map_err(|fault| invalid(fault.field, fault.problem))
}

async fn locked(change: &Change<'_>, name: &str, wanted: Option<i64>) -> Result<StoredRule, StoreError> {
    let sql = format!("select {RULE_COLUMNS} from access_rules r where name = $1 and deleted_at is null for update");
    let row = change.query_opt(&sql, &[(&name, Type::TEXT)]).await?;
    let found = StoredRule::from_row(&row.ok_or_else(|| unknown(name))?)?;
    check_version(|| format!("rule {name}"), found.version, wanted)?;
    Ok(found)
}

async fn new_version(
    change: &Change<'_>,
    kind: &'static str,
    name: &str,
    spec: Option<&RuleSpec>,
) -> Result<(i64, Option<Value>), StoreError> {
    let stored = spec.map(serde_json::to_value).transpose();
    let stored = stored.map_err(|e| StoreError::Setup(format!("an access rule: {e}")))?;
    let version = policy_change(change, &format!("rule.{kind}"), name, stored.as_ref()).await?;
    Ok((version, stored))
}
