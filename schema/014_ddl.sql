-- Migrations that PostgreSQL would refuse because of a query's view (ALTER TYPE or DROP of a column that it reads).
--
-- begin_ddl puts an empty query with the same columns in the place of each query that reads a table, so that nothing
-- of ours stands in the way; the stream tables keep their rows and are suspended. end_ddl puts the queries back.

alter table pgtrickle.pgt_stream_tables
    -- The query while it is parked, what it is parked for, its place in the order of dependencies, the status before.
    add column if not exists parked_query text,
    add column if not exists parked_for text,
    add column if not exists parked_order int,
    add column if not exists parked_status text;

-- Query views that read `rel`, directly, through views, through its partitions and children, or through other stream
-- tables; what is read comes before what reads it.
create or replace function pgtrickle._readers_of(rel oid) returns table (pgt_id bigint, place int)
language sql stable set search_path = pg_catalog, pg_temp as $$
    with recursive reads (rel, depth) as (
        select _readers_of.rel, 0
        union
        select x.rel, r.depth + 1 from reads r cross join lateral (
            select w.ev_class as rel from pg_depend d join pg_rewrite w on w.oid = d.objid
             where d.refclassid = 'pg_class'::regclass and d.refobjid = r.rel and d.classid = 'pg_rewrite'::regclass
               and w.ev_class <> r.rel
            union all select i.inhrelid from pg_inherits i where i.inhparent = r.rel
            union all select n.relid::oid from pgtrickle.query_views q join pgtrickle.stream_table_names n on n.pgt_id = q.pgt_id
             where q.query_view::oid = r.rel and n.relid is not null) x
         where r.depth < 200)
    select q.pgt_id, max(r.depth) from reads r join pgtrickle.query_views q on q.query_view::oid = r.rel
     group by q.pgt_id
$$;

-- Before a migration: parks the queries of all stream tables that read `source`. Returns how many.
create or replace function pgtrickle.begin_ddl(source regclass) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    r record;
    s pgtrickle.pgt_stream_tables;
    columns text;
    label text := (select format('%I.%I', n.nspname, c.relname) from pg_class c
                     join pg_namespace n on n.oid = c.relnamespace where c.oid = source);
    parked bigint := 0;
begin
    if label is null then
        raise exception 'begin_ddl needs a table or a view' using errcode = '42P01',
            hint = 'For example pgtrickle.begin_ddl(''public.orders'').';
    end if;
    for r in select x.pgt_id, x.place, n.mine, format('%I.%I', n.pgt_schema, n.pgt_name) as name
               from pgtrickle._readers_of(source) x join pgtrickle.stream_table_names n on n.pgt_id = x.pgt_id
              order by x.place desc, x.pgt_id loop
        if not r.mine then
            raise exception 'must be owner of stream table %, which reads %', r.name, label using errcode = '42501',
                hint = 'Let its owner, or a superuser, run begin_ddl.';
        end if;
        select * into strict s from pgtrickle.pgt_stream_tables t where t.pgt_id = r.pgt_id for no key update;
        continue when s.parked_query is not null;
        select string_agg(format('null::%s%s as %I', format_type(a.atttypid, a.atttypmod),
                   case when a.attcollation <> 0 and a.attcollation <> t.typcollation
                        then (select format(' collate %I.%I', n.nspname, c.collname) from pg_collation c
                                join pg_namespace n on n.oid = c.collnamespace where c.oid = a.attcollation)
                        else '' end, a.attname), ', ' order by a.attnum) into columns
          from pg_attribute a join pg_type t on t.oid = a.atttypid
         where a.attrelid = s.query_view and a.attnum > 0 and not a.attisdropped;
        update pgtrickle.pgt_stream_tables t
           set parked_query = pg_get_viewdef(s.query_view), parked_for = label, parked_order = r.place,
               parked_status = s.status, status = 'SUSPENDED', config_version = t.config_version + 1,
               last_error_sqlstate = '55000', last_error_query = null, last_error_at = clock_timestamp(),
               last_error_message = format('parked for a migration of %1$s; hint: SELECT pgtrickle.end_ddl(%1$L) when it is done', label),
               data_timestamp = case when s.refresh_mode = 'DIFFERENTIAL' and s.status = 'ACTIVE'
                                          and pgtrickle._is_continuous(s.schedule) then greatest(t.data_timestamp,
                   (select p.data_timestamp from pgtrickle.pgt_pipelines p where p.pipeline = s.pipeline))
                   else t.data_timestamp end
         where t.pgt_id = r.pgt_id;
        execute format('create or replace view %s as select %s where false', s.query_view, columns);
        parked := parked + 1;
    end loop;
    return parked;
end $$;

-- After the migration: puts the queries back. Where a column has another type now, the storage follows. A query that
-- does not fit any more (a column is gone or has another name) is told by name, and nothing is changed.
create or replace function pgtrickle.end_ddl(source regclass) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    label text := (select format('%I.%I', n.nspname, c.relname) from pg_class c
                     join pg_namespace n on n.oid = c.relnamespace where c.oid = source);
    name text;
    put_back bigint := 0;
    state text;
    what text;
begin
    for s in select * from pgtrickle.pgt_stream_tables t
              where t.parked_query is not null and (label is null or t.parked_for = label)
              order by t.parked_order, t.pgt_id for no key update loop
        name := format('%I.%I', s.pgt_schema, s.pgt_name);
        begin
            perform pgtrickle._as_owner(s.owner, format('select pgtrickle._replace_query(%s, %L, %L, %L, true)::text',
                s.pgt_id, s.parked_query, 'pg_catalog, pg_temp', s.requested_refresh_mode));
        exception when others then
            get stacked diagnostics state = returned_sqlstate, what = message_text;
            raise exception 'the query of stream table % does not fit any more: %', name, what using errcode = state,
                hint = format('Give it a new query first: SELECT pgtrickle.alter_stream_table(%L, query => ''...''); then call end_ddl again.', name);
        end;
        update pgtrickle.pgt_stream_tables t
           set parked_query = null, parked_for = null, parked_order = null, parked_status = null, config_version = t.config_version + 1, updated_at = now(),
               status = case when s.parked_status = 'SUSPENDED' then 'SUSPENDED' when t.refresh_mode = 'FULL' then 'ACTIVE'
                             else 'INITIALIZING' end
         where t.pgt_id = s.pgt_id;
        put_back := put_back + 1;
    end loop;
    return put_back;
end $$;
