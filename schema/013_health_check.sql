-- health_check(): everything that somebody should look at, in one list.

-- `a, b, c and 4 more`.
create or replace function pgtrickle._some(names text[]) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select array_to_string((array(select n from unnest(names) n order by n))[1:5], ', ')
        || case when cardinality(names) > 5 then format(' and %s more', cardinality(names) - 5) else '' end
$$;

-- What users have put on stream tables and what can stop or repeat their effect there: an apply deletes and inserts rows.
create or replace view pgtrickle.attachments as
select 'foreign key' as kind, format('%I.%I', n.pgt_schema, n.pgt_name) as stream_table,
       format('%I on %s', c.conname, c.conrelid::regclass) as what
  from pgtrickle.stream_table_names n join pg_catalog.pg_constraint c on c.confrelid = n.relid
 where c.contype = 'f'
union all
select 'trigger', format('%I.%I', n.pgt_schema, n.pgt_name), t.tgname::text
  from pgtrickle.stream_table_names n join pg_catalog.pg_trigger t on t.tgrelid = n.relid
 where not t.tgisinternal and t.tgname <> 'pgtrickle_guard' and t.tgname not like 'pgtrickle\_capture\_%'
union all
select 'rule', format('%I.%I', n.pgt_schema, n.pgt_name), r.rulename::text
  from pgtrickle.stream_table_names n join pg_catalog.pg_rewrite r on r.ev_class = n.relid;

-- One row per check, and one per source where a check is about sources. severity: OK, WARN or ERROR.
create or replace function pgtrickle.health_check() returns table (check_name text, severity text, detail text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p record;
    s record;
    names text[];
    more text[];
    n int;
    warning bigint;
    critical bigint;
begin
    for p in select t.*, clock_timestamp() - t.heartbeat_at as silence from pgtrickle.pgt_pipelines t order by t.pipeline loop
        check_name := 'scheduler_running';
        if pg_is_in_recovery() then
            severity := 'OK';
            detail := format('a standby: the sidecar works on the primary, last seen here %s', p.heartbeat_at);
        elsif p.detached_at is not null then
            severity := 'WARN';
            detail := format('pipeline %s is detached since %s; pgtrickle.attach() brings it back', p.pipeline, p.detached_at);
        elsif p.paused_until > clock_timestamp() then
            severity := 'WARN';
            detail := format('pipeline %s is paused until %s; pgtrickle.unpause() ends it', p.pipeline, p.paused_until);
        elsif not pgtrickle.sidecar_alive(p.pipeline)
              and not exists (select from pgtrickle.stream_tables_info i where i.pipeline = p.pipeline)
              and exists (select from pgtrickle.stream_tables_info) then
            severity := 'OK';
            detail := format('pipeline %s has no stream tables, and no sidecar serves it', p.pipeline);
        elsif not pgtrickle.sidecar_alive(p.pipeline) then
            severity := 'ERROR';
            detail := format('no sidecar serves pipeline %s; last seen: %s. Start it: pgtrickle run%s', p.pipeline,
                             coalesce(p.heartbeat_at::text, 'never'),
                             case when p.pipeline <> 'main' then ' --pipeline ' || p.pipeline else '' end);
        elsif p.silence > interval '60 s' then
            severity := 'WARN';
            detail := format('%s serves pipeline %s, but has written nothing for %s', p.sidecar, p.pipeline, p.silence);
        else
            severity := 'OK';
            detail := format('%s serves pipeline %s since %s', p.sidecar, p.pipeline, p.started_at);
        end if;
        return next;
    end loop;

    check_name := 'error_tables';
    select coalesce(array_agg(format('%I.%I', i.pgt_schema, i.pgt_name)) filter (where i.status = 'ERROR'), '{}'),
           coalesce(array_agg(format('%I.%I', i.pgt_schema, i.pgt_name)) filter (where i.status = 'SUSPENDED'), '{}')
      into names, more from pgtrickle.stream_tables_info i;
    severity := case when cardinality(names) > 0 then 'ERROR' when cardinality(more) > 0 then 'WARN' else 'OK' end;
    detail := case when severity = 'OK' then 'no stream table has failed' else
        concat_ws('; ', case when cardinality(names) > 0 then 'in status ERROR: ' || pgtrickle._some(names) end,
                  case when cardinality(more) > 0 then 'suspended: ' || pgtrickle._some(more) end) end;
    return next;

    check_name := 'stale_tables';
    select coalesce(array_agg(format('%I.%I', i.pgt_schema, i.pgt_name)), '{}') into names
      from pgtrickle.stream_tables_info i where i.stale and i.status not in ('SUSPENDED', 'ERROR');
    severity := case when cardinality(names) > 0 then 'WARN' else 'OK' end;
    detail := case when severity = 'OK' then 'all are as fresh as they should be' else 'stale: ' || pgtrickle._some(names) end;
    return next;

    check_name := 'needs_reinit';
    select coalesce(array_agg(format('%I.%I', i.pgt_schema, i.pgt_name)), '{}') into names
      from pgtrickle.stream_tables_info i where i.status = 'INITIALIZING' or not i.is_populated and i.status = 'OFFLINE';
    severity := case when cardinality(names) > 0 then 'WARN' else 'OK' end;
    detail := case when severity = 'OK' then 'none waits to be reconciled' else 'wait to be reconciled: ' || pgtrickle._some(names) end;
    return next;

    check_name := 'consecutive_errors';
    select coalesce(array_agg(format('%I.%I (%s)', i.pgt_schema, i.pgt_name, i.consecutive_errors)), '{}') into names
      from pgtrickle.stream_tables_info i where i.consecutive_errors > 0;
    severity := case when cardinality(names) > 0 then 'WARN' else 'OK' end;
    detail := case when severity = 'OK' then 'none' else 'failures in a row: ' || pgtrickle._some(names) end;
    return next;

    check_name := 'buffer_growth';
    select coalesce(array_agg(format('%s (%s rows, %s)', coalesce(t.source_name, 'a source of another role'),
                                     case when b.pending > 10000 then 'more than 10000' else b.pending::text end, pg_size_pretty(b.bytes)))
                    filter (where b.pending > 10000 or b.bytes > q.buffer_limit / 2), '{}'),
           coalesce(bool_or(b.bytes > q.buffer_limit), false)::int
      into names, n
      from pgtrickle.source_states t join pgtrickle.pgt_pipelines q on q.pipeline = t.pipeline
      cross join lateral pgtrickle._buffer(t.source_id, 10001) b;
    severity := case when n > 0 then 'ERROR' when cardinality(names) > 0 then 'WARN' else 'OK' end;
    detail := case when severity = 'OK' then 'change buffers are small or not in use' else 'large: ' || pgtrickle._some(names) end;
    return next;

    for s in select l.*, pgtrickle.sidecar_alive(l.pipeline) as alive from pgtrickle.pipeline_slots l order by l.pipeline loop
        check_name := 'slot_lag';
        warning := pgtrickle._setting_mb('slot_lag_warning_threshold_mb', s.pipeline);
        critical := pgtrickle._setting_mb('slot_lag_critical_threshold_mb', s.pipeline);
        if not s.present then
            severity := case when s.detached_at is null then 'ERROR' else 'OK' end;
            detail := format('the replication slot %s does not exist', s.slot_name);
        elsif s.wal_status not in ('reserved', 'extended', 'unreserved') then
            severity := 'ERROR';
            detail := format('the replication slot %s is invalid (%s); the next start of the sidecar makes it anew', s.slot_name, s.wal_status);
        else
            severity := case when s.retained_bytes > critical or s.wal_status = 'unreserved' then 'ERROR'
                             when s.retained_bytes > warning or s.alive and not s.active then 'WARN' else 'OK' end;
            detail := format('%s retains %s of WAL (%s, %s)', s.slot_name, pg_size_pretty(s.retained_bytes), s.wal_status,
                             case when s.active then 'active' else 'nobody streams from it' end);
        end if;
        return next;
        check_name := 'wal_keep';
        severity := case when s.safe_wal_size < pg_size_bytes(current_setting('max_slot_wal_keep_size')) / 5 then 'WARN' else 'OK' end;
        detail := case when not s.present then 'no slot'
            when s.safe_wal_size is null then 'max_slot_wal_keep_size is not limited: a sidecar that stays away lets the WAL grow'
            else format('%s of WAL until the server invalidates the slot', pg_size_pretty(s.safe_wal_size)) end;
        return next;
    end loop;

    n := 0;
    for s in select t.source_name, c.cdc_mode, c.alert, t.capture_reason, t.delivery_reason
               from pgtrickle.source_states t
               join pgtrickle.check_cdc_health() c on c.source_relid is not distinct from t.source_oid
                and c.source_table is not distinct from t.source_name
              where t.capture <> 'wal' or c.alert is not null and c.alert <> 'sidecar_not_running' order by 1 loop
        n := n + 1;
        check_name := 'capture';
        severity := case when s.alert is not null and s.alert <> 'sidecar_not_running' then 'ERROR' else 'WARN' end;
        detail := format('%s: captured by %s%s', coalesce(s.source_name, 'a source of another role'), s.cdc_mode,
            coalesce(': ' || nullif(concat_ws('; ', s.alert, coalesce(s.capture_reason, s.delivery_reason)), ''), ''));
        return next;
    end loop;
    if n = 0 then
        check_name := 'capture';
        severity := 'OK';
        detail := format('%s sources, none with a problem', (select count(*) from pgtrickle.source_states));
        return next;
    end if;

    n := 0;
    for s in select t.source_name, t.fallback_reason from pgtrickle.source_states t
              where t.is_known and not t.fallback_ready and t.capture = 'wal' order by 1 loop
        n := n + 1;
        check_name := 'fallback_ready';
        severity := 'WARN';
        detail := format('%s cannot be captured by triggers if the WAL cannot be had: %s',
            coalesce(s.source_name, 'a source of another role'),
            case when s.source_name is null then 'its owner has not agreed' else coalesce(s.fallback_reason, 'unknown') end);
        return next;
    end loop;
    if n = 0 then
        check_name := 'fallback_ready';
        severity := 'OK';
        detail := 'every source that was looked at could be captured by triggers';
        return next;
    end if;

    n := 0;
    for s in select * from pgtrickle.pgt_recoveries r
              where r.acknowledged_at is null and r.detected_at > now() - interval '24 hours' order by r.detected_at, r.source_name loop
        n := n + 1;
        check_name := 'recoveries';
        severity := 'WARN';
        detail := format('%s: %s; %s; %s', s.source_name, s.cause, s.action,
            case when s.completed_at is null then 'not repaired yet'
                 else format('repaired: %s inserted, %s updated, %s deleted', s.rows_inserted, s.rows_updated, s.rows_deleted) end);
        return next;
    end loop;
    if n = 0 then
        check_name := 'recoveries';
        severity := 'OK';
        detail := 'nothing was recovered in the last 24 hours';
        return next;
    end if;

    for s in select k.kind, coalesce(array_agg(a.stream_table || ': ' || a.what) filter (where a.what is not null), '{}') as found
               from unnest(array['foreign key', 'trigger', 'rule']) k (kind) left join pgtrickle.attachments a on a.kind = k.kind
              group by k.kind order by k.kind loop
        check_name := case s.kind when 'foreign key' then 'foreign_keys' when 'trigger' then 'user_triggers' else 'user_rules' end;
        severity := case when cardinality(s.found) > 0 then 'WARN' else 'OK' end;
        detail := case when cardinality(s.found) = 0 then format('no %s on stream tables', s.kind)
            when s.kind = 'foreign key' then 'a row that is replaced leaves for a moment, and its references with it: ' || pgtrickle._some(s.found)
            else 'what they raise or drop stops the stream table: ' || pgtrickle._some(s.found) end;
        return next;
    end loop;

    check_name := 'guards';
    select coalesce(array_agg(format('%I.%I', n2.pgt_schema, n2.pgt_name)), '{}') into names
      from pgtrickle.stream_tables_info n2
     where n2.user_writes = 'refuse' and n2.pgt_relid is not null and not exists (
        select from pg_trigger t where t.tgrelid = n2.pgt_relid and t.tgname = 'pgtrickle_guard' and t.tgenabled in ('O', 'A'));
    severity := case when cardinality(names) > 0 then 'WARN' else 'OK' end;
    detail := case when severity = 'OK' then 'direct writes are refused where they should be'
        else 'anybody with rights may write to them; pgtrickle.repair_stream_table() brings the guard back: ' || pgtrickle._some(names) end;
    return next;
end $$;
