//! Loading the sources of a preparation: into the publication or under triggers, then the boundary, then COPY.
//!
//! Invariant: a source that is blocked or refused is left out with its reason; it never holds up the others for longer
//! than the preparation's patience.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::prepare::{Candidate, Event, Job};
use super::sources::Assigned;
use crate::analyzer::{TreeSource, analyze};
use crate::capture::fingerprint::{self, Fingerprints};
use crate::capture::hydrate::{Boundary, Refusal, insert_position};
use crate::capture::trigger::{self, Mode};
use crate::capture::{SourceSpec, publication, writers};
use crate::dataflow::{Command, InstanceId};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, error};

/// Loads the fresh instances. Returns the sources that could not be read, with the reason.
pub(super) async fn load(
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
    publish(job, client, &by_wal, &mut failed).await?;
    let members = publication::members(client, &job.publication).await?;
    let shapes = install(job, client, &by_triggers, &fresh, &mut failed).await?;
    note(job, client, &by_wal, &by_triggers).await?;
    fresh.retain(|a| !failed.contains_key(&a.spec.oid));
    if fresh.is_empty() {
        return Ok(failed);
    }
    let held = |a: &Assigned| (a.spec.oid, a.spec.columns.iter().map(|c| c.attnum).collect::<Vec<i16>>());
    let before = fingerprint::read(client, &fresh.iter().map(|a| held(a)).collect::<Vec<_>>()).await?;
    // What an open transaction wrote is decoded with the labels of that time (hazard A7), so it must have ended before
    // the snapshot where the text of a value can change without its row.
    let named = fresh.iter().filter(|a| a.spec.has_users_types()).map(|a| a.spec.oid);
    let named: Vec<u32> = named.collect();
    let loaded: Vec<u32> = fresh.iter().map(|a| a.spec.oid).collect();
    failed.extend(writers::wait(client, &job.publication, &loaded, &named, job.patience()).await?);
    fresh.retain(|a| !failed.contains_key(&a.spec.oid));
    let deadline = job.deadline();
    let mut snapshot = None;
    while !fresh.is_empty() {
        let session = job.target.connect(Purpose::Hydrate).await?;
        let wanted: Vec<SourceSpec> = fresh.iter().map(|a| a.spec.clone()).collect();
        match Boundary::open(session, &wanted, deadline).await {
            Ok(boundary) => {
                snapshot = Some(boundary);
                break;
            }
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
    // A record after the snapshot: no look at change buffers that began before it can have reported this position.
    force_flush(client, &job.capturing.pipeline).await?;
    let until = insert_position(client).await?;
    force_flush(client, &job.capturing.pipeline).await?;
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(sources = fresh.len(), rows = total, seconds = format!("{seconds:.2}"), "sources loaded");
    job.send(Event::Loaded { instances, until, fingerprints: before, shapes, members })?;
    Ok(failed)
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
    fresh: &[&Assigned],
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
    let reason = job
        .delivery_reason
        .as_deref()
        .unwrap_or("it has no usable replica identity, or triggers were asked for");
    for triggered in by_triggers.iter().filter_map(SourceSpec::triggers) {
        trigger::note_capture(client, triggered.source_id, "trigger", Some(reason)).await?;
    }
    Ok(())
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

/// A small synchronous commit: an idle server then sends everything before it, and the boundary counts (hazard A3).
pub async fn force_flush(client: &Client, pipeline: &str) -> Result<()> {
    const SQL: &str =
        "update pgtrickle.pgt_pipelines set heartbeat_at = pg_catalog.clock_timestamp() where pipeline = $1";
    client.batch_execute("set synchronous_commit = on").await.map_err(error)?;
    client.execute(SQL, &[&pipeline]).await.map_err(error)?;
    Ok(())
}
