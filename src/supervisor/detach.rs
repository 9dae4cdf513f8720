//! Leaving a database on request (`pgtrickle.detach`), and coming back after `pgtrickle.attach`.
//!
//! Invariant: while a pipeline is detached it has no slot and no lasting session here; the mark is looked at with a
//! session that ends at once.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::postgres::sessions::{Purpose, Target, error};
use crate::replication::{PipelineNames, slot};

/// How often the mark is looked at while detached.
const LOOK: Duration = Duration::from_secs(2);
/// How long our own walsender may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the pipeline is to be left alone.
pub(super) async fn is_detached(client: &Client, pipeline: &str) -> Result<bool> {
    const SQL: &str = "select detached_at is not null from pgtrickle.pgt_pipelines where pipeline = $1";
    let row = client.query_opt(SQL, &[&pipeline]).await.map_err(error)?;
    Ok(row.is_some_and(|r| r.get(0)))
}

/// Drops the slot once nobody uses it. All other sessions of the pipeline have ended.
pub(super) async fn leave(target: &Target, names: &PipelineNames) -> Result<()> {
    let client = target.connect(Purpose::Tool).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while slot::holder(&client, names.slot()).await?.is_some() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    slot::drop_ours(&client, names.slot()).await?;
    tracing::info!(
        slot = names.slot(),
        "detached: slot and sessions are gone; pgtrickle.attach() brings them back"
    );
    Ok(())
}

/// Waits until the pipeline is attached again; false at the shutdown. A database that is away is waited for: detached is
/// what it is while it is renamed, copied or restored.
pub(super) async fn wait_attached(target: &Target, pipeline: &str, shutdown: &CancellationToken) -> bool {
    let mut told = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return false,
        }
        let look = async {
            let client = target.connect(Purpose::Tool).await?;
            is_detached(&client, pipeline).await
        };
        match look.await {
            Ok(true) => told = None,
            Ok(false) => return true,
            Err(e) => {
                let text = e.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::info!(error = %text, "detached, and the database cannot be looked at; waiting for it");
                    told = Some(text);
                }
            }
        }
    }
}
