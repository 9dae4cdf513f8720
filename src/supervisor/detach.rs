//! Leaving a database on request (`pgtrickle.detach`), and coming back after `pgtrickle.attach`; leaving it for a time
//! (`pgtrickle.pause`).
//!
//! Invariant: while a pipeline is detached it has no slot and no lasting session here; the mark is looked at with a
//! session that ends at once.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::capture::publication;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, Target, error};
use crate::replication::{PipelineNames, slot};

/// How often the mark is looked at while detached.
const LOOK: Duration = Duration::from_secs(2);
/// How long our own walsender may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nobody serves the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    Detached,
    /// For a time, with the slot kept (`pgtrickle.pause`).
    Paused,
}

/// Whether the pipeline is to be left alone.
pub(super) async fn absence(client: &Client, pipeline: &str) -> Result<Option<Absence>> {
    // A schema that has not been upgraded yet has no pauses.
    const SQL: &str = "select p.detached_at is not null,
            coalesce((pg_catalog.to_jsonb(p) ->> 'paused_until')::timestamptz > pg_catalog.clock_timestamp(), false)
        from pgtrickle.pgt_pipelines p where p.pipeline = $1";
    let row = client.query_opt(SQL, &[&pipeline]).await.map_err(error)?;
    Ok(row.and_then(|r| match (r.get(0), r.get(1)) {
        (true, _) => Some(Absence::Detached),
        (_, true) => Some(Absence::Paused),
        _ => None,
    }))
}

/// Drops the slot once nobody uses it. All other sessions of the pipeline have ended.
pub(super) async fn leave(target: &Target, names: &PipelineNames) -> Result<()> {
    let client = target.connect(Purpose::Tool).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while slot::holder(&client, names.slot()).await?.is_some() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    slot::drop_ours(&client, names.slot()).await?;
    if let Some(holder) = slot::holder(&client, names.slot()).await? {
        let context = format!("the slot {} is still used by {holder}: it can't be dropped", names.slot());
        return Err(Error::new(ErrorKind::Connection, context)
            .with_hint("end that process; the pipeline stays detached"));
    }
    // Nobody maintains it from here on (hazard B5).
    publication::remove(&client, names.publication()).await?;
    tracing::info!(
        slot = names.slot(),
        "detached: slot and sessions are gone; pgtrickle.attach() brings them back"
    );
    Ok(())
}

/// Waits until the pipeline is attached again, or its pause is over; false at the shutdown. A database that is away is
/// waited for: detached is what it is while it is renamed, copied or restored.
pub(super) async fn wait_back(
    target: &Target,
    pipeline: &str,
    left: Absence,
    shutdown: &CancellationToken,
) -> bool {
    let mut told = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return false,
        }
        match is_back(target, pipeline, left).await {
            Ok(true) => return true,
            Ok(false) => told = None,
            Err(e) => {
                let text = e.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::info!(error = %text, "{left:?}, and the database cannot be looked at; waiting for it");
                    told = Some(text);
                }
            }
        }
    }
}

async fn is_back(target: &Target, pipeline: &str, left: Absence) -> Result<bool> {
    // Ends the pause itself when the slot retains too much WAL.
    const PAUSE: &str = "select pgtrickle._paused($1) is null";
    let client = target.connect(Purpose::Tool).await?;
    Ok(match left {
        Absence::Detached => absence(&client, pipeline).await? != Some(Absence::Detached),
        Absence::Paused => client.query_one(PAUSE, &[&pipeline]).await.map_err(error)?.get(0),
    })
}
