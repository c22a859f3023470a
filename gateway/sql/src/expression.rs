//! Expressions: everything that may hold a column, a function or a query.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExpr, AIndices, CaseExpr, CaseWhen, ColumnRef, FuncCall, IndexElem, JsonAggConstructor, JsonArgument,
    JsonBehavior, JsonFuncExpr, JsonKeyValue, JsonOutput, JsonValueExpr, Node, SubLink, WindowDef, XmlExpr,
};

use crate::statement::Unclear;
use crate::walk::{Walk, name_of, string};

/// Expressions within one another at most. The tree's own decoder stops at 100 nodes; this is the bound that is ours.
const DEPTH_MAX: usize = 150;

impl Walk {
    pub(crate) fn expressions(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.expression(Some(node));
        }
    }

    pub(crate) fn expression(&mut self, node: Option<&Node>) {
        let Some(node) = node.and_then(|node| node.node.as_ref()) else {
            return;
        };
        if self.depth >= DEPTH_MAX {
            self.unclear(Unclear::TooDeep);
            return;
        }
        self.depth += 1;
        self.one(node);
        self.depth -= 1;
    }

    fn one(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::AConst(_)
            | NodeEnum::ParamRef(_)
            | NodeEnum::AStar(_)
            | NodeEnum::String(_)
            | NodeEnum::Integer(_)
            | NodeEnum::Float(_)
            | NodeEnum::Boolean(_)
            | NodeEnum::BitString(_)
            | NodeEnum::SetToDefault(_)
            | NodeEnum::SqlvalueFunction(_)
            | NodeEnum::MergeSupportFunc(_) => {}
            NodeEnum::List(list) => self.expressions(&list.items),
            NodeEnum::ResTarget(target) => {
                self.expressions(&target.indirection);
                self.expression(target.val.as_deref());
            }
            NodeEnum::ColumnRef(column) => self.column_ref(column),
            NodeEnum::AExpr(expression) => self.operator(expression),
            NodeEnum::BoolExpr(expression) => self.expressions(&expression.args),
            NodeEnum::NullTest(test) => self.expression(test.arg.as_deref()),
            NodeEnum::BooleanTest(test) => self.expression(test.arg.as_deref()),
            NodeEnum::FuncCall(call) => self.call(call),
            NodeEnum::NamedArgExpr(argument) => self.expression(argument.arg.as_deref()),
            NodeEnum::SubLink(link) => self.sub_link(link),
            NodeEnum::TypeCast(cast) => {
                self.cast_to(cast.type_name.as_ref());
                self.expression(cast.arg.as_deref());
            }
            NodeEnum::TypeName(name) => self.cast_to(Some(name)),
            NodeEnum::ColumnDef(column) => self.cast_to(column.type_name.as_ref()),
            NodeEnum::CollateClause(collate) => self.expression(collate.arg.as_deref()),
            NodeEnum::SortBy(sort) => {
                self.found.operators.extend(name_of(&sort.use_op));
                self.expression(sort.node.as_deref());
            }
            NodeEnum::WindowDef(window) => self.window(window),
            NodeEnum::IndexElem(element) => self.index_element(element),
            NodeEnum::AIndirection(indirection) => {
                self.expression(indirection.arg.as_deref());
                self.expressions(&indirection.indirection);
            }
            NodeEnum::AIndices(indices) => {
                let AIndices {
                    is_slice: _,
                    lidx,
                    uidx,
                } = &**indices;
                self.expression(lidx.as_deref());
                self.expression(uidx.as_deref());
            }
            NodeEnum::AArrayExpr(array) => self.expressions(&array.elements),
            NodeEnum::RowExpr(row) => self.expressions(&row.args),
            NodeEnum::MultiAssignRef(assigned) => self.expression(assigned.source.as_deref()),
            NodeEnum::CaseExpr(case) => self.case(case),
            NodeEnum::CoalesceExpr(coalesce) => self.expressions(&coalesce.args),
            NodeEnum::MinMaxExpr(extreme) => self.expressions(&extreme.args),
            NodeEnum::GroupingFunc(grouping) => self.expressions(&grouping.args),
            NodeEnum::GroupingSet(set) => self.expressions(&set.content),
            NodeEnum::CurrentOfExpr(current) => {
                self.found.cursors.insert(current.cursor_name.clone());
            }
            NodeEnum::XmlExpr(xml) => self.xml(xml),
            NodeEnum::XmlSerialize(xml) => {
                self.cast_to(xml.type_name.as_ref());
                self.expression(xml.expr.as_deref());
            }
            other => self.json(other),
        }
    }

    fn column_ref(&mut self, column: &ColumnRef) {
        let ColumnRef { fields, location: _ } = column;
        let mut of: Vec<String> = fields.iter().filter_map(string).collect();
        let star = fields
            .last()
            .is_some_and(|last| matches!(last.node, Some(NodeEnum::AStar(_))));
        let name = if star { None } else { of.pop() };
        self.column(of, name);
    }

    fn operator(&mut self, expression: &AExpr) {
        let AExpr {
            kind: _,
            name,
            lexpr,
            rexpr,
            rexpr_list_start: _,
            rexpr_list_end: _,
            location: _,
        } = expression;
        self.found.operators.extend(name_of(name));
        self.expression(lexpr.as_deref());
        self.expression(rexpr.as_deref());
    }

    pub(crate) fn call(&mut self, call: &FuncCall) {
        let FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic: _,
            funcformat: _,
            location: _,
        } = call;
        self.found.functions.extend(name_of(funcname));
        self.expressions(args);
        self.expressions(agg_order);
        self.expression(agg_filter.as_deref());
        if let Some(window) = over.as_deref() {
            self.window(window);
        }
    }

    fn window(&mut self, window: &WindowDef) {
        let WindowDef {
            name: _,
            refname: _,
            partition_clause,
            order_clause,
            frame_options: _,
            start_offset,
            end_offset,
            location: _,
        } = window;
        self.expressions(partition_clause);
        self.expressions(order_clause);
        self.expression(start_offset.as_deref());
        self.expression(end_offset.as_deref());
    }

    fn sub_link(&mut self, link: &SubLink) {
        let SubLink {
            xpr: _,
            sub_link_type: _,
            sub_link_id: _,
            testexpr,
            oper_name,
            subselect,
            location: _,
        } = link;
        self.expression(testexpr.as_deref());
        self.found.operators.extend(name_of(oper_name));
        self.any_statement(subselect.as_deref());
    }

    fn index_element(&mut self, element: &IndexElem) {
        let IndexElem {
            name,
            expr,
            indexcolname: _,
            collation: _,
            opclass: _,
            opclassopts,
            ordering: _,
            nulls_ordering: _,
        } = element;
        if !name.is_empty() {
            self.column(Vec::new(), Some(name.clone()));
        }
        self.expression(expr.as_deref());
        self.expressions(opclassopts);
    }

    fn case(&mut self, case: &CaseExpr) {
        let CaseExpr {
            xpr: _,
            casetype: _,
            casecollid: _,
            arg,
            args,
            defresult,
            location: _,
        } = case;
        self.expression(arg.as_deref());
        for when in args {
            match &when.node {
                Some(NodeEnum::CaseWhen(when)) => {
                    let CaseWhen {
                        xpr: _,
                        expr,
                        result,
                        location: _,
                    } = &**when;
                    self.expression(expr.as_deref());
                    self.expression(result.as_deref());
                }
                Some(other) => self.unknown(other),
                None => {}
            }
        }
        self.expression(defresult.as_deref());
    }

    fn xml(&mut self, xml: &XmlExpr) {
        let XmlExpr {
            xpr: _,
            op: _,
            name: _,
            named_args,
            arg_names: _,
            args,
            xmloption: _,
            indent: _,
            r#type: _,
            typmod: _,
            location: _,
        } = xml;
        self.expressions(named_args);
        self.expressions(args);
    }

    /// SQL/JSON (ISO 9075-2, PostgreSQL 16 to 18).
    fn json(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::JsonFuncExpr(json) => self.json_function(json),
            NodeEnum::JsonArgument(argument) => {
                let JsonArgument { val, name: _ } = &**argument;
                self.json_value(val.as_deref());
            }
            NodeEnum::JsonValueExpr(value) => self.json_value(Some(value)),
            NodeEnum::JsonKeyValue(pair) => self.json_pair(Some(pair)),
            NodeEnum::JsonParseExpr(json) => {
                self.json_value(json.expr.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonScalarExpr(json) => {
                self.expression(json.expr.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonSerializeExpr(json) => {
                self.json_value(json.expr.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonObjectConstructor(json) => {
                self.expressions(&json.exprs);
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonArrayConstructor(json) => {
                self.expressions(&json.exprs);
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonArrayQueryConstructor(json) => {
                self.any_statement(json.query.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonObjectAgg(json) => {
                self.json_aggregate(json.constructor.as_deref());
                self.json_pair(json.arg.as_deref());
            }
            NodeEnum::JsonArrayAgg(json) => {
                self.json_aggregate(json.constructor.as_deref());
                self.json_value(json.arg.as_deref());
            }
            NodeEnum::JsonIsPredicate(json) => self.expression(json.expr.as_deref()),
            other => self.unknown(other),
        }
    }

    fn json_function(&mut self, json: &JsonFuncExpr) {
        let JsonFuncExpr {
            op: _,
            column_name: _,
            context_item,
            pathspec,
            passing,
            output,
            on_empty,
            on_error,
            wrapper: _,
            quotes: _,
            location: _,
        } = json;
        self.json_value(context_item.as_deref());
        self.expression(pathspec.as_deref());
        self.expressions(passing);
        self.json_output(output.as_ref());
        self.json_behavior(on_empty.as_deref());
        self.json_behavior(on_error.as_deref());
    }

    fn json_aggregate(&mut self, aggregate: Option<&JsonAggConstructor>) {
        let Some(JsonAggConstructor {
            output,
            agg_filter,
            agg_order,
            over,
            location: _,
        }) = aggregate
        else {
            return;
        };
        self.json_output(output.as_ref());
        self.expression(agg_filter.as_deref());
        self.expressions(agg_order);
        if let Some(window) = over.as_deref() {
            self.window(window);
        }
    }

    fn json_pair(&mut self, pair: Option<&JsonKeyValue>) {
        if let Some(JsonKeyValue { key, value }) = pair {
            self.expression(key.as_deref());
            self.json_value(value.as_deref());
        }
    }

    pub(crate) fn json_value(&mut self, value: Option<&JsonValueExpr>) {
        if let Some(JsonValueExpr {
            raw_expr,
            formatted_expr,
            format: _,
        }) = value
        {
            self.expression(raw_expr.as_deref());
            self.expression(formatted_expr.as_deref());
        }
    }

    pub(crate) fn json_behavior(&mut self, behavior: Option<&JsonBehavior>) {
        if let Some(behavior) = behavior {
            self.expression(behavior.expr.as_deref());
        }
    }

    fn json_output(&mut self, output: Option<&JsonOutput>) {
        if let Some(JsonOutput {
            type_name,
            returning: _,
        }) = output
        {
            self.cast_to(type_name.as_ref());
        }
    }
}
