//! How several workers share the rows of the sources: by the identity of a row, in whatever process its worker is.
//!
//! Invariant: all changes of one identity reach one worker in the order of the stream, so what each worker holds is
//! exactly the source's rows whose identity is its own. An update that moves a row to another identity, without the
//! values that were not sent (TOAST), is a departure at the old owner and an arrival at the new one; the arrival waits for
//! the row, and everything behind it waits with it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use timely::dataflow::InputHandle;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::Handle;
use timely::dataflow::operators::vec::Input;
use timely::worker::Worker;

use super::commands::Order;
use super::protocol::{Command, Epoch, InstanceId, RowChange};
use super::source::fill;
use crate::row::{Row, RowBuilder};

/// A change of one worker's part of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    Row(RowChange),
    /// `old` leaves for worker `to`, as `new` with its own values where `new` has none.
    Depart {
        old: Row,
        new: Row,
        unchanged: Vec<u16>,
        to: usize,
        ticket: u64,
    },
    Arrive {
        ticket: u64,
    },
}

/// The worker that holds rows of this identity.
fn owner(identity: &[u8], peers: usize) -> usize {
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(identity);
    // Other bits than those by which the owner's own table places the row.
    let hash = hasher.finish().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    usize::try_from((hash * peers as u64) >> 32).unwrap_or(0)
}

/// Splits commands into what each worker has to do.
pub(super) struct Splitter {
    peers: usize,
    identities: BTreeMap<InstanceId, usize>,
    tickets: u64,
    builder: RowBuilder,
}

impl Splitter {
    /// For so many workers in all processes.
    pub fn new(peers: usize) -> Splitter {
        Splitter { peers, identities: BTreeMap::new(), tickets: 0, builder: RowBuilder::default() }
    }

    pub fn split(&mut self, command: Command) -> Vec<(usize, Order)> {
        if self.peers == 1 {
            return vec![(0, Order::Command(command))];
        }
        match command {
            Command::Step { epoch, changes } => self.step(epoch, changes),
            Command::Load { instance, rows } => {
                let columns = self.columns(instance);
                let mut parts: Vec<Vec<Row>> = vec![Vec::new(); self.peers];
                for row in rows {
                    parts[owner(identity(&row, columns), self.peers)].push(row);
                }
                let parts = parts.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
                parts.map(|(to, rows)| (to, Order::Command(Command::Load { instance, rows }))).collect()
            }
            other => {
                match other {
                    Command::AddSource { instance, identity } => {
                        self.identities.insert(instance, identity);
                    }
                    Command::DropSource { instance } => drop(self.identities.remove(&instance)),
                    _ => {}
                }
                (0..self.peers).map(|to| (to, Order::Command(other.clone()))).collect()
            }
        }
    }

    fn columns(&self, instance: InstanceId) -> usize {
        self.identities.get(&instance).copied().unwrap_or(0)
    }

    fn step(&mut self, epoch: Epoch, changes: Vec<(InstanceId, Vec<RowChange>)>) -> Vec<(usize, Order)> {
        let mut steps: Vec<Vec<(InstanceId, Vec<Change>)>> = vec![Vec::new(); self.peers];
        for (instance, changes) in changes {
            let mut parts: Vec<Vec<Change>> = vec![Vec::new(); self.peers];
            let columns = self.columns(instance);
            changes.into_iter().for_each(|change| self.change(change, columns, &mut parts));
            for (step, part) in steps.iter_mut().zip(parts) {
                if !part.is_empty() {
                    step.push((instance, part));
                }
            }
        }
        steps.into_iter().enumerate().map(|(to, changes)| (to, Order::Step { epoch, changes })).collect()
    }

    fn change(&mut self, change: RowChange, columns: usize, parts: &mut [Vec<Change>]) {
        let of = |row: &Row| owner(identity(row, columns), parts.len());
        match change {
            RowChange::Truncate => parts.iter_mut().for_each(|p| p.push(Change::Row(RowChange::Truncate))),
            RowChange::Insert(ref row) => parts[of(row)].push(Change::Row(change)),
            RowChange::Delete(ref old) => parts[of(old)].push(Change::Row(change)),
            RowChange::Update { old: None, ref new, .. } => parts[of(new)].push(Change::Row(change)),
            RowChange::Update { old: Some(old), new, unchanged } => {
                // A row that is held by its image brings all its values along.
                let (new, unchanged) = match columns == 0 && !unchanged.is_empty() {
                    true => (fill(&mut self.builder, &old, &new, &unchanged), Vec::new()),
                    false => (new, unchanged),
                };
                let (from, to) = (of(&old), of(&new));
                if from == to {
                    parts[from].push(Change::Row(RowChange::Update { old: Some(old), new, unchanged }));
                } else if unchanged.is_empty() {
                    parts[from].push(Change::Row(RowChange::Delete(old)));
                    parts[to].push(Change::Row(RowChange::Insert(new)));
                } else {
                    self.tickets += 1;
                    let ticket = self.tickets;
                    parts[from].push(Change::Depart { old, new, unchanged, to, ticket });
                    parts[to].push(Change::Arrive { ticket });
                }
            }
        }
    }
}

/// The first `columns` columns, or the whole row for sources that are held by image.
fn identity(row: &Row, columns: usize) -> &[u8] {
    match columns {
        0 => row.as_bytes(),
        columns => row.prefix(columns),
    }
}

/// A row that departed, for whom, and its ticket; `None`: it was not there, which is a fault of the worker it should have
/// left.
type Moved = (usize, u64, Option<Row>);
/// A fault that a worker met while it fed an epoch.
type Fault = (Epoch, String);

type Arrivals = Rc<RefCell<HashMap<u64, Option<Row>>>>;
type Faults = Rc<RefCell<Vec<Fault>>>;
type Silent = timely::container::CapacityContainerBuilder<Vec<()>>;
type Builder<D> = timely::container::CapacityContainerBuilder<Vec<D>>;

/// What one worker tells the others while it feeds epochs. An epoch's faults are complete on worker 0 when the probe has
/// passed it: then every worker has fed it.
pub(super) struct Notes {
    moves: InputHandle<u64, Builder<Moved>>,
    /// Only lets go what was sent: a move needs no time.
    moment: u64,
    unsent: bool,
    arrivals: Arrivals,
    fed: InputHandle<Epoch, Builder<Fault>>,
    now: Epoch,
    faults: Faults,
    probe: Handle<Epoch>,
}

/// The dataflows of the notes; `first` is the first epoch.
pub(super) fn notes_dataflow(worker: &mut Worker, first: Epoch) -> Notes {
    let (arrivals, faults, probe) = (Arrivals::default(), Faults::default(), Handle::new());
    let (arrived, met, passed) = (arrivals.clone(), faults.clone(), probe.clone());
    let moves = worker.dataflow_named::<u64, _, _>("Moves", move |scope| {
        let (input, stream) = scope.new_input::<Moved>();
        let pact = Exchange::new(|(target, _, _): &Moved| *target as u64);
        stream.unary_frontier::<Silent, _, _, _>(pact, "Moves", |_, _| {
            move |(input, _), _output| {
                input.for_each_stamp(|_, data| {
                    let rows = data.flat_map(|batch| batch.drain(..)).map(|(_, ticket, row)| (ticket, row));
                    arrived.borrow_mut().extend(rows);
                });
            }
        });
        input
    });
    let mut fed = worker.dataflow_named::<Epoch, _, _>("Faults", move |scope| {
        let (input, stream) = scope.new_input::<Fault>();
        let pact = Exchange::new(|_: &Fault| 0);
        stream
            .unary_frontier::<Silent, _, _, _>(pact, "Faults", |_, _| {
                move |(input, _), _output| {
                    input.for_each_stamp(|_, data| {
                        met.borrow_mut().extend(data.flat_map(|batch| batch.drain(..)));
                    });
                }
            })
            .probe_with(&passed);
        input
    });
    fed.advance_to(first);
    Notes { moves, moment: 0, unsent: false, arrivals, fed, now: first, faults, probe }
}

impl Notes {
    /// A row departs to its new owner, with the next [`Notes::send`].
    pub fn depart(&mut self, to: usize, ticket: u64, row: Option<Row>) {
        self.moves.send((to, ticket, row));
        self.unsent = true;
    }

    /// Lets go what departed.
    pub fn send(&mut self) {
        if std::mem::take(&mut self.unsent) {
            self.moment += 1;
            self.moves.advance_to(self.moment);
        }
    }

    /// `Some` when the row (or the word that there is none) is here.
    pub fn arrived(&mut self, ticket: u64) -> Option<Option<Row>> {
        self.arrivals.borrow_mut().remove(&ticket)
    }

    /// This worker has fed everything before `epoch`, and met `faults`.
    pub fn fed(&mut self, epoch: Epoch, faults: &[String]) {
        for fault in faults {
            self.fed.send((self.now, fault.clone()));
        }
        self.now = epoch;
        self.fed.advance_to(epoch);
    }

    /// Whether every worker has fed `epoch`.
    pub fn passed(&self, epoch: Epoch) -> bool {
        !self.probe.less_equal(&epoch)
    }

    /// Takes the faults that workers met up to `epoch`.
    pub fn faults(&self, epoch: Epoch) -> Vec<String> {
        let all = std::mem::take(&mut *self.faults.borrow_mut());
        let (now, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|(at, _)| *at <= epoch);
        *self.faults.borrow_mut() = later;
        now.into_iter().map(|(_, fault)| fault).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Datum;

    fn row(key: i64, value: &str) -> Row {
        Row::from_datums([Datum::Int(key), Datum::Text(value.as_bytes())])
    }

    #[test]
    fn rows_are_spread_evenly_whatever_their_keys_are() {
        for peers in [2, 3, 4, 7] {
            for step in [1i64, 2, 8, 1000, 65536] {
                let mut counts = vec![0u32; peers];
                for i in 0..10_000 {
                    counts[owner(row(i * step, "").prefix(1), peers)] += 1;
                }
                let even = 10_000 / peers as u32;
                assert!(
                    counts.iter().all(|c| c.abs_diff(even) < even / 8),
                    "{peers} workers, step {step}: {counts:?}"
                );
            }
        }
    }

    #[test]
    fn changes_of_one_identity_stay_in_order_on_one_worker() {
        let mut splitter = Splitter::new(3);
        splitter.split(Command::AddSource { instance: 1, identity: 1 });
        let mut changes = Vec::new();
        for key in 0..50 {
            changes.push(RowChange::Insert(row(key, "a")));
        }
        for key in 0..50 {
            changes.push(RowChange::Update { old: None, new: row(key, "b"), unchanged: vec![] });
        }
        let orders = splitter.split(Command::Step { epoch: 1, changes: vec![(1, changes)] });
        let (mut seen, mut total) = (BTreeMap::new(), 0);
        for (to, order) in orders {
            let Order::Step { changes, .. } = order else { panic!("a part of the step") };
            for change in changes.into_iter().flat_map(|(_, changes)| changes) {
                total += 1;
                let (key, is_update) = match change {
                    Change::Row(RowChange::Insert(row)) => (row.get(0).to_owned_int(), false),
                    Change::Row(RowChange::Update { new, .. }) => (new.get(0).to_owned_int(), true),
                    other => panic!("{other:?}"),
                };
                let known = seen.insert(key, to);
                assert_eq!(known.is_some(), is_update);
                assert!(known.is_none_or(|before| before == to));
            }
        }
        assert_eq!(total, 100);
    }

    trait Int {
        fn to_owned_int(&self) -> i64;
    }

    impl Int for Datum<'_> {
        fn to_owned_int(&self) -> i64 {
            match self {
                Datum::Int(i) => *i,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_row_that_moves_to_another_worker_without_all_its_values_departs_and_arrives() {
        let mut splitter = Splitter::new(3);
        splitter.split(Command::AddSource { instance: 1, identity: 1 });
        let (mut moved, mut stayed) = (0, 0);
        for key in 0..20 {
            let old = Some(Row::from_datums([Datum::Int(key)]));
            let new = Row::from_datums([Datum::Int(key + 100), Datum::Null]);
            let update = RowChange::Update { old, new, unchanged: vec![1] };
            let orders = splitter.split(Command::Step { epoch: 1, changes: vec![(1, vec![update])] });
            let parts: Vec<Change> = orders
                .into_iter()
                .flat_map(|(_, order)| match order {
                    Order::Step { changes, .. } => changes,
                    other => panic!("{other:?}"),
                })
                .flat_map(|(_, changes)| changes)
                .collect();
            match parts.len() {
                1 => stayed += 1,
                2 => {
                    let tickets: Vec<u64> = parts
                        .iter()
                        .map(|p| match p {
                            Change::Depart { ticket, .. } | Change::Arrive { ticket } => *ticket,
                            other => panic!("{other:?}"),
                        })
                        .collect();
                    assert_eq!(tickets[0], tickets[1]);
                    moved += 1;
                }
                n => panic!("{n} parts"),
            }
        }
        assert!(moved > 0 && stayed > 0, "{moved} moved, {stayed} stayed");
    }
}
