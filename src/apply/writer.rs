//! The apply transaction.
//!
//! The way in which it usually goes: BEGIN, the pipeline's row (which fences off any other writer and tells the current
//! snapshot), one call per changed stream table, all in one flight; then COMMIT. If anything fails, the same again with a
//! savepoint per stream table: the culprit is left out, the others go on. Owners' code runs in this session: see
//! [`super::guarded`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::batch::Batch;
use super::due::{self, Scheduled};
use super::guarded::{self, Deferred, Seen};
use super::history::{RollUp, Written};
use super::hold;
use super::owned::{self, Function};
use crate::capture::hierarchy::Hierarchies;
use crate::capture::poll::{self, Consumed};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::plan::ViewId;
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::error;

/// Rows per call of an apply function; more gain nothing and hold more memory in the server.
const CALL_ROWS: usize = 5_000;

/// Claims the pipeline's row for this transaction. One row unless another sidecar has taken over.
const FENCE: &str =
    "update pgtrickle.pgt_pipelines set frontier = $1, data_timestamp = coalesce($2, data_timestamp),
        heartbeat_at = pg_catalog.clock_timestamp(), changed_lsn = coalesce($5, changed_lsn)
    where pipeline = $3 and generation = $4 returning pg_catalog.pg_current_snapshot()::text";

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
    /// Stream tables with a schedule of their own that are up to date with it.
    pub scheduled: Vec<Scheduled>,
}

/// The outcome of one apply.
#[derive(Debug, Default)]
pub struct Applied {
    pub written: BTreeMap<ViewId, Written>,
    /// Stream tables that were left out, with the reason.
    pub failed: Vec<(ViewId, Error)>,
    /// Stream tables that were due and whose catalog rows somebody's transaction held.
    pub untold: Vec<ViewId>,
    /// Stream tables that read one that failed: not written either, they would be ahead of what it stores.
    pub skipped: Vec<ViewId>,
    /// Nothing was written: children of a source came or went.
    pub moved: bool,
    /// Attempts before it that gave way to a lock, a deadlock or a serialization failure.
    pub conflicts: u64,
}

impl Applied {
    pub fn is_left_out(&self, view: ViewId) -> bool {
        self.skipped.contains(&view) || self.failed.iter().any(|(failed, _)| *failed == view)
    }
}

/// Statements that belong to the same transaction as the deltas (a stream table becomes ACTIVE, a history row ends ...).
#[derive(Debug, Clone)]
pub enum Note {
    /// The reconcile of a stream table that is written with this apply.
    Installed {
        view: ViewId,
        refresh: Option<i64>,
        /// `config_version` of what was prepared: what was altered since is prepared again before it counts.
        version: i64,
    },
}

/// Arguments of one call of an apply function: deleted and inserted rows; `None`: more calls follow.
type Call<'a> = (Option<&'a [String]>, Option<&'a [String]>);

/// The one session that writes stream tables.
pub struct Writer {
    pub(super) client: SqlSession,
    pub(super) pipeline: String,
    generation: i64,
    pub(super) commit: String,
    /// The statement that calls the apply function of a stream table.
    pub(super) calls: HashMap<ViewId, String>,
    pub(super) deferred: Deferred,
    roll_up: RollUp,
    /// What children the sources have, as the plans know them.
    pub(super) hierarchies: Hierarchies,
}

impl Writer {
    /// Prepares the session: commits are at least as durable as the server's default.
    pub async fn new(client: SqlSession, pipeline: &str, generation: i64) -> Result<Writer> {
        // At least as durable as the server's default, and never asynchronous: the frontier would go back in a crash
        // while the slot does not.
        const DURABLE: &str = "select case when s in ('off', 'local') then 'on' else s end
            from pg_catalog.current_setting('synchronous_commit') s";
        let durable: String = client.query_typed_one(DURABLE, &[]).await.map_err(error)?.get(0);
        let deferred = Deferred::of_session(&client).await?;
        Ok(Writer {
            client,
            pipeline: pipeline.to_owned(),
            generation,
            commit: format!("set local synchronous_commit = '{durable}'; commit"),
            calls: HashMap::new(),
            deferred,
            roll_up: RollUp::default(),
            hierarchies: Hierarchies::default(),
        })
    }

    /// From now on an apply is given up where a source has other children.
    pub fn watch(&mut self, hierarchies: Hierarchies) {
        self.hierarchies = hierarchies;
    }

    pub fn forget(&mut self, view: ViewId) {
        self.calls.remove(&view);
        self.roll_up.forget(view);
    }

    /// Applies one step; batches come after those of the stream tables that they read. Retries while a transaction of it is not yet visible, and what gave way to a lock.
    pub async fn apply(
        &mut self,
        progress: &Progress,
        batches: &[(ViewId, Batch)],
        notes: &[Note],
        flush_history: bool,
    ) -> Result<Applied> {
        self.prepare(batches).await?;
        let (mut pause, mut conflicts) = (Duration::from_millis(1), 0);
        loop {
            let attempt = self.attempt(progress, batches, notes, flush_history).await;
            conflicts += u64::from(attempt.as_ref().is_err_and(|e| e.kind() == ErrorKind::Contention));
            let outcome = match attempt {
                Err(e) if e.kind() != ErrorKind::Connection && e.kind() != ErrorKind::LeaseHeld => {
                    self.rollback().await?;
                    tracing::debug!(error = %e.for_logs(), "an apply failed; again with a savepoint per stream table");
                    self.with_savepoints(progress, batches, notes).await
                }
                other => other,
            };
            match outcome {
                Ok(Some(applied)) if !applied.moved => return Ok(Applied { conflicts, ..applied }),
                Ok(Some(moved)) => {
                    self.rollback().await?;
                    return Ok(moved);
                }
                Ok(None) => {
                    self.rollback().await?;
                    // Everything would be written in vain once more: looked at from outside until it can be seen.
                    loop {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(50));
                        if self.shows(progress).await? {
                            break;
                        }
                    }
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
                self.calls.insert(*view, sql);
            }
        }
        Ok(())
    }

    async fn rollback(&self) -> Result<()> {
        self.client.batch_execute("rollback").await.map_err(error)
    }

    pub(super) async fn fence(&self, progress: &Progress) -> Result<Option<Snapshot>> {
        let (lsn, changed) = (PgLsn::from(progress.frontier), progress.changed.map(PgLsn::from));
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&lsn, Type::PG_LSN),
            (&progress.data_time, Type::TIMESTAMPTZ),
            (&self.pipeline, Type::TEXT),
            (&self.generation, Type::INT8),
            (&changed, Type::PG_LSN),
        ];
        let row = self.client.query_typed_opt(FENCE, &parameters).await.map_err(error)?;
        row.map(|row| row.get::<_, String>(0).parse()).transpose()
    }

    /// Whether a snapshot of now shows all transactions of the step as finished.
    async fn shows(&self, progress: &Progress) -> Result<bool> {
        const NOW: &str = "select pg_catalog.pg_current_snapshot()::text";
        let snapshot: Snapshot =
            self.client.query_typed_one(NOW, &[]).await.map_err(error)?.get::<_, String>(0).parse()?;
        Ok(progress.xids.iter().all(|xid| snapshot.is_visible(*xid)))
    }

    /// Whether the snapshot shows all transactions of the step as finished; an error if the fence did not hold.
    pub(super) fn admitted(&self, fence: Option<Snapshot>, progress: &Progress) -> Result<bool> {
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
        let begin = async { self.client.batch_execute(guarded::BEGIN).await.map_err(error) };
        let fence = self.fence(progress);
        let look = async {
            match batches.is_empty() {
                true => Ok(Seen::default()),
                false => self.deferred.look(&self.client).await,
            }
        };
        let consume = poll::consume(&self.client, &progress.consumed);
        let hold = self.hierarchies.hold(&self.client);
        let calls = try_join_all(batches.iter().map(|(view, batch)| self.call(*view, batch)));
        // In this order: the calls come last, and after them only what looks at what they left. Where they take several
        // flights, so does that.
        let together = batches.iter().all(|(_, batch)| is_one_call(batch));
        let after = async {
            match together && !batches.is_empty() {
                true => self.left().await.map(Some),
                false => Ok(None),
            }
        };
        let before = try_join(look, hold);
        let flight = futures_util::future::try_join5(begin, fence, before, consume, calls);
        let (((), fence, (seen, hold), (), written), left) = try_join(flight, after).await?;
        if !self.admitted(fence, progress)? {
            return Ok(None);
        }
        if !hold {
            return Ok(Some(Applied { moved: true, ..Applied::default() }));
        }
        match left {
            Some(left) => left.since(seen.rows)?,
            None if batches.is_empty() => {}
            None => self.left().await?.since(seen.rows)?,
        }
        let written: BTreeMap<ViewId, Written> = written.into_iter().collect();
        let noted: Vec<ViewId> = notes.iter().map(|Note::Installed { view, .. }| *view).collect();
        if !hold::catalog_rows(&self.client, &noted).await?.is_empty() {
            return Err(hold::busy());
        }
        for note in notes {
            let Note::Installed { view, .. } = note;
            self.installed(note, written.get(view).copied().unwrap_or_default()).await?;
        }
        let untold = due::tell(&self.client, progress.frontier, progress.scheduled.iter()).await?;
        self.finish(progress, &written, notes, flush_history).await?;
        Ok(Some(Applied { written, untold, ..Applied::default() }))
    }

    pub(super) async fn finish(
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

    pub(super) async fn installed(&self, note: &Note, written: Written) -> Result<()> {
        const SQL: &str = "update pgtrickle.pgt_stream_tables set
            status = case when status = 'SUSPENDED' or config_version <> $2 then status else 'ACTIVE' end, is_populated = true,
            last_refresh_at = pg_catalog.clock_timestamp(), consecutive_errors = 0, last_error_sqlstate = null,
            last_error_message = null, last_error_query = null, last_error_at = null where pgt_id = $1";
        let Note::Installed { view, refresh, version } = note;
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(view, Type::INT8), (version, Type::INT8)];
        self.client.execute_typed(SQL, &parameters).await.map_err(error)?;
        match refresh {
            Some(refresh) => super::history::finish(&*self.client, *refresh, written, None).await,
            None => Ok(()),
        }
    }

    /// After owners' code: our own settings again, and what it wrote where code could wait for COMMIT.
    async fn left(&self) -> Result<Seen> {
        try_join(guarded::reset(&self.client), self.deferred.look(&self.client)).await.map(|((), seen)| seen)
    }

    /// Calls the apply function in chunks and checks that it found what it should.
    pub(super) async fn call(&self, view: ViewId, batch: &Batch) -> Result<(ViewId, Written)> {
        let counts = self.call_rows(view, batch).await?;
        check(batch, batch.deleted.len(), batch.replaced, counts)?;
        let updated = batch.replaced as i64;
        Ok((view, Written { inserted: counts.inserted - updated, updated, deleted: counts.deleted }))
    }

    pub(super) async fn call_rows(&self, view: ViewId, batch: &Batch) -> Result<Counts> {
        let Some(statement) = self.calls.get(&view) else {
            owned::statement(&self.client, Function::Apply, view).await?;
            // It is there by now; the next attempt calls it.
            let context = format!("the function pgtrickle_queries.apply_{view} was not there");
            return Err(Error::new(ErrorKind::Apply, context).with_sqlstate("55000"));
        };
        let mut counts = Counts::default();
        let calls: Vec<Call<'_>> = match is_one_call(batch) {
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
            let parameters = [(&gone as &(dyn ToSql + Sync), Type::TEXT_ARRAY), (&new, Type::TEXT_ARRAY)];
            // Sent together: no other owner's code runs in between.
            let reset = guarded::reset(&self.client);
            let call = async { self.client.query_typed_one(statement, &parameters).await.map_err(error) };
            let ((), row) = try_join(reset, call).await?;
            let [deleted, inserted, replaced] = owned::counts(Function::Apply, view, row.get(0))?;
            counts.deleted += deleted;
            counts.inserted += inserted;
            counts.replaced += replaced;
        }
        Ok(counts)
    }
}

fn is_one_call(batch: &Batch) -> bool {
    batch.deleted.len() + batch.inserted.len() <= CALL_ROWS
}

/// What an apply function found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) deleted: i64,
    pub(super) inserted: i64,
    /// How many of `inserted` took the place of a row of the same key.
    replaced: i64,
}

/// Every row that goes or is replaced must have been there, no other may be touched, and all must be stored.
pub(super) fn check(batch: &Batch, deleted: usize, replaced: usize, found: Counts) -> Result<()> {
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
