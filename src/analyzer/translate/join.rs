//! Joins: which conditions are keys, in which order tables are joined, what stays as a residual.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::expr::{Comparison, Expr};
use crate::plan::{JoinKey, JoinKind, Rel};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, TypeClass, TypeInfo};

use super::frame::Level;
use super::from::{Condition, sides};
use super::lateral::Lateral;
use super::native::{builtin, collation_rules, compile, operator_function};
use super::refusal::{Refusal, Step};
use super::stage::{OUTER, Stage, placed_column};
use super::subquery::has_subplan;
use super::{Translator, guards, kernels, types, unknown_form};

/// A stage and the range table entries in it.
pub(super) type Part = (BTreeSet<i64>, Stage);

/// `left expression = right expression`, one per side.
pub(super) struct Equality {
    pub left: Node,
    pub right: Node,
    pub form: KeyForm,
    /// `IS NOT DISTINCT FROM`.
    pub nulls_match: bool,
    /// Neither side can fail.
    early: bool,
}

impl Translator<'_> {
    /// Joins parts along their equality keys, in FROM order where there is a choice. Conditions that became part of a
    /// join are removed.
    pub(super) fn arrange(
        &mut self,
        frame: &Level,
        mut parts: Vec<Part>,
        mut laterals: Vec<Lateral<'_>>,
        conditions: &mut Vec<Condition>,
    ) -> Step<Stage> {
        let mut current = parts.remove(0);
        current = self.extend(current, &mut parts, conditions)?;
        loop {
            if let Some(index) = laterals.iter().position(|l| l.needs.is_subset(&current.0)) {
                let lateral = laterals.remove(index);
                // As the server does: rows that they exclude could cost the item an error, or have no end.
                let (mut first, mut rest) = (Vec::new(), Vec::new());
                for c in conditions.drain(..) {
                    let own = !c.entries.is_empty() && c.entries.is_subset(&lateral.needs);
                    if own && !self.is_late(&c.node)? { first.push(c) } else { rest.push(c) }
                }
                *conditions = rest;
                current.1 = self.filter_all(current.1, first)?;
                let mut entries = super::from::entries_below(lateral.item)?;
                entries.extend(&current.0);
                let usable = |c: &Condition| c.early && c.entries.is_subset(&entries);
                let (used, rest): (Vec<_>, Vec<_>) = conditions.drain(..).partition(usable);
                *conditions = rest;
                current = self.apply(frame, JoinKind::Inner, current, lateral, used)?;
                current = self.extend(current, &mut parts, conditions)?;
                continue;
            }
            if parts.is_empty() {
                break;
            }
            let next = parts.remove(0);
            let next = self.extend(next, &mut parts, conditions)?;
            current = self.inner(current, next, conditions)?;
            current = self.extend(current, &mut parts, conditions)?;
        }
        if !laterals.is_empty() {
            return Err(unknown_form("a LATERAL item that refers to nothing in FROM"));
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
                let outer = current.0.contains(&OUTER) && part.0.contains(&OUTER);
                outer || conditions.iter().any(|c| self.is_key(&c.node, &current.0, &part.0))
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
        let has_key = conditions.iter().any(|c| self.equality(&c.node, &left.0, &right.0).is_some());
        let usable = |c: &Condition| {
            let covered = !c.entries.is_empty() && c.entries.is_subset(&entries);
            let key = |c: &Condition| {
                self.hashed_equality(&c.node, &left.0, &right.0).is_some()
                    || self.server_equality(&c.node, &left.0, &right.0).is_some()
            };
            let hashed = !has_key && key(c);
            // A key that may fail is computed before the join only if there is no other key.
            let key = self.equality(&c.node, &left.0, &right.0).is_some_and(|e| e.early || !early_key);
            covered
                && (key
                    || hashed
                    || (c.early && !c.entries.is_subset(&left.0) && !c.entries.is_subset(&right.0)))
        };
        let (used, rest): (Vec<_>, Vec<_>) = conditions.drain(..).partition(usable);
        *conditions = rest;
        let outer = left.0.contains(&OUTER) && right.0.contains(&OUTER);
        if !outer && !used.iter().any(|c| self.is_key(&c.node, &left.0, &right.0)) {
            self.without_key(&left, &right, conditions)?;
        }
        let stage = self.join(JoinKind::Inner, left, right, used, Vec::new())?;
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

    /// Whether the condition gives a join of the two sides a key.
    pub(super) fn is_key(&self, node: &Node, left: &BTreeSet<i64>, right: &BTreeSet<i64>) -> bool {
        self.equality(node, left, right).is_some()
            || self.hashed_equality(node, left, right).is_some()
            || self.server_equality(node, left, right).is_some()
    }

    fn refuse_foreign_equality(&self, node: &Node, left: &BTreeSet<i64>, right: &BTreeSet<i64>) -> Step<()> {
        let name =
            node.oid("opno").ok().and_then(|o| self.facts().operators.get(&o)).map(|o| o.name.as_str());
        if node.tag != "OPEXPR" || name != Some("=") || self.equality(node, left, right).is_some() {
            return Ok(());
        }
        let args = node.nodes("args")?;
        let [a, b] = args.as_slice() else { return Ok(()) };
        if sides(node, left, right).is_none() {
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
    pub(super) fn equality(
        &self,
        node: &Node,
        left: &BTreeSet<i64>,
        right: &BTreeSet<i64>,
    ) -> Option<Equality> {
        let negated = node.tag == "BOOLEXPR" && node.text("boolop").as_deref() == Some("not");
        let distinct =
            node.list("args").first().and_then(|a| a.as_node()).filter(|a| a.tag == "DISTINCTEXPR");
        match distinct.filter(|_| negated) {
            Some(distinct) => {
                let equality = self.comparison(distinct, left, right, Comparison::Eq)?;
                Some(Equality { nulls_match: true, ..equality })
            }
            None if node.tag == "OPEXPR" => self.comparison(node, left, right, Comparison::Eq),
            None => None,
        }
    }

    /// The sides of a comparison across `left` and `right`: those of `=`, or of `<>`.
    pub(super) fn comparison(
        &self,
        node: &Node,
        left: &BTreeSet<i64>,
        right: &BTreeSet<i64>,
        wanted: Comparison,
    ) -> Option<Equality> {
        if !matches!(node.tag.as_str(), "OPEXPR" | "DISTINCTEXPR") {
            return None;
        }
        let function = builtin(self.facts(), operator_function(self.facts(), node)?.oid)?;
        let rules = collation_rules(self.facts(), node.oid("inputcollid").ok()?);
        let by_text = wanted == Comparison::Eq && self.equal_by_text(node);
        if !by_text && kernels::comparison(&function.source, rules)?.1 != wanted {
            return None;
        }
        let (l, r) = sides(node, left, right)?;
        // The operator's collation decides, and it is deterministic.
        let form = |n: &Node| {
            if by_text {
                return Some(KeyForm::Image);
            }
            let ty = self.type_of(n).ok().filter(|t| t.class != TypeClass::Other)?;
            KeyForm::of(&TypeInfo { deterministic: true, ..ty })
        };
        let key = form(l)?;
        if form(r)? != key {
            return None;
        }
        let early = |n: &Node| compile(self.facts(), n).is_some_and(|e| e.is_infallible());
        let early = early(l) && early(r);
        Some(Equality { left: l.clone(), right: r.clone(), form: key, nulls_match: false, early })
    }

    /// Joins two parts on `conditions` and `keys` (over their columns), all of which are part of the join itself. Semi and
    /// Anti put out the left part.
    pub(super) fn join(
        &mut self,
        kind: JoinKind,
        left: Part,
        right: Part,
        conditions: Vec<Condition>,
        mut keys: Vec<JoinKey>,
    ) -> Step<Stage> {
        let (left_entries, left) = left;
        let (right_entries, right) = right;
        for (l, r) in left.outer_columns().into_iter().zip(right.outer_columns()) {
            let form = KeyForm::by_image(&left.columns[l]);
            keys.push(JoinKey { left: l, right: r, form, nulls_match: true });
        }
        let (mut left_nodes, mut right_nodes, mut forms, mut others) = (vec![], vec![], vec![], vec![]);
        let mut by_server = Vec::new();
        for condition in conditions {
            match self.equality(&condition.node, &left_entries, &right_entries) {
                Some(e) => {
                    left_nodes.push(left.place(&e.left)?);
                    right_nodes.push(right.place(&e.right)?);
                    forms.push((e.form, e.nulls_match));
                }
                None => match self.server_equality(&condition.node, &left_entries, &right_entries) {
                    Some(e) => by_server.push(e),
                    None => others.push(condition),
                },
            }
        }
        let (mut left_hashes, mut right_hashes) = (Vec::new(), Vec::new());
        if forms.is_empty() && keys.is_empty() && by_server.is_empty() {
            for condition in &others {
                let sides = self.hashed_equality(&condition.node, &left_entries, &right_entries);
                let Some((l, r)) = sides else { continue };
                let collation = condition.node.oid("inputcollid")?;
                left_hashes.push((left.place(&l)?, collation));
                right_hashes.push((right.place(&r)?, collation));
            }
        }
        let (left, left_hashes) = self.with_hashes(left, &left_hashes)?;
        let (right, right_hashes) = self.with_hashes(right, &right_hashes)?;
        for (left, right) in left_hashes.into_iter().zip(right_hashes) {
            keys.push(JoinKey { left, right, form: KeyForm::Image, nulls_match: false });
        }
        let keyed = !forms.is_empty() || !keys.is_empty() || !by_server.is_empty();
        if kind != JoinKind::Inner && !keyed && !others.is_empty() {
            for condition in &others {
                self.refuse_foreign_equality(&condition.node, &left_entries, &right_entries)?;
            }
            self.notice("an outer join or subquery has no equality condition: each pair of rows is compared");
        }
        // Of the conditions that PostgreSQL computes, those over one side alone can be computed before the join.
        let is_remote = |c: &Condition| compile(self.facts(), &c.node).is_none();
        let (remote, others): (Vec<_>, Vec<_>) = others.into_iter().partition(is_remote);
        let (on_left, remote): (Vec<_>, Vec<_>) =
            remote.into_iter().partition(|c| c.entries.is_subset(&left_entries));
        let (on_right, across): (Vec<_>, Vec<_>) =
            remote.into_iter().partition(|c| c.entries.is_subset(&right_entries));
        let key_count = forms.len();
        let of_side = |entries: &BTreeSet<i64>| {
            let own = |c: &&Condition| {
                !c.entries.is_empty() && c.entries.is_subset(entries) && !has_subplan(&c.node)
            };
            others
                .iter()
                .chain(&on_left)
                .chain(&on_right)
                .filter(own)
                .map(|c| c.node.clone())
                .collect::<Vec<_>>()
        };
        let (first_left, first_right) = (of_side(&left_entries), of_side(&right_entries));
        for condition in &on_left {
            left_nodes.push(left.place(&guards::behind(&first_left, &condition.node))?);
        }
        for condition in &on_right {
            right_nodes.push(right.place(&guards::behind(&first_right, &condition.node))?);
        }
        let (left, left_columns) = self.columns_for(left, &left_nodes)?;
        let (right, right_columns) = self.columns_for(right, &right_nodes)?;
        keys.extend(
            left_columns
                .iter()
                .zip(&right_columns)
                .zip(&forms)
                .map(|((&left, &right), &(form, nulls_match))| JoinKey { left, right, form, nulls_match }),
        );
        let (mut left, mut right) = (left, right);
        for equality in &by_server {
            let key;
            (left, right, key) = self.joined_by_server(equality, left, right)?;
            keys.push(key);
        }
        let blocks = Stage::joined_blocks(&left, &right);
        let columns: Vec<TypeInfo> = left.columns.iter().chain(&right.columns).cloned().collect();
        let width = left.columns.len();
        let pairs = Stage { rel: Rel::Constant { rows: Vec::new() }, columns, blocks };
        let mut residual = Vec::new();
        for condition in &others {
            let placed = pairs.place(&condition.node)?;
            let expr = compile(self.facts(), &placed);
            residual.push(expr.ok_or_else(|| unknown_form("a join condition changed its form"))?);
        }
        residual.extend(left_columns[key_count..].iter().map(|&c| Expr::Column(c)));
        residual.extend(right_columns[key_count..].iter().map(|&c| Expr::Column(c + width)));
        let residual = match residual.len() {
            0 => None,
            1 => residual.pop(),
            _ => Some(Expr::And(residual)),
        };
        let across = across.iter().map(|c| pairs.place(&c.node)).collect::<Step<Vec<_>>>()?;
        let join = Join { kind, left, right, on: keys, residual };
        if across.is_empty() || kind == JoinKind::Inner {
            let stage = join.stage(pairs);
            return self.filter(stage, &across);
        }
        self.composed(join, pairs, &across)
    }

    /// A join with conditions that PostgreSQL computes for pairs: the pairs that hold make up an inner join, and what has
    /// no partner is found by the columns that the conditions read.
    fn composed(&mut self, join: Join, pairs: Stage, across: &[Node]) -> Step<Stage> {
        let Join { kind, left, right, on, residual } = join;
        let width = left.columns.len();
        let total = pairs.columns.len();
        let mut read: BTreeSet<usize> = on.iter().flat_map(|k| [k.left, k.right + width]).collect();
        residual.iter().for_each(|e| e.each_column(&mut |c| read.extend([c])));
        across.iter().for_each(|n| n.walk(&mut |n| read.extend(placed_column(n))));
        let inner = Join { kind: JoinKind::Inner, left: left.clone(), right: right.clone(), on, residual };
        let pairs = self.filter(inner.stage(pairs), across)?;
        let reduced = |kind, side: &Stage, first: usize| {
            let columns: Vec<usize> =
                read.iter().filter(|&&c| c >= first && c < first + side.columns.len()).copied().collect();
            let exprs = columns.iter().map(|&c| Expr::Column(c)).collect();
            let matched = Rel::Project { input: Box::new(pairs.rel.clone()), exprs };
            let key = |(right, &c): (usize, &usize)| {
                let form = KeyForm::by_image(&pairs.columns[c]);
                JoinKey { left: c - first, right, form, nulls_match: true }
            };
            let on = columns.iter().enumerate().map(key).collect();
            let (left, right) = (Box::new(side.rel.clone()), Box::new(matched));
            Rel::Join { kind, left, right, on, residual: None }
        };
        if kind.is_left_only() {
            return Ok(Stage { rel: reduced(kind, &left, 0), ..left });
        }
        let padded = |input: Rel, from: usize, count: usize| {
            let null = Expr::Literal(Row::from_datums([Datum::Null]));
            let own = |c: usize| (c >= from && c < from + count).then(|| Expr::Column(c - from));
            let exprs = (0..total).map(|c| own(c).unwrap_or_else(|| null.clone())).collect();
            Rel::Project { input: Box::new(input), exprs }
        };
        let mut inputs = vec![padded(pairs.rel.clone(), 0, total)];
        inputs.push(padded(reduced(JoinKind::Anti, &left, 0), 0, width));
        if kind == JoinKind::Full {
            inputs.push(padded(reduced(JoinKind::Anti, &right, width), width, total - width));
        }
        let columns = pairs.columns[..total].to_vec();
        Ok(Stage { rel: Rel::UnionAll { inputs }, columns, blocks: pairs.blocks })
    }
}

/// A join whose keys and residual are columns and native expressions.
struct Join {
    kind: JoinKind,
    left: Stage,
    right: Stage,
    on: Vec<JoinKey>,
    residual: Option<Expr>,
}

impl Join {
    /// The joined rows; `pairs` describes those of left and right.
    fn stage(self, pairs: Stage) -> Stage {
        let Join { kind, left, right, on, residual } = self;
        let (columns, blocks) = match kind.is_left_only() {
            true => (left.columns, left.blocks),
            false => (pairs.columns, pairs.blocks),
        };
        let (left, right) = (Box::new(left.rel), Box::new(right.rel));
        Stage { rel: Rel::Join { kind, left, right, on, residual }, columns, blocks }
    }
}
