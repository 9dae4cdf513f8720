-- Who may do what. Nothing is granted to PUBLIC. A granted role sees and changes the catalog rows of stream tables
-- whose owner it is (or is a member of, with inherited rights); names and health of all stream tables are visible
-- to every granted role through the views of 007. The sidecar's role sees everything through its own policies.

alter table pgtrickle.pgt_stream_tables enable row level security;
alter table pgtrickle.pgt_dependencies enable row level security;
alter table pgtrickle.pgt_refresh_history enable row level security;
alter table pgtrickle.pgt_answers enable row level security;

-- pg_has_role(name, ...) would fail for everybody once one owner has been dropped, hence the sub-select.
drop policy if exists pgt_owner on pgtrickle.pgt_stream_tables;
create policy pgt_owner on pgtrickle.pgt_stream_tables
    using (owner = current_user
           or owner in (select r.rolname from pg_catalog.pg_roles r where pg_catalog.pg_has_role(r.oid, 'USAGE')))
    with check (owner = current_user
           or owner in (select r.rolname from pg_catalog.pg_roles r where pg_catalog.pg_has_role(r.oid, 'USAGE')));

drop policy if exists pgt_owner on pgtrickle.pgt_dependencies;
create policy pgt_owner on pgtrickle.pgt_dependencies
    using (pgt_id in (select s.pgt_id from pgtrickle.pgt_stream_tables s))
    with check (pgt_id in (select s.pgt_id from pgtrickle.pgt_stream_tables s));

drop policy if exists pgt_owner on pgtrickle.pgt_refresh_history;
create policy pgt_owner on pgtrickle.pgt_refresh_history
    using (pgt_id in (select s.pgt_id from pgtrickle.pgt_stream_tables s))
    with check (pgt_id in (select s.pgt_id from pgtrickle.pgt_stream_tables s));

drop policy if exists pgt_owner on pgtrickle.pgt_answers;
create policy pgt_owner on pgtrickle.pgt_answers for select
    using (requested_by is null or requested_by = current_user);

-- Functions only for the installing role and (publication_sync) the sidecar's role.
create or replace function pgtrickle._private_functions() returns text[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select array['grant_usage', 'revoke_usage', 'set_sidecar_role', 'publication_sync', '_grant_rights',
                 '_renew_functions', '_create_capture', '_install_capture', '_forget_capture',
                 'rebuild_cdc_triggers', 'detach', 'attach', 'pause', 'unpause', '_paused', '_alert', '_alert_facts',
                 'acknowledge_recoveries', 'create_pipeline', 'alter_pipeline', 'drop_pipeline']
$$;

-- Gives `role` what create_stream_table and its relatives need, and nothing on anyone's tables.
create or replace function pgtrickle._grant_rights(role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    f record;
begin
    execute format('grant usage on schema pgtrickle to %I', role);
    execute format('grant usage, create on schema pgtrickle_queries to %I', role);
    -- The rows of these tables have owners and are guarded by policies.
    for f in select c.oid::regclass as rel from pg_class c
              where c.relnamespace = 'pgtrickle'::regnamespace and c.relkind = 'r'
                and c.relname in ('pgt_stream_tables', 'pgt_dependencies', 'pgt_refresh_history', 'pgt_snapshots',
                                  'pgt_schema_grants') loop
        execute format('grant select, insert, update, delete on %s to %I', f.rel, role);
    end loop;
    execute format('grant select on pgtrickle.pgt_pipelines, pgtrickle.settings, pgtrickle.schema_files, '
                   'pgtrickle.pgt_answers to %I', role);
    for f in select c.oid::regclass as rel from pg_class c where c.relnamespace = 'pgtrickle'::regnamespace
                and c.relname in ('pgt_sources', 'pgt_recoveries', 'pgt_operator_state', 'pgt_behind') loop
        execute format('grant select on %s to %I', f.rel, role);
    end loop;
    execute format('grant usage, select on sequence pgtrickle.request_seq to %I', role);
    for f in select c.oid::regclass as rel from pg_class c
              where c.relnamespace = 'pgtrickle'::regnamespace and c.relkind = 'v' loop
        execute format('grant select on %s to %I', f.rel, role);
    end loop;
    for f in select p.oid::regprocedure as sig from pg_proc p
              where p.pronamespace = 'pgtrickle'::regnamespace
                and p.proname <> all (pgtrickle._private_functions()) loop
        execute format('grant execute on function %s to %I', f.sig, role);
    end loop;
end $$;

create or replace function pgtrickle._require_role(role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from pg_roles r where r.rolname = role) then
        raise exception 'role % does not exist', quote_ident(role) using errcode = '42704',
            hint = 'Create the role first: CREATE ROLE ' || quote_ident(role) || ';';
    end if;
end $$;

-- Lets a role create and use stream tables. Run by the installing role.
create or replace function pgtrickle.grant_usage(role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtrickle._require_role(role);
    perform pgtrickle._grant_rights(role);
end $$;

-- Takes back what grant_usage gave. Stream tables of the role stay and go on being maintained.
create or replace function pgtrickle.revoke_usage(role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtrickle._require_role(role);
    execute format('revoke all on all functions in schema pgtrickle from %I', role);
    execute format('revoke all on all tables in schema pgtrickle from %I', role);
    execute format('revoke all on all sequences in schema pgtrickle from %I', role);
    execute format('revoke all on schema pgtrickle, pgtrickle_queries from %I', role);
end $$;

-- Names the role the sidecar logs in as (LOGIN REPLICATION, nothing else needed) and gives it its rights. Objects
-- of stream tables that exist already are granted too, where the caller may do that.
create or replace function pgtrickle.set_sidecar_role(role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    t text;
    s record;
    f record;
begin
    perform pgtrickle._require_role(role);
    perform pgtrickle._grant_rights(role);
    execute format('grant select, insert, update, delete on all tables in schema pgtrickle to %I', role);
    execute format('grant usage, select, update on all sequences in schema pgtrickle to %I', role);
    execute format('grant usage on schema pgtrickle_changes to %I', role);
    for f in select p.oid::regprocedure as sig from pg_proc p where p.pronamespace = 'pgtrickle'::regnamespace
                and p.proname in ('publication_sync', '_install_capture', '_forget_capture', 'rebuild_cdc_triggers', 'detach', 'attach', 'pause', 'unpause',
                                  '_paused', '_alert', '_alert_facts') loop
        execute format('grant execute on function %s to %I', f.sig, role);
    end loop;
    for f in select c.oid::regclass as sig from pg_class c
              where c.relnamespace = 'pgtrickle_changes'::regnamespace and c.relkind = 'r' loop
        execute format('grant select, delete on %s to %I', f.sig, role);
    end loop;
    execute format('revoke create on schema pgtrickle_queries from %I', role);
    for t in select c.relname from pg_class c where c.relnamespace = 'pgtrickle'::regnamespace and c.relrowsecurity loop
        execute format('drop policy if exists pgt_sidecar on pgtrickle.%I', t);
        execute format('create policy pgt_sidecar on pgtrickle.%I to %I using (true) with check (true)', t, role);
    end loop;
    insert into pgtrickle.settings (key, value) values ('sidecar_role', role)
        on conflict (key, pipeline) do update set value = excluded.value;
    for s in select * from pgtrickle.pgt_stream_tables order by pgt_id loop
        begin
            perform pgtrickle._grant_sidecar(s.pgt_id);
        exception when insufficient_privilege or undefined_object or undefined_table or undefined_function then
            raise warning 'could not grant the objects of stream table %.% to %: %',
                quote_ident(s.pgt_schema), quote_ident(s.pgt_name), quote_ident(role), sqlerrm
                using hint = 'Let its owner run: SELECT pgtrickle._grant_sidecar(' || s.pgt_id || ');';
        end;
    end loop;
end $$;

-- USAGE on schemas that the sidecar's role was given for stream tables and did not have before: an uninstall takes it
-- back. Only the schema's name counts from a row; whose grant it is, is who wrote it.
create table if not exists pgtrickle.pgt_schema_grants (
    schema_name name not null,
    grantor name not null default current_user,
    primary key (schema_name, grantor)
);
alter table pgtrickle.pgt_schema_grants enable row level security;
drop policy if exists pgt_grantor on pgtrickle.pgt_schema_grants;
create policy pgt_grantor on pgtrickle.pgt_schema_grants using (grantor = current_user) with check (grantor = current_user);

-- Grants the objects of one stream table to the sidecar's role; run by the owner of the stream table.
create or replace function pgtrickle._grant_sidecar(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    f regprocedure;
    role text := (select value from pgtrickle.settings where key = 'sidecar_role');
begin
    select * into s from pgtrickle.pgt_stream_tables where pgt_id = id;
    if role is null or role = s.owner or s.pgt_relid is null then
        return;
    end if;
    if not exists (select from pg_namespace n cross join lateral aclexplode(n.nspacl) a join pg_roles r on r.oid = a.grantee
                    where n.nspname = s.pgt_schema and r.rolname = role and a.privilege_type = 'USAGE') then
        insert into pgtrickle.pgt_schema_grants (schema_name) values (s.pgt_schema) on conflict do nothing;
    end if;
    execute format('grant usage on schema %I to %I', s.pgt_schema, role);
    execute format('grant select on %s, %s to %I', s.pgt_relid, s.query_view, role);
    for f in select p.oid::regprocedure from pg_proc p
              where p.pronamespace = 'pgtrickle_queries'::regnamespace
                and p.proname ~ format('^(apply|recompute|evaluate|follow)_%s(_[0-9]+)?$', id) loop
        execute format('grant execute on function %s to %I', f, role);
    end loop;
end $$;

-- Makes the publication hold exactly `tables`; null drops it. Definer's rights because a publication can only be created by a role
-- with CREATE on the database and filled by the owner of the tables; EXECUTE is only for the sidecar's role. It
-- touches only names of our form and only sources of registered stream tables with a usable replica identity:
-- publishing any other table would make its UPDATE and DELETE fail. A table that is in and has become such a one
-- leaves; what somebody reduced by hand (operations, columns, rows) is whole again.
create or replace function pgtrickle.publication_sync(publication text, tables regclass[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    rel regclass;
    kind "char";
    present oid[];
    wanted oid[] := coalesce(tables, '{}')::oid[];
begin
    select coalesce(array_agg(r.prrelid), '{}') into present from pg_publication_rel r
      join pg_publication p on p.oid = r.prpubid where p.pubname = publication;
    if publication is null or publication !~ '^pgtrickle_[0-9]+_[0-9a-f]{8}_[a-z0-9_]{1,20}$' then
        raise exception 'publication name % is not one of pgtrickle', quote_literal(publication) using errcode = '42501',
            hint = 'pgtrickle only touches publications named pgtrickle_<database oid>_<install id>_<pipeline>.';
    end if;
    if tables is null then
        execute format('drop publication if exists %I', publication);
        return;
    end if;
    foreach rel in array tables loop
        if rel is null or not exists (
            select from pgtrickle.pgt_dependencies d where d.source = rel
            union all select from pgtrickle.pgt_stream_tables s where s.pgt_relid = rel) then
            if rel = any (present) then
                wanted := array_remove(wanted, rel::oid);
                continue;
            end if;
            raise exception 'table % is not a source of any stream table', rel using errcode = '42501',
                hint = 'Only sources of registered stream tables enter a publication of pgtrickle.';
        end if;
        select c.relreplident into kind from pg_class c where c.oid = rel;
        if kind is distinct from 'f' and not exists (
            select from pg_index i where i.indrelid = rel and i.indimmediate and i.indisvalid
               and i.indpred is null and (kind = 'd' and i.indisprimary or kind = 'i' and i.indisreplident)) then
            if rel = any (present) then
                wanted := array_remove(wanted, rel::oid);
                continue;
            end if;
            raise exception 'table % has no usable replica identity', rel using errcode = '55000',
                hint = 'Add a primary key, or set ALTER TABLE ... REPLICA IDENTITY FULL; until then it is captured by triggers.';
        end if;
    end loop;
    if not exists (select from pg_publication p where p.pubname = publication) then
        execute format('create publication %I with (publish = %L, publish_via_partition_root = false)',
                       publication, 'insert,update,delete,truncate');
    elsif exists (select from pg_publication p where p.pubname = publication
                     and not (p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and not p.pubviaroot)) then
        execute format('alter publication %I set (publish = %L, publish_via_partition_root = false)',
                       publication, 'insert,update,delete,truncate');
    end if;
    for rel in select r.prrelid::regclass from pg_publication_rel r
                 join pg_publication p on p.oid = r.prpubid
                where p.pubname = publication
                  and (r.prrelid <> all (wanted) or to_jsonb(r) ->> 'prqual' is not null
                       or to_jsonb(r) ->> 'prattrs' is not null) loop
        execute format('alter publication %I drop table only %s', publication, rel);
    end loop;
    for rel in select distinct t::regclass from unnest(wanted) t
                where not exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                                   where p.pubname = publication and r.prrelid = t) loop
        execute format('alter publication %I add table only %s', publication, rel);
    end loop;
end $$;

-- Null, or why publication_sync cannot publish a table: PostgreSQL lets only its owner, members of it and superusers.
-- What somebody has put into the pipeline's publication already needs nobody's right.
create or replace function pgtrickle._publish_obstacle(source regclass, pipeline text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format('the role %I, which installed pgtrickle, may not publish it', r.rolname)
      from pg_proc f join pg_roles r on r.oid = f.proowner join pg_class c on c.oid = source
     where f.oid = 'pgtrickle.publication_sync(text, regclass[])'::regprocedure and not r.rolsuper
       and not pg_has_role(r.oid, c.relowner, 'USAGE')
       and not exists (select from pg_publication_rel m join pg_publication p on p.oid = m.prpubid
                         join pgtrickle.pgt_pipelines l on l.publication_name = p.pubname
                        where m.prrelid = source and l.pipeline = $2)
$$;

revoke all on function pgtrickle.publication_sync(text, regclass[]) from public;
