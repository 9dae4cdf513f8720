-- Takes pgtrickle out of this database. Run by `pgtrickle uninstall`; printed by `pgtrickle uninstall --print` for psql.
-- keep_tables and drop_dependents are set by the program in front of this text.
begin;
set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;
set local lock_timeout = '30s';
do $uninstall$
declare
    keep_tables constant boolean := current_setting('pgtrickle_uninstall.keep_tables')::boolean;
    drop_dependents constant boolean := current_setting('pgtrickle_uninstall.drop_dependents')::boolean;
    ours constant regnamespace[] := array['pgtrickle', 'pgtrickle_queries', 'pgtrickle_changes'];
    role_name text;
    t record;
    names text;
    stream_tables oid[];
    snapshots oid[];
    dropped oid[];
    how text := case when drop_dependents then ' cascade' else '' end;
begin
    if to_regclass('pgtrickle.schema_files') is null then
        raise exception 'pgtrickle is not installed in this database' using errcode = '42704';
    end if;
    -- One uninstall or migration at a time, and no new stream table meanwhile.
    perform pg_advisory_xact_lock(1346852939, hashtext('pgtrickle schema files'));
    lock table pgtrickle.pgt_pipelines, pgtrickle.pgt_stream_tables in access exclusive mode;

    select string_agg(p.pipeline, ', ') into names from pgtrickle.pgt_pipelines p where pgtrickle.sidecar_alive(p.pipeline);
    if names is not null then
        raise exception 'a sidecar still serves pipeline %', names using errcode = '55006',
            hint = 'Commit SELECT pgtrickle.detach(pipeline) FROM pgtrickle.pgt_pipelines first, or end the sidecar.';
    end if;
    select string_agg(s.slot_name, ', ') into names from pg_replication_slots s
      join pgtrickle.pgt_pipelines p on p.slot_name = s.slot_name where s.database = current_database();
    if names is not null then
        raise exception 'there is still a replication slot: %', names using errcode = '55006',
            hint = 'SELECT pgtrickle.detach(pipeline) FROM pgtrickle.pgt_pipelines; drops it.';
    end if;
    select string_agg(distinct quote_ident(o), ', ') into names
      from (select pg_get_userbyid(n.nspowner) as o from pg_namespace n where n.oid = any (ours::oid[])
            union select s.owner from pgtrickle.pgt_stream_tables s join pg_class c on c.oid = s.pgt_relid
            union select s.owner from pgtrickle.pgt_snapshots s) x
     where exists (select from pg_roles r where r.rolname = x.o) and not pg_has_role(x.o, 'USAGE');
    if names is not null then
        raise exception 'must have the rights of %', names using errcode = '42501',
            hint = 'Run it as a superuser.';
    end if;

    role_name := (select s.value from pgtrickle.settings s join pg_roles r on r.rolname = s.value where s.key = 'sidecar_role');
    select coalesce(array_agg(c.oid order by s.pgt_id desc), '{}') into stream_tables
      from pgtrickle.pgt_stream_tables s join pg_class c on c.oid = s.pgt_relid;
    select coalesce(array_agg(r.rel), '{}') into snapshots from (
        select pgtrickle._snapshot_relation(q.mark, q.snapshot_table, q.owner)::oid as rel from pgtrickle.pgt_snapshots q) r
     where r.rel is not null;
    dropped := case when keep_tables then '{}' else stream_tables || snapshots end;

    -- What others have built on what goes. A cascade would take it along without a word.
    select string_agg(distinct what, ', ') into names from (
        select pg_describe_object(case when d.classid = 'pg_rewrite'::regclass then 'pg_class'::regclass else d.classid end,
                                  coalesce(w.ev_class, d.objid), case when w.oid is null then d.objsubid else 0 end) as what
          from pg_depend d
          left join pg_class rc on d.refclassid = 'pg_class'::regclass and rc.oid = d.refobjid
          left join pg_proc rp on d.refclassid = 'pg_proc'::regclass and rp.oid = d.refobjid
          left join pg_type rt on d.refclassid = 'pg_type'::regclass and rt.oid = d.refobjid
          left join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
          left join pg_trigger g on d.classid = 'pg_trigger'::regclass and g.oid = d.objid
          left join pg_constraint k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
          left join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid
          left join pg_class dc on dc.oid = coalesce(w.ev_class, g.tgrelid, nullif(k.conrelid, 0), f.adrelid,
                                                     case when d.classid = 'pg_class'::regclass then d.objid end)
          left join pg_proc dp on d.classid = 'pg_proc'::regclass and dp.oid = d.objid
          left join pg_type dt on d.classid = 'pg_type'::regclass and dt.oid = d.objid
         where d.deptype = 'n'
           and (coalesce(rc.relnamespace, rp.pronamespace, rt.typnamespace) = any (ours::oid[]) or rc.oid = any (dropped))
           -- A relation, function or type outside of what goes.
           and coalesce(dc.relnamespace, dp.pronamespace, dt.typnamespace) <> all (ours::oid[])
           and coalesce(dc.oid, 0) <> all (dropped)
           -- Our own triggers go with their functions.
           and not (g.oid is not null and exists (select from pg_proc p where p.oid = g.tgfoid and p.pronamespace = any (ours::oid[])
                                                     and (p.proname = 'guard_writes' or p.proname like 'capture\_%')))) x;
    if names is not null and not drop_dependents then
        raise exception 'other objects depend on what would be dropped: %', names using errcode = '2BP01',
            hint = 'Drop or change them first, keep the stream tables with --keep-tables, or drop them too with --cascade.';
    end if;

    for t in select distinct p.publication_name as name from pgtrickle.pgt_pipelines p
               join pg_publication b on b.pubname = p.publication_name
              where p.publication_name ~ '^pgtrickle_[0-9]+_[0-9a-f]{8}_[a-z0-9_]{1,20}$' loop
        execute format('drop publication %I', t.name);
    end loop;

    if keep_tables then
        -- What is left is an ordinary table: no guard, no hidden column, no right of the sidecar.
        for t in select c.oid::regclass as rel, s.key_columns is null as has_row_id
                   from pgtrickle.pgt_stream_tables s join pg_class c on c.oid = s.pgt_relid loop
            execute format('drop trigger if exists pgtrickle_guard on %s', t.rel);
            if role_name is not null then
                execute format('revoke all on %s from %I', t.rel, role_name);
            end if;
            if t.has_row_id and exists (select from pg_attribute a where a.attrelid = t.rel and a.attname = '__pgt_row_id') then
                begin
                    execute format('alter table %s drop column __pgt_row_id', t.rel);
                exception when dependent_objects_still_exist then
                    raise warning 'column __pgt_row_id of % stays: other objects use it', t.rel;
                end;
                if not exists (select from pg_publication_rel r where r.prrelid = t.rel) then
                    execute format('alter table %s replica identity default', t.rel);
                end if;
            end if;
        end loop;
        for t in select s::regclass as rel from unnest(snapshots) s loop
            execute format('comment on table %s is null', t.rel);
        end loop;
    end if;

    -- USAGE on schemas that was given to the sidecar's role for stream tables, by those who gave it.
    for t in select distinct g.schema_name, g.grantor from pgtrickle.pgt_schema_grants g
               join pg_roles r on r.rolname = g.grantor join pg_namespace n on n.nspname = g.schema_name
              where role_name is not null and pg_has_role(g.grantor, 'USAGE') loop
        perform set_config('role', t.grantor, true);
        execute format('revoke usage on schema %I from %I', t.schema_name, role_name);
        perform set_config('role', 'none', true);
    end loop;

    -- Defining queries and functions first: they read the stream tables.
    execute 'drop schema pgtrickle_queries cascade';
    if not keep_tables then
        for t in select o.oid::regclass as rel from unnest(dropped) with ordinality o (oid, ord) order by ord loop
            execute format('drop table if exists %s%s', t.rel, how);
        end loop;
    end if;
    execute 'drop schema pgtrickle_changes cascade';
    execute 'drop schema pgtrickle cascade';
end $uninstall$;
commit;
