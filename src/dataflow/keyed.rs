//! The frame of operators that keep their own state by key: collect an epoch's updates, wait until the epoch is
//! complete, hand them over consolidated.
//!
//! Invariant: `logic` sees every epoch once, in order, on the worker that owns the key; it gives output only after all of
//! the epoch's updates have arrived. (Time is totally ordered here; operators inside an iteration use differential's own.)

use std::collections::BTreeMap;
use std::hash::Hasher;

use differential_dataflow::consolidation::consolidate;
use differential_dataflow::{AsCollection, VecCollection};
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use super::protocol::Epoch;
use crate::row::Row;

/// A collection of rows.
pub(super) type Rows<'s> = VecCollection<'s, Epoch, Row, i64>;

/// A row with the key that decides its worker.
pub(super) type KeyedRow = (Row, Row);

/// Updates of epochs that are not complete, each with the capability to answer it.
pub(super) type Incomplete<D, T = Epoch> = BTreeMap<T, (Capability<T>, Vec<(D, i64)>)>;

/// Spreads keys over workers.
pub(super) fn route(key: &Row) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(key.as_bytes());
    hasher.finish()
}

/// From here on the updates of the open epoch are handed over before it is complete: loading a source of a hundred
/// million rows must not hold them all here at once. Tests do it all the time.
const EARLY: usize = if cfg!(test) { 4 } else { 1 << 15 };

/// How much of an epoch the updates handed over are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// More of the same epoch follows; no output may be given yet.
    More,
    /// The rest (maybe nothing): the epoch is complete.
    Last,
}

/// Builds an operator over `(key, row)` updates. `logic(updates, part, output)` gets one epoch's updates, consolidated
/// within each part (none of zero), and with the last part appends the epoch's output updates; a multiplicity may be
/// negative between parts. `first` is the epoch at which the operator starts (it is called for it even without input, so
/// that it can put out what an empty input means).
pub(super) fn keyed<'s, L>(
    input: VecCollection<'s, Epoch, KeyedRow, i64>,
    name: &str,
    first: Epoch,
    mut logic: L,
) -> Rows<'s>
where
    L: FnMut(Vec<(KeyedRow, i64)>, Part, &mut Vec<(Row, i64)>) + 'static,
{
    let pact = Exchange::new(|((key, _), _, _): &(KeyedRow, Epoch, i64)| route(key));
    input
        .inner
        .unary_frontier::<timely::container::CapacityContainerBuilder<Vec<(Row, Epoch, i64)>>, _, _, _>(
            pact,
            name,
            move |capability, _info| {
                let mut pending: Incomplete<KeyedRow> = BTreeMap::new();
                pending.insert(first, (capability.delayed(&first), Vec::new()));
                drop(capability);
                let mut produced = Vec::new();
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, data| {
                        let updates = data.flat_map(|batch| batch.drain(..));
                        let Some(least) = capability.retain_least(output.output_index()) else { return };
                        for (row, time, diff) in updates {
                            let slot =
                                pending.entry(time).or_insert_with(|| (least.delayed(&time), Vec::new()));
                            slot.1.push((row, diff));
                        }
                    });
                    while let Some(entry) = pending.first_entry() {
                        if frontier.less_equal(entry.key()) {
                            break;
                        }
                        let time = *entry.key();
                        let (capability, mut updates) = entry.remove();
                        consolidate(&mut updates);
                        logic(updates, Part::Last, &mut produced);
                        let mut session = output.session(&capability);
                        session.give_iterator(produced.drain(..).map(|(row, diff)| (row, time, diff)));
                    }
                    // Only the epoch that is next: all before it are done and none can still come.
                    if let Some(mut entry) = pending.first_entry()
                        && entry.get().1.len() >= EARLY
                        && !frontier.less_than(entry.key())
                    {
                        let mut updates = std::mem::take(&mut entry.get_mut().1);
                        consolidate(&mut updates);
                        logic(updates, Part::More, &mut produced);
                    }
                }
            },
        )
        .as_collection()
}
