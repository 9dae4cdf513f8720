//! What the loop looks at regularly: the catalog, requests, fingerprints, its own pulse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_postgres::types::PgLsn;

use super::detach;
use super::engine::Engine;
use super::guard;
use super::load;
use super::prepare;
use super::requests::{self, Request};
use super::rights;
use super::state;
use super::validity::Validity;
use super::views::{State, View};
use crate::apply::history::Written;
use crate::catalog::behind::Complete;
use crate::catalog::store::{self, StreamTableRow};
use crate::dataflow::{Command, DataflowStats, InstanceId};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::{Purpose, error};
use crate::replication::slot;

/// Silence after which a walsender that seems to work is given up at first.
const SILENCE: Duration = Duration::from_secs(600);
const CATALOG: Duration = Duration::from_millis(200);
const FINGERPRINTS: Duration = Duration::from_secs(1);
/// Following a rename locks the stream table: not in every turn while somebody is in the way.
const RENAMES: Duration = Duration::from_secs(1);
const RIGHTS: Duration = Duration::from_secs(2);
/// An idle pipeline stores how far it has come this often, so that staleness is true from SQL alone.
const PULSE: Duration = Duration::from_secs(10);
const TRIGGERS: Duration = Duration::from_secs(5);
const ANSWERS: Duration = Duration::from_secs(60);

/// When what was done last, and what somebody waits for.
#[derive(Default)]
pub(super) struct Watched {
    catalog: Option<Instant>,
    fingerprints: Option<Instant>,
    rights: Option<Instant>,
    renames: Option<Instant>,
    answers: Option<Instant>,
    figures_stored: Option<Instant>,
    pub figures: state::Figures,
    slot: Option<Instant>,
    pub triggers: Option<Instant>,
    pub last_write: Option<Instant>,
    requests: Option<i64>,
    /// Forced flushes that are still due for the last request.
    flushes: u8,
    /// Somebody waits until the frontier has passed this position.
    pub flush_target: u64,
    pub stats: DataflowStats,
    pub applies: u64,
    /// Who waits for a recomputation: request and role.
    pub full_requests: std::collections::BTreeMap<ViewId, Vec<(i64, Option<String>)>>,
    pub repairs: super::repair::Repairs,
    pub moves: super::moved::Moves,
    /// Failures that could not be stored because somebody's transaction held the catalog row.
    pub unsaved: BTreeMap<ViewId, (&'static str, Error, Option<Complete>)>,
    /// The publication holds exactly what is held; false after a start (its last tables may be left over) and whenever a
    /// source was let go.
    pub shrunk: bool,
    /// Stream tables that have left the dataflow to be prepared anew and whose status does not say so yet, with the
    /// frontier up to which they are complete.
    pub behind: BTreeMap<ViewId, Complete>,
    /// Some of them have left since the catalog was told.
    pub untold: bool,
    /// The moment up to which everything is complete that the frontier covers.
    pub data_time: Option<DateTime<Utc>>,
    /// Those of them that the catalog knows as such.
    pub known_behind: Option<Vec<ViewId>>,
    /// What the plans at hand were made from.
    pub validity: Validity,
    /// Memberships of the publication under which the sources were loaded.
    pub members: BTreeMap<u32, u32>,
    /// The catalog has been read.
    pub known: bool,
    /// What a start leaves to be done once everything is right again was done.
    pub completed: bool,
}

impl Watched {
    /// What the decision about a stream table was made from.
    pub fn decided(&mut self, id: ViewId, validity: Option<String>) {
        match validity {
            Some(validity) => drop(self.validity.insert(id, validity)),
            None => drop(self.validity.remove(&id)),
        }
    }
}

fn due(last: &mut Option<Instant>, every: Duration) -> bool {
    let now = Instant::now();
    let due = last.is_none_or(|at| now.duration_since(at) >= every);
    if due {
        *last = Some(now);
    }
    due
}

impl Engine {
    /// One turn of the clock.
    pub async fn tick(&mut self) -> Result<()> {
        if !self.wants_input() {
            // It is not asked: its silence says nothing, and the moment it is asked again is not the end of one.
            self.stream.is_not_read();
        } else if let Some(silence) = self.stream.silence() {
            let name = self.options.target.application_name(Purpose::Replication);
            let patience = Duration::from_secs(self.silence.load(Ordering::Relaxed)).max(SILENCE);
            let too_long = silence > patience;
            if too_long {
                // If it was decoding all the time, it gets more of it: it begins anew.
                self.silence.store(patience.as_secs() * 2, Ordering::Relaxed);
            }
            if too_long || !slot::is_being_read(&self.control, self.lease.names.slot(), &name).await? {
                let silent = Error::new(ErrorKind::Connection, "the server has fallen silent");
                self.reconnect(silent).await?;
            }
        }
        if self.preparing.as_ref().is_some_and(|task| task.is_finished()) && self.events.is_empty() {
            return Err(Error::internal("a preparation ended without its outcome"));
        }
        self.look_for_requests().await?;
        self.hand_over().await?;
        self.tell_behind().await?;
        if due(&mut self.watched.catalog, CATALOG) {
            if detach::absence(&self.control, &self.options.pipeline).await?.is_some() {
                self.stop.cancel();
                return Ok(());
            }
            self.look_at_catalog().await?;
            self.save_failures().await?;
            self.release_suspended().await?;
            self.look_at_moves().await?;
            self.begin_repairs()?;
            self.recompute_due();
            self.close_gates()?;
            self.prepare_due()?;
        }
        if due(&mut self.watched.fingerprints, FINGERPRINTS) && self.preparing.is_none() {
            self.compare_fingerprints().await?;
        }
        if due(&mut self.watched.rights, RIGHTS) {
            self.repeat_rights().await?;
            if self.preparing.is_none() {
                self.compare_validity().await?;
            }
        }
        if self.announced && !std::mem::replace(&mut self.watched.completed, true) {
            self.complete().await?;
        }
        if due(&mut self.watched.triggers, TRIGGERS) {
            self.take_off_triggers().await?;
        }
        if due(&mut self.watched.slot, guard::LOOK) {
            self.guard_slot().await?;
        }
        if self.announced && due(&mut self.watched.figures_stored, state::FIGURES) {
            self.store_figures().await?;
        }
        if due(&mut self.watched.answers, ANSWERS) {
            store::forget_answers(&self.control).await?;
        }
        if let Some(flight) = self.flights.front_mut()
            && flight.started.elapsed() >= flight.patience
        {
            flight.patience *= 2;
            let seconds = flight.started.elapsed().as_secs();
            tracing::warn!(seconds, installs = flight.installs.len(), "a step is still being computed");
        }
        let waited_for =
            self.frontier < self.watched.flush_target && self.received >= self.watched.flush_target;
        let pulse =
            self.watched.last_write.is_none_or(|at| at.elapsed() >= PULSE) && self.received > self.frontier;
        if waited_for || pulse {
            self.write_frontier();
        }
        self.make_due()
    }

    /// A caller raises the sequence, which is visible at once; its message follows, and neither is flushed on an idle
    /// server. So after a raise two commits of our own force the WAL out, the second for what came after the first.
    async fn look_for_requests(&mut self) -> Result<()> {
        // `is_called`: the first number leaves `last_value` as it was.
        const SQL: &str = "select last_value + is_called::int, pg_catalog.pg_current_wal_insert_lsn()
            from pgtrickle.request_seq";
        let row = self.control.query_one(SQL, &[]).await.map_err(error)?;
        let (last, position): (i64, PgLsn) = (row.get(0), row.get(1));
        if self.watched.requests.replace(last) != Some(last) {
            self.watched.flushes = 2;
            self.look_who_asks(position.into()).await?;
            if let Some(polling) = self.stream.polling() {
                polling.hurry();
            }
        }
        if self.watched.flushes > 0 {
            self.watched.flushes -= 1;
            self.watched.flush_target = self.watched.flush_target.max(position.into());
            load::force_flush(&self.control).await?;
        }
        Ok(())
    }

    /// A request has come through the stream.
    pub fn requested(&mut self, content: &[u8]) {
        let Some(request) = requests::parse(content) else { return };
        if request.pipeline.as_ref().is_some_and(|pipeline| *pipeline != self.options.pipeline) {
            return;
        }
        match request.kind.as_str() {
            "analyze" => self.analyze(request),
            "refresh" => self.refresh_requested(&request),
            "repair" => self.repair_requested(&request),
            _ => {}
        }
    }

    fn analyze(&self, request: Request) {
        let (target, capturing) = (self.options.target.clone(), self.capturing());
        let incremental = self.views.incremental();
        let sources = store::as_sources(&self.views.all_rows(), |r| incremental.contains(&r.view));
        super::spawn(async move {
            let answer = async {
                let mut client = target.connect(Purpose::Analyze).await?;
                let others = store::foreign_stream_tables(&client, &capturing.pipeline).await?;
                let sources = others.into_iter().chain(sources).collect();
                requests::answer_analysis(&mut client, &request, &sources, &capturing).await
            };
            if let Err(e) = answer.await {
                // The caller decides by its timeout.
                tracing::warn!(error = %e, request = request.request, "a request could not be answered");
            }
        });
    }

    async fn look_at_catalog(&mut self) -> Result<()> {
        let rows = store::stream_tables(&self.control, &self.options.pipeline).await?;
        let here: BTreeSet<ViewId> = rows.iter().map(|r| r.view).collect();
        let gone: Vec<ViewId> = self.views.0.keys().filter(|id| !here.contains(id)).copied().collect();
        for id in gone {
            let name = self.views.0.get(&id).map(|v| v.row.qualified()).unwrap_or_default();
            self.remove(id)?;
            self.views.0.remove(&id);
            self.options.counters.forget(&name);
            self.tell_gone(id, &name).await?;
        }
        let follow = rows.iter().any(|row| row.renamed) && due(&mut self.watched.renames, RENAMES);
        for row in rows {
            let (id, renamed) = (row.view, row.renamed);
            self.look_at(row).await?;
            if renamed && follow {
                self.follow_rename(id).await?;
            }
        }
        self.watched.full_requests.retain(|id, _| self.views.0.contains_key(id));
        self.watched.known = true;
        self.announce();
        Ok(())
    }

    async fn look_at(&mut self, mut row: StreamTableRow) -> Result<()> {
        let Some(view) = self.views.0.get_mut(&row.view) else {
            let again = (!row.is_suspended()).then(Instant::now);
            self.views.0.insert(row.view, View { row, state: State::Failed { again } });
            return Ok(());
        };
        let altered = view.row.version != row.version || view.row.schedule != row.schedule;
        if !altered && self.watched.unsaved.contains_key(&row.view) {
            // The catalog does not know of its failure yet: nobody has resumed it.
            (row.status, row.errors) = (view.row.status.clone(), view.row.errors);
        }
        let resumed = view.row.is_suspended() && !row.is_suspended();
        let suspended = !view.row.is_suspended() && row.is_suspended();
        let dropped = view.row.relation.is_some() && row.relation.is_none()
            || view.row.query_view.is_some() && row.query_view.is_none();
        let id = row.view;
        let preparing = matches!(view.state, State::Preparing | State::Waiting(_) | State::Installing { .. });
        if (altered || resumed) && preparing {
            return Ok(()); // Seen again once it has settled: the old row is kept until then.
        }
        if altered {
            self.watched.unsaved.remove(&id);
        }
        // Altered while it is suspended: it stays out.
        let again = (!row.is_suspended()).then(Instant::now);
        let limits = state::limits(&view.row, self.options.memory_limit);
        let was_active = matches!(view.state, State::Active(_));
        view.row = row;
        self.follow_limits(id, limits)?;
        if suspended {
            self.remove(id)?;
            self.set_failed(id, None);
            if was_active {
                const SQL: &str = "update pgtrickle.pgt_stream_tables s set frontier = $2, data_timestamp =
                    (select p.data_timestamp from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline)
                    where pgt_id = (select pgt_id from pgtrickle.pgt_stream_tables where pgt_id = $1
                        and pgtrickle._is_continuous(schedule) for no key update skip locked)";
                self.control.execute(SQL, &[&id, &PgLsn::from(self.frontier)]).await.map_err(error)?;
            }
        } else if altered || resumed || dropped {
            self.leave(id, again)?;
        }
        Ok(())
    }

    /// Stream tables whose owner may not read a source any more stop at what they hold (D12).
    async fn repeat_rights(&mut self) -> Result<()> {
        for (id, lost) in rights::lost(&self.control, &self.options.pipeline, None).await? {
            let out = self.views.0.get(&id).is_none_or(|v| matches!(v.state, State::Failed { again: None }));
            if !out {
                self.take_out(id, lost, self.complete_until()).await?;
            }
        }
        Ok(())
    }

    /// A stream table is up to date and is kept so from now on.
    pub fn activated(&mut self, id: ViewId, drift: Written) {
        let Some(view) = self.views.0.get_mut(&id) else { return };
        let state = std::mem::replace(&mut view.state, State::Preparing);
        view.state = match state {
            State::Installing { installed, since, .. } => {
                self.options.counters.refresh_took("DIFFERENTIAL", since.elapsed());
                State::Active(installed)
            }
            // It was taken out while its answer was written.
            other => {
                view.state = other;
                self.is_behind(id);
                return;
            }
        };
        view.row.errors = 0;
        view.row.status = "ACTIVE".to_owned();
        // Its figures follow soon, together with those of others that come now.
        self.watched.figures_stored = Instant::now().checked_sub(state::FIGURES - state::SOON);
        self.watched.full_requests.remove(&id);
        self.options.counters.refreshed(&view.row.qualified(), "DIFFERENTIAL", true);
        tracing::info!(
            stream_table = %view.row.qualified(),
            inserted = drift.inserted,
            updated = drift.updated,
            deleted = drift.deleted,
            "reconciled and live"
        );
        self.tell_repaired(id, Ok(drift));
        self.announce();
    }

    /// Says `ready` once, when every stream table has found its place.
    pub(super) fn announce(&mut self) {
        let settled = |s: &State| {
            matches!(s, State::Active(_) | State::Full { .. })
                || matches!(s, State::Failed { again } if again.is_none_or(|at| at > Instant::now()))
        };
        if !self.announced && self.watched.known && self.views.0.values().all(|v| settled(&v.state)) {
            self.announced = true;
            let count = |f: fn(&State) -> bool| self.views.0.values().filter(|v| f(&v.state)).count();
            tracing::info!(
                incremental = count(|s| matches!(s, State::Active(_))),
                full = count(|s| matches!(s, State::Full { .. })),
                failed = count(|s| matches!(s, State::Failed { .. })),
                source_rows = self.watched.stats.source_rows,
                source_mb = self.watched.stats.source_bytes >> 20,
                held_mb = self.watched.stats.bytes >> 20,
                "ready"
            );
        }
    }

    /// Starts a preparation for all stream tables that are due.
    fn prepare_due(&mut self) -> Result<()> {
        if self.preparing.is_some() || (self.prepared_once && !self.settled) {
            return Ok(());
        }
        let now = Instant::now();
        let is_due = |v: &View| matches!(v.state, State::Failed { again: Some(at) } if at <= now);
        let rows: Vec<StreamTableRow> =
            self.views.0.values().filter(|v| is_due(v)).map(|v| v.row.clone()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let job = prepare::Job {
            target: self.options.target.clone(),
            publication: self.lease.names.publication().to_owned(),
            capturing: self.capturing(),
            first: !self.settled,
            delivery_reason: self.delivery_reason.clone(),
            loader: self.dataflow.loader()?,
            all: self.views.all_rows(),
            incremental: self.views.incremental(),
            reason: self.reason.clone(),
            counters: self.options.counters.clone(),
            events: self.events_sender.clone(),
            rows,
        };
        self.watched.moves.prepared = job.rows.iter().map(|row| row.view).collect();
        for row in &job.rows {
            if let Some(view) = self.views.0.get_mut(&row.view) {
                view.state = State::Preparing;
            }
        }
        self.prepared_once = true;
        self.preparations += 1;
        self.preparing = Some(super::spawn(prepare::run(job)));
        Ok(())
    }

    /// Lets go of sources that nothing reads.
    pub fn drop_unused(&mut self) -> Result<()> {
        let now = Instant::now();
        let is_due = |v: &View| matches!(v.state, State::Failed { again: Some(at) } if at <= now);
        if self.preparing.is_some() || self.views.0.values().any(is_due) {
            return Ok(());
        }
        for instance in self.sources.instances() {
            if !self.views.uses(instance) {
                self.drop_instance(instance)?;
            }
        }
        Ok(())
    }

    /// A preparation is over: what it left unloaded is nobody's. The next one would take it for loaded and wait for ever.
    pub(super) fn drop_unloaded(&mut self) -> Result<()> {
        for instance in self.sources.unloaded() {
            if !self.views.uses(instance) {
                self.drop_instance(instance)?;
            }
        }
        Ok(())
    }

    pub(super) fn drop_instance(&mut self, instance: InstanceId) -> Result<()> {
        self.dataflow.send(Command::DropSource { instance })?;
        if let Some(oid) = self.sources.release(instance) {
            self.assembler.unregister(oid);
            self.fingerprints.remove(&oid);
            self.watched.shrunk = false;
        }
        Ok(())
    }
}
