//! Joins: which conditions are keys, in which order tables are joined, what stays as a residual.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::expr::{Comparison, Expr};
use crate::plan::{JoinKey, JoinKind, Rel};
use crate::row::key::KeyForm;
use crate::row::{TypeClass, TypeInfo};

use super::from::{Condition, entries_of};
use super::native::{builtin, collation_rules, compile, operator_function};
use super::refusal::{Refusal, Step};
use super::stage::Stage;
use super::{Translator, kernels, types, unknown_form};

/// A stage and the range table entries in it.
pub(super) type Part = (BTreeSet<i64>, Stage);

/// `left expression = right expression`, one per side.
struct Equality {
    left: Node,
    right: Node,
    form: KeyForm,
    /// Neither side can fail.
    early: bool,
}

impl Translator<'_> {
    /// Joins parts along their equality keys, in FROM order where there is a choice. Conditions that became part of a
    /// join are removed.
    pub(super) fn arrange(&mut self, mut parts: Vec<Part>, conditions: &mut Vec<Condition>) -> Step<Stage> {
        let mut current = parts.remove(0);
        current = self.extend(current, &mut parts, conditions)?;
        while !parts.is_empty() {
            let next = parts.remove(0);
            let next = self.extend(next, &mut parts, conditions)?;
            current = self.inner(current, next, conditions)?;
            current = self.extend(current, &mut parts, conditions)?;
        }
        Ok(current.1)
    }

    /// Joins parts to `current` as long as one is connected to it by a key.
    fn extend(
        &mut self,
        mut current: Part,
        parts: &mut Vec<Part>,
        conditions: &mut Vec<Condition>,
    ) -> Step<Part> {
        loop {
            let connected = |part: &Part| {
                conditions.iter().any(|c| self.equality(&c.node, &current.0, &part.0).is_some())
            };
            let Some(index) = parts.iter().position(connected) else {
                return Ok(current);
            };
            let part = parts.remove(index);
            current = self.inner(current, part, conditions)?;
        }
    }

    fn inner(&mut self, left: Part, right: Part, conditions: &mut Vec<Condition>) -> Step<Part> {
        let entries: BTreeSet<i64> = left.0.union(&right.0).copied().collect();
        let early_key =
            conditions.iter().any(|c| self.equality(&c.node, &left.0, &right.0).is_some_and(|e| e.early));
        let usable = |c: &Condition| {
            let covered = !c.entries.is_empty() && c.entries.is_subset(&entries);
            // A key that may fail is computed before the join only if there is no other key.
            let key = self.equality(&c.node, &left.0, &right.0).is_some_and(|e| e.early || !early_key);
            covered && (key || (c.early && !c.entries.is_subset(&left.0) && !c.entries.is_subset(&right.0)))
        };
        let (used, rest): (Vec<_>, Vec<_>) = conditions.drain(..).partition(usable);
        *conditions = rest;
        if !used.iter().any(|c| self.equality(&c.node, &left.0, &right.0).is_some()) {
            self.without_key(&left, &right, conditions)?;
        }
        let stage = self.join(JoinKind::Inner, left, right, used)?;
        Ok((entries, stage))
    }

    /// A join without any key: refused if an equality that only the server knows would be one, else told.
    fn without_key(&mut self, left: &Part, right: &Part, conditions: &[Condition]) -> Step<()> {
        for condition in conditions {
            self.refuse_foreign_equality(&condition.node, &left.0, &right.0)?;
        }
        let one_row = |rel: &Rel| match rel {
            Rel::Constant { .. } => true,
            Rel::Project { input, .. } | Rel::Filter { input, .. } => {
                matches!(&**input, Rel::Constant { .. })
                    || matches!(&**input, Rel::Aggregate { group, .. } if group.is_empty())
            }
            _ => false,
        };
        if !one_row(&left.1.rel) && !one_row(&right.1.rel) {
            self.notice(
                "tables are joined without an equality condition: each pair of rows is kept and compared",
            );
        }
        Ok(())
    }

    fn refuse_foreign_equality(&self, node: &Node, left: &BTreeSet<i64>, right: &BTreeSet<i64>) -> Step<()> {
        let name =
            node.oid("opno").ok().and_then(|o| self.facts().operators.get(&o)).map(|o| o.name.as_str());
        if node.tag != "OPEXPR" || name != Some("=") || self.equality(node, left, right).is_some() {
            return Ok(());
        }
        let args = node.nodes("args")?;
        let [a, b] = args.as_slice() else { return Ok(()) };
        let (ea, eb) = (entries_of(a), entries_of(b));
        let across = |x: &BTreeSet<i64>, y: &BTreeSet<i64>| {
            !x.is_empty() && !y.is_empty() && x.is_subset(left) && y.is_subset(right)
        };
        if !across(&ea, &eb) && !across(&eb, &ea) {
            return Ok(());
        }
        let (ta, tb) = (self.type_of(a)?, self.type_of(b)?);
        let collation = node.oid("inputcollid").unwrap_or(0);
        if ta.class.is_string() && !collation_rules(self.facts(), collation).deterministic {
            return Err(Refusal::new(
                "unsupported.nondeterministic_collation",
                "a join compares text under a nondeterministic collation",
            ));
        }
        let (ta, tb) = (types::type_name(self.facts(), ta.oid), types::type_name(self.facts(), tb.oid));
        let refusal = Refusal::new(
            "unsupported.equality",
            format!("a join compares {ta} with {tb}, whose equality only the server knows"),
        );
        Err(if ta == tb { refusal } else { refusal.hint("cast both sides to one type") })
    }

    /// `node` as an equality between an expression over `left` and one over `right`.
    fn equality(&self, node: &Node, left: &BTreeSet<i64>, right: &BTreeSet<i64>) -> Option<Equality> {
        if node.tag != "OPEXPR" {
            return None;
        }
        let function = builtin(self.facts(), operator_function(self.facts(), node)?.oid)?;
        let rules = collation_rules(self.facts(), node.oid("inputcollid").ok()?);
        if kernels::comparison(&function.source, rules)?.1 != Comparison::Eq {
            return None;
        }
        let [a, b]: [&Node; 2] = node.nodes("args").ok()?.try_into().ok()?;
        let (ea, eb) = (entries_of(a), entries_of(b));
        if ea.is_empty() || eb.is_empty() {
            return None;
        }
        let (l, r) = if ea.is_subset(left) && eb.is_subset(right) {
            (a, b)
        } else if eb.is_subset(left) && ea.is_subset(right) {
            (b, a)
        } else {
            return None;
        };
        // The operator's collation decides, and it is deterministic.
        let form = |n: &Node| {
            let ty = self.type_of(n).ok().filter(|t| t.class != TypeClass::Other)?;
            KeyForm::of(&TypeInfo { deterministic: true, ..ty })
        };
        let key = form(l)?;
        if form(r)? != key {
            return None;
        }
        let early = |n: &Node| compile(self.facts(), n).is_some_and(|e| e.is_infallible());
        Some(Equality { left: l.clone(), right: r.clone(), form: key, early: early(l) && early(r) })
    }

    /// Joins two parts on `conditions`, all of which are part of the join itself.
    pub(super) fn join(
        &mut self,
        kind: JoinKind,
        left: Part,
        right: Part,
        conditions: Vec<Condition>,
    ) -> Step<Stage> {
        let (left_entries, left) = left;
        let (right_entries, right) = right;
        let (mut left_keys, mut right_keys, mut forms, mut others) = (vec![], vec![], vec![], vec![]);
        for condition in conditions {
            match self.equality(&condition.node, &left_entries, &right_entries) {
                Some(e) => {
                    left_keys.push(left.place(&e.left)?);
                    right_keys.push(right.place(&e.right)?);
                    forms.push(e.form);
                }
                None => others.push(condition),
            }
        }
        if kind == JoinKind::Left && forms.is_empty() {
            for condition in &others {
                self.refuse_foreign_equality(&condition.node, &left_entries, &right_entries)?;
            }
            self.notice("an outer join has no equality condition: each pair of rows is compared");
        }
        // Of the conditions that PostgreSQL computes, those over the left side alone can be computed before the join.
        let is_remote = |c: &Condition| compile(self.facts(), &c.node).is_none();
        let (remote, others): (Vec<_>, Vec<_>) = others.into_iter().partition(is_remote);
        if remote.iter().any(|c| !c.entries.is_subset(&left_entries)) {
            return Err(Refusal::new(
                "unsupported.outer_join_condition",
                "the ON condition of an outer join compares both sides by something that only the server can compute",
            ));
        }
        let mut computed = left_keys;
        let key_count = computed.len();
        for condition in &remote {
            computed.push(left.place(&condition.node)?);
        }
        let (left, left_columns) = self.columns_for(left, &computed)?;
        let (right, right_columns) = self.columns_for(right, &right_keys)?;
        let on = (left_columns.iter().zip(&right_columns).zip(&forms))
            .map(|((&left, &right), &form)| JoinKey { left, right, form, nulls_match: false })
            .collect();
        let blocks = Stage::joined_blocks(&left, &right);
        let columns = left.columns.iter().chain(&right.columns).cloned().collect();
        let (left, right) = (Box::new(left.rel), Box::new(right.rel));
        let mut stage = Stage { rel: Rel::Constant { rows: Vec::new() }, columns, blocks };
        let mut residual = Vec::new();
        for condition in &others {
            let placed = stage.place(&condition.node)?;
            let expr = compile(self.facts(), &placed);
            residual.push(expr.ok_or_else(|| unknown_form("a join condition changed its form"))?);
        }
        residual.extend(left_columns[key_count..].iter().map(|&c| Expr::Column(c)));
        let residual = match residual.len() {
            0 => None,
            1 => residual.pop(),
            _ => Some(Expr::And(residual)),
        };
        stage.rel = Rel::Join { kind, left, right, on, residual };
        Ok(stage)
    }
}
