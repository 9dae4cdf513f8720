//! One timely worker: executes orders in their sequence, feeds inputs, reports completed epochs.
//!
//! Invariant: an epoch is reported when every worker has fed it and the probes of all views have passed it on worker 0; the
//! report holds every update up to that epoch, all faults met while feeding it, and nothing after it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use differential_dataflow::trace::TraceReader;
use timely::progress::Antichain;
use timely::worker::Worker;

use super::account::{Accounts, Held};
use super::arrangement::{SetTrace, SharedArrangements};
use super::commands::{Order, Received, command_dataflow};
use super::credit::Permit;
use super::ending::Ending;
use super::evaluate::RequestSender;
use super::installed::View;
use super::measure::{Ledgers, ledger_of};
use super::protocol::{
    Command, DataflowStats, Epoch, EpochResult, Exceeded, InstanceId, RowChange, ViewDelta,
};
use super::shards::{Change, Notes, Splitter, notes_dataflow};
use super::source::{SourceState, fill};
use crate::plan::ViewId;
use crate::row::{Row, RowBuilder};

/// How long a worker sleeps at most when nothing wakes it.
const PARK: Duration = Duration::from_millis(250);

/// The ends of the channels that worker 0 serves.
pub(super) struct Channels {
    /// A load comes with what it may have on its way.
    pub commands: std::sync::mpsc::Receiver<(Command, Option<Permit>)>,
    pub results: tokio::sync::mpsc::UnboundedSender<EpochResult>,
}

pub(super) struct State {
    /// The epoch that is fed next; all inputs stand at it.
    pub now: Epoch,
    pub sources: BTreeMap<InstanceId, SourceState>,
    pub shared: SharedArrangements,
    pub views: BTreeMap<ViewId, View>,
    pub outputs: BTreeMap<ViewId, SetTrace>,
    pub requests: RequestSender,
    pub accounts: Accounts,
    pub ledger: Ledgers,
    /// Views installed so far: every worker counts alike.
    pub installations: u64,
    /// Marks of accounts that were looked at.
    pub marks: u64,
    pub exceeded: Vec<Exceeded>,
    /// Views that were stopped here because they passed a limit, by installation, and that nobody was told to forget.
    pub marked: Vec<(ViewId, u64)>,
    /// Epochs fed and not yet reported, with the faults met while feeding.
    pub open: VecDeque<(Epoch, Vec<String>)>,
    /// What several workers tell each other; one alone has nobody.
    notes: Option<Notes>,
    /// The epoch that is being fed and waits for a row of another worker.
    feeding: Option<Feeding>,
    /// This worker clears what the process counts by epoch.
    first: bool,
    scratch: Vec<(Row, i64)>,
    builder: RowBuilder,
}

/// An epoch that is fed in part.
struct Feeding {
    faults: Vec<String>,
    changes: VecDeque<(InstanceId, VecDeque<Change>)>,
}

/// What a worker shares with the others of its process.
#[derive(Clone)]
pub(super) struct Common {
    pub requests: RequestSender,
    pub accounts: Accounts,
    pub ending: Ending,
}

/// Runs one worker until it is told to shut down or the engine ends. Only worker 0 has `channels`; `first`: it is the first
/// of its process.
pub(super) fn run(worker: &mut Worker, channels: Option<Channels>, common: Common, first: bool) {
    let Common { requests, accounts, ending } = common;
    let ledger = ledger_of(worker);
    let (mut orders, inbox) = command_dataflow(worker);
    let peers = worker.peers();
    let mut splitter = Splitter::new(peers);
    let mut state = State {
        now: 1,
        sources: BTreeMap::new(),
        shared: SharedArrangements::new(accounts.clone(), ledger.clone()),
        views: BTreeMap::new(),
        outputs: BTreeMap::new(),
        requests,
        accounts,
        ledger,
        installations: 0,
        marks: 0,
        exceeded: Vec::new(),
        marked: Vec::new(),
        open: VecDeque::new(),
        notes: (peers > 1).then(|| notes_dataflow(worker, 1)),
        feeding: None,
        first,
        scratch: Vec::new(),
        builder: RowBuilder::default(),
    };
    loop {
        if let (Some(channels), Some(orders)) = (&channels, &mut orders) {
            loop {
                let (command, permit) = match channels.commands.try_recv() {
                    Ok(sent) => sent,
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    // The pipeline dropped its handle without saying goodbye: the same as being told to end.
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => (Command::Shutdown, None),
                };
                let ends = matches!(command, Command::Shutdown);
                orders.give(splitter.split(command));
                permit.into_iter().for_each(|permit| orders.keep(permit));
                if ends {
                    break;
                }
            }
            orders.send();
            orders.give_back();
        }
        let busy = !inbox.borrow().is_empty() && state.feeding.is_none();
        worker.step_or_park(if busy { Some(Duration::ZERO) } else { Some(PARK) });
        if ending.is_ended() {
            return leave(worker);
        }
        state.stop_exceeded(worker);
        let marked = std::mem::take(&mut state.marked);
        if let Some(orders) = orders.as_mut().filter(|_| !marked.is_empty()) {
            orders.give((0..peers).map(|to| (to, Order::Forget(marked.clone()))));
            orders.send();
        }
        state.proceed();
        while state.feeding.is_none() {
            let received = inbox.borrow_mut().pop_front();
            let Some(Received { order, taken_in }) = received else { break };
            if matches!(order, Order::Command(Command::Shutdown)) {
                return leave(worker);
            }
            state.execute(order, worker);
            drop(taken_in);
        }
        match &channels {
            Some(channels) => state.report(channels),
            None => state.compact_passed(),
        }
    }
}

/// Otherwise the worker would go on until all dataflows are complete, and one that waits for an answer of the evaluation
/// service, or for a process that is gone, never is.
fn leave(worker: &mut Worker) {
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

impl State {
    fn execute(&mut self, order: Order, worker: &mut Worker) {
        let command = match order {
            Order::Command(command) => command,
            Order::Step { epoch, changes } => return self.step_shared(epoch, changes),
            Order::Forget(marked) => return self.forget(&marked, worker),
        };
        match command {
            Command::AddSource { instance, identity } => {
                let held = Held::new(self.accounts.common(self.accounts.source(instance)));
                self.sources.insert(instance, SourceState::new(identity, held));
            }
            Command::Load { instance, rows } => self.load(instance, rows),
            Command::DropSource { instance } => {
                self.sources.remove(&instance);
                self.accounts.forget_source(instance);
            }
            Command::AddView { view, rel, bindings, limits } => {
                self.installations += 1;
                let account = self.accounts.open(view, self.installations, limits);
                self.add_view(view, rel, bindings, account, worker);
            }
            Command::SetLimits { view, limits } => {
                if let Some(view) = self.views.get(&view) {
                    view.account.set_limits(limits);
                }
            }
            Command::DropView { view } => self.drop_view(view, worker),
            Command::Step { epoch, changes } => self.step(epoch, changes),
            Command::Shutdown => {}
        }
    }

    fn load(&mut self, instance: InstanceId, rows: Vec<Row>) {
        let mut faults = Vec::new();
        self.change(instance, rows.into_iter().map(RowChange::Insert), &mut faults);
        if !faults.is_empty() {
            self.open.push_back((self.now, faults));
        }
    }

    /// Applies changes to a source and passes their deltas on to everything that reads it.
    fn change(
        &mut self,
        instance: InstanceId,
        changes: impl IntoIterator<Item = RowChange>,
        faults: &mut Vec<String>,
    ) {
        let Some(source) = self.sources.get_mut(&instance) else { return };
        let mut deltas = std::mem::take(&mut self.scratch);
        for change in changes {
            if let Err(fault) = source.apply(change, &mut deltas) {
                faults.push(format!("source instance {instance}: {fault}"));
                break;
            }
        }
        self.pass_on(instance, deltas);
    }

    fn pass_on(&mut self, instance: InstanceId, mut deltas: Vec<(Row, i64)>) {
        for shared in self.shared.by_key.values_mut().filter(|s| s.instance() == instance) {
            deltas.iter().for_each(|(row, diff)| shared.update(row, *diff));
        }
        for view in self.views.values_mut() {
            if let Some(session) = view.inputs.get_mut(&instance) {
                deltas.iter().for_each(|(row, diff)| session.update(row.clone(), *diff));
            }
        }
        deltas.clear();
        self.scratch = deltas;
        if let Some(source) = self.sources.get_mut(&instance) {
            source.settle();
        }
    }

    fn step(&mut self, epoch: Epoch, changes: Vec<(InstanceId, Vec<RowChange>)>) {
        let mut faults = self.out_of_turn(epoch);
        for (instance, changes) in changes {
            self.change(instance, changes, &mut faults);
        }
        self.fed(faults);
    }

    fn out_of_turn(&self, epoch: Epoch) -> Vec<String> {
        match epoch == self.now {
            true => Vec::new(),
            false => vec![format!("epoch {epoch} was fed when {} was due", self.now)],
        }
    }

    fn step_shared(&mut self, epoch: Epoch, changes: Vec<(InstanceId, Vec<Change>)>) {
        let changes = changes.into_iter().map(|(instance, changes)| (instance, changes.into())).collect();
        self.feeding = Some(Feeding { faults: self.out_of_turn(epoch), changes });
        self.proceed();
    }

    /// Feeds on until the epoch is fed, or a row that another worker has to send is not here yet. Rows depart and arrive in
    /// the order of the stream: the earliest that somebody waits for can always be sent.
    fn proceed(&mut self) {
        let Some(mut feeding) = self.feeding.take() else { return };
        while let Some((instance, changes)) = feeding.changes.front_mut() {
            let instance = *instance;
            if !self.change_shared(instance, changes, &mut feeding.faults) {
                self.feeding = Some(feeding);
                return;
            }
            feeding.changes.pop_front();
        }
        self.fed(feeding.faults);
    }

    /// Takes changes from the front; `false`: the next one has to wait.
    fn change_shared(
        &mut self,
        instance: InstanceId,
        changes: &mut VecDeque<Change>,
        faults: &mut Vec<String>,
    ) -> bool {
        let Some(notes) = &mut self.notes else { return true };
        let mut deltas = std::mem::take(&mut self.scratch);
        let mut waits = false;
        while let Some(change) = changes.pop_front() {
            // Without the source (it was dropped) nobody reads the rows, but others still wait for those that depart.
            let source = self.sources.get_mut(&instance);
            let outcome = match (change, source) {
                (Change::Row(change), Some(source)) => source.apply(change, &mut deltas),
                (Change::Depart { old, new, unchanged, to, ticket }, Some(source)) => {
                    let left = source.depart(&old, &mut deltas);
                    let row = left.as_ref().ok().map(|old| fill(&mut self.builder, old, &new, &unchanged));
                    notes.depart(to, ticket, row);
                    left.map(drop)
                }
                (Change::Depart { to, ticket, .. }, None) => {
                    notes.depart(to, ticket, None);
                    Ok(())
                }
                (Change::Arrive { ticket }, source) => match (notes.arrived(ticket), source) {
                    (None, _) => {
                        changes.push_front(Change::Arrive { ticket });
                        waits = true;
                        break;
                    }
                    (Some(Some(row)), Some(source)) => source.apply(RowChange::Insert(row), &mut deltas),
                    _ => Ok(()),
                },
                (Change::Row(_), None) => Ok(()),
            };
            if let Err(fault) = outcome {
                faults.push(format!("source instance {instance}: {fault}"));
            }
        }
        notes.send();
        self.pass_on(instance, deltas);
        !waits
    }

    /// Everything of the open epoch is fed.
    fn fed(&mut self, faults: Vec<String>) {
        if let Some(notes) = &mut self.notes {
            let early = self.open.iter().filter(|(epoch, _)| *epoch == self.now);
            let all: Vec<String> = early.flat_map(|(_, f)| f).chain(&faults).cloned().collect();
            notes.fed(self.now + 1, &all);
        }
        self.open.push_back((self.now, faults));
        self.now += 1;
        self.advance();
    }

    fn advance(&mut self) {
        let now = self.now;
        for shared in self.shared.by_key.values_mut() {
            shared.session.advance_to(now);
            shared.session.flush();
        }
        for view in self.views.values_mut() {
            for session in view.inputs.values_mut().chain(view.constants.iter_mut()) {
                session.advance_to(now);
                session.flush();
            }
        }
    }

    /// All workers have fed `epoch`, and all views have passed it.
    fn passed(&self, epoch: Epoch) -> bool {
        self.notes.as_ref().is_none_or(|notes| notes.passed(epoch))
            && self.views.values().all(|view| view.stopped || !view.probe.less_equal(&epoch))
    }

    fn report(&mut self, channels: &Channels) {
        while let Some((epoch, _)) = self.open.front() {
            let epoch = *epoch;
            // A fault noted before its epoch is fed (epoch == now) waits for it.
            if epoch >= self.now || !self.passed(epoch) {
                return;
            }
            let mut faults = Vec::new();
            while self.open.front().is_some_and(|(e, _)| *e == epoch) {
                faults.extend(self.open.pop_front().into_iter().flat_map(|(_, f)| f));
            }
            if let Some(notes) = &self.notes {
                faults.extend(notes.faults(epoch));
            }
            let deltas = self
                .views
                .iter()
                .filter(|(_, state)| !state.stopped)
                .map(|(view, state)| ViewDelta { view: *view, rows: state.gathered.take(epoch) })
                .filter(|delta| !delta.rows.is_empty())
                .collect();
            self.compact(epoch + 1);
            self.views.values().for_each(|view| view.account.completed());
            let exceeded = std::mem::take(&mut self.exceeded);
            let result = EpochResult { epoch, deltas, stats: self.stats(), exceeded, faults };
            // A closed channel means that the pipeline has ended; the shutdown command follows.
            let _ = channels.results.send(result);
        }
    }

    fn compact_passed(&mut self) {
        let mut last = None;
        while let Some((epoch, _)) = self.open.front() {
            if *epoch >= self.now || !self.passed(*epoch) {
                break;
            }
            last = self.open.pop_front().map(|(epoch, _)| epoch);
        }
        // Worker 0 tells of them.
        self.exceeded.clear();
        if let Some(epoch) = last {
            self.compact(epoch + 1);
            if self.first {
                self.views.values().for_each(|view| view.account.completed());
            }
        }
    }

    fn compact(&mut self, epoch: Epoch) {
        self.shared.by_key.values_mut().for_each(|shared| shared.compact(epoch));
        let frontier = Antichain::from_elem(epoch);
        for trace in self.outputs.values_mut() {
            trace.set_logical_compaction(frontier.borrow());
            trace.set_physical_compaction(frontier.borrow());
        }
    }

    fn stats(&self) -> DataflowStats {
        let (bytes, sources) = self.accounts.everywhere();
        DataflowStats { source_rows: sources.rows, source_bytes: sources.bytes, bytes }
    }
}
