//! Joins over arrangements.
//!
//! Inner: `join_core`. Outer: the inner pairs that pass the residual, plus the rows of the kept sides that no other row
//! matches, padded with NULLs. Semi and Anti: the left rows that have, or have not, a match. A NULL key matches nothing
//! (`=` is strict) unless the key says so, so such rows never enter an arrangement; where their side is kept they are put
//! out directly.

use differential_dataflow::operators::arrange::Arranged;

use super::arrangement::{JoinColumns, RowArrangement, SetTrace, join_key};
use super::keyed::Rows;
use super::native::Native;
use crate::plan::Expr;
use crate::row::{Datum, Row, RowBuilder};

/// Left row and right row of a pair.
type Pairs<'s> = differential_dataflow::VecCollection<'s, super::protocol::Epoch, (Row, Row), i64>;

macro_rules! join_arranged {
    ($left:expr, $right:expr, $logic:expr) => {
        match ($left, $right) {
            (RowArrangement::Local(l), RowArrangement::Local(r)) => l.join_core(r, $logic),
            (RowArrangement::Local(l), RowArrangement::Imported(r)) => l.join_core(r, $logic),
            (RowArrangement::Imported(l), RowArrangement::Local(r)) => l.join_core(r, $logic),
            (RowArrangement::Imported(l), RowArrangement::Imported(r)) => l.join_core(r, $logic),
        }
    };
}

/// All pairs with equal keys, concatenated.
pub(super) fn inner<'s>(left: RowArrangement<'s>, right: RowArrangement<'s>) -> Rows<'s> {
    join_arranged!(left, right, |_key: &Row, l: &Row, r: &Row| Some(l.concat(r)))
}

/// The rows of `left` whose key is among `keys`, each as often as it is there.
pub(super) fn with_keys<'s>(left: RowArrangement<'s>, keys: Rows<'s>) -> Rows<'s> {
    let keys: Arranged<'s, SetTrace> = keys.distinct_core::<i64>().arrange_by_self();
    match left {
        RowArrangement::Local(l) => l.join_core(keys, |_key, row: &Row, &()| Some(row.clone())),
        RowArrangement::Imported(l) => l.join_core(keys, |_key, row: &Row, &()| Some(row.clone())),
    }
}

/// The pairs with equal keys that pass the residual, and the rows of failed residuals.
pub(super) fn pairs<'s>(
    left: RowArrangement<'s>,
    right: RowArrangement<'s>,
    residual: Option<Expr>,
) -> (Pairs<'s>, Option<Rows<'s>>) {
    let pairs: Pairs<'s> =
        join_arranged!(left, right, |_key: &Row, l: &Row, r: &Row| Some((l.clone(), r.clone())));
    match residual {
        None => (pairs, None),
        Some(predicate) => filter_pairs(pairs, predicate),
    }
}

/// The rows of one side that occur in `matched` (an image there stands for all rows that look so), with their
/// multiplicity. Each image that found a partner counts once; a semijoin then takes the rows.
pub(super) fn partnered<'s>(rows: Rows<'s>, keys: JoinColumns, matched: Rows<'s>) -> Rows<'s> {
    let matched: Arranged<'s, SetTrace> = matched.distinct_core::<i64>().arrange_by_self();
    let candidates = rows.filter(move |row| matches!(join_key(row, &keys), Some(Ok(_))));
    candidates.arrange_by_self().join_core(matched, |row, &(), &()| Some(row.clone()))
}

/// `row` with NULLs behind it, or before it.
pub(super) fn pad(row: &Row, width: usize, before: bool) -> Row {
    let mut padded = RowBuilder::default();
    if !before {
        padded.extend(row);
    }
    for _ in 0..width {
        padded.push(Datum::Null);
    }
    if before {
        padded.extend(row);
    }
    padded.finish()
}

fn filter_pairs<'s>(pairs: Pairs<'s>, predicate: Expr) -> (Pairs<'s>, Option<Rows<'s>>) {
    let fallible = !predicate.is_infallible();
    let test = predicate.clone();
    let mut native = Native::default();
    let errors = fallible.then(|| {
        let mut native = Native::default();
        pairs.clone().flat_map(move |(l, r)| match native.predicate(&predicate, &l.concat(&r)) {
            Err(error) => Some(Row::from_datums([Datum::Error(&error)])),
            Ok(_) => None,
        })
    });
    let passed = pairs.filter(move |(l, r)| matches!(native.predicate(&test, &l.concat(r)), Ok(true)));
    (passed, errors)
}
