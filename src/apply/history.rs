//! `pgt_refresh_history`: continuous applies rolled up, long refreshes announced before they start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, GenericClient};

use crate::error::Result;
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// At most one row per stream table and this long.
const ROLL_UP: Duration = Duration::from_secs(10);

/// Rows written to one stream table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
}

impl Written {
    pub fn total(&self) -> i64 {
        self.inserted + self.updated + self.deleted
    }

    pub fn add(&mut self, other: Written) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

struct Pending {
    since: chrono::DateTime<chrono::Utc>,
    written: Written,
    last_row: Option<Instant>,
}

/// Counts of continuous applies that are not in the table yet.
#[derive(Default)]
pub struct RollUp(BTreeMap<ViewId, Pending>);

impl RollUp {
    pub fn note(&mut self, view: ViewId, written: Written) {
        let entry = self.0.entry(view).or_insert_with(|| Pending {
            since: chrono::Utc::now(),
            written: Written::default(),
            last_row: None,
        });
        if entry.written.total() == 0 {
            entry.since = chrono::Utc::now();
        }
        entry.written.add(written);
    }

    pub fn forget(&mut self, view: ViewId) {
        self.0.remove(&view);
    }

    /// Writes what is due (all of it if `all`) inside the caller's transaction.
    pub async fn write(&mut self, client: &Client, frontier: u64, all: bool) -> Result<()> {
        const SQL: &str = "insert into pgtrickle.pgt_refresh_history (pgt_id, pgt_name, data_timestamp, start_time,
                end_time, action, status, rows_inserted, rows_updated, rows_deleted, delta_row_count, initiated_by, frontier)
            select s.pgt_id, s.pgt_name, pg_catalog.now(), $2, pg_catalog.clock_timestamp(), 'DIFFERENTIAL', 'COMPLETED',
                $3, $4, $5, $6, 'SCHEDULER', $7 from pgtrickle.pgt_stream_tables s where s.pgt_id = $1";
        for (view, pending) in &mut self.0 {
            let due = all || pending.last_row.is_none_or(|at| at.elapsed() >= ROLL_UP);
            let w = pending.written;
            if !due || w.total() == 0 {
                continue;
            }
            let lsn = PgLsn::from(frontier);
            let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
                (view, Type::INT8),
                (&pending.since, Type::TIMESTAMPTZ),
                (&w.inserted, Type::INT8),
                (&w.updated, Type::INT8),
                (&w.deleted, Type::INT8),
                (&w.total(), Type::INT8),
                (&lsn, Type::PG_LSN),
            ];
            client.execute_typed(SQL, &parameters).await.map_err(error)?;
            pending.written = Written::default();
            pending.last_row = Some(Instant::now());
        }
        Ok(())
    }
}

/// Announces a long refresh in a transaction of its own; returns the history row's id (`None` if the stream table is gone).
pub async fn start<C: GenericClient>(
    client: &C,
    view: ViewId,
    action: &str,
    reason: Option<&str>,
    initiated_by: &str,
) -> Result<Option<i64>> {
    const SQL: &str = "insert into pgtrickle.pgt_refresh_history (pgt_id, pgt_name, action, status, reason, initiated_by)
        select pgt_id, pgt_name, $2, 'RUNNING', $3, $4 from pgtrickle.pgt_stream_tables where pgt_id = $1 returning refresh_id";
    let row = client.query_opt(SQL, &[&view, &action, &reason, &initiated_by]).await.map_err(error)?;
    Ok(row.map(|r| r.get(0)))
}

/// Closes a row of [`start`].
pub async fn finish<C: GenericClient>(
    client: &C,
    refresh: i64,
    written: Written,
    failure: Option<(&str, &str)>,
) -> Result<()> {
    const SQL: &str = "update pgtrickle.pgt_refresh_history set end_time = pg_catalog.clock_timestamp(),
            data_timestamp = case when $6::text is null then pg_catalog.now() end,
            status = case when $6::text is null then 'COMPLETED' else 'FAILED' end, rows_inserted = $2, rows_updated = $3,
            rows_deleted = $4, delta_row_count = $2::bigint + $3::bigint + $4::bigint, sqlstate = $5, error_message = $6
        where refresh_id = $1";
    let (state, message) = failure.unzip();
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&refresh, Type::INT8),
        (&written.inserted, Type::INT8),
        (&written.updated, Type::INT8),
        (&written.deleted, Type::INT8),
        (&state, Type::TEXT),
        (&message, Type::TEXT),
    ];
    client.execute_typed(SQL, &parameters).await.map_err(error)?;
    Ok(())
}

/// Marks refreshes of a pipeline that a crash, a kill or a point-in-time recovery cut off. Call it under the lease.
///
/// The history is made anew first where a restore came without it.
pub async fn close_interrupted(client: &Client, pipeline: &str) -> Result<u64> {
    const MAKE: &str = "select pgtrickle._make_history() where pg_catalog.to_regclass('pgtrickle.pgt_refresh_history') is null";
    client.execute(MAKE, &[]).await.map_err(error)?;
    const SQL: &str =
        "update pgtrickle.pgt_refresh_history h set status = 'FAILED', end_time = pg_catalog.clock_timestamp(),
        error_message = 'interrupted; run again at the next start' where h.status = 'RUNNING'
        and exists (select from pgtrickle.pgt_stream_tables s where s.pgt_id = h.pgt_id and s.pipeline = $1)";
    client.execute(SQL, &[&pipeline]).await.map_err(error)
}
