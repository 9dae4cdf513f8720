-- What users see. These views run with the installing role's rights, so names and health of all stream tables are
-- visible to every granted role; queries, messages (they may quote rows) and column names only to owners.

create or replace view pgtrickle.stream_tables_info as
-- Looked up once for each pipeline, not for each of a thousand stream tables.
with served as materialized (
    select pipeline, pgtrickle.sidecar_alive(pipeline) as alive, pgtrickle._setting_interval('stale_after', pipeline) as stale_after
      from pgtrickle.pgt_pipelines)
select s.pgt_id, n.pgt_schema, n.pgt_name, n.relid as pgt_relid, s.owner, s.pipeline,
       case when n.mine then s.defining_query end as defining_query,
       case when n.mine then s.original_query end as original_query,
       s.query_view, s.schedule, s.requested_refresh_mode, s.refresh_mode,
       case when n.mine then s.refresh_reason end as refresh_reason,
       case when n.relid is null then 'ERROR'
            when s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL' and not v.alive then 'OFFLINE'
            when s.status = 'ACTIVE' and b.pgt_id is not null then 'INITIALIZING'
            else s.status end as status,
       s.is_populated,
       case when n.mine then s.key_columns end as key_columns,
       t.data_timestamp, coalesce(p.frontier, b.frontier, s.frontier) as frontier,
       -- When it was last brought up to date: a continuous one with every commit.
       greatest(s.last_refresh_at, p.data_timestamp, b.data_timestamp) as last_refresh_at, s.consecutive_errors,
       case when n.relid is null then '42P01' else s.last_error_sqlstate end as last_error_sqlstate,
       case when n.relid is null then 'the table was dropped; SELECT pgtrickle.drop_stream_table('
                || quote_literal(format('%I.%I', n.pgt_schema, n.pgt_name)) || '); cleans up'
            when n.mine then s.last_error_message end as last_error_message,
       s.last_error_at, s.config_version, s.user_writes, s.requested_cdc_mode, s.created_at, s.updated_at,
       clock_timestamp() - t.data_timestamp as staleness,
       case d.kind when 'DURATION' then clock_timestamp() - t.data_timestamp > make_interval(secs => d.seconds * 2 + 1)
                   when 'CALCULATED' then clock_timestamp() - t.data_timestamp > v.stale_after
                   when 'CRON' then clock_timestamp() > s.next_refresh_at + interval '1 min'
                   when 'MANUAL' then false end as stale,
       -- What stable expressions of the query are computed under, for ever.
       case when n.mine then s.query_settings end as query_settings,
       -- When its schedule says that it is due; null: continuous, manual, or out of maintenance.
       case when s.status in ('ACTIVE', 'INITIALIZING') then s.next_refresh_at end as next_refresh_at,
       -- The pipeline that has still to let go of it.
       s.moving_from,
       case when n.mine then s.last_error_query end as last_error_query
  from pgtrickle.pgt_stream_tables s
  join pgtrickle.stream_table_names n on n.pgt_id = s.pgt_id
  join served v on v.pipeline = s.pipeline
  -- Out of the dataflow: the pipeline's frontier is not its own.
  left join pgtrickle.pgt_behind b on b.pgt_id = s.pgt_id
  left join pgtrickle.pgt_pipelines p on p.pipeline = s.pipeline and s.status = 'ACTIVE' and s.refresh_mode = 'DIFFERENTIAL'
       and pgtrickle._is_continuous(s.schedule) and b.pgt_id is null
  cross join lateral (select greatest(s.data_timestamp, p.data_timestamp, b.data_timestamp) as data_timestamp) t
  cross join lateral pgtrickle.parse_schedule(s.schedule) d;

create or replace view pgtrickle.refresh_history_info as
select h.refresh_id, h.pgt_id, h.pgt_name, h.data_timestamp, h.start_time, h.end_time, h.action, h.status,
       h.rows_inserted, h.rows_updated, h.rows_deleted, h.delta_row_count,
       case when n.mine then h.reason end as reason, h.sqlstate,
       case when n.mine then h.error_message end as error_message, h.initiated_by, h.frontier
  from pgtrickle.pgt_history_columns h
  join pgtrickle.stream_table_names n on n.pgt_id = h.pgt_id;

-- One row per stream table. OFFLINE: incremental and up to date as of data_timestamp, but no sidecar is running.
do $$ begin
    -- Columns came after 0.1, which only a new function can have.
    if pg_get_function_result(to_regprocedure('pgtrickle.pgt_status()')) not like '%last_error_query%' then
        drop function pgtrickle.pgt_status();
    end if;
exception when dependent_objects_still_exist then
    raise exception 'pgtrickle.pgt_status() has new columns, and something depends on it' using errcode = '2BP01',
        detail = sqlerrm, hint = 'Drop the views that read pgtrickle.pgt_status(), and create them again afterwards.';
end $$;
create or replace function pgtrickle.pgt_status()
returns table (name text, status text, refresh_mode text, is_populated boolean, consecutive_errors int, schedule text,
               data_timestamp timestamptz, staleness interval, scc_id int, refresh_reason text, last_error_message text,
               last_error_sqlstate text, last_error_query text)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select i.pgt_schema || '.' || i.pgt_name, i.status, i.refresh_mode, i.is_populated, i.consecutive_errors, i.schedule,
           i.data_timestamp, i.staleness, null::int, i.refresh_reason, i.last_error_message,
           i.last_error_sqlstate, i.last_error_query
      from pgtrickle.stream_tables_info i order by i.pgt_schema, i.pgt_name
$$;

create or replace function pgtrickle._history(id bigint, max_rows int)
returns table (refresh_id bigint, data_timestamp timestamptz, start_time timestamptz, end_time timestamptz, action text,
               status text, rows_inserted bigint, rows_deleted bigint, duration_ms double precision, error_message text,
               rows_updated bigint, initiated_by text, reason text, sqlstate text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select h.refresh_id, h.data_timestamp, h.start_time, h.end_time, h.action, h.status, h.rows_inserted, h.rows_deleted,
           extract(epoch from h.end_time - h.start_time)::double precision * 1000, h.error_message, h.rows_updated,
           h.initiated_by, h.reason, h.sqlstate
      from pgtrickle.refresh_history_info h where h.pgt_id = id
     order by h.start_time desc, h.refresh_id desc limit max_rows
$$;

-- The latest refreshes of a stream table, newest first.
create or replace function pgtrickle.get_refresh_history(name text, max_rows int default 20)
returns table (refresh_id bigint, data_timestamp timestamptz, start_time timestamptz, end_time timestamptz, action text,
               status text, rows_inserted bigint, rows_deleted bigint, duration_ms double precision, error_message text,
               rows_updated bigint, initiated_by text, reason text, sqlstate text)
language sql volatile as $$
    select * from pgtrickle._history(pgtrickle._find($1, pg_catalog.current_setting('search_path'), false), $2)
$$;

create or replace function pgtrickle._list_sources(id bigint)
returns table (source_table text, source_oid bigint, source_type text, cdc_mode text, columns_used text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select d.source_name, coalesce(d.source, to_regclass(d.source_name))::oid::bigint, d.source_type, d.cdc_mode, array_to_string(d.columns_used, ', ')
      from pgtrickle.pgt_dependencies d where d.pgt_id = id order by d.source_name
$$;

-- The tables a stream table reads; only for its owner, because they tell its query.
create or replace function pgtrickle.list_sources(name text)
returns table (source_table text, source_oid bigint, source_type text, cdc_mode text, columns_used text)
language sql volatile as $$
    select * from pgtrickle._list_sources(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true))
$$;

create or replace function pgtrickle._explain_mode(id bigint)
returns table (configured_mode text, effective_mode text, downgrade_reason text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select s.requested_refresh_mode, s.refresh_mode, s.refresh_reason
      from pgtrickle.pgt_stream_tables s where s.pgt_id = id
$$;

-- Which refresh mode was asked for, which one is in effect, and why they differ.
create or replace function pgtrickle.explain_refresh_mode(name text)
returns table (configured_mode text, effective_mode text, downgrade_reason text)
language sql volatile as $$
    select * from pgtrickle._explain_mode(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true))
$$;

-- Version of the schema in this database.
create or replace function pgtrickle.version() returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$ select '0.1.0' $$;
