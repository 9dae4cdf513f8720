//! Proof of keys: sets of output columns that are unique and NOT NULL (D17).
//!
//! Invariant: only facts that the sources guarantee now are used: immediate, valid unique indexes over NOT NULL columns
//! of a table's own rows or of a partitioned table; none spans the children that inherit from a table (hazard A8). Whoever stores a plan keeps those constraints in
//! its fingerprint, for the user may drop them.

use std::collections::{BTreeSet, HashMap};

use super::expr::Expr;
use super::{Aggregate, AggregateFunction, GroupForm, GroupKey, JoinKind, Rel, SourceId, ViewId};
use crate::row::key::KeyForm;

/// Keys that a join could make out of its inputs' keys past this number are forgotten.
const MAX_KEYS: usize = 16;

/// What is known about the columns of a relation.
#[derive(Debug, Clone, Default)]
pub struct RelationKeys<C> {
    pub not_null: BTreeSet<C>,
    /// Unique sets of columns, all of which are NOT NULL.
    pub unique: Vec<Vec<C>>,
}

/// Facts by attnum for sources and by output column for stream tables.
#[derive(Debug, Clone, Default)]
pub struct KeyFacts {
    /// Of a partitioned table the root: what is unique there is unique across its leaves.
    pub sources: HashMap<SourceId, RelationKeys<i16>>,
    pub views: HashMap<ViewId, RelationKeys<usize>>,
}

/// The smallest proven key of the plan's output, the leftmost among equals. `None` where there is none, and where the
/// output is always one row, which needs no key.
pub fn derive(rel: &Rel, facts: &KeyFacts) -> Option<Vec<usize>> {
    let proven = prove(rel, facts);
    if proven.keys.iter().any(BTreeSet::is_empty) {
        return None;
    }
    let smallest =
        proven.keys.into_iter().min_by_key(|k| (k.len(), k.iter().copied().collect::<Vec<_>>()))?;
    Some(smallest.into_iter().collect())
}

/// Which columns of the operator are proven to be never NULL.
pub fn not_null(rel: &Rel, facts: &KeyFacts) -> Vec<bool> {
    prove(rel, facts).not_null
}

/// What holds for the rows of an operator. The columns of `keys` are NOT NULL.
struct Proven {
    not_null: Vec<bool>,
    /// Minimal sets only; the empty set says that there is at most one row.
    keys: Vec<BTreeSet<usize>>,
    /// Columns whose images together are unique, NULL being an image: enough for a join by images.
    images: Vec<BTreeSet<usize>>,
    /// Columns that decide others: a table's key decides its other columns, also where a join repeats its rows.
    dependencies: Vec<(BTreeSet<usize>, BTreeSet<usize>)>,
}

impl Proven {
    fn new(not_null: Vec<bool>, keys: impl IntoIterator<Item = BTreeSet<usize>>) -> Proven {
        let mut proven = Proven { not_null, keys: Vec::new(), images: Vec::new(), dependencies: Vec::new() };
        keys.into_iter().for_each(|k| proven.add(k));
        proven
    }

    fn add(&mut self, key: BTreeSet<usize>) {
        let known = key.iter().all(|&c| self.not_null.get(c) == Some(&true));
        if !known || self.keys.iter().any(|k| k.is_subset(&key)) {
            return;
        }
        self.keys.retain(|k| !key.is_subset(k));
        if self.keys.len() < MAX_KEYS {
            self.keys.push(key);
        }
    }

    /// Adds the dependencies of an input whose column `c` is now `place(c)`.
    fn inherit(&mut self, input: &Proven, place: impl Fn(usize) -> Option<usize>) {
        for (from, to) in &input.dependencies {
            if let Some(from) = from.iter().map(|&c| place(c)).collect::<Option<BTreeSet<_>>>() {
                self.dependencies.push((from, to.iter().filter_map(|&c| place(c)).collect()));
            }
        }
    }

    /// `columns` without those that the others decide; ones that may be NULL go first, then the rightmost.
    fn reduced(&self, columns: BTreeSet<usize>) -> BTreeSet<usize> {
        let mut order: Vec<usize> = columns.iter().rev().copied().collect();
        order.sort_by_key(|&c| self.not_null.get(c) == Some(&true));
        let mut kept = columns;
        for column in order {
            let mut rest = kept.clone();
            rest.remove(&column);
            if self.decided_by(&rest).contains(&column) {
                kept = rest;
            }
        }
        kept
    }

    fn decided_by(&self, columns: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut decided = columns.clone();
        loop {
            let before = decided.len();
            for (from, to) in &self.dependencies {
                if from.is_subset(&decided) {
                    decided.extend(to);
                }
            }
            if decided.len() == before {
                return decided;
            }
        }
    }
}

fn prove(rel: &Rel, facts: &KeyFacts) -> Proven {
    match rel {
        Rel::Source { source, attributes } => leaf(facts.sources.get(source), attributes),
        Rel::StreamTable { view, columns } => leaf(facts.views.get(view), columns),
        Rel::Constant { rows } => {
            let width = super::width(rel);
            let not_null = (0..width).map(|c| rows.iter().all(|r| !r.get(c).is_null())).collect();
            Proven::new(not_null, (rows.len() <= 1).then(BTreeSet::new))
        }
        Rel::Filter { input, predicate } => {
            let mut proven = prove(input, facts);
            let mut present = BTreeSet::new();
            not_null_if_true(predicate, &mut present);
            mark(&mut proven.not_null, present);
            proven
        }
        Rel::Project { input, exprs } => project(prove(input, facts), exprs),
        Rel::Evaluate { input, batch } => {
            let mut proven = prove(input, facts);
            proven.not_null.resize(proven.not_null.len() + batch.exprs.len(), false);
            proven
        }
        Rel::Join { kind, left, on, .. } if kind.is_left_only() => {
            let mut proven = prove(left, facts);
            let strict = on.iter().filter(|k| *kind == JoinKind::Semi && !k.nulls_match);
            mark(&mut proven.not_null, strict.map(|k| k.left).collect());
            proven
        }
        Rel::Join { kind, left, right, on, residual } => {
            let (left, right) = (prove(left, facts), prove(right, facts));
            join(*kind, left, right, on, residual.as_ref())
        }
        Rel::Aggregate { input, group, aggregates } => {
            let counts =
                |a: &Aggregate| matches!(a.function, AggregateFunction::CountStar | AggregateFunction::Count);
            grouped(prove(input, facts), group, aggregates.iter().map(counts).collect())
        }
        Rel::Group { input, batch, .. } if batch.form.keeps_rows() => {
            let mut proven = prove(input, facts);
            proven.not_null.resize(proven.not_null.len() + batch.exprs.len(), false);
            if batch.form == GroupForm::Sets {
                // A row may come more than once; its columns still decide what they did.
                proven.keys.clear();
                proven.images.clear();
            }
            proven
        }
        Rel::Group { input, keys, batch } => {
            grouped(prove(input, facts), keys, vec![false; batch.exprs.len()])
        }
        Rel::TopK { input, partition, limit, with_ties, .. } => {
            let mut proven = prove(input, facts);
            if *limit == Some(1) && !with_ties {
                let columns: BTreeSet<usize> = partition.iter().map(|k| k.column).collect();
                proven.images.push(columns.clone());
                if partition.iter().all(|k| k.form != KeyForm::Exact) {
                    proven.add(proven.reduced(columns));
                }
            }
            proven
        }
        Rel::Distinct { input, keys } => {
            let mut proven = prove(input, facts);
            proven.images.push((0..keys.len()).collect());
            if !keys.contains(&KeyForm::Exact) {
                proven.add(proven.reduced((0..keys.len()).collect()));
            }
            proven
        }
        Rel::SetOp { kind, all, left, right, keys } => {
            let mut proven = prove(left, facts);
            if *kind == super::SetOpKind::Intersect {
                let other = prove(right, facts).not_null;
                proven.not_null.iter_mut().zip(other).for_each(|(n, o)| *n |= o);
            }
            if !all {
                proven.images.push((0..keys.len()).collect());
                if !keys.contains(&KeyForm::Exact) {
                    proven.add(proven.reduced((0..keys.len()).collect()));
                }
            }
            proven
        }
        Rel::Recursive { base, distinct, .. } => {
            let mut proven = Proven::new(vec![false; super::width(base)], []);
            if let Some(keys) = distinct {
                proven.images.push((0..keys.len()).collect());
                if !keys.contains(&KeyForm::Exact) {
                    proven.add((0..keys.len()).collect());
                }
            }
            proven
        }
        Rel::RecursiveReference { width, .. } => Proven::new(vec![false; *width], []),
        Rel::UnionAll { inputs } => {
            let mut not_null = vec![true; super::width(rel)];
            for input in inputs {
                let proven = prove(input, facts);
                not_null.iter_mut().zip(proven.not_null).for_each(|(all, one)| *all &= one);
            }
            Proven::new(not_null, [])
        }
        Rel::Partitioned { root, attributes, .. } => leaf(facts.sources.get(root), attributes),
    }
}

/// One row per group; `aggregates` says which of them are never NULL.
fn grouped(input: Proven, group: &[GroupKey], aggregates: Vec<bool>) -> Proven {
    let columns: Vec<usize> = group.iter().map(|g| g.column).collect();
    let mut not_null: Vec<bool> = columns.iter().map(|&c| input.not_null[c]).collect();
    not_null.extend(aggregates);
    let mut proven = Proven::new(not_null, []);
    proven.inherit(&input, |c| columns.iter().position(|g| *g == c));
    proven.images.push((0..columns.len()).collect());
    // Grouping by images can tell apart what the type's equality does not.
    let key = proven.reduced((0..columns.len()).collect());
    if key.iter().all(|&c| group[c].form != KeyForm::Exact) {
        proven.add(key);
    }
    for key in &input.keys {
        let mapped: Option<BTreeSet<usize>> =
            key.iter().map(|k| columns.iter().position(|c| c == k)).collect();
        mapped.into_iter().for_each(|k| proven.add(k));
    }
    proven
}

fn leaf<C: Copy + Ord>(relation: Option<&RelationKeys<C>>, columns: &[C]) -> Proven {
    let Some(relation) = relation else {
        return Proven::new(vec![false; columns.len()], []);
    };
    let not_null = columns.iter().map(|c| relation.not_null.contains(c)).collect();
    let place = |key: &Vec<C>| -> Option<BTreeSet<usize>> {
        key.iter().map(|k| columns.iter().position(|c| c == k)).collect()
    };
    let mut proven = Proven::new(not_null, relation.unique.iter().filter_map(place));
    let all: BTreeSet<usize> = (0..columns.len()).collect();
    proven.dependencies = proven.keys.iter().map(|k| (k.clone(), all.clone())).collect();
    proven
}

fn mark(not_null: &mut [bool], columns: BTreeSet<usize>) {
    for column in columns {
        if let Some(known) = not_null.get_mut(column) {
            *known = true;
        }
    }
}

fn project(input: Proven, exprs: &[Expr]) -> Proven {
    let not_null = exprs.iter().map(|e| never_null(e, &input.not_null)).collect();
    let place = |key: &BTreeSet<usize>| -> Option<BTreeSet<usize>> {
        key.iter().map(|k| exprs.iter().position(|e| *e == Expr::Column(*k))).collect()
    };
    let mut proven = Proven::new(not_null, input.keys.iter().filter_map(place));
    proven.images = input.images.iter().filter_map(place).collect();
    proven.inherit(&input, |c| exprs.iter().position(|e| *e == Expr::Column(c)));
    proven
}

fn join(
    kind: JoinKind,
    left: Proven,
    right: Proven,
    on: &[super::JoinKey],
    residual: Option<&Expr>,
) -> Proven {
    let width = left.not_null.len();
    let (left_on, right_on): (BTreeSet<usize>, BTreeSet<usize>) =
        on.iter().map(|k| (k.left, k.right)).unzip();
    // At most one partner: some key of the other side is among its join columns (which are NOT NULL where they match).
    let by_image = |k: &&super::JoinKey| matches!(k.form, KeyForm::Image | KeyForm::Exact);
    let (left_images, right_images): (BTreeSet<usize>, BTreeSet<usize>) =
        on.iter().filter(by_image).map(|k| (k.left, k.right)).unzip();
    let one = |side: &Proven, on: &BTreeSet<usize>, images: &BTreeSet<usize>| {
        side.keys.iter().any(|k| k.is_subset(on)) || side.images.iter().any(|k| k.is_subset(images))
    };
    let one_right = one(&right, &right_on, &right_images);
    let one_left = one(&left, &left_on, &left_images);
    let mut not_null = left.not_null.clone();
    match kind {
        JoinKind::Inner => {
            not_null.extend(&right.not_null);
            let strict = || on.iter().filter(|k| !k.nulls_match);
            let mut present: BTreeSet<usize> = strict().map(|k| k.left).collect();
            present.extend(strict().map(|k| k.right + width));
            residual.iter().for_each(|r| not_null_if_true(r, &mut present));
            mark(&mut not_null, present);
        }
        JoinKind::Full => not_null = vec![false; width + right.not_null.len()],
        _ => not_null.resize(width + right.not_null.len(), false),
    }
    let shifted: Vec<BTreeSet<usize>> =
        right.keys.iter().map(|k| k.iter().map(|c| c + width).collect()).collect();
    let mut proven = Proven::new(not_null, []);
    // An unmatched row has NULL in all columns of the right side, which keeps its dependencies true.
    proven.inherit(&left, Some);
    proven.inherit(&right, |c| Some(c + width));
    if kind == JoinKind::Full {
        return proven;
    }
    if one_right {
        left.keys.iter().for_each(|k| proven.add(k.clone()));
    }
    if kind == JoinKind::Inner {
        if one_left {
            shifted.iter().for_each(|k| proven.add(k.clone()));
        }
        for l in &left.keys {
            shifted.iter().for_each(|r| proven.add(l.union(r).copied().collect()));
        }
    }
    proven
}

/// Columns that can't be NULL where the predicate is true: those that a strict comparison or a NULL test reads.
fn not_null_if_true(predicate: &Expr, out: &mut BTreeSet<usize>) {
    match predicate {
        Expr::And(args) => args.iter().for_each(|a| not_null_if_true(a, out)),
        Expr::IsNotNull(arg) => strict_columns(arg, out),
        other => strict_columns(other, out),
    }
}

/// Columns whose NULL makes the expression NULL.
fn strict_columns(expr: &Expr, out: &mut BTreeSet<usize>) {
    match expr {
        Expr::Column(c) => {
            out.insert(*c);
        }
        Expr::Call { args, .. } => args.iter().for_each(|a| strict_columns(a, out)),
        Expr::Not(arg) => strict_columns(arg, out),
        _ => {}
    }
}

fn never_null(expr: &Expr, not_null: &[bool]) -> bool {
    match expr {
        Expr::Column(c) => not_null.get(*c) == Some(&true),
        Expr::Literal(row) => !row.get(0).is_null(),
        // Strict kernels give NULL only for NULL.
        Expr::Call { args, .. } | Expr::And(args) | Expr::Or(args) => {
            args.iter().all(|a| never_null(a, not_null))
        }
        Expr::Not(arg) => never_null(arg, not_null),
        Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::BooleanTest { .. } | Expr::Distinct { .. } => true,
        Expr::Case { branches, otherwise } => {
            branches.iter().all(|(_, then)| never_null(then, not_null)) && never_null(otherwise, not_null)
        }
        Expr::Coalesce(args) => args.iter().any(|a| never_null(a, not_null)),
        Expr::NullIf { .. } => false,
    }
}
