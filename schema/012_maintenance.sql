-- Checking and repairing stream tables.

-- End of the last transaction up to the frontier that changed any source of the pipeline; written with the frontier.
alter table pgtrickle.pgt_pipelines add column if not exists changed_lsn pg_lsn;

-- One comparison of the stored rows with the query: in one statement, so at one snapshot. Rows are compared by their
-- text, as everywhere (1.0 is not 1.00). hashes and counts tell the differing rows: positive ones are missing.
create or replace function pgtrickle._compare(s pgtrickle.pgt_stream_tables, out missing bigint, out surplus bigint,
    out hashes uuid[], out counts bigint[], out frontier pg_lsn, out generation bigint, out seen_until pg_lsn)
language plpgsql set search_path = pg_catalog, pg_temp set datestyle = 'ISO, MDY' set intervalstyle = postgres
set extra_float_digits = 1 set bytea_output = hex set xmlbinary = base64 set jit = off
-- Set below to what the query was created under; named here so that they come back.
set timezone = 'UTC' set lc_monetary = 'C' set lc_numeric = 'C' set lc_time = 'C'
set default_text_search_config = 'pg_catalog.simple' as $$
declare
    setting record;
begin
    for setting in select * from jsonb_each_text(s.query_settings) loop
        perform set_config(setting.key, setting.value, true);
    end loop;
    -- The position is read while the statement runs, so after its snapshot: every commit that it sees is before it.
    execute format(
        'select coalesce(sum(d.n) filter (where d.n > 0), 0), coalesce(-sum(d.n) filter (where d.n < 0), 0),
                array_agg(md5(d.img)::uuid order by d.img), array_agg(d.n::bigint order by d.img),
                (select case when pgtrickle._is_continuous(x.schedule) then p.frontier else x.frontier end
                   from pgtrickle.pgt_pipelines p join pgtrickle.pgt_stream_tables x on x.pipeline = p.pipeline where x.pgt_id = %6$s),
                (select p.generation from pgtrickle.pgt_pipelines p where p.pipeline = %1$L),
                case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end
           from (select u.img, sum(u.n) as n
                   from (select row(%2$s)::text collate "C" as img, 1 as n from %3$s q
                         union all select row(%4$s)::text collate "C", -1 from only %5$s t) u
                  group by u.img having sum(u.n) <> 0) d',
        s.pipeline, pgtrickle._column_list(s.query_view, 'q.'), s.query_view,
        pgtrickle._column_list(s.query_view, 't.'), s.pgt_relid, s.pgt_id)
      into missing, surplus, hashes, counts, frontier, generation, seen_until;
end $$;

-- The part of two sets of differing rows that is in both, with the same sign.
create or replace function pgtrickle._common(inout hashes uuid[], inout counts bigint[], more_hashes uuid[], more_counts bigint[])
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(array_agg(a.h), '{}'),
           coalesce(array_agg(sign(a.n)::bigint * least(abs(a.n), abs(b.n))), '{}')
      from unnest(hashes, counts) a (h, n) join unnest(more_hashes, more_counts) b (h, n) on b.h = a.h
     where sign(a.n) = sign(b.n)
$$;

-- Waits until the frontier has passed `target`, whatever other stream tables are doing; false when the time is over.
create or replace function pgtrickle._await_frontier(target pg_lsn, timeout interval, pipe text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    deadline timestamptz := clock_timestamp() + timeout;
    pause double precision := 0.002;
begin
    loop
        if exists (select from pgtrickle.pgt_pipelines p where p.pipeline = pipe and p.frontier >= target
                      and p.frontier <= pg_current_wal_insert_lsn()) then
            return true;
        elsif clock_timestamp() > deadline or not pgtrickle.sidecar_alive(pipe) then
            return false;
        end if;
        perform pg_sleep(pause);
        pause := least(pause * 1.5, 0.02);
    end loop;
end $$;

create or replace function pgtrickle._verify(id bigint)
returns table (stream_table text, equal boolean, missing_rows bigint, surplus_rows bigint, verified_at timestamptz,
               frontier pg_lsn, waited interval)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    c record;
    hashes uuid[];
    counts bigint[];
    timeout interval;
    began timestamptz;
    followed boolean;
    obstacle text;
    rounds int := 0;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    stream_table := format('%I.%I', s.pgt_schema, s.pgt_name);
    timeout := pgtrickle._setting_interval('refresh_timeout', s.pipeline);
    if not exists (select from pg_class r where r.oid = s.pgt_relid)
       or not exists (select from pg_class r where r.oid = s.query_view) then
        raise exception 'the table of stream table % was dropped', stream_table using errcode = '42P01',
            hint = format('Clean up with SELECT pgtrickle.drop_stream_table(%L); and create it again.', stream_table);
    end if;
    waited := interval '0';
    followed := s.refresh_mode = 'DIFFERENTIAL' and s.status not in ('SUSPENDED', 'ERROR')
                and not pg_is_in_recovery() and pgtrickle.sidecar_alive(s.pipeline);
    if followed then
        obstacle := pgtrickle._cannot_wait();
        if obstacle is not null then
            raise exception 'cannot verify stream table % here: %', stream_table, obstacle using errcode = '25001',
                hint = 'Call it in its own READ COMMITTED transaction, after the commit of your changes.';
        end if;
    end if;
    loop
        -- One that is not due need not equal its query: it is made due.
        if followed and not pgtrickle._is_continuous(s.schedule) then
            perform pgtrickle._refresh(id);
        end if;
        c := pgtrickle._compare(s);
        verified_at := clock_timestamp();
        frontier := c.frontier;
        rounds := rounds + 1;
        if c.missing + c.surplus = 0 or not followed then
            hashes := c.hashes;
            counts := c.counts;
            exit;
        end if;
        began := clock_timestamp();
        if pgtrickle._has_stream(s.pipeline) then
            perform pgtrickle._request('wait', jsonb_build_object('pipeline', s.pipeline, 'lsn', c.seen_until::text));
        end if;
        if not pgtrickle._await_frontier(c.seen_until, timeout, s.pipeline) then
            raise exception 'stream table % could not be verified: the sidecar is behind or has ended', stream_table using errcode = '55P03',
                hint = 'See pgtrickle.pgt_status(), or raise refresh_timeout in pgtrickle.settings.';
        end if;
        waited := waited + (clock_timestamp() - began);
        -- Everything that this snapshot saw has arrived. If none of it changed a source after the frontier of the
        -- snapshot, nothing was under way then: what differed was wrong.
        if exists (select from pgtrickle.pgt_pipelines p join pgtrickle.pgt_stream_tables t on t.pipeline = p.pipeline
                    where t.pgt_id = id and t.status = 'ACTIVE' and t.config_version = s.config_version
                      and p.generation = c.generation and coalesce(p.changed_lsn <= c.frontier, true)) then
            hashes := c.hashes;
            counts := c.counts;
            exit;
        end if;
        -- Otherwise it may have been under way. What is wrong differs at every snapshot, in the same way.
        if hashes is null then
            hashes := c.hashes;
            counts := c.counts;
        else
            select x.hashes, x.counts into hashes, counts from pgtrickle._common(hashes, counts, c.hashes, c.counts) x;
        end if;
        exit when cardinality(hashes) = 0 or rounds >= 16;
        perform pg_sleep(random() * 0.015);
        select * into s from pgtrickle.pgt_stream_tables where pgt_id = id;
        if not found or s.status in ('SUSPENDED', 'ERROR') then
            raise exception 'stream table % was taken out while it was verified', stream_table using errcode = '55000',
                hint = 'See pgtrickle.pgt_status().';
        end if;
    end loop;
    select coalesce(sum(n) filter (where n > 0), 0), coalesce(-sum(n) filter (where n < 0), 0)
      into missing_rows, surplus_rows from unnest(counts) n;
    equal := missing_rows + surplus_rows = 0;
    if not followed and not equal then
        raise notice 'stream table % is as of %: %', stream_table,
            coalesce((select i.data_timestamp::text from pgtrickle.stream_tables_info i where i.pgt_id = id), 'an unknown moment'),
            case when s.status in ('SUSPENDED', 'ERROR') then 'its status is ' || s.status
                 when s.refresh_mode = 'FULL' then 'it is maintained by FULL recomputation'
                 else 'no sidecar follows its sources' end;
    end if;
    return next;
end $$;

-- Compares a stream table with its query, also while the application writes. Equal at one snapshot: said at once.
-- A difference is reported when no change of a source was under way at its snapshot, which the frontier tells
-- afterwards. Where writes never pause, when it was there at 16 snapshots; see docs: maintenance.
create or replace function pgtrickle.verify_stream_table(name text)
returns table (stream_table text, equal boolean, missing_rows bigint, surplus_rows bigint, verified_at timestamptz,
               frontier pg_lsn, waited interval)
language sql volatile as $$
    select * from pgtrickle._verify(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true))
$$;

-- What is missing around a stream table whose table and view exist: functions, guard, key or row-id index, grants.
create or replace function pgtrickle._missing_objects(s pgtrickle.pgt_stream_tables) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    with functions as (
        select p.oid, p.proname from pg_proc p join pg_roles r on r.oid = p.proowner
         where p.pronamespace = 'pgtrickle_queries'::regnamespace and r.rolname = s.owner and p.prosecdef),
    wanted as (
        select format('%s_%s', v, s.pgt_id) as fname from unnest(array['apply', 'recompute']) v
        union all
        select format('evaluate_%s_%s', s.pgt_id, n) from generate_series(0, jsonb_array_length(s.evaluations) - 1) n),
    role as (select value as name from pgtrickle.settings where key = 'sidecar_role' and value <> s.owner
                and exists (select from pg_roles r where r.rolname = value))
    select coalesce(array_agg(m.what order by m.ord, m.what), '{}') from (
        select 1 as ord, 'function ' || w.fname as what from wanted w
         where not exists (select from functions f where f.proname = w.fname)
        union all
        select 2, 'guard' where s.user_writes = 'refuse' and not exists (
            select from pg_trigger t where t.tgrelid = s.pgt_relid and t.tgname = 'pgtrickle_guard' and t.tgenabled <> 'D')
        union all
        select 3, 'primary key' where s.key_columns is not null and not exists (
            select from pg_index i where i.indrelid = s.pgt_relid and i.indisprimary)
        union all
        select 3, 'index of row ids' where s.key_columns is null and not exists (
            select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
             where i.indrelid = s.pgt_relid and a.attname = '__pgt_row_id' and i.indpred is null)
        union all
        select 4, 'grants to ' || quote_ident(role.name) from role
         where not has_schema_privilege(role.name, s.pgt_schema, 'USAGE')
            or not has_table_privilege(role.name, s.pgt_relid, 'SELECT')
            or not has_table_privilege(role.name, s.query_view, 'SELECT')
            or exists (select from functions f join wanted w on w.fname = f.proname
                        where not has_function_privilege(role.name, f.oid, 'EXECUTE'))) m
$$;

-- Makes again what is missing, as the owner of the stream table; returns it.
create or replace function pgtrickle._mend(id bigint) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    missing text[];
    keys text;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    if current_user <> s.owner then
        return pgtrickle._as_owner(s.owner, format('select pgtrickle._mend(%s)::text', id))::text[];
    end if;
    missing := pgtrickle._missing_objects(s);
    if cardinality(missing) = 0 then
        return missing;
    end if;
    if 'primary key' = any (missing) then
        select string_agg(quote_ident(k), ', ' order by ord) into keys from unnest(s.key_columns) with ordinality u (k, ord);
        execute format('alter table %s add primary key (%s)', s.pgt_relid, keys);
    elsif 'index of row ids' = any (missing) then
        execute format('create index on %s (__pgt_row_id)', s.pgt_relid);
    end if;
    perform pgtrickle._create_functions(id);
    return missing;
end $$;

create or replace function pgtrickle._written(inserted bigint, updated bigint, deleted bigint) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select case when inserted + updated + deleted = 0 then 'no difference'
                else format('%s rows inserted, %s updated, %s deleted', inserted, updated, deleted) end
$$;

create or replace function pgtrickle._repair(id bigint) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    label text;
    mended text[];
    done text := '';
    reply jsonb;
    request bigint;
    obstacle text;
    timeout interval;
    deadline timestamptz;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    timeout := pgtrickle._setting_interval('refresh_timeout', s.pipeline);
    deadline := clock_timestamp() + timeout;
    if pg_is_in_recovery() then
        raise exception 'cannot repair stream tables on a read replica' using errcode = '25006', hint = 'Run it on the primary.';
    elsif not exists (select from pg_class c where c.oid = s.pgt_relid)
       or not exists (select from pg_class c where c.oid = s.query_view) then
        raise exception 'the table or the view of stream table % was dropped', label using errcode = '42P01',
            hint = format('SELECT * FROM pgtrickle.restore_stream_tables(); makes them again; or clean up with SELECT pgtrickle.drop_stream_table(%L);', label);
    elsif s.status = 'SUSPENDED' then
        raise exception 'stream table % is suspended', label using errcode = '22023',
            detail = coalesce(s.last_error_message, 'It was suspended by hand.'),
            hint = format('Resume it, which repairs it too: SELECT pgtrickle.resume_stream_table(%L);', label);
    end if;
    perform pgtrickle._await_let_go(id);
    mended := pgtrickle._mend(id);
    if cardinality(mended) > 0 then
        done := 'made again: ' || array_to_string(mended, ', ') || '; ';
    end if;
    while pgtrickle.sidecar_alive(s.pipeline) or pgtrickle._take_over(s.pipeline) is null loop
        if cardinality(mended) > 0
           or exists (select from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline and p.delivery = 'poll') then
            -- A live sidecar sees the new version after the commit; without a slot it hears no request.
            update pgtrickle.pgt_stream_tables t
               set config_version = t.config_version + 1, updated_at = now(),
                   status = case when t.refresh_mode = 'FULL' then t.status else 'INITIALIZING' end
             where t.pgt_id = id;
            return format('%s: %sthe sidecar reconciles it after the commit', label, done);
        end if;
        obstacle := pgtrickle._cannot_wait();
        if obstacle is not null and request is null then
            raise exception 'cannot repair stream table % here: %', label, obstacle using errcode = '25001',
                hint = 'Call it in its own READ COMMITTED transaction, after the commit of your changes.';
        end if;
        if request is null and pgtrickle._has_stream(s.pipeline) then
            request := pgtrickle._request('repair', jsonb_build_object('pipeline', s.pipeline, 'pgt_id', id));
        end if;
        -- Short waits, so that a lock of our own that the sidecar waits for is told.
        reply := pgtrickle._answer(request, s.pipeline, interval '200 ms');
        if reply is not null then
            if not coalesce((reply ->> 'ok')::boolean, false) then
                raise exception 'stream table % could not be repaired: %', label, reply ->> 'message'
                    using errcode = coalesce(reply ->> 'sqlstate', '55000'), hint = coalesce(reply ->> 'hint',
                        'SELECT * FROM pgtrickle.get_refresh_history(''' || label || ''');');
            end if;
            return format('%s: %s', label, pgtrickle._written((reply ->> 'inserted')::bigint,
                (reply ->> 'updated')::bigint, (reply ->> 'deleted')::bigint));
        end if;
        perform pgtrickle._check_blocking(s.pipeline);
        if clock_timestamp() > deadline then
            raise exception 'stream table % was not repaired within %', label, timeout using errcode = '55P03',
                hint = 'The sidecar may still be reading its sources; see pgtrickle.pgt_status() and get_refresh_history().';
        end if;
    end loop;
    perform pgtrickle._recompute(id, 'REINITIALIZE', 'MANUAL', 'repaired');
    update pgtrickle.pgt_stream_tables t
       set config_version = t.config_version + 1,
           status = case when t.status = 'ERROR' and t.refresh_mode <> 'FULL' then 'INITIALIZING' else t.status end
     where t.pgt_id = id;
    return (select format('%s: %s%s', label, done, pgtrickle._written(h.rows_inserted, h.rows_updated, h.rows_deleted))
              from pgtrickle.pgt_refresh_history h where h.pgt_id = id order by h.refresh_id desc limit 1);
end $$;

-- Makes one stream table equal to its query again, by difference, and says what was written; what is missing around it
-- is made again. An intact one: nothing is written.
create or replace function pgtrickle.repair_stream_table(name text) returns text
language sql volatile as $$
    select pgtrickle._repair(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true))
$$;
