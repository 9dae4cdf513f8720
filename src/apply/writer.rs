//! The apply transaction.
//!
//! The way in which it usually goes: BEGIN, the pipeline's row (which fences off any other writer and tells the current
//! snapshot), one call per changed stream table, all in one flight; then COMMIT. If anything fails, the same again with a
//! savepoint per stream table: the culprit is left out, the others go on.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

use super::batch::Batch;
use super::history::{RollUp, Written};
use super::owned::{self, Function};
use crate::capture::poll::{self, Consumed};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::plan::ViewId;
use crate::postgres::sessions::{PINNED, error};

/// Rows per call of an apply function; more gain nothing and hold more memory in the server.
const CALL_ROWS: usize = 5_000;

/// Applies give way: shorter than any deadlock_timeout that is in use.
const LOCK_TIMEOUT: &str = "800ms";

/// Where the pipeline stands once an apply has committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything up to here is contained.
    pub frontier: u64,
    /// The moment up to which that is complete.
    pub data_time: Option<chrono::DateTime<chrono::Utc>>,
    /// 64-bit ids of the transactions that are in for the first time: their effects must be visible to every snapshot
    /// before they are applied (hazard A2).
    pub xids: Vec<u64>,
    /// Rows of change buffers that are contained; they are deleted in the same transaction.
    pub consumed: Consumed,
    /// End of the last transaction in it that changed any source; `None`: none did.
    pub changed: Option<u64>,
}

/// The outcome of one apply.
#[derive(Debug, Default)]
pub struct Applied {
    pub written: BTreeMap<ViewId, Written>,
    /// Stream tables that were left out, with the reason.
    pub failed: Vec<(ViewId, Error)>,
}

/// Statements that belong to the same transaction as the deltas (a stream table becomes ACTIVE, a history row ends ...).
#[derive(Debug, Clone)]
pub enum Note {
    /// The reconcile of a stream table that is written with this apply.
    Installed { view: ViewId, refresh: Option<i64> },
}

/// Arguments of one call of an apply function: deleted and inserted rows; `None`: more calls follow.
type Call<'a> = (Option<&'a [String]>, Option<&'a [String]>);

/// The one session that writes stream tables.
pub struct Writer {
    client: Client,
    pipeline: String,
    generation: i64,
    begin: String,
    commit: String,
    fence: Statement,
    calls: HashMap<ViewId, Statement>,
    roll_up: RollUp,
}

impl Writer {
    /// Prepares the session: commits are at least as durable as the server's default.
    pub async fn new(client: Client, pipeline: &str, generation: i64) -> Result<Writer> {
        // At least as durable as the server's default, and never asynchronous: the frontier would go back in a crash
        // while the slot does not.
        const DURABLE: &str = "select case when s in ('off', 'local') then 'on' else s end
            from pg_catalog.current_setting('synchronous_commit') s";
        let durable: String = client.query_one(DURABLE, &[]).await.map_err(error)?.get(0);
        // An owner's function may have left any setting behind: each transaction pins them again, and the commit its
        // own durability.
        let pinned = PINNED.iter().chain(&[("lock_timeout", LOCK_TIMEOUT)]);
        let pinned: Vec<String> =
            pinned.map(|(name, value)| format!("pg_catalog.set_config('{name}', '{value}', true)")).collect();
        let begin = format!("begin; select {}", pinned.join(", "));
        let commit = format!("set local synchronous_commit = '{durable}'; commit");
        const FENCE: &str =
            "update pgtrickle.pgt_pipelines set frontier = $1, data_timestamp = coalesce($2, data_timestamp),
                heartbeat_at = pg_catalog.clock_timestamp(), changed_lsn = coalesce($5, changed_lsn)
            where pipeline = $3 and generation = $4 returning pg_catalog.pg_current_snapshot()::text";
        let fence = client.prepare(FENCE).await.map_err(error)?;
        Ok(Writer {
            client,
            pipeline: pipeline.to_owned(),
            generation,
            begin,
            commit,
            fence,
            calls: HashMap::new(),
            roll_up: RollUp::default(),
        })
    }

    pub fn forget(&mut self, view: ViewId) {
        self.calls.remove(&view);
        self.roll_up.forget(view);
    }

    /// Applies one step. Retries while a transaction of it is not yet visible, and what gave way to a lock.
    pub async fn apply(
        &mut self,
        progress: &Progress,
        batches: &[(ViewId, Batch)],
        notes: &[Note],
        flush_history: bool,
    ) -> Result<Applied> {
        self.prepare(batches).await?;
        let mut pause = Duration::from_millis(1);
        loop {
            let attempt = self.attempt(progress, batches, notes, flush_history).await;
            let outcome = match attempt {
                Err(e) if e.kind() != ErrorKind::Connection && e.kind() != ErrorKind::LeaseHeld => {
                    self.rollback().await?;
                    tracing::debug!(error = %e, "an apply failed; again with a savepoint per stream table");
                    self.with_savepoints(progress, batches, notes).await
                }
                other => other,
            };
            match outcome {
                Ok(Some(applied)) => return Ok(applied),
                Ok(None) => {
                    self.rollback().await?;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(e) => {
                    // The session may be gone, then the error says so already.
                    let _ = self.rollback().await;
                    return Err(e);
                }
            }
        }
    }

    async fn prepare(&mut self, batches: &[(ViewId, Batch)]) -> Result<()> {
        for (view, _) in batches {
            if !self.calls.contains_key(view) {
                let sql = match owned::statement(&self.client, Function::Apply, *view).await {
                    Ok(sql) => sql,
                    Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                    // Found again, as that stream table's error, when it is to be called.
                    Err(_) => continue,
                };
                match self.client.prepare(&sql).await {
                    Ok(statement) => drop(self.calls.insert(*view, statement)),
                    // Found again, with the stream table's name, when the call fails.
                    Err(e) => tracing::debug!(error = %e, view, "an apply function can't be prepared"),
                }
            }
        }
        Ok(())
    }

    async fn rollback(&self) -> Result<()> {
        self.client.batch_execute("rollback").await.map_err(error)
    }

    async fn fence(&self, progress: &Progress) -> Result<Option<Snapshot>> {
        let lsn = PgLsn::from(progress.frontier);
        let row = self
            .client
            .query_opt(
                &self.fence,
                &[
                    &lsn,
                    &progress.data_time,
                    &self.pipeline,
                    &self.generation,
                    &progress.changed.map(PgLsn::from),
                ],
            )
            .await
            .map_err(error)?;
        row.map(|row| row.get::<_, String>(0).parse()).transpose()
    }

    /// Whether the snapshot shows all transactions of the step as finished; an error if the fence did not hold.
    fn admitted(&self, fence: Option<Snapshot>, progress: &Progress) -> Result<bool> {
        let Some(snapshot) = fence else {
            return Err(Error::new(ErrorKind::LeaseHeld, "another sidecar has taken over this pipeline")
                .with_hint("only one sidecar writes; this one ends"));
        };
        Ok(progress.xids.iter().all(|xid| snapshot.is_visible(*xid)))
    }

    /// Everything in one flight. `None`: some transaction is not visible yet; nothing was committed.
    async fn attempt(
        &mut self,
        progress: &Progress,
        batches: &[(ViewId, Batch)],
        notes: &[Note],
        flush_history: bool,
    ) -> Result<Option<Applied>> {
        let begin = async { self.client.batch_execute(&self.begin).await.map_err(error) };
        let fence = self.fence(progress);
        let calls = try_join_all(batches.iter().map(|(view, batch)| self.call(*view, batch)));
        let consume = poll::consume(&self.client, &progress.consumed);
        let ((), fence, (), written) = futures_util::future::try_join4(begin, fence, consume, calls).await?;
        if !self.admitted(fence, progress)? {
            return Ok(None);
        }
        let written: BTreeMap<ViewId, Written> = written.into_iter().collect();
        for Note::Installed { view, refresh } in notes {
            self.installed(*view, *refresh, written.get(view).copied().unwrap_or_default()).await?;
        }
        self.finish(progress, &written, notes, flush_history).await?;
        Ok(Some(Applied { written, failed: Vec::new() }))
    }

    async fn finish(
        &mut self,
        progress: &Progress,
        written: &BTreeMap<ViewId, Written>,
        notes: &[Note],
        flush_history: bool,
    ) -> Result<()> {
        let noted: Vec<ViewId> = notes.iter().map(|Note::Installed { view, .. }| *view).collect();
        for (view, count) in written.iter().filter(|(view, _)| !noted.contains(view)) {
            self.roll_up.note(*view, *count);
        }
        self.roll_up.write(&self.client, progress.frontier, flush_history).await?;
        self.client.batch_execute(&self.commit).await.map_err(error)
    }

    async fn installed(&self, view: ViewId, refresh: Option<i64>, written: Written) -> Result<()> {
        const SQL: &str = "update pgtrickle.pgt_stream_tables set
            status = case when status = 'SUSPENDED' then status else 'ACTIVE' end, is_populated = true,
            last_refresh_at = pg_catalog.clock_timestamp(), consecutive_errors = 0, last_error_sqlstate = null,
            last_error_message = null, last_error_at = null where pgt_id = $1";
        self.client.execute(SQL, &[&view]).await.map_err(error)?;
        match refresh {
            Some(refresh) => super::history::finish(&self.client, refresh, written, None).await,
            None => Ok(()),
        }
    }

    async fn with_savepoints(
        &mut self,
        progress: &Progress,
        batches: &[(ViewId, Batch)],
        notes: &[Note],
    ) -> Result<Option<Applied>> {
        self.client.batch_execute(&self.begin).await.map_err(error)?;
        let fence = self.fence(progress).await?;
        if !self.admitted(fence, progress)? {
            return Ok(None);
        }
        poll::consume(&self.client, &progress.consumed).await?;
        let mut applied = Applied::default();
        for (view, batch) in batches {
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
            match outcome {
                Ok((view, written)) => {
                    applied.written.insert(view, written);
                    self.client.batch_execute("release savepoint one").await.map_err(error)?;
                }
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                    applied.failed.push((*view, e));
                }
            }
        }
        let mut noted = Vec::new();
        for note in notes {
            let Note::Installed { view, refresh } = note;
            if applied.failed.iter().any(|(failed, _)| failed == view) {
                continue;
            }
            // Somebody's open transaction may hold the catalog row: that stream table comes back by another reconcile.
            self.client.batch_execute("savepoint one").await.map_err(error)?;
            let written = applied.written.get(view).copied().unwrap_or_default();
            match self.installed(*view, *refresh, written).await {
                Ok(()) => noted.push(note.clone()),
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    self.client.batch_execute("rollback to savepoint one").await.map_err(error)?;
                    applied.failed.push((*view, e));
                }
            }
        }
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

    /// Calls the apply function in chunks and checks that it found what it should.
    async fn call(&self, view: ViewId, batch: &Batch) -> Result<(ViewId, Written)> {
        let counts = self.call_rows(view, batch).await?;
        check(batch, batch.deleted.len(), batch.replaced, counts)?;
        let updated = batch.replaced as i64;
        Ok((view, Written { inserted: counts.inserted - updated, updated, deleted: counts.deleted }))
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
        self.client.query_one(statement, &[&none, &none]).await.map(drop).map_err(error)
    }

    async fn call_rows(&self, view: ViewId, batch: &Batch) -> Result<Counts> {
        let Some(statement) = self.calls.get(&view) else {
            owned::statement(&self.client, Function::Apply, view).await?;
            // It is there by now; the next attempt prepares it.
            let context = format!("the function pgtrickle_queries.apply_{view} could not be prepared");
            return Err(Error::new(ErrorKind::Apply, context).with_sqlstate("55000"));
        };
        let mut counts = Counts::default();
        let small = batch.deleted.len() + batch.inserted.len() <= CALL_ROWS;
        let calls: Vec<Call<'_>> = match small {
            true => vec![(Some(&batch.deleted), Some(&batch.inserted))],
            // All deletes come before any insert: keys and unique values may move between rows. The last call, without
            // rows, has deferrable constraints checked.
            false => {
                let deletes = batch.deleted.chunks(CALL_ROWS).map(|rows| (Some(rows), None));
                let inserts = batch.inserted.chunks(CALL_ROWS).map(|rows| (None, Some(rows)));
                deletes.chain(inserts).chain([(Some(&[][..]), Some(&[][..]))]).collect()
            }
        };
        for (gone, new) in calls {
            let row = self.client.query_one(statement, &[&gone, &new]).await.map_err(error)?;
            let [deleted, inserted, replaced] = owned::counts(Function::Apply, view, row.get(0))?;
            counts.deleted += deleted;
            counts.inserted += inserted;
            counts.replaced += replaced;
        }
        Ok(counts)
    }
}

/// What an apply function found.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    deleted: i64,
    inserted: i64,
    /// How many of `inserted` took the place of a row of the same key.
    replaced: i64,
}

/// Every row that goes or is replaced must have been there, no other may be touched, and all must be stored.
fn check(batch: &Batch, deleted: usize, replaced: usize, found: Counts) -> Result<()> {
    if found.deleted != deleted as i64 {
        let context = format!(
            "{deleted} rows should have been deleted, {} were there: the table was changed by somebody else",
            found.deleted
        );
        return Err(Error::new(ErrorKind::Apply, context)
            .with_sqlstate("55000")
            .with_hint("the stream table is reconciled with its query"));
    }
    if found.inserted != batch.inserted.len() as i64 {
        let context = format!("{} rows were stored instead of {}", found.inserted, batch.inserted.len());
        return Err(Error::new(ErrorKind::Apply, context)
            .with_sqlstate("55000")
            .with_hint("a trigger or rule on the stream table keeps rows out: drop it"));
    }
    // The constraint that proved the key may be gone, or rows may have been added by hand (hazards A8, A9).
    if found.replaced != replaced as i64 {
        let context = format!(
            "{} rows would have been replaced instead of {replaced}: others have their key",
            found.replaced
        );
        return Err(Error::new(ErrorKind::Apply, context)
            .with_sqlstate("55000")
            .with_hint("the stream table is planned again and reconciled with its query"));
    }
    Ok(())
}
