//! Column pruning: each operator keeps only columns that something above reads, so that sources send little and state
//! is narrow.

use std::collections::{BTreeSet, HashMap};

use crate::plan::expr::Expr;
use crate::plan::{
    Aggregate, GroupBatch, GroupForm, GroupKey, JoinKey, Rel, RemoteBatch, RemoteInput, SortKey, width,
};
use crate::row::Row;

/// Where each old column is now.
type Map = Vec<Option<usize>>;

/// The same rows from an operator tree without superfluous columns; the columns of `rel` itself all stay.
pub fn prune(rel: Rel) -> Rel {
    let width = width(&rel);
    let all: BTreeSet<usize> = (0..width).collect();
    let mut shared = Shared::of(&rel);
    if !shared.needs.is_empty() {
        // The first pass finds out what all mentions of a subtree together need.
        exact(rel.clone(), &all, &mut shared);
        shared.collecting = false;
    }
    exact(rel, &all, &mut shared)
}

/// Subtrees that the plan mentions several times, with the columns that any mention needs: they stay equal, so that the
/// dataflow has them once.
struct Shared {
    needs: HashMap<Rel, BTreeSet<usize>>,
    collecting: bool,
}

impl Shared {
    fn of(rel: &Rel) -> Shared {
        let mut seen: HashMap<&Rel, bool> = HashMap::new();
        rel.walk(&mut |r| {
            seen.entry(r).and_modify(|again| *again = true).or_insert(false);
        });
        let leaf = |r: &Rel| r.inputs().is_empty();
        let repeated = seen.into_iter().filter(|(r, again)| *again && !leaf(r));
        Shared { needs: repeated.map(|(r, _)| (r.clone(), BTreeSet::new())).collect(), collecting: true }
    }

    /// What `rel` shall put out when `need` is needed here.
    fn need(&mut self, rel: &Rel, need: &BTreeSet<usize>) -> BTreeSet<usize> {
        let Some(all) = self.needs.get_mut(rel) else { return need.clone() };
        if !self.collecting {
            return all.clone();
        }
        all.extend(need);
        need.clone()
    }
}

/// `rel` with exactly the columns `need`, in ascending order of the old positions.
fn exact(rel: Rel, need: &BTreeSet<usize>, shared: &mut Shared) -> Rel {
    let (rel, map) = narrow(rel, need, shared);
    let columns: Vec<usize> = need.iter().map(|&c| moved(&map, c)).collect();
    if columns.len() == width(&rel) && columns.iter().enumerate().all(|(i, &c)| i == c) {
        return rel;
    }
    project(rel, columns.into_iter().map(Expr::Column).collect())
}

/// Map of the result of [`exact`].
fn exact_map(width: usize, need: &BTreeSet<usize>) -> Map {
    let mut map = vec![None; width];
    need.iter().enumerate().for_each(|(new, &old)| map[old] = Some(new));
    map
}

fn moved(map: &Map, column: usize) -> usize {
    map.get(column).copied().flatten().unwrap_or(column)
}

/// A projection, merged with one below it where that duplicates no work.
fn project(input: Rel, exprs: Vec<Expr>) -> Rel {
    let cheap = |e: &Expr| matches!(e, Expr::Column(_) | Expr::Literal(_));
    match input {
        Rel::Project { input, exprs: below }
            if exprs.iter().all(|e| matches!(e, Expr::Column(_))) || below.iter().all(cheap) =>
        {
            let exprs = exprs.into_iter().map(|e| substitute(e, &below)).collect();
            Rel::Project { input, exprs }
        }
        input => Rel::Project { input: Box::new(input), exprs },
    }
}

/// `rel` with at least the columns `need` and the map from old to new columns.
fn narrow(rel: Rel, need: &BTreeSet<usize>, shared: &mut Shared) -> (Rel, Map) {
    let need = &shared.need(&rel, need);
    match rel {
        Rel::Source { source, attributes } => {
            let kept = need.iter().filter_map(|&c| attributes.get(c).copied()).collect();
            (Rel::Source { source, attributes: kept }, exact_map(attributes.len(), need))
        }
        Rel::StreamTable { view, columns } => {
            let kept = need.iter().filter_map(|&c| columns.get(c).copied()).collect();
            (Rel::StreamTable { view, columns: kept }, exact_map(columns.len(), need))
        }
        Rel::Constant { rows } => {
            let width = rows.first().map_or(0, |r| r.iter().count());
            let columns: Vec<usize> = need.iter().copied().collect();
            let rows: Vec<Row> = rows.iter().map(|r| r.project(&columns)).collect();
            (Rel::Constant { rows }, exact_map(width, need))
        }
        Rel::Filter { input, predicate } => {
            let mut inner = need.clone();
            columns_of(&predicate, &mut inner);
            let (input, map) = narrow(*input, &inner, shared);
            (Rel::Filter { input: Box::new(input), predicate: remap(predicate, &map) }, map)
        }
        Rel::Project { input, exprs } => {
            let map = exact_map(exprs.len(), need);
            let kept: Vec<Expr> =
                exprs.into_iter().enumerate().filter(|(i, _)| need.contains(i)).map(|(_, e)| e).collect();
            let mut inner = BTreeSet::new();
            kept.iter().for_each(|e| columns_of(e, &mut inner));
            let (input, below) = narrow(*input, &inner, shared);
            let kept: Vec<Expr> = kept.into_iter().map(|e| remap(e, &below)).collect();
            let identity =
                kept.len() == width(&input) && kept.iter().enumerate().all(|(i, e)| *e == Expr::Column(i));
            (if identity { input } else { project(input, kept) }, map)
        }
        Rel::Evaluate { input, batch } => evaluate(*input, batch, need, shared),
        Rel::Join { kind, left, right, on, residual } => {
            let left_width = width(&left);
            let mut all: BTreeSet<usize> = match kind.is_left_only() {
                true => need.iter().filter(|&&c| c < left_width).copied().collect(),
                false => need.clone(),
            };
            residual.iter().for_each(|e| columns_of(e, &mut all));
            let mut left_need: BTreeSet<usize> = all.iter().filter(|&&c| c < left_width).copied().collect();
            let mut right_need: BTreeSet<usize> =
                all.iter().filter(|&&c| c >= left_width).map(|c| c - left_width).collect();
            left_need.extend(on.iter().map(|k| k.left));
            right_need.extend(on.iter().map(|k| k.right));
            let (lm, rm) = (exact_map(left_width, &left_need), exact_map(width(&right), &right_need));
            let left = exact(*left, &left_need, shared);
            let right = exact(*right, &right_need, shared);
            let offset = left_need.len();
            let mut map: Map = lm.iter().copied().chain(rm.iter().map(|c| c.map(|c| c + offset))).collect();
            let on = on
                .into_iter()
                .map(|k| JoinKey { left: moved(&lm, k.left), right: moved(&rm, k.right), ..k })
                .collect();
            let residual = residual.map(|e| remap(e, &map));
            if kind.is_left_only() {
                map.truncate(left_width);
            }
            (Rel::Join { kind, left: Box::new(left), right: Box::new(right), on, residual }, map)
        }
        Rel::Aggregate { input, group, aggregates } => aggregate(*input, group, aggregates, need, shared),
        Rel::Group { input, keys, batch } if batch.form.keeps_rows() => {
            rows(*input, keys, batch, need, shared)
        }
        Rel::Group { input, keys, batch } => groups(*input, keys, batch, need, shared),
        Rel::TopK { input, partition, order, offset, limit, with_ties } => {
            // Every column decides which of equal rows come first: the input keeps only what is read, but all of that.
            let mut inner = need.clone();
            inner.extend(partition.iter().map(|k| k.column).chain(order.iter().map(|k| k.column)));
            let (input, map) = narrow(*input, &inner, shared);
            let partition =
                partition.into_iter().map(|k| GroupKey { column: moved(&map, k.column), ..k }).collect();
            let order = order.into_iter().map(|k| SortKey { column: moved(&map, k.column), ..k }).collect();
            (Rel::TopK { input: Box::new(input), partition, order, offset, limit, with_ties }, map)
        }
        Rel::Distinct { input, keys } => {
            let all: BTreeSet<usize> = (0..keys.len()).collect();
            let map = exact_map(keys.len(), &all);
            (Rel::Distinct { input: Box::new(exact(*input, &all, shared)), keys }, map)
        }
        Rel::SetOp { kind, all, left, right, keys } => {
            let columns: BTreeSet<usize> = (0..keys.len()).collect();
            let map = exact_map(keys.len(), &columns);
            let left = Box::new(exact(*left, &columns, shared));
            let right = Box::new(exact(*right, &columns, shared));
            (Rel::SetOp { kind, all, left, right, keys }, map)
        }
        Rel::Recursive { id, base, step, distinct } => {
            // The reference has all columns, so all stay.
            let all: BTreeSet<usize> = (0..width(&base)).collect();
            let map = exact_map(all.len(), &all);
            let (base, step) = (exact(*base, &all, shared), exact(*step, &all, shared));
            (Rel::Recursive { id, base: Box::new(base), step: Box::new(step), distinct }, map)
        }
        rel @ Rel::RecursiveReference { .. } => {
            let all: BTreeSet<usize> = (0..width(&rel)).collect();
            let map = exact_map(all.len(), &all);
            (rel, map)
        }
        Rel::UnionAll { inputs } => {
            let map = exact_map(inputs.first().map_or(0, width), need);
            (Rel::UnionAll { inputs: inputs.into_iter().map(|i| exact(i, need, shared)).collect() }, map)
        }
        Rel::Partitioned { root, attributes, leaves } => {
            let map = exact_map(attributes.len(), need);
            let leaves = leaves.into_iter().map(|i| exact(i, need, shared)).collect();
            let attributes = need.iter().filter_map(|&c| attributes.get(c).copied()).collect();
            (Rel::Partitioned { root, attributes, leaves }, map)
        }
    }
}

/// An Evaluate without unused expressions keeps its state narrow; the inputs stay as the SQL names them.
fn evaluate(input: Rel, batch: RemoteBatch, need: &BTreeSet<usize>, shared: &mut Shared) -> (Rel, Map) {
    let before = width(&input);
    let total = before + batch.exprs.len();
    let mut inner: BTreeSet<usize> = need.iter().filter(|&&c| c < before).copied().collect();
    let kept: Vec<usize> = (0..batch.exprs.len()).filter(|i| need.contains(&(before + i))).collect();
    if kept.is_empty() {
        let (input, mut map) = narrow(input, &inner, shared);
        map.resize(total, None);
        return (input, map);
    }
    inner.extend(batch.inputs.iter().map(|i| i.column));
    let mut map = exact_map(before, &inner);
    let input = exact(input, &inner, shared);
    let inputs =
        batch.inputs.into_iter().map(|i| RemoteInput { column: moved(&map, i.column), ..i }).collect();
    map.resize(total, None);
    kept.iter().enumerate().for_each(|(new, old)| map[before + old] = Some(inner.len() + new));
    let exprs =
        batch.exprs.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, e)| e).collect();
    (
        Rel::Evaluate { input: Box::new(input), batch: RemoteBatch { inputs, exprs, owner_function: None } },
        map,
    )
}

/// The expressions of a batch that are read, with its inputs where they are now.
fn narrowed(batch: GroupBatch, kept: &[usize], map: &Map) -> GroupBatch {
    let inputs =
        batch.inputs.into_iter().map(|i| RemoteInput { column: moved(map, i.column), ..i }).collect();
    let exprs =
        batch.exprs.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, e)| e).collect();
    GroupBatch { inputs, exprs, ..batch }
}

/// Window functions and sets, which keep the input's columns.
fn rows(
    input: Rel,
    keys: Vec<GroupKey>,
    batch: GroupBatch,
    need: &BTreeSet<usize>,
    shared: &mut Shared,
) -> (Rel, Map) {
    let before = width(&input);
    let total = before + batch.exprs.len();
    let mut inner: BTreeSet<usize> = need.iter().filter(|&&c| c < before).copied().collect();
    // Functions in the select list make the rows, whether their values are read or not; those in FROM are in the tail.
    let makes_rows = batch.form == GroupForm::Sets && batch.tail.is_empty();
    let mut kept: Vec<usize> =
        (0..batch.exprs.len()).filter(|i| makes_rows || need.contains(&(before + i))).collect();
    // A function that fails leaves a row of errors: somebody has to look at one of them. By its results alone a batch is
    // also known to run users' code, which must run as the owner.
    let unread = batch.form == GroupForm::Sets && !(before..total).any(|c| need.contains(&c));
    if kept.is_empty() && unread && total > before {
        kept.push(0);
    }
    if kept.is_empty() && batch.form == GroupForm::Windows {
        let (input, mut map) = narrow(input, &inner, shared);
        map.resize(total, None);
        return (input, map);
    }
    inner.extend(batch.inputs.iter().map(|i| i.column));
    inner.extend(keys.iter().map(|k| k.column));
    let mut map = exact_map(before, &inner);
    let input = Box::new(exact(input, &inner, shared));
    map.resize(total, None);
    kept.iter().enumerate().for_each(|(new, old)| map[before + old] = Some(inner.len() + new));
    let keys = keys.into_iter().map(|k| GroupKey { column: moved(&map, k.column), ..k }).collect();
    let batch = narrowed(batch, &kept, &map);
    let made = Rel::Group { input, keys, batch };
    match unread && !kept.is_empty() {
        true => (looked_at(made, inner.len()), map),
        false => (made, map),
    }
}

/// All rows; an error in the column is one of its row.
fn looked_at(input: Rel, column: usize) -> Rel {
    let value = || Box::new(Expr::Column(column));
    let predicate = Expr::Or(vec![Expr::IsNull(value()), Expr::IsNotNull(value())]);
    Rel::Filter { input: Box::new(input), predicate }
}

/// Aggregates that PostgreSQL computes; the keys stay.
fn groups(
    input: Rel,
    keys: Vec<GroupKey>,
    batch: GroupBatch,
    need: &BTreeSet<usize>,
    shared: &mut Shared,
) -> (Rel, Map) {
    let total = keys.len() + batch.exprs.len();
    let kept: Vec<usize> = (0..batch.exprs.len()).filter(|i| need.contains(&(keys.len() + i))).collect();
    let all: BTreeSet<usize> = (0..keys.len()).chain(kept.iter().map(|i| keys.len() + i)).collect();
    let inner: BTreeSet<usize> =
        keys.iter().map(|k| k.column).chain(batch.inputs.iter().map(|i| i.column)).collect();
    let (input, map) = narrow(input, &inner, shared);
    let keys = keys.into_iter().map(|k| GroupKey { column: moved(&map, k.column), ..k }).collect();
    let batch = narrowed(batch, &kept, &map);
    (Rel::Group { input: Box::new(input), keys, batch }, exact_map(total, &all))
}

fn aggregate(
    input: Rel,
    group: Vec<GroupKey>,
    aggregates: Vec<Aggregate>,
    need: &BTreeSet<usize>,
    shared: &mut Shared,
) -> (Rel, Map) {
    // Group columns decide which rows there are; only aggregates can go.
    let keys = group.len();
    let total = keys + aggregates.len();
    let kept: BTreeSet<usize> = (0..total).filter(|&c| c < keys || need.contains(&c)).collect();
    let mut inner: BTreeSet<usize> = group.iter().map(|g| g.column).collect();
    let aggregates: Vec<Aggregate> = aggregates
        .into_iter()
        .enumerate()
        .filter(|(i, _)| kept.contains(&(keys + i)))
        .map(|(_, a)| a)
        .collect();
    inner.extend(aggregates.iter().flat_map(|a| a.argument.into_iter().chain(a.filter)));
    let (input, map) = narrow(input, &inner, shared);
    let group = group.into_iter().map(|g| GroupKey { column: moved(&map, g.column), ..g }).collect();
    let aggregates = aggregates
        .into_iter()
        .map(|a| Aggregate {
            argument: a.argument.map(|c| moved(&map, c)),
            filter: a.filter.map(|c| moved(&map, c)),
            ..a
        })
        .collect();
    (Rel::Aggregate { input: Box::new(input), group, aggregates }, exact_map(total, &kept))
}

fn columns_of(expr: &Expr, out: &mut BTreeSet<usize>) {
    expr.each_column(&mut |c| {
        out.insert(c);
    });
}

fn remap(expr: Expr, map: &Map) -> Expr {
    expr.replace_columns(&|c| Expr::Column(moved(map, c)))
}

fn substitute(expr: Expr, below: &[Expr]) -> Expr {
    expr.replace_columns(&|c| below.get(c).cloned().unwrap_or(Expr::Column(c)))
}
