//! Aggregates over the rows that equal something outside: `(select sum(o.x) from o where o.k = c.k)`.
//!
//! The most frequent scalar subquery needs no domain: the aggregates are computed once per key of the inner rows and
//! joined by it. Where no row has the key, counts are 0 and the other aggregates NULL.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::expr::Expr;
use crate::plan::{AggregateFunction, GroupKey, JoinKey, JoinKind, Rel};
use crate::row::{Datum, Row, TypeInfo};

use super::Translator;
use super::attach::Target;
use super::refusal::Step;
use super::semi::Plain;
use super::stage::{LEFT, OUTER, Stage, column_node, rewrite, same};
use super::subquery::{Call, has_subplan};

/// The aggregate calls of an expression that are its only references to rows; `None`: there are others.
fn calls_of(node: &Node) -> Option<Vec<Node>> {
    let (mut calls, mut only) = (Vec::<Node>::new(), true);
    let visited = rewrite(node, &mut |n| {
        match n.tag.as_str() {
            "AGGREF" => {
                if !calls.iter().any(|c| same(c, n)) {
                    calls.push(n.clone());
                }
                return Ok(Some(n.clone()));
            }
            "VAR" | "WINDOWFUNC" | "GROUPINGFUNC" => only = false,
            _ => {}
        }
        Ok(None)
    });
    let mut outer = false;
    node.walk(&mut |n| outer |= n.tag == "VAR" && n.field("varno").as_int() == Some(OUTER));
    (visited.is_ok() && only && !outer && !has_subplan(node)).then_some(calls)
}

impl Translator<'_> {
    /// The value of a scalar subquery of that kind; `None`: it is of another one.
    pub(super) fn keyed_value(&mut self, target: &mut Target, call: &Call) -> Step<Option<Node>> {
        let targets = call.subquery.query.nodes("targetList")?;
        let Some(shown) = targets.into_iter().find(|t| !t.bool("resjunk")) else { return Ok(None) };
        if call.test.is_some() {
            return Ok(None);
        }
        let Some(plain) = self.plain(call, true)? else { return Ok(None) };
        let Plain { frame, rows: (entries, rows), conditions, .. } = plain;
        let left = BTreeSet::from([LEFT]);
        let equalities: Option<Vec<_>> =
            conditions.iter().map(|c| self.equality(&c.node, &left, &entries)).collect();
        let Some(equalities) = equalities.filter(|e| !e.is_empty()) else { return Ok(None) };
        let shown = self.expand(&frame, shown.node("expr")?)?;
        if calls_of(&shown).is_none() {
            return Ok(None);
        }
        let Some((stage, left)) = self.left_keys(target, &equalities)? else { return Ok(None) };
        let shown = rows.place(&shown)?;
        let calls = calls_of(&shown).unwrap_or_default();
        let mut parsed = Vec::with_capacity(calls.len());
        for node in &calls {
            self.check_call(node)?;
            match self.call(node)? {
                Some(call) => parsed.push(call),
                None => return Ok(None),
            }
        }
        let mut needed = Vec::new();
        for e in &equalities {
            needed.push(rows.place(&e.right)?);
        }
        let (rows, positions, aggregates) = self.arguments(rows, &needed, &parsed)?;
        let keys = equalities.len();
        let group: Vec<GroupKey> = positions[..keys]
            .iter()
            .zip(&equalities)
            .map(|(&column, e)| GroupKey { column, form: e.form })
            .collect();
        let mut columns: Vec<TypeInfo> = group.iter().map(|g| rows.columns[g.column].clone()).collect();
        for node in &calls {
            columns.push(self.type_of(node)?);
        }
        let counts: Vec<bool> = aggregates
            .iter()
            .map(|a| matches!(a.function, AggregateFunction::Count | AggregateFunction::CountStar))
            .collect();
        let rel = Rel::Aggregate { input: Box::new(rows.rel), group, aggregates };
        target.stage = stage;
        let on = left.into_iter().zip(&equalities).enumerate();
        let on = on
            .map(|(right, (left, e))| JoinKey { left, right, form: e.form, nulls_match: e.nulls_match })
            .collect();
        let types = columns[keys..].to_vec();
        let start = self.joined(target, JoinKind::Left, &[], Stage::new(rel, columns), on)? + keys;
        // Counts of nothing are 0.
        let width = target.stage.columns.len();
        let zero = || Expr::Literal(Row::from_datums([Datum::Int(0)]));
        let mut exprs: Vec<Expr> = (0..width).map(Expr::Column).collect();
        for (i, _) in counts.iter().enumerate().filter(|(_, count)| **count) {
            exprs[start + i] = Expr::Coalesce(vec![Expr::Column(start + i), zero()]);
        }
        if counts.contains(&true) {
            let input = std::mem::replace(&mut target.stage.rel, Rel::Constant { rows: Vec::new() });
            target.stage.rel = Rel::Project { input: Box::new(input), exprs };
        }
        let value = rewrite(&shown, &mut |n| {
            let call = calls.iter().position(|c| same(c, n));
            Ok(call.map(|i| column_node(start + i, &types[i])))
        })?;
        Ok(Some(value))
    }
}
