//! Reading the writers' log: the administrative record, and what the writers note themselves. It is written by
//! `hoop-evidence` alone.

use std::fmt::Write as _;

use chrono::DateTime;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::change::get;
use crate::list::{Key, Listed, Listing, Position, SortKey};
use crate::{Store, StoreError};

/// Most records read at once.
pub const LOG_PAGE_MAX: i64 = 500;
/// Longest person or subject that is found (`writer_log_member` in schema.sql keeps as much).
pub const LOG_MEMBER_MAX_CHARS: usize = 200;

/// The record as a list, for what a query may say; `list_log` reads it.
pub static LOG: Listing = Listing {
    name: "audit",
    columns: &[],
    from: "writer_log",
    whole: "true",
    id: SortKey::text("place", "writer::text || '_' || seq"),
    sorts: &[SortKey::time("at", "at_us")],
    default_sort: "-at",
};

/// A record as it is stored and hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub writer: Uuid,
    pub seq: i64,
    pub at_us: i64,
    pub kind: String,
    pub payload: String,
    pub prev_hash: Vec<u8>,
    pub hash: Vec<u8>,
}

/// Which kinds of records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kinds {
    /// What people have changed: kinds with a dot.
    #[default]
    Administrative,
    One(String),
    /// Those that begin so; with an empty text all.
    Beginning(String),
}

/// Which records. Times in microseconds since 1970.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    pub kinds: Kinds,
    /// Who did it, by user name.
    pub person: Option<String>,
    pub subject: Option<String>,
    pub from_us: Option<i64>,
    /// Before this moment.
    pub to_us: Option<i64>,
    pub writer: Option<Uuid>,
}

/// Where a record stands in the list by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    pub at_us: i64,
    pub writer: Uuid,
    pub seq: i64,
}

impl LogPlace {
    /// `None` where it is none of this list.
    #[must_use]
    pub fn from_position(position: &Position) -> Option<Self> {
        let (Key::Time(at), Key::Text(id)) = (&position.key, &position.id) else {
            return None;
        };
        let (writer, seq) = id.split_once('_')?;
        Some(Self {
            at_us: at.timestamp_micros(),
            writer: writer.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }

    fn position(self) -> Position {
        Position {
            key: Key::Time(DateTime::from_timestamp_micros(self.at_us).unwrap_or_default()),
            id: Key::Text(format!("{}_{}", self.writer, self.seq)),
        }
    }
}

impl LogRecord {
    #[must_use]
    pub const fn place(&self) -> LogPlace {
        LogPlace {
            at_us: self.at_us,
            writer: self.writer,
            seq: self.seq,
        }
    }

    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            writer: get(row, "writer")?,
            seq: get(row, "seq")?,
            at_us: get(row, "at_us")?,
            kind: get(row, "kind")?,
            payload: get(row, "payload")?,
            prev_hash: get(row, "prev_hash")?,
            hash: get(row, "hash")?,
        })
    }
}

/// A statement that grows by conditions. What is not asked for is not in it, so that the partial indices fit.
struct Query<'a> {
    sql: String,
    params: Vec<(&'a (dyn ToSql + Sync), Type)>,
}

impl<'a> Query<'a> {
    fn new() -> Self {
        Self {
            sql: "select writer, seq, at_us, kind, payload, prev_hash, hash from writer_log where true".into(),
            params: Vec::new(),
        }
    }

    /// `$` in `condition` is the parameter.
    fn and(&mut self, condition: &str, value: &'a (dyn ToSql + Sync), kind: Type) {
        self.params.push((value, kind));
        let place = format!("${}", self.params.len());
        let _infallible = write!(self.sql, " and {}", condition.replace('$', &place));
    }

    fn filtered(filter: &'a LogFilter) -> Self {
        let mut query = Self::new();
        match &filter.kinds {
            Kinds::Administrative => query.sql.push_str(" and strpos(kind, '.') > 0"),
            Kinds::One(kind) => {
                query.and("kind collate \"C\" = $", kind, Type::TEXT);
                if kind.contains('.') {
                    query.sql.push_str(" and strpos(kind, '.') > 0");
                }
            }
            Kinds::Beginning(start) if start.is_empty() => {}
            Kinds::Beginning(start) => {
                // kinds are ASCII, of which ~ is beyond what they are written with
                query.and(
                    "kind collate \"C\" >= $ and kind collate \"C\" < $ || '~'",
                    start,
                    Type::TEXT,
                );
                if start.contains('.') {
                    query.sql.push_str(" and strpos(kind, '.') > 0");
                }
            }
        }
        for (member, value) in [("{by,user}", &filter.person), ("{subject}", &filter.subject)] {
            if let Some(value) = value {
                query.and(
                    &format!("writer_log_member(payload, '{member}') = $"),
                    value,
                    Type::TEXT,
                );
            }
        }
        if let Some(from) = &filter.from_us {
            query.and("at_us >= $", from, Type::INT8);
        }
        if let Some(to) = &filter.to_us {
            query.and("at_us < $", to, Type::INT8);
        }
        if let Some(writer) = &filter.writer {
            query.and("writer = $", writer, Type::UUID);
        }
        query
    }

    async fn read(self, store: &Store) -> Result<Vec<LogRecord>, StoreError> {
        let rows = store.read("reading the audit log", &self.sql, &self.params).await?;
        rows.iter().map(LogRecord::from_row).collect()
    }
}

impl Store {
    /// Records by time, after `after` in the wanted order; at most `limit` (capped at `LOG_PAGE_MAX`) and one more,
    /// which tells that there is a next page.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_log(
        &self,
        filter: &LogFilter,
        oldest_first: bool,
        after: Option<LogPlace>,
        limit: i64,
    ) -> Result<Listed<LogRecord>, StoreError> {
        let most = limit.clamp(1, LOG_PAGE_MAX);
        let limit = most.saturating_add(1);
        let mut query = Query::filtered(filter);
        if let Some(place) = &after {
            let n = query.params.len();
            let compare = if oldest_first { '>' } else { '<' };
            query.params.push((&place.at_us, Type::INT8));
            query.params.push((&place.writer, Type::UUID));
            query.params.push((&place.seq, Type::INT8));
            let _infallible = write!(
                query.sql,
                " and (at_us, writer, seq) {compare} (${}, ${}, ${})",
                n + 1,
                n + 2,
                n + 3
            );
        }
        query.sql.push_str(if oldest_first {
            " order by at_us, writer, seq"
        } else {
            " order by at_us desc, writer desc, seq desc"
        });
        query.params.push((&limit, Type::INT8));
        let _infallible = write!(query.sql, " limit ${}", query.params.len());
        let mut rows = query.read(self).await?;
        let more = i64::try_from(rows.len()).is_ok_and(|found| found > most);
        rows.truncate(usize::try_from(most).unwrap_or_default());
        let next = rows.last().filter(|_| more).map(|last| last.place().position());
        Ok(Listed { rows, next })
    }

    /// Records as the chains have them, by writer and number, after `after`; at most `LOG_PAGE_MAX`.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn export_log(
        &self,
        filter: &LogFilter,
        after: Option<(Uuid, i64)>,
    ) -> Result<Vec<LogRecord>, StoreError> {
        let mut query = Query::filtered(filter);
        if let Some((writer, seq)) = &after {
            let n = query.params.len();
            query.params.push((writer, Type::UUID));
            query.params.push((seq, Type::INT8));
            let _infallible = write!(query.sql, " and (writer, seq) > (${}, ${})", n + 1, n + 2);
        }
        query.params.push((&LOG_PAGE_MAX, Type::INT8));
        let _infallible = write!(query.sql, " order by writer, seq limit ${}", query.params.len());
        query.read(self).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    async fn add(store: &Store, writer: Uuid, seq: i64, at_us: i64, kind: &str, payload: &str) {
        let sql = "insert into writer_log (writer, seq, at_us, kind, payload, prev_hash, hash) \
                   values ($1, $2, $3, $4, $5, '\\x00', '\\x01')";
        let params: &[(&(dyn ToSql + Sync), Type)] = &[
            (&writer, Type::UUID),
            (&seq, Type::INT8),
            (&at_us, Type::INT8),
            (&kind, Type::TEXT),
            (&payload, Type::TEXT),
        ];
        store.read("adding", sql, params).await.unwrap();
    }

    fn seqs(records: &[LogRecord]) -> Vec<(i64, i64)> {
        records.iter().map(|r| (r.at_us, r.seq)).collect()
    }

    #[tokio::test]
    async fn records_are_found_by_each_filter_in_both_orders() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
        let by = |user: &str, subject: &str| json!({"by": {"user": user}, "subject": subject}).to_string();
        add(&store, one, 1, 10, "writer_started", "{}").await;
        add(&store, one, 2, 20, "user.create", &by("root", "ada")).await;
        add(&store, two, 1, 20, "rule.create", &by("eve", "sre")).await;
        add(&store, one, 3, 30, "user.update", &by("eve", "ada")).await;
        let all = LogFilter::default();
        let list = async |filter: &LogFilter, oldest| store.list_log(filter, oldest, None, 50).await.unwrap().rows;
        assert_eq!(seqs(&list(&all, true).await), [(20, 2), (20, 1), (30, 3)]);
        assert_eq!(seqs(&list(&all, false).await), [(30, 3), (20, 1), (20, 2)]);
        let check = async |filter: LogFilter, expected: &[i64]| {
            let found: Vec<i64> = list(&filter, true).await.iter().map(|r| r.seq).collect();
            assert_eq!(found, expected, "{filter:?}");
        };
        let kinds = |kinds| LogFilter {
            kinds,
            ..LogFilter::default()
        };
        check(kinds(Kinds::One("user.update".into())), &[3]).await;
        check(kinds(Kinds::One("writer_started".into())), &[1]).await;
        check(kinds(Kinds::Beginning("user.".into())), &[2, 3]).await;
        check(kinds(Kinds::Beginning(String::new())), &[1, 2, 1, 3]).await;
        let filter = LogFilter {
            person: Some("eve".into()),
            ..LogFilter::default()
        };
        check(filter.clone(), &[1, 3]).await;
        let filter = LogFilter {
            subject: Some("ada".into()),
            ..filter
        };
        check(filter, &[3]).await;
        let filter = LogFilter {
            from_us: Some(20),
            to_us: Some(30),
            writer: Some(one),
            ..LogFilter::default()
        };
        check(filter, &[2]).await;
    }

    #[tokio::test]
    async fn pages_and_the_export_hold_every_record_once() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let writers = [Uuid::now_v7(), Uuid::now_v7()];
        for seq in 1..=6 {
            for writer in writers {
                add(&store, writer, seq, seq / 2, "rule.update", "{}").await;
            }
        }
        let filter = LogFilter::default();
        for oldest_first in [true, false] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = store.list_log(&filter, oldest_first, after, 5).await.unwrap();
                assert!(page.rows.len() <= 5);
                after = page.rows.last().map(LogRecord::place);
                seen.extend(page.rows.iter().map(|r| (r.writer, r.seq)));
                assert_eq!(page.next, after.map(|last| last.position()).filter(|_| seen.len() < 12));
                if page.next.is_none() {
                    break;
                }
            }
            assert_eq!(seen.len(), 12);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 12, "oldest first: {oldest_first}");
        }
        let exported = store.export_log(&filter, Some((writers[0], 4))).await.unwrap();
        let exported: Vec<_> = exported.iter().map(|r| (r.writer, r.seq)).collect();
        let rest = (5..=6).map(|seq| (writers[0], seq));
        assert_eq!(
            exported,
            rest.chain((1..=6).map(|seq| (writers[1], seq))).collect::<Vec<_>>()
        );
    }

    /// The audit writer must be able to commit whatever it is given.
    #[tokio::test]
    async fn no_payload_keeps_a_record_from_being_written() {
        let Some(store) = crate::testing::try_store().await else {
            return;
        };
        let long = json!({"subject": "ä".repeat(100_000), "by": {"user": "x".repeat(100_000)}}).to_string();
        let payloads = [
            json!({"subject": "a\0b"}).to_string(),
            long,
            "no JSON".into(),
            "[".repeat(100_000),
        ];
        let writer = Uuid::now_v7();
        for (seq, payload) in (1..).zip(&payloads) {
            add(&store, writer, seq, seq, "login.failed", payload).await;
        }
        let all = store
            .list_log(&LogFilter::default(), true, None, 50)
            .await
            .unwrap()
            .rows;
        assert_eq!(all.len(), payloads.len());
        let filter = LogFilter {
            subject: Some("ä".repeat(LOG_MEMBER_MAX_CHARS)),
            ..LogFilter::default()
        };
        assert_eq!(store.list_log(&filter, true, None, 50).await.unwrap().rows.len(), 1);
    }
}
