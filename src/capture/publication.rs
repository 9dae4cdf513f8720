//! The pipeline's publication: exactly the needed tables, and the wait that makes joining it safe.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::source::SourceSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{briefly, error};

/// How long a change of the publication gives way to VACUUM, CREATE INDEX CONCURRENTLY and the like.
const PATIENCE: Duration = Duration::from_secs(500);

/// Makes sure that the publication exists and holds the tables `wanted` (more may be in it: tables leave it only when
/// nothing reads them, see [`set_tables`]).
///
/// Errors: `Contention` if a table is locked for longer than `patience` and the session's lock timeout.
pub async fn add_tables(
    client: &Client,
    publication: &str,
    wanted: &[SourceSpec],
    patience: Duration,
) -> Result<()> {
    let present = tables(client, publication).await?;
    let missing: Vec<&SourceSpec> = wanted.iter().filter(|s| !present.contains(&s.oid)).collect();
    if missing.is_empty() && exists(client, publication).await? {
        return Ok(());
    }
    let mut all = present;
    all.extend(missing.iter().map(|s| s.oid));
    change(client, publication, &all, patience).await
}

/// OID of the publication: a new one means that the stream has a hole.
pub async fn oid(client: &Client, publication: &str) -> Result<Option<u32>> {
    const SQL: &str = "select oid from pg_catalog.pg_publication where pubname = $1";
    Ok(client.query_opt(SQL, &[&publication]).await.map_err(error)?.map(|r| r.get(0)))
}

/// Whether there is such a publication.
pub async fn exists(client: &Client, publication: &str) -> Result<bool> {
    const SQL: &str = "select exists (select from pg_catalog.pg_publication where pubname = $1)";
    Ok(client.query_one(SQL, &[&publication]).await.map_err(error)?.get(0))
}

/// OIDs of the tables that the publication publishes whole.
pub async fn tables(client: &Client, publication: &str) -> Result<Vec<u32>> {
    Ok(members(client, publication).await?.into_keys().collect())
}

/// The tables that the publication publishes whole (a row filter, a column list or a reduced set of operations would
/// drop changes without a word), each with the OID of its membership: another one means that it was out for a while.
pub async fn members(client: &Client, publication: &str) -> Result<BTreeMap<u32, u32>> {
    const SQL: &str = "select r.prrelid, r.oid from pg_catalog.pg_publication_rel r
        join pg_catalog.pg_publication p on p.oid = r.prpubid
        where p.pubname = $1 and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and not p.pubviaroot
          and pg_catalog.to_jsonb(r) ->> 'prqual' is null and pg_catalog.to_jsonb(r) ->> 'prattrs' is null";
    let rows = client.query(SQL, &[&publication]).await.map_err(error)?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
}

/// Makes the publication hold exactly `oids`: directly where our role may (it owns publication and tables), else
/// through `pgtrickle.publication_sync`, which the installing role owns.
pub async fn set_tables(client: &Client, publication: &str, oids: &[u32]) -> Result<()> {
    change(client, publication, oids, PATIENCE).await
}

/// As [`set_tables`] for tables that may leave: does not wait for anybody's lock. False if it has to be tried again.
pub async fn shrink(client: &Client, publication: &str, oids: &[u32]) -> Result<bool> {
    match briefly(client, change(client, publication, oids, Duration::ZERO)).await {
        Err(e) if e.kind() == ErrorKind::Contention => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

async fn change(client: &Client, publication: &str, oids: &[u32], patience: Duration) -> Result<()> {
    // A table that is no source any more (left by an earlier life) leaves by not being named; the function would refuse it.
    const SQL: &str = "select pgtrickle.publication_sync($1, array(select o::pg_catalog.regclass
        from pg_catalog.unnest($2::pg_catalog.oid[]) o where exists (select from pg_catalog.pg_class c where c.oid = o)
         and (exists (select from pgtrickle.pgt_dependencies d where d.source = o)
           or exists (select from pgtrickle.pgt_stream_tables s where s.pgt_relid = o))))";
    let deadline = Instant::now() + patience;
    loop {
        match client.execute(SQL, &[&publication, &oids]).await.map_err(error) {
            Ok(_) => return Ok(()),
            // ALTER PUBLICATION gives way to VACUUM, CREATE INDEX CONCURRENTLY and the like.
            Err(e) if e.kind() == ErrorKind::Contention && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) if e.kind() == ErrorKind::Privilege => {
                let state = e.sqlstate().unwrap_or("42501").to_owned();
                return Err(Error::new(
                    ErrorKind::Privilege,
                    format!("the publication {publication} can't be changed: {}", e.context()),
                )
                .with_sqlstate(state)
                .with_hint("let a superuser (or the owner of all sources) run `pgtrickle init --sidecar-role <this role>`"));
            }
            Err(e) => return Err(e.during("changing the publication")),
        }
    }
}

/// Drops the publication.
pub async fn remove(client: &Client, publication: &str) -> Result<()> {
    const SQL: &str = "select pgtrickle.publication_sync($1, null)";
    client.execute(SQL, &[&publication]).await.map_err(error)?;
    Ok(())
}
