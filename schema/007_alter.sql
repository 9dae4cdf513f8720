-- Changing stream tables. Every change bumps config_version, which is how the sidecar learns of it.

-- Columns of a relation in a form that can be compared: names, types, typmods and collations in order.
create or replace function pgtrickle._shape(rel regclass) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select array_agg(format('%I %s %s', a.attname, format_type(a.atttypid, a.atttypmod), a.attcollation) order by a.attnum)
      from pg_attribute a
     where a.attrelid = rel and a.attnum > 0 and not a.attisdropped and a.attname <> '__pgt_row_id'
$$;

-- Lets a table in key form follow its query in place: columns that the query has no more leave, new ones come behind
-- the others, changed types follow by a cast. False (and nothing done) where that can't give the query's columns in
-- their order, or the key changed. Readers see the old rows until the caller commits.
create or replace function pgtrickle._reshape(storage regclass, view regclass, old_key text[], new_key text[]) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    kept text[];
    wanted text[];
    c record;
begin
    if old_key is null or old_key is distinct from new_key then
        return false;
    end if;
    select array_agg(a.attname::text order by a.attnum) into wanted from pg_attribute a
     where a.attrelid = view and a.attnum > 0 and not a.attisdropped;
    select array_agg(a.attname::text order by a.attnum) into kept from pg_attribute a
     where a.attrelid = storage and a.attnum > 0 and not a.attisdropped and a.attname = any (wanted);
    if kept is null or wanted[1:cardinality(kept)] is distinct from kept or not kept @> old_key then
        return false;
    end if;
    begin
        for c in select a.attname from pg_attribute a
                  where a.attrelid = storage and a.attnum > 0 and not a.attisdropped and a.attname <> all (wanted) loop
            execute format('alter table %s drop column %I', storage, c.attname);
        end loop;
        for c in select v.attname, format_type(v.atttypid, v.atttypmod) as type, t.attname is null as is_new,
                        case when v.attcollation <> 0 then (select format(' collate %I.%I', n.nspname, k.collname)
                            from pg_collation k join pg_namespace n on n.oid = k.collnamespace where k.oid = v.attcollation)
                            else '' end as coll
                   from pg_attribute v
                   left join pg_attribute t on t.attrelid = storage and t.attname = v.attname and not t.attisdropped
                  where v.attrelid = view and v.attnum > 0 and not v.attisdropped
                    and (v.atttypid, v.atttypmod, v.attcollation) is distinct from (t.atttypid, t.atttypmod, t.attcollation)
                  order by v.attnum loop
            if c.is_new then
                execute format('alter table %s add column %I %s%s', storage, c.attname, c.type, c.coll);
            else
                execute format('alter table %1$s alter column %2$I type %3$s%4$s using %2$I::%3$s',
                               storage, c.attname, c.type, c.coll);
            end if;
        end loop;
        return true;
    exception when others then
        -- A value that can't be cast; something that depends on a column: the caller makes the table anew, or says so.
        return false;
    end;
end $$;

-- Makes the storage, view and functions fit a new query. Same row identity and columns that can follow in place: the
-- table stays, with its indexes and grants, and only differences are written. Otherwise the table is made anew with
-- its grants (other things that were attached to it, such as indexes, are lost, which is said), and refused while
-- something depends on it. keep: the query is the old one over changed tables, its key is taken for proven until the
-- sidecar has looked at it again.
drop function if exists pgtrickle._replace_query(bigint, text, text, text);
create or replace function pgtrickle._replace_query(id bigint, query text, path text, requested text, keep boolean default false) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    probe regclass;
    view regclass;
    storage regclass;
    d record;
    g record;
    grants text[] := '{}';
    one text;
    label text;
    circle text;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id for no key update;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    probe := pgtrickle._create_view(format('probe_%s', id), query, path, false);
    if exists (select from pgtrickle._sources(probe) q where q.source = s.pgt_relid) then
        raise exception 'stream table % cannot read itself', label using errcode = '42P19',
            hint = 'Use WITH RECURSIVE inside one query.';
    end if;
    with recursive up (pgt_id, path) as (
        select n.pgt_id, array[label, format('%I.%I', n.pgt_schema, n.pgt_name)]
          from pgtrickle._sources(probe) q join pgtrickle.stream_table_names n on n.relid = q.source
        union all
        select n.pgt_id, u.path || format('%I.%I', n.pgt_schema, n.pgt_name)
          from up u join pgtrickle.query_views v on v.pgt_id = u.pgt_id
          cross join lateral pgtrickle._sources(v.query_view) q
          join pgtrickle.stream_table_names n on n.relid = q.source
         where u.pgt_id <> id and cardinality(u.path) < 200)
    select array_to_string(u.path, ' -> ') into circle from up u where u.pgt_id = id limit 1;
    if found then
        raise exception 'stream tables cannot read each other in a circle: %', circle using errcode = '42P19',
            hint = 'Change the query of one of them so that it reads something else.';
    end if;
    if keep then
        select s.refresh_mode as mode, s.refresh_reason as reason, s.key_columns as key, true as decided,
               s.evaluations as evaluations into d;
    else
        select * into d from pgtrickle._decide(id, label, probe, requested);
    end if;
    if pgtrickle._shape(probe) = pgtrickle._shape(s.pgt_relid) and (not d.decided or d.key is not distinct from s.key_columns) then
        execute format('drop view %s', probe);
        -- A source that was dropped with CASCADE has taken the view along.
        view := pgtrickle._create_view(coalesce((select c.relname from pg_class c where c.oid = s.query_view),
                                                pgtrickle._view_name(s.pgt_name, id)), query, path, true);
        storage := s.pgt_relid;
        d.key := s.key_columns;
        -- A key was proven for the old query only; an undecided new one gets the form that needs no proof.
        if not d.decided and s.key_columns is not null then
            d.key := null;
            execute format('alter table %s add column __pgt_row_id bigint not null default 0', storage);
            execute format('create index on %s (__pgt_row_id)', storage);
            execute format('alter table %s replica identity full', storage);
            for g in select c.conname from pg_constraint c where c.conrelid = storage and c.contype = 'p' loop
                execute format('alter table %s drop constraint %I', storage, g.conname);
            end loop;
        end if;
    elsif d.decided and pgtrickle._reshape(s.pgt_relid, probe, s.key_columns, d.key) then
        -- The functions name the view's row type.
        perform pgtrickle._drop_functions(id);
        if exists (select from pg_class c where c.oid = s.query_view) then
            execute format('drop view %s', s.query_view);
        end if;
        execute format('alter view %s rename to %I', probe, pgtrickle._view_name(s.pgt_name, id));
        view := probe;
        storage := s.pgt_relid;
    else
        for g in select a.grantee, a.privilege_type, a.is_grantable
                   from pg_class c cross join lateral aclexplode(c.relacl) a
                  where c.oid = s.pgt_relid and a.grantee <> c.relowner loop
            grants := grants || format('grant %s on %s to %s%s', g.privilege_type, label,
                case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end,
                case when g.is_grantable then ' with grant option' else '' end);
        end loop;
        perform pgtrickle._drop_functions(id);
        begin
            execute format('drop table %s', s.pgt_relid);
            if exists (select from pg_class c where c.oid = s.query_view) then
                execute format('drop view %s', s.query_view);
            end if;
        exception when dependent_objects_still_exist then
            raise exception 'the new query of stream table % has other columns or keys, and something depends on its table',
                label using errcode = '2BP01', detail = sqlerrm,
                hint = 'Drop what depends on it, or create a stream table with another name.';
        end;
        execute format('alter view %s rename to %I', probe, pgtrickle._view_name(s.pgt_name, id));
        view := probe;
        storage := pgtrickle._create_storage(s.pgt_schema, s.pgt_name, view, d.key);
        foreach one in array grants loop
            execute one;
        end loop;
        raise warning 'stream table % was made anew because its columns or keys changed', label
            using hint = 'Indexes, comments and triggers of the old table are gone; grants were kept.';
    end if;
    update pgtrickle.pgt_stream_tables t
       set pgt_relid = storage, query_view = view, defining_query = pg_get_viewdef(view),
           original_query = case when keep then s.original_query else query end,
           query_settings = case when keep then s.query_settings else pgtrickle._query_settings() end, key_columns = d.key, refresh_mode = d.mode,
           refresh_reason = d.reason, evaluations = d.evaluations, requested_refresh_mode = requested,
           status = 'INITIALIZING'
     where t.pgt_id = id;
    perform pgtrickle._record_sources(id, view);
    perform pgtrickle._create_functions(id);
    perform pgtrickle._recompute(id, 'REINITIALIZE', 'MANUAL', 'the query was changed');
end $$;

drop function if exists pgtrickle._alter(bigint, text, text, text, text, text, text, text);
create or replace function pgtrickle._alter(id bigint, query text, schedule text, refresh_mode text, status text,
    cdc_mode text, user_writes text, pipe text, path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    requested text;
    d record;
    label text;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id for no key update;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    if schedule is not null then
        perform pgtrickle.parse_schedule(schedule);
    end if;
    perform pgtrickle._check_options(lower(cdc_mode), lower(user_writes));
    if upper(status) not in ('ACTIVE', 'SUSPENDED') then
        raise exception 'invalid status: %', quote_literal(status) using errcode = '22023',
            hint = 'Use ACTIVE or SUSPENDED.';
    end if;
    if not exists (select from pg_class c where c.oid = s.pgt_relid) then
        raise exception 'the table of stream table % was dropped', label using errcode = '42P01',
            hint = format('Clean up with SELECT pgtrickle.drop_stream_table(%L); and create it again.', label);
    end if;
    perform pgtrickle._follow_rename(id);
    if pipe is not null then
        perform pgtrickle._move(id, pipe, false);
    end if;
    requested := case when refresh_mode is null then s.requested_refresh_mode else pgtrickle._refresh_mode(refresh_mode) end;
    update pgtrickle.pgt_stream_tables t
       set schedule = coalesce(lower(btrim(_alter.schedule)), t.schedule),
           requested_cdc_mode = coalesce(lower(_alter.cdc_mode), t.requested_cdc_mode),
           user_writes = coalesce(lower(_alter.user_writes), t.user_writes),
           requested_refresh_mode = requested, config_version = t.config_version + 1, updated_at = now()
     where t.pgt_id = id;
    if query is not null then
        perform pgtrickle._as_owner(s.owner, format('select pgtrickle._replace_query(%s, %L, %L, %L)::text', id, query, path, requested));
        update pgtrickle.pgt_stream_tables t
           set parked_query = null, parked_for = null, parked_order = null, parked_status = null
         where t.pgt_id = id and t.parked_query is not null;
    elsif requested <> s.requested_refresh_mode then
        select * into d from pgtrickle._decide(id, label, s.query_view, requested);
        update pgtrickle.pgt_stream_tables t
           set refresh_mode = d.mode, refresh_reason = d.reason, evaluations = d.evaluations,
               status = case when t.status in ('SUSPENDED', 'ERROR') then t.status
                             when d.mode = 'FULL' and t.is_populated then 'ACTIVE' else 'INITIALIZING' end
         where t.pgt_id = id;
    end if;
    if user_writes is not null then
        perform pgtrickle._set_guard(id, t.pgt_relid, t.user_writes)
           from pgtrickle.pgt_stream_tables t where t.pgt_id = id;
    end if;
    if upper(status) = 'SUSPENDED' then
        perform pgtrickle._set_status(id, 'SUSPENDED');
    elsif upper(status) = 'ACTIVE' and s.status in ('SUSPENDED', 'ERROR') then
        perform pgtrickle._set_status(id, 'ACTIVE');
    end if;
end $$;

-- Changes what is given; null leaves a property as it is.
drop function if exists pgtrickle.alter_stream_table(text, text, text, text, text, text, text);
create or replace function pgtrickle.alter_stream_table(name text, query text default null, schedule text default null,
    refresh_mode text default null, status text default null, cdc_mode text default null,
    user_writes text default null, pipeline text default null) returns void
language sql volatile as $$
    select pgtrickle._alter(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true),
                            $2, $3, $4, $5, $6, $7, $8, pg_catalog.current_setting('search_path'))
$$;

drop function if exists pgtrickle._create_or_replace(text, text, text, text, boolean, text, text, text);
create or replace function pgtrickle._create_or_replace(name text, query text, schedule text, refresh_mode text,
    initialize boolean, cdc_mode text, user_writes text, pipe text, path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    id bigint := pgtrickle._find(name, path, true, true);
    s pgtrickle.pgt_stream_tables;
    sch text := (select n.sch from pgtrickle._split_name(name, true) n);
    probe regclass;
    same boolean;
begin
    if id is not null and sch is null then
        -- Unqualified names of other schemas are for the other functions; creating means search_path's first schema.
        perform set_config('search_path', path, true);
        sch := pg_catalog.current_schema();
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        if not exists (select from pgtrickle.stream_table_names n where n.pgt_id = id and n.pgt_schema = sch) then
            id := null;
        end if;
    end if;
    if id is null then
        perform pgtrickle._create(name, query, schedule, refresh_mode, initialize, cdc_mode, user_writes,
                                  coalesce(pipe, 'main'), path);
        return;
    end if;
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    probe := pgtrickle._create_view(format('probe_%s', id), query, path, false);
    same := pg_get_viewdef(probe) = s.defining_query;
    execute format('drop view %s', probe);
    if same and lower(btrim(coalesce(schedule, 'calculated'))) = s.schedule
       and pgtrickle._refresh_mode(refresh_mode) = s.requested_refresh_mode
       and lower(coalesce(user_writes, 'refuse')) = s.user_writes
       and (cdc_mode is null or lower(cdc_mode) = s.requested_cdc_mode)
       and (pipe is null or pipe = s.pipeline) then
        return;
    end if;
    perform pgtrickle._alter(id, case when not same then query end, coalesce(schedule, 'calculated'),
                             coalesce(refresh_mode, 'AUTO'), null, cdc_mode, coalesce(user_writes, 'refuse'), pipe, path);
end $$;

-- Creates the stream table, or changes the existing one to this definition; nothing happens when it is the same.
drop function if exists pgtrickle.create_or_replace_stream_table(text, text, text, text, boolean, text, text);
create or replace function pgtrickle.create_or_replace_stream_table(name text, query text,
    schedule text default 'calculated', refresh_mode text default 'AUTO', initialize boolean default true,
    cdc_mode text default null, user_writes text default 'refuse', pipeline text default null) returns void
language sql volatile as $$
    select pgtrickle._create_or_replace($1, $2, $3, $4, $5, $6, $7, $8, pg_catalog.current_setting('search_path'))
$$;
