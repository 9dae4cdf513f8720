//! Joins over arrangements.
//!
//! Inner: `join_core`. Left: the inner pairs that pass the residual, plus the left rows that no right row matches,
//! padded with NULLs. A NULL key matches nothing (`=` is strict), so such rows never enter an arrangement; in a left
//! join they are padded directly.

use differential_dataflow::operators::arrange::Arranged;

use super::arrangement::{KeyColumns, RowArrangement, SetTrace, join_key};
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

/// The left join of `left_rows` (all left rows) and their arrangement with the right side.
///
/// `right_width`: number of NULLs to pad with. Returns the joined rows and the rows of failed residuals.
pub(super) fn left<'s>(
    left_rows: Rows<'s>,
    left: RowArrangement<'s>,
    left_keys: KeyColumns,
    right: RowArrangement<'s>,
    right_width: usize,
    residual: Option<Expr>,
) -> (Rows<'s>, Option<Rows<'s>>) {
    let pairs: Pairs<'s> =
        join_arranged!(left, right, |_key: &Row, l: &Row, r: &Row| Some((l.clone(), r.clone())));
    let (pairs, errors) = match residual {
        None => (pairs, None),
        Some(predicate) => filter_pairs(pairs, predicate),
    };
    let joined = pairs.clone().map(|(l, r)| l.concat(&r));
    // Each left image that found a partner, once; a semijoin then takes the left rows away with their multiplicity.
    let matched: Arranged<'s, SetTrace> = pairs.map(|(l, _)| l).distinct_core::<i64>().arrange_by_self();
    let candidates = left_rows.clone().filter(move |row| matches!(join_key(row, &left_keys), Some(Ok(_))));
    let partnered = candidates.arrange_by_self().join_core(matched, |row, &(), &()| Some(row.clone()));
    let pad = move |row: Row| pad(&row, right_width);
    let unmatched = left_rows.concat(partnered.negate()).map(pad);
    (joined.concat(unmatched), errors)
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

fn pad(row: &Row, width: usize) -> Row {
    let mut padded = RowBuilder::default();
    padded.extend(row);
    for _ in 0..width {
        padded.push(Datum::Null);
    }
    padded.finish()
}
