//! The rows of one source, held by identity: the old values that updates and deletes need (D10).
//!
//! Invariant: the held rows are exactly the source's rows (its needed columns) after the changes fed so far. A change
//! that does not fit what is held is a fault, never ignored: it would mean a lost or doubled change.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxHashMap;

use super::account::Held;
use super::protocol::RowChange;
use crate::row::{Row, RowBuilder};

/// Bytes per held row besides its packed bytes: the shared header, the table slot and its control byte.
const ROW_OVERHEAD: u64 = 16 + 24;

/// A held source.
pub(super) struct SourceState {
    rows: Rows,
    bytes: u64,
    builder: RowBuilder,
    held: Held,
}

enum Rows {
    /// By the first `columns` columns.
    Keyed { columns: usize, table: HashTable<Row> },
    /// By image, with multiplicity.
    Bag { table: FxHashMap<Row, i64>, count: u64 },
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// `new` with the values of `old` where they are `unchanged`.
pub(super) fn fill(builder: &mut RowBuilder, old: &Row, new: &Row, unchanged: &[u16]) -> Row {
    for (i, (was, is)) in old.iter().zip(new.iter()).enumerate() {
        let kept = unchanged.contains(&(i as u16));
        builder.push(if kept { was } else { is });
    }
    builder.finish()
}

impl SourceState {
    pub fn new(identity: usize, held: Held) -> Self {
        let rows = match identity {
            0 => Rows::Bag { table: FxHashMap::default(), count: 0 },
            columns => Rows::Keyed { columns, table: HashTable::new() },
        };
        SourceState { rows, bytes: 0, builder: RowBuilder::default(), held }
    }

    pub fn row_count(&self) -> u64 {
        match &self.rows {
            Rows::Keyed { table, .. } => table.len() as u64,
            Rows::Bag { count, .. } => *count,
        }
    }

    /// Tells the account what is held now.
    pub fn settle(&mut self) {
        let known = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.held.set(known(self.row_count()), known(self.bytes));
    }

    /// Every held row and its multiplicity.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (&Row, i64)> + '_> {
        match &self.rows {
            Rows::Keyed { table, .. } => Box::new(table.iter().map(|row| (row, 1))),
            Rows::Bag { table, .. } => Box::new(table.iter().map(|(row, n)| (row, *n))),
        }
    }

    /// Applies one change and appends its deltas. `Err` names the contradiction (without values).
    pub fn apply(&mut self, change: RowChange, deltas: &mut Vec<(Row, i64)>) -> Result<(), &'static str> {
        match change {
            RowChange::Insert(row) => {
                self.insert(row.clone())?;
                deltas.push((row, 1));
            }
            RowChange::Delete(identity) => {
                let old = self.remove(&identity)?;
                deltas.push((old, -1));
            }
            RowChange::Update { old, new, unchanged } => {
                let old = match old {
                    Some(identity) => self.remove(&identity)?,
                    None => {
                        let identity = self.identity_of(&new);
                        self.remove(&identity)?
                    }
                };
                let new = match unchanged.is_empty() {
                    true => new,
                    false => fill(&mut self.builder, &old, &new, &unchanged),
                };
                self.insert(new.clone())?;
                deltas.push((old, -1));
                deltas.push((new, 1));
            }
            RowChange::Truncate => self.truncate(deltas),
        }
        Ok(())
    }

    fn identity_of(&mut self, row: &Row) -> Row {
        match &self.rows {
            Rows::Keyed { columns, .. } => {
                for datum in row.iter().take(*columns) {
                    self.builder.push(datum);
                }
                self.builder.finish()
            }
            Rows::Bag { .. } => row.clone(),
        }
    }

    /// Takes the row of this identity out, because it goes to another worker, and appends its delta.
    pub fn depart(&mut self, identity: &Row, deltas: &mut Vec<(Row, i64)>) -> Result<Row, &'static str> {
        let old = self.remove(identity)?;
        deltas.push((old.clone(), -1));
        Ok(old)
    }

    fn insert(&mut self, row: Row) -> Result<(), &'static str> {
        self.bytes += row.byte_len() as u64 + ROW_OVERHEAD;
        match &mut self.rows {
            Rows::Keyed { columns, table } => {
                let columns = *columns;
                let key = row.prefix(columns);
                let entry = table.entry(hash(key), |r| r.prefix(columns) == key, |r| hash(r.prefix(columns)));
                match entry {
                    Entry::Occupied(_) => Err("an insert of a row that is already there"),
                    Entry::Vacant(slot) => {
                        slot.insert(row.clone());
                        Ok(())
                    }
                }
            }
            Rows::Bag { table, count } => {
                *table.entry(row).or_insert(0) += 1;
                *count += 1;
                Ok(())
            }
        }
    }

    fn remove(&mut self, identity: &Row) -> Result<Row, &'static str> {
        const MISSING: &str = "a change of a row that is not there";
        let row = match &mut self.rows {
            Rows::Keyed { columns, table } => {
                let key = identity.prefix(*columns);
                match table.find_entry(hash(key), |r| r.prefix(*columns) == key) {
                    Ok(entry) => entry.remove().0,
                    Err(_) => return Err(MISSING),
                }
            }
            Rows::Bag { table, count } => {
                let Some(n) = table.get_mut(identity) else { return Err(MISSING) };
                *n -= 1;
                *count -= 1;
                if *n == 0 {
                    table.remove(identity);
                }
                identity.clone()
            }
        };
        self.bytes = self.bytes.saturating_sub(row.byte_len() as u64 + ROW_OVERHEAD);
        Ok(row)
    }

    fn truncate(&mut self, deltas: &mut Vec<(Row, i64)>) {
        match &mut self.rows {
            Rows::Keyed { table, .. } => deltas.extend(table.drain().map(|row| (row, -1))),
            Rows::Bag { table, count } => {
                deltas.extend(table.drain().map(|(row, n)| (row, -n)));
                *count = 0;
            }
        }
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::account::Accounts;
    use crate::row::Datum;

    fn state(identity: usize) -> SourceState {
        let accounts = Accounts::new(u64::MAX);
        SourceState::new(identity, Held::new(accounts.common(accounts.source(1))))
    }

    fn row(key: i64, value: &str) -> Row {
        Row::from_datums([Datum::Int(key), Datum::Text(value.as_bytes())])
    }

    fn key(key: i64) -> Row {
        Row::from_datums([Datum::Int(key)])
    }

    #[test]
    fn an_update_takes_unchanged_columns_from_the_held_row_even_when_the_key_moves() {
        let mut state = state(1);
        let mut deltas = Vec::new();
        state.apply(RowChange::Insert(row(1, "long")), &mut deltas).unwrap();
        let new = Row::from_datums([Datum::Int(2), Datum::Null]);
        let update = RowChange::Update { old: Some(key(1)), new, unchanged: vec![1] };
        deltas.clear();
        state.apply(update, &mut deltas).unwrap();
        assert_eq!(deltas, vec![(row(1, "long"), -1), (row(2, "long"), 1)]);
        assert_eq!(state.row_count(), 1);
    }

    #[test]
    fn keys_that_swap_in_message_order_end_up_right() {
        let mut state = state(1);
        let mut deltas = Vec::new();
        for change in [
            RowChange::Insert(row(1, "a")),
            RowChange::Insert(row(2, "b")),
            RowChange::Update { old: Some(key(1)), new: row(3, "a"), unchanged: vec![] },
            RowChange::Update { old: Some(key(2)), new: row(1, "b"), unchanged: vec![] },
            RowChange::Update { old: Some(key(3)), new: row(2, "a"), unchanged: vec![] },
        ] {
            state.apply(change, &mut deltas).unwrap();
        }
        differential_dataflow::consolidation::consolidate(&mut deltas);
        deltas.sort();
        let mut want = vec![(row(1, "b"), 1), (row(2, "a"), 1)];
        want.sort();
        assert_eq!(deltas, want);
    }

    #[test]
    fn a_change_that_contradicts_the_held_rows_is_a_fault() {
        let mut state = state(1);
        let mut deltas = Vec::new();
        assert!(state.apply(RowChange::Delete(key(1)), &mut deltas).is_err());
        state.apply(RowChange::Insert(row(1, "a")), &mut deltas).unwrap();
        assert!(state.apply(RowChange::Insert(row(1, "b")), &mut deltas).is_err());
    }

    #[test]
    fn a_bag_keeps_multiplicity_and_truncate_retracts_everything() {
        let mut state = state(0);
        let mut deltas = Vec::new();
        for _ in 0..2 {
            state.apply(RowChange::Insert(row(1, "a")), &mut deltas).unwrap();
        }
        deltas.clear();
        state.apply(RowChange::Truncate, &mut deltas).unwrap();
        assert_eq!(deltas, vec![(row(1, "a"), -2)]);
        assert_eq!((state.row_count(), state.bytes), (0, 0));
    }
}
