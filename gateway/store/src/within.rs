//! A list of connections, narrowed to those that a person's rules speak of.

use std::collections::BTreeSet;

use hoop_access::Reach;
use tokio_postgres::types::{ToSql, Type};

use crate::list::Conditions;

/// Connections within a reach, by id: each way there has an index.
const WITHIN: &str = "c.id = any (array(select id from connections where deleted_at is null and name = any($?) \
     union all select x.id from unnest($?) beginning join connections x on x.deleted_at is null \
     and x.name collate \"C\" >= beginning and x.name collate \"C\" < beginning || '~' \
     union all select id from connections where settings -> 'tags' ?| $? \
     union all select id from connections where $? and deleted_at is null and settings ->> 'allow_members' = 'true'))";

/// A reach as it is bound. Names are labels, in which nothing comes after `~`.
pub(crate) struct Within {
    names: Vec<String>,
    beginnings: Vec<String>,
    tags: Vec<String>,
    open_to_members: bool,
}

impl Within {
    pub(crate) fn new(reach: &Reach) -> Self {
        let list = |entries: &BTreeSet<String>| entries.iter().cloned().collect();
        Self {
            names: list(&reach.names),
            beginnings: list(&reach.beginnings),
            tags: list(&reach.tags),
            open_to_members: reach.open_to_members,
        }
    }

    pub(crate) fn narrow<'v>(&'v self, conditions: Conditions<'v>) -> Conditions<'v> {
        let values: &[(&'v (dyn ToSql + Sync), Type)] = &[
            (&self.names, Type::TEXT_ARRAY),
            (&self.beginnings, Type::TEXT_ARRAY),
            (&self.tags, Type::TEXT_ARRAY),
            (&self.open_to_members, Type::BOOL),
        ];
        conditions.with(values, WITHIN)
    }
}
