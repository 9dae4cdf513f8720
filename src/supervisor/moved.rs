//! Stream tables on their way from one pipeline to another (`schema/018_pipelines.sql`).
//!
//! Invariant: a pipeline lets go of a stream table only when no apply and no preparation of its own that knows it is
//! under way; one that is to come is not looked at before its former pipeline has let go. So at most one writes it, and
//! the new one reads what the former has stored last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::error::{ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// How long a sidecar may take to let go; then its generation is raised where it shows no sign of life.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Moves {
    /// Those that have left, with the number of the apply that was under way when that was noticed.
    leaving: BTreeMap<ViewId, u64>,
    /// What the preparation under way prepares.
    pub prepared: BTreeSet<ViewId>,
    /// Those that come, and since when they are waited for.
    coming: BTreeMap<ViewId, Instant>,
}

impl Engine {
    /// Lets go of stream tables that were moved away, and claims those that were moved here.
    pub(super) async fn look_at_moves(&mut self) -> Result<()> {
        const SQL: &str = "select pgt_id, moving_from = $1 from pgtrickle.pgt_stream_tables
            where moving_from is not null and $1 in (moving_from, pipeline) order by pgt_id";
        let rows = self.control.query(SQL, &[&self.options.pipeline]).await.map_err(error)?;
        let moves: Vec<(ViewId, bool)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        let is = |id: &ViewId, leaves: bool| moves.contains(&(*id, leaves));
        self.watched.moves.leaving.retain(|id, _| is(id, true));
        self.watched.moves.coming.retain(|id, _| is(id, false));
        for (id, leaves) in moves {
            let outcome = if leaves { self.let_go(id).await } else { self.claim(id).await };
            match outcome {
                // Somebody holds its row, or an apply that is to end; it is tried again.
                Err(e) if e.kind() == ErrorKind::Contention => {
                    tracing::debug!(error = %e, stream_table = id, "a move waits");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn let_go(&mut self, id: ViewId) -> Result<()> {
        if self.views.0.contains_key(&id) {
            return Ok(()); // Moved since the last look at the catalog.
        }
        let now = self.watched.applies;
        let noticed = *self.watched.moves.leaving.entry(id).or_insert(now);
        let preparing = self.preparing.is_some() && self.watched.moves.prepared.contains(&id);
        if preparing || self.applying.is_some() && noticed == now {
            return Ok(());
        }
        // A recomputation holds the lock.
        const SQL: &str = "update pgtrickle.pgt_stream_tables set moving_from = null
            where pgt_id = (select pgt_id from pgtrickle.pgt_stream_tables where pgt_id = $1 and moving_from = $2
                for no key update skip locked)
              and (select pg_catalog.pg_try_advisory_xact_lock(
                pg_catalog.hashtextextended('pgtrickle recompute ' || $1::bigint::text, 0)))
            returning pgt_schema || '.' || pgt_name, pipeline";
        let row = self.control.query_opt(SQL, &[&id, &self.options.pipeline]).await.map_err(error)?;
        if let Some(row) = row {
            let (name, pipeline): (String, String) = (row.get(0), row.get(1));
            tracing::info!(stream_table = %name, pipeline = %pipeline, "let go of a stream table that was moved");
        }
        Ok(())
    }

    async fn claim(&mut self, id: ViewId) -> Result<()> {
        let since = *self.watched.moves.coming.entry(id).or_insert_with(Instant::now);
        let sql = match since.elapsed() < PATIENCE {
            true => "select pgtrickle._let_go($1)",
            false => "select pgtrickle._let_go_by_force($1)",
        };
        let free: bool = self.control.query_one(sql, &[&id]).await.map_err(error)?.get(0);
        if free && since.elapsed() >= PATIENCE {
            tracing::warn!(stream_table = id, "its former pipeline did not let go of it and was fenced off");
        }
        Ok(())
    }

    /// What is said of a stream table that is no longer in this pipeline.
    pub(super) async fn tell_gone(&mut self, id: ViewId, name: &str) -> Result<()> {
        const SQL: &str = "select pipeline from pgtrickle.pgt_stream_tables where pgt_id = $1";
        match self.control.query_opt(SQL, &[&id]).await.map_err(error)? {
            Some(row) => {
                let pipeline: String = row.get(0);
                tracing::info!(stream_table = %name, pipeline = %pipeline, "moved to another pipeline");
            }
            None => tracing::info!(stream_table = %name, "dropped"),
        }
        Ok(())
    }
}
