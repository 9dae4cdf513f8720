//! ARRAY(SELECT ...): the rows of the subquery, in its order, as one array; without rows an empty one.

use crate::analyzer::deparse;
use crate::analyzer::facts::Facts;
use crate::analyzer::node::{Node, Value};
use crate::analyzer::volatility;
use crate::plan::expr::Expr;
use crate::plan::{GroupForm, GroupKey, JoinKind, Rel, RemoteExpr};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, TypeInfo};

use super::attach::Target;
use super::collect::Sql;
use super::refusal::{Refusal, Step};
use super::stage::{Stage, column_node};
use super::subquery::Call;
use super::{Translator, types, unknown_form};

/// The query with the columns that it is sorted by among those that it puts out, behind the others.
pub(super) fn with_sort_columns(query: &Node) -> Node {
    let sorted: Vec<i64> = query
        .list("sortClause")
        .iter()
        .filter_map(Value::as_node)
        .filter_map(|c| c.field("tleSortGroupRef").as_int())
        .collect();
    let mut copy = query.clone();
    for (_, value) in copy.fields.iter_mut().filter(|(name, _)| name == "targetList") {
        let Value::List(items) = value else { continue };
        for item in items {
            let Value::Node(target) = item else { continue };
            let read = target.field("ressortgroupref").as_int().is_some_and(|r| sorted.contains(&r));
            for (_, junk) in target.fields.iter_mut().filter(|(name, _)| name == "resjunk" && read) {
                *junk = Value::Bool(false);
            }
        }
    }
    copy
}

/// The type of an array of such values (`get_promoted_array_type`): arrays of arrays have the type of their elements.
pub(super) fn array_type(facts: &Facts, element: &TypeInfo) -> Step<TypeInfo> {
    let odd = || Refusal::new("unsupported.array_subquery", "ARRAY(SELECT ...) of a type without arrays");
    let ty = facts.types.get(&element.oid).ok_or_else(odd)?;
    let oid = match ty.array {
        0 if ty.category == 'A' && ty.length == -1 => ty.oid,
        0 => return Err(odd()),
        array => array,
    };
    Ok(types::info(facts, oid, element.typmod, element.collation))
}

impl Translator<'_> {
    pub(super) fn array_value(&mut self, target: &mut Target, call: &Call) -> Step<Node> {
        let query = &call.subquery.query;
        let targets: Vec<&Node> =
            query.nodes("targetList")?.into_iter().filter(|t| !t.bool("resjunk")).collect();
        let rows = self.answer_for(target, call, &[])?;
        let element = rows.columns.first().cloned().ok_or_else(|| unknown_form("a subquery"))?;
        let ty = array_type(self.facts(), &element)?;
        let (mut used, mut order) = (vec![0], Vec::new());
        let mut builtin_only = true;
        for clause in query.nodes("sortClause")? {
            let reference = clause.field("tleSortGroupRef");
            let column = targets.iter().position(|t| t.field("ressortgroupref") == reference);
            let column = column.ok_or_else(|| unknown_form("ORDER BY refers to no column"))?;
            let place = used.iter().position(|u| *u == column).unwrap_or_else(|| {
                used.push(column);
                used.len() - 1
            });
            let operator = deparse::operator_name(self.facts(), clause.oid("sortop")?)?;
            let nulls = if clause.bool("nulls_first") { "FIRST" } else { "LAST" };
            order.push(format!("x.c{} USING {operator} NULLS {nulls}", place + 1));
            builtin_only &= volatility::builtin_only(clause, self.facts());
        }
        for &column in &used {
            builtin_only &= volatility::builtin_only(&column_node(0, &rows.columns[column]), self.facts());
        }
        // Rows that are equal by the order come in the order of their images.
        order.push("x.o".to_owned());
        let name = deparse::type_name(self.facts(), ty.oid, -1)?;
        let sql =
            format!("COALESCE(pg_catalog.array_agg(x.c1 ORDER BY {}), '{{}}'::{name})", order.join(", "));
        let exprs = vec![RemoteExpr { sql, result: ty.clone(), builtin_only }];
        let keys: Vec<GroupKey> = rows
            .outer_columns()
            .into_iter()
            .map(|column| GroupKey { column, form: KeyForm::by_image(&rows.columns[column]) })
            .collect();
        let count = keys.len();
        let form = if keys.is_empty() { GroupForm::Global } else { GroupForm::Aggregates };
        let sql = Sql { used, exprs, tail: String::new(), originals: None, spread: 1 };
        let arrays = self.group(rows, keys, form, sql)?;
        let order: Vec<usize> = std::iter::once(count).chain(0..count).collect();
        let arrays = super::select::keep(arrays, &order);
        let arrays = Stage { blocks: Vec::new(), ..arrays }.with_outer(1);
        let kind = if call.args.is_empty() { JoinKind::Inner } else { JoinKind::Left };
        let start = self.joined(target, kind, &call.args, arrays, Vec::new())?;
        if kind == JoinKind::Left {
            let empty = Expr::Literal(Row::from_datums([Datum::Text(b"{}")]));
            let mut exprs: Vec<Expr> = (0..target.stage.columns.len()).map(Expr::Column).collect();
            exprs[start] = Expr::Coalesce(vec![Expr::Column(start), empty]);
            let input = std::mem::replace(&mut target.stage.rel, Rel::Constant { rows: Vec::new() });
            target.stage.rel = Rel::Project { input: Box::new(input), exprs };
        }
        Ok(column_node(start, &ty))
    }
}
