//! Stream tables with a schedule of their own say in their catalog rows up to where they are complete.

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use crate::error::Result;
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// A stream table that was due, and when it is due again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    pub view: ViewId,
    pub next: Option<chrono::DateTime<chrono::Utc>>,
}

/// Stores that stream tables are complete up to `frontier`, in the transaction that writes them. Never waits: returns
/// those whose rows somebody's open transaction holds.
pub async fn tell(
    client: &Client,
    frontier: u64,
    due: impl Iterator<Item = &Scheduled>,
) -> Result<Vec<ViewId>> {
    const SQL: &str = "with free as (select pgt_id from pgtrickle.pgt_stream_tables where pgt_id = any ($2)
            for no key update skip locked)
        update pgtrickle.pgt_stream_tables s set frontier = $1, data_timestamp = p.data_timestamp,
            last_refresh_at = pg_catalog.clock_timestamp(), next_refresh_at = n.at
        from free join rows from (pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::timestamptz[])) n (id, at)
                on n.id = free.pgt_id,
            pgtrickle.pgt_pipelines p
        where s.pgt_id = free.pgt_id and p.pipeline = s.pipeline returning s.pgt_id";
    let (mut views, next): (Vec<ViewId>, Vec<_>) = due.map(|s| (s.view, s.next)).unzip();
    if views.is_empty() {
        return Ok(views);
    }
    let lsn = PgLsn::from(frontier);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&lsn, Type::PG_LSN), (&views, Type::INT8_ARRAY), (&next, Type::TIMESTAMPTZ_ARRAY)];
    let told = client.query_typed(SQL, &parameters).await.map_err(error)?;
    views.retain(|view| told.iter().all(|row| row.get::<_, ViewId>(0) != *view));
    Ok(views)
}
