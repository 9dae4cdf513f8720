//! How a join makes its pairs: a bounded number of bytes at a time, also within one key.
//!
//! Differential's own tactic makes all pairs of one key at once; a cross join has one key. This one stops within a key and
//! goes on where it stopped, so that a step of the worker stays short, what is downstream can take in the pairs, and a
//! stream table that passes its limits can be dropped before the memory is gone.
//!
//! Invariant: over all calls every pair of a fresh update and an accepted one is put out once, at the later of both
//! times; or else the work never ends: what a limit cut short keeps its capability until its dataflow is dropped, so no
//! process can take the epoch for complete, whatever it has heard of the limit.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::consolidation::consolidate_updates;
use differential_dataflow::operators::arrange::Arranged;
use differential_dataflow::operators::join::{Fresh, JoinTactic, join_with_tactic};
use differential_dataflow::trace::cursor::cursor_list;
use differential_dataflow::trace::{BatchCursor, Cursor, Navigable, TraceReader};
use differential_dataflow::{AsCollection, Data, VecCollection};
use timely::Accountable;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use super::account::Account;
use super::protocol::Epoch;
use crate::row::Row;

/// Pairs in one container, and their weight.
const CHUNK: usize = if cfg!(test) { 7 } else { 1024 };
const HEAVY: i64 = 1 << 14;
/// From so many pairs on a key is made in several goes. Tests do it all the time.
const LARGE: usize = if cfg!(test) { 2 } else { 1 << 12 };
/// Differential's driver lets each side of a join put out a million records before others have their turn. That is too
/// much at once for a stream table that is about to be dropped: a pair counts as several, by its bytes.
const RECORDS_PER_PAIR: i64 = 8;
const BYTES_PER_RECORD: usize = 16;
/// More than the driver gives a join in one go: work that was cut short ends its turn.
const TURN: i64 = 1 << 32;

/// Pairs that count by their size.
#[derive(Clone)]
struct Weighed<D> {
    rows: Vec<(D, Epoch, i64)>,
    weight: i64,
}

impl<D> Default for Weighed<D> {
    fn default() -> Self {
        Weighed { rows: Vec::new(), weight: 0 }
    }
}

impl<D> Accountable for Weighed<D> {
    fn record_count(&self) -> i64 {
        self.weight
    }
}

/// All pairs with equal keys as `logic` makes them from a left and a right row; it also tells their bytes.
pub(super) fn pairs<'s, Tr1, Tr2, D, L>(
    left: Arranged<'s, Tr1>,
    right: Arranged<'s, Tr2>,
    account: Arc<Account>,
    logic: L,
) -> VecCollection<'s, Epoch, D, i64>
where
    Tr1: TraceReader<Time = Epoch, Batch: Navigable> + 'static,
    Tr2: TraceReader<Time = Epoch, Batch: Navigable> + 'static,
    for<'a> BatchCursor<Tr1>: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    for<'a> BatchCursor<Tr2>: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    D: Data,
    L: FnMut(&Row, &Row) -> (D, usize) + 'static,
{
    let tactic = Tactic { logic: Rc::new(RefCell::new(logic)), account, data: PhantomData };
    let weighed = join_with_tactic(left, right, "Join", tactic);
    weighed
        .unary::<CapacityContainerBuilder<Vec<(D, Epoch, i64)>>, _, _, _>(Pipeline, "Pairs", |_, _| {
            move |input, output| {
                input.for_each(|capability, data: &mut Weighed<D>| {
                    output.session(&capability).give_container(&mut data.rows);
                });
            }
        })
        .as_collection()
}

struct Tactic<L, D> {
    logic: Rc<RefCell<L>>,
    account: Arc<Account>,
    data: PhantomData<D>,
}

impl<B0, B1, D, L> JoinTactic<Epoch, B0, B1, Weighed<D>> for Tactic<L, D>
where
    B0: Navigable + 'static,
    B1: Navigable + 'static,
    for<'a> B0::Cursor: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    for<'a> B1::Cursor: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    D: Data,
    L: FnMut(&Row, &Row) -> (D, usize) + 'static,
{
    fn prep(
        &mut self,
        left: Vec<B0>,
        right: Vec<B1>,
        fresh: Fresh,
        meet: Epoch,
    ) -> Box<dyn Iterator<Item = Weighed<D>>> {
        // What was accepted earlier counts from now on; fresh updates are not earlier than now anyway.
        let (left_from, right_from) = match fresh {
            Fresh::Input0 => (0, meet),
            Fresh::Input1 => (meet, 0),
        };
        let (left, left_storage) = cursor_list(left);
        let (right, right_storage) = cursor_list(right);
        Box::new(Work {
            left,
            left_storage,
            left_from,
            right,
            right_storage,
            right_from,
            large: None,
            made: Weighed::default(),
            logic: self.logic.clone(),
            account: self.account.clone(),
        })
    }
}

/// A row with its times and multiplicities.
type Edit<R> = (R, Epoch, i64);

/// A key with many pairs, and the next one to make.
struct Large {
    left: Vec<Edit<Row>>,
    right: Vec<Edit<Row>>,
    next: (usize, usize),
}

/// The pairs of one batch with what was accepted before.
struct Work<C1: Cursor, C2: Cursor, D, L> {
    left: C1,
    left_storage: C1::Storage,
    left_from: Epoch,
    right: C2,
    right_storage: C2::Storage,
    right_from: Epoch,
    large: Option<Large>,
    made: Weighed<D>,
    logic: Rc<RefCell<L>>,
    account: Arc<Account>,
}

impl<C1, C2, D, L> Iterator for Work<C1, C2, D, L>
where
    for<'a> C1: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    for<'a> C2: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    D: Data,
    L: FnMut(&Row, &Row) -> (D, usize),
{
    type Item = Weighed<D>;

    fn next(&mut self) -> Option<Weighed<D>> {
        // The worker drops the dataflow when this turn is over: nothing is made meanwhile, and nothing is waited for.
        let cut_short = || Some(Weighed { rows: Vec::new(), weight: TURN });
        if self.account.is_marked() {
            return cut_short();
        }
        let logic = self.logic.clone();
        let logic = &mut *logic.borrow_mut();
        loop {
            let more = self.fill(logic);
            let mut made = std::mem::take(&mut self.made);
            let pairs = made.rows.len();
            if pairs > 0 && !self.account.paired(pairs as u64) {
                return cut_short();
            }
            if self.large.is_none() {
                consolidate_updates(&mut made.rows);
            }
            match (made.rows.is_empty(), more) {
                (false, _) => return Some(made),
                (true, false) => return None,
                (true, true) => {}
            }
        }
    }
}

impl<C1, C2, D, L> Work<C1, C2, D, L>
where
    for<'a> C1: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    for<'a> C2: Cursor<Key<'a> = &'a Row, Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
    L: FnMut(&Row, &Row) -> (D, usize),
{
    /// Makes about a container of pairs; `false`: there are no more.
    fn fill(&mut self, logic: &mut L) -> bool {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        while !self.made.is_full() {
            if let Some(large) = &mut self.large {
                if !large.fill(logic, &mut self.made) {
                    self.large = None;
                }
                continue;
            }
            let keys = (self.left.get_key(&self.left_storage), self.right.get_key(&self.right_storage));
            let (Some(left_key), Some(right_key)) = keys else { return false };
            match left_key.cmp(right_key) {
                Ordering::Less => self.left.seek_key(&self.left_storage, right_key),
                Ordering::Greater => self.right.seek_key(&self.right_storage, left_key),
                Ordering::Equal => {
                    edits(&mut self.left, &self.left_storage, self.left_from, &mut left);
                    edits(&mut self.right, &self.right_storage, self.right_from, &mut right);
                    if left.len().saturating_mul(right.len()) >= LARGE {
                        let (left, right) = (owned(&left), owned(&right));
                        self.large = Some(Large { left, right, next: (0, 0) });
                    } else {
                        for l in &left {
                            right
                                .iter()
                                .for_each(|r| self.made.push(logic, (l.0, l.1, l.2), (r.0, r.1, r.2)));
                        }
                    }
                    left.clear();
                    right.clear();
                    self.left.step_key(&self.left_storage);
                    self.right.step_key(&self.right_storage);
                }
            }
        }
        true
    }
}

impl Large {
    /// Makes the next pairs; `false`: these were the last.
    fn fill<D, L: FnMut(&Row, &Row) -> (D, usize)>(&mut self, logic: &mut L, made: &mut Weighed<D>) -> bool {
        while let Some(l) = self.left.get(self.next.0) {
            while let Some(r) = self.right.get(self.next.1) {
                if made.is_full() {
                    return true;
                }
                made.push(logic, (&l.0, l.1, l.2), (&r.0, r.1, r.2));
                self.next.1 += 1;
            }
            self.next = (self.next.0 + 1, 0);
        }
        false
    }
}

impl<D> Weighed<D> {
    fn is_full(&self) -> bool {
        self.rows.len() >= CHUNK || self.weight >= HEAVY
    }

    fn push<L: FnMut(&Row, &Row) -> (D, usize)>(&mut self, logic: &mut L, l: Edit<&Row>, r: Edit<&Row>) {
        let (pair, bytes) = logic(l.0, r.0);
        self.rows.push((pair, l.1.max(r.1), l.2 * r.2));
        self.weight += RECORDS_PER_PAIR + (bytes / BYTES_PER_RECORD) as i64;
    }
}

/// The updates at the cursor's key; times count from `from` on.
fn edits<'a, C>(cursor: &mut C, storage: &'a C::Storage, from: Epoch, out: &mut Vec<Edit<&'a Row>>)
where
    C: Cursor<Val<'a> = &'a Row, Time = Epoch, Diff = i64>,
{
    while let Some(row) = cursor.get_val(storage) {
        let first = out.len();
        cursor.map_times(storage, |time, diff| {
            let (time, diff) = (C::owned_time(time).max(from), C::owned_diff(diff));
            match out[first..].iter_mut().find(|edit| edit.1 == time) {
                Some(edit) => edit.2 += diff,
                None => out.push((row, time, diff)),
            }
        });
        let mut kept = first;
        for i in first..out.len() {
            if out[i].2 != 0 {
                out.swap(kept, i);
                kept += 1;
            }
        }
        out.truncate(kept);
        cursor.step_val(storage);
    }
}

fn owned(edits: &[Edit<&Row>]) -> Vec<Edit<Row>> {
    edits.iter().map(|(row, time, diff)| ((*row).clone(), *time, *diff)).collect()
}
