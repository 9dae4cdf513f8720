//! Holding the catalog rows of stream tables that become live with an apply.
//!
//! Invariant: an apply never waits for a catalog row while it holds another one. Somebody's transaction that changes two
//! stream tables takes their rows in an order of its own, and would be told of a deadlock that we had made.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// As the lock timeout of the session.
const PATIENCE: Duration = Duration::from_millis(800);
const AGAIN: Duration = Duration::from_millis(20);

/// Takes the rows of all, or of none for now and tries again for a while. Returns those that somebody still holds; the
/// rows of the others are ours then.
pub(super) async fn catalog_rows(client: &Client, views: &[ViewId]) -> Result<Vec<ViewId>> {
    const SQL: &str = "with free as materialized (select pgt_id from pgtrickle.pgt_stream_tables
            where pgt_id = any ($1) for no key update skip locked)
        select s.pgt_id from pgtrickle.pgt_stream_tables s
         where s.pgt_id = any ($1) and s.pgt_id not in (select pgt_id from free)";
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        client.batch_execute("savepoint held").await.map_err(error)?;
        let busy = client.query_typed(SQL, &[(&views, Type::INT8_ARRAY)]).await.map_err(error)?;
        if busy.is_empty() || Instant::now() >= deadline {
            client.batch_execute("release savepoint held").await.map_err(error)?;
            return Ok(busy.iter().map(|row| row.get(0)).collect());
        }
        client.batch_execute("rollback to savepoint held; release savepoint held").await.map_err(error)?;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Why a stream table is left out.
pub(super) fn busy() -> Error {
    Error::new(ErrorKind::Contention, "an open transaction holds the stream table's row of the catalog")
        .with_sqlstate("55P03")
}
