//! Joins over arrangements.
//!
//! Inner: `join_core`. Outer: the inner pairs that pass the residual, plus the rows of the kept sides that no other row
//! matches, padded with NULLs. Semi and Anti: the left rows that have, or have not, a match. A NULL key matches nothing
//! (`=` is strict) unless the key says so, so such rows never enter an arrangement; where their side is kept they are put
//! out directly.

use std::sync::Arc;

use differential_dataflow::operators::arrange::Arranged;

use super::account::{Account, SET_ENTRY, row_bytes};
use super::arrangement::{JoinColumns, RowArrangement, SetTrace, join_key};
use super::keyed::Rows;
use super::ledger::Meter;
use super::native::Native;
use super::pairs;
use crate::plan::Expr;
use crate::row::{Datum, Row, RowBuilder};

/// Left row and right row of a pair.
type Pairs<'s> = differential_dataflow::VecCollection<'s, super::protocol::Epoch, (Row, Row), i64>;

macro_rules! join_arranged {
    ($left:expr, $right:expr, $account:expr, $logic:expr) => {
        match ($left, $right) {
            (RowArrangement::Local(l), RowArrangement::Local(r)) => pairs::pairs(l, r, $account, $logic),
            (RowArrangement::Local(l), RowArrangement::Imported(r)) => pairs::pairs(l, r, $account, $logic),
            (RowArrangement::Imported(l), RowArrangement::Local(r)) => pairs::pairs(l, r, $account, $logic),
            (RowArrangement::Imported(l), RowArrangement::Imported(r)) => {
                pairs::pairs(l, r, $account, $logic)
            }
        }
    };
}

/// All pairs with equal keys, concatenated.
pub(super) fn inner<'s>(
    left: RowArrangement<'s>,
    right: RowArrangement<'s>,
    account: Arc<Account>,
) -> Rows<'s> {
    join_arranged!(left, right, account, |l: &Row, r: &Row| {
        let row = l.concat(r);
        let bytes = row.byte_len();
        (row, bytes)
    })
}

/// The rows of `left` whose key is among `keys`, each as often as it is there.
pub(super) fn with_keys<'s>(left: RowArrangement<'s>, keys: Rows<'s>, meter: Meter) -> Rows<'s> {
    // Three arrangements of the same keys.
    let keys = keys.inspect(move |(key, _, _)| meter.note(SET_ENTRY + row_bytes(key) / 3));
    let keys: Arranged<'s, SetTrace> = keys.distinct_core::<i64>().arrange_by_self();
    match left {
        RowArrangement::Local(l) => l.join_core(keys, |_key, row: &Row, &()| Some(row.clone())),
        RowArrangement::Imported(l) => l.join_core(keys, |_key, row: &Row, &()| Some(row.clone())),
    }
}

/// The pairs with equal keys that pass the residual, and the rows of failed residuals. `sound`: no row of either side holds
/// an error.
pub(super) fn pairs<'s>(
    left: RowArrangement<'s>,
    right: RowArrangement<'s>,
    residual: Option<Expr>,
    sound: bool,
    account: Arc<Account>,
) -> (Pairs<'s>, Option<Rows<'s>>) {
    // Handles only; the rows are those of the arrangements.
    let pairs: Pairs<'s> =
        join_arranged!(left, right, account, |l: &Row, r: &Row| ((l.clone(), r.clone()), 0));
    match residual {
        None => (pairs, None),
        Some(predicate) => filter_pairs(pairs, predicate, sound),
    }
}

/// The rows of one side that occur in `matched` (an image there stands for all rows that look so), with their
/// multiplicity. Each image that found a partner counts once; a semijoin then takes the rows.
pub(super) fn partnered<'s>(rows: Rows<'s>, keys: JoinColumns, matched: Rows<'s>, meter: Meter) -> Rows<'s> {
    let matched = matched.inspect(move |_| meter.note(SET_ENTRY));
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

fn filter_pairs<'s>(pairs: Pairs<'s>, predicate: Expr, sound: bool) -> (Pairs<'s>, Option<Rows<'s>>) {
    // Also a predicate that can't fail itself may meet an error that was computed below the join.
    let fallible = !(sound && predicate.is_infallible());
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
