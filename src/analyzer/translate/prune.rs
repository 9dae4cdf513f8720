//! Column pruning: each operator keeps only columns that something above reads, so that sources send little and state
//! is narrow.

use std::collections::BTreeSet;

use crate::plan::expr::Expr;
use crate::plan::{Aggregate, GroupKey, JoinKey, Rel, RemoteBatch, RemoteInput, width};
use crate::row::Row;

/// Where each old column is now.
type Map = Vec<Option<usize>>;

/// The same rows from an operator tree without superfluous columns; the columns of `rel` itself all stay.
pub fn prune(rel: Rel) -> Rel {
    let width = width(&rel);
    let all: BTreeSet<usize> = (0..width).collect();
    exact(rel, &all)
}

/// `rel` with exactly the columns `need`, in ascending order of the old positions.
fn exact(rel: Rel, need: &BTreeSet<usize>) -> Rel {
    let (rel, map) = narrow(rel, need);
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
fn narrow(rel: Rel, need: &BTreeSet<usize>) -> (Rel, Map) {
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
            let (input, map) = narrow(*input, &inner);
            (Rel::Filter { input: Box::new(input), predicate: remap(predicate, &map) }, map)
        }
        Rel::Project { input, exprs } => {
            let map = exact_map(exprs.len(), need);
            let kept: Vec<Expr> =
                exprs.into_iter().enumerate().filter(|(i, _)| need.contains(i)).map(|(_, e)| e).collect();
            let mut inner = BTreeSet::new();
            kept.iter().for_each(|e| columns_of(e, &mut inner));
            let (input, below) = narrow(*input, &inner);
            let kept: Vec<Expr> = kept.into_iter().map(|e| remap(e, &below)).collect();
            let identity =
                kept.len() == width(&input) && kept.iter().enumerate().all(|(i, e)| *e == Expr::Column(i));
            (if identity { input } else { project(input, kept) }, map)
        }
        Rel::Evaluate { input, batch } => evaluate(*input, batch, need),
        Rel::Join { kind, left, right, on, residual } => {
            let left_width = width(&left);
            let mut all = need.clone();
            residual.iter().for_each(|e| columns_of(e, &mut all));
            let mut left_need: BTreeSet<usize> = all.iter().filter(|&&c| c < left_width).copied().collect();
            let mut right_need: BTreeSet<usize> =
                all.iter().filter(|&&c| c >= left_width).map(|c| c - left_width).collect();
            left_need.extend(on.iter().map(|k| k.left));
            right_need.extend(on.iter().map(|k| k.right));
            let (lm, rm) = (exact_map(left_width, &left_need), exact_map(width(&right), &right_need));
            let (left, right) = (exact(*left, &left_need), exact(*right, &right_need));
            let offset = left_need.len();
            let map: Map = lm.iter().copied().chain(rm.iter().map(|c| c.map(|c| c + offset))).collect();
            let on = on
                .into_iter()
                .map(|k| JoinKey { left: moved(&lm, k.left), right: moved(&rm, k.right), form: k.form })
                .collect();
            let residual = residual.map(|e| remap(e, &map));
            (Rel::Join { kind, left: Box::new(left), right: Box::new(right), on, residual }, map)
        }
        Rel::Aggregate { input, group, aggregates } => aggregate(*input, group, aggregates, need),
        Rel::Distinct { input, keys } => {
            let all: BTreeSet<usize> = (0..keys.len()).collect();
            let map = exact_map(keys.len(), &all);
            (Rel::Distinct { input: Box::new(exact(*input, &all)), keys }, map)
        }
        Rel::UnionAll { inputs } => {
            let map = exact_map(inputs.first().map_or(0, width), need);
            (Rel::UnionAll { inputs: inputs.into_iter().map(|i| exact(i, need)).collect() }, map)
        }
        Rel::Partitioned { root, attributes, leaves } => {
            let map = exact_map(attributes.len(), need);
            let leaves = leaves.into_iter().map(|i| exact(i, need)).collect();
            let attributes = need.iter().filter_map(|&c| attributes.get(c).copied()).collect();
            (Rel::Partitioned { root, attributes, leaves }, map)
        }
    }
}

/// An Evaluate without unused expressions keeps its state narrow; the inputs stay as the SQL names them.
fn evaluate(input: Rel, batch: RemoteBatch, need: &BTreeSet<usize>) -> (Rel, Map) {
    let before = width(&input);
    let total = before + batch.exprs.len();
    let mut inner: BTreeSet<usize> = need.iter().filter(|&&c| c < before).copied().collect();
    let kept: Vec<usize> = (0..batch.exprs.len()).filter(|i| need.contains(&(before + i))).collect();
    if kept.is_empty() {
        let (input, mut map) = narrow(input, &inner);
        map.resize(total, None);
        return (input, map);
    }
    inner.extend(batch.inputs.iter().map(|i| i.column));
    let mut map = exact_map(before, &inner);
    let input = exact(input, &inner);
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

fn aggregate(
    input: Rel,
    group: Vec<GroupKey>,
    aggregates: Vec<Aggregate>,
    need: &BTreeSet<usize>,
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
    let (input, map) = narrow(input, &inner);
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
