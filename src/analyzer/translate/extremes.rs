//! `x > ANY (...)` and its like, where the order is native: the smallest or largest value decides, so no pairs are made.
//!
//! Exact in three-valued logic: without rows ANY is false and ALL true; a NULL among them, or a NULL on the left, makes
//! the answer unknown unless another row decides.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::expr::{Comparison, Expr, Kernel, Order};
use crate::plan::{Aggregate, AggregateFunction, GroupKey, JoinKind, Rel};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, TypeInfo};

use super::attach::{Target, truth};
use super::from::sides;
use super::native::{builtin, collation_rules, operator_function};
use super::refusal::Step;
use super::stage::{ANSWER, LEFT, Stage, same};
use super::subquery::Call;
use super::{Translator, kernels, types};

/// `left operator right` with an order that is native.
pub(super) struct Ordered {
    left: Node,
    right: Node,
    order: Order,
    comparison: Comparison,
}

impl Translator<'_> {
    /// The test of ANY or ALL, if it compares by a native order.
    pub(super) fn ordered(&self, test: &Node) -> Option<Ordered> {
        if test.tag != "OPEXPR" {
            return None;
        }
        let function = builtin(self.facts(), operator_function(self.facts(), test)?.oid)?;
        let rules = collation_rules(self.facts(), test.oid("inputcollid").ok()?);
        let (order, comparison) = kernels::comparison(&function.source, rules)?;
        let (left, right) = sides(test, &BTreeSet::from([LEFT]), &BTreeSet::from([ANSWER]))?;
        let class = |n: &Node| self.type_of(n).ok().map(|ty| ty.class);
        let native = |n: &Node| kernels::order_of(class(n)?, rules.bytewise).filter(|o| *o == order);
        native(left)?;
        native(right)?;
        let turned = test.nodes("args").ok()?.first().is_some_and(|first| same(first, right));
        let comparison = match (comparison, turned) {
            (Comparison::Lt, false) | (Comparison::Gt, true) => Comparison::Lt,
            (Comparison::Le, false) | (Comparison::Ge, true) => Comparison::Le,
            (Comparison::Gt, false) | (Comparison::Lt, true) => Comparison::Gt,
            (Comparison::Ge, false) | (Comparison::Le, true) => Comparison::Ge,
            _ => return None,
        };
        Some(Ordered { left: left.clone(), right: right.clone(), order, comparison })
    }

    /// The value of `x op ANY` (`any`) or ALL.
    pub(super) fn extreme_value(
        &mut self,
        target: &mut Target,
        call: &Call,
        any: bool,
        test: Ordered,
    ) -> Step<Node> {
        let Ordered { left, right, order, comparison } = test;
        let answer = self.answer_for(target, call, &[])?;
        let visible = answer.visible();
        let named = answer.clone().named(ANSWER, (1..).take(visible).collect());
        let (answer, y) = self.columns_for(answer, &[named.place(&right)?])?;
        let named = target.stage.clone().named_left();
        let (stage, x) = self.columns_for(target.stage.clone(), &[named.place(&left)?])?;
        target.stage = stage;
        let (x, y) = (x[0], y[0]);
        let greater = matches!(comparison, Comparison::Gt | Comparison::Ge);
        let extreme =
            if any == greater { AggregateFunction::Min(order) } else { AggregateFunction::Max(order) };
        let of = |function, argument| Aggregate { function, argument, filter: None, distinct: None };
        let aggregates = vec![
            of(extreme, Some(y)),
            of(AggregateFunction::CountStar, None),
            of(AggregateFunction::Count, Some(y)),
        ];
        let group: Vec<GroupKey> = answer
            .outer_columns()
            .into_iter()
            .map(|column| GroupKey { column, form: KeyForm::by_image(&answer.columns[column]) })
            .collect();
        let int8 = types::info(self.facts(), 20, -1, 0);
        let mut columns: Vec<TypeInfo> = vec![answer.columns[y].clone(), int8.clone(), int8];
        columns.extend(group.iter().map(|g| answer.columns[g.column].clone()));
        let keys = group.len();
        let input = Box::new(Rel::Aggregate { input: Box::new(answer.rel), group, aggregates });
        let exprs = (keys..keys + 3).chain(0..keys).map(Expr::Column).collect();
        let summary = Stage::new(Rel::Project { input, exprs }, columns).with_outer(3);
        let kind = if call.args.is_empty() { JoinKind::Inner } else { JoinKind::Left };
        let start = self.joined(target, kind, &call.args, summary, Vec::new())?;
        let column = Expr::Column;
        let compare = |order: Order, comparison: Comparison, a: Expr, b: Expr| Expr::Call {
            kernel: Kernel::Compare(order, comparison),
            args: vec![a, b],
        };
        let zero = Expr::Literal(Row::from_datums([Datum::Int(0)]));
        let nothing = Expr::Or(vec![
            Expr::IsNull(Box::new(column(start + 1))),
            compare(Order::Int, Comparison::Eq, column(start + 1), zero),
        ]);
        let holds = compare(order, comparison, column(x), column(start));
        let decided = if any { holds } else { Expr::Not(Box::new(holds)) };
        let unknown = Expr::Or(vec![
            Expr::IsNull(Box::new(column(x))),
            compare(Order::Int, Comparison::Lt, column(start + 2), column(start + 1)),
        ]);
        let branches =
            vec![(nothing, truth(Some(!any))), (decided, truth(Some(any))), (unknown, truth(None))];
        Ok(self.computed(target, Expr::Case { branches, otherwise: Box::new(truth(Some(!any))) }))
    }
}
