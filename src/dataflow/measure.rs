//! Ties the state of a view's operators to the lines of its plan while the view is rendered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::logging::{DifferentialEvent, DifferentialEventBuilder, MergeEvent};
use timely::dataflow::Scope;
use timely::worker::Worker;

use super::account::{Account, Held, Part, Place};
use super::ledger::{Ledger, Meter};
use super::protocol::Epoch;
use crate::plan::Rel;

/// The arrangements of a worker, shared with the log that feeds them.
pub(super) type Ledgers = Rc<RefCell<Ledger>>;

/// The ledger of a worker, fed with differential's log.
pub(super) fn ledger_of(worker: &Worker) -> Ledgers {
    let ledger = Ledgers::default();
    let Some(mut register) = worker.log_register() else { return ledger };
    let entries = ledger.clone();
    register.insert::<DifferentialEventBuilder, _>("differential/arrange", move |_, events| {
        let mut ledger = entries.borrow_mut();
        let size = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (_, event) in events.iter_mut().flat_map(|batch| batch.drain(..)) {
            match event {
                DifferentialEvent::Batch(e) => ledger.change(e.operator, size(e.length)),
                DifferentialEvent::Merge(MergeEvent {
                    operator,
                    length1,
                    length2,
                    complete: Some(now),
                    ..
                }) => {
                    ledger.change(operator, size(now) - size(length1) - size(length2));
                }
                DifferentialEvent::Drop(e) => ledger.change(e.operator, -size(e.length)),
                DifferentialEvent::Batcher(e) => ledger.change(e.operator, e.records_diff as i64),
                _ => {}
            }
        }
    });
    drop(register);
    ledger
}

/// Where the operators of one view count what they hold.
pub(super) struct Measure {
    account: Arc<Account>,
    ledger: Ledgers,
    /// Place in a walk over the plan, by the address of the operator in it.
    operators: HashMap<usize, usize>,
    /// First operators of the measured arrangements.
    pub starts: Vec<usize>,
}

fn address(rel: &Rel) -> usize {
    std::ptr::from_ref(rel) as usize
}

impl Measure {
    pub fn new(plan: &Rel, account: Arc<Account>, ledger: Ledgers) -> Measure {
        let mut operators = HashMap::new();
        plan.walk(&mut |rel| {
            let next = operators.len();
            operators.insert(address(rel), next);
        });
        Measure { account, ledger, operators, starts: Vec::new() }
    }

    fn place(&self, rel: &Rel, role: &'static str) -> Place {
        Place { operator: self.operators.get(&address(rel)).copied().unwrap_or(0), role }
    }

    pub fn account(&self) -> Arc<Account> {
        self.account.clone()
    }

    /// For an operator that counts what it keeps.
    pub fn held(&self, rel: &Rel, role: &'static str) -> Held {
        self.account.held(self.place(rel, role))
    }

    /// Notes that `rel` reads state that others share.
    pub fn uses(&self, rel: &Rel, role: &'static str, part: Arc<Part>) {
        self.account.uses(self.place(rel, role), part);
    }

    /// Builds operators that keep arrangements; what goes into them is noted with the meter.
    pub fn arranged<'s, R>(
        &mut self,
        scope: Scope<'s, Epoch>,
        rel: &Rel,
        role: &'static str,
        build: impl FnOnce(Meter) -> R,
    ) -> R {
        let place = self.place(rel, role);
        let meter = Meter::new(self.account.part(place));
        let start = scope.worker().peek_identifier();
        let built = build(meter.clone());
        let end = scope.worker().peek_identifier();
        let charge = self.account.charge(place);
        self.ledger.borrow_mut().enter(start, end, meter, charge);
        self.starts.push(start);
        built
    }
}
