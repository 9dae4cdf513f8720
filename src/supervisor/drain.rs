//! The end that was asked for: what was committed before it is written before the sidecar leaves.
//!
//! Invariant: a drain only makes the end better, never later than its patience: what is not written by then is in the slot
//! (or in the change buffers), and the next start goes on from the stored frontier.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::PgLsn;

use super::engine::Engine;
use crate::error::Result;
use crate::postgres::sessions::error;

/// How long the loop goes on after the stop. The apply that is under way then has its own time.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the loop still waits for.
pub(super) struct Drain {
    /// End of the WAL when the stop was asked for.
    target: u64,
    until: Instant,
}

impl Engine {
    /// Asks the server where its WAL ends, and lets it send everything up to there at once.
    pub(super) async fn begin_drain(&mut self) -> Result<Drain> {
        // As `wait_for` of a client: it hurries the stream and has the frontier stored when it has come there.
        const ASK: &str = "with target as materialized (select pg_catalog.pg_current_wal_insert_lsn() as lsn)
            select lsn from target, lateral (select pgtrickle._request('wait', pg_catalog.jsonb_build_object('lsn', lsn::text))) r";
        // Before the stream tables of the start have joined nothing is written, so there is nothing to wait for.
        let target = match self.settled {
            true => self.control.query_one(ASK, &[]).await.map_err(error)?.get::<_, PgLsn>(0).into(),
            false => 0,
        };
        Ok(Drain { target, until: Instant::now() + PATIENCE })
    }
}

impl Drain {
    /// `frontier`: what is written.
    pub(super) fn is_over(&self, frontier: u64) -> bool {
        let over = Instant::now() >= self.until;
        if over && frontier < self.target {
            let behind_bytes = self.target - frontier;
            tracing::info!(
                behind_bytes,
                "leaving before everything is written: the next start goes on from there"
            );
        }
        over || frontier >= self.target
    }
}
