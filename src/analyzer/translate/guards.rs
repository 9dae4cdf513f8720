//! When the server looks at a part of an expression: conditions under which alone a subquery or a key is computed.
//!
//! Invariant: what is computed for a row is at most what the server would compute for it; where it would not look, an error
//! could be met that it never meets.

use crate::analyzer::node::{Node, Value};
use crate::plan::Rel;
use crate::plan::expr::{BooleanTest, Expr};
use crate::row::{Datum, Row};

use super::attach::Target;
use super::join::Equality;
use super::refusal::Step;
use super::stage::Stage;
use super::subquery::{Kind, has_subplan};
use super::{Translator, native};

/// When the server looks at an argument that comes after another one.
#[derive(Clone, Copy)]
pub(super) enum Looked {
    IfTrue,
    UnlessTrue,
    UnlessFalse,
    IfNull,
}

fn node(tag: &str, fields: Vec<(&str, Value)>) -> Node {
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Node { tag: tag.to_owned(), fields }
}

/// A test of `arg` that is never NULL.
pub(super) fn guard(arg: &Node, looked: Looked) -> Node {
    let (tag, field, number) = match looked {
        Looked::IfTrue => ("BOOLEANTEST", "booltesttype", 0),
        Looked::UnlessTrue => ("BOOLEANTEST", "booltesttype", 1),
        Looked::UnlessFalse => ("BOOLEANTEST", "booltesttype", 3),
        Looked::IfNull => ("NULLTEST", "nulltesttype", 0),
    };
    let mut fields = vec![("arg", Value::Node(Box::new(arg.clone()))), (field, Value::Int(number))];
    if tag == "NULLTEST" {
        fields.push(("argisrow", Value::Bool(false)));
    }
    fields.push(("location", Value::Int(-1)));
    node(tag, fields)
}

/// Whether a test can be a guard. Not one with a subquery of its own, whose value is not there yet, and not one about a
/// subquery's row, which is nowhere else.
pub(super) fn can_guard(arg: &Node) -> bool {
    let mut can = true;
    arg.walk(&mut |n| can &= !matches!(n.tag.as_str(), "SUBPLAN" | "PARAM" | "CASETESTEXPR"));
    can
}

/// AND of the conditions, computed from left to right until one is false. `None`: there are none.
pub(super) fn all(conditions: &[Node]) -> Option<Node> {
    match conditions {
        [] => None,
        [one] => Some(one.clone()),
        _ => {
            let args = conditions.iter().map(|n| Value::Node(Box::new(n.clone()))).collect();
            let boolop = Value::Token("and".to_owned());
            Some(node(
                "BOOLEXPR",
                vec![("boolop", boolop), ("args", Value::List(args)), ("location", Value::Int(-1))],
            ))
        }
    }
}

/// A condition with a subquery, looked at only where the others are true.
pub(super) fn behind(others: &[Node], condition: &Node) -> Node {
    if others.is_empty() || !has_subplan(condition) {
        return condition.clone();
    }
    let mut tests: Vec<Node> = others.iter().map(|n| guard(n, Looked::IfTrue)).collect();
    tests.push(condition.clone());
    all(&tests).unwrap_or_else(|| condition.clone())
}

/// The condition of a branch of `CASE arg WHEN ...` as one that stands alone.
pub(super) fn of_case(condition: &Node, arg: &Node) -> Option<Node> {
    let mut tests = 0;
    let alone = super::stage::rewrite(condition, &mut |n| {
        let test = n.tag == "CASETESTEXPR";
        tests += usize::from(test);
        Ok(test.then(|| arg.clone()))
    });
    alone.ok().filter(|_| tests == 1)
}

/// Rows for which all conditions are true. They are looked at in order, as long as each is true: AND alone would look at one
/// that can fail after a NULL.
pub(super) fn filtered(input: Rel, mut conditions: Vec<Expr>) -> Rel {
    if let Some(last) = conditions.iter().rposition(|c| !c.is_infallible()) {
        let before = conditions.drain(..last).map(if_true).collect::<Vec<_>>();
        conditions.splice(..0, before);
    }
    let predicate = match conditions.len() {
        0 => return input,
        1 => conditions.remove(0),
        _ => Expr::And(conditions),
    };
    Rel::Filter { input: Box::new(input), predicate }
}

fn if_true(condition: Expr) -> Expr {
    match condition {
        tested @ (Expr::BooleanTest { .. } | Expr::IsNull(_) | Expr::IsNotNull(_)) => tested,
        other => Expr::BooleanTest { arg: Box::new(other), test: BooleanTest::IsTrue },
    }
}

impl Translator<'_> {
    fn is_infallible(&self, node: &Node) -> bool {
        native::compile(self.facts(), node).is_some_and(|e| e.is_infallible())
    }

    /// Whether the server computes the condition after those without subqueries: each row (or each pair) costs it a run of
    /// one. What a subquery without references gives is computed once, and then costs nothing.
    pub(super) fn is_late(&self, condition: &Node) -> Step<bool> {
        let mut late = Ok(false);
        condition.walk(&mut |n| {
            if n.tag == "SUBPLAN" && matches!(late, Ok(false)) {
                late = self
                    .call_of(n)
                    .map(|call| !call.args.is_empty() || matches!(call.subquery.kind, Kind::Any | Kind::All));
            }
        });
        late
    }

    /// Conditions that can fail, one after the other in the order given; neighbours that PostgreSQL computes are one to it.
    pub(super) fn one_by_one(&mut self, mut stage: Stage, conditions: &[Node]) -> Step<Stage> {
        let mut left = conditions;
        while let Some(first) = left.first() {
            let by_server = |n: &Node| !has_subplan(n) && native::compile(self.facts(), n).is_none();
            let remote = by_server(first);
            let count = left.iter().take_while(|n| by_server(n) == remote).count();
            let (run, rest) = left.split_at(count);
            let exprs;
            (stage, exprs) = match (remote, run.len()) {
                (true, 2..) => {
                    let tests: Vec<Node> = run.iter().map(|n| guard(n, Looked::IfTrue)).collect();
                    let all: Vec<Node> = all(&tests).into_iter().collect();
                    self.compute(stage, &all)?
                }
                _ => self.compute(stage, run)?,
            };
            stage.rel = filtered(stage.rel, exprs);
            left = rest;
        }
        Ok(stage)
    }

    /// Columns for the left sides of equalities (with whether NULLs match), NULL where nobody looks: an error in a key is an
    /// error of the row. `None`: some would have to be computed for all rows.
    fn keys_under(
        &mut self,
        stage: Stage,
        guards: &[Node],
        keys: &[(Node, bool)],
    ) -> Step<Option<(Stage, Vec<usize>)>> {
        let nodes: Vec<Node> = keys.iter().map(|k| k.0.clone()).collect();
        let fallible: Vec<bool> = nodes.iter().map(|n| !self.is_infallible(n)).collect();
        let Some(guard) = all(guards).filter(|_| fallible.contains(&true)) else {
            return self.columns_for(stage, &nodes).map(Some);
        };
        let impossible = |((node, nulls_match), fallible): (&(Node, bool), &bool)| {
            *fallible && (*nulls_match || native::compile(self.facts(), node).is_none())
        };
        if keys.iter().zip(&fallible).any(impossible) {
            return Ok(None);
        }
        let wanted: Vec<Node> = nodes.iter().cloned().chain([guard]).collect();
        let (mut stage, mut exprs) = self.compute(stage, &wanted)?;
        let Some(guard) = exprs.pop() else { return Ok(None) };
        let mut projection: Vec<Expr> = (0..stage.columns.len()).map(Expr::Column).collect();
        let mut columns = Vec::with_capacity(exprs.len());
        for ((expr, node), fallible) in exprs.into_iter().zip(&nodes).zip(fallible) {
            let expr = match (fallible, expr) {
                (_, Expr::Column(column)) => {
                    columns.push(column);
                    continue;
                }
                (false, expr) => expr,
                (true, expr) => {
                    let nothing = Box::new(Expr::Literal(Row::from_datums([Datum::Null])));
                    Expr::Case { branches: vec![(guard.clone(), expr)], otherwise: nothing }
                }
            };
            columns.push(projection.len());
            projection.push(expr);
            stage.columns.push(self.type_of(node)?);
        }
        stage.rel = Rel::Project { input: Box::new(stage.rel), exprs: projection };
        Ok(Some((stage, columns)))
    }

    /// Columns for the left sides of equalities, under the guards of the target.
    pub(super) fn left_keys(
        &mut self,
        target: &Target,
        equalities: &[Equality],
    ) -> Step<Option<(Stage, Vec<usize>)>> {
        let named = target.stage.clone().named_left();
        let key = |e: &Equality| Ok((named.place(&e.left)?, e.nulls_match));
        let keys = equalities.iter().map(key).collect::<Step<Vec<_>>>()?;
        self.keys_under(target.stage.clone(), &target.guards, &keys)
    }

    /// NULL tests look into values of such types.
    pub(super) fn is_row_type(&self, node: &Node) -> Step<bool> {
        let oid = self.type_of(node)?.oid;
        let base = self.facts().types.get(&oid).and_then(|t| self.facts().types.get(&t.base));
        Ok(base.is_none_or(|t| matches!(t.typtype, 'c' | 'p')))
    }
}
