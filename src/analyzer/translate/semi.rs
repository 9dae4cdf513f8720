//! EXISTS, IN and NOT IN as conditions: semi and anti joins.
//!
//! A condition only has to tell true from all else, so no flag is computed: the rows without a match go (EXISTS, IN), or
//! those with one (NOT EXISTS). NOT IN is true for a row that no element equals, if moreover the subquery gives no NULL
//! for it, and either the row's own value is not NULL or the subquery gives nothing at all: three anti joins, of which
//! those that a NOT NULL column makes superfluous are left out. A subquery of tables and conditions alone is joined
//! directly by its equalities; any other is computed per distinct row of its references and joined by those.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::expr::{Comparison, Expr};
use crate::plan::{JoinKey, JoinKind, Rel};
use crate::row::TypeInfo;
use crate::row::key::KeyForm;

use super::attach::{null_rows, parameter};
use super::frame::{Frame, Level, Outer};
use super::from::Condition;
use super::join::Part;
use super::native::compile;
use super::refusal::Step;
use super::stage::{ANSWER, LEFT, OUTER, Stage, placed_column, rewrite, var_node};
use super::subquery::{Call, Kind, has_subplan};
use super::{Translator, guards};

/// A subquery of tables and conditions alone.
pub(super) struct Plain {
    pub frame: Level,
    pub rows: Part,
    /// What joins its rows to those outside.
    pub conditions: Vec<Condition>,
    /// Conditions on its own rows that can fail, still to be applied.
    pub fallible: Vec<Condition>,
}

/// The subquery of a condition, and whether it is negated.
fn split(node: &Node) -> Option<(&Node, bool)> {
    let negated = node.tag == "BOOLEXPR" && node.text("boolop").as_deref() == Some("not");
    let inner = if negated { node.list("args").first()?.as_node()? } else { node };
    (inner.tag == "SUBPLAN").then_some((inner, negated))
}

/// An expression over the columns of a stage as one over [`LEFT`].
fn over_left(node: &Node) -> Step<Node> {
    rewrite(node, &mut |n| Ok(placed_column(n).map(|_| super::stage::with_fields(n, &[("varno", LEFT)]))))
}

fn plain_clauses(query: &Node, aggregated: bool) -> bool {
    let empty = |field: &str| query.list(field).is_empty() && query.optional_node(field).is_none();
    let clauses = [
        "groupClause",
        "groupingSets",
        "havingQual",
        "setOperations",
        "limitCount",
        "limitOffset",
        "windowClause",
        "rowMarks",
    ];
    let flags = ["hasTargetSRFs", "hasWindowFuncs", "hasDistinctOn", "hasRecursive"];
    let flagged = flags.iter().any(|f| query.bool(f)) || query.bool("hasAggs") != aggregated;
    clauses.iter().all(|c| empty(c)) && !flagged
}

impl Translator<'_> {
    /// Applies a condition by a join, if it is one that a join decides. `base`: the stage as it was before other
    /// subqueries, which domains are taken from.
    pub(super) fn semi(&mut self, base: &Stage, stage: Stage, node: &Node) -> Step<Result<Stage, Stage>> {
        let Some((subplan, negated)) = split(node) else { return Ok(Err(stage)) };
        let call = self.call_of(subplan)?;
        if call.args.iter().chain(&call.test).any(has_subplan) {
            return Ok(Err(stage));
        }
        let left = BTreeSet::from([LEFT]);
        // One value decides for all rows.
        if call.subquery.kind == Kind::Any
            && call.args.is_empty()
            && self.ordered(&self.test(&call)?).is_some()
        {
            return Ok(Err(stage));
        }
        match (call.subquery.kind, negated) {
            (Kind::Exists, _) | (Kind::Any, false) => {
                let kind = if negated { JoinKind::Anti } else { JoinKind::Semi };
                self.matching(base, stage, &call, kind).map(Ok)
            }
            (Kind::Any, true) | (Kind::All, false) => {
                let wanted = if negated { Comparison::Eq } else { Comparison::Ne };
                let test = self.test(&call)?;
                match self.comparison(&test, &left, &BTreeSet::from([ANSWER]), wanted) {
                    Some(e) => self.not_in(base, stage, &call, (e.left, e.right, e.form)).map(Ok),
                    None => Ok(Err(stage)),
                }
            }
            _ => Ok(Err(stage)),
        }
    }

    fn matching(&mut self, base: &Stage, stage: Stage, call: &Call, kind: JoinKind) -> Step<Stage> {
        if let Some(plain) = self.plain(call, false)? {
            return self.plainly_reduced(stage, plain, kind);
        }
        let answer = self.answer(base, call, &[])?;
        let mut conditions = Vec::new();
        if call.test.is_some() {
            self.conditions(self.test(call)?, &mut conditions);
        }
        let (stage, keys) = self.reference_keys(stage, call, &answer)?;
        let visible = answer.visible();
        let answer = answer.named(ANSWER, (1..).take(visible).collect());
        self.reduced(stage, (BTreeSet::from([ANSWER]), answer), conditions, kind, keys)
    }

    /// Splits a condition over [`LEFT`] and a subquery at its ANDs.
    fn conditions(&self, node: Node, out: &mut Vec<Condition>) {
        if node.tag == "BOOLEXPR" && node.text("boolop").as_deref() == Some("and") {
            let args = node.list("args").iter().filter_map(|a| a.as_node().cloned());
            return args.for_each(|a| self.conditions(a, out));
        }
        out.push(self.condition(node));
    }

    /// Join keys between the references of a subquery and the columns of its answer that hold them.
    fn reference_keys(&mut self, stage: Stage, call: &Call, answer: &Stage) -> Step<(Stage, Vec<JoinKey>)> {
        let (stage, positions) = self.columns_for(stage, &call.args)?;
        let pairs = positions.into_iter().zip(answer.outer_columns());
        let keys = pairs
            .map(|(left, right)| {
                let form = KeyForm::by_image(&stage.columns[left]);
                JoinKey { left, right, form, nulls_match: true }
            })
            .collect();
        Ok((stage, keys))
    }

    /// The rows of `stage` with (Semi) or without (Anti) a partner; conditions see its columns as [`LEFT`].
    fn reduced(
        &mut self,
        mut stage: Stage,
        right: Part,
        conditions: Vec<Condition>,
        kind: JoinKind,
        keys: Vec<JoinKey>,
    ) -> Step<Stage> {
        let blocks = std::mem::take(&mut stage.blocks);
        let left = (BTreeSet::from([LEFT]), stage.named_left());
        let (entries, mut right) = right;
        right.blocks.retain(|b| b.rtindex != OUTER);
        let joined = self.join(kind, left, (entries, right), conditions, keys)?;
        Ok(Stage { blocks, ..joined })
    }

    /// Joins with a plain subquery. A condition of its own that can fail is looked at for the rows that the equalities
    /// find, as any plan of the server's may: it is a column beside the keys, each pair of which is there once.
    fn plainly_reduced(&mut self, stage: Stage, plain: Plain, kind: JoinKind) -> Step<Stage> {
        let Plain { rows: (entries, rows), conditions, fallible, .. } = plain;
        let left = BTreeSet::from([LEFT]);
        let equalities: Option<Vec<_>> =
            conditions.iter().map(|c| self.equality(&c.node, &left, &entries)).collect();
        let Some(equalities) = equalities.filter(|e| !e.is_empty() && !fallible.is_empty()) else {
            let rows = self.filter_all(rows, fallible)?;
            return self.reduced(stage, (entries, rows), conditions, kind, Vec::new());
        };
        let mut nodes = equalities.iter().map(|e| rows.place(&e.right)).collect::<Step<Vec<_>>>()?;
        let fallible: Vec<Node> = fallible.into_iter().map(|c| c.node).collect();
        nodes.extend(guards::all(&fallible).map(|all| rows.place(&all)).transpose()?);
        let (rows, columns) = self.columns_for(rows, &nodes)?;
        let types: Vec<TypeInfo> = columns.iter().map(|&c| rows.columns[c].clone()).collect();
        let flag = types.len() - 1;
        let mut forms: Vec<KeyForm> = equalities.iter().map(|e| e.form).collect();
        forms.push(KeyForm::by_image(&types[flag]));
        let exprs = columns.into_iter().map(Expr::Column).collect();
        let input = Box::new(Rel::Project { input: Box::new(rows.rel), exprs });
        let condition = self.condition(var_node(ANSWER, flag, &types[flag]));
        let attributes = (1..).take(types.len()).collect();
        let right = Stage::new(Rel::Distinct { input, keys: forms }, types).named(ANSWER, attributes);
        let named = stage.clone().named_left();
        let nodes = equalities.iter().map(|e| named.place(&e.left)).collect::<Step<Vec<_>>>()?;
        let (stage, positions) = self.columns_for(stage, &nodes)?;
        let keys = positions.into_iter().zip(&equalities).enumerate();
        let keys = keys
            .map(|(right, (left, e))| JoinKey { left, right, form: e.form, nulls_match: e.nulls_match })
            .collect();
        self.reduced(stage, (BTreeSet::from([ANSWER]), right), vec![condition], kind, keys)
    }

    fn not_in(
        &mut self,
        base: &Stage,
        stage: Stage,
        call: &Call,
        (x, y, form): (Node, Node, KeyForm),
    ) -> Step<Stage> {
        let answer = self.answer(base, call, &[])?;
        let visible = answer.visible();
        let named = answer.clone().named(ANSWER, (1..).take(visible).collect());
        let (answer, y) = self.columns_for(answer, &[named.place(&y)?])?;
        let blocks = stage.blocks.clone();
        let x = stage.clone().named_left().place(&x)?;
        let (stage, x) = self.columns_for(stage, &[x])?;
        let (mut stage, references) = self.reference_keys(stage, call, &answer)?;
        let (x, y) = (x[0], y[0]);
        let (x_null, y_null) = (!self.never_null(&stage.rel, x), !self.never_null(&answer.rel, y));
        let columns = stage.columns.clone();
        let mut anti = |right: Rel, on: Vec<JoinKey>, residual: Option<Expr>| {
            let left = std::mem::replace(&mut stage.rel, Rel::Constant { rows: Vec::new() });
            let (left, right) = (Box::new(left), Box::new(right));
            stage.rel = Rel::Join { kind: JoinKind::Anti, left, right, on, residual };
        };
        let mut equal = references.clone();
        equal.push(JoinKey { left: x, right: y, form, nulls_match: false });
        anti(answer.rel.clone(), equal, None);
        if y_null {
            anti(null_rows(answer.clone(), y).rel, references.clone(), None);
        }
        if x_null {
            // One row per reference is enough to say that there is a row.
            let outer = answer.outer_columns();
            let keys = outer.iter().map(|&c| KeyForm::by_image(&answer.columns[c])).collect();
            let exprs = outer.iter().map(|&c| Expr::Column(c)).collect();
            let input = Box::new(Rel::Project { input: Box::new(answer.rel), exprs });
            let on = references.into_iter().enumerate().map(|(right, k)| JoinKey { right, ..k }).collect();
            let residual = Expr::IsNull(Box::new(Expr::Column(x)));
            anti(Rel::Distinct { input, keys }, on, Some(residual));
        }
        Ok(Stage { rel: stage.rel, columns, blocks })
    }

    /// A subquery of tables and conditions alone: its rows as far as they depend on nothing outside, and the conditions
    /// that join them to the rows of the stage ([`LEFT`]) that has the arguments, the test of IN among them.
    /// `aggregated`: a select list of aggregates may follow. `None`: it is not of that kind.
    pub(super) fn plain(&mut self, call: &Call, aggregated: bool) -> Step<Option<Plain>> {
        let subquery = &*call.subquery;
        if call.args.is_empty() || !plain_clauses(&subquery.query, aggregated) {
            return Ok(None);
        }
        let types = call.args.iter().map(|a| self.type_of(a)).collect::<Step<Vec<_>>>()?;
        let outer = Outer { nodes: subquery.references.clone(), types, domain: None };
        let frame = Frame::below(&subquery.frame, &subquery.query, Some(outer));
        let tree = frame.query.node("jointree")?;
        let (mut conditions, mut items) = (Vec::new(), Vec::new());
        if let Some(quals) = tree.optional_node("quals") {
            self.conjuncts(&frame, quals, &mut conditions)?;
        }
        for item in tree.nodes("fromlist")? {
            self.flatten(&frame, item, &mut items, &mut conditions)?;
        }
        let mut below = BTreeSet::new();
        for item in &items {
            if !self.needs(&frame, item)?.is_empty() {
                return Ok(None);
            }
            below.extend(super::from::entries_below(item)?);
        }
        let (mut across, own): (Vec<_>, Vec<_>) =
            conditions.into_iter().partition(|c| c.entries.contains(&OUTER));
        if let Some(test) = &call.test {
            let targets = frame.query.nodes("targetList")?;
            let targets: Vec<_> = targets.into_iter().filter(|t| !t.bool("resjunk")).collect();
            let test = over_left(test)?;
            let test = rewrite(&test, &mut |n| match parameter(n).and_then(|i| targets.get(i)) {
                Some(target) => self.expand(&frame, target.node("expr")?).map(Some),
                None => Ok(None),
            })?;
            self.conditions(test, &mut across);
        }
        let args = call.args.iter().map(over_left).collect::<Step<Vec<_>>>()?;
        let left = BTreeSet::from([LEFT]);
        let mut joined = Vec::with_capacity(across.len());
        for condition in across {
            let node = rewrite(&condition.node, &mut |n| {
                let outer = n.tag == "VAR" && n.field("varno").as_int() == Some(OUTER);
                Ok(placed_column(n).filter(|_| outer).and_then(|i| args.get(i).cloned()))
            })?;
            let by_join = self.is_key(&node, &left, &below) || compile(self.facts(), &node).is_some();
            if has_subplan(&node) || !by_join {
                return Ok(None);
            }
            joined.push(self.condition(node));
        }
        let late = |c: &Condition| {
            // With several tables it may be what joins them.
            !aggregated && items.len() == 1 && !c.early && !has_subplan(&c.node) && !c.entries.is_empty()
        };
        let (fallible, own): (Vec<_>, Vec<_>) = own.into_iter().partition(late);
        let rows = self.rows_of_flat(&frame, items, own, false)?;
        Ok(Some(Plain { rows: (below, rows), frame: frame.clone(), conditions: joined, fallible }))
    }
}
