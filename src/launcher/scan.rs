//! What databases there are, and which of them have the schema.
//!
//! Invariant: every session made here is closed before the function returns; nothing is written.

use std::time::Duration;

use futures_util::StreamExt;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{Purpose, Target, error};

/// Databases that are looked at at the same time.
const AT_ONCE: usize = 4;
/// A database that answers more slowly is skipped this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// A row of `pg_database`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Database {
    pub oid: u32,
    pub name: String,
}

/// The databases that accept connections.
pub(super) async fn databases(target: &Target) -> Result<Vec<Database>> {
    const SQL: &str =
        "select oid, datname::text from pg_catalog.pg_database where datallowconn and not datistemplate
        order by datname";
    let read = async {
        let client = target.connect(Purpose::Tool).await?;
        let rows = client.query(SQL, &[]).await.map_err(error)?;
        Ok(rows.iter().map(|r| Database { oid: r.get(0), name: r.get(1) }).collect())
    };
    in_time(read).await
}

/// Whether each of them has the schema and wants to be served.
pub(super) async fn look(
    target: &Target,
    pipeline: &str,
    databases: Vec<Database>,
) -> Vec<(Database, Result<bool>)> {
    let one = |database: Database| async move {
        let outcome = in_time(is_wanted(&target.with_database(&database.name), pipeline)).await;
        (database, outcome)
    };
    futures_util::stream::iter(databases).map(one).buffer_unordered(AT_ONCE).collect().await
}

async fn is_wanted(target: &Target, pipeline: &str) -> Result<bool> {
    // Without rights on it the supervisor says so, with a hint.
    const SCHEMA: &str = "select coalesce(pg_catalog.has_table_privilege(c.oid, 'SELECT'), false)
          and pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'pgtrickle' and c.relname = 'pgt_pipelines'";
    const DETACHED: &str = "select pg_catalog.to_jsonb(p) ->> 'detached_at' is not null
        from pgtrickle.pgt_pipelines p where p.pipeline = $1";
    let client = target.connect(Purpose::Tool).await?;
    match client.query_opt(SCHEMA, &[]).await.map_err(error)?.map(|r| r.get::<_, bool>(0)) {
        None => Ok(false),
        Some(false) => Ok(true),
        Some(true) => {
            let row = client.query_opt(DETACHED, &[&pipeline]).await.map_err(error)?;
            // A pipeline of that name is not everybody's.
            Ok(row.is_some_and(|r| !r.get::<_, bool>(0)))
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(
            ErrorKind::Connection,
            format!("the database did not answer within {} s", PATIENCE.as_secs()),
        )),
    }
}
