-- Objects of one stream table: its storage, the guard against direct writes, and two functions owned by its owner.
-- Users' code (types, domains, triggers, the query itself) runs only inside these SECURITY DEFINER functions, never
-- with the sidecar's rights. They hold static SQL; all names and operators are qualified.
--
-- Identity of a row: the key columns, or the row's image = its text under the settings pinned on the functions. The
-- row id is the first 64 bits of md5 of the image and is only an index: the image decides. TimeZone and friends are
-- pinned to what they were at creation (pgt_stream_tables.query_settings), the rest to what the sidecar's sessions
-- use, so one row has one image whoever computes it.

-- Settings under which a query was created and under which it is evaluated for ever.
create or replace function pgtrickle._query_settings() returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
    -- Values of money travel as text, from the WAL and between sessions: all of them print and read it in one locale.
    select jsonb_build_object('TimeZone', current_setting('TimeZone'), 'lc_monetary', 'C',
        'lc_numeric', current_setting('lc_numeric'), 'lc_time', current_setting('lc_time'),
        'default_text_search_config', current_setting('default_text_search_config'),
        -- Texts are those of style ISO; the order of day and month tells how ambiguous ones are read.
        'DateStyle', 'ISO, ' || split_part(current_setting('DateStyle'), ', ', 2))
$$;

-- The settings that the image of a row depends on; the others matter only to the query. Setting a locale is slow
-- (it is checked with the operating system), and apply_<id> is called for every small batch.
create or replace function pgtrickle._image_settings(settings jsonb, view regclass) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
    select settings - array['lc_numeric', 'lc_time', 'default_text_search_config', 'DateStyle']
        - case when exists (select from pg_attribute a where a.attrelid = view and a.attnum > 0
                              and a.atttypid::bigint < 16384 and a.atttypid not in ('money'::regtype, 'money[]'::regtype)
                           having count(*) = (select count(*) from pg_attribute b where b.attrelid = view and b.attnum > 0))
               then array['lc_monetary'] else '{}'::text[] end
$$;

-- The SET clauses of the per-table functions.
create or replace function pgtrickle._pinned(settings jsonb) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select E'set search_path = pg_catalog, pg_temp\n set intervalstyle = postgres\n'
        || case when settings ? 'DateStyle' then '' else E' set datestyle = ''ISO, MDY''\n' end
        || E' set extra_float_digits = 1\n set bytea_output = hex\n set xmlbinary = base64\n set jit = off\n'
        || coalesce((select string_agg(format(E' set %I = %L\n', s.key, s.value), '' order by s.key)
                       from jsonb_each_text(settings) s), '')
$$;

-- The mark that the guard accepts. Set and taken back inside the functions: a SET clause with a placeholder
-- parameter is for superusers only. An error takes it back with the transaction.
create or replace function pgtrickle._writer(id text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format('perform set_config(''pgtrickle.writer'', %L, true);', id)
$$;

-- `alias.a, alias.b` for the query's columns in order.
create or replace function pgtrickle._column_list(rel regclass, alias text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select string_agg(alias || quote_ident(a.attname), ', ' order by a.attnum)
      from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped
$$;

-- `l.k = r.k and ...` with the operators of the primary key's operator classes (an extension's type may have its
-- operators anywhere, and pg_catalog may hold another one that fits by an implicit cast).
create or replace function pgtrickle._key_match(rel regclass, l text, r text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select string_agg(format('%s.%I operator(%I.%s) %s.%I', l, a.attname, n.nspname, o.oprname, r, a.attname),
                      ' and ' order by k.ord)
      from pg_index i
      cross join lateral unnest(i.indkey::int2[], i.indclass::oid[]) with ordinality k (att, cls, ord)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.att
      join pg_opclass c on c.oid = k.cls
      join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype
                    and m.amoprighttype = c.opcintype and m.amopstrategy = 3 and m.amoppurpose = 's'
      join pg_operator o on o.oid = m.amopopr
      join pg_namespace n on n.oid = o.oprnamespace
     where i.indrelid = rel and i.indisprimary
$$;

create or replace function pgtrickle._row_id(image text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select '(''x'' || substr(md5(' || image || '), 1, 16))::bit(64)::bigint'
$$;

-- Refuses INSERT, UPDATE, DELETE and TRUNCATE on a stream table unless they come from its own functions. The mark
-- alone is not enough (anyone can set it): the statement must also run as the table's owner.
create or replace function pgtrickle.guard_writes() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('pgtrickle.writer', true) = tg_argv[0]
       and (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = tg_relid) = current_user then
        return null;
    end if;
    -- pg_restore, or a script of pg_dump that psql runs: its first lines set these two.
    if current_setting('application_name') = 'pg_restore'
       or (current_setting('check_function_bodies') = 'off' and current_setting('row_security') = 'off') then
        return null;
    end if;
    raise exception '% on stream table %.% is refused: it always equals its query', tg_op,
        quote_ident(tg_table_schema), quote_ident(tg_table_name) using errcode = '55000',
        hint = 'Change its source tables instead, or allow direct writes with '
               'pgtrickle.alter_stream_table(name, user_writes => ''allow'').';
end $$;

create or replace function pgtrickle._set_guard(id bigint, rel regclass, user_writes text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if user_writes <> 'refuse' and exists (select from pg_trigger t where t.tgrelid = rel and t.tgname = 'pgtrickle_guard') then
        execute format('drop trigger pgtrickle_guard on %s', rel);
    end if;
    if user_writes = 'refuse' then
        -- In the place of an earlier one: readers are not in its way.
        execute format('create or replace trigger pgtrickle_guard before insert or update or delete or truncate on %s '
                       'for each statement execute function pgtrickle.guard_writes(%L)', rel, id);
    end if;
end $$;

-- Storage with the view's columns, types and collations; keyed when `keys` is not null.
create or replace function pgtrickle._create_storage(sch text, rel text, view regclass, keys text[]) returns regclass
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    full_name text := format('%I.%I', sch, rel);
    k text;
begin
    if keys is null then
        execute format('create table %s (like %s, __pgt_row_id bigint not null default 0)', full_name, view);
        execute format('create index on %s (__pgt_row_id)', full_name);
        execute format('alter table %s replica identity full', full_name);
    else
        select string_agg(quote_ident(u.k), ', ' order by u.ord) into k from unnest(keys) with ordinality u (k, ord);
        execute format('create table %s (like %s, primary key (%s))', full_name, view, k);
    end if;
    return full_name::regclass;
end $$;

-- apply_<id>(deleted, inserted): each element is the record text of one row of the query. Deletes first, then
-- inserts, so that a user's unique index sees no conflict that the new state does not have. Deferrable constraints and
-- deferred triggers of the user's are checked at the end, here and as the owner: at the commit they would run as the
-- sidecar (before 18) and their failure would hit all stream tables. A call with a null array is one of several; a call
-- without one is the last. The planner settings
-- make every batch an index lookup per row, however few rows the planner believes the table to have. Called with
-- two nulls it mends the row ids: the text of a value may have changed since (a renamed enum label).
--
-- replaced_rows: how many of the inserted found a row of their key and took its place. A new version has xmax set iff
-- ON CONFLICT locked an older one first (heap_lock_tuple in ExecOnConflictUpdate, kept by heap_update), whoever else
-- holds a lock; an inserted row has none. The sidecar knows how many it must be: more would be overwritten rows.
create or replace function pgtrickle._create_apply(id bigint, rel regclass, view regclass, keys text[],
                                                    settings jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    cols text := pgtrickle._column_list(view, '');
    e_cols text := pgtrickle._column_list(view, 'e.');
    t_cols text := pgtrickle._column_list(view, 't.');
    k text;
    upd text;
    del text;
    ins text;
    mend text := 'perform null';
begin
    if keys is not null then
        select string_agg(quote_ident(u.k), ', ' order by u.ord) into k from unnest(keys) with ordinality u (k, ord);
        select string_agg(format('%I = excluded.%1$I', a.attname), ', ' order by a.attnum) into upd
          from pg_attribute a where a.attrelid = view and a.attnum > 0 and a.attname <> all (keys);
        del := format('delete from %s t using unnest($1::%s[]) e where %s', rel, view,
                      pgtrickle._key_match(rel, 't', 'e'));
        ins := format('with w as (insert into %s as t (%s) select %s from unnest($2::%s[]) e on conflict (%s) do %s '
                      'returning t.xmax operator(pg_catalog.<>) ''0''::pg_catalog.xid as replaced) '
                      'select count(*), count(*) filter (where w.replaced) into inserted_rows, replaced_rows from w',
                      rel, cols, e_cols, view, k, coalesce('update set ' || upd, 'nothing'));
    else
        del := format(
            'delete from %1$s where ctid = any (array(
            select m.c from (
                select t.ctid as c, d.n, row_number() over (partition by d.img) as rn
                  from (select i.img, count(*) as n
                          from (select row(%2$s)::text collate "C" as img from unnest($1::%3$s[]) e) i
                         group by i.img) d
                  join %1$s t on t.__pgt_row_id = %4$s and row(%5$s)::text collate "C" = d.img) m
             where m.rn <= m.n))',
            rel, e_cols, view, pgtrickle._row_id('d.img'), t_cols);
        ins := format(E'insert into %s (%s, __pgt_row_id) select %s, %s from unnest($2::%s[]) e;\n'
                      '        get diagnostics inserted_rows = row_count', rel, cols, e_cols,
                      pgtrickle._row_id(format('row(%s)::text', e_cols)), view);
        mend := format('update %s t set __pgt_row_id = %s where t.__pgt_row_id <> %2$s', rel,
                       pgtrickle._row_id(format('row(%s)::text', t_cols)));
    end if;
    -- The result's type can't be replaced.
    if exists (select from pg_proc p where p.oid = to_regprocedure(format('pgtrickle_queries.apply_%s(text[], text[])', id))
                and cardinality(p.proallargtypes) <> 5) then
        execute format('drop function pgtrickle_queries.apply_%s(text[], text[])', id);
    end if;
    execute format(
        E'create or replace function pgtrickle_queries.apply_%s(deleted text[], inserted text[], '
        'out deleted_rows bigint, out inserted_rows bigint, out replaced_rows bigint) language plpgsql security definer\n%s'
        ' set plan_cache_mode = force_generic_plan\n set enable_seqscan = off\n set enable_hashjoin = off\n'
        ' set enable_mergejoin = off\nas %L',
        id, pgtrickle._pinned(pgtrickle._image_settings(settings, view)), format(E'#variable_conflict use_column
begin
    deleted_rows := 0;
    inserted_rows := 0;
    replaced_rows := 0;
    set constraints all deferred;
    %s
    if $1 is null and $2 is null then
        %s;
    end if;
    if cardinality($1) > 0 then
        %s;
        get diagnostics deleted_rows = row_count;
    end if;
    if cardinality($2) > 0 then
        %s;
    end if;
    %s
    if $1 is not null and $2 is not null then
        set constraints all immediate;
    end if;
end', pgtrickle._writer(id::text), mend, del, ins, pgtrickle._writer('')));
    execute format('revoke all on function pgtrickle_queries.apply_%s(text[], text[]) from public', id);
end $$;

-- recompute_<id>(): evaluates the query once, in one snapshot, and writes only the differences through apply_<id>:
-- deletes, then updates, then inserts, in batches while the difference stays in an open cursor. A unique index of
-- the user's that an update would violate on the way makes it start over with updates as delete and insert.
-- The same with a snapshot in the query's place is restore_<id>() (see 011).
drop function if exists pgtrickle._create_recompute(bigint, regclass, regclass, text[], jsonb);
create or replace function pgtrickle._create_recompute(verb text, id bigint, rel regclass, view regclass, keys text[],
                                                        settings jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    cols text := pgtrickle._column_list(view, '');
    q_cols text := pgtrickle._column_list(view, 'q.');
    t_cols text := pgtrickle._column_list(view, 't.');
    k1 text := quote_ident(keys[1]);
    diff text;
    fill text;
    repair text := '';
begin
    if keys is not null then
        diff := format(
            'select case when q.__pgt_copies > 1 then 0 when q.%1$s is null then 1 when t.%1$s is null then 3 else 2 end as kind,
                    case when q.%1$s is null then row(%2$s)::text else row(%3$s)::text end as rec
               from (select v.*, count(*) over (partition by %7$s) as __pgt_copies from %4$s v) q full join %5$s t on %6$s
              where q.%1$s is null or t.%1$s is null or q.__pgt_copies > 1
                 or (row(%3$s)::record operator(pg_catalog.*<>) row(%2$s)::record and row(%3$s)::text <> row(%2$s)::text)',
            k1, t_cols, q_cols, view, rel, pgtrickle._key_match(rel, 'q', 't'),
            (select string_agg(format('v.%I', u.k), ', ' order by u.ord) from unnest(keys) with ordinality u (k, ord)));
        fill := format('insert into %s (%s) select %s from %s q', rel, cols, q_cols, view);
    else
        diff := format(
            'select case when d.n < 0 then 1 else 3 end as kind, d.img as rec
               from (select u.img, sum(u.n) as n
                       from (select row(%1$s)::text collate "C" as img, 1 as n from %2$s q
                             union all select row(%3$s)::text collate "C", -1 from %4$s t) u
                      group by u.img having sum(u.n) <> 0) d
              cross join lateral generate_series(1, abs(d.n)::bigint) g',
            q_cols, view, t_cols, rel);
        fill := format('insert into %s (%s, __pgt_row_id) select %s, %s from %s q', rel, cols, q_cols,
                       pgtrickle._row_id(format('row(%s)::text', q_cols)), view);
        repair := format('update %s t set __pgt_row_id = %s where t.__pgt_row_id <> %2$s;', rel,
                         pgtrickle._row_id(format('row(%s)::text', t_cols)));
    end if;
    execute format(
        E'create or replace function pgtrickle_queries.%s_%s(out inserted_rows bigint, '
        'out updated_rows bigint, out deleted_rows bigint) language plpgsql security definer\n%s as %L',
        verb, id, pgtrickle._pinned(settings), format(E'#variable_conflict use_column
declare
    b record;
    done record;
    as_pairs boolean := false;
begin
    inserted_rows := 0;
    updated_rows := 0;
    deleted_rows := 0;
    set constraints all deferred;
    %6$s
    if not exists (select from %1$s) then
        %2$s;
        get diagnostics inserted_rows = row_count;
        %7$s
        set constraints all immediate;
        return;
    end if;
    %3$s
    %7$s
    loop
        begin
            for b in
                select c.kind, pg_catalog.array_agg(c.rec) as recs
                  from (select x.kind, x.rec, (pg_catalog.row_number() over (partition by x.kind)) / 5000 as part
                          from (select y.kind + case when as_pairs and y.kind = 2 and p.n = 1 then -1 else 0 end as kind,
                                       y.rec
                                  from (%4$s) y
                                 cross join lateral pg_catalog.generate_series(1,
                                     case when as_pairs and y.kind = 2 then 2 else 1 end) p (n)) x) c
                 group by c.kind, c.part order by c.kind
            loop
                -- The key was proven by a constraint that is gone: one of these rows would replace the other.
                if b.kind = 0 then
                    raise exception ''the query has several rows with one key'' using errcode = ''21000'',
                        hint = ''A unique constraint of a source was dropped: bring it back, or create the stream table again.'';
                elsif b.kind = 1 then
                    select * into done from pgtrickle_queries.apply_%5$s(b.recs, null);
                    deleted_rows := deleted_rows + done.deleted_rows;
                else
                    select * into done from pgtrickle_queries.apply_%5$s(null, b.recs);
                    if b.kind = 2 then
                        updated_rows := updated_rows + done.inserted_rows;
                    else
                        inserted_rows := inserted_rows + done.inserted_rows;
                    end if;
                end if;
            end loop;
            if as_pairs then
                deleted_rows := deleted_rows - updated_rows;
            end if;
            set constraints all immediate;
            return;
        exception when unique_violation then
            if as_pairs then
                raise;
            end if;
            as_pairs := true;
            inserted_rows := 0;
            updated_rows := 0;
            deleted_rows := 0;
        end;
    end loop;
end', rel, fill, repair, diff, id, pgtrickle._writer(id::text), pgtrickle._writer('')));
    execute format('revoke all on function pgtrickle_queries.%s_%s() from public', verb, id);
end $$;

-- Both functions, the guard and the grants, for a stream table whose row, view and storage exist.
-- evaluate_<id>_<n>(text[], ...): expressions that call users' code, over batches of changed rows, with the owner's
-- rights. The statement comes from the sidecar, which proved that the server reads it as the expressions of the query.
create or replace function pgtrickle._create_evaluations(id bigint, evaluations jsonb, settings jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    e record;
    f regprocedure;
    args text;
begin
    -- The result's type can't be replaced, and one with other parameters would stay beside the new one.
    for f in select p.oid::regprocedure from pg_proc p
              where p.pronamespace = 'pgtrickle_queries'::regnamespace and p.proname ~ format('^evaluate_%s_[0-9]+$', id) loop
        execute format('drop function %s', f);
    end loop;
    for e in select (v ->> 'inputs')::int as inputs, v ->> 'sql' as body, n - 1 as number,
                    case v ->> 'result' when 'record' then 'record' else 'text' end as result
               from jsonb_array_elements(evaluations) with ordinality x (v, n) loop
        args := array_to_string(array_fill('text[]'::text, array[greatest(e.inputs, 1)]), ', ');
        execute format(E'create function pgtrickle_queries.evaluate_%s_%s(%s, out o bigint, out r %s) '
                       'returns setof record language sql volatile security definer\n%sas %L',
                       id, e.number, args, e.result, pgtrickle._pinned(settings), e.body);
        execute format('revoke all on function pgtrickle_queries.evaluate_%s_%s(%s) from public', id, e.number, args);
    end loop;
end $$;

-- Drops all functions of a stream table.
create or replace function pgtrickle._drop_functions(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    f regprocedure;
begin
    for f in select p.oid::regprocedure from pg_proc p
              where p.pronamespace = 'pgtrickle_queries'::regnamespace
                and p.proname ~ format('^(apply|recompute|evaluate|follow)_%s(_[0-9]+)?$', id) loop
        execute format('drop function %s', f);
    end loop;
end $$;

-- Runs a statement (one row, one text) as a stream table's owner, whoever calls: a query, its plan and the owner's functions
-- are code of his, and must not run with the rights of a superuser who maintains them. SET ROLE would not do: it can be
-- undone by that very code; inside a definer function it can't. Nobody else ever sees the function.
create or replace function pgtrickle._as_owner(holder text, statement text) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    fn text := format('pgtrickle_queries.as_owner_%s', md5(random()::text || clock_timestamp()::text || pg_backend_pid()));
    answer text;
begin
    if current_user = holder then
        execute statement into answer;
        return answer;
    end if;
    execute format('create function %s() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as %L',
        fn, format('declare answer text; begin execute %L into answer; return answer; end', statement));
    execute format('alter function %s() owner to %I', fn, holder);
    execute format('select %s()', fn) into answer;
    execute format('drop function %s()', fn);
    return answer;
end $$;

create or replace function pgtrickle._create_functions(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    if current_user <> s.owner then
        -- They are called only if they belong to the owner.
        perform pgtrickle._as_owner(s.owner, format('select pgtrickle._create_functions(%s)::text', id));
        return;
    end if;
    perform pgtrickle._create_apply(id, s.pgt_relid, s.query_view, s.key_columns, s.query_settings);
    perform pgtrickle._create_recompute('recompute', id, s.pgt_relid, s.query_view, s.key_columns, s.query_settings);
    perform pgtrickle._create_evaluations(id, s.evaluations, s.query_settings);
    perform pgtrickle._set_guard(id, s.pgt_relid, s.user_writes);
    -- The sidecar calls it when the table was renamed: the functions name it.
    if to_regprocedure(format('pgtrickle_queries.follow_%s()', id)) is null then
        execute format('create function pgtrickle_queries.follow_%1$s() returns void language sql security definer '
            'set search_path = pg_catalog, pg_temp as %2$L', id,
            format('select pgtrickle._follow_rename(%1$s); select pgtrickle._create_functions(%1$s)', id));
        execute format('revoke all on function pgtrickle_queries.follow_%s() from public', id);
    end if;
    perform pgtrickle._grant_sidecar(id);
end $$;

-- Makes capture functions anew, and apply_<id> where it was made by an older version of this file. Run by init: a superuser (or a member of
-- the owners) can do it for all; nothing of a user's is evaluated, and the owner stays the owner.
create or replace function pgtrickle._renew_functions() returns void
language plpgsql set search_path = pg_catalog, pg_temp set check_function_bodies = off as $$
declare
    s pgtrickle.pgt_stream_tables;
    source bigint;
begin
    -- Intact ones only: what somebody changed is still to be told of.
    for source in select q.source_id from pgtrickle.pgt_sources q
                    join pg_proc p on p.oid = to_regprocedure(format('pgtrickle_changes.capture_%s()', q.source_id))
                   where md5(p.prosrc) = q.function_hash order by q.source_id loop
        perform pgtrickle._create_capture(source);
    end loop;
    for s in select t.* from pgtrickle.pgt_stream_tables t
               join pg_proc p on p.oid = to_regprocedure(format('pgtrickle_queries.apply_%s(text[], text[])', t.pgt_id))
              where cardinality(p.proallargtypes) <> 5 and t.pgt_relid is not null and t.query_view is not null
              order by t.pgt_id loop
        begin
            perform pgtrickle._create_apply(s.pgt_id, s.pgt_relid, s.query_view, s.key_columns, s.query_settings);
            execute format('alter function pgtrickle_queries.apply_%s(text[], text[]) owner to %I', s.pgt_id, s.owner);
            perform pgtrickle._grant_sidecar(s.pgt_id);
        exception when insufficient_privilege or undefined_object or undefined_table or undefined_function then
            raise warning 'the functions of stream table %.% are of an older version: %',
                quote_ident(s.pgt_schema), quote_ident(s.pgt_name), sqlerrm
                using hint = format('Let its owner run: SELECT pgtrickle._create_functions(%s);', s.pgt_id);
        end;
    end loop;
end $$;

-- Sources of a view, found in pg_depend and through nested views, with the columns it names. A whole-row reference
-- or count(*) names none.
create or replace function pgtrickle._sources(view regclass)
returns table (source regclass, source_name text, source_type text, columns_used text[], nested boolean)
language sql stable set search_path = pg_catalog, pg_temp as $$
    with recursive refs as (
        select d.refobjid as rel, d.refobjsubid as att, 1 as depth
          from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
         where r.ev_class = view and d.refclassid = 'pg_class'::regclass and d.refobjid <> view
        union
        select d.refobjid, d.refobjsubid, 2
          from refs f join pg_class v on v.oid = f.rel and v.relkind = 'v'
          join pg_rewrite r on r.ev_class = v.oid
          join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
         where d.refclassid = 'pg_class'::regclass and d.refobjid <> v.oid)
    select c.oid::regclass, format('%I.%I', n.nspname, c.relname),
           case when exists (select from pgtrickle.stream_table_names s where s.relid = c.oid) then 'STREAM_TABLE'
                when c.relkind = 'v' then 'VIEW' when c.relkind = 'm' then 'MATVIEW'
                when c.relkind = 'f' then 'FOREIGN_TABLE' when c.relkind = 'p' then 'PARTITIONED_TABLE' else 'TABLE' end,
           array_agg(distinct a.attname::text) filter (where a.attname is not null),
           bool_or(f.depth > 1)
      from refs f join pg_class c on c.oid = f.rel and c.relkind in ('r', 'p', 'v', 'm', 'f')
      join pg_namespace n on n.oid = c.relnamespace
      left join pg_attribute a on a.attrelid = c.oid and a.attnum = f.att and f.att > 0
     group by c.oid, n.nspname, c.relname, c.relkind
$$;
