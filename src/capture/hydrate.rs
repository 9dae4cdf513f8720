//! Loading sources at a boundary (D5).
//!
//! Order is everything: lock the tables, only then take the snapshot, only then COPY. A snapshot taken before the locks
//! loses whole tables to a concurrent TRUNCATE or rewrite (hazard A1). On the primary only (A13).

use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::source::{SourceSpec, quote};
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::Snapshot;
use crate::postgres::sessions::error;
use crate::row::copy::CopyDecoder;
use crate::row::{Row, TypeClass};

/// Rows handed over at once.
const CHUNK: usize = 8_192;

/// An open boundary: a REPEATABLE READ transaction that holds the sources' locks.
pub struct Boundary {
    client: Client,
    pub snapshot: Snapshot,
}

/// Why there is no boundary.
pub struct Refusal {
    /// The source that can't be locked; the others may be read without it.
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
        client: Client,
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

    /// Reads one source and passes its rows on in chunks. Returns the number of rows.
    pub async fn copy(
        &self,
        source: &SourceSpec,
        mut sink: impl FnMut(Vec<Row>) -> Result<()>,
    ) -> Result<u64> {
        let list: Vec<String> = source.columns.iter().map(|c| quote(&c.name)).collect();
        // A source without needed columns still counts its rows.
        let list = if list.is_empty() { "null".to_owned() } else { list.join(", ") };
        let sql = format!("copy (select {list} from only {}) to stdout", source.qualified());
        let during = |e: Error| explain(e, source);
        let stream = self.client.copy_out(&sql).await.map_err(|e| during(error(e)))?;
        pin_mut!(stream);
        let classes: Vec<TypeClass> = source.columns.iter().map(|c| c.class).collect();
        let mut decoder = CopyDecoder::new(classes);
        let (mut rows, mut total) = (Vec::with_capacity(CHUNK), 0u64);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|e| during(error(e)))?;
            // The server sends one row per message.
            rows.push(decoder.decode(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).map_err(during)?);
            if rows.len() >= CHUNK {
                total += rows.len() as u64;
                sink(std::mem::replace(&mut rows, Vec::with_capacity(CHUNK)))?;
            }
        }
        total += rows.len() as u64;
        sink(rows)?;
        Ok(total)
    }

    /// Ends the transaction and returns the session.
    pub async fn close(self) -> Result<Client> {
        self.client.batch_execute("commit").await.map_err(error)?;
        Ok(self.client)
    }
}

async fn lock(client: &Client, sources: &[SourceSpec]) -> Result<Snapshot, Refusal> {
    client.batch_execute("begin isolation level repeatable read read only").await.map_err(error)?;
    for source in sources {
        let sql = format!("lock table only {} in access share mode", source.qualified());
        client.batch_execute(&sql).await.map_err(|e| {
            let error = explain(error(e), source);
            let alone = error.kind() != ErrorKind::Connection;
            Refusal { source: alone.then_some(source.oid), error }
        })?;
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
