-- Alerts: what somebody should be told now. A row is an alert that is open; it is the memory that keeps an alert from
-- being told twice, also by a sidecar that was started meanwhile. Telling and remembering are one transaction.
-- Messages hold no row of a user's table and no name of a source: any role may LISTEN.

create table if not exists pgtrickle.pgt_alerts (
    pipeline text not null references pgtrickle.pgt_pipelines,
    cause text not null,
    -- What it is about, where a cause can be there several times: a slot, a stream table, the oid of a source.
    subject text not null default '',
    event text not null,
    severity text not null check (severity in ('warning', 'critical')),
    message text not null,
    since timestamptz not null default clock_timestamp(),
    -- A cause that ends with time, and that nobody can look at.
    expires_at timestamptz,
    primary key (pipeline, cause, subject)
);
alter table pgtrickle.pgt_alerts enable row level security;

-- Opens, changes and closes alerts: [{"open": true, "cause", "subject", "event", "severity", "message", "details": {}}].
-- Returns those that were new, each with its payload; what is said already, in the same severity, is not said again.
create or replace function pgtrickle._alert(pipe text, changes jsonb) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c jsonb;
    told jsonb := '[]';
    payload jsonb;
    row_since timestamptz;
    opens boolean;
begin
    for c in select value from jsonb_array_elements(changes) loop
        opens := (c ->> 'open')::boolean;
        row_since := null;
        if opens then
            insert into pgtrickle.pgt_alerts as a (pipeline, cause, subject, event, severity, message, expires_at)
                values (pipe, c ->> 'cause', coalesce(c ->> 'subject', ''), c ->> 'event', c ->> 'severity', c ->> 'message',
                        clock_timestamp() + make_interval(secs => (c ->> 'expires_in')::double precision))
                on conflict (pipeline, cause, subject) do update
                   set event = excluded.event, severity = excluded.severity, message = excluded.message,
                       expires_at = excluded.expires_at
                 where (a.event, a.severity) is distinct from (excluded.event, excluded.severity)
                returning a.since into row_since;
            -- Said already: only its end moves.
            if row_since is null and c ->> 'expires_in' is not null then
                update pgtrickle.pgt_alerts a
                   set expires_at = clock_timestamp() + make_interval(secs => (c ->> 'expires_in')::double precision)
                 where a.pipeline = pipe and a.cause = c ->> 'cause' and a.subject = coalesce(c ->> 'subject', '');
            end if;
        else
            delete from pgtrickle.pgt_alerts a where a.pipeline = pipe and a.cause = c ->> 'cause'
               and a.subject = coalesce(c ->> 'subject', '') returning a.since into row_since;
        end if;
        continue when row_since is null;
        payload := coalesce(c -> 'details', '{}') || jsonb_build_object(
            'event', case when opens then c ->> 'event' else (c ->> 'cause') || '_resolved' end,
            'status', case when opens then 'firing' else 'resolved' end,
            'cause', c ->> 'cause', 'severity', c ->> 'severity', 'pipeline', pipe, 'database', current_database(),
            'since', row_since, 'message', c ->> 'message', 'runbook', 'docs/runbook.md#' || (c ->> 'cause'));
        perform pg_notify('pg_trickle_alert', payload::text);
        told := told || jsonb_build_array(payload);
    end loop;
    return told;
end $$;

-- What there is to be told about a pipeline at this moment: one object per cause and subject, without any memory.
-- "held" marks what lies between four fifths of a threshold and the threshold itself: no reason to open an alert, but
-- one not to close it. Null where nothing can be known: no sidecar serves, or the pipeline is paused or detached.
create or replace function pgtrickle._alert_facts(pipe text) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p pgtrickle.pgt_pipelines;
    warning bigint := pgtrickle._setting_mb('slot_lag_warning_threshold_mb', pipe);
    critical bigint := pgtrickle._setting_mb('slot_lag_critical_threshold_mb', pipe);
    facts jsonb;
begin
    select * into p from pgtrickle.pgt_pipelines t where t.pipeline = pipe;
    if not found or p.detached_at is not null or p.paused_until > clock_timestamp() or pg_is_in_recovery()
       or not pgtrickle.sidecar_alive(pipe) then
        return null;
    end if;
    select coalesce(jsonb_agg(to_jsonb(f)), '[]') into facts from (
        -- What the slot makes the server keep.
        select 'slot_lag' as cause, s.slot_name as subject,
               case when s.retained_bytes > critical then 'slot_lag_critical'
                    when s.retained_bytes > warning then 'slot_lag_warning'
                    when s.retained_bytes > critical / 5 * 4 then 'slot_lag_critical' else 'slot_lag_warning' end as event,
               case when s.retained_bytes > critical then 'critical' else 'warning' end as severity,
               s.retained_bytes > critical / 5 * 4 as held_critical, s.retained_bytes <= warning as held,
               format('the slot retains %s of WAL', pg_size_pretty(s.retained_bytes)) as message,
               jsonb_build_object('slot', s.slot_name, 'retained_bytes', s.retained_bytes, 'warning_mb', warning >> 20,
                                  'critical_mb', critical >> 20) as details, null::timestamptz as expires_at
          from pgtrickle.pipeline_slots s
         where s.pipeline = pipe and s.present and s.retained_bytes > warning / 5 * 4
        union all
        select 'slot', s.slot_name,
               case when s.wal_status in ('reserved', 'extended') then 'slot_inactive'
                    when s.wal_status = 'unreserved' then 'slot_unreserved' else 'slot_lost' end,
               case when s.wal_status in ('reserved', 'extended') then 'warning' else 'critical' end, false, false,
               case when s.wal_status in ('reserved', 'extended') then 'nobody streams from the slot'
                    else format('the slot is %s', s.wal_status) end,
               jsonb_build_object('slot', s.slot_name, 'wal_status', s.wal_status), null
          from pgtrickle.pipeline_slots s
         where s.pipeline = pipe and (not s.active or s.wal_status not in ('reserved', 'extended'))
        union all
        select 'stream_table', i.pgt_id::text, case i.status when 'ERROR' then 'refresh_failed' else 'auto_suspended' end,
               case i.status when 'ERROR' then 'warning' else 'critical' end, false, false,
               format('stream table %I.%I is %s: SQLSTATE %s', i.pgt_schema, i.pgt_name,
                      case i.status when 'ERROR' then 'not maintained at the moment' else 'suspended' end, i.last_error_sqlstate),
               jsonb_build_object('pgt_schema', i.pgt_schema, 'pgt_name', i.pgt_name, 'st', format('%I.%I', i.pgt_schema, i.pgt_name),
                                  'sqlstate', i.last_error_sqlstate, 'consecutive_errors', i.consecutive_errors), null
          from pgtrickle.stream_tables_info i
         where i.pipeline = pipe and (i.status = 'ERROR' or i.status = 'SUSPENDED' and i.last_error_sqlstate is not null)
        union all
        -- Incremental stream tables of a pipeline are late together: one cause, one alert.
        select 'stale_data', '', 'stale_data', 'warning', false, false,
               format('%s stream tables are older than they may be: %s', count(*),
                      pgtrickle._some(array_agg(format('%I.%I', i.pgt_schema, i.pgt_name)))),
               jsonb_build_object('stream_tables', count(*), 'oldest_seconds', extract(epoch from max(i.staleness))::bigint), null
          from pgtrickle.stream_tables_info i
         where i.pipeline = pipe and i.stale and i.refresh_mode = 'DIFFERENTIAL' and i.status not in ('SUSPENDED', 'ERROR')
        having count(*) > 0
        union all
        select 'stale_data', i.pgt_id::text, 'stale_data', 'warning', false, false,
               format('stream table %I.%I is older than its schedule allows', i.pgt_schema, i.pgt_name),
               jsonb_build_object('pgt_schema', i.pgt_schema, 'pgt_name', i.pgt_name, 'st', format('%I.%I', i.pgt_schema, i.pgt_name),
                                  'oldest_seconds', extract(epoch from i.staleness)::bigint), null
          from pgtrickle.stream_tables_info i
         where i.pipeline = pipe and i.stale and i.refresh_mode = 'FULL' and i.status not in ('SUSPENDED', 'ERROR')
        union all
        select 'fallback_not_ready', '', 'fallback_not_ready', 'warning', false, false,
               format('%s sources could not be captured by triggers if the slot were lost', count(*)),
               jsonb_build_object('sources', count(*)), null
          from pgtrickle.source_states t
         where t.pipeline = pipe and t.is_known and not t.fallback_ready and t.capture = 'wal' having count(*) > 0
        union all
        select 'buffer_growth', t.source_oid::text, case when b.bytes > p.buffer_limit then 'buffer_full' else 'buffer_growth_warning' end,
               case when b.bytes > p.buffer_limit then 'critical' else 'warning' end,
               b.bytes > p.buffer_limit / 5 * 4, b.bytes <= p.buffer_limit / 2,
               format('a change buffer holds %s of %s', pg_size_pretty(b.bytes), pg_size_pretty(p.buffer_limit)),
               jsonb_build_object('source_oid', t.source_oid, 'buffer_bytes', b.bytes, 'limit_bytes', p.buffer_limit), null
          from pgtrickle.source_states t cross join lateral pgtrickle._buffer(t.source_id, 0) b
         where t.pipeline = pipe and b.bytes > p.buffer_limit / 5 * 2
        union all
        select 'capture_by_triggers', '', 'capture_by_triggers', 'warning', false, false,
               'the WAL cannot be had: changes are captured by triggers, at a cost for every write',
               jsonb_build_object('reason', p.delivery_reason), null
         where p.delivery = 'poll' and p.delivery_reason is not null
           and p.delivery_reason <> 'capture by triggers was asked for'
        union all
        select 'trigger', t.source_oid::text, 'cdc_trigger_disabled', 'critical', false, false,
               'the capture triggers of a source do not record everything', jsonb_build_object('source_oid', t.source_oid), null
          from pgtrickle.source_states t
         where t.pipeline = pipe and t.capture = 'trigger' and pgtrickle._trigger_alert(t.source_id) is not null
        union all
        select a.cause, a.subject, a.event, a.severity, false, false, a.message, '{}', a.expires_at
          from pgtrickle.pgt_alerts a where a.pipeline = pipe and a.expires_at > clock_timestamp()
    ) f;
    return jsonb_build_object('facts', facts,
        'after_seconds', extract(epoch from nullif(pgtrickle._setting_interval('alert_after', pipe), interval '0')), 'open', (select coalesce(jsonb_agg(jsonb_build_object('cause', a.cause,
        'subject', a.subject, 'event', a.event, 'severity', a.severity)), '[]') from pgtrickle.pgt_alerts a where a.pipeline = pipe));
end $$;
