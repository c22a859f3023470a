//! Statements, and all that are not queries.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    CallStmt, CopyStmt, CreateTableAsStmt, DeclareCursorStmt, DropStmt, ExecuteStmt, ExplainStmt, Node, ObjectType,
    PrepareStmt, VariableSetKind, VariableSetStmt, ViewStmt,
};
use serde_json::Value;

use crate::statement::{Access, Kind, Name, Relation, Setting, Unclear};
use crate::walk::{Walk, name_of, string};

/// Statements within one another at most: sub-queries, common table expressions, `EXPLAIN`.
const STATEMENTS_MAX: usize = 60;

impl Walk {
    pub(crate) fn any_statement(&mut self, node: Option<&Node>) {
        let Some(node) = node.and_then(|node| node.node.as_ref()) else {
            return;
        };
        if self.statements >= STATEMENTS_MAX {
            self.unclear(Unclear::TooDeep);
            return;
        }
        self.statements += 1;
        self.one_statement(node);
        self.statements -= 1;
    }

    fn one_statement(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::InsertStmt(insert) => self.insert(insert),
            NodeEnum::UpdateStmt(update) => self.update(update),
            NodeEnum::DeleteStmt(delete) => self.delete(delete),
            NodeEnum::MergeStmt(merge) => self.merge(merge),
            NodeEnum::CopyStmt(copy) => self.copy(copy),
            NodeEnum::ExplainStmt(explain) => self.explain(explain),
            NodeEnum::PrepareStmt(prepare) => {
                let PrepareStmt {
                    name: _,
                    argtypes: _,
                    query,
                } = &**prepare;
                self.kind(Kind::Prepare);
                self.any_statement(query.as_deref());
            }
            NodeEnum::ExecuteStmt(execute) => {
                let ExecuteStmt { name, params } = execute;
                self.kind(Kind::Execute);
                self.found.prepared.insert(name.clone());
                self.expressions(params);
            }
            NodeEnum::DeclareCursorStmt(declare) => {
                let DeclareCursorStmt {
                    portalname: _,
                    options: _,
                    query,
                } = &**declare;
                self.kind(Kind::Cursor);
                self.any_statement(query.as_deref());
            }
            NodeEnum::FetchStmt(fetch) => {
                self.kind(Kind::Cursor);
                self.found.cursors.insert(fetch.portalname.clone());
            }
            NodeEnum::CreateTableAsStmt(create) => {
                let CreateTableAsStmt {
                    query,
                    into,
                    objtype: _,
                    is_select_into: _,
                    if_not_exists: _,
                } = &**create;
                self.kind(Kind::Create);
                self.into(into.as_deref());
                self.any_statement(query.as_deref());
            }
            NodeEnum::ViewStmt(create) => {
                let ViewStmt {
                    view,
                    aliases: _,
                    query,
                    replace: _,
                    options: _,
                    with_check_option: _,
                } = &**create;
                self.kind(Kind::Create);
                self.relation(view.as_ref(), Access::Create);
                self.any_statement(query.as_deref());
            }
            NodeEnum::VariableSetStmt(set) => self.set(set),
            NodeEnum::CallStmt(call) => {
                let CallStmt {
                    funccall,
                    funcexpr: _,
                    outargs: _,
                } = &**call;
                self.kind(Kind::Call);
                if let Some(call) = funccall.as_deref() {
                    self.call(call);
                }
            }
            NodeEnum::DoStmt(_) => {
                self.kind(Kind::Do);
                self.unclear(Unclear::Code("DO"));
            }
            NodeEnum::DropStmt(drop) => self.drop(drop),
            other => self.definition(other),
        }
    }

    fn copy(&mut self, copy: &CopyStmt) {
        let CopyStmt {
            relation,
            query,
            attlist,
            is_from,
            is_program,
            filename,
            options: _,
            where_clause,
        } = copy;
        let columns: Vec<String> = attlist.iter().filter_map(string).collect();
        match (is_program, filename.is_empty()) {
            (true, _) => self.kind(Kind::CopyProgram),
            (false, false) => self.kind(Kind::CopyFile),
            (false, true) => {}
        }
        if *is_from {
            self.kind(Kind::CopyFrom);
            self.written_relation(relation.as_ref(), Access::Insert, columns);
        } else {
            self.kind(Kind::CopyTo);
            if relation.is_some() && columns.is_empty() {
                self.column(Vec::new(), None);
            }
            for column in columns {
                self.column(Vec::new(), Some(column));
            }
            self.relation(relation.as_ref(), Access::Read);
        }
        self.any_statement(query.as_deref());
        self.expression(where_clause.as_deref());
    }

    fn explain(&mut self, explain: &ExplainStmt) {
        let ExplainStmt { query, options } = explain;
        if options.iter().any(analyzes) {
            self.kind(Kind::ExplainAnalyze);
            self.any_statement(query.as_deref());
            return;
        }
        self.kind(Kind::Explain);
        let before = std::mem::replace(&mut self.explained, true);
        self.any_statement(query.as_deref());
        self.explained = before;
    }

    fn set(&mut self, set: &VariableSetStmt) {
        let VariableSetStmt {
            kind,
            name,
            args,
            jumble_args: _,
            is_local: _,
            location: _,
        } = set;
        let role = matches!(name.as_str(), "role" | "session_authorization");
        self.kind(if role { Kind::SetRole } else { Kind::Set });
        let kind = VariableSetKind::try_from(*kind).unwrap_or(VariableSetKind::Undefined);
        let value = match kind {
            VariableSetKind::VarSetValue | VariableSetKind::VarSetMulti => {
                let values: Vec<String> = args.iter().map(constant).collect();
                Some(values.join(","))
            }
            _ => None,
        };
        // RESET ALL has no name: it resets the role of the login too, which is the one that the target's login gave.
        self.found.settings.insert(Setting {
            name: if name.is_empty() {
                "all".to_owned()
            } else {
                name.clone()
            },
            value,
        });
    }

    fn drop(&mut self, drop: &DropStmt) {
        let DropStmt {
            objects,
            remove_type,
            behavior: _,
            missing_ok: _,
            concurrent: _,
        } = drop;
        self.kind(Kind::Drop);
        let kind = ObjectType::try_from(*remove_type).unwrap_or(ObjectType::Undefined);
        for object in objects {
            let name = match &object.node {
                Some(NodeEnum::List(list)) => name_of(&list.items),
                Some(NodeEnum::ObjectWithArgs(object)) => name_of(&object.objname),
                Some(NodeEnum::TypeName(name)) => name_of(&name.names),
                Some(NodeEnum::String(string)) => Some(Name::new("", &string.sval)),
                _ => None,
            };
            let Some(name) = name else { continue };
            match kind {
                ObjectType::ObjectTable
                | ObjectType::ObjectView
                | ObjectType::ObjectMatview
                | ObjectType::ObjectForeignTable
                | ObjectType::ObjectSequence
                | ObjectType::ObjectIndex => self.used(name, Access::Drop),
                // "trigger on table": the table is the name before.
                ObjectType::ObjectTrigger | ObjectType::ObjectRule | ObjectType::ObjectPolicy => {
                    let (schema, table) = name.schema.rsplit_once('.').unwrap_or(("", &name.schema));
                    self.used(Name::new(schema, table), Access::Alter);
                }
                ObjectType::ObjectFunction | ObjectType::ObjectProcedure | ObjectType::ObjectRoutine => {
                    self.found.functions.insert(name);
                }
                _ => {}
            }
        }
    }

    fn used(&mut self, name: Name, access: Access) {
        self.found.relations.insert(Relation {
            name,
            access,
            alias: None,
            written: Vec::new(),
        });
    }

    /// Statements of which it is enough to know the kind and the relations and functions in them.
    fn definition(&mut self, node: &NodeEnum) {
        let (kind, access) = match node {
            NodeEnum::TransactionStmt(_) | NodeEnum::ConstraintsSetStmt(_) => (Kind::Transaction, Access::Refer),
            NodeEnum::VariableShowStmt(_) => (Kind::Show, Access::Refer),
            NodeEnum::DeallocateStmt(_) => (Kind::Deallocate, Access::Refer),
            NodeEnum::ClosePortalStmt(_) => (Kind::Cursor, Access::Refer),
            NodeEnum::TruncateStmt(_) => (Kind::Truncate, Access::Truncate),
            NodeEnum::LockStmt(_) => (Kind::Lock, Access::Lock),
            NodeEnum::NotifyStmt(_) | NodeEnum::ListenStmt(_) | NodeEnum::UnlistenStmt(_) => {
                (Kind::Notify, Access::Refer)
            }
            NodeEnum::DiscardStmt(_) => (Kind::Discard, Access::Refer),
            NodeEnum::VacuumStmt(_)
            | NodeEnum::ClusterStmt(_)
            | NodeEnum::ReindexStmt(_)
            | NodeEnum::RefreshMatViewStmt(_)
            | NodeEnum::CheckPointStmt(_) => (Kind::Maintain, Access::Maintain),
            NodeEnum::AlterSystemStmt(_) | NodeEnum::LoadStmt(_) => (Kind::System, Access::Alter),
            NodeEnum::CommentStmt(_) | NodeEnum::SecLabelStmt(_) => (Kind::Comment, Access::Refer),
            NodeEnum::GrantStmt(_) | NodeEnum::GrantRoleStmt(_) | NodeEnum::AlterDefaultPrivilegesStmt(_) => {
                (Kind::Grant, Access::Grant)
            }
            NodeEnum::CreateRoleStmt(_)
            | NodeEnum::AlterRoleStmt(_)
            | NodeEnum::AlterRoleSetStmt(_)
            | NodeEnum::DropRoleStmt(_)
            | NodeEnum::ReassignOwnedStmt(_)
            | NodeEnum::DropOwnedStmt(_) => (Kind::Role, Access::Alter),
            NodeEnum::RuleStmt(_) => {
                // What it does is done when others run something else.
                self.unclear(Unclear::Code("CREATE RULE"));
                (Kind::Create, Access::Alter)
            }
            NodeEnum::CreateTrigStmt(_) | NodeEnum::CreatePolicyStmt(_) | NodeEnum::IndexStmt(_) => {
                (Kind::Create, Access::Alter)
            }
            _ => {
                let name = crate::walk::node_name(node);
                match definition_kind(&name) {
                    Some(found) => found,
                    None => {
                        self.unknown(node);
                        return;
                    }
                }
            }
        };
        self.kind(kind);
        match serde_json::to_value(node) {
            Ok(tree) => self.gather(&tree, access, 0),
            Err(_) => self.unknown(node),
        }
    }

    /// All relations and function calls of a tree, whatever it is.
    fn gather(&mut self, tree: &Value, access: Access, depth: usize) {
        if depth > GATHER_DEPTH_MAX {
            self.unclear(Unclear::TooDeep);
            return;
        }
        match tree {
            Value::Array(items) => {
                for item in items {
                    self.gather(item, access, depth + 1);
                }
            }
            Value::Object(object) => {
                let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
                if let Some(relation) = object.get("relname").and_then(Value::as_str)
                    && object.contains_key("schemaname")
                {
                    let schema = match text("catalogname") {
                        "" => text("schemaname").to_owned(),
                        database => format!("{database}.{}", text("schemaname")),
                    };
                    self.used(
                        Name {
                            schema,
                            name: relation.to_owned(),
                        },
                        access,
                    );
                }
                if let Some(Value::Array(parts)) = object.get("funcname") {
                    let mut parts: Vec<&str> = parts.iter().filter_map(text_of).collect();
                    if let Some(name) = parts.pop() {
                        self.found.functions.insert(Name::new(&parts.join("."), name));
                    }
                }
                for (key, value) in object {
                    let within = match key.as_str() {
                        "SelectStmt" => Access::Read,
                        // A foreign key's table, a table that is inherited or copied from.
                        "pktable" | "inh_relations" | "TableLikeClause" => Access::Refer,
                        _ => access,
                    };
                    self.gather(value, within, depth + 1);
                }
            }
            _ => {}
        }
    }
}

/// Of a tree as it is gathered: three for a node.
const GATHER_DEPTH_MAX: usize = 400;

/// Whether this option of an `EXPLAIN` runs the statement, for all that can be read of it.
fn analyzes(option: &Node) -> bool {
    let Some(NodeEnum::DefElem(option)) = &option.node else {
        return false;
    };
    if !option.defname.eq_ignore_ascii_case("analyze") {
        return false;
    }
    let off = option.arg.as_deref().is_some_and(|value| {
        let value = constant(value).to_ascii_lowercase();
        matches!(value.as_str(), "false" | "off" | "0")
    });
    !off
}

/// A constant as text; empty for what is none.
fn constant(node: &Node) -> String {
    use pg_query::protobuf::a_const::Val;
    match &node.node {
        Some(NodeEnum::AConst(constant)) => match &constant.val {
            Some(Val::Sval(text)) => text.sval.clone(),
            Some(Val::Ival(number)) => number.ival.to_string(),
            Some(Val::Fval(number)) => number.fval.clone(),
            Some(Val::Boolval(value)) => value.boolval.to_string(),
            Some(Val::Bsval(_)) | None => String::new(),
        },
        Some(NodeEnum::String(text)) => text.sval.clone(),
        Some(NodeEnum::Integer(number)) => number.ival.to_string(),
        Some(NodeEnum::Float(number)) => number.fval.clone(),
        Some(NodeEnum::Boolean(value)) => value.boolval.to_string(),
        Some(NodeEnum::TypeCast(cast)) => cast.arg.as_deref().map(constant).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The kind of a statement that defines something, by the grammar's name of it.
fn definition_kind(name: &str) -> Option<(Kind, Access)> {
    const CREATE: [&str; 5] = [
        "DefineStmt",
        "CompositeTypeStmt",
        "ImportForeignSchemaStmt",
        "CreatedbStmt",
        "Create",
    ];
    const ALTER: [&str; 3] = ["Alter", "RenameStmt", "ReplicaIdentityStmt"];
    const DROP: [&str; 1] = ["Drop"];
    let begins = |with: &[&str]| with.iter().any(|with| name.starts_with(with));
    if !name.ends_with("Stmt") {
        None
    } else if begins(&CREATE) {
        Some((Kind::Create, Access::Create))
    } else if begins(&ALTER) {
        Some((Kind::Alter, Access::Alter))
    } else if begins(&DROP) {
        Some((Kind::Drop, Access::Drop))
    } else {
        None
    }
}

fn text_of(node: &Value) -> Option<&str> {
    node.get("node")?.get("String")?.get("sval")?.as_str()
}
