//! The words in which a statement is described.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

/// What a statement does. One text may do several things: a `DELETE` within a `WITH`, or behind `EXPLAIN ANALYZE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Select,
    Insert,
    Update,
    Delete,
    Merge,
    /// Into a table, from the client.
    CopyFrom,
    /// To the client.
    CopyTo,
    /// From or to a file of the target's machine.
    CopyFile,
    /// From or to a program of the target's machine.
    CopyProgram,
    Truncate,
    Create,
    Alter,
    Drop,
    /// Comments and security labels.
    Comment,
    /// `GRANT` and `REVOKE`, of roles and default privileges too.
    Grant,
    /// Roles made, changed, dropped; what they own given away.
    Role,
    /// `SET ROLE`, `SET SESSION AUTHORIZATION` and their resets.
    SetRole,
    Set,
    Show,
    Transaction,
    Prepare,
    Execute,
    Deallocate,
    /// Cursors declared, read, moved and closed.
    Cursor,
    /// Without `ANALYZE`: nothing is run.
    Explain,
    /// With `ANALYZE`: the statement is run too.
    ExplainAnalyze,
    Call,
    /// A block of code.
    Do,
    Lock,
    /// `VACUUM`, `ANALYZE`, `REINDEX`, `CLUSTER`, `REFRESH`, `CHECKPOINT`.
    Maintain,
    /// `LISTEN`, `UNLISTEN`, `NOTIFY`.
    Notify,
    Discard,
    /// `ALTER SYSTEM` and `LOAD`.
    System,
}

/// What is done with a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    Read,
    Insert,
    Update,
    Delete,
    Truncate,
    Create,
    Alter,
    Drop,
    Grant,
    Lock,
    Maintain,
    /// A foreign key or a comment refers to it.
    Refer,
}

/// A name as it is written, folded by PostgreSQL's rules and without quotes; its parts are at most 63 bytes each at a target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// What stands before the last dot, database and schema; empty where the target looks it up in its `search_path`.
    pub schema: String,
    pub name: String,
}

impl Name {
    #[must_use]
    pub fn new(schema: &str, name: &str) -> Self {
        Self {
            schema: schema.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.schema.is_empty() {
            write!(f, "{}.", self.schema)?;
        }
        f.write_str(&self.name)
    }
}

/// A relation that a statement names, and what for. The same relation may stand there several times.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    pub name: Name,
    pub access: Access,
    /// The name under which columns speak of it, where it has another.
    pub alias: Option<String>,
    /// Columns that are written, as they are named; empty where none is named, which for an `INSERT` means all.
    pub written: Vec<String>,
}

/// A column that a statement reads, as it is written. `t.f` is also how PostgreSQL lets one write the call `f(t)`: where `t`
/// has no such column, it is a function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column {
    /// What stands before it: an alias or a relation, with its schema.
    pub of: Vec<String>,
    /// `None`: all columns of it (`*`). A single name may also be an alias: the whole row then.
    pub name: Option<String>,
}

/// `SET name TO value`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub name: String,
    /// `None`: reset to its default.
    pub value: Option<String>,
}

/// Why it cannot be said what a statement does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Unclear {
    #[error("{0}")]
    Grammar(String),
    #[error("it is longer than {} bytes", crate::TEXT_BYTES_MAX)]
    TooLong,
    #[error("it has more than {} words and signs", crate::TOKENS_MAX)]
    TooManyTokens,
    #[error("it is nested too deeply")]
    TooDeep,
    #[error("it runs code that is no SQL statement ({0})")]
    Code(&'static str),
    #[error("it has a part ({0}) that rules do not know")]
    Unknown(String),
}

/// What one statement does, by its text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// Where it stands in the string, in bytes: start and end.
    pub span: (usize, usize),
    pub kinds: BTreeSet<Kind>,
    pub relations: BTreeSet<Relation>,
    pub columns: BTreeSet<Column>,
    /// Functions and procedures that are called, or made.
    pub functions: BTreeSet<Name>,
    /// Operators, for each is a function.
    pub operators: BTreeSet<Name>,
    /// Types that values are cast to, for a cast may be a function.
    pub types: BTreeSet<Name>,
    pub settings: BTreeSet<Setting>,
    /// What `EXECUTE` runs, by the name it was prepared under.
    pub prepared: BTreeSet<String>,
    /// Cursors that are read, by name.
    pub cursors: BTreeSet<String>,
    /// An `UPDATE` or `DELETE` of all rows is in it.
    pub without_where: bool,
    /// Why more may be in it than is said here.
    pub unclear: BTreeSet<Unclear>,
}

impl Statement {
    /// Whether it uses a relation of that name so.
    #[must_use]
    pub fn uses(&self, access: Access, schema: &str, name: &str) -> bool {
        self.relations
            .iter()
            .any(|relation| relation.access == access && relation.name.schema == schema && relation.name.name == name)
    }
}
