-- A pause: for a time the sidecar holds no session in this database and keeps its slot, so that it goes on from there
-- and reads no source again. Bounded: it ends by itself at its moment, and earlier when the slot retains more WAL than
-- slot_lag_critical_threshold_mb, because nobody else looks at that meanwhile.

alter table pgtrickle.pgt_pipelines add column if not exists paused_until timestamptz;

-- Asks the sidecar to leave until `until`. For a longer absence, or one of unknown length: detach().
create or replace function pgtrickle.pause(until timestamptz, pipeline text default 'main') returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p pgtrickle.pgt_pipelines;
begin
    select * into p from pgtrickle.pgt_pipelines t where t.pipeline = pause.pipeline for update;
    if not found then
        raise exception 'pipeline % does not exist', coalesce(quote_literal(pipeline), 'null') using errcode = '22023',
            hint = 'SELECT pipeline FROM pgtrickle.pgt_pipelines lists them.';
    elsif until is null or not isfinite(until) or until <= clock_timestamp() then
        raise exception 'a pause needs a moment in the future at which it ends' using errcode = '22023',
            hint = 'For example now() + interval ''30 min''. To leave without an end: pgtrickle.detach().';
    elsif until > clock_timestamp() + interval '7 days' then
        raise exception 'a pause may last seven days at most: the slot retains WAL meanwhile' using errcode = '22023',
            hint = 'Use pgtrickle.detach(), which gives the slot up; attach() reconciles by difference.';
    elsif p.detached_at is not null then
        raise exception 'the pipeline % is detached', pipeline using errcode = '55000',
            hint = 'There is no sidecar to pause; pgtrickle.attach() brings it back.';
    end if;
    update pgtrickle.pgt_pipelines t set paused_until = until where t.pipeline = pause.pipeline;
    return format('pipeline %s is paused until %s', pipeline, until);
end $$;

create or replace function pgtrickle.unpause(pipeline text default 'main') returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    before timestamptz;
begin
    select t.paused_until into before from pgtrickle.pgt_pipelines t where t.pipeline = unpause.pipeline for update;
    if not found then
        raise exception 'pipeline % does not exist', coalesce(quote_literal(pipeline), 'null') using errcode = '22023',
            hint = 'SELECT pipeline FROM pgtrickle.pgt_pipelines lists them.';
    elsif before is null or before <= clock_timestamp() then
        return format('the pipeline %s was not paused', pipeline);
    end if;
    update pgtrickle.pgt_pipelines t set paused_until = null where t.pipeline = unpause.pipeline;
    return format('the pipeline %s is served again', pipeline);
end $$;

-- Asked by the sidecar while it is paused: null when it may go on, else until when not. Ends a pause that has become
-- dangerous for the server, and says so.
create or replace function pgtrickle._paused(pipe text) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p pgtrickle.pgt_pipelines;
    retained bigint;
    danger boolean;
begin
    select * into p from pgtrickle.pgt_pipelines t where t.pipeline = pipe;
    if not found or p.paused_until is null or p.paused_until <= clock_timestamp() then
        return null;
    end if;
    select s.retained_bytes, s.retained_bytes > pgtrickle._setting_mb('slot_lag_critical_threshold_mb', pipe)
           or s.wal_status <> all (array['reserved', 'extended', 'missing'])
      into retained, danger from pgtrickle.pipeline_slots s where s.pipeline = pipe;
    if not coalesce(danger, false) then
        return p.paused_until;
    end if;
    update pgtrickle.pgt_pipelines t set paused_until = null where t.pipeline = pipe;
    perform pg_notify('pg_trickle_alert', jsonb_build_object('event', 'pause_ended', 'status', 'told', 'severity', 'warning',
        'pipeline', pipe, 'slot', p.slot_name, 'retained_bytes', retained,
        'message', 'the pause was ended early: the slot retains too much WAL')::text);
    raise warning 'pgtrickle: the pause of pipeline % was ended early: its slot retains % of WAL', pipe, pg_size_pretty(retained);
    return null;
end $$;
