//! INTERSECT and EXCEPT: two counts per key.
//!
//! Invariant: what is put out for a key is a function of the rows that both sides have now: the smallest images of the
//! left side, as many as the operation wants. (Equal rows may look different, 1.0 and 1.00; which one the server shows is
//! open, the smallest is always the same.)

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::account::{Held, MAP_ENTRY, row_bytes};
use super::aggregate::group_key;
use super::arrangement::KeyColumns;
use super::keyed::{KeyedRow, Part, Rows, keyed};
use super::protocol::Epoch;
use crate::plan::SetOpKind;
use crate::row::key::KeyForm;
use crate::row::{Datum, Row};

/// State of one key.
#[derive(Default)]
struct Entry {
    left: BTreeMap<Row, i64>,
    right: i64,
    emitted: Vec<(Row, i64)>,
    touched: bool,
}

impl Entry {
    fn wanted(&self, kind: SetOpKind, all: bool) -> Vec<(Row, i64)> {
        let left: i64 = self.left.values().sum();
        let mut rest = match (kind, all) {
            (SetOpKind::Intersect, true) => left.min(self.right),
            (SetOpKind::Intersect, false) => i64::from(left > 0 && self.right > 0),
            (SetOpKind::Except, true) => (left - self.right).max(0),
            (SetOpKind::Except, false) => i64::from(left > 0 && self.right == 0),
        };
        let mut rows = Vec::new();
        for (row, count) in &self.left {
            let taken = rest.min(*count);
            if taken > 0 {
                rows.push((row.clone(), taken));
                rest -= taken;
            }
        }
        rows
    }
}

/// Bytes of a key's place in the table.
fn entry_bytes(key: &Row) -> i64 {
    row_bytes(key) + 16 + std::mem::size_of::<Entry>() as i64
}

/// Renders a set operation over two inputs of the same columns.
pub(super) fn set_operation<'s>(
    left: Rows<'s>,
    right: Rows<'s>,
    kind: SetOpKind,
    all: bool,
    forms: Vec<KeyForm>,
    first: Epoch,
    mut held: Held,
) -> Rows<'s> {
    let columns: KeyColumns = forms.into_iter().enumerate().collect();
    let sides = [(left, true), (right, false)].map(|(rows, is_left)| {
        let columns = columns.clone();
        // A left row travels whole behind a mark; of a right row only the key counts.
        rows.map(move |row| {
            let key = group_key(&row, &columns);
            let mark = Row::from_datums([Datum::Bool(is_left)]);
            (key, if is_left { mark.concat(&row) } else { mark })
        })
    });
    let [left, right] = sides;
    let values: Vec<usize> = (1..=columns.len()).collect();
    let mut entries: FxHashMap<Row, Entry> = FxHashMap::default();
    let mut touched: Vec<Row> = Vec::new();
    let logic = move |updates: Vec<(KeyedRow, i64)>, part: Part, output: &mut Vec<(Row, i64)>| {
        for ((key, row), diff) in updates {
            let entry = entries.entry(key.clone()).or_insert_with(|| {
                held.add(0, entry_bytes(&key));
                Entry::default()
            });
            if !std::mem::replace(&mut entry.touched, true) {
                touched.push(key);
            }
            if row.get(0) == Datum::Bool(true) {
                let row = row.project(&values);
                let bytes = MAP_ENTRY + row_bytes(&row);
                let count = entry.left.entry(row.clone()).or_insert(0);
                if *count == 0 {
                    held.add(1, bytes);
                }
                *count += diff;
                if *count == 0 {
                    entry.left.remove(&row);
                    held.add(-1, -bytes);
                }
            } else {
                entry.right += diff;
            }
        }
        held.settle();
        if part == Part::More {
            return;
        }
        for key in touched.drain(..) {
            let Some(entry) = entries.get_mut(&key) else { continue };
            entry.touched = false;
            let wanted = entry.wanted(kind, all);
            if wanted != entry.emitted {
                output.extend(entry.emitted.drain(..).map(|(row, count)| (row, -count)));
                output.extend(wanted.iter().cloned());
                entry.emitted = wanted;
            }
            if entry.left.is_empty() && entry.right == 0 {
                entries.remove(&key);
                held.add(0, -entry_bytes(&key));
            }
        }
        held.settle();
    };
    keyed(left.concat(right), "SetOperation", first, logic)
}
