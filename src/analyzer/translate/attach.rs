//! Values of subqueries: each becomes a column of the stage that its expression is evaluated over.
//!
//! Three-valued logic is kept exactly: IN is true if a row matches, else NULL if a comparison was NULL, else false (also
//! for no rows at all). A subquery's rows are computed once per distinct row of its outer references and joined back by
//! their images.

use std::collections::BTreeSet;

use crate::analyzer::node::{Node, Value};
use crate::plan::expr::{Comparison, Expr};
use crate::plan::{Aggregate, AggregateFunction, GroupKey, JoinKey, JoinKind, Rel, key};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, TypeInfo};

use super::guards::{Looked, can_guard, guard, of_case};
use super::refusal::{Refusal, Step};
use super::semi::Plain;
use super::stage::{ANSWER, LEFT, Stage, column_node, placed_column, rewrite, same, var_node};
use super::subquery::{Call, Kind, has_subplan};
use super::{Translator, types};

/// The stage that subqueries are attached to.
pub(super) struct Target {
    /// As it was: most subqueries depend on this alone, so that one does not make the next one's domain larger.
    base: Stage,
    pub stage: Stage,
    /// Conditions under which the node at hand is looked at, all true, over `base`.
    pub guards: Vec<Node>,
    /// Subqueries with their values, and the guards under which those were computed.
    done: Vec<(Node, Vec<Node>, Node)>,
}

impl Target {
    /// What is looked at from here on is looked at only if `arg` is so.
    fn guarded_by(&mut self, arg: &Node, looked: Looked) {
        if can_guard(arg) {
            self.guards.push(guard(arg, looked));
        }
    }

    /// Whether some rows of the target may be without an answer to the call.
    pub(super) fn is_guarded(&self, call: &Call) -> bool {
        !call.args.is_empty() && !self.guards.is_empty()
    }
}

pub(super) fn truth(value: Option<bool>) -> Expr {
    Expr::Literal(Row::from_datums([value.map_or(Datum::Null, Datum::Bool)]))
}

fn is_there(column: usize) -> Expr {
    Expr::IsNotNull(Box::new(Expr::Column(column)))
}

fn columns(count: usize) -> Vec<Expr> {
    (0..count).map(Expr::Column).collect()
}

impl Translator<'_> {
    /// `nodes` without SUBPLANs, over a stage with more columns.
    pub(super) fn attach(&mut self, stage: Stage, nodes: &[Node]) -> Step<(Stage, Vec<Node>)> {
        if !nodes.iter().any(has_subplan) {
            return Ok((stage, nodes.to_vec()));
        }
        let mut target = Target { base: stage.clone(), stage, guards: Vec::new(), done: Vec::new() };
        let nodes = nodes.iter().map(|n| self.replaced(&mut target, n)).collect::<Step<_>>()?;
        Ok((target.stage, nodes))
    }

    /// The node without SUBPLANs. A subquery in a branch of CASE, or behind an argument of AND, OR or COALESCE that may
    /// decide, is computed for the rows that come to it: the server does not look at it for others, where it may fail.
    fn replaced(&mut self, target: &mut Target, node: &Node) -> Step<Node> {
        if !has_subplan(node) {
            return Ok(node.clone());
        }
        let outside = target.guards.len();
        let looked = match (node.tag.as_str(), node.text("boolop").as_deref()) {
            ("SUBPLAN", _) => return self.value(target, node),
            ("BOOLEXPR", Some("and")) => Some(Looked::UnlessFalse),
            ("BOOLEXPR", Some("or")) => Some(Looked::UnlessTrue),
            ("COALESCEEXPR", _) => Some(Looked::IfNull),
            ("CASEEXPR", _) => Some(Looked::UnlessTrue),
            _ => None,
        };
        let tested = node.optional_node("arg").filter(|_| node.tag == "CASEEXPR");
        let filter = node.optional_node("aggfilter");
        let mut replaced = node.clone();
        for (name, value) in &mut replaced.fields {
            let inside = target.guards.len();
            if let Some(filter) = filter.filter(|_| name != "aggfilter") {
                // What does not pass is never an argument.
                target.guarded_by(filter, Looked::IfTrue);
            }
            match value {
                Value::Node(n) => **n = self.replaced(target, n)?,
                Value::List(items) => {
                    for item in items.iter_mut() {
                        self.replaced_item(target, item, looked, tested)?;
                    }
                }
                _ => {}
            }
            if filter.is_some() {
                target.guards.truncate(inside);
            }
        }
        target.guards.truncate(outside);
        Ok(replaced)
    }

    /// `tested`: what the branches of a CASE are compared with.
    fn replaced_item(
        &mut self,
        target: &mut Target,
        item: &mut Value,
        looked: Option<Looked>,
        tested: Option<&Node>,
    ) -> Step<()> {
        match item {
            Value::Node(n) if n.tag == "CASEWHEN" && looked.is_some() => {
                let test = n.node("expr")?;
                let test = tested.and_then(|arg| of_case(test, arg)).unwrap_or_else(|| test.clone());
                let (mut own, outside) = ((**n).clone(), target.guards.len());
                for (name, value) in &mut own.fields {
                    let Value::Node(part) = value else { continue };
                    if name == "result" {
                        target.guarded_by(&test, Looked::IfTrue);
                    }
                    **part = self.replaced(target, part)?;
                }
                **n = own;
                target.guards.truncate(outside);
                target.guarded_by(&test, Looked::UnlessTrue);
            }
            Value::Node(n) => {
                let before = n.clone();
                **n = self.replaced(target, n)?;
                // A composite value of NULLs is NULL to a test, not to COALESCE.
                if let Some(looked) = looked
                    && !(matches!(looked, Looked::IfNull) && self.is_row_type(&before)?)
                {
                    target.guarded_by(&before, looked);
                }
            }
            Value::List(items) => {
                for item in items {
                    self.replaced_item(target, item, None, None)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn value(&mut self, target: &mut Target, node: &Node) -> Step<Node> {
        let known = |guards: &[Node]| guards.iter().all(|g| target.guards.iter().any(|t| same(t, g)));
        if let Some((.., value)) = target.done.iter().find(|(n, guards, _)| same(n, node) && known(guards)) {
            return Ok(value.clone());
        }
        // A subquery in the test of another one comes first.
        let mut plain = node.clone();
        for (_, value) in &mut plain.fields {
            match value {
                Value::Node(n) => **n = self.replaced(target, n)?,
                Value::List(items) => {
                    for item in items {
                        self.replaced_item(target, item, None, None)?;
                    }
                }
                _ => {}
            }
        }
        let call = self.call_of(&plain)?;
        let value = match call.subquery.kind {
            Kind::Exists => self.exists_value(target, &call)?,
            Kind::Scalar | Kind::Row => self.row_value(target, &call)?,
            Kind::Any | Kind::All => self.quantified_value(target, &call)?,
            Kind::Array => self.array_value(target, &call)?,
        };
        target.done.push((node.clone(), target.guards.clone(), value.clone()));
        Ok(value)
    }

    /// The domain of a dependent query: distinct images of `args` (over `from`).
    pub(super) fn domain(&mut self, from: &Stage, args: &[Node]) -> Step<Stage> {
        let (from, positions) = self.columns_for(from.clone(), args)?;
        let types: Vec<TypeInfo> = positions.iter().map(|&c| from.columns[c].clone()).collect();
        let exprs = positions.into_iter().map(Expr::Column).collect();
        let input = Box::new(Rel::Project { input: Box::new(from.rel), exprs });
        let keys = types.iter().map(KeyForm::by_image).collect();
        Ok(Stage::new(Rel::Distinct { input, keys }, types).with_outer(0))
    }

    pub(super) fn answer_for(&mut self, target: &Target, call: &Call, more: &[Node]) -> Step<Stage> {
        let width = target.base.columns.len();
        let mut old = true;
        call.args.iter().chain(more).for_each(|n| {
            n.walk(&mut |n| old &= placed_column(n).is_none_or(|c| c < width));
        });
        let mut from = if old { &target.base } else { &target.stage }.clone();
        if !call.args.is_empty() || !more.is_empty() {
            from = self.filter(from, &target.guards)?;
        }
        self.answer(&from, call, more)
    }

    /// Joins `right` to the target: its outer references with `args`, and `keys` (column of the target, column of
    /// `right`) by equality. Returns where the columns of `right` begin.
    pub(super) fn joined(
        &mut self,
        target: &mut Target,
        kind: JoinKind,
        args: &[Node],
        right: Stage,
        mut keys: Vec<JoinKey>,
    ) -> Step<usize> {
        let (left, positions) = self.columns_for(target.stage.clone(), args)?;
        for (&l, r) in positions.iter().zip(right.outer_columns()) {
            let form = KeyForm::by_image(&left.columns[l]);
            keys.push(JoinKey { left: l, right: r, form, nulls_match: true });
        }
        let width = left.columns.len();
        let columns = left.columns.iter().chain(&right.columns).cloned().collect();
        let (l, r) = (Box::new(left.rel), Box::new(right.rel));
        let rel = Rel::Join { kind, left: l, right: r, on: keys, residual: None };
        target.stage = Stage { rel, columns, blocks: left.blocks };
        Ok(width)
    }

    /// The distinct rows of some columns of `stage` by key, each followed by true. Block OUTER is kept.
    fn marked(&self, stage: Stage, kept: &[(usize, KeyForm)]) -> Stage {
        let mut columns: Vec<usize> = kept.iter().map(|k| k.0).collect();
        let mut forms: Vec<KeyForm> = kept.iter().map(|k| k.1).collect();
        let own = columns.len();
        for column in stage.outer_columns() {
            forms.push(KeyForm::by_image(&stage.columns[column]));
            columns.push(column);
        }
        let mut types: Vec<TypeInfo> = columns.iter().map(|&c| stage.columns[c].clone()).collect();
        let exprs: Vec<Expr> = columns.into_iter().map(Expr::Column).collect();
        let count = exprs.len();
        let input = Box::new(Rel::Project { input: Box::new(stage.rel), exprs });
        let input = Box::new(Rel::Distinct { input, keys: forms });
        let mut exprs = self::columns(count);
        let mut order: Vec<Expr> = exprs.drain(..own).collect();
        order.push(truth(Some(true)));
        order.extend(exprs);
        types.insert(own, types::boolean(self.facts()));
        Stage::new(Rel::Project { input, exprs: order }, types).with_outer(own + 1)
    }

    /// Adds a computed boolean column to the target.
    pub(super) fn computed(&self, target: &mut Target, expr: Expr) -> Node {
        let ty = types::boolean(self.facts());
        let mut exprs = columns(target.stage.columns.len());
        exprs.push(expr);
        let input = std::mem::replace(&mut target.stage.rel, Rel::Constant { rows: Vec::new() });
        target.stage.rel = Rel::Project { input: Box::new(input), exprs };
        target.stage.columns.push(ty.clone());
        column_node(target.stage.columns.len() - 1, &ty)
    }

    fn exists_value(&mut self, target: &mut Target, call: &Call) -> Step<Node> {
        if let Some(Plain { rows: (below, rows), conditions, fallible, .. }) = self.plain(call, false)? {
            let right = (below, self.filter_all(rows, fallible)?);
            let entries = BTreeSet::from([LEFT]);
            let equalities: Option<Vec<_>> =
                conditions.iter().map(|c| self.equality(&c.node, &entries, &right.0)).collect();
            let equalities = equalities.filter(|e| !e.is_empty());
            let keys = match &equalities {
                Some(equalities) => self.left_keys(target, equalities)?,
                None => None,
            };
            if let (Some(equalities), Some((left, left_positions))) = (equalities, keys) {
                let mut nodes = Vec::new();
                for e in &equalities {
                    nodes.push(right.1.place(&e.right)?);
                }
                let (right, positions) = self.columns_for(right.1, &nodes)?;
                let kept: Vec<_> = positions.into_iter().zip(equalities.iter().map(|e| e.form)).collect();
                let right = self.marked(Stage { blocks: Vec::new(), ..right }, &kept);
                target.stage = left;
                let keys = left_positions.into_iter().zip(&equalities).enumerate();
                let keys = keys
                    .map(|(right, (left, e))| JoinKey {
                        left,
                        right,
                        form: e.form,
                        nulls_match: e.nulls_match,
                    })
                    .collect();
                let start = self.joined(target, JoinKind::Left, &[], right, keys)?;
                return Ok(self.computed(target, is_there(start + equalities.len())));
            }
        }
        let right = self.answer_for(target, call, &[])?;
        let right = self.marked(right, &[]);
        let start = self.joined(target, JoinKind::Left, &call.args, right, Vec::new())?;
        Ok(self.computed(target, is_there(start)))
    }

    /// The columns of the only row. Each is NULL without rows and an error if there are several.
    fn row_value(&mut self, target: &mut Target, call: &Call) -> Step<Node> {
        if one_row(&call.subquery.query)
            && let Some(value) = self.keyed_value(target, call)?
        {
            return Ok(value);
        }
        let right = self.answer_for(target, call, &[])?;
        let visible = right.visible();
        let (right, kind) = if one_row(&call.subquery.query) {
            (right, if target.is_guarded(call) { JoinKind::Left } else { JoinKind::Inner })
        } else {
            let kind = if call.args.is_empty() { JoinKind::Inner } else { JoinKind::Left };
            (self.single(right), kind)
        };
        let types: Vec<TypeInfo> = right.columns[..visible].to_vec();
        let start = self.joined(target, kind, &call.args, right, Vec::new())?;
        let column = |i: usize| column_node(start + i, &types[i]);
        match &call.test {
            None => Ok(column(0)),
            Some(test) => rewrite(test, &mut |n| Ok(parameter(n).filter(|i| *i < visible).map(column))),
        }
    }

    fn single(&self, stage: Stage) -> Stage {
        let visible = stage.visible();
        let mut group = Vec::new();
        let mut types: Vec<TypeInfo> = stage.columns[..visible].to_vec();
        for column in stage.outer_columns() {
            group.push(GroupKey { column, form: KeyForm::by_image(&stage.columns[column]) });
            types.push(stage.columns[column].clone());
        }
        let aggregates: Vec<Aggregate> = (0..visible)
            .map(|c| Aggregate {
                function: AggregateFunction::Single,
                argument: Some(c),
                filter: None,
                distinct: None,
            })
            .collect();
        let keys = group.len();
        let exprs = (keys..keys + visible).chain(0..keys).map(Expr::Column).collect();
        let input = Box::new(Rel::Aggregate { input: Box::new(stage.rel), group, aggregates });
        Stage::new(Rel::Project { input, exprs }, types).with_outer(visible)
    }

    /// `x op ANY (...)` and `x op ALL (...)`.
    fn quantified_value(&mut self, target: &mut Target, call: &Call) -> Step<Node> {
        let any = call.subquery.kind == Kind::Any;
        let wanted = if any { Comparison::Eq } else { Comparison::Ne };
        let test = self.test(call)?;
        let (left, right) = (BTreeSet::from([LEFT]), BTreeSet::from([ANSWER]));
        let Some(e) = self.comparison(&test, &left, &right, wanted) else {
            return match self.ordered(&test) {
                Some(ordered) => self.extreme_value(target, call, any, ordered),
                None => self.tested_value(target, call, any),
            };
        };
        let Some((stage, x)) = self.left_keys(target, std::slice::from_ref(&e))? else {
            return self.tested_value(target, call, any);
        };
        let answer = self.answer_for(target, call, &[])?;
        let visible = answer.visible();
        let named = answer.clone().named(ANSWER, (1..).take(visible).collect());
        let (answer, y) = self.columns_for(answer, &[named.place(&e.right)?])?;
        target.stage = stage;
        let (x, y) = (x[0], y[0]);
        let x_null = !self.never_null(&target.stage.rel, x);
        let y_null = !self.never_null(&answer.rel, y);
        let key = JoinKey { left: x, right: 0, form: e.form, nulls_match: false };
        let mut branches = Vec::new();
        let matched = self.marked(answer.clone(), &[(y, e.form)]);
        let start = self.joined(target, JoinKind::Left, &call.args, matched, vec![key])?;
        branches.push((is_there(start + 1), truth(Some(any))));
        if x_null {
            let rows = self.marked(answer.clone(), &[]);
            let start = self.joined(target, JoinKind::Left, &call.args, rows, Vec::new())?;
            let unknown = Expr::And(vec![Expr::IsNull(Box::new(Expr::Column(x))), is_there(start)]);
            branches.push((unknown, truth(None)));
        }
        if y_null {
            let nulls = self.marked(null_rows(answer, y), &[]);
            let start = self.joined(target, JoinKind::Left, &call.args, nulls, Vec::new())?;
            branches.push((is_there(start), truth(None)));
        }
        Ok(self.computed(target, Expr::Case { branches, otherwise: Box::new(truth(Some(!any))) }))
    }

    /// The general form: the test is computed for every pair of a distinct left side and a row of the subquery.
    fn tested_value(&mut self, target: &mut Target, call: &Call, any: bool) -> Step<Node> {
        let test = self.test(call)?;
        let mut leaves: Vec<Node> = Vec::new();
        test.walk(&mut |n| {
            if n.tag == "VAR" && n.field("varno").as_int() == Some(LEFT) && !leaves.iter().any(|l| same(l, n))
            {
                leaves.push(n.clone());
            }
        });
        let left = target.stage.clone().named_left();
        let more = leaves.iter().map(|l| left.place(l)).collect::<Step<Vec<_>>>()?;
        let answer = self.answer_for(target, call, &more)?;
        let visible = answer.visible();
        let outer = answer.outer_columns();
        let test = rewrite(&test, &mut |n| {
            if n.tag != "VAR" {
                return Ok(None);
            }
            let column = match leaves.iter().position(|l| same(l, n)) {
                Some(leaf) => outer.get(call.args.len() + leaf).copied(),
                None => placed_column(n).filter(|c| *c < visible),
            };
            let column = column.ok_or_else(|| Refusal::new("unsupported.tree", "a test of a subquery"))?;
            Ok(Some(column_node(column, &answer.columns[column])))
        })?;
        let (answer, tested) = self.columns_for(answer, &[test])?;
        let group: Vec<GroupKey> = outer
            .iter()
            .map(|&column| GroupKey { column, form: KeyForm::by_image(&answer.columns[column]) })
            .collect();
        let mut types: Vec<TypeInfo> = vec![types::boolean(self.facts()); 2];
        types.extend(outer.iter().map(|&c| answer.columns[c].clone()));
        let mut exprs = columns(answer.columns.len());
        exprs.push(Expr::IsNull(Box::new(Expr::Column(tested[0]))));
        let unknown = exprs.len() - 1;
        let input = Box::new(Rel::Project { input: Box::new(answer.rel), exprs });
        let of =
            |function, column| Aggregate { function, argument: Some(column), filter: None, distinct: None };
        let fold = if any { AggregateFunction::BoolOr } else { AggregateFunction::BoolAnd };
        let aggregates = vec![of(fold, tested[0]), of(AggregateFunction::BoolOr, unknown)];
        let keys = group.len();
        let input = Box::new(Rel::Aggregate { input, group, aggregates });
        let exprs = (keys..keys + 2).chain(0..keys).map(Expr::Column).collect();
        let right = Stage::new(Rel::Project { input, exprs }, types).with_outer(2);
        let args: Vec<Node> = call.args.iter().chain(&more).cloned().collect();
        let start = self.joined(target, JoinKind::Left, &args, right, Vec::new())?;
        let decided = match any {
            true => Expr::Column(start),
            false => Expr::Not(Box::new(Expr::Column(start))),
        };
        let branches = vec![(decided, truth(Some(any))), (Expr::Column(start + 1), truth(None))];
        Ok(self.computed(target, Expr::Case { branches, otherwise: Box::new(truth(Some(!any))) }))
    }

    /// The test of IN, ANY or ALL: columns of the target are Vars of [`LEFT`], those of the subquery of [`ANSWER`].
    pub(super) fn test(&self, call: &Call) -> Step<Node> {
        let test = call.test.as_ref();
        let test = test.ok_or_else(|| Refusal::new("unsupported.tree", "a subquery without its test"))?;
        rewrite(test, &mut |n| {
            if let Some(index) = parameter(n) {
                return Ok(Some(var_node(ANSWER, index, &self.type_of(n)?)));
            }
            Ok(match placed_column(n) {
                Some(column) => Some(var_node(LEFT, column, &self.type_of(n)?)),
                None => None,
            })
        })
    }

    pub(super) fn never_null(&self, rel: &Rel, column: usize) -> bool {
        key::not_null(rel, self.inputs.keys).get(column) == Some(&true)
    }
}

/// The rows whose column is NULL.
pub(super) fn null_rows(stage: Stage, column: usize) -> Stage {
    let predicate = Expr::IsNull(Box::new(Expr::Column(column)));
    Stage { rel: Rel::Filter { input: Box::new(stage.rel), predicate }, ..stage }
}

/// The column of the subquery (0-based) that a PARAM of its test stands for.
pub(super) fn parameter(node: &Node) -> Option<usize> {
    if node.tag != "PARAM" || node.field("paramkind").as_int() != Some(2) {
        return None;
    }
    usize::try_from(node.field("paramid").as_int()?).ok()?.checked_sub(1)
}

/// Whether the query gives exactly one row for each row of its domain.
fn one_row(query: &Node) -> bool {
    let empty = |field: &str| query.list(field).is_empty() && query.optional_node(field).is_none();
    let clauses = ["groupClause", "groupingSets", "havingQual", "setOperations", "limitCount", "limitOffset"];
    query.bool("hasAggs") && !query.bool("hasTargetSRFs") && clauses.iter().all(|c| empty(c))
}
