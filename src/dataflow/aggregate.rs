//! GROUP BY and DISTINCT: one entry of state per group, one output row per non-empty group.

use std::collections::hash_map::Entry;

use differential_dataflow::VecCollection;
use rustc_hash::FxHashMap;

use super::account::Held;
use super::arrangement::KeyColumns;
use super::group::Group;
use super::keyed::{KeyedRow, Part, Rows, keyed};
use super::protocol::Epoch;
use crate::plan::{Aggregate, GroupKey};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, RowBuilder};

/// Canonical key of a row under the group's equalities; NULL is a group of its own.
pub(super) fn group_key(row: &Row, columns: &[(usize, KeyForm)]) -> Row {
    let datums = row.unpack();
    let mut key = RowBuilder::default();
    for &(column, form) in columns {
        form.push(datums.get(column).copied().unwrap_or(Datum::Null), &mut key);
    }
    key.finish()
}

/// Renders an aggregate. Without group columns the one row exists from epoch `first` on, also over no input.
pub(super) fn aggregate<'s>(
    input: Rows<'s>,
    group: Vec<GroupKey>,
    aggregates: Vec<Aggregate>,
    first: Epoch,
    owns_empty_key: bool,
    mut held: Held,
) -> Rows<'s> {
    let columns: KeyColumns = group.iter().map(|g| (g.column, g.form)).collect();
    let global = columns.is_empty();
    // Where a key has several images (1.0 and 1.00) the group keeps them all and shows the smallest.
    let images: Option<Vec<usize>> =
        group.iter().any(|g| !g.form.is_image()).then(|| group.iter().map(|g| g.column).collect());
    let by_key: VecCollection<'s, Epoch, KeyedRow, i64> =
        input.map(move |row| (group_key(&row, &columns), row));
    let mut groups: FxHashMap<Row, Group> = FxHashMap::default();
    let mut started = false;
    // The empty key routes to one worker; only that one may speak for the empty input.
    let mut touched: Vec<(Row, Option<Row>)> = Vec::new();
    keyed(by_key, "Aggregate", first, move |updates, part, output| {
        if global && !std::mem::replace(&mut started, true) && owns_empty_key {
            let mut group = Group::new(&aggregates, None);
            group.touched = true;
            held.add(1, group.bytes(&Row::empty()));
            groups.insert(Row::empty(), group);
            touched.push((Row::empty(), None));
        }
        for ((key, row), diff) in updates {
            let group = match groups.entry(key.clone()) {
                Entry::Occupied(slot) => slot.into_mut(),
                Entry::Vacant(slot) => {
                    let group = slot.insert(Group::new(&aggregates, images.as_deref()));
                    held.add(1, group.bytes(&key));
                    group
                }
            };
            let before = group.values;
            if !group.touched {
                group.touched = true;
                touched.push((key.clone(), group.emitted.clone()));
            }
            group.update(&aggregates, images.as_deref(), &row, diff);
            held.add(0, group.values - before);
        }
        held.settle();
        if part == Part::More {
            return;
        }
        for (key, before) in touched.drain(..) {
            let Some(group) = groups.get_mut(&key) else { continue };
            group.touched = false;
            let after = if group.is_empty() && !global { None } else { Some(group.row(&key, &aggregates)) };
            if before != after {
                output.extend(before.map(|row| (row, -1)));
                output.extend(after.clone().map(|row| (row, 1)));
            }
            let bytes = group.bytes(&key);
            match group.is_empty() && !global {
                true => {
                    groups.remove(&key);
                    held.add(-1, -bytes);
                }
                false => {
                    group.emitted = after;
                    held.add(0, group.bytes(&key) - bytes);
                }
            }
        }
        held.settle();
    })
}

/// Renders DISTINCT: an aggregate over all columns without aggregates.
pub(super) fn distinct<'s>(input: Rows<'s>, forms: Vec<KeyForm>, first: Epoch, held: Held) -> Rows<'s> {
    let group = |(column, form)| GroupKey { column, form };
    if forms.is_empty() {
        // Rows without columns: one of them if there is any.
        let input = input.map(|_| Row::from_datums([Datum::Null]));
        let group = vec![group((0, KeyForm::Image))];
        return aggregate(input, group, Vec::new(), first, false, held).map(|_| Row::empty());
    }
    aggregate(input, forms.into_iter().enumerate().map(group).collect(), Vec::new(), first, false, held)
}
