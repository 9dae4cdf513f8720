//! An apply with a savepoint for each stream table, after one in a single flight has failed.
//!
//! Invariant: what can't be written is left out with its reason, and with it what reads it; the catalog says so in the same
//! transaction that stores the frontier. All others are written.

use std::collections::BTreeMap;

use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::batch::Batch;
use super::history::Written;
use super::owned::Function;
use super::writer::{Applied, Note, Progress, Writer, check};
use super::{due, guarded, hold};
use crate::capture::poll;
use crate::catalog::behind::{self, Complete};
use crate::error::{ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// Where the pipeline stands before an apply.
const STORED: &str = "select frontier, data_timestamp from pgtrickle.pgt_pipelines where pipeline = $1";

impl Writer {
    /// As `attempt`, one after another. `None`: it is not time yet; nothing was committed.
    pub(super) async fn with_savepoints(
        &mut self,
        progress: &Progress,
        batches: &[(ViewId, Batch)],
        notes: &[Note],
    ) -> Result<Option<Applied>> {
        self.client.batch_execute(guarded::BEGIN).await.map_err(error)?;
        let before =
            self.client.query_typed_opt(STORED, &[(&self.pipeline, Type::TEXT)]).await.map_err(error)?;
        let fence = match self.fence(progress).await {
            // Somebody's open transaction (a pause, a detach) holds the pipeline's row: waited for, like any lock.
            Err(e) if e.kind() == ErrorKind::Contention => {
                tracing::debug!(error = %e, "the pipeline's row is locked");
                return Ok(None);
            }
            fence => fence?,
        };
        if !self.admitted(fence, progress)? {
            return Ok(None);
        }
        if !self.hierarchies.hold(&self.client).await? {
            return Ok(Some(Applied { moved: true, ..Applied::default() }));
        }
        self.deferred.settle(&self.client).await?;
        poll::consume(&self.client, &progress.consumed).await?;
        let mut applied = Applied::default();
        for (view, batch) in batches {
            if batch.upstreams.iter().any(|upstream| applied.is_left_out(*upstream)) {
                applied.skipped.push(*view);
                continue;
            }
            self.client.batch_execute("savepoint one").await.map_err(error)?;
            let mut outcome = self.call(*view, batch).await;
            if outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::Apply && e.sqlstate() == Some("55000"))
            {
                // Rows are found by a hash of their text, which a renamed enum label changes.
                self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                outcome = match self.mend_row_ids(*view).await {
                    Ok(()) => self.call(*view, batch).await,
                    Err(e) => Err(e),
                };
            }
            if outcome.as_ref().is_err_and(|e| e.sqlstate() == Some("23505")) {
                // A unique index of the user's sees old and new values at once when rows are replaced in place:
                // delete them all first, then insert.
                self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                let split =
                    Batch { deleted: [&batch.deleted[..], &batch.inserted[..]].concat(), ..batch.clone() };
                outcome = self.call_split(*view, batch, &split).await;
            }
            if outcome.is_ok() {
                outcome = self.settled().await.and(outcome);
            }
            match outcome {
                Ok((view, written)) => {
                    applied.written.insert(view, written);
                    self.client.batch_execute("release savepoint one").await.map_err(error)?;
                }
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                    // What was written and taken back still counts.
                    self.deferred.settle(&self.client).await?;
                    applied.failed.push((*view, e.with_statement(Function::Apply.call(*view))));
                }
            }
        }
        let mut noted = Vec::new();
        let joining = notes.iter().map(|Note::Installed { view, .. }| *view);
        let joining: Vec<ViewId> = joining.filter(|view| !applied.is_left_out(*view)).collect();
        // Somebody's open transaction may hold the catalog row: that stream table comes back by another reconcile.
        let busy = hold::catalog_rows(&self.client, &joining).await?;
        applied.failed.extend(busy.into_iter().map(|view| (view, hold::busy())));
        for note in notes {
            let Note::Installed { view, .. } = note;
            if applied.is_left_out(*view) {
                continue;
            }
            self.client.batch_execute("savepoint one").await.map_err(error)?;
            let written = applied.written.get(view).copied().unwrap_or_default();
            match self.installed(note, written).await {
                Ok(()) => noted.push(note.clone()),
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                    applied.failed.push((*view, e));
                }
            }
        }
        // What is left out does not hold what the frontier says from now on.
        let out = applied.skipped.iter().chain(applied.failed.iter().map(|(view, _)| view));
        let frontier = before.as_ref().and_then(|row| row.get::<_, Option<PgLsn>>(0)).map_or(0, u64::from);
        let complete = Complete { frontier, data_time: before.and_then(|row| row.get(1)) };
        let mut out: BTreeMap<ViewId, Complete> = out.map(|view| (*view, complete)).collect();
        if !out.is_empty() {
            let untold = behind::tell(&self.client, &self.pipeline, &out).await?;
            out.retain(|view, _| untold.contains(view));
            behind::add(&self.client, &self.pipeline, &out).await?;
        }
        let due = progress.scheduled.iter().filter(|s| !applied.is_left_out(s.view));
        applied.untold = due::tell(&self.client, progress.frontier, due).await?;
        // History rows refer to the stream tables' own: a transaction that drops one must not stop the others.
        self.client.batch_execute("savepoint one").await.map_err(error)?;
        let written = applied.written.clone();
        match self.finish(progress, &written, &noted, false).await {
            Err(e) if e.kind() == ErrorKind::Contention => {
                tracing::debug!(error = %e, "counts of the last applies are left out of the history");
                self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                self.client.batch_execute(&self.commit).await.map_err(error)?;
            }
            outcome => outcome?,
        }
        Ok(Some(applied))
    }

    /// After owners' code: our own settings again, and nothing of theirs that waits for COMMIT.
    async fn settled(&mut self) -> Result<()> {
        guarded::reset(&self.client).await?;
        self.deferred.check(&self.client).await
    }

    /// As [`Writer::call`] with everything in the way deleted first: nothing is replaced then.
    async fn call_split(&self, view: ViewId, batch: &Batch, split: &Batch) -> Result<(ViewId, Written)> {
        let counts = self.call_rows(view, split).await?;
        check(batch, batch.deleted.len() + batch.replaced, 0, counts)?;
        let updated = batch.replaced as i64;
        let (inserted, deleted) = (counts.inserted - updated, counts.deleted - updated);
        Ok((view, Written { inserted, updated, deleted }))
    }

    /// Hashes all rows of a row-id table again; the other form has nothing to mend.
    async fn mend_row_ids(&self, view: ViewId) -> Result<()> {
        let Some(statement) = self.calls.get(&view) else { return Ok(()) };
        let none: Option<Vec<String>> = None;
        let call = [(&none as &(dyn ToSql + Sync), Type::TEXT_ARRAY), (&none, Type::TEXT_ARRAY)];
        self.client.query_typed_one(statement, &call).await.map_err(error)?;
        guarded::reset(&self.client).await
    }
}
