//! Lists: typed filters, one sort, and pages that stay in place while rows come and go. A page begins after a row's sort
//! key and id (keyset), never at an offset.
//!
//! INVARIANT: what becomes SQL is the program's own text; every value is bound.

use std::fmt::Write as _;

use chrono::{DateTime, Datelike as _, Utc};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::change::get;
use crate::{Store, StoreError};

/// Most rows of one page.
pub const PAGE_MAX: i64 = 200;
/// Batches of `PAGE_MAX` rows that one page of a list is looked for in, where not every row is shown.
const BATCHES_MAX: usize = 50;
/// Longest text of a filter, in bytes.
pub const FILTER_MAX_BYTES: usize = 256;
/// Stands for the bound value in a condition.
const VALUE: &str = "$?";

/// What can be listed, and in which orders.
#[derive(Debug)]
pub struct Listing {
    /// Names the list, in cursors too.
    pub name: &'static str,
    /// Columns, each group as a resource's own constant has it.
    pub(crate) columns: &'static [&'static str],
    pub(crate) from: &'static str,
    /// What is always asked: a condition without values.
    pub(crate) whole: &'static str,
    /// Tells rows with the same sort key apart.
    pub(crate) id: SortKey,
    pub sorts: &'static [SortKey],
    /// As `sort` would be given.
    pub default_sort: &'static str,
}

/// What rows can be sorted by.
#[derive(Debug)]
pub struct SortKey {
    pub name: &'static str,
    /// Never null.
    pub(crate) column: &'static str,
    pub(crate) kind: KeyKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    Text,
    Time,
    Uuid,
}

/// A value of a sort key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Text(String),
    Time(DateTime<Utc>),
    Uuid(Uuid),
}

/// An order of a list.
#[derive(Debug, Clone, Copy)]
pub struct Sort {
    pub(crate) key: &'static SortKey,
    pub(crate) descending: bool,
}

/// Where a row stands in an order of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub key: Key,
    pub id: Key,
}

/// Which part of a list.
#[derive(Debug, Clone)]
pub struct Window {
    pub sort: Sort,
    /// The last row of the page before.
    pub after: Option<Position>,
    /// At most `PAGE_MAX`.
    pub limit: i64,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    pub rows: Vec<T>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<Position>,
}

impl SortKey {
    pub(crate) const fn text(name: &'static str, column: &'static str) -> Self {
        Self::of(name, column, KeyKind::Text)
    }

    pub(crate) const fn time(name: &'static str, column: &'static str) -> Self {
        Self::of(name, column, KeyKind::Time)
    }

    pub(crate) const fn uuid(name: &'static str, column: &'static str) -> Self {
        Self::of(name, column, KeyKind::Uuid)
    }

    const fn of(name: &'static str, column: &'static str, kind: KeyKind) -> Self {
        Self { name, column, kind }
    }

    /// Whether a cursor's value can be one of this key.
    fn takes(&self, key: &Key) -> bool {
        match key {
            Key::Text(text) => self.kind == KeyKind::Text && !text.contains('\0'),
            Key::Time(time) => self.kind == KeyKind::Time && is_storable(*time),
            Key::Uuid(_) => self.kind == KeyKind::Uuid,
        }
    }
}

/// Whether PostgreSQL has this moment: its years end before chrono's.
#[must_use]
pub fn is_storable(time: DateTime<Utc>) -> bool {
    (1..=9999).contains(&time.year())
}

impl Key {
    fn of(row: &Row, column: &'static str, kind: KeyKind) -> Result<Self, StoreError> {
        Ok(match kind {
            KeyKind::Text => Self::Text(get(row, column)?),
            KeyKind::Time => Self::Time(get(row, column)?),
            KeyKind::Uuid => Self::Uuid(get(row, column)?),
        })
    }

    fn bound(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Text(text) => (text, Type::TEXT),
            Self::Time(time) => (time, Type::TIMESTAMPTZ),
            Self::Uuid(id) => (id, Type::UUID),
        }
    }
}

impl Position {
    fn of(row: &Row, listing: &Listing, window: &Window) -> Result<Self, StoreError> {
        Ok(Self {
            key: Key::of(row, "list_key", window.sort.key.kind)?,
            id: Key::of(row, "list_id", listing.id.kind)?,
        })
    }
}

impl Sort {
    /// As `sort` would be given.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", if self.descending { "-" } else { "" }, self.key.name)
    }
}

impl Listing {
    /// The order that `text` names: a sort key, with `-` before it for descending.
    #[must_use]
    pub fn sort(&'static self, text: &str) -> Option<Sort> {
        let (name, descending) = text.strip_prefix('-').map_or((text, false), |name| (name, true));
        let key = self.sorts.iter().find(|key| key.name == name)?;
        Some(Sort { key, descending })
    }

    /// The beginning, in the default order.
    #[must_use]
    pub fn first(&'static self, limit: i64) -> Window {
        let sort = self.sort(self.default_sort);
        Window {
            sort: sort.unwrap_or(Sort {
                key: &self.id,
                descending: false,
            }),
            after: None,
            limit,
        }
    }

    /// Whether a row of this list could stand there in this order.
    #[must_use]
    pub fn holds(&self, sort: &Sort, position: &Position) -> bool {
        sort.key.takes(&position.key) && self.id.takes(&position.id)
    }
}

/// The conditions of a list.
#[derive(Default, Clone)]
pub(crate) struct Conditions<'v> {
    text: String,
    params: Vec<(&'v (dyn ToSql + Sync), Type)>,
}

impl<'v> Conditions<'v> {
    /// `condition`, in which `$?` stands for the value; none where there is no value.
    pub(crate) fn when<T: ToSql + Sync>(mut self, value: Option<&'v T>, kind: Type, condition: &'static str) -> Self {
        if let Some(value) = value {
            let number = self.bind((value, kind));
            self.and(&condition.replace(VALUE, &number));
        }
        self
    }

    /// `if_true` or `if_false`, neither of which has a value.
    pub(crate) fn either(self, value: Option<bool>, if_true: &'static str, if_false: &'static str) -> Self {
        self.also(value.map(|value| if value { if_true } else { if_false }))
    }

    /// A condition without a value, if there is one.
    pub(crate) fn also(mut self, condition: Option<&'static str>) -> Self {
        if let Some(condition) = condition {
            self.and(condition);
        }
        self
    }

    /// `condition`, in which each `$?` stands for the next of `values`.
    pub(crate) fn with(mut self, values: &[(&'v (dyn ToSql + Sync), Type)], condition: &'static str) -> Self {
        let mut text = condition.to_owned();
        for (value, kind) in values {
            let number = self.bind((*value, kind.clone()));
            text = text.replacen(VALUE, &number, 1);
        }
        self.and(&text);
        self
    }

    fn and(&mut self, condition: &str) {
        self.text.push_str(" and (");
        self.text.push_str(condition);
        self.text.push(')');
    }

    fn bind(&mut self, value: (&'v (dyn ToSql + Sync), Type)) -> String {
        self.params.push(value);
        format!("${}", self.params.len())
    }
}

impl Store {
    /// A page of a list.
    pub(crate) async fn list<T>(
        &self,
        operation: &'static str,
        listing: &Listing,
        mut conditions: Conditions<'_>,
        window: &Window,
        read: impl Fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Listed<T>, StoreError> {
        let limit = window.limit.clamp(1, PAGE_MAX);
        let one_more = limit.saturating_add(1);
        let sql = statement(listing, &mut conditions, window, &one_more);
        let mut rows = self.read(operation, &sql, &conditions.params).await?;
        let page = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > page;
        rows.truncate(page);
        let last = rows.last().filter(|_| more);
        Ok(Listed {
            next: last.map(|row| Position::of(row, listing, window)).transpose()?,
            rows: rows.iter().map(read).collect::<Result<_, _>>()?,
        })
    }

    /// A page of those rows that `keep` keeps, for what SQL cannot judge. It may hold fewer than asked for, with a next
    /// one, where few of many are kept.
    pub(crate) async fn list_kept<T>(
        &self,
        operation: &'static str,
        listing: &Listing,
        conditions: &Conditions<'_>,
        window: &Window,
        read: impl Fn(&Row) -> Result<T, StoreError>,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Listed<T>, StoreError> {
        let page = usize::try_from(window.limit.clamp(1, PAGE_MAX)).unwrap_or(usize::MAX);
        let mut at = window.clone();
        let mut kept: Vec<T> = Vec::new();
        for _ in 0..BATCHES_MAX {
            let sql_window = at.clone();
            let mut conditions = conditions.clone();
            let sql = statement(listing, &mut conditions, &sql_window, &PAGE_MAX);
            let rows = self.read(operation, &sql, &conditions.params).await?;
            for row in &rows {
                let value = read(row)?;
                if !keep(&value) {
                    continue;
                }
                if kept.len() >= page {
                    return Ok(Listed {
                        rows: kept,
                        next: at.after,
                    });
                }
                kept.push(value);
                at.after = Some(Position::of(row, listing, window)?);
            }
            let whole = usize::try_from(PAGE_MAX).is_ok_and(|batch| rows.len() >= batch);
            let Some(last) = rows.last().filter(|_| whole) else {
                return Ok(Listed { rows: kept, next: None });
            };
            at.after = Some(Position::of(last, listing, window)?);
        }
        Ok(Listed {
            rows: kept,
            next: at.after,
        })
    }
}

fn statement<'v>(listing: &Listing, conditions: &mut Conditions<'v>, window: &'v Window, one_more: &'v i64) -> String {
    let (key, id) = (window.sort.key.column, listing.id.column);
    let (direction, beyond) = if window.sort.descending {
        ("desc", '<')
    } else {
        ("asc", '>')
    };
    if let Some(after) = &window.after {
        let (at_key, at_id) = (conditions.bind(after.key.bound()), conditions.bind(after.id.bound()));
        conditions.and(&format!("({key}, {id}) {beyond} ({at_key}, {at_id})"));
    }
    let limit = conditions.bind((one_more, Type::INT8));
    let mut sql = String::from("select ");
    for columns in listing.columns {
        let _infallible = write!(sql, "{columns}, ");
    }
    let (from, whole, text) = (listing.from, listing.whole, &conditions.text);
    let _infallible = write!(
        sql,
        "{key} as list_key, {id} as list_id from {from} where {whole}{text} \
         order by {key} {direction}, {id} {direction} limit {limit}"
    );
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    static THINGS: Listing = Listing {
        name: "things",
        columns: &["t.id", "t.name"],
        from: "things t",
        whole: "t.deleted_at is null",
        id: SortKey::uuid("id", "t.id"),
        sorts: &[SortKey::text("name", "t.name"), SortKey::time("made", "t.made")],
        default_sort: "name",
    };

    #[test]
    fn a_statement_has_every_value_bound_and_numbered_once() {
        let (name, limit) = ("'; drop table things".to_owned(), 3);
        let mut window = THINGS.first(2);
        window.sort = THINGS.sort("-made").unwrap();
        window.after = Some(Position {
            key: Key::Time(DateTime::UNIX_EPOCH),
            id: Key::Uuid(Uuid::nil()),
        });
        let mut conditions = Conditions::default()
            .when(Some(&name), Type::TEXT, "t.name = $? or t.other = $?")
            .when(None::<&String>, Type::TEXT, "t.never = $?")
            .either(Some(false), "t.on", "not t.on");
        let sql = statement(&THINGS, &mut conditions, &window, &limit);
        assert_eq!(
            sql,
            "select t.id, t.name, t.made as list_key, t.id as list_id from things t where t.deleted_at is null \
             and (t.name = $1 or t.other = $1) and (not t.on) and ((t.made, t.id) < ($2, $3)) \
             order by t.made desc, t.id desc limit $4"
        );
        assert_eq!(conditions.params.len(), 4);
    }

    #[test]
    fn an_order_is_named_or_there_is_none() {
        assert_eq!(THINGS.sort("-made").unwrap().text(), "-made");
        for unknown in ["", "-", "--name", "t.name", "name,made", "name desc"] {
            assert!(THINGS.sort(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn a_position_of_another_kind_is_not_of_this_list() {
        let at = |key| Position {
            key,
            id: Key::Uuid(Uuid::nil()),
        };
        let (by_name, by_time) = (THINGS.sort("name").unwrap(), THINGS.sort("made").unwrap());
        assert!(THINGS.holds(&by_name, &at(Key::Text("a".into()))));
        assert!(!THINGS.holds(&by_name, &at(Key::Text("a\0".into()))));
        assert!(!THINGS.holds(&by_time, &at(Key::Text("a".into()))));
        assert!(!THINGS.holds(&by_time, &at(Key::Time(DateTime::<Utc>::MAX_UTC))));
        assert!(THINGS.holds(&by_time, &at(Key::Time(DateTime::UNIX_EPOCH))));
    }
}
