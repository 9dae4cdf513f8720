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

/// The pipelines of each that want to be served (`only` this one, if it is named); none without the schema.
pub(super) async fn look(
    target: &Target,
    only: Option<&str>,
    databases: Vec<Database>,
) -> Vec<(Database, Result<Vec<String>>)> {
    let one = |database: Database| async move {
        let outcome = in_time(wanted(&target.with_database(&database.name), only)).await;
        (database, outcome)
    };
    futures_util::stream::iter(databases).map(one).buffer_unordered(AT_ONCE).collect().await
}

async fn wanted(target: &Target, only: Option<&str>) -> Result<Vec<String>> {
    // Without rights on it the supervisor says so, with a hint.
    const SCHEMA: &str = "select coalesce(pg_catalog.has_table_privilege(c.oid, 'SELECT'), false)
          and pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'pgtrickle' and c.relname = 'pgt_pipelines'";
    const PIPELINES: &str = "select p.pipeline from pgtrickle.pgt_pipelines p
        where p.pipeline = coalesce($1, p.pipeline) and pg_catalog.to_jsonb(p) ->> 'detached_at' is null
        order by p.pipeline";
    let client = target.connect(Purpose::Tool).await?;
    match client.query_opt(SCHEMA, &[]).await.map_err(error)?.map(|r| r.get::<_, bool>(0)) {
        None => Ok(Vec::new()),
        Some(false) => Ok(vec![only.unwrap_or("main").to_owned()]),
        Some(true) => {
            let rows = client.query(PIPELINES, &[&only]).await.map_err(error)?;
            Ok(rows.iter().map(|r| r.get(0)).collect())
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
