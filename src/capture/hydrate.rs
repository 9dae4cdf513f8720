//! Loading sources at a boundary (D5).
//!
//! Order is everything: lock the tables, only then take the snapshot, only then COPY. A snapshot taken before the locks
//! loses whole tables to a concurrent TRUNCATE or rewrite (hazard A1). On the primary only (A13).

use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use super::source::{SourceSpec, quote};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::error;
use crate::row::copy::CopyDecoder;
use crate::row::{Row, TypeClass};

/// Rows handed over at once, or as many as came with so many bytes.
const CHUNK: usize = 8_192;
const CHUNK_BYTES: usize = 1 << 20;

/// How fast sources may be read. What is not taken from the session is not sent: the server waits as soon as the buffers
/// of the connection are full, and reads no further.
#[derive(Debug)]
pub struct Pace {
    /// Bytes per second; `None`: as fast as it goes.
    rate: Option<f64>,
    /// When everything that was taken so far may have been taken.
    paid: Instant,
    /// Bytes that were taken since.
    open: usize,
}

impl Pace {
    /// Bytes that are taken between two looks at the clock.
    const STEP: usize = 64 << 10;

    /// A pace of `rate` bytes per second that begins now; `None` or 0: unlimited.
    pub fn new(rate: Option<u64>) -> Pace {
        Pace { rate: rate.filter(|r| *r > 0).map(|r| r as f64), paid: Instant::now(), open: 0 }
    }

    /// Takes `bytes`, and waits until they may have been taken. What was not used up in a pause is not made up for.
    pub async fn spend(&mut self, bytes: usize) {
        self.open += bytes;
        let Some(rate) = self.rate.filter(|_| self.open >= Pace::STEP) else { return };
        let now = Instant::now();
        // A second of slowness elsewhere may be caught up with, not more.
        self.paid = self.paid.max(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        self.paid += Duration::from_secs_f64(self.open as f64 / rate);
        self.open = 0;
        if let Some(ahead) = self.paid.checked_duration_since(now) {
            tokio::time::sleep(ahead).await;
        }
    }
}

/// Bytes per second at which sources may be read whole, from the setting `hydrate_rate_mb`; `None`: no limit.
pub async fn rate(client: &Client, pipeline: &str) -> Result<Option<u64>> {
    const SQL: &str = "select pgtrickle._limit_setting('hydrate_rate_mb', $1) * 1048576";
    let rate: Option<i64> = client.query_one(SQL, &[&pipeline]).await.map_err(error)?.get(0);
    Ok(rate.and_then(|rate| u64::try_from(rate).ok()))
}

/// How long one snapshot may be held before the sources that are left get another one, from the setting
/// `hydrate_snapshot_hold`.
pub async fn snapshot_hold(client: &Client, pipeline: &str) -> Result<Duration> {
    const SQL: &str = "select extract(epoch from pgtrickle._setting_interval('hydrate_snapshot_hold', $1))::double precision";
    let seconds: f64 = client.query_one(SQL, &[&pipeline]).await.map_err(error)?.get(0);
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// An open boundary: a REPEATABLE READ transaction that holds the sources' locks.
pub struct Boundary {
    client: SqlSession,
    pub snapshot: Snapshot,
}

/// Why there is no boundary, or nothing more to be read behind it.
pub struct Refusal {
    /// The source that can't be locked or read; the others may be read without it.
    pub source: Option<u32>,
    pub error: Error,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { source: None, error }
    }
}

impl Boundary {
    /// Locks the sources and takes the snapshot. Retries lock timeouts until `deadline`, giving way in between.
    pub async fn open(
        client: SqlSession,
        sources: &[SourceSpec],
        deadline: Instant,
    ) -> Result<Boundary, Refusal> {
        loop {
            match lock(&client, sources).await {
                Ok(snapshot) => return Ok(Boundary { client, snapshot }),
                Err(refusal) => {
                    // An aborted transaction has to be ended before the next attempt; a broken session says so below.
                    let _ = client.batch_execute("rollback").await;
                    if refusal.error.kind() != ErrorKind::Contention || Instant::now() >= deadline {
                        return Err(refusal);
                    }
                    tracing::debug!(reason = %refusal.error, "a source is locked; trying again");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Reads one source and passes its rows on in chunks, at the pace that `pace` and `sink` allow. Returns the number of
    /// rows. Where the source can't be read (a damaged page, text without a UTF-8 form), the boundary is lost.
    pub async fn copy<F>(
        &self,
        source: &SourceSpec,
        pace: &mut Pace,
        mut sink: impl FnMut(Vec<Row>) -> F,
    ) -> Result<u64, Refusal>
    where
        F: Future<Output = Result<()>>,
    {
        let list: Vec<String> = source.columns.iter().map(|c| quote(&c.name)).collect();
        // A source without needed columns still counts its rows.
        let list = if list.is_empty() { "null".to_owned() } else { list.join(", ") };
        let sql = format!("copy (select {list} from only {}) to stdout", source.qualified());
        let during = |e: Error| of_source(explain(e, source), source);
        let stream = self.client.copy_out(&sql).await.map_err(|e| during(error(e)))?;
        pin_mut!(stream);
        let classes: Vec<TypeClass> = source.columns.iter().map(|c| c.class).collect();
        let mut decoder = CopyDecoder::new(classes);
        let (mut rows, mut held, mut total) = (Vec::with_capacity(CHUNK), 0, 0u64);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|e| during(error(e)))?;
            pace.spend(bytes.len()).await;
            // The server sends one row per message.
            rows.push(decoder.decode(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).map_err(during)?);
            held += bytes.len();
            if rows.len() >= CHUNK || held >= CHUNK_BYTES {
                total += rows.len() as u64;
                held = 0;
                sink(std::mem::replace(&mut rows, Vec::with_capacity(CHUNK))).await?;
            }
        }
        total += rows.len() as u64;
        sink(rows).await?;
        Ok(total)
    }

    /// Ends the transaction and returns the session.
    pub async fn close(self) -> Result<SqlSession> {
        self.client.batch_execute("commit").await.map_err(error)?;
        Ok(self.client)
    }
}

async fn lock(client: &Client, sources: &[SourceSpec]) -> Result<Snapshot, Refusal> {
    client.batch_execute("begin isolation level repeatable read read only").await.map_err(error)?;
    for source in sources {
        let sql = format!("lock table only {} in access share mode", source.qualified());
        let locked = client.batch_execute(&sql).await;
        locked.map_err(|e| of_source(explain(error(e), source), source))?;
    }
    for source in sources {
        same_table(client, &source.qualified(), source.oid)
            .await
            .map_err(|error| Refusal { source: Some(source.oid), error })?;
    }
    const SNAPSHOT: &str = "select pg_catalog.pg_is_in_recovery(), pg_catalog.pg_current_snapshot()::text";
    let row = client.query_one(SNAPSHOT, &[]).await.map_err(error)?;
    if row.get::<_, bool>(0) {
        return Err(Error::new(ErrorKind::ServerSetup, "the server is a standby")
            .with_hint("connect to the primary: a boundary can only be taken there")
            .into());
    }
    Ok(row.get::<_, String>(1).parse()?)
}

/// Checks that a locked name is still that table: its owner may have put a view in its place, whose functions would run
/// with the rights of whoever reads it.
///
/// # Errors
/// `Contention` when it is another relation now.
pub async fn same_table(client: &Client, qualified: &str, oid: u32) -> Result<()> {
    const SAME: &str = "select from pg_catalog.pg_class c
        where c.oid = pg_catalog.to_regclass($1)::oid and c.oid = $2 and c.relkind in ('r', 'p')";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&qualified, Type::TEXT), (&oid, Type::OID)];
    match client.query_typed_opt(SAME, &parameters).await.map_err(error)? {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::Contention, format!("{qualified} is another relation now"))),
    }
}

/// A session that ended says nothing about the source.
fn of_source(error: Error, source: &SourceSpec) -> Refusal {
    let alone = error.kind() != ErrorKind::Connection;
    Refusal { source: alone.then_some(source.oid), error }
}

fn explain(error: Error, source: &SourceSpec) -> Error {
    let hint = match (error.kind(), error.sqlstate()) {
        (ErrorKind::Privilege, _) if error.context().contains("row-level security") => format!(
            "row-level security would hide rows of {} from the sidecar: give its role BYPASSRLS or a policy, or use FULL",
            source.qualified()
        ),
        (ErrorKind::Privilege, _) => format!("grant select on {} to the sidecar's role", source.qualified()),
        _ => return error.during(format!("reading {}", source.qualified())),
    };
    error.during(format!("reading {}", source.qualified())).with_hint(hint)
}

/// After COPY: a position that the stream must pass before anything of the boundary is applied. The caller forces a
/// flush with a small commit so that the stream gets there on an idle server, too.
pub async fn insert_position(client: &Client) -> Result<u64> {
    let row = client.query_one("select pg_catalog.pg_current_wal_insert_lsn()", &[]).await.map_err(error)?;
    Ok(row.get::<_, PgLsn>(0).into())
}
