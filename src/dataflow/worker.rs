//! One timely worker: executes commands in order, feeds inputs, reports completed epochs.
//!
//! Invariant: an epoch is reported when the probes of all views have passed it on worker 0; the report holds every
//! update up to that epoch and none after it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use differential_dataflow::input::InputSession;
use differential_dataflow::trace::TraceReader;
use timely::dataflow::InputHandle;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Input;
use timely::progress::Antichain;
use timely::worker::Worker;

use super::arrangement::{ArrangementKey, Button, SetTrace, SharedArrangements};
use super::evaluate::RequestSender;
use super::protocol::{
    Bindings, Command, DataflowStats, Epoch, EpochResult, InstanceId, RowChange, ViewDelta,
};
use super::render::{self, Context};
use super::sink::{Gathered, sink};
use super::source::SourceState;
use crate::plan::{Rel, ViewId};
use crate::row::Row;

/// How long a worker sleeps at most when nothing wakes it.
const PARK: Duration = Duration::from_millis(250);
/// Rows fed between two steps of the worker while a view is loaded, to keep buffers small.
const LOAD_CHUNK: usize = 10_000;

/// The ends of the channels that worker 0 serves.
pub(super) struct Channels {
    pub commands: std::sync::mpsc::Receiver<Command>,
    pub results: tokio::sync::mpsc::UnboundedSender<EpochResult>,
}

struct View {
    inputs: BTreeMap<InstanceId, InputSession<Epoch, Row, i64>>,
    constants: Vec<InputSession<Epoch, Row, i64>>,
    shared: Vec<ArrangementKey>,
    gathered: Gathered,
    probe: Probe<Epoch>,
    buttons: Vec<Button>,
}

struct State {
    /// The epoch that is fed next; all inputs stand at it.
    now: Epoch,
    sources: BTreeMap<InstanceId, SourceState>,
    shared: SharedArrangements,
    views: BTreeMap<ViewId, View>,
    outputs: BTreeMap<ViewId, SetTrace>,
    requests: RequestSender,
    /// Epochs fed and not yet reported, with the faults met while feeding.
    open: VecDeque<(Epoch, Vec<String>)>,
    scratch: Vec<(Row, i64)>,
}

/// Runs one worker until it is told to shut down. Only worker 0 has `channels`.
pub(super) fn run(worker: &mut Worker, channels: Option<Channels>, requests: RequestSender) {
    let (mut input, inbox) = command_dataflow(worker);
    let mut state = State {
        now: 1,
        sources: BTreeMap::new(),
        shared: SharedArrangements::default(),
        views: BTreeMap::new(),
        outputs: BTreeMap::new(),
        requests,
        open: VecDeque::new(),
        scratch: Vec::new(),
    };
    let peers = worker.peers();
    let mut sequence = 0u64;
    loop {
        if let (Some(channels), Some(input)) = (&channels, &mut input) {
            let mut sent = false;
            loop {
                let command = match channels.commands.try_recv() {
                    Ok(command) => command,
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    // The pipeline dropped its handle without saying goodbye: the same as being told to end.
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => Command::Shutdown,
                };
                let ends = matches!(command, Command::Shutdown);
                for (target, command) in split(command, peers) {
                    input.send((target, command));
                }
                sent = true;
                if ends {
                    break;
                }
            }
            if sent {
                sequence += 1;
                input.advance_to(sequence);
            }
        }
        worker.step_or_park(if inbox.borrow().is_empty() { Some(PARK) } else { Some(Duration::ZERO) });
        loop {
            let command = inbox.borrow_mut().pop_front();
            let Some(command) = command else { break };
            if matches!(command, Command::Shutdown) {
                // Otherwise the worker would go on until all dataflows are complete, and one that waits for an answer of
                // the evaluation service never is.
                for dataflow in worker.installed_dataflows() {
                    worker.drop_dataflow(dataflow);
                }
                return;
            }
            state.execute(command, worker);
        }
        if let Some(channels) = &channels {
            state.report(channels);
        } else {
            state.compact_passed();
        }
    }
}

type Inbox = Rc<RefCell<VecDeque<Command>>>;
type CommandInput = InputHandle<u64, timely::container::CapacityContainerBuilder<Vec<(usize, Command)>>>;

/// The dataflow that brings commands from worker 0 to every worker in one order.
fn command_dataflow(worker: &mut Worker) -> (Option<CommandInput>, Inbox) {
    let inbox: Inbox = Rc::default();
    let queue = inbox.clone();
    let input = worker.dataflow_named::<u64, _, _>("Commands", move |scope| {
        let (input, stream) = scope.new_input::<(usize, Command)>();
        let pact = Exchange::new(|(target, _): &(usize, Command)| *target as u64);
        stream.unary_frontier::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
            pact,
            "Inbox",
            |_, _| {
                // Worker 0 advances the time after every batch of commands: ordering by time keeps the order sent.
                let mut waiting: BTreeMap<u64, Vec<Command>> = BTreeMap::new();
                move |(input, frontier), _output| {
                    input.for_each_stamp(|capability, data| {
                        let Some(time) = capability.least().copied() else { return };
                        let slot = waiting.entry(time).or_default();
                        data.for_each(|batch| slot.extend(batch.drain(..).map(|(_, command)| command)));
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
        input
    });
    (if worker.index() == 0 { Some(input) } else { None }, inbox)
}

/// Data goes to worker 0, which holds the sources; everything else to every worker.
fn split(command: Command, peers: usize) -> Vec<(usize, Command)> {
    match command {
        Command::Step { epoch, changes } => {
            let mut parts: Vec<_> =
                (1..peers).map(|target| (target, Command::Step { epoch, changes: Vec::new() })).collect();
            parts.push((0, Command::Step { epoch, changes }));
            parts
        }
        Command::Load { .. } => vec![(0, command)],
        other => (0..peers).map(|target| (target, other.clone())).collect(),
    }
}

impl State {
    fn execute(&mut self, command: Command, worker: &mut Worker) {
        match command {
            Command::AddSource { instance, identity } => {
                self.sources.insert(instance, SourceState::new(identity));
            }
            Command::Load { instance, rows } => self.load(instance, rows),
            Command::DropSource { instance } => {
                self.sources.remove(&instance);
            }
            Command::AddView { view, rel, bindings } => self.add_view(view, rel, bindings, worker),
            Command::DropView { view } => self.drop_view(view),
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
    }

    fn step(&mut self, epoch: Epoch, changes: Vec<(InstanceId, Vec<RowChange>)>) {
        let mut faults = Vec::new();
        if epoch != self.now {
            faults.push(format!("epoch {epoch} was fed when {} was due", self.now));
        }
        for (instance, changes) in changes {
            self.change(instance, changes, &mut faults);
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

    fn add_view(&mut self, id: ViewId, rel: Arc<Rel>, bindings: Bindings, worker: &mut Worker) {
        let mut shared = Vec::new();
        render::shared_keys(&rel, &bindings, &mut shared);
        let mut fresh = Vec::new();
        for key in &shared {
            let Some(binding) = bindings.values().find(|b| key.is_over(b.instance)) else { continue };
            if self.shared.ensure(key, binding, self.now, worker) {
                fresh.push(key.clone());
            }
        }
        for key in fresh {
            self.fill_shared(&key, worker);
        }
        let (gathered, probe) = (Gathered::default(), Probe::new());
        let built = {
            let (gathered, probe) = (gathered.clone(), probe.clone());
            let State { shared, outputs, requests, now, .. } = self;
            worker.dataflow_named::<Epoch, _, _>("View", |scope| {
                let mut context = Context {
                    scope,
                    view: id,
                    now: *now,
                    bindings: &bindings,
                    shared,
                    upstreams: outputs,
                    requests,
                    inputs: BTreeMap::new(),
                    buttons: Vec::new(),
                    constants: Vec::new(),
                    memo: render::Memo::of(&rel),
                };
                let rendered = render::render(&mut context, &rel)?;
                let all = rendered.failures.into_iter().fold(rendered.rows, |sum, next| sum.concat(next));
                let output = all.arrange_by_self_named("Output");
                sink(output.clone().as_collection(|row, &()| row.clone()), gathered, &probe);
                let inputs: BTreeMap<_, _> =
                    context.inputs.into_iter().map(|(instance, (session, _))| (instance, session)).collect();
                Ok::<_, crate::error::Error>((inputs, context.constants, context.buttons, output.trace))
            })
        };
        let (inputs, constants, buttons, trace) = match built {
            Ok(built) => built,
            Err(error) => {
                self.open.push_back((self.now, vec![format!("view {id} could not be rendered: {error}")]));
                return;
            }
        };
        let leader = worker.index() == 0;
        let constants = constants
            .into_iter()
            .map(|(mut session, rows)| {
                if leader {
                    rows.into_iter().for_each(|row| session.update(row, 1));
                }
                session
            })
            .collect();
        let mut view = View { inputs, constants, shared, gathered, probe, buttons };
        for (instance, session) in &mut view.inputs {
            let Some(source) = self.sources.get(instance) else { continue };
            let mut fed = 0usize;
            source.for_each(|row, times| {
                session.update(row.clone(), times);
                fed += 1;
                if fed.is_multiple_of(LOAD_CHUNK) {
                    session.flush();
                    worker.step();
                }
            });
            session.flush();
        }
        self.views.insert(id, view);
        self.outputs.insert(id, trace);
    }

    fn fill_shared(&mut self, key: &ArrangementKey, worker: &mut Worker) {
        let Some(shared) = self.shared.by_key.get_mut(key) else { return };
        let Some(source) = self.sources.get(&shared.instance()) else { return };
        let mut fed = 0usize;
        source.for_each(|row, times| {
            shared.update(row, times);
            fed += 1;
            if fed.is_multiple_of(LOAD_CHUNK) {
                shared.session.flush();
                worker.step();
            }
        });
        shared.session.flush();
    }

    fn drop_view(&mut self, id: ViewId) {
        self.outputs.remove(&id);
        let Some(view) = self.views.remove(&id) else { return };
        for mut button in view.buttons {
            button.press();
        }
        for key in &view.shared {
            self.shared.release(key);
        }
    }

    /// All views have passed `epoch`.
    fn passed(&self, epoch: Epoch) -> bool {
        self.views.values().all(|view| !view.probe.less_equal(&epoch))
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
            let deltas = self
                .views
                .iter()
                .map(|(view, state)| ViewDelta { view: *view, rows: state.gathered.take(epoch) })
                .filter(|delta| !delta.rows.is_empty())
                .collect();
            self.compact(epoch + 1);
            let result = EpochResult { epoch, deltas, stats: self.stats(), faults };
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
        if let Some(epoch) = last {
            self.compact(epoch + 1);
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
        let (group_rows, group_bytes) = self.requests.held.get();
        let none = DataflowStats { group_rows, group_bytes, ..DataflowStats::default() };
        self.sources.values().fold(none, |sum, source| DataflowStats {
            source_rows: sum.source_rows + source.row_count(),
            source_bytes: sum.source_bytes + source.byte_count(),
            ..sum
        })
    }
}
