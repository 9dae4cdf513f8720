//! The end of a view's dataflow: its updates gathered on worker 0.

use std::cell::RefCell;
use std::rc::Rc;

use differential_dataflow::consolidation::consolidate;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::Handle;

use super::keyed::Rows;
use super::protocol::Epoch;
use crate::row::Row;

/// Updates of one view that wait for their epoch to complete.
#[derive(Clone, Default)]
pub(super) struct Gathered(Rc<RefCell<Vec<(Row, Epoch, i64)>>>);

impl Gathered {
    /// Takes the updates of all epochs up to `epoch`, consolidated. Call it only when the view's probe has passed it.
    pub fn take(&self, epoch: Epoch) -> Vec<(Row, i64)> {
        let all = std::mem::take(&mut *self.0.borrow_mut());
        let mut rows = Vec::with_capacity(all.len());
        let mut later = Vec::new();
        for (row, time, diff) in all {
            if time <= epoch {
                rows.push((row, diff));
            } else {
                later.push((row, time, diff));
            }
        }
        self.0.borrow_mut().append(&mut later);
        consolidate(&mut rows);
        rows
    }
}

/// Gathers `rows` into `gathered` on worker 0; `probe` tells when an epoch is complete.
pub(super) fn sink(rows: Rows<'_>, gathered: Gathered, probe: &Handle<Epoch>) {
    let pact = Exchange::new(|_: &(Row, Epoch, i64)| 0);
    rows.inner
        .unary_frontier::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
            pact,
            "Sink",
            |_, _| {
                move |(input, _), _output| {
                    input.for_each_stamp(|_, data| {
                        let mut all = gathered.0.borrow_mut();
                        data.for_each(|batch| all.append(batch));
                    });
                }
            },
        )
        .probe_with(probe);
}
