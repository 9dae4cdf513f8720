-- Names, schedules, settings, liveness and requests: what the functions of 005 and 006 are made of. Functions that
-- begin with an underscore are internal and may change without notice.
-- Rule: a function that needs the caller's search_path takes it as an argument, read by a one-line wrapper;
-- everything else runs with search_path = pg_catalog, pg_temp.

-- Every setting of a database, once: `kind` is what a value must be, `fallback` what counts where nothing is set.
-- docs/configuration.md has the same table (a test compares).
create or replace function pgtrickle._known_settings()
returns table (key text, kind text, fallback text, meaning text)
language sql immutable set search_path = pg_catalog, pg_temp as $$
    values
    ('cdc_mode', 'auto|wal|trigger', 'auto', 'how changes are captured; the program''s option wins over it'),
    ('slot_policy', 'alert|shed', 'alert', 'past the critical threshold: an alert alone, or the slot is given up and triggers capture'),
    ('slot_lag_warning_threshold_mb', 'megabytes', '100', 'WAL retained by the slot that is worth a warning'),
    ('slot_lag_critical_threshold_mb', 'megabytes', '1024', 'WAL retained by the slot at which `slot_policy` acts'),
    ('slot_return_after', 'duration', '10 min', 'how long a slot that was given up is not made again'),
    ('trust_slot_across_timelines', 'on|off', 'off', 'go on from a slot that was there before a promotion'),
    ('buffer_limit_mb', 'megabytes', '1024', 'size of a source''s change buffer at which triggers stop to record; read at the start'),
    ('capture_patience', 'duration', '1 day', 'time without a sign of the sidecar after which triggers stop to record; read at the start'),
    ('analysis_timeout', 'duration', '10 s', 'how long `create_stream_table` waits for the sidecar''s analysis'),
    ('refresh_timeout', 'duration', '30 s', 'how long `refresh_stream_table`, `wait_for` and their kin wait'),
    ('row_security', 'refuse|warn', 'refuse', 'sources with row-level security: refused, or allowed with a warning; only the table counts'),
    ('alert_after', 'duration', '0 s', 'how long a cause must be there before it is told; `0 s`: each has its own time'),
    ('stale_after', 'duration', '5 min', 'age from which a stream table counts as stale'),
    ('kept_changes_mb', 'megabytes', '256', 'changes that may wait in the sidecar''s memory for the schedules of their stream tables; read at the start'),
    ('state_limit_mb', 'megabytes', '0', 'state that one stream table may hold in the sidecar''s memory; 0: half of its memory limit'),
    ('join_limit_rows', 'rows', '1000000000', 'rows that the joins of one stream table may make in one step; 0: the default'),
    ('hydrate_rate_mb', 'megabytes', '0', 'MB per second at which a source is read whole, all sources of the sidecar''s pipeline together; 0: as fast as it goes'),
    ('hydrate_snapshot_hold', 'duration', '1 min', 'how long one snapshot is held before the sources that are left to read get another one'),
    ('sidecar_role', 'internal', null, 'set by `set_sidecar_role`'),
    ('schema_version', 'internal', null, 'set by `pgtrickle init`')
$$;

-- Settings that are the same for all pipelines.
create or replace function pgtrickle._is_of_database(name text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select name = 'row_security' or exists (select from pgtrickle._known_settings() s where s.key = name and s.kind = 'internal')
$$;

-- Whether there is such a pipeline, and whether `owner` (null: anybody) may have stream tables in it. 22023, 42501.
create or replace function pgtrickle._check_pipeline(name text, owner name default null) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    allowed name[];
begin
    -- A restore brings rows that were right, in an order of its own.
    if current_setting('application_name') = 'pg_restore'
       or (current_setting('check_function_bodies') = 'off' and current_setting('row_security') = 'off') then
        return;
    end if;
    select p.roles into allowed from pgtrickle.pgt_pipelines p where p.pipeline = name;
    if not found then
        raise exception 'pipeline % does not exist', coalesce(quote_literal(name), 'null') using errcode = '22023',
            hint = 'SELECT pipeline FROM pgtrickle.pgt_pipelines lists them; pgtrickle.create_pipeline() makes one.';
    elsif owner is not null and allowed is not null
       and not exists (select from pg_roles o, pg_roles r where o.rolname = owner and r.rolname = any (allowed)
                          and pg_has_role(o.oid, r.oid, 'USAGE')) then
        raise exception 'role % may not have stream tables in pipeline %', quote_ident(owner), name using errcode = '42501',
            hint = format('Whoever installed pgtrickle can allow it: SELECT pgtrickle.alter_pipeline(%L, roles => ...);', name);
    end if;
end $$;

-- Whether a value is of its setting's kind; an error names both. Null stands for the default.
create or replace function pgtrickle._check_setting(name text, v text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    wanted text := (select s.kind from pgtrickle._known_settings() s where s.key = name);
begin
    if wanted is null then
        raise exception 'there is no setting %', quote_literal(name) using errcode = '42704',
            hint = 'The settings are ' || (select string_agg(s.key, ', ' order by s.key) from pgtrickle._known_settings() s
                                            where s.kind <> 'internal') || '.';
    elsif v is null or wanted = 'duration' and v::interval >= interval '0' or wanted in ('megabytes', 'rows') and v::numeric >= 0
          or wanted = 'internal' or v = any (string_to_array(wanted, '|')) then
        return;
    end if;
    raise invalid_text_representation;
exception when invalid_text_representation or invalid_datetime_format or datetime_field_overflow
          or numeric_value_out_of_range then
    raise exception 'setting % = % is not %', name, quote_literal(v), case wanted when 'duration' then 'a duration'
            when 'megabytes' then 'a number of megabytes' when 'rows' then 'a number of rows' else 'one of ' || replace(wanted, '|', ', ') end
        using errcode = '22023', hint = format('Set it to a value such as %L in pgtrickle.settings.',
            case wanted when 'duration' then '30 s' when 'megabytes' then '512' when 'rows' then '1000000' else split_part(wanted, '|', 1) end);
end $$;

-- A value that can't be used is refused where it is written, not where it is read. A restore brings what there was.
create or replace function pgtrickle._guard_settings() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('application_name') <> 'pg_restore'
       and not (current_setting('check_function_bodies') = 'off' and current_setting('row_security') = 'off') then
        perform pgtrickle._check_setting(new.key, new.value);
        if new.pipeline <> '' then
            perform pgtrickle._check_pipeline(new.pipeline);
            if pgtrickle._is_of_database(new.key) then
                raise exception 'setting % is the same for all pipelines', new.key using errcode = '22023',
                    hint = 'Leave the column pipeline out.';
            end if;
        end if;
    end if;
    return new;
end $$;
drop trigger if exists pgtrickle_guard on pgtrickle.settings;
create trigger pgtrickle_guard before insert or update on pgtrickle.settings
    for each row execute function pgtrickle._guard_settings();

-- Value of a setting: the table's for the pipeline, else the table's for the database, else the database setting
-- `pg_trickle.<name>`, else the default. A null pipeline: that of the database.
create or replace function pgtrickle._setting(name text, pipe text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce((select s.value from pgtrickle.settings s where s.key = name and s.pipeline = pipe and pipe <> ''),
                    (select s.value from pgtrickle.settings s where s.key = name and s.pipeline = ''),
                    case when name <> 'row_security' then nullif(current_setting('pg_trickle.' || name, true), '') end,
                    (select s.fallback from pgtrickle._known_settings() s where s.key = name))
$$;

create or replace function pgtrickle._setting(name text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select pgtrickle._setting(name, null)
$$;

-- Whether sources with row-level security are refused or warned about. Anybody can set a parameter of his session, so
-- only the table counts.
create or replace function pgtrickle._row_security() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select pgtrickle._setting('row_security')
$$;

-- What the text of values of these types stands on, and of what they are made of: labels of enums, attributes of composite
-- types, names. Null where there are none; types of the server itself do not change.
create or replace function pgtrickle._type_facts(types oid[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    with recursive below (oid) as (
        select t from unnest(types) t
        union
        select x.oid from below b
          join pg_type t on t.oid = b.oid
          cross join lateral (
              select t.typelem union all select t.typbasetype
              union all select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0
              union all select g.rngsubtype from pg_range g where t.oid in (g.rngtypid, g.rngmultitypid)) x(oid)
         where x.oid >= 16384)
    select string_agg(concat_ws(' ', t.oid, t.typnamespace, t.typname,
               (select string_agg(concat_ws(',', e.oid, e.enumlabel), ';' order by e.oid) from pg_enum e where e.enumtypid = t.oid),
               (select string_agg(concat_ws(',', a.attnum, a.attname, a.atttypid, a.atttypmod), ';' order by a.attnum)
                  from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)), '|' order by t.oid)
      from below b join pg_type t on t.oid = b.oid
$$;

-- A stream table holds what its owner may see, and whoever may read it sees all of that: policies of the sources do not
-- reach its readers, as with a materialized view. Refused unless the setting says that this is known.
create or replace function pgtrickle._check_row_security(view regclass, label text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    secured text := (select min(s.source_name) from pgtrickle._sources(view) s join pg_class c on c.oid = s.source
                      where c.relrowsecurity);
begin
    if secured is null then
        return;
    elsif pgtrickle._row_security() = 'warn' then
        raise warning 'readers of stream table % are not held to the row-level security of %', label, secured
            using errcode = '01000', hint = 'Grant SELECT on it only to roles that may see all rows its owner sees.';
        return;
    end if;
    raise exception '% has row-level security, to which readers of a stream table are not held', secured
        using errcode = '42501',
              hint = format('Such a stream table shows all rows its owner sees; to allow that: INSERT INTO '
                            'pgtrickle.settings VALUES (%L, %L);', 'row_security', 'warn');
end $$;

-- The same for a duration; a value that is no duration is an error that names the setting.
create or replace function pgtrickle._setting_interval(name text, pipe text) returns interval
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v text := pgtrickle._setting(name, pipe);
begin
    perform pgtrickle._check_setting(name, v);
    return v::interval;
end $$;

create or replace function pgtrickle._setting_interval(name text) returns interval
language sql stable set search_path = pg_catalog, pg_temp as $$
    select pgtrickle._setting_interval(name, null)
$$;

-- The same for megabytes, as bytes.
create or replace function pgtrickle._setting_mb(name text, pipe text) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v text := pgtrickle._setting(name, pipe);
begin
    perform pgtrickle._check_setting(name, v);
    return v::numeric * 1048576;
end $$;

create or replace function pgtrickle._setting_mb(name text) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select pgtrickle._setting_mb(name, null)
$$;

-- What counts now, and from where: for the database, and (`pipeline` is set) where a pipeline has a value of its own.
-- Values that the program's own options set are not seen here.
create or replace view pgtrickle.pgt_settings as
select k.key, pgtrickle._setting(k.key) as value,
       case when s.value is not null then 'pgtrickle.settings'
            when k.key <> 'row_security' and nullif(current_setting('pg_trickle.' || k.key, true), '') is not null
            then 'pg_trickle.' || k.key
            else 'default' end as source,
       k.kind, k.fallback as default_value, k.meaning, null::text as pipeline
  from pgtrickle._known_settings() k left join pgtrickle.settings s on s.key = k.key and s.pipeline = ''
 where k.kind <> 'internal'
union all
select k.key, s.value, 'pgtrickle.settings', k.kind, k.fallback, k.meaning, s.pipeline
  from pgtrickle._known_settings() k join pgtrickle.settings s on s.key = k.key and s.pipeline <> '' and s.value is not null
 where k.kind <> 'internal';

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
        elsif seconds > 10 * 366 * 86400::double precision then
            raise exception 'invalid schedule %: a duration may be ten years at most', quote_literal(schedule)
                using errcode = '22023', hint = 'Use ''manual'' for maintenance on request.';
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

-- Whether a stream table of this schedule is part of every apply, if it is incremental: then it is as fresh as its
-- pipeline. Any other is as fresh as its own row says.
create or replace function pgtrickle._is_continuous(schedule text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select lower(btrim(coalesce(schedule, ''), E' \t\n\r')) in ('calculated', 'continuous', '')
$$;

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
    -- Not to be guessed: whoever knew it could write a request of his own first, and so give the answer.
    id bigint := ('x' || left(replace(gen_random_uuid()::text, '-', ''), 15))::bit(60)::bigint;
begin
    perform nextval('pgtrickle.request_seq');
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
