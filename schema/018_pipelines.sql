-- Pipelines by name, and moving stream tables between them.
--
-- A move is one update of the catalog. Invariant: at most one pipeline writes a stream table. While `moving_from` is set,
-- the pipeline named there may still write it, and the one in `pipeline` does not know it yet; it is cleared by
--   - the sidecar of the former pipeline, once no apply of its own that contains the stream table is under way, or
--   - anybody, under the lease of the former pipeline, when no sidecar serves that, or
--   - the sidecar of the new pipeline when the former one does not answer and shows no sign of life: it raises that one's
--     generation, which ends the apply under way and refuses the next.
-- A recomputation holds an advisory lock, which each of the three takes. Then the new pipeline finds a stream table that
-- it has never seen, and reconciles it at a boundary of its own, by difference.

-- Null or an error: whether somebody else than the pipeline of a stream table may still write it. False: not yet.
create or replace function pgtrickle._let_go(id bigint) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
    former text;
    ours boolean;
begin
    select s.moving_from, s.xmin = (pg_current_xact_id_if_assigned()::text::bigint & 4294967295)::text::xid
      into former, ours from pgtrickle.pgt_stream_tables s where s.pgt_id = id;
    if former is null then
        return true;
    elsif ours then
        raise exception 'the stream table was moved by this very transaction' using errcode = '25001',
            hint = 'Commit first: the pipeline that it was moved from lets go of it after the commit.';
    end if;
    -- A live sidecar lets go by itself.
    if pgtrickle.sidecar_alive(former) or pgtrickle._take_over(former) is null
       or not pg_try_advisory_xact_lock(hashtextextended('pgtrickle recompute ' || id, 0)) then
        return false;
    end if;
    update pgtrickle.pgt_stream_tables t set moving_from = null where t.pgt_id = id and t.moving_from = former;
    return true;
end $$;

-- Whether whoever holds a pipeline's lease has done anything lately: one that is only busy lets go in its own time. Where
-- its sessions are another role's, what it has written last says so.
create or replace function pgtrickle._shows_life(pipe text) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select exists (
        select from pg_locks l join pg_stat_activity a on a.pid = l.pid
          left join pgtrickle.pgt_pipelines p on p.pipeline = pipe
         where l.locktype = 'advisory' and l.classid = 1346852939::oid and l.objsubid = 2 and l.granted
           and l.database = (select d.oid from pg_database d where d.datname = current_database())
           and l.objid = ((hashtext(pipe)::bigint & 4294967295))::oid
           and coalesce(a.state_change > clock_timestamp() - interval '5 s', p.heartbeat_at > clock_timestamp() - interval '30 s'))
$$;

-- The same for the sidecar of the new pipeline when that of the former one holds the lease, does not let go and shows no
-- sign of life: its next apply is refused, and it starts again. Waits for an apply that is under way, shortly: it is called by a loop that has other work.
create or replace function pgtrickle._let_go_by_force(id bigint) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
declare
    former text := (select s.moving_from from pgtrickle.pgt_stream_tables s where s.pgt_id = id);
begin
    if former is null then
        return true;
    elsif pgtrickle._shows_life(former) then
        return false;
    end if;
    update pgtrickle.pgt_pipelines p set generation = p.generation + 1 where p.pipeline = former;
    if not pg_try_advisory_xact_lock(hashtextextended('pgtrickle recompute ' || id, 0)) then
        return false;
    end if;
    update pgtrickle.pgt_stream_tables t set moving_from = null where t.pgt_id = id and t.moving_from = former;
    return true;
end $$;

-- Waits until nobody but its pipeline writes a stream table.
create or replace function pgtrickle._await_let_go(id bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    deadline timestamptz;
    s record;
begin
    while not pgtrickle._let_go(id) loop
        select t.pipeline, t.moving_from, format('%I.%I', t.pgt_schema, t.pgt_name) as label into s
          from pgtrickle.pgt_stream_tables t where t.pgt_id = id;
        deadline := coalesce(deadline, clock_timestamp() + pgtrickle._setting_interval('refresh_timeout', s.pipeline));
        if clock_timestamp() > deadline then
            raise exception 'pipeline % has not let go of stream table % yet', s.moving_from, s.label using errcode = '55P03',
                hint = 'Its sidecar is busy or stopped; SELECT * FROM pgtrickle.pipelines_info; tells more.';
        end if;
        perform pg_sleep(0.02);
    end loop;
end $$;

-- The pipelines that stream tables stand on through stream tables, and the longest chain of links between two pipelines:
-- of one stream table (then only what is above the first link), of one pipeline, or (nulls) of all.
-- Definer's rights: the dependencies of others are hidden; what comes back is names of pipelines and a number.
create or replace function pgtrickle._upstream_pipelines(pipe text, id bigint default null, out pipelines text[], out links int)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    with recursive up (pgt_id, relid, pipeline, links) as (
        select s.pgt_id, s.pgt_relid::oid, s.pipeline, 0 from pgtrickle.pgt_stream_tables s
         where s.pgt_id = id or id is null and s.refresh_mode = 'DIFFERENTIAL' and s.status <> 'SUSPENDED'
                                and s.pipeline = coalesce(pipe, s.pipeline)
        union
        select s.pgt_id, s.pgt_relid::oid, s.pipeline, u.links + (s.pipeline <> u.pipeline)::int
          from up u join pgtrickle.pgt_dependencies d on d.pgt_id = u.pgt_id
          join pgtrickle.pgt_stream_tables s on s.pgt_relid::oid = d.source::oid
         where u.links < 50)
    select coalesce(array_agg(distinct u.pipeline) filter (where id is null or u.links > 0),
                    case when id is null then array[coalesce(pipe, 'main')] else '{}' end)
           || case when id is null and pipe is not null and not coalesce(bool_or(u.pipeline = pipe), true) then array[pipe] else '{}' end,
           coalesce(max(u.links), 0)
      from up u
$$;

-- Waits until what a stream table reads of other pipelines' stream tables contains everything committed so far; false if
-- it reads none. 55P03 when that is not so at the deadline.
create or replace function pgtrickle._wait_upstream(id bigint, deadline timestamptz) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    pipes text[];
    pipe text;
    links int;
    target pg_lsn;
begin
    select u.pipelines, u.links into pipes, links from pgtrickle._upstream_pipelines(null, id) u;
    for link in 1 .. links loop
        target := pg_current_wal_insert_lsn();
        foreach pipe in array pipes loop
            if pgtrickle.sidecar_alive(pipe) and pgtrickle._has_stream(pipe) then
                perform pgtrickle._request('wait', jsonb_build_object('pipeline', pipe, 'lsn', target::text));
            end if;
            if not pgtrickle._wait_frontier(target, deadline - clock_timestamp(), pipe) then
                raise exception 'pipeline %, which the stream table reads, is behind', pipe using errcode = '55P03',
                    hint = 'Its sidecar may not run: SELECT * FROM pgtrickle.pipelines_info;';
            end if;
        end loop;
    end loop;
    return links > 0;
end $$;

create or replace function pgtrickle._move(id bigint, pipe text, is_cascade boolean) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    d record;
    label text;
    moved bigint := 0;
    apart text[] := '{}';
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id for no key update;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    perform pgtrickle._check_pipeline(pipe, s.owner);
    if s.pipeline <> pipe then
        update pgtrickle.pgt_stream_tables t set pipeline = pipe, updated_at = now() where t.pgt_id = id;
        moved := 1;
    end if;
    for d in select x.pgt_id, x.label, x.mine, i.pipeline from pgtrickle._dependents(id) x
               join pgtrickle.stream_tables_info i on i.pgt_id = x.pgt_id where i.pipeline <> pipe loop
        if not is_cascade or d.pipeline <> s.pipeline then
            apart := apart || d.label;
        elsif not d.mine then
            raise exception 'must be owner of stream table %, which reads %', d.label, label using errcode = '42501',
                hint = 'Let its owner move it, or move this one alone.';
        else
            moved := moved + pgtrickle._move(d.pgt_id, pipe, true);
        end if;
    end loop;
    if moved > 0 and cardinality(apart) > 0 then
        raise notice 'other pipelines read stream table %: %', label, array_to_string(apart, ', ')
            using hint = 'They follow what it stores, in transactions of their own.';
    end if;
    if moved > 0 and not pgtrickle.sidecar_alive(pipe) then
        raise warning 'no sidecar serves pipeline %: stream table % stays as it is until one does', pipe, label
            using errcode = '01000', hint = format('Start it: pgtrickle run --pipeline %s', pipe);
    end if;
    return moved;
end $$;

-- Moves a stream table to another pipeline; with cascade also those of its pipeline that read it. Its rows stay: readers
-- see the old answer until the new pipeline writes its first difference. Returns how many were moved.
create or replace function pgtrickle.move_stream_table(name text, pipeline text, "cascade" boolean default false) returns bigint
language sql volatile as $$
    select pgtrickle._move(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true), $2, $3)
$$;

-- Makes a pipeline. Its slot is made by its first sidecar. roles: who may own stream tables in it, directly or as a
-- member (null: whoever may use pgtrickle). settings: values of its own, which win over those of the database. For the
-- installing role: a slot is a matter of whoever runs the server.
create or replace function pgtrickle.create_pipeline(name text, roles name[] default null, settings jsonb default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    role name;
begin
    if pg_is_in_recovery() then
        raise exception 'cannot create a pipeline on a read replica' using errcode = '25006', hint = 'Run it on the primary.';
    elsif name is null or name !~ '^[a-z0-9_]{1,20}$' then
        raise exception 'invalid name of a pipeline: %', coalesce(quote_literal(name), 'null') using errcode = '42602',
            hint = 'Use 1 to 20 lower-case letters, digits and _: it is part of a replication slot''s name.';
    elsif exists (select from pgtrickle.pgt_pipelines p where p.pipeline = name) then
        raise exception 'pipeline % already exists', quote_literal(name) using errcode = '42710',
            hint = 'pgtrickle.alter_pipeline() changes who may use it.';
    end if;
    foreach role in array coalesce(roles, '{}') loop
        perform pgtrickle._require_role(role);
    end loop;
    insert into pgtrickle.pgt_pipelines (pipeline, roles) values (name, create_pipeline.roles);
    insert into pgtrickle.pgt_tokens (pipeline) values (name);
    insert into pgtrickle.settings (key, value, pipeline)
        select s.key, s.value, name from jsonb_each_text(settings) s;
    if current_setting('wal_level') = 'logical'
       and (select count(*) from pg_replication_slots) >= current_setting('max_replication_slots')::int then
        raise warning 'all % replication slots are in use', current_setting('max_replication_slots') using errcode = '01000',
            hint = 'Raise max_replication_slots: until one is free, changes of this pipeline are captured by triggers.';
    end if;
end $$;

-- Changes who may own stream tables in a pipeline (null: whoever may use pgtrickle). Those that are there stay.
create or replace function pgtrickle.alter_pipeline(name text, roles name[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    role name;
begin
    perform pgtrickle._check_pipeline(name);
    foreach role in array coalesce(roles, '{}') loop
        perform pgtrickle._require_role(role);
    end loop;
    update pgtrickle.pgt_pipelines p set roles = alter_pipeline.roles where p.pipeline = name;
end $$;

-- Drops a pipeline with its slot, publication, triggers, buffers and settings; cascade: with its stream tables, too.
-- No sidecar may serve it any more. What it was to let go of is let go of.
create or replace function pgtrickle.drop_pipeline(name text, "cascade" boolean default false) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    p pgtrickle.pgt_pipelines;
    s record;
    inside text[];
begin
    perform pgtrickle._check_pipeline(name);
    if name = 'main' then
        raise exception 'the pipeline main cannot be dropped' using errcode = '2BP01',
            hint = 'pgtrickle uninstall takes everything out of the database.';
    end if;
    select array_agg(format('%I.%I', n.pgt_schema, n.pgt_name) order by n.pgt_id) into inside
      from pgtrickle.pgt_stream_tables t join pgtrickle.stream_table_names n on n.pgt_id = t.pgt_id where t.pipeline = name;
    if inside is not null and not "cascade" then
        raise exception 'pipeline % has % stream tables: %', name, cardinality(inside), pgtrickle._some(inside)
            using errcode = '2BP01',
                  hint = 'Move them with pgtrickle.move_stream_table(), or use drop_pipeline(name, cascade => true).';
    end if;
    if pgtrickle.sidecar_alive(name) or pgtrickle._take_over(name) is null then
        raise exception 'a sidecar serves pipeline %', name using errcode = '55006',
            hint = format('Make it leave first: SELECT pgtrickle.detach(%L); in a transaction of its own, or use pgtrickle pipelines drop.', name);
    end if;
    loop
        select t.pgt_id into s from pgtrickle.pgt_stream_tables t where t.pipeline = name order by t.pgt_id limit 1;
        exit when not found;
        perform pgtrickle._drop(s.pgt_id, true);
    end loop;
    update pgtrickle.pgt_stream_tables t set moving_from = null where t.moving_from = name;
    for s in select q.source_id from pgtrickle.pgt_sources q where q.pipeline = name loop
        perform pgtrickle._install_capture(s.source_id, 'off');
        perform pgtrickle._forget_capture(s.source_id);
        execute format('drop function if exists pgtrickle_queries.attach_%s(text, bigint, boolean)', s.source_id);
    end loop;
    select * into strict p from pgtrickle.pgt_pipelines t where t.pipeline = name;
    if p.publication_name is not null then
        perform pgtrickle.publication_sync(p.publication_name, null);
    end if;
    delete from pgtrickle.pgt_alerts t where t.pipeline = name;
    delete from pgtrickle.pgt_recoveries t where t.pipeline = name;
    delete from pgtrickle.pgt_tokens t where t.pipeline = name;
    delete from pgtrickle.pgt_sources t where t.pipeline = name;
    delete from pgtrickle.settings t where t.pipeline = name;
    -- The slot last: its end is not undone by a rollback. The sidecar that has just left may be dropping it, too.
    for attempt in 1 .. 20 loop
        begin
            perform pgtrickle.detach(name);
            exit;
        exception when undefined_object or object_in_use then
            if attempt = 20 then
                raise;
            end if;
            perform pg_sleep(0.05);
        end;
    end loop;
    delete from pgtrickle.pgt_pipelines t where t.pipeline = name;
end $$;

-- One row per pipeline: who serves it, how fresh it is, what it keeps on the server.
create or replace view pgtrickle.pipelines_info as
select p.pipeline, pgtrickle.sidecar_alive(p.pipeline) as served,
       case when p.detached_at is not null then 'DETACHED'
            when p.paused_until > pg_catalog.clock_timestamp() then 'PAUSED'
            when pgtrickle.sidecar_alive(p.pipeline) then 'SERVED' else 'OFFLINE' end as status,
       p.sidecar, p.started_at, p.frontier, p.data_timestamp,
       pg_catalog.clock_timestamp() - p.data_timestamp as staleness,
       (select count(*) from pgtrickle.pgt_stream_tables s where s.pipeline = p.pipeline) as stream_tables,
       (select count(*) from pgtrickle.pgt_stream_tables s where s.pipeline = p.pipeline and s.moving_from is not null) as arriving,
       (select count(*) from pgtrickle.pgt_sources s where s.pipeline = p.pipeline) as sources,
       (select coalesce(sum(o.bytes), 0)::bigint from pgtrickle.pgt_operator_state o
          join pgtrickle.pgt_stream_tables s on s.pgt_id = o.pgt_id where s.pipeline = p.pipeline and not o.shared) as state_bytes,
       p.delivery, l.slot_name, l.active as slot_active, l.retained_bytes, l.lag_bytes, p.roles, p.generation, p.created_at
  from pgtrickle.pgt_pipelines p
  left join pgtrickle.pipeline_slots l on l.pipeline = p.pipeline;
