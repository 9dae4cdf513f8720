//! Reading and writing catalog rows: one function per statement.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use tokio_postgres::types::{Json, PgLsn, ToSql, Type};
use tokio_postgres::{Client, GenericClient};

use crate::analyzer::facts::StreamTable;
use crate::analyzer::verify::work_sql;
use crate::catalog::behind::Complete;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Plan, ViewId};
use crate::postgres::sessions::{briefly, error};

/// A row of `pgt_stream_tables`, as far as the sidecar needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTableRow {
    pub view: ViewId,
    pub schema: String,
    pub name: String,
    /// OID of the storage table; `None` if it was dropped behind our back.
    pub relation: Option<u32>,
    /// OID of the defining view.
    pub query_view: Option<u32>,
    pub schedule: String,
    /// AUTO, DIFFERENTIAL or FULL, as asked for.
    pub requested_mode: String,
    /// DIFFERENTIAL or FULL, as decided.
    pub mode: String,
    pub status: String,
    pub key_columns: Option<Vec<String>>,
    /// Raised by every alteration.
    pub version: i64,
    pub errors: i32,
    /// It was kept incrementally before and taken out (then it has a frontier of its own): its next preparation is no
    /// first one.
    pub was_live: bool,
    /// The storage table has another name or schema than its functions know.
    pub renamed: bool,
    /// MB of state that it may hold, if it or the database says so; rows that its joins may make in one step.
    pub state_limit_mb: Option<i64>,
    pub join_limit_rows: Option<i64>,
}

impl StreamTableRow {
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub fn is_suspended(&self) -> bool {
        self.status == "SUSPENDED"
    }
}

/// All stream tables of a pipeline; one that another pipeline has not let go of yet is not its own.
pub async fn stream_tables(client: &Client, pipeline: &str) -> Result<Vec<StreamTableRow>> {
    const SQL: &str = "select s.pgt_id, coalesce(n.nspname::text, s.pgt_schema), coalesce(c.relname::text, s.pgt_name), c.oid, v.oid, s.schedule, s.requested_refresh_mode,
            s.refresh_mode, s.status, s.key_columns, s.config_version, s.consecutive_errors,
            s.frontier is not null, c.oid is not null and (n.nspname, c.relname) is distinct from (s.pgt_schema, s.pgt_name),
            coalesce(s.state_limit_mb, (select pgtrickle._limit_setting('state_limit_mb', $1))),
            (select pgtrickle._limit_setting('join_limit_rows', $1))
        from pgtrickle.pgt_stream_tables s
        left join pg_catalog.pg_class c on c.oid = s.pgt_relid left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        left join pg_catalog.pg_class v on v.oid = s.query_view
        where s.pipeline = $1 and s.moving_from is null order by s.pgt_id";
    let rows = client.query(SQL, &[&pipeline]).await.map_err(error)?;
    let row = |r: &tokio_postgres::Row| StreamTableRow {
        view: r.get(0),
        schema: r.get(1),
        name: r.get(2),
        relation: r.get(3),
        query_view: r.get(4),
        schedule: r.get(5),
        requested_mode: r.get(6),
        mode: r.get(7),
        status: r.get(8),
        key_columns: r.get(9),
        version: r.get(10),
        errors: r.get(11),
        was_live: r.get(12),
        renamed: r.get(13),
        state_limit_mb: r.get(14),
        join_limit_rows: r.get(15),
    };
    Ok(rows.iter().map(row).collect())
}

/// The stream tables by the OID of their storage, for the analyzer: incremental ones are read through the dataflow.
pub fn as_sources(
    rows: &[StreamTableRow],
    incremental: impl Fn(&StreamTableRow) -> bool,
) -> HashMap<u32, StreamTable> {
    rows.iter()
        .filter_map(|row| {
            Some((row.relation?, StreamTable { view: row.view, incremental: incremental(row) }))
        })
        .collect()
}

/// Stream tables that other pipelines maintain: they are read as they are stored.
pub async fn foreign_stream_tables(client: &Client, pipeline: &str) -> Result<HashMap<u32, StreamTable>> {
    const SQL: &str = "select s.pgt_relid::pg_catalog.oid, s.pgt_id from pgtrickle.pgt_stream_tables s
        join pg_catalog.pg_class c on c.oid = s.pgt_relid
        where s.pipeline <> $1 or s.moving_from is not null";
    let rows = client.query(SQL, &[&pipeline]).await.map_err(error)?;
    Ok(rows.iter().map(|r| (r.get(0), StreamTable { view: r.get(1), incremental: false })).collect())
}

/// Identity of a pipeline, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineRow {
    pub install_id: String,
    pub generation: i64,
    pub system_identifier: Option<String>,
    pub timeline: Option<i32>,
    pub database_oid: Option<i64>,
    pub database_name: Option<String>,
    pub slot_name: Option<String>,
    pub frontier: Option<u64>,
    pub data_timestamp: Option<DateTime<Utc>>,
    /// The last life received changes by polling.
    pub polled: bool,
    pub publication_oid: Option<u32>,
    /// The slot was given up and has not been made again.
    pub shed: bool,
}

pub async fn pipeline(client: &Client, name: &str) -> Result<PipelineRow> {
    const SQL: &str =
        "select install_id::text, generation, system_identifier, timeline, database_oid, slot_name, frontier,
            database_name, delivery = 'poll', publication_oid, delivery = 'slot' and slot_shed_at > started_at,
            data_timestamp
        from pgtrickle.pgt_pipelines where pipeline = $1";
    let row = client.query_opt(SQL, &[&name]).await.map_err(error)?.ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("there is no pipeline {name} in this database"))
            .with_hint("use the pipeline main, or make one: pgtrickle pipelines create <name>; pgtrickle pipelines lists them")
    })?;
    Ok(PipelineRow {
        install_id: row.get(0),
        generation: row.get(1),
        system_identifier: row.get(2),
        timeline: row.get(3),
        database_oid: row.get(4),
        slot_name: row.get(5),
        frontier: row.get::<_, Option<PgLsn>>(6).map(u64::from),
        database_name: row.get(7),
        polled: row.get::<_, Option<bool>>(8).unwrap_or(false),
        publication_oid: row.get::<_, Option<i64>>(9).and_then(|oid| u32::try_from(oid).ok()),
        shed: row.get::<_, Option<bool>>(10).unwrap_or(false),
        data_timestamp: row.get(11),
    })
}

/// Takes the pipeline over: raises the generation (which fences off every earlier writer) and stores who we are.
pub async fn take_over(
    client: &Client,
    name: &str,
    identity: &Identity,
    names: &crate::replication::PipelineNames,
    sidecar: &str,
) -> Result<i64> {
    const SQL: &str = "update pgtrickle.pgt_pipelines set generation = generation + 1, system_identifier = $2, timeline = $3,
            database_oid = $4, database_name = pg_catalog.current_database(), slot_name = $5, publication_name = $6,
            postmaster_start_time = pg_catalog.pg_postmaster_start_time(), sidecar = $7,
            started_at = pg_catalog.clock_timestamp(), heartbeat_at = pg_catalog.clock_timestamp()
        where pipeline = $1 returning generation";
    let (slot, publication) = (names.slot(), names.publication());
    let oid = i64::from(identity.database_oid);
    let row = client
        .query_one(
            SQL,
            &[&name, &identity.system_identifier, &identity.timeline, &oid, &slot, &publication, &sidecar],
        )
        .await
        .map_err(error)?;
    Ok(row.get(0))
}

/// Sets the frontier of a pipeline whose slot was made anew.
pub async fn reset_frontier(client: &Client, name: &str, frontier: u64) -> Result<()> {
    const SQL: &str = "update pgtrickle.pgt_pipelines set frontier = $2 where pipeline = $1";
    client.execute(SQL, &[&name, &PgLsn::from(frontier)]).await.map_err(error)?;
    Ok(())
}

/// Gives the pipeline a new install id: the stored one belongs to the original of this copy.
pub async fn new_install(client: &Client, name: &str) -> Result<String> {
    const SQL: &str =
        "update pgtrickle.pgt_pipelines set install_id = pg_catalog.gen_random_uuid() where pipeline = $1
        returning install_id::text";
    Ok(client.query_one(SQL, &[&name]).await.map_err(error)?.get(0))
}

/// Stores how changes are delivered from now on, and the bounds that capture triggers look at.
pub async fn set_delivery(
    client: &Client,
    name: &str,
    delivery: &str,
    reason: Option<&str>,
    publication: Option<u32>,
) -> Result<()> {
    const SQL: &str =
        "update pgtrickle.pgt_pipelines set delivery = $2, delivery_reason = $3, publication_oid = $4,
            heartbeat_at = pg_catalog.clock_timestamp(),
            buffer_limit = pgtrickle._setting_mb('buffer_limit_mb', $1),
            capture_patience = pgtrickle._setting_interval('capture_patience', $1)
        where pipeline = $1";
    let publication = publication.map(i64::from);
    client.execute(SQL, &[&name, &delivery, &reason, &publication]).await.map_err(error)?;
    Ok(())
}

/// Marks that the slot is given up because it retained too much WAL. False: an apply under way holds the row; whoever is
/// right to give the slot up comes back at the next look.
pub async fn shed_slot(client: &Client, name: &str) -> Result<bool> {
    const SQL: &str = "update pgtrickle.pgt_pipelines p set slot_shed_at = pg_catalog.clock_timestamp()
        from (select t.pipeline from pgtrickle.pgt_pipelines t where t.pipeline = $1 for update skip locked) free
        where p.pipeline = free.pipeline";
    Ok(client.execute(SQL, &[&name]).await.map_err(error)? == 1)
}

/// A setting of a pipeline: its own in `pgtrickle.settings`, else the database's there, else `pg_trickle.<name>`.
pub async fn setting(client: &Client, pipeline: &str, name: &str) -> Result<Option<String>> {
    let row = client.query_one("select pgtrickle._setting($1, $2)", &[&name, &pipeline]).await;
    Ok(row.map_err(error)?.get(0))
}

/// Names of the tables whose changes the pipeline's incremental stream tables need.
pub async fn captured_names(client: &Client, pipeline: &str) -> Result<Vec<String>> {
    // From the defining views, so that a restore that lost rows of the catalog is told as well.
    const SQL: &str = "with recursive used (rel) as (
            select s.query_view::pg_catalog.oid from pgtrickle.pgt_stream_tables s
             where s.pipeline = $1 and s.refresh_mode = 'DIFFERENTIAL'
            union
            select d.refobjid from used u
              join pg_catalog.pg_rewrite w on w.ev_class = u.rel
              join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
               and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> u.rel),
        below (rel) as (
            select u.rel from used u
            union
            select i.inhrelid from below b join pg_catalog.pg_inherits i on i.inhparent = b.rel)
        select distinct pg_catalog.format('%I.%I', n.nspname, c.relname) from below u
          join pg_catalog.pg_class c on c.oid = u.rel and c.relkind in ('r', 'f')
          join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where not exists (select from pgtrickle.pgt_stream_tables s where s.pgt_relid = c.oid
                              and s.refresh_mode = 'DIFFERENTIAL')
         order by 1";
    Ok(client.query(SQL, &[&pipeline]).await.map_err(error)?.iter().map(|r| r.get(0)).collect())
}

/// What is said about an incident: once per source and cause, also in the server's log. Returns the sources that had
/// not been told before.
pub async fn note_recovery(
    client: &Client,
    pipeline: &str,
    sources: &[String],
    (diagnosis, cause, action): (&str, &str, &str),
    incident: &str,
) -> Result<Vec<String>> {
    const SQL: &str = "select pgtrickle._note_recovery($1, $2, $3, $4, $5, $6)";
    let row = client
        .query_one(SQL, &[&pipeline, &sources, &diagnosis, &cause, &action, &incident])
        .await
        .map_err(error)?;
    Ok(row.get(0))
}

/// All stream tables have been reconciled: what the incidents at hand had changed is known.
pub async fn complete_recoveries(client: &Client, pipeline: &str) -> Result<()> {
    client.execute("select pgtrickle._complete_recoveries($1)", &[&pipeline]).await.map_err(error)?;
    Ok(())
}

/// Who the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub system_identifier: String,
    pub timeline: i32,
    pub database_oid: u32,
    pub major: u32,
    pub wal_level: String,
    pub in_recovery: bool,
    pub encoding: String,
}

pub async fn identity(client: &Client) -> Result<Identity> {
    const SQL: &str = "select (select system_identifier::text from pg_catalog.pg_control_system()),
            case when pg_catalog.pg_is_in_recovery() then 0
                 else ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int end,
            d.oid, pg_catalog.current_setting('server_version_num')::int / 10000,
            pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery(),
            pg_catalog.current_setting('server_encoding')
        from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()";
    let row = client.query_one(SQL, &[]).await.map_err(error)?;
    Ok(Identity {
        system_identifier: row.get(0),
        timeline: row.get(1),
        database_oid: row.get(2),
        major: row.get::<_, i32>(3).unsigned_abs(),
        wal_level: row.get(4),
        in_recovery: row.get(5),
        encoding: row.get(6),
    })
}

/// Stores what was decided about a stream table: its effective mode and why it is not incremental.
pub async fn decide(client: &Client, view: ViewId, mode: &str, reason: Option<&str>) -> Result<()> {
    // What was recomputed so far is up to date with the pipeline only once it has joined the dataflow.
    const SQL: &str = "update pgtrickle.pgt_stream_tables set refresh_mode = $2, refresh_reason = $3,
            status = case when refresh_mode = 'FULL' and $2 = 'DIFFERENTIAL' and status = 'ACTIVE' then 'INITIALIZING'
                else status end
        where pgt_id = $1 and (refresh_mode, refresh_reason) is distinct from ($2, $3)";
    client.execute(SQL, &[&view, &mode, &reason]).await.map_err(error)?;
    Ok(())
}

/// Takes a stream table out: status ERROR (it is tried again) or SUSPENDED (until somebody resumes it). `complete` is
/// up to where it was. Never waits: an open transaction that changes the stream table holds its row.
pub async fn fail(
    client: &Client,
    view: ViewId,
    status: &str,
    e: &Error,
    complete: Option<Complete>,
) -> Result<Noted> {
    const SQL: &str = "with free as (select pgt_id from pgtrickle.pgt_stream_tables where pgt_id = $1
            for no key update skip locked),
        noted as (update pgtrickle.pgt_stream_tables s set
            -- Somebody's suspension stays.
            status = case when s.status = 'SUSPENDED' then s.status else $2 end, consecutive_errors = consecutive_errors + 1,
            last_error_sqlstate = $3, last_error_message = $4, last_error_query = coalesce($7, s.defining_query),
            last_error_at = pg_catalog.clock_timestamp(),
            -- One that is not continuous tells by itself up to where it is complete; one that has been told of keeps that.
            frontier = case when s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL' and pgtrickle._is_continuous(s.schedule)
                then coalesce($5, s.frontier) else s.frontier end,
            data_timestamp = case when s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL' and pgtrickle._is_continuous(s.schedule)
                then coalesce($6, (select p.data_timestamp from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline))
                else s.data_timestamp end
            from free where s.pgt_id = free.pgt_id returning s.pgt_id)
        select exists (select from noted), exists (select from pgtrickle.pgt_stream_tables t where t.pgt_id = $1)";
    let message = match e.hint() {
        Some(hint) => format!("{}; hint: {hint}", e.context()),
        None => e.context().to_owned(),
    };
    let frontier = complete.map(|c| PgLsn::from(c.frontier));
    let data_time = complete.and_then(|c| c.data_time);
    let values: [&(dyn ToSql + Sync); 7] =
        [&view, &status, &e.sqlstate(), &message, &frontier, &data_time, &e.statement()];
    let row = client.query_one(SQL, &values).await.map_err(error)?;
    Ok(match (row.get(0), row.get(1)) {
        (true, _) => Noted::Stored,
        (false, true) => Noted::Locked,
        (false, false) => Noted::Gone,
    })
}

/// Version of a stream table's row, and whether its table was renamed since its functions were made.
pub async fn version(client: &Client, view: ViewId) -> Result<Option<(i64, bool)>> {
    const SQL: &str = "select s.config_version, c.oid is not null and (n.nspname, c.relname) is distinct from (s.pgt_schema, s.pgt_name)
        from pgtrickle.pgt_stream_tables s left join pg_catalog.pg_class c on c.oid = s.pgt_relid
        left join pg_catalog.pg_namespace n on n.oid = c.relnamespace where s.pgt_id = $1";
    let row = client.query_opt(SQL, &[&view]).await.map_err(error)?;
    Ok(row.map(|r| (r.get(0), r.get(1))))
}

/// Lets the functions of a stream table follow its new name, with its owner's rights.
pub async fn follow_rename(client: &Client, view: ViewId) -> Result<()> {
    let follow = format!("select pgtrickle_queries.follow_{view}()");
    briefly(client, async { client.execute(&follow, &[]).await.map_err(error) }).await.map(drop)
}

/// What became of a change of a catalog row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    Stored,
    /// Somebody's open transaction holds the row.
    Locked,
    /// It was dropped.
    Gone,
}

/// Why a plan's evaluations by the owner can't be used: a function is missing (the stream table was created without a
/// live sidecar), is not its owner's, or has another body than the plan asks for. `None`: all is well.
pub async fn missing_evaluation(client: &Client, view: ViewId, plan: &Plan) -> Result<Option<String>> {
    const SQL: &str = "select p.prosrc = $3 and p.prosecdef and p.proowner = c.relowner
        from pgtrickle.pgt_stream_tables s join pg_catalog.pg_class c on c.oid = s.pgt_relid
        join pg_catalog.pg_proc p on p.proname = $2 and p.pronamespace = 'pgtrickle_queries'::pg_catalog.regnamespace
            and p.pronargs = $4::pg_catalog.int4
        where s.pgt_id = $1";
    for work in plan.rel.remote_work() {
        let Some(number) = work.owner_function() else { continue };
        let name = format!("evaluate_{view}_{number}");
        let inputs = i32::try_from(work.parameters()).unwrap_or(i32::MAX);
        let row = client.query_opt(SQL, &[&view, &name, &work_sql(work), &inputs]).await.map_err(error)?;
        if !row.is_some_and(|r| r.get(0)) {
            return Ok(Some(format!(
                "it calls functions of users, and the function {name} that does so with the owner's rights is missing or changed (it is made \
                 at creation, while the sidecar reads from a slot)"
            )));
        }
    }
    Ok(None)
}

/// A FULL stream table was recomputed; it is due again at `next`.
pub async fn recomputed<C: GenericClient>(
    client: &C,
    view: ViewId,
    next: Option<chrono::DateTime<chrono::Utc>>,
) -> Result<()> {
    const SQL: &str = "update pgtrickle.pgt_stream_tables set
            status = case when status = 'SUSPENDED' then status else 'ACTIVE' end, is_populated = true,
            data_timestamp = pg_catalog.now(), last_refresh_at = pg_catalog.clock_timestamp(), next_refresh_at = $2,
            consecutive_errors = 0, last_error_sqlstate = null, last_error_message = null, last_error_query = null, last_error_at = null
        where pgt_id = $1";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&view, Type::INT8), (&next, Type::TIMESTAMPTZ)];
    client.execute_typed(SQL, &parameters).await.map_err(error)?;
    Ok(())
}

/// Stores what a stream table reads: relations by OID (a name could not be looked up without USAGE on its schema).
/// A materialized view is stored by name alone: a restore may make it after these rows.
pub async fn set_dependencies(
    client: &Client,
    view: ViewId,
    sources: &[(u32, &'static str, Vec<String>)],
) -> Result<()> {
    const SQL: &str = "insert into pgtrickle.pgt_dependencies (pgt_id, source, source_name, source_type, columns_used)
        select $1, case when $3::text <> 'MATVIEW' then c.oid end, pg_catalog.format('%I.%I', n.nspname, c.relname), $3, $4
          from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where c.oid = $2
        on conflict (pgt_id, source_name) do update set source = excluded.source, source_type = excluded.source_type,
            columns_used = excluded.columns_used
        where (pgt_dependencies.source, pgt_dependencies.source_type, pgt_dependencies.columns_used)
            is distinct from (excluded.source, excluded.source_type, excluded.columns_used)";
    for (oid, kind, columns) in sources {
        client.execute(SQL, &[&view, oid, kind, columns]).await.map_err(error)?;
    }
    // A partition that was detached, a table that was renamed.
    const GONE: &str = "delete from pgtrickle.pgt_dependencies d where d.pgt_id = $1
        and not exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where c.oid = any ($2) and d.source_name = pg_catalog.format('%I.%I', n.nspname, c.relname))";
    let oids: Vec<u32> = sources.iter().map(|(oid, ..)| *oid).collect();
    client.execute(GONE, &[&view, &oids]).await.map_err(error)?;
    Ok(())
}

/// Answers a request of an SQL function.
pub async fn answer(
    client: &Client,
    request: i64,
    answer: &serde_json::Value,
    role: Option<&str>,
) -> Result<()> {
    const SQL: &str =
        "insert into pgtrickle.pgt_answers (request_id, answer, requested_by) values ($1, $2, $3)
        on conflict (request_id) do nothing";
    client.execute(SQL, &[&request, &Json(answer), &role]).await.map_err(error)?;
    Ok(())
}

/// Stores an answer about a stream table, which may quote its rows. Anybody can write a request in any role's name, so it
/// is stored only where that role is the owner or a member of it, and then only that role sees it.
pub async fn answer_owner(
    client: &Client,
    request: i64,
    view: ViewId,
    answer: &serde_json::Value,
    role: Option<&str>,
) -> Result<()> {
    const SQL: &str =
        "insert into pgtrickle.pgt_answers (request_id, answer, requested_by) select $1, $2, r.rolname
           from pgtrickle.pgt_stream_tables s
           join pg_catalog.pg_roles o on o.rolname = s.owner join pg_catalog.pg_roles r on r.rolname = $3
          where s.pgt_id = $4 and pg_catalog.pg_has_role(r.oid, o.oid, 'USAGE')
        on conflict (request_id) do nothing";
    client.execute(SQL, &[&request, &Json(answer), &role, &view]).await.map_err(error)?;
    Ok(())
}

/// Drops answers that nobody waits for any more.
pub async fn forget_answers(client: &Client) -> Result<()> {
    const SQL: &str =
        "delete from pgtrickle.pgt_answers where answered_at < pg_catalog.now() - interval '10 minutes'";
    client.execute(SQL, &[]).await.map_err(error)?;
    Ok(())
}
