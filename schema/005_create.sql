-- Creating and dropping stream tables. SECURITY INVOKER throughout: everything is made by the caller, in the
-- caller's transaction, with the caller's rights, and an error leaves nothing behind. The exposed functions are
-- one-line wrappers that read the caller's search_path before anything pins it.

-- Creates the view of the query. The query is first opened as a cursor: PostgreSQL itself then refuses anything but
-- one statement that returns rows, plans it, and checks the caller's rights on every source.
create or replace function pgtrickle._create_view(view_name text, query text, path text, replace boolean) returns regclass
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c refcursor;
    col name;
    verb text := case when replace then 'create or replace view ' else 'create view ' end;
    target text := format('pgtrickle_queries.%I', view_name);
    msg text;
    hint_ text;
begin
    if query is null or btrim(query, E' \t\r\n;') = '' then
        raise exception 'the query of a stream table must not be empty' using errcode = '22023',
            hint = 'Pass one SELECT statement.';
    end if;
    perform pg_catalog.set_config('search_path', path, true);
    begin
        open c no scroll for execute query;
        close c;
    exception when invalid_cursor_definition then
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        raise exception 'the query of a stream table must be a single SELECT' using errcode = '42601',
            detail = pg_catalog.concat('PostgreSQL says: ', sqlerrm), hint = 'Pass one SELECT statement without any other command.';
    when insufficient_privilege then
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        raise exception '%', sqlerrm using errcode = '42501',
            hint = 'Whoever creates a stream table needs the SELECT right on everything that its query reads.';
    when undefined_table then
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        raise exception '%', sqlerrm using errcode = '42P01',
            hint = 'Check the name and the search_path, or write schema.name.';
    end;
    begin
        execute pg_catalog.concat(verb, target, E' as\n', query);
    exception
        when syntax_error then
            perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            raise exception 'the query of a stream table must be a single SELECT: %', sqlerrm using errcode = '42601',
                hint = 'Pass one SELECT statement that could be the query of a view.';
        when invalid_table_definition then
            get stacked diagnostics msg = message_text, hint_ = pg_exception_hint;
            perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            if msg like '%temporary%' then
                raise exception 'a stream table cannot read a temporary table' using errcode = '0A000',
                    hint = 'Make the source an ordinary table.';
            end if;
            raise exception '%', msg using errcode = '42P16', hint = hint_;
    end;
    perform set_config('search_path', 'pg_catalog, pg_temp', true);
    for col in select a.attname from pg_attribute a where a.attrelid = target::regclass and a.attnum > 0 loop
        if col in ('?column?', '__pgt_row_id') or col like '\_\_pgt\_%' then
            raise exception 'the query has a column named %', quote_ident(col) using errcode = '42611',
                hint = case when col = '?column?' then 'Give every expression a name: expression AS name.'
                            else 'Names that begin with __pgt_ belong to pgtrickle: choose another name, or list the columns of a stream table instead of *.' end;
        end if;
        if col in ('tableoid','ctid','xmin','xmax','cmin','cmax') then
            raise exception 'the query has a column named %, which every table has already', quote_ident(col)
                using errcode = '42701', hint = 'Give it another name: expression AS name.';
        end if;
    end loop;
    if not exists (select from pg_attribute a where a.attrelid = target::regclass and a.attnum > 0) then
        raise exception 'the query has no columns' using errcode = '42P16', hint = 'Select at least one column.';
    end if;
    return target::regclass;
end $$;

-- Name of the query's view: at most 40 bytes of the table's name, so that the id always fits.
create or replace function pgtrickle._view_name(rel text, id bigint) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    short text := rel;
begin
    while octet_length(short) > 40 loop
        short := left(short, length(short) - 1);
    end loop;
    return short || '_' || id;
end $$;

-- Replaces the recorded sources of a stream table by what its view depends on now.
create or replace function pgtrickle._record_sources(id bigint, view regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    delete from pgtrickle.pgt_dependencies d where d.pgt_id = id;
    insert into pgtrickle.pgt_dependencies (pgt_id, source, source_name, source_type, columns_used)
    select id, case when s.source_type <> 'MATVIEW' then s.source end, s.source_name, s.source_type, s.columns_used
      from pgtrickle._sources(view) s;
end $$;

-- Whether a request can reach the sidecar through the WAL, or never will.
create or replace function pgtrickle._has_stream(pipe text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from pgtrickle.pgt_pipelines p left join pg_replication_slots r on r.slot_name = p.slot_name
                    where p.pipeline = pipe and (p.delivery = 'poll' or r.confirmed_flush_lsn is not null));
end $$;

-- Waits while a sidecar makes its slot. That waits for every transaction that has written, so the caller must not have:
-- then the query is analysed after its commit.
create or replace function pgtrickle._await_stream(pipe text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    deadline timestamptz := clock_timestamp() + pgtrickle._setting_interval('analysis_timeout', pipe);
begin
    while pg_current_xact_id_if_assigned() is null and current_setting('transaction_isolation') = 'read committed'
          and clock_timestamp() < deadline and pgtrickle.sidecar_alive(pipe) and not pgtrickle._has_stream(pipe) loop
        perform pg_sleep(0.01);
    end loop;
end $$;

-- Decides how the query is maintained. reason says why FULL; key is null for the row-id form. Undecided (no live
-- sidecar, or it cannot see this transaction's objects): DIFFERENTIAL without a key, and the sidecar decides after
-- the commit.
create or replace function pgtrickle._decide(id bigint, label text, view regclass, requested text,
                                              out mode text, out reason text, out key text[], out decided boolean,
                                              out evaluations jsonb)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    secured text;
    reply jsonb;
    note text;
    pipe text := (select s.pipeline from pgtrickle.pgt_stream_tables s where s.pgt_id = id);
    wanted interval := pgtrickle._setting_interval('analysis_timeout', pipe);
begin
    decided := false;
    evaluations := '[]';
    perform pgtrickle._check_row_security(view, label);
    mode := case requested when 'FULL' then 'FULL' else 'DIFFERENTIAL' end;
    if requested = 'FULL' then
        reason := 'requested';
    else
        -- The dataflow would read all rows of such a table; only the recomputation as its owner obeys the policies.
        select s.source_name into secured from pgtrickle._sources(view) s join pg_class c on c.oid = s.source
         where c.relrowsecurity and (s.nested or row_security_active(s.source)) limit 1;
        if found then
            reason := format('row-level security of %s applies to its owner', secured);
            if requested = 'DIFFERENTIAL' then
                raise exception 'the query cannot be maintained incrementally: %', reason using errcode = '0A000',
                    hint = 'Use refresh_mode => ''AUTO'' or ''FULL'': it is then recomputed with its owner''s rights.';
            end if;
            mode := 'FULL';
            decided := true;
            raise notice 'stream table % is maintained by FULL recomputation: %', label, reason;
            return;
        end if;
    end if;
    -- In poll delivery a request of an open transaction can't reach the sidecar; and a slot that is still being made
    -- waits for this very transaction.
    if not pgtrickle.sidecar_alive(pipe) or current_setting('transaction_isolation') <> 'read committed'
       or (select p.delivery = 'poll' from pgtrickle.pgt_pipelines p where p.pipeline = pipe)
       or not pgtrickle._has_stream(pipe) then
        return;
    end if;
    reply := pgtrickle._answer(
        pgtrickle._request('analyze', jsonb_build_object('pipeline', pipe, 'pgt_id', id, 'name', label, 'mode', requested,
            'owner', (select c.relowner::bigint from pg_class c where c.oid = view),
            -- With this function's search_path every name in it is qualified.
            'query', pg_get_viewdef(view))),
        pipe, wanted);
    if reply is null then
        raise notice 'the sidecar did not analyse the query within %; it decides after the commit', wanted;
        return;
    end if;
    if not coalesce((reply ->> 'ok')::boolean, false) then
        if reply ->> 'sqlstate' = 'P0T01' then
            return;
        end if;
        -- The server does not read all back that it prints (CYCLE ... TO 'Y'::text); the view is what counts.
        if reply ->> 'sqlstate' = '42601' and requested = 'AUTO' then
            decided := true;
            mode := 'FULL';
            reason := 'PostgreSQL does not read the text of the query back: ' || (reply ->> 'message');
            raise notice 'stream table % is maintained by FULL recomputation: %', label, reason;
            return;
        end if;
        raise exception '%', coalesce(reply ->> 'message', 'the sidecar refused the query without a reason')
            using errcode = coalesce(reply ->> 'sqlstate', '0A000'), hint = coalesce(reply ->> 'hint',
                'Use refresh_mode => ''AUTO'' or ''FULL''.');
    end if;
    decided := true;
    mode := coalesce(reply ->> 'mode', mode);
    reason := case when mode = 'FULL' then coalesce(reply ->> 'reason', reason) end;
    if jsonb_typeof(reply -> 'key') = 'array' and jsonb_array_length(reply -> 'key') > 0 then
        select array_agg(k.v order by k.ord) into key
          from jsonb_array_elements_text(reply -> 'key') with ordinality k (v, ord);
    end if;
    evaluations := coalesce(reply -> 'evaluations', '[]');
    for note in select jsonb_array_elements_text(reply -> 'notices') where jsonb_typeof(reply -> 'notices') = 'array' loop
        raise notice '%', note;
    end loop;
    if requested = 'AUTO' and mode = 'FULL' then
        raise notice 'stream table % is maintained by FULL recomputation: %', label, reason
            using hint = coalesce(reply ->> 'hint', 'SELECT * FROM pgtrickle.explain_refresh_mode(''' || label || ''');');
    end if;
end $$;

-- Fills the storage from the query and notes it in the history; `action` as in pgt_refresh_history.
create or replace function pgtrickle._recompute(id bigint, action text, initiated_by text, reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    started timestamptz := clock_timestamp();
    written text;
    done record;
    s pgtrickle.pgt_stream_tables;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    -- A restore may have come without it.
    if to_regclass('pgtrickle.pgt_refresh_history') is null then
        perform pgtrickle._make_history();
    end if;
    written := pgtrickle._as_owner(s.owner, format(
        'select concat_ws('' '', r.inserted_rows, r.updated_rows, r.deleted_rows) from pgtrickle_queries.recompute_%s() r', id));
    select split_part(written, ' ', 1)::bigint as inserted_rows, split_part(written, ' ', 2)::bigint as updated_rows,
           split_part(written, ' ', 3)::bigint as deleted_rows into done;
    update pgtrickle.pgt_stream_tables t
       set is_populated = true, data_timestamp = started, last_refresh_at = clock_timestamp(), updated_at = now(),
           status = case when t.refresh_mode = 'FULL' then 'ACTIVE' else t.status end,
           consecutive_errors = 0, last_error_sqlstate = null, last_error_message = null, last_error_query = null, last_error_at = null
     where t.pgt_id = id;
    insert into pgtrickle.pgt_refresh_history (pgt_id, pgt_name, data_timestamp, start_time, end_time, action, status,
        rows_inserted, rows_updated, rows_deleted, delta_row_count, reason, initiated_by)
    values (id, s.pgt_name, started, started, clock_timestamp(),
        case when action = 'FULL' and done.inserted_rows + done.updated_rows + done.deleted_rows = 0 then 'NO_DATA'
             else action end, 'COMPLETED', done.inserted_rows, done.updated_rows, done.deleted_rows,
        done.inserted_rows + done.updated_rows + done.deleted_rows, reason, initiated_by);
end $$;

create or replace function pgtrickle._check_options(cdc_mode text, user_writes text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if cdc_mode not in ('auto', 'trigger', 'wal') then
        raise exception 'invalid cdc_mode: %', quote_literal(cdc_mode) using errcode = '22023',
            hint = 'Use auto, trigger or wal.';
    end if;
    if cdc_mode = 'wal' and (current_setting('wal_level') <> 'logical'
        or not exists (select from pgtrickle.pgt_pipelines p join pg_replication_slots s on s.slot_name = p.slot_name)
           and (select count(*) from pg_replication_slots) >= current_setting('max_replication_slots')::int) then
        raise exception 'cdc_mode = ''wal'' requires wal_level = logical and an available replication slot'
            using errcode = '22023', hint = 'Use auto: changes are then captured by triggers until the WAL can be had.';
    end if;
    if user_writes not in ('refuse', 'allow') then
        raise exception 'invalid user_writes: %', quote_literal(user_writes) using errcode = '22023',
            hint = 'Use refuse or allow.';
    end if;
end $$;

drop function if exists pgtrickle._create(text, text, text, text, boolean, text, text, text);
create or replace function pgtrickle._create(name text, query text, schedule text, refresh_mode text,
    initialize boolean, cdc_mode text, user_writes text, pipe text, path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    sch text;
    rel text;
    id bigint;
    view regclass;
    storage regclass;
    requested text := pgtrickle._refresh_mode(refresh_mode);
    d record;
begin
    if pg_is_in_recovery() then
        raise exception 'cannot create a stream table on a read replica' using errcode = '25006',
            hint = 'Run it on the primary.';
    end if;
    perform pgtrickle.parse_schedule(schedule);
    perform pgtrickle._check_options(lower(cdc_mode), lower(user_writes));
    perform pgtrickle._check_pipeline(pipe, current_user);
    perform pgtrickle._await_stream(pipe);
    select s.sch, s.rel into sch, rel from pgtrickle._split_name(name, true) s;
    if sch is null then
        perform set_config('search_path', path, true);
        sch := pg_catalog.current_schema();
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    end if;
    if sch is null or not exists (select from pg_namespace n where n.nspname = sch) then
        raise exception '%', coalesce('schema ' || quote_ident(sch) || ' does not exist', 'search_path names no schema that exists')
            using errcode = '3F000', hint = 'Create the schema first, or write schema.name with one that exists.';
    end if;
    if sch like 'pg\_temp%' then
        raise exception 'a stream table cannot be temporary' using errcode = '0A000', hint = 'Choose another schema.';
    end if;
    if exists (select from pgtrickle.stream_table_names n where n.pgt_schema = sch and n.pgt_name = rel
                  and n.relid is not null) then
        raise exception 'stream table already exists: %.%', quote_ident(sch), quote_ident(rel) using errcode = '42P07',
            hint = 'Use pgtrickle.create_or_replace_stream_table() to change it, or drop it first.';
    end if;
    if to_regclass(format('%I.%I', sch, rel)) is not null then
        raise exception 'relation %.% already exists and is not a stream table', quote_ident(sch), quote_ident(rel)
            using errcode = '42P07', hint = 'Choose another name.';
    end if;
    -- A stream table whose storage somebody dropped keeps its name until drop_stream_table; tell rather than 23505.
    if exists (select from pgtrickle.stream_table_names n where n.pgt_schema = sch and n.pgt_name = rel) then
        raise exception 'stream table already exists, but its table was dropped: %.%', quote_ident(sch), quote_ident(rel)
            using errcode = '42P07', hint = format('Clean up first: SELECT pgtrickle.drop_stream_table(%L);',
                                                   format('%I.%I', sch, rel));
    end if;

    insert into pgtrickle.pgt_stream_tables (pgt_schema, pgt_name, owner, original_query, query_settings, schedule,
        requested_refresh_mode, user_writes, requested_cdc_mode, pipeline)
    values (sch, rel, current_user, query, pgtrickle._query_settings(), lower(btrim(coalesce(schedule, 'calculated'))),
        requested, lower(coalesce(user_writes, 'refuse')), lower(cdc_mode), pipe)
    returning pgt_id into id;
    view := pgtrickle._create_view(pgtrickle._view_name(rel, id), query, path, false);
    select * into d from pgtrickle._decide(id, format('%I.%I', sch, rel), view, requested);
    storage := pgtrickle._create_storage(sch, rel, view, d.key);
    update pgtrickle.pgt_stream_tables t
       set pgt_relid = storage, query_view = view, defining_query = pg_get_viewdef(view), key_columns = d.key,
           refresh_mode = d.mode, refresh_reason = d.reason, evaluations = d.evaluations
     where t.pgt_id = id;
    perform pgtrickle._record_sources(id, view);
    perform pgtrickle._check_wal_sources(id);
    perform pgtrickle._create_functions(id);
    if initialize then
        perform pgtrickle._recompute(id, 'INITIAL', 'INITIAL', null);
        execute format('analyze %s', storage);
    end if;
end $$;

-- Creates stream table `name` for `query`. See docs: functions, create_stream_table.
drop function if exists pgtrickle.create_stream_table(text, text, text, text, boolean, text, text);
create or replace function pgtrickle.create_stream_table(name text, query text, schedule text default 'calculated',
    refresh_mode text default 'AUTO', initialize boolean default true, cdc_mode text default null,
    user_writes text default 'refuse', pipeline text default 'main') returns void
language sql volatile as $$
    select pgtrickle._create($1, $2, $3, $4, $5, $6, $7, $8, pg_catalog.current_setting('search_path'))
$$;

drop function if exists pgtrickle._create_if_not_exists(text, text, text, text, boolean, text, text, text);
create or replace function pgtrickle._create_if_not_exists(name text, query text, schedule text, refresh_mode text,
    initialize boolean, cdc_mode text, user_writes text, pipe text, path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    sch text := (select s.sch from pgtrickle._split_name(name, true) s);
    rel text := (select s.rel from pgtrickle._split_name(name, true) s);
begin
    if sch is null then
        perform set_config('search_path', path, true);
        sch := pg_catalog.current_schema();
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    end if;
    if exists (select from pgtrickle.stream_table_names n where n.pgt_schema = sch and n.pgt_name = rel) then
        raise notice 'stream table %.% already exists, skipping', quote_ident(sch), quote_ident(rel);
        return;
    end if;
    perform pgtrickle._create(name, query, schedule, refresh_mode, initialize, cdc_mode, user_writes, pipe, path);
end $$;

drop function if exists pgtrickle.create_stream_table_if_not_exists(text, text, text, text, boolean, text, text);
create or replace function pgtrickle.create_stream_table_if_not_exists(name text, query text,
    schedule text default 'calculated', refresh_mode text default 'AUTO', initialize boolean default true,
    cdc_mode text default null, user_writes text default 'refuse', pipeline text default 'main') returns void
language sql volatile as $$
    select pgtrickle._create_if_not_exists($1, $2, $3, $4, $5, $6, $7, $8, pg_catalog.current_setting('search_path'))
$$;

-- Stream tables that read `id`'s storage, nearest first.
create or replace function pgtrickle._dependents(id bigint) returns table (pgt_id bigint, label text, mine boolean)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select distinct n.pgt_id, format('%I.%I', n.pgt_schema, n.pgt_name), n.mine
      from pgtrickle.stream_table_names me
      join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = me.relid
                      and d.classid = 'pg_rewrite'::regclass
      join pg_rewrite r on r.oid = d.objid
      join pgtrickle.query_views q on q.query_view = r.ev_class
      join pgtrickle.stream_table_names n on n.pgt_id = q.pgt_id
     where me.pgt_id = id
$$;

create or replace function pgtrickle._drop(id bigint, is_cascade boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    dependent record;
    label text;
    storage regclass;
    how text := case when is_cascade then ' cascade' else '' end;
begin
    select * into s from pgtrickle.pgt_stream_tables where pgt_id = id;
    if not found then
        return;
    end if;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    for dependent in select * from pgtrickle._dependents(id) loop
        if not is_cascade then
            raise exception 'cannot drop stream table %: stream table % reads it', label, dependent.label
                using errcode = '2BP01', hint = 'Drop that one first, or use drop_stream_table(name, cascade => true).';
        elsif not dependent.mine then
            raise exception 'must be owner of stream table %, which reads %', dependent.label, label
                using errcode = '42501', hint = 'Ask its owner to drop it first.';
        end if;
        perform pgtrickle._drop(dependent.pgt_id, true);
    end loop;
    perform pgtrickle._drop_functions(id);
    storage := (select n.relid from pgtrickle.stream_table_names n where n.pgt_id = id);
    if storage is not null then
        execute format('drop table %s%s', storage, how);
    end if;
    if exists (select from pg_class c where c.oid = s.query_view and c.relkind = 'v') then
        execute format('drop view %s%s', s.query_view, how);
    end if;
    delete from pgtrickle.pgt_stream_tables t where t.pgt_id = id;
end $$;

-- Drops a stream table with its view and functions. Refused (2BP01) while other stream tables or views read it.
create or replace function pgtrickle.drop_stream_table(name text, "cascade" boolean default false) returns void
language sql volatile as $$
    select pgtrickle._drop(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true), $2)
$$;
