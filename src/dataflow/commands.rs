//! How commands reach every worker of every process in one order, and when all of them have taken in what was loaded.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use timely::dataflow::InputHandle;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::Handle as Probed;
use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::{ActivateCapability, Probe};
use timely::worker::Worker;

use super::credit::Permit;
use super::protocol::Command;
use super::shards::Change;
use super::{Epoch, InstanceId};
use crate::plan::ViewId;

/// What a worker executes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Order {
    /// A command as it was given, or this worker's rows of a load.
    Command(Command),
    /// This worker's part of an epoch, where several workers share the sources.
    Step { epoch: Epoch, changes: Vec<(InstanceId, Vec<Change>)> },
    /// Views that passed a limit, by installation, are to be forgotten with all that read them.
    Forget(Vec<(ViewId, u64)>),
}

/// An order as it has reached a worker.
pub(super) struct Received {
    pub order: Order,
    /// Rows of a load: all others hear that this worker has taken them in when it is dropped.
    pub taken_in: Option<ActivateCapability<u64>>,
}

/// Orders that have reached this worker and are not executed yet.
pub(super) type Inbox = Rc<RefCell<VecDeque<Received>>>;
type Container = timely::container::CapacityContainerBuilder<Vec<(usize, Order)>>;

/// The end at which worker 0 gives orders.
pub(super) struct Orders {
    input: InputHandle<u64, Container>,
    sequence: u64,
    unsent: bool,
    /// Loads that some worker has not executed yet, by the time they were given at.
    loads: VecDeque<(u64, Permit)>,
    probe: Probed<u64>,
}

impl Orders {
    pub fn give(&mut self, orders: impl IntoIterator<Item = (usize, Order)>) {
        for order in orders {
            self.input.send(order);
            self.unsent = true;
        }
    }

    /// Keeps what a load may have on its way until all workers have executed what was given last.
    pub fn keep(&mut self, permit: Permit) {
        self.loads.push_back((self.sequence, permit));
    }

    /// Gives back what was kept for loads that all workers have executed.
    pub fn give_back(&mut self) {
        while self.loads.front().is_some_and(|(time, _)| !self.probe.less_equal(time)) {
            self.loads.pop_front();
        }
    }

    /// Lets go what was given since the last time; it is executed after all that was let go before.
    pub fn send(&mut self) {
        if std::mem::take(&mut self.unsent) {
            self.sequence += 1;
            self.input.advance_to(self.sequence);
        }
    }
}

/// The dataflow that brings orders from worker 0 to every worker in one order.
pub(super) fn command_dataflow(worker: &mut Worker) -> (Option<Orders>, Inbox) {
    let inbox: Inbox = Rc::default();
    let queue = inbox.clone();
    let probe = Probed::new();
    let executed = probe.clone();
    let input = worker.dataflow_named::<u64, _, _>("Commands", move |scope| {
        let (input, stream) = scope.new_input::<(usize, Order)>();
        let pact = Exchange::new(|(target, _): &(usize, Order)| *target as u64);
        let activations = scope.activations();
        let inbox = stream.unary_frontier::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
            pact,
            "Inbox",
            |_, info| {
                // Worker 0 advances the time after every batch of orders: ordering by time keeps the order sent.
                let mut waiting: BTreeMap<u64, Vec<Received>> = BTreeMap::new();
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, data| {
                        let Some(time) = capability.least().copied() else { return };
                        let receive = |(_, order)| {
                            let is_load = matches!(order, Order::Command(Command::Load { .. }));
                            let held =
                                is_load.then(|| capability.retain_least(output.output_index())).flatten();
                            let activate = |held| {
                                ActivateCapability::new(held, info.address.clone(), activations.clone())
                            };
                            Received { order, taken_in: held.map(activate) }
                        };
                        let slot = waiting.entry(time).or_default();
                        data.for_each(|batch| slot.extend(batch.drain(..).map(receive)));
                    });
                    while let Some(entry) = waiting.first_entry() {
                        if frontier.less_equal(entry.key()) {
                            break;
                        }
                        queue.borrow_mut().extend(entry.remove());
                    }
                }
            },
        );
        inbox.probe_with(&executed);
        input
    });
    let orders = Orders { input, sequence: 0, unsent: false, loads: VecDeque::new(), probe };
    (if worker.index() == 0 { Some(orders) } else { None }, inbox)
}
