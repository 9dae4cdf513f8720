-- Health as SQL sees it: nothing here believes what the catalog says about a slot, a trigger or a buffer; each is looked
-- at. Names of stream tables are for every granted role, names of sources for those who may read them or own a stream
-- table that does.

alter table pgtrickle.pgt_recoveries add column if not exists acknowledged_at timestamptz;

-- Where the WAL ends now: inserted on a primary, replayed on a standby.
create or replace function pgtrickle._wal_position() returns pg_lsn
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end
$$;

-- Slots of the pipelines as the server knows them. A pipeline that is delivered by a slot and has none has a row too.
create or replace view pgtrickle.pipeline_slots as
select p.pipeline, p.slot_name, p.delivery, p.delivery_reason, p.detached_at, r.slot_name is not null as present,
       coalesce(r.active, false) as active, r.active_pid, r.restart_lsn, r.confirmed_flush_lsn,
       case when r.slot_name is null then 'missing'
            else coalesce(to_jsonb(r) ->> 'invalidation_reason', r.wal_status) end as wal_status,
       r.safe_wal_size,
       pg_catalog.pg_wal_lsn_diff(pgtrickle._wal_position(), r.restart_lsn)::bigint as retained_bytes,
       greatest(0, pg_catalog.pg_wal_lsn_diff(pgtrickle._wal_position(), r.confirmed_flush_lsn))::bigint as lag_bytes
  from pgtrickle.pgt_pipelines p
  left join pg_catalog.pg_replication_slots r
    on r.slot_name = p.slot_name and r.database = pg_catalog.current_database()
 where r.slot_name is not null or p.slot_name is not null and p.delivery is distinct from 'poll';

-- What a trigger-captured source's triggers look like; null: they capture everything. Definer's rights, because buffers
-- and capture functions are out of reach for callers.
create or replace function pgtrickle._trigger_alert(id bigint) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select pgtrickle._broken_seal(id, case when p.delivery = 'slot' then 'message' else 'buffer' end)
      from pgtrickle.pgt_sources s join pgtrickle.pgt_pipelines p on p.pipeline = s.pipeline where s.source_id = id
$$;

-- Rows and bytes of a change buffer; no row where there is none. Rows are counted, up to `most` if that is given.
create or replace function pgtrickle._buffer(id bigint, most bigint default null)
returns table (pending bigint, bytes bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    buffer regclass := to_regclass(format('pgtrickle_changes.changes_%s', id));
begin
    if buffer is null then
        return;
    end if;
    bytes := pg_total_relation_size(buffer);
    execute format('select count(*) from (select from %s limit %L) x', buffer, most) into pending;
    return next;
end $$;

-- Tables whose changes are needed, and how they are captured.
create or replace view pgtrickle.source_states as
select d.pipeline, s.source_id, c.oid::bigint as source_oid,
       case when v.visible then d.source_name end as source_name,
       c.oid is null as is_missing,
       coalesce(s.capture, 'wal') as capture, s.capture_reason, s.capture_since,
       coalesce(s.fallback_ready, false) as fallback_ready, s.fallback_reason, s.gap_since,
       p.delivery, p.delivery_reason, p.slot_name, p.publication_name,
       exists (select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication b on b.oid = r.prpubid
                where b.pubname = p.publication_name and r.prrelid = c.oid) as is_published,
       s.source_id is not null as is_known
  from (select t.pipeline, x.source_name, max(x.source::oid) as source,
               bool_or(t.owner = current_user or t.owner in (select r.rolname from pg_catalog.pg_roles r
                   where pg_catalog.pg_has_role(r.oid, 'USAGE'))) as mine
          from pgtrickle.pgt_dependencies x join pgtrickle.pgt_stream_tables t on t.pgt_id = x.pgt_id
         where t.refresh_mode = 'DIFFERENTIAL' and x.source_type = 'TABLE' and t.status <> 'SUSPENDED'
         group by 1, 2) d
  join pgtrickle.pgt_pipelines p on p.pipeline = d.pipeline
  left join pg_catalog.pg_class c on c.oid = d.source
  left join pgtrickle.pgt_sources s on s.pipeline = d.pipeline and s.source_name = d.source_name
  cross join lateral (select d.mine or coalesce(pg_catalog.has_table_privilege(c.oid, 'SELECT'), false) as visible) v;

-- One row per pipeline's slot. It serves all sources, so source_relid is null. active: somebody streams from it now;
-- wal_status: the server's own (reserved, extended, unreserved, lost), why it was invalidated, or missing.
create or replace function pgtrickle.slot_health()
returns table (slot_name text, source_relid bigint, active boolean, retained_wal_bytes bigint, wal_status text)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select s.slot_name, null::bigint, s.active, s.retained_bytes, s.wal_status
      from pgtrickle.pipeline_slots s order by s.slot_name
$$;

-- One row per captured source. lag_bytes: from what the slot has confirmed to the end of the WAL; alert: null when all is
-- well. The thresholds are compared with the WAL that the slot retains.
create or replace function pgtrickle.check_cdc_health()
returns table (source_relid bigint, source_table text, cdc_mode text, slot_name text, lag_bytes bigint, confirmed_lsn text,
               alert text, selective_capture boolean)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select s.source_oid, s.source_name, s.capture, case when s.delivery is distinct from 'poll' then s.slot_name end,
           l.lag_bytes, l.confirmed_flush_lsn::text,
           case when s.is_missing then 'source_missing'
                when s.delivery is null then 'sidecar_not_running'
                when s.gap_since is not null then format('capture_gap: nothing is recorded since %s', s.gap_since)
                when s.capture = 'trigger' and t.broken is not null then 'trigger_broken: ' || t.broken
                when l.detached_at is not null then format('detached since %s', l.detached_at)
                when s.delivery is distinct from 'poll' and not coalesce(l.present, false) then 'replication_slot_missing'
                when s.delivery is distinct from 'poll' and l.wal_status not in ('reserved', 'extended', 'unreserved')
                    then format('replication_slot_lost: %s', l.wal_status)
                when s.delivery is distinct from 'poll' and l.retained_bytes > c.critical
                    then format('slot_lag_exceeds_threshold: %s bytes > %s bytes', l.retained_bytes, c.critical)
                -- One that is being read for the first time is not published yet.
                when s.is_known and s.capture = 'wal' and not s.is_published then 'not_published'
                when not pgtrickle.sidecar_alive(s.pipeline) then 'sidecar_not_running'
           end,
           false
      from pgtrickle.source_states s
      left join pgtrickle.pipeline_slots l on l.pipeline = s.pipeline and s.delivery is distinct from 'poll'
      cross join lateral (select case when s.capture = 'trigger' then pgtrickle._trigger_alert(s.source_id) end as broken) t
      cross join lateral (select pgtrickle._setting_mb('slot_lag_critical_threshold_mb', s.pipeline) as critical) c
     order by s.source_name
$$;

-- One row per captured source, from the WAL's side. blocked_reason: why it is not captured from the WAL.
create or replace function pgtrickle.wal_source_status()
returns table (source_relid bigint, source_name text, cdc_mode text, slot_name text, slot_lag_bytes bigint,
               publication_name text, blocked_reason text, transition_started_at text, decoder_confirmed_lsn text)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select s.source_oid, s.source_name, s.capture, case when l.present then s.slot_name end, l.lag_bytes,
           case when s.is_published then s.publication_name end,
           case when s.capture <> 'wal' then coalesce(s.capture_reason, s.delivery_reason) end,
           case when s.capture = 'transitioning' then s.capture_since::text end, l.confirmed_flush_lsn::text
      from pgtrickle.source_states s
      left join pgtrickle.pipeline_slots l on l.pipeline = s.pipeline
     order by s.source_name
$$;

-- Triggers that should be there (present says whether they are), and triggers of ours that are left on other tables.
-- enabled: ENABLE ALWAYS, the only state in which a trigger sees everything.
create or replace function pgtrickle.trigger_inventory()
returns table (source_table text, source_oid bigint, trigger_name text, trigger_type text, present boolean, enabled boolean)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select s.source_name, s.source_oid, coalesce(t.tgname::text, w.name), 'AFTER ' || upper(w.op)
               || case when t.tgtype & 1 = 1 then ' ROW' else ' STATEMENT' end,
           t.oid is not null, coalesce(t.tgenabled = 'A', false)
      from pgtrickle.source_states s
      cross join unnest(array['insert', 'update', 'delete', 'truncate']) op
      cross join lateral (select op, format('pgtrickle_capture_%s_%s', op, s.source_id) as name) w
      left join pg_trigger t on t.tgrelid::bigint = s.source_oid and t.tgname = w.name
     where s.capture in ('trigger', 'transitioning') or t.oid is not null
    union all
    select format('%I.%I', n.nspname, c.relname), c.oid::bigint, t.tgname::text,
           'AFTER ' || upper(split_part(t.tgname::text, '_', 3))
               || case when t.tgtype & 1 = 1 then ' ROW' else ' STATEMENT' end, true, t.tgenabled = 'A'
      from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
     where t.tgname like 'pgtrickle\_capture\_%' and has_table_privilege(c.oid, 'SELECT')
       and not exists (select from pgtrickle.source_states s
                        where s.source_oid = c.oid::bigint and t.tgname like '%\_' || s.source_id)
     order by 1, 3
$$;

-- Change buffers per stream table and source, rows counted. Captured from the WAL: there is none, so zeros.
create or replace function pgtrickle.change_buffer_sizes()
returns table (stream_table text, source_table text, source_oid bigint, cdc_mode text, pending_rows bigint, buffer_bytes bigint)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select format('%I.%I', n.pgt_schema, n.pgt_name), d.source_name, d.source::oid::bigint, coalesce(s.capture, 'wal'),
           coalesce(b.pending, 0), coalesce(b.bytes, 0)
      from pgtrickle.pgt_dependencies d
      join pgtrickle.pgt_stream_tables t on t.pgt_id = d.pgt_id
      join pgtrickle.stream_table_names n on n.pgt_id = d.pgt_id
      left join pgtrickle.source_states s on s.pipeline = t.pipeline and s.source_oid = d.source::oid::bigint
      left join lateral pgtrickle._buffer(s.source_id) b on true
     where n.mine and d.source_type = 'TABLE' and t.refresh_mode = 'DIFFERENTIAL'
     order by 1, 2
$$;

-- Takes the recoveries that have been seen off health_check(); returns how many. For the installing role.
create or replace function pgtrickle.acknowledge_recoveries() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    n bigint;
begin
    update pgtrickle.pgt_recoveries r set acknowledged_at = clock_timestamp()
     where r.acknowledged_at is null and r.completed_at is not null;
    get diagnostics n = row_count;
    return n;
end $$;
