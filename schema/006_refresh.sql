-- Refreshing, waiting, suspending, resuming. With a live sidecar these functions wait for it; without one they do
-- the work themselves, by difference, and say that capture is not live.

-- Null, or why the caller's transaction could never see a result of the sidecar that it waits for.
create or replace function pgtrickle._cannot_wait() returns text
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select case
        when current_setting('transaction_isolation') <> 'read committed'
            then format('a %s transaction sees only its own snapshot', current_setting('transaction_isolation'))
        -- An xid alone is no write: nextval of a request assigns one. A lock on a table that writes take is.
        when pg_current_xact_id_if_assigned() is not null and exists (
            select from pg_locks l join pg_class c on c.oid = l.relation
             where l.pid = pg_backend_pid() and l.locktype = 'relation' and c.relkind in ('r', 'p', 'm', 'f')
               and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
               and c.relnamespace not in ('pgtrickle'::regnamespace, 'pg_catalog'::regnamespace))
            then 'the transaction has written, and its own changes are captured only after its commit'
        end
$$;

-- Raises 55P03 when this session holds a lock that the sidecar's apply session waits for: it would wait for ever.
create or replace function pgtrickle._check_blocking(pipeline text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_stat_clear_snapshot();
    if exists (select from pg_stat_activity a
                where a.application_name = 'pgtrickle:' || pipeline || ':apply' and a.datname = current_database()
                  and pg_backend_pid() = any (pg_blocking_pids(a.pid))) then
        raise exception 'this transaction holds a lock that the sidecar waits for' using errcode = '55P03',
            hint = 'Commit or roll back first, then call the function again.';
    end if;
end $$;

-- Whether everything up to `target` is in: the frontier has passed it, and no stream table that was just created, or was
-- taken out before and is taken up again (as far as the caller may see them), still waits for its reconcile.
create or replace function pgtrickle._has_passed(target pg_lsn, pipe text) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select exists (select from pgtrickle.pgt_pipelines p where p.pipeline = pipe and p.frontier >= target
                     -- A frontier beyond the WAL was written in another history: the database was restored.
                     and (pg_is_in_recovery() or p.frontier <= pg_current_wal_insert_lsn()))
       and not exists (select from pgtrickle.pgt_stream_tables s
                        where s.pipeline = pipe and s.status = 'INITIALIZING'
                          and (s.frontier is not null
                               or s.is_populated and s.refresh_mode = 'DIFFERENTIAL' and pgtrickle._is_continuous(s.schedule)))
       and not exists (select from pgtrickle.pgt_behind b where b.pipeline = pipe)
$$;

-- Waits until the pipeline's frontier has passed `target`; false when the time is over.
create or replace function pgtrickle._wait_frontier(target pg_lsn, timeout interval, pipe text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    deadline timestamptz := clock_timestamp() + timeout;
    next_check timestamptz := clock_timestamp() + interval '100 ms';
    pause double precision := 0.002;
begin
    loop
        if pgtrickle._has_passed(target, pipe) then
            return true;
        end if;
        if clock_timestamp() > deadline then
            return false;
        end if;
        if clock_timestamp() > next_check then
            perform pgtrickle._check_blocking(pipe);
            next_check := clock_timestamp() + interval '200 ms';
        end if;
        perform pg_sleep(pause);
        pause := least(pause * 1.5, 0.02);
    end loop;
end $$;

-- Waits until every ACTIVE DIFFERENTIAL stream table of the pipeline that is maintained continuously contains everything
-- up to `lsn` (by default: everything committed before the call); one with another schedule needs
-- refresh_stream_table. False when that takes longer than `timeout`.
--
-- pipeline: by default all that have stream tables. What a pipeline reads of another one's stream tables arrives only after
-- that one has written it, so the pipelines upstream are waited for first, link by link.
create or replace function pgtrickle.wait_for(lsn pg_lsn default null, timeout interval default '30 s',
                                               pipeline text default null) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    target pg_lsn := lsn;
    obstacle text;
    pipes text[];
    pipe text;
    deadline timestamptz;
    links int;
begin
    if pipeline is not null then
        perform pgtrickle._check_pipeline(pipeline);
    end if;
    if timeout is null or timeout < interval '0' then
        raise exception 'timeout must be a duration of zero or more' using errcode = '22023',
            hint = 'For example interval ''30 s''.';
    end if;
    if target is null then
        target := case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end;
    end if;
    select u.pipelines, u.links into pipes, links from pgtrickle._upstream_pipelines(pipeline) u;
    deadline := clock_timestamp() + timeout;
    for link in 0 .. links loop
        foreach pipe in array pipes loop
            continue when pgtrickle._has_passed(target, pipe);
            if obstacle is null then
                obstacle := pgtrickle._cannot_wait();
                if obstacle is not null then
                    raise exception 'cannot wait here: %', obstacle using errcode = '25001',
                        hint = 'Call it in its own READ COMMITTED transaction, after the commit of your changes.';
                end if;
                obstacle := '';
            end if;
            -- Making a slot waits for whoever has a transaction id, as a request does; it begins after the target anyway.
            if not pg_is_in_recovery() and pgtrickle.sidecar_alive(pipe) and pgtrickle._has_stream(pipe) then
                perform pgtrickle._request('wait', jsonb_build_object('pipeline', pipe, 'lsn', target::text));
            end if;
            if not pgtrickle._wait_frontier(target, deadline - clock_timestamp(), pipe) then
                return false;
            end if;
        end loop;
        -- What the first link has written is part of the WAL now.
        target := case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end;
    end loop;
    return true;
end $$;

-- Takes the pipeline's lease for this transaction and raises its generation, so that a sidecar that comes back
-- reconciles; null when a sidecar (or somebody else) holds the lease. Definer's rights: callers may not write
-- pgt_pipelines, and this is all they can do to it, only while no sidecar lives.
create or replace function pgtrickle._take_over(pipe text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    g bigint;
begin
    if not pg_try_advisory_xact_lock(1346852939, hashtext(pipe)) then
        return null;
    end if;
    update pgtrickle.pgt_pipelines p set generation = p.generation + 1 where p.pipeline = pipe returning generation into g;
    return g;
end $$;

-- Leaves a stream table out of a refresh, with a trace: a WARNING here and in the server's log, and a history row.
create or replace function pgtrickle._skip(id bigint, label text, state text, why text, what_to_do text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if to_regclass('pgtrickle.pgt_refresh_history') is null then
        perform pgtrickle._make_history();
    end if;
    insert into pgtrickle.pgt_refresh_history (pgt_id, pgt_name, end_time, action, status, reason, sqlstate, error_message,
        initiated_by)
    select s.pgt_id, s.pgt_name, clock_timestamp(), 'SKIP', 'SKIPPED', 'not refreshed: ' || why, state, why, 'MANUAL'
      from pgtrickle.pgt_stream_tables s where s.pgt_id = id;
    raise warning 'stream table % was not refreshed: %', label, why using errcode = state, hint = what_to_do;
end $$;

create or replace function pgtrickle._refresh(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    label text;
    timeout interval;
    deadline timestamptz;
    target pg_lsn;
    obstacle text;
    reply jsonb;
    request bigint;
    generation bigint;
    released boolean := false;
    next_check timestamptz := clock_timestamp() + interval '100 ms';
    pause double precision := 0.003;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    timeout := pgtrickle._setting_interval('refresh_timeout', s.pipeline);
    deadline := clock_timestamp() + timeout;
    if pg_is_in_recovery() then
        raise exception 'cannot refresh stream tables on a read replica' using errcode = '22023',
            hint = 'Run it on the primary.';
    end if;
    if not exists (select from pg_class c where c.oid = s.pgt_relid) then
        perform pgtrickle._skip(id, label, '42P01', 'its table was dropped',
            format('Clean up with SELECT pgtrickle.drop_stream_table(%L); and create it again.', label));
        return;
    elsif s.status in ('SUSPENDED', 'ERROR') then
        perform pgtrickle._skip(id, label, coalesce(s.last_error_sqlstate, '55000'),
            format('its status is %s: %s', s.status, coalesce(s.last_error_message, 'it was suspended by hand')),
            format('Resume it first: SELECT pgtrickle.resume_stream_table(%L);', label));
        return;
    end if;
    target := pg_current_wal_insert_lsn();
    loop
        -- Moved just now: the pipeline that wrote it before may still do so.
        released := released or pgtrickle._let_go(id);
        if released and not pgtrickle.sidecar_alive(s.pipeline) then
            generation := pgtrickle._take_over(s.pipeline);
            exit when generation is not null;
        end if;
        if obstacle is null then
            obstacle := pgtrickle._cannot_wait();
            if obstacle is not null then
                raise exception 'cannot refresh stream table % here: %', label, obstacle using errcode = '25001',
                    hint = 'Call it in its own READ COMMITTED transaction, after the commit of your changes.';
            end if;
            obstacle := '';
            -- What it reads of stream tables of other pipelines has to be written first.
            if s.refresh_mode = 'DIFFERENTIAL' and pgtrickle._wait_upstream(id, deadline) then
                target := pg_current_wal_insert_lsn();
            end if;
            -- The sidecar looks who holds this lock when the number of requests has risen: it is visible at once, also
            -- where changes are polled.
            perform pg_advisory_xact_lock_shared(1346852940, (id & 2147483647)::int);
        end if;
        -- Without the stream the sidecar can't be told which one; PostgreSQL recomputes it here and now.
        if s.refresh_mode = 'FULL' and released and pgtrickle.sidecar_alive(s.pipeline)
           and (select p.delivery = 'poll' from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline) then
            perform pg_advisory_xact_lock(hashtextextended('pgtrickle recompute ' || id, 0));
            perform pgtrickle._recompute(id, 'FULL', 'MANUAL', 'asked for');
            return;
        end if;
        if request is null and released and pgtrickle.sidecar_alive(s.pipeline) and pgtrickle._has_stream(s.pipeline) then
            request := pgtrickle._request('refresh', jsonb_build_object('pipeline', s.pipeline, 'pgt_id', id));
        end if;
        select * into s from pgtrickle.pgt_stream_tables where pgt_id = id;
        if not found or s.status in ('SUSPENDED', 'ERROR') then
            raise exception 'stream table % could not be refreshed: %', label,
                coalesce(s.last_error_message, s.status, 'it was dropped')
                using errcode = coalesce(s.last_error_sqlstate, '55000'),
                      hint = 'SELECT * FROM pgtrickle.get_refresh_history(''' || label || ''');';
        end if;
        if s.refresh_mode = 'DIFFERENTIAL' and s.status = 'ACTIVE'
           and not exists (select from pgtrickle.pgt_behind b where b.pgt_id = id) then
            -- What has a schedule is complete up to a frontier of its own.
            if exists (select from pgtrickle.pgt_pipelines p
                        cross join lateral (select case when pgtrickle._is_continuous(s.schedule) then p.frontier
                                                        else s.frontier end as frontier) f
                        where p.pipeline = s.pipeline and f.frontier >= target
                          and f.frontier <= pg_current_wal_insert_lsn()) then
                return;
            end if;
        end if;
        select a.answer into reply from pgtrickle.pgt_answers a where a.request_id = request;
        if found and not coalesce((reply ->> 'ok')::boolean, false) then
            raise exception 'stream table % could not be refreshed: %', label, reply ->> 'message'
                using errcode = coalesce(reply ->> 'sqlstate', '55000'), hint = coalesce(reply ->> 'hint',
                    'SELECT * FROM pgtrickle.get_refresh_history(''' || label || ''');');
        elsif found and s.refresh_mode = 'FULL' then
            return;
        end if;
        if clock_timestamp() > next_check then
            perform pgtrickle._check_blocking(s.pipeline);
            next_check := clock_timestamp() + interval '200 ms';
        end if;
        if clock_timestamp() > deadline then
            raise exception 'stream table % is not fresh after %', label, timeout using errcode = '55P03',
                hint = 'The sidecar is behind; see pgtrickle.pgt_status(), or raise refresh_timeout in pgtrickle.settings.';
        end if;
        perform pg_sleep(pause);
        pause := least(pause * 1.5, 0.02);
    end loop;
    if exists (select from pgtrickle.stream_table_names n
                where n.pgt_id = id and (n.pgt_schema, n.pgt_name) <> (s.pgt_schema, s.pgt_name)) then
        perform pgtrickle._follow_rename(id);
        perform pgtrickle._create_functions(id);
    end if;
    perform pgtrickle._check_row_security(s.query_view, label);
    perform pgtrickle._recompute(id, 'FULL', 'MANUAL', 'no sidecar is running: recomputed by difference');
    raise warning 'stream table % was recomputed; no sidecar is running, so later changes are not captured', label
        using errcode = '01000', hint = 'Start the sidecar: pgtrickle run.';
end $$;

-- An unqualified name that several stream tables have means all of those that are the caller's.
create or replace function pgtrickle._refresh_named(name text, path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    id bigint;
    several boolean := false;
begin
    begin
        id := pgtrickle._find(name, path, true);
    exception when ambiguous_alias then
        several := true;
    end;
    if not several then
        perform pgtrickle._refresh(id);
        return;
    end if;
    for id in select n.pgt_id from pgtrickle.stream_table_names n
               where n.pgt_name in (name, (select s.rel from pgtrickle._split_name(name, false) s)) and n.mine
               order by n.pgt_id loop
        several := false;
        perform pgtrickle._refresh(id);
    end loop;
    if several then
        raise exception 'must be owner of a stream table %', name using errcode = '42501',
            hint = 'SELECT pgt_schema, pgt_name, owner FROM pgtrickle.stream_tables_info tells the owners.';
    end if;
end $$;

-- Returns when the stream table contains everything committed before the call. One that is suspended, in status ERROR
-- or whose table was dropped is left out with a WARNING and a row of action SKIP in the history, so that
-- `select pgtrickle.refresh_stream_table(pgt_name) from pgtrickle.stream_tables_info` serves the others; a failure of the
-- refresh itself is an error. Without a live sidecar it is recomputed here by difference, with a WARNING that changes
-- are not captured.
create or replace function pgtrickle.refresh_stream_table(name text) returns void
language sql volatile as $$
    select pgtrickle._refresh_named($1, pg_catalog.current_setting('search_path'))
$$;

create or replace function pgtrickle._set_status(id bigint, new_status text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    label text;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id for no key update;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    if new_status = 'SUSPENDED' then
        if s.status = 'SUSPENDED' then
            raise notice 'stream table % is suspended already', label;
            return;
        end if;
        -- What it holds is as fresh as its pipeline is now, and stays so.
        update pgtrickle.pgt_stream_tables t
           set status = 'SUSPENDED', config_version = t.config_version + 1, updated_at = now(),
               data_timestamp = case when s.refresh_mode = 'DIFFERENTIAL' and s.status = 'ACTIVE'
                                          and pgtrickle._is_continuous(s.schedule) then greatest(t.data_timestamp,
                   (select p.data_timestamp from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline))
                   else t.data_timestamp end
         where t.pgt_id = id;
        return;
    end if;
    if s.status not in ('SUSPENDED', 'ERROR') then
        raise exception 'stream table % is not suspended: its status is %', label, s.status using errcode = '22023',
            hint = 'Nothing needs to be resumed.';
    end if;
    if not exists (select from pg_class c where c.oid = s.pgt_relid) then
        raise exception 'the table of stream table % was dropped', label using errcode = '42P01',
            hint = format('Clean up with SELECT pgtrickle.drop_stream_table(%L); and create it again.', label);
    end if;
    if s.parked_query is not null then
        raise exception 'stream table % is parked for a migration of %', label, s.parked_for using errcode = '55000',
            hint = format('SELECT pgtrickle.end_ddl(%L); puts its query back.', s.parked_for);
    end if;
    -- The table or its schema may have been renamed: the functions name it.
    perform pgtrickle._follow_rename(id);
    perform pgtrickle._create_functions(id);
    update pgtrickle.pgt_stream_tables t
       set status = case when t.refresh_mode = 'FULL' and t.is_populated then 'ACTIVE' else 'INITIALIZING' end,
           consecutive_errors = 0, last_error_sqlstate = null, last_error_message = null, last_error_query = null, last_error_at = null,
           config_version = t.config_version + 1, updated_at = now()
     where t.pgt_id = id;
end $$;

-- Brings the stored name in line with the table's present one.
create or replace function pgtrickle._follow_rename(id bigint) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    update pgtrickle.pgt_stream_tables t set pgt_schema = n.nspname, pgt_name = c.relname, updated_at = now()
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where t.pgt_id = id and c.oid = t.pgt_relid and (t.pgt_schema, t.pgt_name) is distinct from (n.nspname, c.relname)
$$;

-- Stops the maintenance of a stream table; its rows stay as they are.
create or replace function pgtrickle.suspend_stream_table(name text) returns void
language sql volatile as $$
    select pgtrickle._set_status(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true), 'SUSPENDED')
$$;

-- Takes a suspended or failed stream table up again; the sidecar brings it up to date by difference.
create or replace function pgtrickle.resume_stream_table(name text) returns void
language sql volatile as $$
    select pgtrickle._set_status(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true), 'ACTIVE')
$$;
