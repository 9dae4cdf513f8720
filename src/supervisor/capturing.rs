//! Making sources capturable before they are read: the publication, or the triggers.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Client;

use super::prepare::{Job, LOCK_PATIENCE};
use super::sources::Assigned;
use crate::capture::trigger::{self, Mode};
use crate::capture::{SourceSpec, poll, publication};
use crate::error::{Error, ErrorKind, Result};

/// Adds the sources to the publication. One that the server refuses must not keep out the others.
pub(super) async fn publish(
    job: &Job,
    client: &Client,
    specs: &[SourceSpec],
    failed: &mut HashMap<u32, Error>,
) -> Result<Vec<u32>> {
    match publication::add_tables(client, &job.publication, specs).await {
        Err(e) if e.kind() != ErrorKind::Connection => {}
        outcome => return outcome,
    }
    let mut added = Vec::new();
    for spec in specs {
        match publication::add_tables(client, &job.publication, std::slice::from_ref(spec)).await {
            Ok(new) => added.extend(new),
            Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
            Err(e) => drop(failed.insert(spec.oid, e)),
        }
    }
    Ok(added)
}

/// Installs the triggers of sources that are about to be read; returns with what columns they record.
///
/// The lock that it takes lets all earlier writers end, so a snapshot taken later shows all that was not recorded.
pub(super) async fn install(
    job: &Job,
    client: &Client,
    specs: &[SourceSpec],
    fresh: &[&Assigned],
    failed: &mut HashMap<u32, Error>,
) -> Result<BTreeMap<u32, i64>> {
    let mode = if job.capturing.polled { Mode::Buffer } else { Mode::Message };
    let mut shapes = BTreeMap::new();
    for spec in specs.iter().filter(|s| fresh.iter().any(|f| f.spec.oid == s.oid)) {
        let Some(triggered) = spec.triggers() else { continue };
        match trigger::install(client, triggered.source_id, mode, LOCK_PATIENCE).await {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
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
    let rows = poll::clear(client, source_id).await?;
    if rows > 0 {
        tracing::info!(source_id, rows, "captured rows are covered by the reading of their source");
    }
    Ok(())
}

/// Says in the catalog how each source is captured.
pub(super) async fn note(
    job: &Job,
    client: &Client,
    by_wal: &[SourceSpec],
    by_triggers: &[SourceSpec],
) -> Result<()> {
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
