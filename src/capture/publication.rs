//! The pipeline's publication: exactly the needed tables, and the wait that makes joining it safe.

use std::time::Duration;

use tokio_postgres::Client;

use super::source::SourceSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;

/// Makes sure that the publication exists and holds the tables `wanted` (more may be in it: tables leave it only when
/// nothing reads them, see [`set_tables`]). Returns the tables that were added.
pub async fn add_tables(client: &Client, publication: &str, wanted: &[SourceSpec]) -> Result<Vec<u32>> {
    let present = tables(client, publication).await?;
    let missing: Vec<&SourceSpec> = wanted.iter().filter(|s| !present.contains(&s.oid)).collect();
    if missing.is_empty() && exists(client, publication).await? {
        return Ok(Vec::new());
    }
    let mut all = present;
    all.extend(missing.iter().map(|s| s.oid));
    set_tables(client, publication, &all).await?;
    Ok(missing.iter().map(|s| s.oid).collect())
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

/// OIDs of the tables that the publication publishes whole: a row filter, a column list or a reduced set of operations
/// would drop changes without a word.
pub async fn tables(client: &Client, publication: &str) -> Result<Vec<u32>> {
    const SQL: &str = "select r.prrelid from pg_catalog.pg_publication_rel r
        join pg_catalog.pg_publication p on p.oid = r.prpubid
        where p.pubname = $1 and p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and not p.pubviaroot
          and pg_catalog.to_jsonb(r) ->> 'prqual' is null and pg_catalog.to_jsonb(r) ->> 'prattrs' is null";
    let rows = client.query(SQL, &[&publication]).await.map_err(error)?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Makes the publication hold exactly `oids`: directly where our role may (it owns publication and tables), else
/// through `pgtrickle.publication_sync`, which the installing role owns.
pub async fn set_tables(client: &Client, publication: &str, oids: &[u32]) -> Result<()> {
    // A table that is no source any more (left by an earlier life) leaves by not being named; the function would refuse it.
    const SQL: &str = "select pgtrickle.publication_sync($1, array(select o::pg_catalog.regclass
        from pg_catalog.unnest($2::pg_catalog.oid[]) o where exists (select from pg_catalog.pg_class c where c.oid = o)
         and (exists (select from pgtrickle.pgt_dependencies d where d.source = o)
           or exists (select from pgtrickle.pgt_stream_tables s where s.pgt_relid = o))))";
    let mut attempt = 0;
    loop {
        match client.execute(SQL, &[&publication, &oids]).await.map_err(error) {
            Ok(_) => return Ok(()),
            // ALTER PUBLICATION gives way to VACUUM, CREATE INDEX CONCURRENTLY and the like.
            Err(e) if e.kind() == ErrorKind::Contention && attempt < 100 => attempt += 1,
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

/// Waits until no transaction is left that held a write lock on one of the tables when this was called: what it wrote
/// before the table joined the publication is never sent (D5, hazard A11). Prepared transactions count.
pub async fn wait_for_writers(client: &Client, oids: &[u32]) -> Result<()> {
    const HOLDERS: &str = "select distinct l.virtualtransaction, coalesce(a.pid, 0)::text || ' ' || coalesce(a.application_name, 'prepared transaction')
        from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'relation' and l.relation = any($1::pg_catalog.oid[]) and l.granted
          and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
          and l.mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                         'ExclusiveLock', 'AccessExclusiveLock')";
    const LEFT: &str = "select count(distinct virtualtransaction) from pg_catalog.pg_locks
        where locktype = 'relation' and relation = any($1::pg_catalog.oid[]) and virtualtransaction = any($2::text[])";
    let holders = client.query(HOLDERS, &[&oids]).await.map_err(error)?;
    let waited: Vec<String> = holders.iter().map(|r| r.get(0)).collect();
    let mut announced = false;
    let mut pause = Duration::from_millis(2);
    while !waited.is_empty() {
        let left: i64 = client.query_one(LEFT, &[&oids, &waited]).await.map_err(error)?.get(0);
        if left == 0 {
            return Ok(());
        }
        if !announced && pause > Duration::from_millis(500) {
            announced = true;
            let who: Vec<String> = holders.iter().map(|r| r.get(1)).collect();
            tracing::info!(transactions = %who.join(", "), "waiting for open transactions that write to a new source");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    Ok(())
}
