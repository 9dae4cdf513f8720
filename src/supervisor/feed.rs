//! From queued transactions to epochs, from epoch results to applies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use differential_dataflow::consolidation::consolidate;
use tracing::Span;

use super::engine::{Applying, Engine, Queued, Written, server_time};
use super::prepare::Prepared;
use super::sources::Feed;
use super::views::{Installed, State};
use super::{state, trace};
use crate::apply::reconcile::difference;
use crate::apply::writer::Note;
use crate::apply::{Batch, Progress};
use crate::capture::poll;
use crate::dataflow::{Command, Epoch, EpochResult};
use crate::error::{Error, Result};
use crate::plan::ViewId;
use crate::row::Row;

/// Bytes of decoded changes in one epoch: bounds the memory that deltas take.
pub(super) const EPOCH_BYTES: usize = 64 << 20;
/// Transactions in one epoch.
const EPOCH_TRANSACTIONS: usize = 20_000;

/// Changed rows that may wait for the writer before nothing more is fed.
pub(super) const PENDING_ROWS: usize = 500_000;

/// An epoch in the dataflow.
pub(super) struct Flight {
    pub epoch: Epoch,
    pub progress: Progress,
    pub installs: Vec<ViewId>,
    /// How many changes of a transaction whose end is not there yet; `None`: everything up to a commit.
    pub part: Option<usize>,
    pub started: Instant,
    /// When it is next said that it is still being computed.
    pub patience: Duration,
    pub traced: trace::Computed,
}

/// What one transaction writes.
pub(super) struct Step {
    pub progress: Progress,
    pub batches: Vec<(ViewId, Batch)>,
    pub notes: Vec<Note>,
    /// What could not become a batch.
    pub broken: Vec<(ViewId, Error)>,
    /// Spans of the steps in it, open until it is written.
    pub traced: Vec<Span>,
}

/// Completed epochs that wait for the writer.
#[derive(Default)]
pub(super) struct Pending {
    pub progress: Progress,
    pub deltas: BTreeMap<ViewId, Vec<(Row, i64)>>,
    pub installs: Vec<ViewId>,
    pub traced: Vec<Span>,
}

impl Engine {
    /// Moves everything on that can move.
    pub fn pump(&mut self) -> Result<()> {
        if self.flights.is_empty() {
            self.feed()?;
        }
        self.settled |= self.has_settled();
        let ready = |p: &Pending| {
            (self.settled || !p.installs.is_empty()) && !self.watched.untold && self.is_worth_writing(p)
        };
        if self.applying.is_none() && self.pending.as_ref().is_some_and(ready) {
            self.start_apply();
        }
        self.open_barriers();
        self.tell_backpressure();
        self.options.positions.note(self.received, self.fed);
        Ok(())
    }

    /// Whether more waits to be written than should be computed beyond it.
    pub(super) fn is_writer_behind(&self) -> bool {
        let waiting = |p: &Pending| p.deltas.values().map(Vec::len).sum::<usize>();
        self.pending.as_ref().is_some_and(|p| waiting(p) > PENDING_ROWS)
    }

    /// Feeds the next epoch, if there is anything to feed and the writer is not too far behind.
    fn feed(&mut self) -> Result<()> {
        if self.is_writer_behind() {
            return Ok(());
        }
        if self.queue.is_empty() && self.feed_part()? {
            return Ok(());
        }
        let mut feed: Feed = std::mem::take(&mut self.carry);
        let (mut bytes, mut transactions) = (0, 0);
        let mut progress = Progress { frontier: self.fed, ..Progress::default() };
        self.feed_polled(&mut feed, &mut progress)?;
        while bytes < EPOCH_BYTES && transactions < EPOCH_TRANSACTIONS {
            let Some(Queued { transaction, xid }) = self.queue.pop_front() else { break };
            self.queue_bytes -= transaction.bytes;
            bytes += transaction.bytes;
            transactions += 1;
            progress.xids.push(xid);
            // After a change from triggers to the slot it begins before what is stored already.
            progress.frontier = progress.frontier.max(transaction.end_lsn);
            progress.data_time = server_time(transaction.commit_time);
            if transaction.changed_any() {
                self.options.counters.transaction(transaction.taken + transaction.changes.len());
                progress.changed = Some(transaction.end_lsn);
            }
            self.sources.feed(transaction, xid, &mut feed)?;
        }
        if self.queue.is_empty() && !self.assembler.in_transaction() {
            progress.frontier = progress.frontier.max(self.received);
            progress.data_time = progress.data_time.max(self.server_time);
        }
        if !progress.consumed.is_empty() {
            // What is read was committed before or after the position of that look, so after every earlier frontier.
            progress.changed = Some(progress.frontier + 1);
        }
        self.sources.passed(progress.frontier);
        // What is prepared together joins together: at a start all stream tables move from the boundary that they
        // stored to the new one in one transaction (invariant 2).
        let installs = if self.preparing.is_none() { self.installable() } else { Vec::new() };
        self.fed = self.fed.max(progress.frontier);
        if feed.is_empty() && transactions == 0 && installs.is_empty() && progress.consumed.is_empty() {
            return Ok(());
        }
        for view in &installs {
            self.install(*view)?;
        }
        let traced = self.gathering.fed(transactions, bytes);
        self.step(feed, progress, installs, None, traced)
    }

    /// Hands an epoch to the dataflow.
    pub(super) fn step(
        &mut self,
        changes: Feed,
        progress: Progress,
        installs: Vec<ViewId>,
        part: Option<usize>,
        traced: trace::Computed,
    ) -> Result<()> {
        self.dataflow.send(Command::Step { epoch: self.epoch, changes })?;
        let (started, patience) = (Instant::now(), Duration::from_secs(10));
        let epoch = self.epoch;
        self.flights.push_back(Flight { epoch, progress, installs, part, started, patience, traced });
        self.epoch += 1;
        Ok(())
    }

    /// Whether everything that was there at the start has found its place.
    fn has_settled(&self) -> bool {
        let on_its_way =
            |s: &State| matches!(s, State::Preparing | State::Waiting(_) | State::Installing { .. });
        self.watched.known
            && self.preparing.is_none()
            && self.applying.is_none()
            && !self.views.0.values().any(|v| on_its_way(&v.state))
    }

    /// A prepared stream table waits for its sources.
    pub fn ready(&mut self, mut prepared: Prepared) {
        self.watched.decided(prepared.row.view, prepared.validity.take());
        let Some(view) = self.views.0.get_mut(&prepared.row.view) else { return };
        if !matches!(view.state, State::Preparing) {
            return;
        }
        // One that it reads has left since it was planned, and may be another pipeline's by now: planned again.
        let (id, upstreams) = (prepared.row.view, prepared.plan.upstreams.clone());
        view.state = State::Waiting(Box::new(prepared));
        let through = self.views.incremental();
        if upstreams.iter().any(|u| !through.contains(u)) {
            self.set_failed(id, Some(Instant::now()));
        }
    }

    /// Prepared stream tables whose sources are live and whose upstreams are installed, in an order in which each
    /// follows its upstreams.
    fn installable(&self) -> Vec<ViewId> {
        let (mut found, mut order) = (BTreeSet::new(), Vec::new());
        loop {
            let before = order.len();
            for (id, view) in &self.views.0 {
                let State::Waiting(prepared) = &view.state else { continue };
                if !found.contains(id)
                    && prepared.bindings.values().all(|b| self.sources.is_live(b.instance))
                    && prepared
                        .plan
                        .upstreams
                        .iter()
                        .all(|u| found.contains(u) || self.views.installed(*u).is_some())
                {
                    found.insert(*id);
                    order.push(*id);
                }
            }
            if order.len() == before {
                return order;
            }
        }
    }

    fn install(&mut self, id: ViewId) -> Result<()> {
        let Some(view) = self.views.0.get_mut(&id) else { return Ok(()) };
        let state = std::mem::replace(&mut view.state, State::Preparing);
        let State::Waiting(prepared) = state else {
            view.state = state;
            return Ok(());
        };
        let instances = prepared.bindings.values().map(|b| b.instance).collect();
        let installed = Installed {
            form: prepared.form,
            instances,
            upstreams: prepared.plan.upstreams.clone(),
            cadence: prepared.cadence,
            gates: prepared.gates,
            operators: prepared.operators,
        };
        self.hierarchies_stale = true;
        let limits = state::limits(&view.row, self.options.memory_limit);
        let (stored, refresh, since) = (Some(prepared.stored), prepared.refresh, prepared.since);
        view.state = State::Installing { installed, stored, refresh, since };
        let rel = Arc::new(prepared.plan.rel);
        self.dataflow.send(Command::AddView { view: id, rel, bindings: prepared.bindings, limits })
    }

    /// An epoch is through the dataflow.
    pub async fn completed(&mut self, result: EpochResult) -> Result<()> {
        if let Some(fault) = result.faults.first() {
            return Err(Error::internal(format!("the stream contradicts what is held: {fault}"))
                .with_hint("all sources are read again"));
        }
        let Some(mut flight) = self.flights.pop_front() else {
            return Err(Error::internal("an epoch completed that was not fed"));
        };
        if flight.epoch != result.epoch {
            return Err(Error::internal("epochs completed out of order"));
        }
        self.watched.stats = result.stats;
        // What has left since, and perhaps is being prepared again, begins with an answer of its own; nothing is installed
        // while an epoch is under way.
        flight.installs.retain(|id| self.views.installed(*id).is_some());
        let mut deltas = result.deltas;
        deltas.retain(|delta| self.views.installed(delta.view).is_some());
        if let Some(changes) = flight.part {
            self.parts.passed(changes, flight.started.elapsed(), deltas);
            return self.suspend_exceeded(result.exceeded).await;
        }
        let pending = self.pending.get_or_insert_with(Pending::default);
        pending.progress.frontier = pending.progress.frontier.max(flight.progress.frontier);
        pending.progress.data_time = pending.progress.data_time.max(flight.progress.data_time);
        pending.progress.changed = pending.progress.changed.max(flight.progress.changed);
        pending.progress.xids.extend(flight.progress.xids);
        poll::merge(&mut pending.progress.consumed, flight.progress.consumed);
        pending.installs.extend(flight.installs);
        pending.traced.push(flight.traced.end());
        let joining = pending.installs.clone();
        for delta in self.parts.close(deltas) {
            // What joins is written at once.
            let rows = match joining.contains(&delta.view) {
                true => Some(delta.rows),
                false => self.keep(delta.view, delta.rows),
            };
            let (Some(mut rows), Some(pending)) = (rows, &mut self.pending) else { continue };
            let gathered = pending.deltas.entry(delta.view).or_default();
            gathered.append(&mut rows);
            if gathered.len() > 1 {
                consolidate(gathered);
            }
        }
        self.suspend_exceeded(result.exceeded).await
    }

    /// Writes what is computed. What can't become a batch (an error value, a broken key) takes its view out.
    fn start_apply(&mut self) {
        let Some(mut pending) = self.pending.take() else { return };
        pending.progress.scheduled = self.take_due(&mut pending);
        let (mut batches, mut notes, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        let mut deltas = pending.deltas;
        for id in &pending.installs {
            let Some(view) = self.views.0.get_mut(id) else { continue };
            let State::Installing { stored, refresh, .. } = &mut view.state else { continue };
            let answer = deltas.remove(id).unwrap_or_default();
            deltas.insert(*id, difference(answer, stored.take().unwrap_or_default()));
            notes.push(Note::Installed { view: *id, refresh: *refresh, version: view.row.version });
        }
        for (id, delta) in deltas {
            let Some(installed) = self.views.installed(id) else { continue };
            match Batch::new(&installed.form, &delta) {
                Ok(batch) if batch.is_empty() && !pending.installs.contains(&id) => {}
                Ok(batch) => batches.push((id, Batch { upstreams: self.views.upstream(id), ..batch })),
                Err(e) => broken.push((id, e)),
            }
        }
        // A view that can't be written takes those with it that read it: they show what their upstream stores.
        let mut out: Vec<ViewId> = broken.iter().map(|(id, _)| *id).collect();
        for (id, _) in &broken {
            out.extend(self.views.downstream(*id));
        }
        batches.retain(|(id, batch)| !out.contains(id) && !batch.is_empty());
        notes.retain(|Note::Installed { view, .. }| !out.contains(view));
        // What reads another one comes after it: it has more below it.
        batches.sort_by_key(|(id, batch)| (batch.upstreams.len(), *id));
        let mut progress = pending.progress;
        progress.scheduled.retain(|s| !out.contains(&s.view));
        let traced = pending.traced;
        self.write(Step { progress, batches, notes, broken, traced });
    }

    /// An apply has ended.
    pub async fn applied(&mut self, (writer, outcome, step): Written) -> Result<()> {
        self.writer = Some(writer);
        let Some(Applying { progress, installed, started, .. }) = self.applying.take() else { return Ok(()) };
        let mut applied = outcome.map_err(|e| e.during("writing stream tables"))?;
        if applied.moved {
            return self.hierarchies_moved(step).await;
        }
        applied.failed.extend(step.broken);
        self.tell_again(&applied.untold);
        let rows = applied.written.values().map(|written| written.total()).sum();
        self.options.counters.applied(started.elapsed(), rows, applied.conflicts);
        for (id, written) in &applied.written {
            if let Some(view) = self.views.0.get(id) {
                let rows = [written.inserted, written.updated, written.deleted];
                self.options.counters.rows(&view.row.qualified(), rows);
            }
        }
        let before = self.complete_until();
        self.watched.data_time = progress.data_time.or(self.watched.data_time);
        self.frontier = self.frontier.max(progress.frontier);
        self.near = progress.xids.iter().copied().fold(self.near, u64::max);
        self.stream.applied(self.frontier, !progress.consumed.is_empty());
        self.watched.last_write = Some(Instant::now());
        self.watched.applies += 1;
        for id in installed {
            if !applied.is_left_out(id) {
                let drift = applied.written.get(&id).copied().unwrap_or_default();
                self.activated(id, drift);
            }
        }
        if !applied.failed.is_empty() {
            // The apply itself may have told of some.
            self.watched.known_behind = None;
        }
        for (id, error) in applied.failed {
            // What has left meanwhile keeps the reason for which it left; its reconcile brings what was not written.
            if self.views.installed(id).is_some() {
                self.take_out(id, error, before).await?;
            }
        }
        Ok(())
    }

    /// Lets preparations go on once everything received before their registration is durable.
    fn open_barriers(&mut self) {
        let quiet = self.queue.is_empty()
            && self.polled.is_none()
            && self.flights.is_empty()
            && self.pending.is_none()
            && self.applying.is_none()
            && !self.assembler.in_transaction();
        let (frontier, applying, applies) = (self.frontier, self.applying.is_some(), self.watched.applies);
        self.barriers.retain_mut(|barrier| {
            let writing = applying && barrier.applying == Some(applies);
            if writing || !quiet && frontier < barrier.received {
                return true;
            }
            if let Some(reply) = barrier.reply.take() {
                // A preparation that was given up does not listen any more.
                let _ = reply.send(std::mem::take(&mut barrier.assigned));
            }
            false
        });
    }

    /// Writes the frontier without any delta: on an idle database, and for those who wait for it.
    pub fn write_frontier(&mut self) {
        let idle = self.queue.is_empty()
            && self.polled.is_none()
            && self.flights.is_empty()
            && !self.assembler.in_transaction();
        if !self.settled || !idle || self.pending.is_some() || self.applying.is_some() {
            return;
        }
        let progress =
            Progress { frontier: self.received, data_time: self.server_time, ..Progress::default() };
        self.fed = self.fed.max(self.received);
        self.pending = Some(Pending { progress, ..Pending::default() });
    }
}
