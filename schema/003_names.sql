-- Names, schedules, settings, liveness and requests: what the functions of 005 and 006 are made of. Functions that
-- begin with an underscore are internal and may change without notice.
-- Rule: a function that needs the caller's search_path takes it as an argument, read by a one-line wrapper;
-- everything else runs with search_path = pg_catalog, pg_temp.

-- Value of a setting, or `otherwise`.
create or replace function pgtrickle._setting(name text, otherwise text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce((select s.value from pgtrickle.settings s where s.key = name),
                    nullif(current_setting('pg_trickle.' || name, true), ''), otherwise)
$$;

-- The same for a duration; a value that is no duration is an error that names the setting.
create or replace function pgtrickle._setting_interval(name text, otherwise interval) returns interval
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v text := pgtrickle._setting(name, null);
begin
    return coalesce(v::interval, otherwise);
exception when invalid_datetime_format or datetime_field_overflow then
    raise exception 'setting % = % is not a duration', name, quote_literal(v) using errcode = '22023',
        hint = 'Set it to something like ''30 s'' in pgtrickle.settings.';
end $$;

-- One cron field: lists of *, n, n-m, each with an optional /step, inside [low, high]; names of months and days.
create or replace function pgtrickle._cron_field_ok(field text, low int, high int, names text[]) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    part text;
    m text[];
    a int;
    b int;
    f text := lower(field);
    i int;
begin
    for i in 1 .. coalesce(cardinality(names), 0) loop
        f := regexp_replace(f, '\m' || names[i] || '\M', (i - 1 + low)::text, 'g');
    end loop;
    foreach part in array string_to_array(f, ',') loop
        m := regexp_match(part, '^(?:\*|\?|(\d{1,4})(?:-(\d{1,4}))?)(?:/(\d{1,4}))?$');
        if m is null then
            return false;
        end if;
        a := m[1]::int;
        b := coalesce(m[2]::int, a);
        if a < low or b > high or b < a or m[3]::int < 1 then
            return false;
        end if;
    end loop;
    return f <> '';
end $$;

-- What a schedule means: kind CALCULATED (continuous), DURATION (seconds is set), CRON or MANUAL. 22023 otherwise.
create or replace function pgtrickle.parse_schedule(schedule text, out kind text, out seconds double precision)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    s text := lower(btrim(coalesce(schedule, 'calculated'), E' \t\n\r'));
    unit text := '(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|weeks?)';
    fields text[];
    m text[];
    n int;
begin
    if s in ('calculated', 'continuous', '') then
        kind := 'CALCULATED';
    elsif s = 'manual' then
        kind := 'MANUAL';
    elsif s ~ '^@(yearly|annually|monthly|weekly|daily|midnight|hourly)$' then
        kind := 'CRON';
    elsif s ~ ('^(?:\d{1,9}(?:\.\d{1,6})?\s*' || unit || '\s*)+$') then
        kind := 'DURATION';
        seconds := 0;
        for m in select regexp_matches(s, '(\d+(?:\.\d+)?)\s*(' || unit || ')', 'g') loop
            seconds := seconds + m[1]::double precision * case
                when m[2] like 'ms' or m[2] like 'mil%' then 0.001
                when m[2] like 's%' then 1
                when m[2] like 'm%' then 60
                when m[2] like 'h%' then 3600
                when m[2] like 'd%' then 86400
                else 604800 end;
        end loop;
        if seconds <= 0 then
            raise exception 'invalid schedule %: a duration must be longer than nothing', quote_literal(schedule)
                using errcode = '22023', hint = 'Use ''calculated'' for continuous maintenance.';
        end if;
    else
        fields := regexp_split_to_array(s, '\s+');
        n := cardinality(fields);
        if n = 6 and pgtrickle._cron_field_ok(fields[1], 0, 59, null) then
            fields := fields[2:6];
        end if;
        if cardinality(fields) = 5
           and pgtrickle._cron_field_ok(fields[1], 0, 59, null)
           and pgtrickle._cron_field_ok(fields[2], 0, 23, null)
           and pgtrickle._cron_field_ok(fields[3], 1, 31, null)
           and pgtrickle._cron_field_ok(fields[4], 1, 12,
                   array['jan','feb','mar','apr','may','jun','jul','aug','sep','oct','nov','dec'])
           and pgtrickle._cron_field_ok(fields[5], 0, 7, array['sun','mon','tue','wed','thu','fri','sat']) then
            kind := 'CRON';
        else
            raise exception 'invalid schedule: %', quote_literal(schedule) using errcode = '22023',
                hint = 'Use ''calculated'', ''manual'', a duration such as ''5s'' or ''1h30m'', or a cron expression '
                       'such as ''*/5 * * * *'' or ''@hourly''.';
        end if;
    end if;
end $$;

-- AUTO, DIFFERENTIAL or FULL; 22023 otherwise.
create or replace function pgtrickle._refresh_mode(mode text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    m text := upper(btrim(coalesce(mode, 'AUTO')));
begin
    if m = 'IMMEDIATE' then
        raise exception 'refresh_mode IMMEDIATE is not supported' using errcode = '0A000',
            hint = 'Use DIFFERENTIAL (asynchronous, a few milliseconds behind) and pgtrickle.wait_for() to read your own writes.';
    elsif m not in ('AUTO', 'DIFFERENTIAL', 'FULL') then
        raise exception 'invalid refresh_mode: %', quote_literal(mode) using errcode = '22023',
            hint = 'Use AUTO, DIFFERENTIAL or FULL.';
    end if;
    return m;
end $$;

-- Splits a possibly quoted, possibly qualified name; sch is null when it is not qualified. Errors only when strict.
create or replace function pgtrickle._split_name(name text, strict boolean, out sch text, out rel text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    parts text[];
    part text;
begin
    begin
        parts := parse_ident(name);
    exception when others then
        parts := null;
    end;
    if cardinality(parts) = 3 and parts[1] = current_database() then
        parts := parts[2:3];
    end if;
    if parts is null or cardinality(parts) > 2 then
        if strict then
            raise exception 'invalid name of a stream table: %', coalesce(quote_literal(name), 'null')
                using errcode = '42602', hint = 'Write name or schema.name; put double quotes around special characters.';
        end if;
        return;
    end if;
    foreach part in array parts loop
        if octet_length(part) > 63 and strict then
            raise exception 'name % is longer than 63 bytes', quote_ident(part) using errcode = '42622',
                hint = 'Choose a shorter name.';
        end if;
    end loop;
    rel := parts[cardinality(parts)];
    sch := case cardinality(parts) when 2 then parts[1] end;
end $$;

-- Names and owners of all stream tables, visible to every granted role; the name is the table's present one.
-- A dump keeps the number of a table that was gone, and in the restored cluster another table may have that number: what
-- has neither the stream table's name nor our trigger (nobody but us puts it there) is not ours.
create or replace view pgtrickle.stream_table_names as
select s.pgt_id,
       coalesce(n.nspname::text, s.pgt_schema) as pgt_schema,
       coalesce(c.relname::text, s.pgt_name) as pgt_name,
       c.oid::regclass as relid,
       s.owner,
       s.owner = current_user or exists (select from pg_catalog.pg_roles r
           where r.rolname = s.owner and pg_catalog.pg_has_role(r.oid, 'USAGE')) as mine
  from pgtrickle.pgt_stream_tables s
  left join (pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace)
    on c.oid = s.pgt_relid
   and ((n.nspname, c.relname) = (s.pgt_schema, s.pgt_name) or s.user_writes = 'allow'
        or exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname = 'pgtrickle_guard'));

-- Which view belongs to which stream table, for everyone: the owner's queries stay hidden behind the view's rights.
create or replace view pgtrickle.query_views as
select s.pgt_id, s.query_view from pgtrickle.pgt_stream_tables s;

-- The stream table that `name` means: through search_path `path`, then by unique name; quoted, qualified or raw.
-- 42P01 when there is none (null when missing_ok), 42501 when `mine` is asked for and it belongs to somebody else.
create or replace function pgtrickle._find(name text, path text, mine boolean, missing_ok boolean default false)
returns bigint language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    found_ids bigint[];
    hit pgtrickle.stream_table_names;
    sch text;
    rel text;
    oid_ regclass;
begin
    select s.sch, s.rel into sch, rel from pgtrickle._split_name(name, false) s;
    if rel is not null then
        begin
            perform set_config('search_path', path, true);
            oid_ := pg_catalog.to_regclass(pg_catalog.concat(
                case when sch is not null then pg_catalog.quote_ident(sch) operator(pg_catalog.||) '.' end,
                pg_catalog.quote_ident(rel)));
        exception when insufficient_privilege then
            oid_ := null;
        end;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        select array_agg(v.pgt_id) into found_ids from pgtrickle.stream_table_names v where v.relid = oid_;
    end if;
    if found_ids is null then
        select array_agg(v.pgt_id) into found_ids from pgtrickle.stream_table_names v
         where v.pgt_name = rel and v.pgt_schema = coalesce(sch, v.pgt_schema);
    end if;
    if found_ids is null then
        select array_agg(v.pgt_id) into found_ids from pgtrickle.stream_table_names v
         where name in (v.pgt_name, v.pgt_schema || '.' || v.pgt_name);
    end if;
    if found_ids is null then
        if missing_ok then
            return null;
        end if;
        raise exception 'stream table not found: %', coalesce(name, 'null') using errcode = '42P01',
            hint = 'SELECT pgt_schema, pgt_name FROM pgtrickle.stream_tables_info lists all stream tables.';
    elsif cardinality(found_ids) > 1 then
        raise exception 'stream table name % is ambiguous', name using errcode = '42P09',
            hint = 'Write schema.name.';
    end if;
    select * into hit from pgtrickle.stream_table_names v where v.pgt_id = found_ids[1];
    if mine and not hit.mine then
        raise exception 'must be owner of stream table %.%', quote_ident(hit.pgt_schema), quote_ident(hit.pgt_name)
            using errcode = '42501', hint = 'Its owner is ' || quote_ident(hit.owner) || '.';
    end if;
    return hit.pgt_id;
end $$;

-- True while a sidecar holds the lease of the pipeline in this database.
create or replace function pgtrickle.sidecar_alive(pipeline text default 'main') returns boolean
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select exists (
        select from pg_locks l
         where l.locktype = 'advisory' and l.classid = 1346852939::oid and l.objsubid = 2 and l.granted
           and l.database = (select d.oid from pg_database d where d.datname = current_database())
           and l.objid = ((hashtext(sidecar_alive.pipeline)::bigint & 4294967295))::oid
           and l.pid is distinct from pg_backend_pid())
$$;

-- Sends a request to the live sidecar and returns its number.
create or replace function pgtrickle._request(kind text, payload jsonb) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    id bigint := nextval('pgtrickle.request_seq');
begin
    perform pg_logical_emit_message(false, 'pgtrickle',
        (jsonb_build_object('request', id, 'kind', kind, 'role', current_user) || payload)::text);
    return id;
end $$;

-- Waits for the answer to a request. Null when the time is over or the sidecar is gone.
create or replace function pgtrickle._answer(id bigint, pipeline text, timeout interval) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    deadline timestamptz := clock_timestamp() + timeout;
    pause double precision := 0.003;
    reply jsonb;
begin
    loop
        select a.answer into reply from pgtrickle.pgt_answers a where a.request_id = id;
        if found then
            return reply;
        end if;
        if clock_timestamp() > deadline or not pgtrickle.sidecar_alive(pipeline) then
            return null;
        end if;
        perform pg_sleep(pause);
        pause := least(pause * 1.5, 0.02);
    end loop;
end $$;
