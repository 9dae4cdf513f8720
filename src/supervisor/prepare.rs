//! Making stream tables ready: analysis, publication, boundary, load, stored rows. Runs beside the pipeline's loop on
//! sessions of its own and reports by events.
//!
//! Order (D5): register the layouts, so that no change is decoded without them; add tables to the publication; wait for
//! writers that were there before; lock, snapshot, COPY; read a position and force a flush. A stream table joins once
//! the stream has passed that position.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;

use super::obstacle::{self, Capturing};
use super::sources::Assigned;
use super::{capturing, rights, validity};
use crate::analyzer::facts::StreamTable;
use crate::analyzer::{Analysis, TreeSource, analyze};
use crate::apply::reconcile::{Bag, read_stored};
use crate::apply::{TableForm, history};
use crate::capture::fingerprint::{self, Fingerprints};
use crate::capture::hydrate::{Boundary, insert_position};
use crate::capture::{SourceSpec, publication};
use crate::catalog::store::{self, StreamTableRow};
use crate::dataflow::{Bindings, Command, InstanceId, Loader};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::plan::{Plan, ViewId};
use crate::postgres::sessions::{Purpose, Target, error};
use crate::row::TypeClass;

/// How long a load waits for locks on its sources before it gives up for now.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(120);

/// What the preparation tells the pipeline's loop, in this order.
pub enum Event {
    /// Wants instances; answered when everything received before has been applied.
    Register {
        specs: Vec<SourceSpec>,
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
    },
    Ready(Box<Prepared>),
    /// Not incremental: recomputed by PostgreSQL.
    Full {
        row: StreamTableRow,
    },
    Failed {
        row: StreamTableRow,
        error: Error,
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
    /// What the plan was made from, see [`validity`].
    pub validity: Option<String>,
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
    pub events: mpsc::UnboundedSender<Event>,
}

struct Candidate {
    row: StreamTableRow,
    plan: Plan,
    specs: Vec<SourceSpec>,
    form: TableForm,
    validity: Option<String>,
    /// The view and the stream tables that its plan was made with.
    view: u32,
    sources: HashMap<u32, StreamTable>,
}

/// Runs the job to its end.
pub async fn run(job: Job) {
    let outcome = prepare(&job).await;
    // The loop may have ended meanwhile; then nobody needs the news.
    let _ = job.events.send(Event::Done(outcome));
}

fn gone() -> Error {
    Error::internal("the pipeline ended during a preparation")
}

async fn prepare(job: &Job) -> Result<()> {
    let mut client = job.target.connect(Purpose::Analyze).await?;
    let mut candidates = Vec::new();
    let mut incremental = job.incremental.clone();
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
    for row in &job.rows {
        let mut planned = plan_row(job, &mut client, row, &incremental).await;
        // The application changes a source just now.
        while planned.as_ref().is_err_and(|e| e.kind() == ErrorKind::Contention)
            && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
            planned = plan_row(job, &mut client, row, &incremental).await;
        }
        match planned {
            Ok(Some(candidate)) => {
                incremental.push(row.view);
                candidates.push(candidate);
            }
            Ok(None) => {}
            Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
            Err(error) => job.send(Event::Failed { row: row.clone(), error })?,
        }
    }
    if candidates.is_empty() {
        return Ok(());
    }
    let assigned = register(job, &candidates).await?;
    let failed = load(job, &mut client, &assigned, &candidates).await?;
    for candidate in candidates {
        let lost = candidate.specs.iter().find_map(|s| failed.get(&s.oid));
        match lost {
            Some(e) => {
                let mut error = Error::new(e.kind(), e.context());
                if let Some(state) = e.sqlstate() {
                    error = error.with_sqlstate(state);
                }
                if let Some(hint) = e.hint() {
                    error = error.with_hint(hint);
                }
                job.send(Event::Failed { row: candidate.row, error })?;
            }
            None => ready(job, &client, candidate, &assigned).await?,
        }
    }
    Ok(())
}

/// Decides about one stream table. `None`: it is FULL.
async fn plan_row(
    job: &Job,
    client: &mut Client,
    row: &StreamTableRow,
    incremental: &[ViewId],
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
    if let Some((_, lost)) = rights::lost(client, &job.capturing.pipeline, Some(row.view)).await?.pop() {
        return Err(lost);
    }
    let validity = validity::read(client, &job.capturing.pipeline, Some(row.view)).await?.remove(&row.view);
    let sources = store::as_sources(&job.all, |r| incremental.contains(&r.view));
    let analysis = analyze(client, TreeSource::View(view), &sources).await?;
    store::set_dependencies(client, row.view, &dependencies(&analysis)).await?;
    let plan = match (&analysis.plan, row.requested_mode.as_str()) {
        (_, "FULL") => {
            store::decide(client, row.view, "FULL", Some("asked for at creation")).await?;
            job.send(Event::Full { row: row.clone() })?;
            return Ok(None);
        }
        (Ok(plan), _) => plan.clone(),
        (Err(refusal), "DIFFERENTIAL") => return Err(refusal.clone().into()),
        (Err(refusal), _) => {
            store::decide(client, row.view, "FULL", Some(&refusal.reason)).await?;
            job.send(Event::Full { row: row.clone() })?;
            return Ok(None);
        }
    };
    if let Some(reason) = store::missing_evaluation(client, row.view, &plan).await? {
        if row.requested_mode == "DIFFERENTIAL" {
            return Err(Error::unsupported(reason).with_hint("create it again while the sidecar runs"));
        }
        store::decide(client, row.view, "FULL", Some(&reason)).await?;
        job.send(Event::Full { row: row.clone() })?;
        return Ok(None);
    }
    let specs = match obstacle::specs(client, &analysis, &plan, &job.capturing).await? {
        Ok(specs) => specs,
        Err(obstacle) if row.requested_mode == "DIFFERENTIAL" => return Err(obstacle),
        Err(obstacle) => {
            store::decide(client, row.view, "FULL", Some(obstacle.context())).await?;
            job.send(Event::Full { row: row.clone() })?;
            return Ok(None);
        }
    };
    store::decide(client, row.view, "DIFFERENTIAL", None).await?;
    let form = form(row, &plan)?;
    Ok(Some(Candidate { row: row.clone(), specs, form, plan, validity, view, sources }))
}

fn dependencies(analysis: &Analysis) -> Vec<(u32, &'static str, Vec<String>)> {
    let kind = |r: &crate::analyzer::facts::Relation| match (r.kind, &r.stream_table) {
        (_, Some(_)) => "STREAM_TABLE",
        ('v', _) => "VIEW",
        ('m', _) => "MATVIEW",
        ('f', _) => "FOREIGN_TABLE",
        _ => "TABLE",
    };
    analysis
        .relations
        .iter()
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

/// Loads the fresh instances. Returns the sources that could not be read, with the reason.
async fn load(
    job: &Job,
    client: &mut Client,
    assigned: &[Assigned],
    candidates: &[Candidate],
) -> Result<HashMap<u32, Error>> {
    let mut failed = HashMap::new();
    let mut fresh: Vec<&Assigned> = assigned.iter().filter(|a| a.fresh).collect();
    let specs: Vec<SourceSpec> = assigned.iter().map(|a| a.spec.clone()).collect();
    let (by_triggers, by_wal): (Vec<SourceSpec>, Vec<SourceSpec>) =
        specs.into_iter().partition(|s| s.triggers().is_some());
    let added = capturing::publish(job, client, &by_wal, &mut failed).await?;
    let shapes = capturing::install(job, client, &by_triggers, &fresh, &mut failed).await?;
    capturing::note(job, client, &by_wal, &by_triggers).await?;
    fresh.retain(|a| !failed.contains_key(&a.spec.oid));
    if fresh.is_empty() {
        return Ok(failed);
    }
    let held = |a: &Assigned| (a.spec.oid, a.spec.columns.iter().map(|c| c.attnum).collect::<Vec<i16>>());
    let before = fingerprint::read(client, &fresh.iter().map(|a| held(a)).collect::<Vec<_>>()).await?;
    // What an open transaction wrote is decoded with the labels of that time (hazard A7), so it must have ended before
    // the snapshot where the text of a value can change without its row.
    let named = fresh.iter().filter(|a| a.spec.has_users_types()).map(|a| a.spec.oid);
    let waited: Vec<u32> = added.iter().copied().chain(named).collect();
    publication::wait_for_writers(client, &waited).await?;
    let mut snapshot = None;
    while !fresh.is_empty() {
        let session = job.target.connect(Purpose::Hydrate).await?;
        let wanted: Vec<SourceSpec> = fresh.iter().map(|a| a.spec.clone()).collect();
        match Boundary::open(session, &wanted, LOCK_PATIENCE).await {
            Ok(boundary) => {
                snapshot = Some(boundary);
                break;
            }
            Err(e) if e.kind() == ErrorKind::Connection || e.kind() == ErrorKind::ServerSetup => {
                return Err(e);
            }
            Err(e) => {
                // One source can't be locked or read: find it, leave it out, go on with the others.
                let culprit = culprit(job, &wanted).await?;
                let position = fresh.iter().position(|a| Some(a.spec.oid) == culprit).unwrap_or(0);
                let out = fresh.remove(position);
                failed.insert(out.spec.oid, e);
            }
        }
    }
    let Some(boundary) = snapshot else { return Ok(failed) };
    confirm(client, candidates).await?;
    let instances: Vec<InstanceId> = fresh.iter().map(|a| a.instance).collect();
    job.send(Event::Snapshot { instances: instances.clone(), snapshot: boundary.snapshot.clone() })?;
    let held: Vec<(u32, Vec<i16>)> = fresh.iter().map(|a| held(a)).collect();
    let before: Fingerprints =
        before.into_iter().filter(|(oid, _)| held.iter().any(|(h, _)| h == oid)).collect();
    let started = std::time::Instant::now();
    let mut total = 0;
    for source in &fresh {
        let instance = source.instance;
        total +=
            boundary.copy(&source.spec, |rows| job.loader.send(Command::Load { instance, rows })).await?;
    }
    let after = fingerprint::read(client, &held).await?;
    if before.iter().any(|(oid, was)| after.get(oid).is_none_or(|now| was.differs(now))) {
        return Err(Error::new(ErrorKind::Identity, "a source changed its shape while it was read"));
    }
    boundary.close().await?;
    let until = insert_position(client).await?;
    force_flush(client, &job.capturing.pipeline).await?;
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(sources = fresh.len(), rows = total, seconds = format!("{seconds:.2}"), "sources loaded");
    job.send(Event::Loaded { instances, until, fingerprints: before, shapes })?;
    Ok(failed)
}

/// The plans still hold under the locks: between analysis and boundary a source may have become a partition, got
/// children, lost its key. Then everything is planned again.
async fn confirm(client: &mut Client, candidates: &[Candidate]) -> Result<()> {
    for candidate in candidates {
        let analysis = analyze(client, TreeSource::View(candidate.view), &candidate.sources).await?;
        if analysis.plan.ok().as_ref() != Some(&candidate.plan) {
            let name = candidate.row.qualified();
            return Err(Error::new(
                ErrorKind::Identity,
                format!("what {name} reads changed while it was prepared"),
            ));
        }
    }
    Ok(())
}

/// The first source that can't be locked alone.
async fn culprit(job: &Job, specs: &[SourceSpec]) -> Result<Option<u32>> {
    for spec in specs {
        let session = job.target.connect(Purpose::Hydrate).await?;
        if Boundary::open(session, std::slice::from_ref(spec), Duration::ZERO).await.is_err() {
            return Ok(Some(spec.oid));
        }
    }
    Ok(None)
}

/// A small synchronous commit: an idle server then sends everything before it, and the boundary counts (hazard A3).
pub async fn force_flush(client: &Client, pipeline: &str) -> Result<()> {
    const SQL: &str =
        "update pgtrickle.pgt_pipelines set heartbeat_at = pg_catalog.clock_timestamp() where pipeline = $1";
    client.batch_execute("set synchronous_commit = on").await.map_err(error)?;
    client.execute(SQL, &[&pipeline]).await.map_err(error)?;
    Ok(())
}

async fn ready(job: &Job, client: &Client, candidate: Candidate, assigned: &[Assigned]) -> Result<()> {
    let Candidate { row, plan, specs, form, validity, .. } = candidate;
    let bindings: Bindings = specs
        .iter()
        .filter_map(|s| assigned.iter().find(|a| a.spec.oid == s.oid))
        .map(|a| (a.spec.oid, a.spec.binding(a.instance)))
        .collect();
    let action = if row.status == "INITIALIZING" && !row.was_live { "INITIAL" } else { "REINITIALIZE" };
    let initiated = if action == "INITIAL" { "INITIAL" } else { "SCHEDULER" };
    let refresh = history::start(client, row.view, action, Some(&job.reason), initiated).await?;
    let columns: Vec<(String, TypeClass)> =
        plan.columns.iter().map(|c| (c.name.clone(), c.ty.class)).collect();
    match read_stored(client, &row.schema, &row.name, &columns).await {
        Ok(stored) => {
            let prepared = Prepared { row, plan, bindings, form, stored, refresh, validity };
            job.send(Event::Ready(Box::new(prepared)))
        }
        Err(e) if e.kind() == ErrorKind::Connection => Err(e),
        Err(error) => {
            if let Some(refresh) = refresh {
                let failure = Some((error.sqlstate().unwrap_or("XX000"), error.context()));
                history::finish(client, refresh, Default::default(), failure).await?;
            }
            job.send(Event::Failed { row, error })
        }
    }
}

impl Job {
    fn send(&self, event: Event) -> Result<()> {
        self.events.send(event).map_err(|_| gone())
    }
}
