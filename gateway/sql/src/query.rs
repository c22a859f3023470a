//! `SELECT`, `INSERT`, `UPDATE`, `DELETE`, `MERGE`, and what they are made of. Every field of a tree's node is named here,
//! so that one that a later grammar adds does not compile until it is looked at.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    CommonTableExpr, DeleteStmt, InferClause, InsertStmt, IntoClause, JoinExpr, JsonTable, JsonTableColumn,
    LockingClause, MergeStmt, MergeWhenClause, Node, OnConflictClause, RangeFunction, RangeSubselect, RangeTableFunc,
    RangeTableFuncCol, RangeTableSample, ResTarget, ReturningClause, SelectStmt, UpdateStmt, WithClause,
};

use crate::statement::{Access, Kind};
use crate::walk::{Walk, name_of, parts, string};

/// `CmdType` of PostgreSQL's `nodes.h`, as the tree numbers it.
const CMD_UPDATE: i32 = 3;
const CMD_INSERT: i32 = 4;
const CMD_DELETE: i32 = 5;

impl Walk {
    pub(crate) fn select(&mut self, select: &SelectStmt) {
        self.kind(Kind::Select);
        self.select_body(select);
    }

    fn select_body(&mut self, select: &SelectStmt) {
        let SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct: _,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option: _,
            locking_clause,
            with_clause,
            op: _,
            all: _,
            larg,
            rarg,
        } = select;
        let scoped = self.with(with_clause.as_ref());
        self.into(into_clause.as_deref());
        for list in [
            distinct_clause,
            target_list,
            group_clause,
            window_clause,
            values_lists,
            sort_clause,
        ] {
            self.expressions(list);
        }
        for one in [where_clause, having_clause, limit_offset, limit_count] {
            self.expression(one.as_deref());
        }
        self.from(from_clause);
        for clause in locking_clause {
            self.locking(clause);
        }
        for arm in [larg, rarg].into_iter().flatten() {
            self.select_body(arm);
        }
        self.leave(scoped);
    }

    pub(crate) fn into(&mut self, into: Option<&IntoClause>) {
        let Some(IntoClause {
            rel,
            col_names: _,
            access_method: _,
            options: _,
            on_commit: _,
            table_space_name: _,
            view_query: _,
            skip_data: _,
        }) = into
        else {
            return;
        };
        self.kind(Kind::Create);
        self.relation(rel.as_ref(), Access::Create);
    }

    /// `FOR UPDATE` and its like: the relations that it names are already in the `FROM`.
    fn locking(&mut self, clause: &Node) {
        match &clause.node {
            Some(NodeEnum::LockingClause(clause)) => {
                let LockingClause {
                    locked_rels: _,
                    strength: _,
                    wait_policy: _,
                } = clause;
                self.kind(Kind::Lock);
            }
            Some(other) => self.unknown(other),
            None => {}
        }
    }

    pub(crate) fn insert(&mut self, insert: &InsertStmt) {
        let InsertStmt {
            relation,
            cols,
            select_stmt,
            on_conflict_clause,
            returning_clause,
            with_clause,
            r#override: _,
        } = insert;
        self.kind(Kind::Insert);
        let scoped = self.with(with_clause.as_ref());
        let columns = self.targets(cols);
        self.written_relation(relation.as_ref(), Access::Insert, columns);
        if let Some(NodeEnum::SelectStmt(select)) = select_stmt.as_deref().and_then(|node| node.node.as_ref()) {
            if select.values_lists.is_empty() {
                self.kind(Kind::Select);
            }
            self.select_body(select);
        } else if let Some(other) = select_stmt.as_deref().and_then(|node| node.node.as_ref()) {
            self.unknown(other);
        }
        if let Some(OnConflictClause {
            action: _,
            infer,
            target_list,
            where_clause,
            location: _,
        }) = on_conflict_clause.as_deref()
        {
            if let Some(InferClause {
                index_elems,
                where_clause,
                conname: _,
                location: _,
            }) = infer.as_deref()
            {
                self.expressions(index_elems);
                self.expression(where_clause.as_deref());
            }
            if !target_list.is_empty() {
                self.kind(Kind::Update);
                let columns = self.targets(target_list);
                self.written_relation(relation.as_ref(), Access::Update, columns);
            }
            self.expression(where_clause.as_deref());
        }
        self.returning(returning_clause.as_ref());
        self.leave(scoped);
    }

    pub(crate) fn update(&mut self, update: &UpdateStmt) {
        let UpdateStmt {
            relation,
            target_list,
            where_clause,
            from_clause,
            returning_clause,
            with_clause,
        } = update;
        self.kind(Kind::Update);
        let scoped = self.with(with_clause.as_ref());
        let columns = self.targets(target_list);
        self.written_relation(relation.as_ref(), Access::Update, columns);
        self.restricted(where_clause.as_deref());
        self.from(from_clause);
        self.returning(returning_clause.as_ref());
        self.leave(scoped);
    }

    pub(crate) fn delete(&mut self, delete: &DeleteStmt) {
        let DeleteStmt {
            relation,
            using_clause,
            where_clause,
            returning_clause,
            with_clause,
        } = delete;
        self.kind(Kind::Delete);
        let scoped = self.with(with_clause.as_ref());
        self.relation(relation.as_ref(), Access::Delete);
        self.from(using_clause);
        self.restricted(where_clause.as_deref());
        self.returning(returning_clause.as_ref());
        self.leave(scoped);
    }

    fn restricted(&mut self, condition: Option<&Node>) {
        if !condition.is_some_and(restricts) {
            self.found.without_where = true;
        }
        self.expression(condition);
    }

    pub(crate) fn merge(&mut self, merge: &MergeStmt) {
        let MergeStmt {
            relation,
            source_relation,
            join_condition,
            merge_when_clauses,
            returning_clause,
            with_clause,
        } = merge;
        self.kind(Kind::Merge);
        let scoped = self.with(with_clause.as_ref());
        self.source(source_relation.as_deref());
        self.expression(join_condition.as_deref());
        // Its conditions read the target.
        self.relation(relation.as_ref(), Access::Read);
        for clause in merge_when_clauses {
            let clause = match &clause.node {
                Some(NodeEnum::MergeWhenClause(clause)) => clause,
                Some(other) => {
                    self.unknown(other);
                    continue;
                }
                None => continue,
            };
            let MergeWhenClause {
                match_kind: _,
                command_type,
                r#override: _,
                condition,
                target_list,
                values,
            } = &**clause;
            self.expression(condition.as_deref());
            let columns = self.targets(target_list);
            let access = match *command_type {
                CMD_UPDATE => Some(Access::Update),
                CMD_INSERT => Some(Access::Insert),
                CMD_DELETE => Some(Access::Delete),
                _ => None,
            };
            if let Some(access) = access {
                self.written_relation(relation.as_ref(), access, columns);
            }
            self.expressions(values);
        }
        self.returning(returning_clause.as_ref());
        self.leave(scoped);
    }

    fn returning(&mut self, returning: Option<&ReturningClause>) {
        if let Some(ReturningClause { options: _, exprs }) = returning {
            self.expressions(exprs);
        }
    }

    /// The columns that a list of targets writes; what is written to them is walked.
    fn targets(&mut self, targets: &[Node]) -> Vec<String> {
        let mut names = Vec::new();
        for target in targets {
            match &target.node {
                Some(NodeEnum::ResTarget(target)) => {
                    let ResTarget {
                        name,
                        indirection,
                        val,
                        location: _,
                    } = &**target;
                    if !name.is_empty() {
                        names.push(name.clone());
                    }
                    self.expressions(indirection);
                    self.expression(val.as_deref());
                }
                Some(other) => self.unknown(other),
                None => {}
            }
        }
        names
    }

    /// Walks the common table expressions and opens their scope. Answers whether there is one to leave.
    fn with(&mut self, with: Option<&WithClause>) -> bool {
        let Some(WithClause {
            ctes,
            recursive,
            location: _,
        }) = with
        else {
            return false;
        };
        let mut expressions: Vec<&CommonTableExpr> = Vec::new();
        for node in ctes {
            match &node.node {
                Some(NodeEnum::CommonTableExpr(cte)) => expressions.push(cte),
                Some(other) => self.unknown(other),
                None => {}
            }
        }
        // With RECURSIVE each sees all, itself included; without, those before it.
        let all = || expressions.iter().map(|cte| cte.ctename.clone()).collect();
        self.scopes.push(if *recursive { all() } else { Vec::new() });
        for cte in &expressions {
            let CommonTableExpr {
                ctename,
                aliascolnames: _,
                ctematerialized: _,
                ctequery,
                search_clause: _,
                cycle_clause,
                location: _,
                cterecursive: _,
                cterefcount: _,
                ctecolnames: _,
                ctecoltypes: _,
                ctecoltypmods: _,
                ctecolcollations: _,
            } = cte;
            self.any_statement(ctequery.as_deref());
            if let Some(cycle) = cycle_clause.as_deref() {
                self.expression(cycle.cycle_mark_value.as_deref());
                self.expression(cycle.cycle_mark_default.as_deref());
            }
            if let Some(scope) = self.scopes.last_mut()
                && !recursive
            {
                scope.push(ctename.clone());
            }
        }
        true
    }

    fn leave(&mut self, scoped: bool) {
        if scoped {
            self.scopes.pop();
        }
    }

    fn from(&mut self, items: &[Node]) {
        for item in items {
            self.source(Some(item));
        }
    }

    fn source(&mut self, item: Option<&Node>) {
        let Some(item) = item.and_then(|item| item.node.as_ref()) else {
            return;
        };
        match item {
            NodeEnum::RangeVar(relation) => self.read_relation(relation),
            NodeEnum::RangeSubselect(sub) => {
                let RangeSubselect {
                    lateral: _,
                    subquery,
                    alias: _,
                } = &**sub;
                self.any_statement(subquery.as_deref());
            }
            NodeEnum::JoinExpr(join) => self.join(join),
            NodeEnum::RangeFunction(function) => self.source_function(function),
            NodeEnum::RangeTableSample(sample) => {
                let RangeTableSample {
                    relation,
                    method,
                    args,
                    repeatable,
                    location: _,
                } = &**sample;
                self.source(relation.as_deref());
                self.found.functions.extend(name_of(method));
                self.expressions(args);
                self.expression(repeatable.as_deref());
            }
            NodeEnum::RangeTableFunc(table) => self.xml_table(table),
            NodeEnum::JsonTable(table) => self.json_table(table),
            other => self.unknown(other),
        }
    }

    fn join(&mut self, join: &JoinExpr) {
        let JoinExpr {
            jointype: _,
            is_natural,
            larg,
            rarg,
            using_clause,
            join_using_alias: _,
            quals,
            alias: _,
            rtindex: _,
        } = join;
        self.source(larg.as_deref());
        self.source(rarg.as_deref());
        if *is_natural {
            // Compares whatever columns have the same name.
            self.column(Vec::new(), None);
        }
        for name in parts(using_clause) {
            self.column(Vec::new(), Some(name));
        }
        self.expression(quals.as_deref());
    }

    /// `FROM f(…)`, `ROWS FROM (…)`: each a list of the call and its column definitions.
    fn source_function(&mut self, function: &RangeFunction) {
        let RangeFunction {
            lateral: _,
            ordinality: _,
            is_rowsfrom: _,
            functions,
            alias: _,
            coldeflist,
        } = function;
        self.expressions(functions);
        self.expressions(coldeflist);
    }

    fn xml_table(&mut self, table: &RangeTableFunc) {
        let RangeTableFunc {
            lateral: _,
            docexpr,
            rowexpr,
            namespaces,
            columns,
            alias: _,
            location: _,
        } = table;
        self.expression(docexpr.as_deref());
        self.expression(rowexpr.as_deref());
        self.expressions(namespaces);
        for column in columns {
            match &column.node {
                Some(NodeEnum::RangeTableFuncCol(column)) => {
                    let RangeTableFuncCol {
                        colname: _,
                        type_name,
                        for_ordinality: _,
                        is_not_null: _,
                        colexpr,
                        coldefexpr,
                        location: _,
                    } = &**column;
                    self.cast_to(type_name.as_ref());
                    self.expression(colexpr.as_deref());
                    self.expression(coldefexpr.as_deref());
                }
                Some(other) => self.unknown(other),
                None => {}
            }
        }
    }

    fn json_table(&mut self, table: &JsonTable) {
        let JsonTable {
            context_item,
            pathspec,
            passing,
            columns,
            on_error,
            alias: _,
            lateral: _,
            location: _,
        } = table;
        self.json_value(context_item.as_deref());
        self.expression(pathspec.as_deref().and_then(|path| path.string.as_deref()));
        self.expressions(passing);
        self.json_columns(columns);
        self.json_behavior(on_error.as_deref());
    }

    fn json_columns(&mut self, columns: &[Node]) {
        for column in columns {
            match &column.node {
                Some(NodeEnum::JsonTableColumn(column)) => {
                    let JsonTableColumn {
                        coltype: _,
                        name: _,
                        type_name,
                        pathspec,
                        format: _,
                        wrapper: _,
                        quotes: _,
                        columns,
                        on_empty,
                        on_error,
                        location: _,
                    } = &**column;
                    self.cast_to(type_name.as_ref());
                    self.expression(pathspec.as_deref().and_then(|path| path.string.as_deref()));
                    self.json_columns(columns);
                    self.json_behavior(on_empty.as_deref());
                    self.json_behavior(on_error.as_deref());
                }
                Some(other) => self.unknown(other),
                None => {}
            }
        }
    }
}

/// False where a condition is plainly true: `WHERE true`, `WHERE 1 = 1`. Whoever wants to say "all" otherwise can; this is
/// for those who forgot.
fn restricts(condition: &Node) -> bool {
    match &condition.node {
        Some(NodeEnum::AConst(constant)) => {
            constant.isnull
                || !matches!(&constant.val, Some(pg_query::protobuf::a_const::Val::Boolval(value)) if value.boolval)
        }
        Some(NodeEnum::AExpr(expression)) => {
            let same = expression.lexpr.is_some()
                && is_constant(expression.lexpr.as_deref())
                && without_place(expression.lexpr.as_deref()) == without_place(expression.rexpr.as_deref());
            !(same && expression.name.iter().filter_map(string).eq(["=".to_owned()]))
        }
        _ => true,
    }
}

fn is_constant(node: Option<&Node>) -> bool {
    matches!(node.and_then(|node| node.node.as_ref()), Some(NodeEnum::AConst(_)))
}

fn without_place(node: Option<&Node>) -> Option<pg_query::protobuf::a_const::Val> {
    match node.and_then(|node| node.node.as_ref()) {
        Some(NodeEnum::AConst(constant)) => constant.val.clone(),
        _ => None,
    }
}
