//! Loading the sources of a preparation: into the publication or under triggers, then the boundary, then COPY.
//!
//! Invariant: a source that is blocked or refused is left out with its reason; it never holds up the others for longer
//! than the preparation's patience.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_postgres::Client;

use super::obstacle::triggered_because;
use super::prepare::{Candidate, Event, Job, gone};
use super::sources::Assigned;
use crate::analyzer::{TreeSource, analyze};
use crate::capture::fingerprint::{self, Fingerprints};
use crate::capture::hydrate::{self, Boundary, Pace, Refusal, insert_position};
use crate::capture::trigger::{self, Mode};
use crate::capture::{SourceSpec, publication, writers};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::{Purpose, error};
use crate::row::Row;

/// Loads the fresh instances. Returns the sources that could not be read, with the reason; `unconfirmed` gets the stream
/// tables whose plans could not be confirmed. In `assigned` an instance is replaced by another when its load was given up
/// for the sake of one that could not be read.
pub(super) async fn load(
    job: &Job,
    client: &mut Client,
    assigned: &mut [Assigned],
    candidates: &[Candidate],
    unconfirmed: &mut BTreeMap<ViewId, Error>,
) -> Result<HashMap<u32, Error>> {
    let mut failed = HashMap::new();
    let mut fresh: Vec<Assigned> = assigned.iter().filter(|a| a.fresh).cloned().collect();
    let specs: Vec<SourceSpec> = assigned.iter().map(|a| a.spec.clone()).collect();
    let (by_triggers, by_wal): (Vec<SourceSpec>, Vec<SourceSpec>) =
        specs.into_iter().partition(|s| s.triggers().is_some());
    publish(job, client, &by_wal, &mut failed).await?;
    let members = publication::members(client, &job.publication).await?;
    let shapes = install(job, client, &by_triggers, &fresh, &mut failed).await?;
    note(job, client, &by_wal, &by_triggers).await?;
    fresh.retain(|a| !failed.contains_key(&a.spec.oid));
    if fresh.is_empty() {
        return Ok(failed);
    }
    let before = fingerprint::read(client, &fresh.iter().map(held).collect::<Vec<_>>()).await?;
    // What an open transaction wrote is decoded with the labels of that time (hazard A7), so it must have ended before
    // the snapshot where the text of a value can change without its row.
    let named = fresh.iter().filter(|a| a.spec.has_users_types()).map(|a| a.spec.oid);
    let named: Vec<u32> = named.collect();
    let loaded: Vec<u32> = fresh.iter().map(|a| a.spec.oid).collect();
    failed.extend(writers::wait(client, &job.publication, &loaded, &named, job.patience()).await?);
    fresh.retain(|a| !failed.contains_key(&a.spec.oid));
    let hold = hydrate::snapshot_hold(client, &job.capturing.pipeline).await?;
    let known = Known { before, shapes, members };
    // One boundary after the other, none held for longer than it takes to read the source at hand: each source counts from
    // its own snapshot, and all of them from the position that the last one is to pass.
    while let Some(boundary) = open(job, client, &mut fresh, &mut failed).await? {
        confirm(client, candidates, unconfirmed).await?;
        match copy(job, client, &boundary, &fresh, hold).await {
            Ok(read) => {
                let rest = fresh.split_off(read.sources);
                end(job, client, boundary, std::mem::replace(&mut fresh, rest), &known, &mut failed).await?;
                tracing::info!(
                    sources = read.sources,
                    rows = read.rows,
                    seconds = format!("{:.2}", read.started.elapsed().as_secs_f64()),
                    left = fresh.len(),
                    "sources loaded"
                );
            }
            Err(Refusal { source: Some(oid), error }) => {
                let name = fresh.iter().find(|a| a.spec.oid == oid).map(|a| a.spec.qualified());
                tracing::warn!(source = name, error = %error.for_logs(), "a source can't be read; the others go on");
                fresh.retain(|a| a.spec.oid != oid);
                failed.insert(oid, error);
                // Its transaction, and with it the snapshot of the others, is lost: they are read again.
                drop(boundary);
                fresh = renew(job, assigned, fresh).await?;
            }
            Err(Refusal { error, .. }) => return Err(error),
        }
    }
    Ok(failed)
}

/// What was read of the sources before their boundary.
struct Known {
    before: Fingerprints,
    /// With what columns triggers record, by relation.
    shapes: BTreeMap<u32, i64>,
    /// Memberships of the publication, by relation.
    members: BTreeMap<u32, u32>,
}

/// What was read behind one boundary: the first `sources` of those that were wanted.
struct Read {
    sources: usize,
    rows: u64,
    started: Instant,
}

/// Ends a boundary behind which `fresh` was read.
async fn end(
    job: &Job,
    client: &Client,
    boundary: Boundary,
    mut fresh: Vec<Assigned>,
    known: &Known,
    failed: &mut HashMap<u32, Error>,
) -> Result<()> {
    let after = fingerprint::read(client, &fresh.iter().map(held).collect::<Vec<_>>()).await?;
    // No lock keeps the label of an enum from being renamed.
    fresh.retain(|a| {
        let oid = a.spec.oid;
        let same =
            known.before.get(&oid).is_some_and(|was| after.get(&oid).is_some_and(|now| !was.differs(now)));
        if !same {
            failed.insert(oid, changed(&a.spec.qualified()));
        }
        same
    });
    let of = |oid: &u32| fresh.iter().any(|a| a.spec.oid == *oid);
    let fingerprints = known.before.iter().filter(|(oid, _)| of(oid)).map(|(o, f)| (*o, f.clone())).collect();
    let shapes = known.shapes.iter().filter(|(oid, _)| of(oid)).map(|(o, s)| (*o, *s)).collect();
    boundary.close().await?;
    // A record after the snapshot: no look at change buffers that began before it can have reported this position.
    force_flush(client).await?;
    let until = insert_position(client).await?;
    force_flush(client).await?;
    let instances = fresh.iter().map(|a| a.instance).collect();
    job.send(Event::Loaded { instances, until, fingerprints, shapes, members: known.members.clone() })
}

/// Relation and columns.
fn held(assigned: &Assigned) -> (u32, Vec<i16>) {
    (assigned.spec.oid, assigned.spec.columns.iter().map(|c| c.attnum).collect())
}

/// A boundary over all that can be locked; the others go from `fresh` to `failed`. `None`: nothing is left.
async fn open(
    job: &Job,
    client: &Client,
    fresh: &mut Vec<Assigned>,
    failed: &mut HashMap<u32, Error>,
) -> Result<Option<Boundary>> {
    let deadline = job.deadline();
    while !fresh.is_empty() {
        let session = job.target.connect_when_free(Purpose::Hydrate).await?;
        let wanted: Vec<SourceSpec> = fresh.iter().map(|a| a.spec.clone()).collect();
        match Boundary::open(session, &wanted, deadline).await {
            Ok(boundary) => return Ok(Some(boundary)),
            // One source can't be locked or read: leave it out, go on with the others.
            Err(Refusal { source: Some(oid), error }) => {
                let locked = error.kind() == ErrorKind::Contention;
                let error = if locked { writers::locked(client, oid, READERS).await? } else { error };
                fresh.retain(|a| a.spec.oid != oid);
                failed.insert(oid, error);
            }
            Err(Refusal { error, .. }) => return Err(error),
        }
    }
    Ok(None)
}

/// Reads sources of the boundary, at least one, until it has been held for long.
async fn copy(
    job: &Job,
    client: &Client,
    boundary: &Boundary,
    fresh: &[Assigned],
    hold: Duration,
) -> Result<Read, Refusal> {
    let mut pace = Pace::new(hydrate::rate(client, &job.capturing.pipeline).await?);
    let mut read = Read { sources: 0, rows: 0, started: Instant::now() };
    for source in fresh {
        if read.sources > 0 && read.started.elapsed() >= hold {
            break;
        }
        let instance = source.instance;
        let snapshot = boundary.snapshot.clone();
        job.send(Event::Snapshot { instances: vec![instance], snapshot })?;
        let sink = |rows: Vec<Row>| {
            job.counters.loaded(rows.len());
            job.loader.load(instance, rows)
        };
        read.rows += boundary.copy(&source.spec, &mut pace, sink).await?;
        read.sources += 1;
    }
    Ok(read)
}

/// New instances in the place of those whose load was given up, also in `assigned`.
async fn renew(job: &Job, assigned: &mut [Assigned], given_up: Vec<Assigned>) -> Result<Vec<Assigned>> {
    if given_up.is_empty() {
        return Ok(given_up);
    }
    let (reply, answer) = oneshot::channel();
    job.send(Event::Renew { instances: given_up.iter().map(|a| a.instance).collect(), reply })?;
    let renewed = answer.await.map_err(|_| gone())?;
    for (old, new) in given_up.iter().zip(&renewed) {
        for place in assigned.iter_mut().filter(|a| a.instance == old.instance) {
            *place = new.clone();
        }
    }
    Ok(renewed)
}

/// Lock modes that keep a source from being read, from getting triggers, and from joining a publication.
pub(super) const READERS: &[&str] = &["AccessExclusiveLock"];
const WRITERS: &[&str] = &[
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
];
const JOINING: &[&str] = &[
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
];

/// Adds the sources to the publication. One that is locked or that the server refuses must not keep out the others.
async fn publish(
    job: &Job,
    client: &Client,
    specs: &[SourceSpec],
    failed: &mut HashMap<u32, Error>,
) -> Result<()> {
    if job.capturing.polled && specs.is_empty() {
        return Ok(());
    }
    match publication::add_tables(client, &job.publication, specs, Duration::ZERO).await {
        Err(e) if e.kind() != ErrorKind::Connection => {}
        outcome => return outcome,
    }
    let deadline = job.deadline();
    for spec in specs {
        let left = deadline.saturating_duration_since(Instant::now());
        match publication::add_tables(client, &job.publication, std::slice::from_ref(spec), left).await {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
            Err(e) if e.kind() == ErrorKind::Contention => {
                failed.insert(spec.oid, writers::locked(client, spec.oid, JOINING).await?);
            }
            Err(e) => drop(failed.insert(spec.oid, e)),
        }
    }
    Ok(())
}

/// Installs the triggers of sources that are about to be read; returns with what columns they record.
///
/// The lock that it takes lets all earlier writers end, so a snapshot taken later shows all that was not recorded.
async fn install(
    job: &Job,
    client: &Client,
    specs: &[SourceSpec],
    fresh: &[Assigned],
    failed: &mut HashMap<u32, Error>,
) -> Result<BTreeMap<u32, i64>> {
    let mode = if job.capturing.polled { Mode::Buffer } else { Mode::Message };
    let mut shapes = BTreeMap::new();
    let deadline = job.deadline();
    for spec in specs.iter().filter(|s| fresh.iter().any(|f| f.spec.oid == s.oid)) {
        let Some(triggered) = spec.triggers() else { continue };
        let left = deadline.saturating_duration_since(Instant::now());
        match trigger::install(client, triggered.source_id, mode, left).await {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
            Err(e) if e.kind() == ErrorKind::Contention => {
                failed.insert(spec.oid, writers::locked(client, spec.oid, WRITERS).await?);
                continue;
            }
            Err(e) => {
                failed.insert(spec.oid, e);
                continue;
            }
        }
        if job.first && job.capturing.polled {
            trigger_rows_are_read(client, triggered.source_id).await?;
        }
        shapes.insert(spec.oid, trigger::shape(client, spec.oid).await?);
    }
    Ok(shapes)
}

/// What is in the buffer now will be in the boundary's snapshot.
async fn trigger_rows_are_read(client: &Client, source_id: i64) -> Result<()> {
    let rows = crate::capture::poll::clear(client, source_id).await?;
    if rows > 0 {
        tracing::info!(source_id, rows, "captured rows are covered by the reading of their source");
    }
    Ok(())
}

/// Says in the catalog how each source is captured.
async fn note(job: &Job, client: &Client, by_wal: &[SourceSpec], by_triggers: &[SourceSpec]) -> Result<()> {
    let oids: Vec<u32> = by_wal.iter().map(|s| s.oid).collect();
    for id in trigger::source_ids(client, &job.capturing.pipeline, &oids).await? {
        trigger::note_capture(client, id, "wal", None).await?;
    }
    for spec in by_triggers {
        let Some(triggered) = spec.triggers() else { continue };
        let reason = match &job.delivery_reason {
            Some(reason) => reason.clone(),
            None => triggered_because(client, &job.capturing.pipeline, spec.oid).await?,
        };
        trigger::note_capture(client, triggered.source_id, "trigger", Some(&reason)).await?;
    }
    Ok(())
}

/// Which plans still hold under the locks: between analysis and boundary a source may have become a partition, got
/// children, lost its key. Then its readers are planned again. A stream table whose view somebody holds locked is left out.
async fn confirm(
    client: &mut Client,
    candidates: &[Candidate],
    unconfirmed: &mut BTreeMap<ViewId, Error>,
) -> Result<()> {
    for candidate in candidates {
        let analysis = match analyze(client, TreeSource::View(candidate.view), &candidate.sources).await {
            Err(e) if e.kind() == ErrorKind::Contention => {
                unconfirmed.insert(candidate.row.view, e);
                continue;
            }
            analysis => analysis?,
        };
        if analysis.plan.ok().as_ref() != Some(&candidate.plan) {
            unconfirmed
                .insert(candidate.row.view, changed(&format!("what {} reads", candidate.row.qualified())));
        }
    }
    Ok(())
}

/// Not an error of the stream table: the same preparation, made again, is expected to succeed.
fn changed(what: &str) -> Error {
    Error::new(ErrorKind::Identity, format!("{what} changed while it was prepared"))
}

/// A small commit that is flushed here (it never waits for a standby): an idle server then sends everything before it, and the boundary counts (hazard A3).
pub async fn force_flush(client: &Client) -> Result<()> {
    // No row is written: an apply that waits for a lock holds that of the pipeline, and whoever waited for it would give
    // up everything in memory. The prefix is not ours, so every reader of the stream passes the message over.
    const SQL: &str = "begin; set local synchronous_commit = local; select pg_catalog.pg_logical_emit_message(true, 'flush', ''); commit";
    client.batch_execute(SQL).await.map_err(error)
}
