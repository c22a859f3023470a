//! One walk over a statement's tree, and what it has found so far.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, RangeVar, RawStmt, TypeName};

use crate::statement::{Access, Column, Kind, Name, Relation, Statement, Unclear};

pub(crate) struct Walk {
    pub(crate) found: Statement,
    /// The names of common table expressions that are seen from here: innermost last.
    pub(crate) scopes: Vec<Vec<String>>,
    /// Within an `EXPLAIN` that runs nothing: relations count, kinds do not.
    pub(crate) explained: bool,
    /// How many expressions this one is within.
    pub(crate) depth: usize,
    /// How many statements this one is within.
    pub(crate) statements: usize,
}

impl Walk {
    pub(crate) fn statement(raw: &RawStmt) -> Statement {
        let RawStmt {
            stmt,
            stmt_location,
            stmt_len,
        } = raw;
        let start = usize::try_from(*stmt_location).unwrap_or(0);
        let mut walk = Self {
            found: Statement::default(),
            scopes: Vec::new(),
            explained: false,
            depth: 0,
            statements: 0,
        };
        // A length of 0 is "to the end".
        walk.found.span = match usize::try_from(*stmt_len) {
            Ok(0) | Err(_) => (start, usize::MAX),
            Ok(length) => (start, start + length),
        };
        walk.any_statement(stmt.as_deref());
        walk.found
    }

    pub(crate) fn kind(&mut self, kind: Kind) {
        if !self.explained {
            self.found.kinds.insert(kind);
        }
    }

    pub(crate) fn unclear(&mut self, why: Unclear) {
        self.found.unclear.insert(why);
    }

    /// A part of the tree that there is no code for.
    pub(crate) fn unknown(&mut self, node: &NodeEnum) {
        self.unclear(Unclear::Unknown(node_name(node)));
    }

    /// A relation by name, whatever common table expressions there are: what is written is never one of them.
    pub(crate) fn relation(&mut self, relation: Option<&RangeVar>, access: Access) {
        self.written_relation(relation, access, Vec::new());
    }

    pub(crate) fn written_relation(&mut self, relation: Option<&RangeVar>, access: Access, written: Vec<String>) {
        let Some(RangeVar {
            catalogname,
            schemaname,
            relname,
            inh: _,
            relpersistence: _,
            alias,
            location: _,
        }) = relation
        else {
            return;
        };
        let schema = if catalogname.is_empty() {
            schemaname.clone()
        } else {
            format!("{catalogname}.{schemaname}")
        };
        self.found.relations.insert(Relation {
            name: Name {
                schema,
                name: relname.clone(),
            },
            access,
            alias: alias.as_ref().map(|alias| alias.aliasname.clone()),
            written,
        });
    }

    /// A relation in a `FROM`: read, unless its name is that of a common table expression.
    pub(crate) fn read_relation(&mut self, relation: &RangeVar) {
        let plain = relation.schemaname.is_empty() && relation.catalogname.is_empty();
        if plain && self.scopes.iter().flatten().any(|name| *name == relation.relname) {
            return;
        }
        self.relation(Some(relation), Access::Read);
    }

    pub(crate) fn column(&mut self, of: Vec<String>, name: Option<String>) {
        self.found.columns.insert(Column { of, name });
    }

    pub(crate) fn cast_to(&mut self, target: Option<&TypeName>) {
        let Some(TypeName {
            names,
            type_oid: _,
            setof: _,
            pct_type: _,
            typmods,
            typemod: _,
            array_bounds: _,
            location: _,
        }) = target
        else {
            return;
        };
        if let Some(name) = name_of(names) {
            self.found.types.insert(name);
        }
        self.expressions(typmods);
    }
}

/// The parts of a dotted name.
pub(crate) fn parts(nodes: &[Node]) -> Vec<String> {
    nodes.iter().filter_map(string).collect()
}

pub(crate) fn string(node: &Node) -> Option<String> {
    match node.node.as_ref()? {
        NodeEnum::String(string) => Some(string.sval.clone()),
        _ => None,
    }
}

/// A dotted name, as its schema and the rest.
pub(crate) fn name_of(nodes: &[Node]) -> Option<Name> {
    let mut parts = parts(nodes);
    let name = parts.pop()?;
    Some(Name {
        schema: parts.join("."),
        name,
    })
}

/// The grammar's name of a node, without what is in it.
pub(crate) fn node_name(node: &NodeEnum) -> String {
    let shown = match serde_json::to_value(node) {
        Ok(serde_json::Value::Object(object)) => object.keys().next().cloned(),
        _ => None,
    };
    shown.unwrap_or_else(|| "unnamed".to_owned())
}
