//! How much of what a load has read may be on its way to the workers. Whoever reads waits for them, and so does the server,
//! which sends no more than is taken from it.
//!
//! Invariant: rows of loads that some worker has not taken in yet are no more than [`BUDGET`] bytes (or one chunk, where that
//! alone is larger), however slow the workers are.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::account::{MAP_ENTRY, row_bytes};
use crate::error::{Error, Result};
use crate::row::Row;

/// Bytes that may be on their way: enough to keep workers busy while the next rows are read.
pub(super) const BUDGET: u32 = if cfg!(test) { 64 << 10 } else { 32 << 20 };

/// The right of some rows to be on their way; it goes with them, and back when it is dropped.
pub(super) type Permit = OwnedSemaphorePermit;

/// What may still be sent. Clones mean the same.
#[derive(Clone)]
pub(super) struct Credit(Arc<Semaphore>);

impl Credit {
    pub fn new() -> Credit {
        Credit(Arc::new(Semaphore::new(BUDGET as usize)))
    }

    /// Waits until `rows` may be sent, behind those who wait already.
    pub async fn take(&self, rows: &[Row]) -> Result<Permit> {
        let bytes: i64 = rows.iter().map(|row| row_bytes(row) + MAP_ENTRY).sum();
        let share = u32::try_from(bytes).unwrap_or(BUDGET).min(BUDGET);
        let permit = self.0.clone().acquire_many_owned(share).await;
        permit.map_err(|e| Error::internal("the dataflow takes no more rows").with_source(e))
    }

    /// Bytes that are on their way.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        BUDGET as usize - self.0.available_permits()
    }
}
