//! Making stream tables ready: analysis, publication, boundary, load, stored rows. Runs beside the pipeline's loop on
//! sessions of its own and reports by events.
//!
//! Order (D5): register the layouts, so that no change is decoded without them; add tables to the publication; wait for
//! writers that were there before; lock, snapshot, COPY; read a position and force a flush. A stream table joins once
//! the stream has passed that position.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;

use super::load::{READERS, load};
use super::obstacle::{self, Capturing};
use super::schedule::Cadence;
use super::sources::Assigned;
use super::{rights, validity};
use crate::analyzer::facts::StreamTable;
use crate::analyzer::{Analysis, TreeSource, analyze};
use crate::apply::reconcile::{Bag, read_stored};
use crate::apply::{TableForm, history};
use crate::capture::fingerprint::Fingerprints;
use crate::capture::{SourceSpec, writers};
use crate::catalog::store::{self, StreamTableRow};
use crate::dataflow::{Bindings, InstanceId, Loader};
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Counters;
use crate::pgoutput::Snapshot;
use crate::plan::explain::operators;
use crate::plan::{Plan, ViewId};
use crate::postgres::sessions::{Purpose, Target, error};
use crate::row::TypeClass;

/// How long locks and earlier writers are waited for; then what reads that source is left out for now, and the others
/// go on. Shorter when all that is prepared has failed before: something new may be waiting behind it.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_AGAIN: Duration = Duration::from_secs(1);
/// Before what changed under a preparation is prepared again.
pub const PAUSE: Duration = Duration::from_millis(200);

/// What the preparation tells the pipeline's loop, in this order.
pub enum Event {
    /// Wants instances; answered when everything received before has been applied.
    Register {
        specs: Vec<SourceSpec>,
        reply: oneshot::Sender<Vec<Assigned>>,
    },
    /// Wants others in the place of instances whose load was given up; answered at once.
    Renew {
        instances: Vec<InstanceId>,
        reply: oneshot::Sender<Vec<Assigned>>,
    },
    Snapshot {
        instances: Vec<InstanceId>,
        snapshot: Snapshot,
    },
    /// All `Load` commands were sent.
    Loaded {
        instances: Vec<InstanceId>,
        until: u64,
        fingerprints: Fingerprints,
        /// With what columns triggers record, by relation.
        shapes: BTreeMap<u32, i64>,
        /// Memberships of the publication, by relation, from before the snapshot.
        members: BTreeMap<u32, u32>,
    },
    Ready(Box<Prepared>),
    /// Not incremental: recomputed by PostgreSQL.
    Full {
        row: StreamTableRow,
        /// What the decision was made from.
        validity: Option<String>,
    },
    Failed {
        row: StreamTableRow,
        error: Error,
    },
    /// What it reads changed while it was prepared: the same again, from the analysis on.
    Again {
        view: ViewId,
        because: Error,
    },
    /// A FULL stream table was recomputed.
    Recomputed {
        view: ViewId,
        outcome: Result<history::Written>,
    },
    /// The preparation is over; `Err` if the memory state has to be thrown away.
    Done(Result<()>),
}

/// A stream table that can be installed once its sources are live.
pub struct Prepared {
    pub row: StreamTableRow,
    pub plan: Plan,
    pub bindings: Bindings,
    pub form: TableForm,
    pub stored: Bag,
    pub refresh: Option<i64>,
    /// When its reconcile began.
    pub since: Instant,
    /// Lines of the plan.
    pub operators: Vec<String>,
    /// What the plan was made from, see [`validity`].
    pub validity: Option<String>,
    pub cadence: Cadence,
    /// Storage tables of stream tables that the plan reads as they are stored.
    pub gates: Vec<u32>,
}

/// What a preparation works on.
pub struct Job {
    pub target: Target,
    pub publication: String,
    pub capturing: Capturing,
    /// Nothing was loaded in this life before.
    pub first: bool,
    pub delivery_reason: Option<String>,
    pub loader: Loader,
    /// Stream tables to prepare.
    pub rows: Vec<StreamTableRow>,
    /// All of the pipeline, and those that are incremental now.
    pub all: Vec<StreamTableRow>,
    pub incremental: Vec<ViewId>,
    pub reason: String,
    pub counters: Counters,
    pub events: mpsc::UnboundedSender<Event>,
}

pub(super) struct Candidate {
    pub row: StreamTableRow,
    pub plan: Plan,
    specs: Vec<SourceSpec>,
    operators: Vec<String>,
    form: TableForm,
    validity: Option<String>,
    cadence: Cadence,
    gates: Vec<u32>,
    /// Those of its gates that are stream tables of this pipeline.
    own_gates: Vec<u32>,
    /// The view and the stream tables that its plan was made with.
    pub view: u32,
    pub sources: HashMap<u32, StreamTable>,
}

/// Runs the job to its end.
pub async fn run(job: Job) {
    let outcome = prepare(&job).await;
    // The loop may have ended meanwhile; then nobody needs the news.
    let _ = job.events.send(Event::Done(outcome));
}

pub(super) fn gone() -> Error {
    Error::internal("the pipeline ended during a preparation")
}

async fn prepare(job: &Job) -> Result<()> {
    let mut client = job.target.connect_when_free(Purpose::Analyze).await?;
    let mut candidates: Vec<Candidate> = Vec::new();
    // A stream table that reads one that is left out would wait for it, and with it a start.
    let mut left_out: BTreeMap<ViewId, Error> = BTreeMap::new();
    let mut incremental: BTreeSet<ViewId> = job.incremental.iter().copied().collect();
    client.batch_execute("set lock_timeout = '1s'").await.map_err(error)?;
    let deadline = job.deadline();
    let mut rows: Vec<StreamTableRow> = job.rows.clone();
    while !rows.is_empty() {
        for row in std::mem::take(&mut rows) {
            let mut planned = plan_row(job, &mut client, &row, &incremental).await;
            // The application changes a source just now.
            while planned.as_ref().is_err_and(|e| e.kind() == ErrorKind::Contention)
                && Instant::now() < deadline
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
                planned = plan_row(job, &mut client, &row, &incremental).await;
            }
            match planned {
                Ok(Some(candidate)) => {
                    incremental.insert(row.view);
                    candidates.push(candidate);
                }
                Ok(None) => drop(left_out.insert(row.view, now_full(&row))),
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(mut error) => {
                    if error.kind() == ErrorKind::Contention {
                        // The analysis knows only that it waited, not for whom.
                        error = writers::locked_source(&client, row.view, READERS).await?.unwrap_or(error);
                    }
                    left_out.insert(row.view, again(&error));
                    job.send(Event::Failed { row, error })?;
                }
            }
        }
        // What was planned before its upstream was, is planned again: the dataflow goes through it.
        let opened = |c: &Candidate| {
            let through = |r: &StreamTableRow| {
                r.relation.is_some_and(|oid| c.own_gates.contains(&oid))
                    && candidates.iter().any(|u| u.row.view == r.view && u.cadence.flows_into(&c.cadence))
            };
            job.all.iter().any(through)
        };
        let again: Vec<ViewId> = candidates.iter().filter(|c| opened(c)).map(|c| c.row.view).collect();
        candidates.retain(|c| {
            !again.contains(&c.row.view) || {
                rows.push(c.row.clone());
                false
            }
        });
    }
    if candidates.is_empty() {
        return Ok(());
    }
    let candidates = in_order(candidates);
    let mut assigned = register(job, &candidates).await?;
    let mut unconfirmed = BTreeMap::new();
    let failed = load(job, &mut client, &mut assigned, &candidates, &mut unconfirmed).await?;
    for candidate in candidates {
        let view = candidate.row.view;
        let lost = candidate.specs.iter().find_map(|s| failed.get(&s.oid));
        let lost = lost.or_else(|| unconfirmed.get(&view));
        let lost = lost.or_else(|| candidate.plan.upstreams.iter().find_map(|u| left_out.get(u)));
        let lost = match lost {
            Some(e) => {
                job.send(match e.kind() {
                    ErrorKind::Identity => Event::Again { view, because: again(e) },
                    _ => Event::Failed { row: candidate.row, error: again(e) },
                })?;
                Some(again(e))
            }
            None => ready(job, &client, candidate, &assigned).await?,
        };
        left_out.extend(lost.map(|e| (view, e)));
    }
    Ok(())
}

/// What is read through the dataflow comes before what reads it.
fn in_order(mut left: Vec<Candidate>) -> Vec<Candidate> {
    let mut ordered: Vec<Candidate> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |c: &Candidate| c.plan.upstreams.iter().any(|u| left.iter().any(|l| l.row.view == *u));
        // There are no circles; if there were one, any order would do.
        let next = left.iter().position(|c| !waits(c)).unwrap_or(0);
        ordered.push(left.remove(next));
    }
    ordered
}

/// A plan that was made a moment ago went through it.
fn now_full(row: &StreamTableRow) -> Error {
    Error::new(ErrorKind::Contention, format!("{} is recomputed from now on", row.qualified()))
}

/// The same error for another stream table.
fn again(e: &Error) -> Error {
    let mut error = Error::new(e.kind(), e.context());
    if let Some(state) = e.sqlstate() {
        error = error.with_sqlstate(state);
    }
    if let Some(hint) = e.hint() {
        error = error.with_hint(hint);
    }
    error
}

/// Decides about one stream table. `None`: it is FULL.
async fn plan_row(
    job: &Job,
    client: &mut Client,
    row: &StreamTableRow,
    incremental: &BTreeSet<ViewId>,
) -> Result<Option<Candidate>> {
    if row.relation.is_none() {
        return Err(Error::new(ErrorKind::Query, "the storage table was dropped")
            .with_sqlstate("42P01")
            .with_hint("remove the rest with pgtrickle.drop_stream_table, then create it again"));
    }
    let Some(view) = row.query_view else {
        return Err(Error::new(ErrorKind::Query, "the view of the defining query was dropped")
            .with_sqlstate("42P01")
            .with_hint("a source was dropped with CASCADE: drop the stream table or give it a new query"));
    };
    let meant = Some((row.view, view));
    let validity = validity::read(client, &job.capturing.pipeline, meant).await?.remove(&row.view);
    if let Some((_, lost)) = rights::lost(client, &job.capturing.pipeline, meant).await?.pop() {
        return Err(lost);
    }
    let cadence = Cadence::parse(&row.schedule)?;
    let flows = |upstream: &StreamTableRow| {
        incremental.contains(&upstream.view)
            && Cadence::parse(&upstream.schedule).is_ok_and(|c| c.flows_into(&cadence))
    };
    let mut sources = store::as_sources(&job.all, flows);
    // One that was moved away since counts as another pipeline's.
    let foreign = store::foreign_stream_tables(client, &job.capturing.pipeline).await?;
    sources.extend(foreign.clone());
    let analysis = analyze(client, TreeSource::View(view), &sources).await?;
    // The rights were those for the query that was analysed: its owner did not exchange it in between.
    if validity::read(client, &job.capturing.pipeline, meant).await?.remove(&row.view) != validity {
        return Err(Error::new(ErrorKind::Contention, "the query was changed while it was planned"));
    }
    store::set_dependencies(client, row.view, &dependencies(&analysis)).await?;
    let plan = match (&analysis.plan, row.requested_mode.as_str()) {
        (_, "FULL") => {
            store::decide(client, row.view, "FULL", Some("asked for at creation")).await?;
            job.send(Event::Full { row: row.clone(), validity })?;
            return Ok(None);
        }
        (Ok(plan), _) => plan.clone(),
        (Err(refusal), "DIFFERENTIAL") => return Err(refusal.clone().into()),
        (Err(refusal), _) => {
            store::decide(client, row.view, "FULL", Some(&refusal.reason)).await?;
            job.send(Event::Full { row: row.clone(), validity })?;
            return Ok(None);
        }
    };
    if let Some(reason) = store::missing_evaluation(client, row.view, &plan).await? {
        if row.requested_mode == "DIFFERENTIAL" {
            return Err(Error::unsupported(reason).with_hint("create it again while the sidecar runs"));
        }
        store::decide(client, row.view, "FULL", Some(&reason)).await?;
        job.send(Event::Full { row: row.clone(), validity })?;
        return Ok(None);
    }
    let specs = match obstacle::specs(client, &analysis, &plan, &job.capturing).await? {
        Ok(specs) => specs,
        Err(obstacle) if row.requested_mode == "DIFFERENTIAL" => return Err(obstacle),
        Err(obstacle) => {
            store::decide(client, row.view, "FULL", Some(obstacle.context())).await?;
            job.send(Event::Full { row: row.clone(), validity })?;
            return Ok(None);
        }
    };
    store::decide(client, row.view, "DIFFERENTIAL", None).await?;
    let form = form(row, &plan)?;
    let is_gate = |oid: &u32| sources.get(oid).is_some_and(|s| !s.incremental);
    let gates: Vec<u32> = specs.iter().map(|s| s.oid).filter(is_gate).collect();
    let own_gates = gates.iter().filter(|oid| !foreign.contains_key(oid)).copied().collect();
    let operators = operators(&plan, &analysis.names());
    let row = row.clone();
    Ok(Some(Candidate {
        row,
        specs,
        operators,
        form,
        plan,
        validity,
        cadence,
        gates,
        own_gates,
        view,
        sources,
    }))
}

fn dependencies(analysis: &Analysis) -> Vec<(u32, &'static str, Vec<String>)> {
    let kind = |r: &crate::analyzer::facts::Relation| match (r.kind, &r.stream_table) {
        (_, Some(_)) => "STREAM_TABLE",
        ('v', _) => "VIEW",
        ('m', _) => "MATVIEW",
        ('f', _) => "FOREIGN_TABLE",
        ('p', _) => "PARTITIONED_TABLE",
        _ => "TABLE",
    };
    // What is read only because it is below another table counts as far as the dataflow reads it.
    let below: BTreeSet<u32> = analysis.relations.iter().flat_map(|r| r.descendants.clone()).collect();
    let read = |oid: u32| analysis.plan.as_ref().is_ok_and(|p| p.sources.iter().any(|s| s.source == oid));
    analysis
        .relations
        .iter()
        .filter(|r| !below.contains(&r.oid) || read(r.oid))
        .map(|r| {
            let used = analysis.sources.iter().find(|s| s.source == r.oid);
            let name = |a: &i16| r.columns.iter().find(|c| c.attnum == *a).map(|c| c.name.clone());
            let columns = used.map(|s| s.attributes.iter().filter_map(name).collect()).unwrap_or_default();
            (r.oid, kind(r), columns)
        })
        .collect()
}

/// The stored form must still be what the plan proves (hazard A8).
fn form(row: &StreamTableRow, plan: &Plan) -> Result<TableForm> {
    let Some(names) = &row.key_columns else { return Ok(TableForm { view: row.view, key: None }) };
    let position = |name: &String| plan.columns.iter().position(|c| c.name == *name);
    let key: Option<Vec<usize>> = names.iter().map(position).collect();
    let proven = plan
        .key
        .as_ref()
        .zip(key.as_ref())
        .is_some_and(|(proven, key)| proven.iter().all(|p| key.contains(p)));
    match key {
        Some(key) if proven => Ok(TableForm { view: row.view, key: Some(key) }),
        _ => Err(Error::new(
            ErrorKind::Apply,
            "the query no longer has the key that the stream table was created with",
        )
        .with_sqlstate("42P17")
        .with_hint(
            "a unique constraint of a source was dropped: bring it back, or create the stream table again",
        )),
    }
}

async fn register(job: &Job, candidates: &[Candidate]) -> Result<Vec<Assigned>> {
    // One instance per source for all that is prepared together.
    let mut merged: BTreeMap<u32, SourceSpec> = BTreeMap::new();
    for spec in candidates.iter().flat_map(|c| &c.specs) {
        merged.entry(spec.oid).and_modify(|m| m.extend(spec)).or_insert_with(|| spec.clone());
    }
    let (reply, answer) = oneshot::channel();
    job.send(Event::Register { specs: merged.into_values().collect(), reply })?;
    answer.await.map_err(|_| gone())
}

/// Reads what is stored and hands the stream table over; the error if it had to be left out.
async fn ready(
    job: &Job,
    client: &Client,
    candidate: Candidate,
    assigned: &[Assigned],
) -> Result<Option<Error>> {
    let Candidate { row, plan, specs, operators, form, validity, cadence, gates, .. } = candidate;
    let bindings: Bindings = specs
        .iter()
        .filter_map(|s| assigned.iter().find(|a| a.spec.oid == s.oid))
        .map(|a| (a.spec.oid, a.spec.binding(a.instance)))
        .collect();
    let since = Instant::now();
    let action = if row.status == "INITIALIZING" && !row.was_live { "INITIAL" } else { "REINITIALIZE" };
    let initiated = if action == "INITIAL" { "INITIAL" } else { "SCHEDULER" };
    let refresh = match history::start(client, row.view, action, Some(&job.reason), initiated).await {
        Ok(refresh) => refresh,
        Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
        // Somebody's open transaction drops it.
        Err(error) => {
            let told = again(&error);
            job.send(Event::Failed { row, error })?;
            return Ok(Some(told));
        }
    };
    let columns: Vec<(String, TypeClass)> =
        plan.columns.iter().map(|c| (c.name.clone(), c.ty.class)).collect();
    // Dropped meanwhile: no relation has this number.
    let relation = row.relation.unwrap_or_default();
    match read_stored(client, relation, &row.schema, &row.name, &columns).await {
        Ok(stored) => {
            let prepared = Prepared {
                row,
                plan,
                bindings,
                form,
                stored,
                refresh,
                since,
                operators,
                validity,
                cadence,
                gates,
            };
            job.send(Event::Ready(Box::new(prepared)))?;
            Ok(None)
        }
        Err(e) if e.kind() == ErrorKind::Connection => Err(e),
        Err(error) => {
            if let Some(refresh) = refresh {
                let failure = Some((error.sqlstate().unwrap_or("XX000"), error.context()));
                history::finish(client, refresh, Default::default(), failure).await?;
            }
            let told = again(&error);
            job.send(Event::Failed { row, error })?;
            Ok(Some(told))
        }
    }
}

impl Job {
    pub fn patience(&self) -> Duration {
        if self.rows.iter().all(|r| r.errors > 0) { PATIENCE_AGAIN } else { PATIENCE }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    pub fn send(&self, event: Event) -> Result<()> {
        self.events.send(event).map_err(|_| gone())
    }
}
