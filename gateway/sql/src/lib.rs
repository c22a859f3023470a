//! What a PostgreSQL statement does: its kinds, and the relations, columns, functions, operators and types that it names,
//! read with PostgreSQL's own grammar (that of PostgreSQL 18, by `libpg_query`).
//!
//! Pure, and by the text alone: names are as they are written, not what they mean at a target. What a text cannot show (what
//! a function does, what a view reads, what was prepared under a name) is said as a name to be resolved; what cannot be read
//! at all is said as [`Unclear`], and a rule decides what becomes of it. Nothing that this crate does not know passes for
//! harmless: a part of the grammar that it has no code for is unclear.

mod bounds;
mod expression;
mod query;
mod statement;
mod utility;
mod walk;

pub use bounds::{NESTING_MAX, TEXT_BYTES_MAX, TOKENS_MAX};
pub use statement::{Access, Column, Kind, Name, Relation, Setting, Statement, Unclear};

use pg_query::protobuf::ParseResult;

use crate::walk::Walk;

/// Reads a string of statements, in their order. A text without any is an empty list.
///
/// The text must be UTF-8 and `standard_conforming_strings` be on at the target: with other settings a target reads
/// another text than this.
///
/// # Errors
/// [`Unclear`] for the string as a whole where it is beyond the bounds, or not PostgreSQL's grammar.
pub fn classify(text: &str) -> Result<Vec<Statement>, Unclear> {
    bounds::check(text)?;
    let ParseResult { version: _, stmts } = pg_query::parse(text, 0).map_err(unreadable)?.protobuf;
    Ok(stmts.iter().map(Walk::statement).collect())
}

fn unreadable(error: pg_query::Error) -> Unclear {
    match error {
        pg_query::Error::Parse(message) => Unclear::Grammar(message),
        // A tree deeper than its decoder reads.
        _ => Unclear::TooDeep,
    }
}
