//! Arrangements in the accounts: how many records each holds is in differential's own log, what a record weighs is the
//! mean of what went in.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::account::{Charge, Held, KEYED_ENTRY, Part};

/// Bytes per record of an arrangement: the mean of what went in, on whichever worker.
#[derive(Clone)]
pub(super) struct Meter {
    part: Arc<Part>,
    /// Records and bytes that the part does not know yet.
    new: Rc<Cell<(i64, i64)>>,
}

/// Records that a meter keeps to itself.
const UNTOLD: i64 = 256;

impl Meter {
    pub fn new(part: Arc<Part>) -> Meter {
        Meter { part, new: Rc::default() }
    }

    /// Notes a record that goes in.
    pub fn note(&self, bytes: i64) {
        let (records, sum) = self.new.get();
        self.new.set((records + 1, sum + bytes));
        if records >= UNTOLD {
            self.tell();
        }
    }

    fn tell(&self) {
        let (records, sum) = self.new.take();
        self.part.note(records, sum);
    }

    fn bytes_of(&self, records: i64) -> i64 {
        self.tell();
        let (noted, sum) = self.part.noted();
        if noted == 0 {
            return records * KEYED_ENTRY;
        }
        i64::try_from(i128::from(records) * i128::from(sum) / i128::from(noted)).unwrap_or(i64::MAX)
    }
}

struct Arranged {
    end: usize,
    records: i64,
    meter: Meter,
    held: Held,
}

/// The arrangements of one worker, by the identifiers of their operators; fed with differential's own log.
#[derive(Default)]
pub(super) struct Ledger {
    ranges: BTreeMap<usize, Arranged>,
}

impl Ledger {
    /// Operators from `start` up to `end` (exclusive) keep arrangements, with `meter` bytes per record.
    pub fn enter(&mut self, start: usize, end: usize, meter: Meter, charge: Charge) {
        self.ranges.insert(start, Arranged { end, records: 0, meter, held: Held::new(charge) });
    }

    /// The operators that were entered under these starts are gone.
    pub fn leave(&mut self, starts: &[usize]) {
        for start in starts {
            self.ranges.remove(start);
        }
    }

    /// Operator `id` holds so many records more, or fewer.
    pub fn change(&mut self, id: usize, records: i64) {
        let Some((_, arranged)) = self.ranges.range_mut(..=id).next_back() else { return };
        if id < arranged.end {
            arranged.records += records;
            arranged.held.set(arranged.records, arranged.meter.bytes_of(arranged.records));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataflow::account::{Accounts, Place};
    use crate::dataflow::protocol::{Limits, Usage};

    const PLACE: Place = Place { operator: 0, role: "rows" };
    const MUCH: Limits = Limits { bytes: 1 << 40, pairs: 1 << 40 };

    #[test]
    fn records_of_an_arrangement_weigh_what_went_in_and_leave_with_it() {
        let accounts = Accounts::new(1 << 40);
        let account = accounts.open(1, 1, MUCH);
        let (mut ledger, meter) = (Ledger::default(), Meter::new(account.part(PLACE)));
        ledger.enter(5, 8, meter.clone(), account.charge(PLACE));
        meter.note(100);
        meter.note(200);
        for (operator, records) in [(4, 7), (5, 2), (7, 2), (8, 9), (7, -1)] {
            ledger.change(operator, records);
        }
        assert_eq!(account.part(PLACE).usage(), Usage { rows: 3, bytes: 450 });
        ledger.leave(&[5]);
        assert_eq!((account.part(PLACE).usage(), accounts.total()), (Usage::default(), 0));
    }
}
