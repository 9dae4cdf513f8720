//! Stream tables that are out of the dataflow for a while, as the catalog tells it.
//!
//! Invariant: before a frontier is stored past what a stream table holds, its status says so, or where somebody's open
//! transaction holds its row, `pgt_behind` does. Nothing here waits for that transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::error::Result;
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// Up to where a stream table is complete.
#[derive(Debug, Clone, Copy)]
pub struct Complete {
    pub frontier: u64,
    /// The moment of it; `None`: that which is stored for the pipeline.
    pub data_time: Option<DateTime<Utc>>,
}

/// Stream tables that have left the dataflow to come back by a reconcile: until then they hold what they held at their
/// frontier. Never waits: returns those whose rows somebody's open transaction holds.
pub async fn tell(
    client: &Client,
    pipeline: &str,
    views: &BTreeMap<ViewId, Complete>,
) -> Result<Vec<ViewId>> {
    // Several arrays in one `unnest` are syntax, always the system's own.
    const SQL: &str = "with wanted as (select * from unnest($1::int8[], $2::pg_lsn[], $3::timestamptz[]) as w (id, frontier, data_time)),
        free as (select s.pgt_id from pgtrickle.pgt_stream_tables s where s.pgt_id = any ($1) and s.pipeline = $4
            for no key update skip locked),
        told as (update pgtrickle.pgt_stream_tables s set status = 'INITIALIZING',
            frontier = case when pgtrickle._is_continuous(s.schedule) then w.frontier else s.frontier end,
            data_timestamp = case when pgtrickle._is_continuous(s.schedule)
                then coalesce(w.data_time, (select p.data_timestamp from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline))
                else s.data_timestamp end
            from free join wanted w on w.id = free.pgt_id
           where s.pgt_id = free.pgt_id and s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL')
        select s.pgt_id from pgtrickle.pgt_stream_tables s
         where s.pgt_id = any ($1) and s.pipeline = $4 and s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL'
           and not exists (select from free where free.pgt_id = s.pgt_id)
         order by s.pgt_id";
    let (ids, frontiers, times) = columns(views);
    let rows = client.query(SQL, &[&ids, &frontiers, &times, &pipeline]).await.map_err(error)?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Parameters: the pipeline, stream tables, frontiers, moments.
const ADD: &str = "insert into pgtrickle.pgt_behind (pgt_id, pipeline, frontier, data_timestamp)
        select w.id, $1, case when c.is_continuous then w.frontier end,
               case when c.is_continuous then coalesce(w.data_time,
                   (select p.data_timestamp from pgtrickle.pgt_pipelines p where p.pipeline = $1)) end
          from unnest($2::int8[], $3::pg_lsn[], $4::timestamptz[]) as w (id, frontier, data_time)
          left join lateral (select pgtrickle._is_continuous(s.schedule) as is_continuous
                               from pgtrickle.pgt_stream_tables s where s.pgt_id = w.id) c on true
    on conflict do nothing";

/// Makes the catalog know exactly these as behind although their status does not say so, with the frontier up to which
/// they are complete; the first one that is noted stays.
pub async fn note(client: &Client, pipeline: &str, views: &BTreeMap<ViewId, Complete>) -> Result<()> {
    const GONE: &str = "delete from pgtrickle.pgt_behind b where b.pipeline = $1 and b.pgt_id <> all ($2)";
    let (ids, frontiers, times) = columns(views);
    let sql = format!("with gone as ({GONE}) {ADD}");
    client.execute(&sql, &[&pipeline, &ids, &frontiers, &times]).await.map_err(error)?;
    Ok(())
}

/// What is noted of the pipeline.
pub async fn read(client: &Client, pipeline: &str) -> Result<BTreeMap<ViewId, Complete>> {
    const SQL: &str = "select pgt_id, frontier, data_timestamp from pgtrickle.pgt_behind where pipeline = $1";
    let rows = client.query(SQL, &[&pipeline]).await.map_err(error)?;
    // Without a frontier: it has a schedule, and its own frontier stands in its row.
    let complete = |r: &tokio_postgres::Row| Complete {
        frontier: r.get::<_, Option<PgLsn>>(1).map_or(0, u64::from),
        data_time: r.get(2),
    };
    Ok(rows.iter().map(|r| (r.get(0), complete(r))).collect())
}

/// As [`note`], beside those that are known already.
pub async fn add(client: &Client, pipeline: &str, views: &BTreeMap<ViewId, Complete>) -> Result<()> {
    let (ids, frontiers, times) = columns(views);
    client.execute(ADD, &[&pipeline, &ids, &frontiers, &times]).await.map_err(error)?;
    Ok(())
}

/// All incremental stream tables of the pipeline are behind what its frontier is about to say.
pub async fn tell_all(client: &Client, pipeline: &str) -> Result<()> {
    const SQL: &str = "select s.pgt_id, coalesce(p.frontier, '0/0'::pg_lsn)
        from pgtrickle.pgt_stream_tables s join pgtrickle.pgt_pipelines p using (pipeline)
        where pipeline = $1 and s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL'";
    let rows = client.query(SQL, &[&pipeline]).await.map_err(error)?;
    let complete = |lsn: PgLsn| Complete { frontier: lsn.into(), data_time: None };
    let mut views: BTreeMap<ViewId, Complete> = rows.iter().map(|r| (r.get(0), complete(r.get(1)))).collect();
    let untold = tell(client, pipeline, &views).await?;
    views.retain(|id, _| untold.contains(id));
    note(client, pipeline, &views).await
}

type Columns = (Vec<ViewId>, Vec<PgLsn>, Vec<Option<DateTime<Utc>>>);

fn columns(views: &BTreeMap<ViewId, Complete>) -> Columns {
    let all = views.iter().map(|(id, c)| (*id, PgLsn::from(c.frontier), c.data_time));
    all.fold(Columns::default(), |(mut ids, mut frontiers, mut times), (id, frontier, time)| {
        ids.push(id);
        frontiers.push(frontier);
        times.push(time);
        (ids, frontiers, times)
    })
}
