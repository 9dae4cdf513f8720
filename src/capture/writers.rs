//! Transactions that stand in a source's way: those that wrote to it before it joined the publication, and those that
//! lock it.
//!
//! Invariant: a table is loaded only when every transaction that wrote to it before it joined the publication has ended
//! (D5, hazard A11). Who they were is stored, so that neither a failed preparation nor a restart forgets them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// A transaction by its process and role, a prepared one by its name.
const WHO: &str = "coalesce('the prepared transaction ' || pg_catalog.quote_literal(x.gid),
        'process ' || a.pid || ' (' || a.usename || coalesce(', ' || nullif(a.application_name, ''), '') || ')',
        'a process that is gone')
    from held l
    left join pg_catalog.pg_stat_activity a on a.pid = l.pid
    left join pg_catalog.pg_locks i on l.pid is null and i.locktype = 'transactionid' and i.granted
          and i.virtualtransaction = l.virtualtransaction and i.pid is null
    left join pg_catalog.pg_prepared_xacts x on x.transaction = i.transactionid";

const WRITE_LOCKS: &str =
    "('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
    'ExclusiveLock', 'AccessExclusiveLock')";

/// Waits until the earlier writers of these members of the publication have ended, for up to `patience`. Prepared
/// transactions count. `always`: tables whose present writers are waited for however long they are members.
///
/// Returns the tables that still have some, with an error that names them.
pub async fn wait(
    client: &Client,
    publication: &str,
    oids: &[u32],
    always: &[u32],
    patience: Duration,
) -> Result<BTreeMap<u32, Error>> {
    let deadline = Instant::now() + patience;
    let mut waited = look(client, publication, oids, always).await?;
    let mut pause = Duration::from_millis(2);
    while !waited.is_empty() {
        let left = left(client, &waited).await?;
        waited.retain(|(oid, writer, _)| left.iter().any(|(o, w)| o == oid && w == writer));
        if waited.is_empty() || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
    store(client, publication, oids, &waited).await?;
    let mut failed: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (oid, _, who) in waited {
        failed.entry(oid).or_default().push(who);
    }
    let mut errors = BTreeMap::new();
    for (oid, who) in failed {
        let name = name(client, oid).await?;
        let error = Error::new(
            ErrorKind::Contention,
            format!("{name} can't be read before its earlier writers have ended: {}", who.join(", ")),
        );
        errors.insert(oid, error.with_sqlstate("55P03").with_hint("commit or roll back; it is tried again"));
    }
    Ok(errors)
}

/// Name of a member in [`pgt_publication_members`](../../schema/001_catalog.sql), for a row `r` of
/// `pg_publication_rel`.
const MEMBER: &str = "pg_catalog.concat_ws('/', (select c.system_identifier from pg_catalog.pg_control_system() c),
    (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()), r.oid, r.xmin)";

/// Who has to be waited for: table, virtual transaction, description.
async fn look(
    client: &Client,
    publication: &str,
    oids: &[u32],
    always: &[u32],
) -> Result<Vec<(u32, String, String)>> {
    // A known member: those of its list. A new one, or one whose list is another server run's: all that write now.
    let sql = format!(
        "with member as (
            select r.prrelid, m.writers from pg_catalog.pg_publication_rel r
              join pg_catalog.pg_publication p on p.oid = r.prpubid
              left join pgtrickle.pgt_publication_members m on m.member = {MEMBER}
               and (m.writers = '{{}}' or m.server_start = pg_catalog.pg_postmaster_start_time())
             where p.pubname = $1 and r.prrelid = any($2::pg_catalog.oid[])),
        held as (
            select distinct l.relation, l.virtualtransaction, l.pid
              from pg_catalog.pg_locks l left join member m on m.prrelid = l.relation
             where l.locktype = 'relation' and l.granted and l.mode in {WRITE_LOCKS}
               and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
               and (l.relation = any($3::pg_catalog.oid[])
                    or m.prrelid is not null and (m.writers is null or l.virtualtransaction = any(m.writers))))
        select distinct l.relation, l.virtualtransaction, {WHO}"
    );
    let rows = client.query(&sql, &[&publication, &oids, &always]).await.map_err(error)?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
}

async fn left(client: &Client, waited: &[(u32, String, String)]) -> Result<Vec<(u32, String)>> {
    const SQL: &str = "select distinct relation, virtualtransaction from pg_catalog.pg_locks
        where locktype = 'relation' and relation = any($1::pg_catalog.oid[]) and virtualtransaction = any($2::text[])";
    let oids: Vec<u32> = waited.iter().map(|(oid, _, _)| *oid).collect();
    let writers: Vec<&str> = waited.iter().map(|(_, writer, _)| writer.as_str()).collect();
    let rows = client.query(SQL, &[&oids, &writers]).await.map_err(error)?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
}

/// Remembers who is left of the earlier writers, and forgets members that are none any more.
async fn store(
    client: &Client,
    publication: &str,
    oids: &[u32],
    left: &[(u32, String, String)],
) -> Result<()> {
    let store = format!(
        "insert into pgtrickle.pgt_publication_members (member, writers)
         select {MEMBER}, array(select w.writer
                from rows from (pg_catalog.unnest($3::pg_catalog.oid[]), pg_catalog.unnest($4::text[])) w (source, writer)
               where w.source = r.prrelid)
           from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
          where p.pubname = $1 and r.prrelid = any($2::pg_catalog.oid[])
         on conflict (member) do update set writers = excluded.writers, server_start = excluded.server_start
          where (pgt_publication_members.writers, pgt_publication_members.server_start)
             is distinct from (excluded.writers, excluded.server_start)"
    );
    let forget = format!(
        "delete from pgtrickle.pgt_publication_members m
          where not exists (select from pg_catalog.pg_publication_rel r where {MEMBER} = m.member)"
    );
    let sources: Vec<u32> = left.iter().map(|(oid, _, _)| *oid).collect();
    let writers: Vec<&str> = left.iter().map(|(_, writer, _)| writer.as_str()).collect();
    client.execute(&store, &[&publication, &oids, &sources, &writers]).await.map_err(error)?;
    client.execute(&forget, &[]).await.map_err(error)?;
    Ok(())
}

/// Members that nothing reads yet because their earlier writers have not ended: they stay published, or the wait would
/// begin anew, with the writers of that time.
pub async fn awaited(client: &Client, publication: &str) -> Result<Vec<u32>> {
    let sql = format!(
        "select r.prrelid from pg_catalog.pg_publication_rel r
           join pg_catalog.pg_publication p on p.oid = r.prpubid
           join pgtrickle.pgt_publication_members m on m.member = {MEMBER}
          where p.pubname = $1 and m.writers <> '{{}}'
            and exists (select from pgtrickle.pgt_dependencies d join pgtrickle.pgt_stream_tables s using (pgt_id)
                         where d.source = r.prrelid and s.status in ('INITIALIZING', 'ERROR'))"
    );
    let rows = client.query(&sql, &[&publication]).await.map_err(error)?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// The error for the first locked one of the tables that a stream table is known to read; `None` if none is locked.
pub async fn locked_source(client: &Client, view: ViewId, modes: &[&str]) -> Result<Option<Error>> {
    const SQL: &str = "select l.relation from pg_catalog.pg_locks l
        where l.locktype = 'relation' and l.mode = any($2::text[]) and l.pid is distinct from pg_catalog.pg_backend_pid()
          and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
          and l.relation in (select d.source from pgtrickle.pgt_dependencies d where d.pgt_id = $1)
        order by 1 limit 1";
    match client.query_opt(SQL, &[&view, &modes]).await.map_err(error)? {
        Some(row) => locked(client, row.get(0), modes).await.map(Some),
        None => Ok(None),
    }
}

/// The error for a table that is locked: it names who holds or waits for a lock of `modes` on it.
pub async fn locked(client: &Client, oid: u32, modes: &[&str]) -> Result<Error> {
    let sql = format!(
        "with held as (
            select distinct l.relation, l.virtualtransaction, l.pid from pg_catalog.pg_locks l
             where l.locktype = 'relation' and l.relation = $1 and l.mode = any($2::text[])
               and l.pid is distinct from pg_catalog.pg_backend_pid()
               and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()))
        select {WHO}"
    );
    let rows = client.query(&sql, &[&oid, &modes]).await.map_err(error)?;
    let who: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    let name = name(client, oid).await?;
    let by = if who.is_empty() { String::new() } else { format!(" by {}", who.join(", ")) };
    Ok(Error::new(ErrorKind::Contention, format!("{name} is locked{by}"))
        .with_sqlstate("55P03")
        .with_hint("end that transaction; it is tried again"))
}

async fn name(client: &Client, oid: u32) -> Result<String> {
    const SQL: &str = "select pg_catalog.format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1";
    let row = client.query_opt(SQL, &[&oid]).await.map_err(error)?;
    Ok(row.map_or_else(|| "a dropped table".to_owned(), |r| r.get(0)))
}
