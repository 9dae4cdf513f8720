//! Reading change buffers (poll delivery): what one snapshot shows of all of them.
//!
//! Invariant: rows are read in one snapshot, so whole transactions across all sources; they are deleted by the apply
//! transaction that contains them, by number and transaction. Only the sidecar deletes, so a row is applied exactly once: either
//! that transaction commits, or the row is there for the next look. No position is stored, so it survives crash,
//! point-in-time recovery, promotion, and a dump into a younger cluster.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::trigger::{Captured, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::postgres::sessions::error;

/// Consumed rows by source.
pub type Consumed = BTreeMap<i64, ConsumedRows>;

/// Keys of buffer rows: number and transaction. The number alone is none: rows that a dump brings and rows that were
/// recorded while it was loaded can have the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsumedRows {
    numbers: Vec<i64>,
    xids: Vec<String>,
}

impl ConsumedRows {
    fn push(&mut self, number: i64, xid: String) {
        self.numbers.push(number);
        self.xids.push(xid);
    }

    fn append(&mut self, mut later: ConsumedRows) {
        self.numbers.append(&mut later.numbers);
        self.xids.append(&mut later.xids);
    }
}

/// Adds what a later look consumed.
pub fn merge(consumed: &mut Consumed, later: Consumed) {
    for (source, rows) in later {
        consumed.entry(source).or_default().append(rows);
    }
}

/// What one look found.
#[derive(Debug)]
pub struct Polled {
    /// Whose buffers were read.
    pub sources: Vec<i64>,
    /// By source, in the order of their numbers.
    pub rows: BTreeMap<i64, Vec<Captured>>,
    pub consumed: Consumed,
    pub bytes: usize,
    /// From before the snapshot: whatever was committed (as its client saw it) up to this position is in.
    pub position: u64,
    pub time: DateTime<Utc>,
    pub snapshot: Snapshot,
    pub cost: Duration,
}

/// Reads what the buffers of `sources` hold.
///
/// Errors: `Identity` if they hold more than `limit` bytes (then the sources are read again instead).
pub async fn read(client: &Client, sources: &[i64], limit: usize) -> Result<Polled> {
    let started = Instant::now();
    // The position first: a snapshot taken later shows every commit that its client knew of by then.
    const POSITION: &str = "select pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.clock_timestamp()";
    let before = client.query_one(POSITION, &[]).await.map_err(error)?;
    client.batch_execute("begin isolation level repeatable read read only").await.map_err(error)?;
    let outcome = rows(client, sources, limit).await;
    client.batch_execute("commit").await.map_err(error)?;
    let (rows, consumed, bytes, snapshot) = outcome?;
    Ok(Polled {
        sources: sources.to_vec(),
        rows,
        consumed,
        bytes,
        // Strictly before it: a commit that ends there may not have been visible yet.
        position: u64::from(before.get::<_, PgLsn>(0)).saturating_sub(1),
        time: before.get(1),
        snapshot,
        cost: started.elapsed(),
    })
}

type Read = (BTreeMap<i64, Vec<Captured>>, Consumed, usize, Snapshot);

async fn rows(client: &Client, sources: &[i64], limit: usize) -> Result<Read> {
    let snapshot =
        client.query_one("select pg_catalog.pg_current_snapshot()::text", &[]).await.map_err(error)?;
    let snapshot: Snapshot = snapshot.get::<_, String>(0).parse()?;
    let (mut found, mut consumed, mut bytes) = (BTreeMap::new(), Consumed::new(), 0);
    if sources.is_empty() {
        return Ok((found, consumed, bytes, snapshot));
    }
    let one = |id: &i64| {
        format!(
            "select {id}::bigint as source, seq, xid::text, op::text, shape, record from pgtrickle_changes.changes_{id}"
        )
    };
    let all: Vec<String> = sources.iter().map(one).collect();
    let sql = format!("{} order by source, seq", all.join(" union all "));
    let stream = client.query_raw(&sql, std::iter::empty::<&str>()).await.map_err(error)?;
    futures_util::pin_mut!(stream);
    while let Some(row) = futures_util::StreamExt::next(&mut stream).await {
        let row = row.map_err(error)?;
        let source: i64 = row.get(0);
        let xid: String = row.get(2);
        let number =
            xid.parse().map_err(|_| Error::new(ErrorKind::Protocol, "a transaction id is no number"))?;
        let op = row.get::<_, String>(3);
        let captured = Captured {
            xid: number,
            op: Op::parse(op.bytes().next().unwrap_or_default())?,
            shape: row.get(4),
            record: row.get::<_, Option<String>>(5).unwrap_or_default(),
        };
        bytes += captured.size();
        if bytes > limit {
            let context =
                format!("the change buffers hold more than the {} MB that fit into memory", limit >> 20);
            let hint = "the sources are read again; if that repeats, raise --memory-limit";
            return Err(Error::new(ErrorKind::Identity, context).with_hint(hint));
        }
        found.entry(source).or_insert_with(Vec::new).push(captured);
        consumed.entry(source).or_default().push(row.get(1), xid);
    }
    Ok((found, consumed, bytes, snapshot))
}

/// Deletes consumed rows, inside the caller's transaction.
///
/// Errors: `Identity` if any was gone: somebody else empties the buffers.
pub async fn consume(client: &Client, consumed: &Consumed) -> Result<()> {
    for (source, rows) in consumed {
        let sql = format!(
            "delete from pgtrickle_changes.changes_{source} as b 
             using rows from (pg_catalog.unnest($1::bigint[]), pg_catalog.unnest($2::text[])) as c(seq, xid)
             where b.seq = c.seq and b.xid = c.xid::pg_catalog.xid8"
        );
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&rows.numbers, Type::INT8_ARRAY), (&rows.xids, Type::TEXT_ARRAY)];
        let deleted = client.execute_typed(&sql, &parameters).await.map_err(error)?;
        if deleted != rows.numbers.len() as u64 {
            let context = format!("the change buffer changes_{source} was emptied by somebody else");
            return Err(Error::new(ErrorKind::Identity, context));
        }
    }
    Ok(())
}

/// Empties the buffer of a source that is about to be read whole: the boundary's snapshot, taken later, shows all of it.
pub async fn clear(client: &Client, source: i64) -> Result<u64> {
    let sql = format!("delete from pgtrickle_changes.changes_{source}");
    client.execute(&sql, &[]).await.map_err(error)
}
