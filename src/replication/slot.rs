//! The slot as the server shows it, and its creation.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;

/// One row of `pg_replication_slots`, as far as the decision to stream needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active_pid: Option<i32>,
    pub wal_status: Option<String>,
    pub restart: Option<u64>,
    pub confirmed: Option<u64>,
    /// 17+: why the server gave the slot up.
    pub invalidation: Option<String>,
    pub conflicting: bool,
    /// It came from the primary by slot synchronization.
    pub synced: bool,
    pub failover: bool,
}

/// Reads a slot by name.
pub async fn read(client: &Client, name: &str) -> Result<Option<SlotState>> {
    const SQL: &str =
        "select plugin::text, database::text, active_pid, wal_status, restart_lsn, confirmed_flush_lsn,
            pg_catalog.to_jsonb(s) ->> 'invalidation_reason',
            coalesce((pg_catalog.to_jsonb(s) ->> 'conflicting')::bool, false),
            coalesce((pg_catalog.to_jsonb(s) ->> 'synced')::bool, false),
            coalesce((pg_catalog.to_jsonb(s) ->> 'failover')::bool, false)
        from pg_catalog.pg_replication_slots s where slot_name = $1";
    let row = client.query_opt(SQL, &[&name]).await.map_err(error)?;
    Ok(row.map(|row| SlotState {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        wal_status: row.get(3),
        restart: row.get::<_, Option<PgLsn>>(4).map(u64::from),
        confirmed: row.get::<_, Option<PgLsn>>(5).map(u64::from),
        invalidation: row.get(6),
        conflicting: row.get(7),
        synced: row.get(8),
        failover: row.get(9),
    }))
}

/// Whether a walsender still reads from the slot, though it sends nothing: it decodes a large transaction on tables that are
/// not published, or what was confirmed already. The server ends one whose client has gone after `wal_sender_timeout`;
/// where that is off, the moment of our last reply tells (null without the right to see it). `application`: that of our
/// replication session.
pub async fn is_being_read(client: &Client, name: &str, application: &str) -> Result<bool> {
    const SQL: &str = "select a.application_name = $2 and (
                (select g.setting::bigint > 0 from pg_catalog.pg_settings g where g.name = 'wal_sender_timeout')
                or coalesce(r.reply_time > pg_catalog.clock_timestamp() - interval '1 min', false))
        from pg_catalog.pg_replication_slots s
        join pg_catalog.pg_stat_activity a on a.pid = s.active_pid
        left join pg_catalog.pg_stat_replication r on r.pid = s.active_pid where s.slot_name = $1";
    let row = client.query_opt(SQL, &[&name, &application]).await.map_err(error)?;
    Ok(row.is_some_and(|row| row.get::<_, Option<bool>>(0).unwrap_or_default()))
}

/// Why our walsender would count as a synchronous standby: then a commit waits until we have confirmed it, which we can't
/// before it is visible, so all writes of the server would stand still. `*` means every walsender.
pub async fn counts_as_standby(client: &Client) -> Result<Option<String>> {
    const SQL: &str = "select pg_catalog.current_setting('synchronous_standby_names') where exists (
        select from pg_catalog.regexp_split_to_table(pg_catalog.current_setting('synchronous_standby_names'), '[\\s,()]+') n
         where pg_catalog.btrim(n, '\"') = '*' or pg_catalog.lower(pg_catalog.btrim(n, '\"')) like 'pgtrickle:%')";
    let row = client.query_opt(SQL, &[]).await.map_err(error)?;
    Ok(row.map(|row| {
        let names: &str = row.get(0);
        format!("synchronous_standby_names ({names}) takes every walsender for a synchronous standby; name the standbys")
    }))
}

/// Creates the slot (pgoutput; a failover slot on 17+) and returns its start position.
///
/// Waits for transactions that are open when it starts. Errors: no right (42501), no free slot (53400), wal_level
/// (55000), each with what to do.
pub async fn create(client: &Client, name: &str, major: u32) -> Result<u64> {
    let sql = match major {
        17.. => {
            "select lsn from pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)"
        }
        _ => "select lsn from pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')",
    };
    // It waits for transactions of the whole cluster and blocks nobody meanwhile: starting over would only wait longer.
    client.batch_execute("set lock_timeout = 0").await.map_err(error)?;
    // Where this process ends meanwhile, the server's does too, and the half-made slot goes. Not on every platform.
    if let Err(e) = client.batch_execute("set client_connection_check_interval = '1s'").await.map_err(error)
        && e.kind() == ErrorKind::Connection
    {
        return Err(e);
    }
    let created = client.query_one(sql, &[&name]).await.map_err(|e| explain(error(e), name));
    client.batch_execute("set lock_timeout = '5s'").await.map_err(error)?;
    let row = created?;
    Ok(row.get::<_, PgLsn>(0).into())
}

fn explain(error: Error, slot: &str) -> Error {
    let hint = match error.sqlstate() {
        Some("53400") => "raise max_replication_slots (needs a restart) or drop a slot that nobody uses",
        Some("55000") => "set wal_level = logical and restart the server",
        Some("42501") => "grant the attribute: alter role ... replication (on RDS: grant rds_replication)",
        _ => return error.during(format!("creating the replication slot {slot}")),
    };
    let kind = match error.sqlstate() {
        Some("42501") => ErrorKind::Privilege,
        _ => ErrorKind::ServerSetup,
    };
    let state = error.sqlstate().unwrap_or("55000").to_owned();
    Error::new(kind, format!("the replication slot {slot} can't be created: {}", error.context()))
        .with_sqlstate(state)
        .with_hint(hint)
}

/// Drops a slot that is ours and inactive; a missing slot is fine.
pub async fn drop_ours(client: &Client, name: &str) -> Result<()> {
    const SQL: &str = "select pg_catalog.pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots
        where slot_name = $1 and not active and database = pg_catalog.current_database() and plugin = 'pgoutput'";
    match client.execute(SQL, &[&name]).await.map_err(error) {
        // Somebody else was quicker.
        Err(e) if e.sqlstate() != Some("42704") => Err(e),
        _ => Ok(()),
    }
}

/// The backend that uses the slot, for the message of a refusal: pid, application name, client address.
pub async fn holder(client: &Client, name: &str) -> Result<Option<String>> {
    const SQL: &str = "select s.active_pid, r.application_name, r.client_addr::text
        from pg_catalog.pg_replication_slots s left join pg_catalog.pg_stat_replication r on r.pid = s.active_pid
        where s.slot_name = $1 and s.active";
    let row = client.query_opt(SQL, &[&name]).await.map_err(error)?;
    Ok(row.map(|row| {
        let pid: Option<i32> = row.get(0);
        let (name, address): (Option<String>, Option<String>) = (row.get(1), row.get(2));
        format!(
            "pid {} ({}) from {}",
            pid.unwrap_or_default(),
            name.unwrap_or_else(|| "unknown application".to_owned()),
            address.unwrap_or_else(|| "a local socket".to_owned())
        )
    }))
}
