//! GROUPING SETS, ROLLUP and CUBE: the list of sets, and what each set's rows show.

use std::collections::BTreeSet;

use crate::analyzer::node::{Node, Value};
use crate::plan::Rel;
use crate::plan::expr::Expr;
use crate::row::{Datum, Row, TypeInfo};

use super::refusal::{Refusal, Step};
use super::stage::Stage;
use super::unknown_form;

/// Most sets of one query (the server allows 4096; each is an operator here).
const MAX_SETS: usize = 256;

type Set = BTreeSet<usize>;

/// The grouping sets of a query as indexes of group expressions; `None`: a plain GROUP BY. `references` says which
/// expression a `tleSortGroupRef` means.
pub(super) fn sets(query: &Node, references: &[(i64, usize)]) -> Step<Option<Vec<Vec<usize>>>> {
    let clauses = query.nodes("groupingSets")?;
    if clauses.is_empty() {
        return Ok(None);
    }
    // The sets of several clauses are combined (`expand_grouping_sets`).
    let mut all: Vec<Set> = vec![Set::new()];
    for clause in clauses {
        let one = expand(clause, references)?;
        let combined =
            all.iter().flat_map(|left| one.iter().map(move |right| left.union(right).copied().collect()));
        all = combined.take(MAX_SETS + 1).collect();
        if all.len() > MAX_SETS {
            return Err(Refusal::new(
                "unsupported.grouping_sets",
                format!("the query has more than {MAX_SETS} grouping sets"),
            ));
        }
    }
    if query.bool("groupDistinct") {
        let mut seen = BTreeSet::new();
        all.retain(|set| seen.insert(set.clone()));
    }
    Ok(Some(all.into_iter().map(|set| set.into_iter().collect()).collect()))
}

/// Sets of one GROUPINGSET node: empty 0, simple 1, rollup 2, cube 3, sets 4.
fn expand(node: &Node, references: &[(i64, usize)]) -> Step<Vec<Set>> {
    let simple = |node: &Node| -> Step<Set> {
        node.list("content")
            .iter()
            .map(|v| {
                let found = references.iter().find(|(r, _)| Some(*r) == v.as_int());
                found.map(|(_, i)| *i).ok_or_else(|| unknown_form("a grouping set refers to nothing"))
            })
            .collect()
    };
    let parts = || -> Step<Vec<Set>> { node.nodes("content")?.into_iter().map(simple).collect() };
    Ok(match node.int("kind")? {
        0 => vec![Set::new()],
        1 => vec![simple(node)?],
        2 => {
            let parts = parts()?;
            (0..=parts.len()).rev().map(|n| parts[..n].iter().flatten().copied().collect()).collect()
        }
        3 => {
            let parts = parts()?;
            if parts.len() > 8 {
                return Err(Refusal::new("unsupported.grouping_sets", "CUBE has more than eight parts"));
            }
            let picked = |mask: usize| {
                let chosen = parts.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0);
                chosen.flat_map(|(_, s)| s.iter().copied()).collect()
            };
            (0..1usize << parts.len()).rev().map(picked).collect()
        }
        4 => {
            let mut all = Vec::new();
            for part in node.nodes("content")? {
                all.extend(expand(part, references)?);
            }
            all
        }
        _ => return Err(unknown_form("a kind of grouping set")),
    })
}

/// GROUPING(...) for the rows of `set`: a bit per argument, the last one lowest, set if it is not grouped by.
pub(super) fn mask(grouping: &Node, references: &[(i64, usize)], set: &[usize]) -> Step<i64> {
    let mut mask = 0;
    for reference in grouping.list("refs").iter().filter_map(Value::as_int) {
        let found = references.iter().find(|(r, _)| *r == reference);
        let (_, index) = found.ok_or_else(|| unknown_form("GROUPING() refers to nothing"))?;
        mask = mask * 2 + i64::from(!set.contains(index));
    }
    Ok(mask)
}

/// The stage with constant columns behind.
pub(super) fn marked(stage: Stage, masks: Vec<i64>, ty: TypeInfo) -> Stage {
    if masks.is_empty() {
        return stage;
    }
    let mut columns = stage.columns;
    let mut exprs: Vec<Expr> = (0..columns.len()).map(Expr::Column).collect();
    for mask in masks {
        exprs.push(Expr::Literal(Row::from_datums([Datum::Int(mask)])));
        columns.push(ty.clone());
    }
    Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, columns)
}

/// The stage of the group columns `kept` and the calls, with NULL for the other group columns.
pub(super) fn padded(stage: Stage, kept: &[usize], groups: usize, columns: Vec<TypeInfo>) -> Stage {
    let null = || Expr::Literal(Row::from_datums([Datum::Null]));
    let group = |i: usize| kept.iter().position(|k| *k == i).map_or_else(null, Expr::Column);
    let calls = (0..columns.len() - groups).map(|i| Expr::Column(kept.len() + i));
    let exprs = (0..groups).map(group).chain(calls).collect();
    Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, columns)
}
