//! Which connections a person's rules speak of at all, so that a list of them need not ask about every one.

use std::collections::BTreeSet;

use crate::decide::{RuleSet, Subject};
use crate::rule::Role;

/// Whatever a person may use, in any way and at any time, is within it: it has one of the names, begins with one of the
/// beginnings, has one of the tags, or is open to members. Not all that is within it may be used: ask
/// [`RuleSet::decide`] about each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    pub names: BTreeSet<String>,
    /// What names begin with; an empty one is every name's.
    pub beginnings: BTreeSet<String>,
    pub tags: BTreeSet<String>,
    /// Connections that are open to members, too.
    pub open_to_members: bool,
}

impl Reach {
    /// True where every connection is within it.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.beginnings.contains("")
    }
}

impl RuleSet {
    /// Nothing for an auditor and for who is not active.
    #[must_use]
    pub fn reach(&self, subject: &Subject<'_>) -> Reach {
        let mut reach = Reach::default();
        if !subject.active || subject.role == Role::Auditor {
            return reach;
        }
        reach.open_to_members = subject.role == Role::Member;
        for rule in self.of_person(subject) {
            for name in &rule.spec.connections {
                match name.strip_suffix('*') {
                    Some(beginning) => reach.beginnings.insert(beginning.to_owned()),
                    None => reach.names.insert(name.clone()),
                };
            }
            reach.tags.extend(rule.spec.tags.iter().cloned());
        }
        reach
    }
}
