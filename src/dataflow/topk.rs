//! The first rows of each partition by a native order.
//!
//! Invariant: all rows of a partition are kept in order, so whatever leaves, the next ones are at hand. Rows that are
//! equal by the order come in the order of their images: PostgreSQL may choose among them, here the choice is fixed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::consolidation::consolidate;
use rustc_hash::FxHashMap;

use super::account::{Held, MAP_ENTRY, row_bytes};
use super::keyed::{Part, Rows, keyed};
use super::protocol::Epoch;
use crate::kernel;
use crate::plan::{GroupKey, SortKey};
use crate::row::{Datum, Row};

/// Which rows of a partition are shown.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub offset: u64,
    pub limit: Option<u64>,
    pub with_ties: bool,
}

/// A row in the order of the plan.
struct Placed {
    order: Rc<[SortKey]>,
    /// The columns of the order.
    keys: Row,
    row: Row,
}

impl Placed {
    fn by_order(&self, other: &Placed) -> Ordering {
        let (mut left, mut right) = (self.keys.iter(), other.keys.iter());
        for key in self.order.iter() {
            let (a, b) = (left.next().unwrap_or(Datum::Null), right.next().unwrap_or(Datum::Null));
            let nulls = |null_is_less: bool| if null_is_less { Ordering::Less } else { Ordering::Greater };
            let ordering = match (a.is_null(), b.is_null()) {
                (true, true) => Ordering::Equal,
                (true, false) => nulls(key.nulls_first),
                (false, true) => nulls(!key.nulls_first),
                (false, false) if key.descending => kernel::compare(key.order, b, a),
                (false, false) => kernel::compare(key.order, a, b),
            };
            if ordering != Ordering::Equal {
                return ordering;
            }
        }
        Ordering::Equal
    }
}

impl Ord for Placed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.by_order(other).then_with(|| self.row.cmp(&other.row))
    }
}
impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Placed {}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Placed, i64>,
    /// Errors in the columns of the order: with one of them nothing can be said.
    failed: BTreeMap<Row, i64>,
    emitted: Vec<(Row, i64)>,
    touched: bool,
}

struct Partitions {
    held: FxHashMap<Row, Partition>,
    counter: Held,
}

/// Renders [`crate::plan::Rel::TopK`].
pub(super) fn top<'s>(
    input: Rows<'s>,
    partition: Vec<GroupKey>,
    order: Vec<SortKey>,
    window: Window,
    first: Epoch,
    (counter, fresh): (Held, bool),
) -> Rows<'s> {
    let forms: Vec<_> = partition.iter().map(|k| (k.column, k.form)).collect();
    let by_key = input.map(move |row| (super::aggregate::group_key(&row, &forms), row));
    let columns: Vec<usize> = order.iter().map(|k| k.column).collect();
    let mut state = Partitions { held: FxHashMap::default(), counter };
    let mut touched: Vec<Row> = Vec::new();
    let mut shared: Option<Rc<[SortKey]>> = None;
    keyed(by_key, "TopK", first, move |updates, part, output| {
        let order = shared.get_or_insert_with(|| Rc::from(order.as_slice())).clone();
        for ((key, row), diff) in updates {
            let partition = state.held.entry(key.clone()).or_default();
            if !std::mem::replace(&mut partition.touched, true) {
                touched.push(key);
            }
            let own = if fresh { row_bytes(&row) } else { 0 };
            let placed = Placed { order: order.clone(), keys: row.project(&columns), row };
            // The handles of both rows, the order's, and the row of the order's columns.
            let bytes = MAP_ENTRY + 24 + row_bytes(&placed.keys) + own;
            if let Some(error) = placed.keys.iter().find(Datum::is_error) {
                let count = partition.failed.entry(Row::from_datums([error])).or_insert(0);
                *count += diff;
                if *count == 0 {
                    partition.failed.remove(&Row::from_datums([error]));
                }
                continue;
            }
            use std::collections::btree_map::Entry;
            match partition.rows.entry(placed) {
                Entry::Vacant(slot) => {
                    slot.insert(diff);
                    state.counter.add(1, bytes);
                }
                Entry::Occupied(mut slot) => {
                    *slot.get_mut() += diff;
                    if *slot.get() == 0 {
                        slot.remove();
                        state.counter.add(-1, -bytes);
                    }
                }
            }
        }
        state.counter.settle();
        if part == Part::More {
            return;
        }
        for key in touched.drain(..) {
            let Some(partition) = state.held.get_mut(&key) else { continue };
            partition.touched = false;
            let shown = match partition.failed.keys().next() {
                Some(error) => vec![(error.clone(), 1)],
                None => shown(&partition.rows, &window),
            };
            let before = std::mem::replace(&mut partition.emitted, shown.clone());
            let mut change = shown;
            change.extend(before.into_iter().map(|(row, diff)| (row, -diff)));
            consolidate(&mut change);
            output.append(&mut change);
            if partition.rows.is_empty() && partition.failed.is_empty() {
                state.held.remove(&key);
            }
        }
    })
}

/// The rows of the window.
fn shown(rows: &BTreeMap<Placed, i64>, window: &Window) -> Vec<(Row, i64)> {
    if window.limit == Some(0) {
        return Vec::new();
    }
    let start = i128::from(window.offset);
    let end = window.limit.map(|l| start + i128::from(l));
    let mut out = Vec::new();
    let mut position: i128 = 0;
    let mut last: Option<&Placed> = None;
    for (placed, count) in rows {
        let (from, to) = (position, position + i128::from(*count));
        position = to;
        let full = end.is_some_and(|e| from >= e);
        if full {
            let ties = window.with_ties && last.is_some_and(|l| l.by_order(placed) == Ordering::Equal);
            if !ties {
                break;
            }
            out.push((placed.row.clone(), *count));
            continue;
        }
        // With ties, also the further copies of the last row.
        let until = match end {
            Some(e) if !window.with_ties => to.min(e),
            _ => to,
        };
        let shown = until - from.max(start);
        if shown > 0 {
            out.push((placed.row.clone(), i64::try_from(shown).unwrap_or(i64::MAX)));
            last = Some(placed);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::expr::Order;

    /// Rows (value, id) ordered by the value, descending, with the number of copies shown of each.
    fn first(
        rows: &[(Option<i64>, i64, i64)],
        offset: u64,
        limit: Option<u64>,
        with_ties: bool,
    ) -> Vec<(i64, i64)> {
        let order: Rc<[SortKey]> = Rc::from(
            [SortKey { column: 0, order: Order::Int, descending: true, nulls_first: false }].as_slice(),
        );
        let datum = |value: Option<i64>| value.map_or(Datum::Null, Datum::Int);
        let placed = |&(value, id, count): &(Option<i64>, i64, i64)| {
            let row = Row::from_datums([datum(value), Datum::Int(id)]);
            (Placed { order: order.clone(), keys: row.project(&[0]), row }, count)
        };
        let rows: BTreeMap<Placed, i64> = rows.iter().map(placed).collect();
        let id = |row: &Row| match row.get(1) {
            Datum::Int(id) => id,
            _ => -1,
        };
        shown(&rows, &Window { offset, limit, with_ties })
            .iter()
            .map(|(row, count)| (id(row), *count))
            .collect()
    }

    #[test]
    fn the_first_rows_are_shown_with_nulls_where_the_order_has_them() {
        let rows = [(Some(5), 1, 1), (None, 2, 1), (Some(7), 3, 1), (Some(5), 4, 2)];
        assert_eq!(first(&rows, 0, Some(2), false), [(3, 1), (1, 1)]);
        assert_eq!(first(&rows, 3, None, false), [(4, 1), (2, 1)]);
        assert_eq!(first(&rows, 0, Some(0), true), []);
        assert_eq!(first(&rows, 9, Some(3), true), []);
        assert_eq!(first(&rows, 0, Some(u64::MAX), false), [(3, 1), (1, 1), (4, 2), (2, 1)]);
    }

    #[test]
    fn ties_of_the_last_row_are_shown_with_all_their_copies() {
        let rows = [(Some(5), 1, 1), (Some(5), 2, 3), (Some(9), 3, 1), (Some(1), 4, 1)];
        assert_eq!(first(&rows, 0, Some(2), true), [(3, 1), (1, 1), (2, 3)]);
        assert_eq!(first(&rows, 1, Some(1), true), [(1, 1), (2, 3)]);
        assert_eq!(first(&rows, 0, Some(1), true), [(3, 1)]);
        assert_eq!(first(&rows, 0, Some(3), false), [(3, 1), (1, 1), (2, 1)]);
    }
}
