-- After a restore, and before what a slot stands in the way of.

-- Raises every sequence of the catalog above what the tables hold: a restore may have brought rows without them.
-- Definer's rights, because callers may not touch the sequences; it only ever raises.
create or replace function pgtrickle._raise_sequences() returns text[]
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q record;
    highest bigint;
    position_ bigint;
    raised text[] := '{}';
begin
    for q in
        select c.oid::regclass as rel, a.attname::text as col,
               pg_get_serial_sequence(format('%I.%I', n.nspname, c.relname), a.attname)::regclass as seq
          from pg_class c join pg_namespace n on n.oid = c.relnamespace
          join pg_attribute a on a.attrelid = c.oid and a.attidentity <> '' and not a.attisdropped
         where n.nspname in ('pgtrickle', 'pgtrickle_changes') and c.relkind = 'r'
    loop
        execute format('select max(%I) from %s', q.col, q.rel) into highest;
        execute format('select last_value - case when is_called then 0 else 1 end from %s', q.seq) into position_;
        if highest > position_ then
            perform setval(q.seq, highest);
            raised := raised || q.seq::text;
        end if;
    end loop;
    return raised;
end $$;

-- Ends the history rows of refreshes that a crash, a kill or a restore cut off. Not while a sidecar lives: it did so
-- when it started, and what runs since is its own.
create or replace function pgtrickle._close_interrupted() returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    n bigint;
begin
    update pgtrickle.pgt_refresh_history h
       set status = 'FAILED', end_time = clock_timestamp(), error_message = 'interrupted; run again at the next start'
     where h.status = 'RUNNING' and not exists (
        select from pgtrickle.pgt_stream_tables s where s.pgt_id = h.pgt_id and pgtrickle.sidecar_alive(s.pipeline));
    get diagnostics n = row_count;
    return n;
end $$;

-- Finds table and view of a stream table again by name, or makes them from what the catalog knows.
create or replace function pgtrickle._find_objects(id bigint) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s pgtrickle.pgt_stream_tables;
    done text[] := '{}';
    named regclass;
    made regclass;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    if exists (select from pg_class c where c.oid = s.pgt_relid) and exists (select from pg_class c where c.oid = s.query_view) then
        return done;
    end if;
    if current_user <> s.owner then
        return pgtrickle._as_owner(s.owner, format('select pgtrickle._find_objects(%s)::text', id))::text[];
    end if;
    if not exists (select from pg_class c where c.oid = s.query_view) then
        named := to_regclass(format('pgtrickle_queries.%I', pgtrickle._view_name(s.pgt_name, id)));
        if named is null then
            named := pgtrickle._create_view(pgtrickle._view_name(s.pgt_name, id), s.defining_query, 'pg_catalog, pg_temp', false);
            done := done || 'view'::text;
        else
            done := done || 'view found by name'::text;
        end if;
        update pgtrickle.pgt_stream_tables t set query_view = named where t.pgt_id = id returning * into s;
    end if;
    if not exists (select from pg_class c where c.oid = s.pgt_relid) then
        named := to_regclass(format('%I.%I', s.pgt_schema, s.pgt_name));
        if named is null then
            made := pgtrickle._create_storage(s.pgt_schema, s.pgt_name, s.query_view, s.key_columns);
            done := done || 'table'::text;
        elsif pgtrickle._shape(named) is distinct from pgtrickle._shape(s.query_view)
              or (s.key_columns is null) <> exists (select from pg_attribute a where a.attrelid = named and a.attname = '__pgt_row_id') then
            raise exception 'table % is not the one of the stream table: it has other columns', named using errcode = '42P17',
                hint = 'Rename it, then call the function again.';
        else
            done := done || 'table found by name'::text;
        end if;
        update pgtrickle.pgt_stream_tables t
           set pgt_relid = coalesce(made, named), is_populated = t.is_populated and made is null
         where t.pgt_id = id;
    end if;
    return done;
end $$;

-- After a restore: brings the catalog in line with the database. For each stream table of the caller (a superuser: all)
-- what is missing is made again, and whatever was is reconciled by the sidecar; ids go on above those in use; refreshes
-- that were cut off are marked as failed. Safe to run at any time; what is intact is left alone.
create or replace function pgtrickle.restore_stream_tables() returns table (stream_table text, result text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s record;
    done text[];
    n bigint;
begin
    if pg_is_in_recovery() then
        raise exception 'cannot restore stream tables on a read replica' using errcode = '25006', hint = 'Run it on the primary.';
    end if;
    perform pgtrickle._make_history();
    done := pgtrickle._raise_sequences();
    if cardinality(done) > 0 then
        stream_table := '(catalog)';
        result := 'sequences raised: ' || array_to_string(done, ', ');
        return next;
    end if;
    n := pgtrickle._close_interrupted();
    if n > 0 then
        stream_table := '(catalog)';
        result := n || ' interrupted refreshes marked as failed';
        return next;
    end if;
    for s in select t.pgt_id, n.pgt_schema, n.pgt_name
               from pgtrickle.pgt_stream_tables t join pgtrickle.stream_table_names n on n.pgt_id = t.pgt_id
              where n.mine order by t.pgt_id loop
        stream_table := format('%I.%I', s.pgt_schema, s.pgt_name);
        begin
            done := pgtrickle._find_objects(s.pgt_id);
            done := done || pgtrickle._mend(s.pgt_id);
            if cardinality(done) > 0 then
                update pgtrickle.pgt_stream_tables t
                   set config_version = t.config_version + 1, updated_at = now(),
                       status = case when t.status = 'SUSPENDED' then t.status else 'INITIALIZING' end
                 where t.pgt_id = s.pgt_id;
            end if;
            result := case when cardinality(done) = 0 then 'intact' else 'made again: ' || array_to_string(done, ', ') end;
        exception when others then
            result := format('failed: %s (%s)', sqlerrm, sqlstate);
            raise warning 'stream table % could not be restored: %', stream_table, sqlerrm;
        end;
        return next;
    end loop;
end $$;

-- Since when the pipeline is to be left alone; null: it is served.
alter table pgtrickle.pgt_pipelines add column if not exists detached_at timestamptz;

-- Takes pgtrickle off the server as far as it stands in the way of DROP DATABASE, CREATE DATABASE ... TEMPLATE,
-- pg_upgrade or a lower wal_level: the sidecar drops its slot, closes its sessions and stays away until attach(). The
-- first call marks; with a live sidecar, which sees the mark only after the commit, a second call waits for its end.
-- A slot that is left of a dead sidecar is dropped here, and only if it is provably ours. Stream tables stay as they are.
create or replace function pgtrickle.detach(pipeline text default 'main', timeout interval default '30 s') returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p pgtrickle.pgt_pipelines;
    slot record;
    ours text;
    deadline timestamptz := clock_timestamp() + timeout;
begin
    select * into p from pgtrickle.pgt_pipelines t where t.pipeline = detach.pipeline;
    if not found then
        raise exception 'pipeline % does not exist', coalesce(quote_literal(pipeline), 'null') using errcode = '22023',
            hint = 'SELECT pipeline FROM pgtrickle.pgt_pipelines lists them.';
    elsif timeout is null or timeout < interval '0' then
        raise exception 'timeout must be a duration of zero or more' using errcode = '22023',
            hint = 'For example interval ''30 s''.';
    end if;
    if p.detached_at is null then
        update pgtrickle.pgt_pipelines t set detached_at = clock_timestamp() where t.pipeline = detach.pipeline;
        if pgtrickle.sidecar_alive(pipeline) then
            return format('detaching: the sidecar (%s) leaves when this has been committed; call detach() again to wait for it',
                          coalesce(p.sidecar, 'unknown'));
        end if;
    end if;
    select format('pgtrickle_%s_%s_%s', d.oid, left(replace(p.install_id::text, '-', ''), 8), p.pipeline) into ours
      from pg_database d where d.datname = current_database();
    loop
        select * into slot from pg_replication_slots r
         where r.slot_name = ours and r.slot_name = p.slot_name and r.database = current_database() and r.plugin = 'pgoutput';
        exit when not pgtrickle.sidecar_alive(pipeline) and not coalesce(slot.active, false);
        if clock_timestamp() > deadline then
            if pgtrickle.sidecar_alive(pipeline) then
                raise exception 'the sidecar (%) still serves the pipeline %', coalesce(p.sidecar, 'unknown'), pipeline
                    using errcode = '55006', hint = 'Commit the first call of detach(), or end the sidecar, then call detach() again.';
            end if;
            raise exception 'the replication slot % is in use by process %', ours, slot.active_pid using errcode = '55006',
                hint = 'It may be what is left of a sidecar whose connection broke: the server ends it after wal_sender_timeout.';
        end if;
        perform pg_sleep(0.02);
    end loop;
    -- Nobody maintains it meanwhile: a table that loses its replica identity could not be updated any more.
    perform pgtrickle.publication_sync(ours, null);
    if slot.slot_name is null then
        return format('detached: the pipeline %s has no replication slot on this server', pipeline);
    end if;
    begin
        perform pg_drop_replication_slot(ours);
    exception
    when undefined_object then
        null; -- The sidecar, which leaves just now, was quicker.
    when insufficient_privilege then
        raise exception 'the replication slot % may not be dropped by %', ours, quote_ident(current_user) using errcode = '42501',
            hint = 'Call detach() as a superuser or as the role of the sidecar.';
    end;
    return format('detached: the replication slot %s was dropped', ours);
end $$;

-- Lets a sidecar serve the pipeline again; it makes a new slot and reconciles by difference.
create or replace function pgtrickle.attach(pipeline text default 'main') returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    since timestamptz;
begin
    select t.detached_at into since from pgtrickle.pgt_pipelines t where t.pipeline = attach.pipeline for update;
    if not found then
        raise exception 'pipeline % does not exist', coalesce(quote_literal(pipeline), 'null') using errcode = '22023',
            hint = 'SELECT pipeline FROM pgtrickle.pgt_pipelines lists them.';
    elsif since is null then
        return format('the pipeline %s was not detached', pipeline);
    end if;
    update pgtrickle.pgt_pipelines t set detached_at = null where t.pipeline = attach.pipeline;
    return format('attached: a sidecar may serve the pipeline %s again', pipeline);
end $$;
