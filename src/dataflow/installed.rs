//! The installed views of a worker: how one is built, fed with what its sources hold, and let go.
//!
//! Invariant: every worker builds the same dataflows in the same order, so what decides about building (installed views,
//! shared arrangements) changes only in the order of commands. A view that passed a limit stops at once on each worker, but
//! counts as installed until the order to forget it. Nothing that was fed in part is ever read: a view that passes a limit
//! while it is fed is stopped before its inputs move on, and so is any other that shares the arrangement.

use std::collections::BTreeMap;
use std::sync::Arc;

use differential_dataflow::input::InputSession;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;

use super::account::{Account, SET_ENTRY, row_bytes};
use super::arrangement::{ArrangementKey, Button};
use super::measure::Measure;
use super::protocol::{Bindings, Epoch, Exceeded, InstanceId};
use super::render::{self, Context};
use super::sink::{Gathered, sink};
use super::worker::State;
use crate::plan::{Rel, ViewId};
use crate::row::Row;

/// Rows fed between two steps of the worker while a view is loaded, to keep buffers small and limits in sight.
const LOAD_CHUNK: usize = if cfg!(test) { 500 } else { 10_000 };

pub(super) struct View {
    /// Which installation: every worker counts them alike.
    installation: u64,
    pub inputs: BTreeMap<InstanceId, InputSession<Epoch, Row, i64>>,
    pub constants: Vec<InputSession<Epoch, Row, i64>>,
    shared: Vec<ArrangementKey>,
    pub gathered: Gathered,
    pub probe: Probe<Epoch>,
    buttons: Vec<Button>,
    upstreams: Vec<ViewId>,
    pub account: Arc<Account>,
    /// Its arrangements in the ledger.
    starts: Vec<usize>,
    dataflow: usize,
    /// It passed a limit (or reads one that did) and computes nothing any more.
    pub stopped: bool,
}

impl State {
    pub(super) fn add_view(
        &mut self,
        id: ViewId,
        rel: Arc<Rel>,
        bindings: Bindings,
        account: Arc<Account>,
        worker: &mut Worker,
    ) {
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
            self.fill_shared(&key, &account, worker);
        }
        if shared.iter().any(|key| self.shared.by_key.get(key).is_some_and(|s| s.partial)) {
            account.mark_total();
        }
        let (gathered, probe) = (Gathered::default(), Probe::new());
        let dataflow = worker.next_dataflow_index();
        let mut measure = Measure::new(&rel, account.clone(), self.ledger.clone());
        rel.walk(&mut |r| {
            if let Rel::Source { source, .. } = r
                && let Some(binding) = bindings.get(source)
            {
                measure.uses(r, "rows", self.accounts.source(binding.instance));
            }
        });
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
                    measure: &mut measure,
                };
                let rendered = render::render(&mut context, &rel)?;
                let all = rendered.failures.into_iter().fold(rendered.rows, |sum, next| sum.concat(next));
                let fresh = rendered.fresh;
                let output = context.measure.arranged(scope, &rel, "answer", |meter| {
                    let noted = all.inspect(move |(row, _, _)| {
                        meter.note(SET_ENTRY + if fresh { row_bytes(row) } else { 0 });
                    });
                    noted.arrange_by_self_named("Output")
                });
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
        let (starts, mut upstreams) = (measure.starts, Vec::new());
        rel.walk(&mut |r| {
            if let Rel::StreamTable { view, .. } = r {
                upstreams.push(*view);
            }
        });
        let instances: Vec<InstanceId> = inputs.keys().copied().collect();
        let view = View {
            installation: self.installations,
            inputs,
            constants,
            shared,
            gathered,
            probe,
            buttons,
            upstreams,
            account,
            starts,
            dataflow,
            stopped: false,
        };
        self.views.insert(id, view);
        self.outputs.insert(id, trace);
        // The mark may have been looked at when the view was not among the others yet.
        if self.views.get(&id).is_some_and(|view| view.account.is_marked()) {
            self.stop_marked(worker);
        }
        for instance in instances {
            self.fill_view(id, instance, worker);
        }
    }

    /// Feeds a view with what a source holds, until it passes a limit.
    fn fill_view(&mut self, id: ViewId, instance: InstanceId, worker: &mut Worker) {
        // Not among the others meanwhile: whatever stops views needs them all.
        let Some(source) = self.sources.remove(&instance) else { return };
        let mut rows = source.iter().peekable();
        // A view that was stopped has no inputs.
        while let Some(session) = self.views.get_mut(&id).and_then(|view| view.inputs.get_mut(&instance)) {
            rows.by_ref().take(LOAD_CHUNK).for_each(|(row, times)| session.update(row.clone(), times));
            session.flush();
            if rows.peek().is_none() {
                break;
            }
            worker.step();
            self.stop_exceeded(worker);
        }
        drop(rows);
        self.sources.insert(instance, source);
    }

    /// Feeds a shared arrangement with what its source holds, for the view of `account`; to nobody's account, so that view
    /// has to go when all together becomes too much.
    fn fill_shared(&mut self, key: &ArrangementKey, account: &Account, worker: &mut Worker) {
        let Some(instance) = self.shared.by_key.get(key).map(|shared| shared.instance()) else { return };
        let Some(source) = self.sources.remove(&instance) else { return };
        let mut rows = source.iter().peekable();
        while let Some(shared) = self.shared.by_key.get_mut(key) {
            rows.by_ref().take(LOAD_CHUNK).for_each(|(row, times)| shared.update(row, times));
            shared.session.flush();
            if rows.peek().is_none() {
                break;
            }
            if account.is_marked() {
                shared.partial = true;
                break;
            }
            worker.step();
            self.stop_exceeded(worker);
            if self.accounts.is_too_much() {
                account.mark_total();
            }
        }
        drop(rows);
        self.sources.insert(instance, source);
    }

    /// Lets go what a view computes with. What it still computes is for nobody.
    fn stop_view(&mut self, id: ViewId, worker: &mut Worker) {
        let Some(view) = self.views.get_mut(&id).filter(|view| !view.stopped) else { return };
        view.stopped = true;
        for mut button in view.buttons.drain(..) {
            button.press();
        }
        view.inputs.clear();
        view.constants.clear();
        worker.drop_dataflow(view.dataflow);
        self.ledger.borrow_mut().leave(&view.starts);
        self.accounts.close(&view.account);
    }

    pub(super) fn drop_view(&mut self, id: ViewId, worker: &mut Worker) {
        self.outputs.remove(&id);
        self.stop_view(id, worker);
        let Some(view) = self.views.remove(&id) else { return };
        for key in &view.shared {
            self.shared.release(key);
        }
    }

    /// Stops the views that were marked since the last look.
    pub(super) fn stop_exceeded(&mut self, worker: &mut Worker) {
        let marks = self.accounts.marks();
        if std::mem::replace(&mut self.marks, marks) != marks {
            self.stop_marked(worker);
        }
    }

    /// Stops the views whose accounts are marked, with those that read them: an upstream that is gone never completes.
    fn stop_marked(&mut self, worker: &mut Worker) {
        let mut marked = Vec::new();
        for (id, view) in self.views.iter().filter(|(_, view)| !view.stopped) {
            if let Some(excess) = view.account.exceeded() {
                marked.push((*id, view.installation));
                self.exceeded.push(Exceeded { view: *id, excess, usage: view.account.marked_with() });
            }
        }
        let gone = self.with_downstream(marked.iter().map(|(id, _)| *id).collect());
        // Those that read others first.
        gone.iter().rev().for_each(|id| self.stop_view(*id, worker));
        self.marked.append(&mut marked);
    }

    /// Forgets views that passed a limit, in these installations, with those that read them.
    pub(super) fn forget(&mut self, marked: &[(ViewId, u64)], worker: &mut Worker) {
        let there = |(id, installation): &&(ViewId, u64)| {
            self.views.get(id).is_some_and(|view| view.installation == *installation)
        };
        let gone = self.with_downstream(marked.iter().filter(there).map(|(id, _)| *id).collect());
        gone.iter().rev().for_each(|id| self.drop_view(*id, worker));
    }

    /// The views with all that read them, upstreams first.
    fn with_downstream(&self, mut views: Vec<ViewId>) -> Vec<ViewId> {
        let mut next = 0;
        while let Some(upstream) = views.get(next).copied() {
            next += 1;
            for (id, view) in &self.views {
                if view.upstreams.contains(&upstream) && !views.contains(id) {
                    views.push(*id);
                }
            }
        }
        views
    }
}
