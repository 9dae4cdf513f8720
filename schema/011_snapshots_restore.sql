-- Writing a snapshot back: by difference, through the owner's functions, and so that whoever else writes the stream
-- table notices (hazard A9).

-- Whether the snapshot's query is the present one. The text of another server version, or of another time, may differ
-- for one query: then the server reads it again.
create or replace function pgtrickle._same_query(id bigint, view regclass, query text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    probe regclass;
    same boolean;
begin
    if pg_get_viewdef(view) = query then
        return true;
    end if;
    begin
        probe := pgtrickle._create_view(format('probe_%s', id), query, 'pg_catalog, pg_temp', false);
        same := pg_get_viewdef(probe) = pg_get_viewdef(view);
        execute format('drop view %s', probe);
    exception when others then
        -- It reads what is gone or renamed, or what the caller may not read.
        same := false;
    end;
    return same;
end $$;

-- Waits until the live sidecar has noticed the suspension: then no apply that it had under way can follow ours.
create or replace function pgtrickle._await_release(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    deadline timestamptz := clock_timestamp() + pgtrickle._setting_interval('refresh_timeout',
        (select t.pipeline from pgtrickle.pgt_stream_tables t where t.pgt_id = id));
    s pgtrickle.pgt_stream_tables;
begin
    loop
        select * into s from pgtrickle.pgt_stream_tables where pgt_id = id;
        if not found or s.status <> 'SUSPENDED' or s.released_version = s.config_version
           or not pgtrickle.sidecar_alive(s.pipeline) then
            return;
        end if;
        if clock_timestamp() > deadline then
            raise exception 'the sidecar has not let go of the suspended stream table' using errcode = '55P03',
                hint = 'Suspend it in a transaction of its own, then call the function again.';
        end if;
        perform pg_sleep(0.01);
    end loop;
end $$;

-- Brings the snapshot's query back, with the settings it was created under.
create or replace function pgtrickle._restore_definition(id bigint, snap pgtrickle.pgt_snapshots) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    setting record;
    before jsonb := '{}';
    requested text := (select t.requested_refresh_mode from pgtrickle.pgt_stream_tables t where t.pgt_id = id);
begin
    for setting in select * from jsonb_each_text(snap.query_settings) loop
        before := before || jsonb_build_object(setting.key, current_setting(setting.key));
        perform set_config(setting.key, setting.value, true);
    end loop;
    perform pgtrickle._follow_rename(id);
    perform pgtrickle._replace_query(id, snap.defining_query, 'pg_catalog, pg_temp', requested);
    update pgtrickle.pgt_stream_tables t set original_query = snap.original_query where t.pgt_id = id;
    for setting in select * from jsonb_each_text(before) loop
        perform set_config(setting.key, setting.value, true);
    end loop;
end $$;

-- Refuses a snapshot that does not fit the stream table (42P17), before anything is written.
create or replace function pgtrickle._check_snapshot(s pgtrickle.pgt_stream_tables, snap pgtrickle.pgt_snapshots,
                                                     rel regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    label text := format('%I.%I', s.pgt_schema, s.pgt_name);
    n bigint;
begin
    if pgtrickle._columns(rel) is distinct from snap.columns then
        raise exception 'snapshot % has other columns than when it was made', rel using errcode = '42P17',
            hint = 'Somebody altered its table. Use another snapshot.';
    elsif pgtrickle._columns(s.query_view) is distinct from snap.columns then
        raise exception 'snapshot % has other columns than stream table %', rel, label using errcode = '42P17',
            detail = format('snapshot: %s; stream table: %s', array_to_string(snap.columns, ', '),
                            array_to_string(pgtrickle._columns(s.query_view), ', ')),
            hint = 'restore_definition => true brings the snapshot''s query back too.';
    end if;
    execute format('select count(*) from %s', rel) into n;
    if n <> snap.row_count then
        raise exception 'snapshot % holds % rows, % were stored', rel, n, snap.row_count using errcode = '42P17',
            hint = 'Somebody changed its table, or it was restored without its data. Use another snapshot.';
    end if;
    if s.key_columns is not null then
        execute format('select count(*) - count(distinct (%1$s)) filter (where (%1$s) is not null) from %2$s',
            (select 'row(' || string_agg(quote_ident(k), ', ') || ')' from unnest(s.key_columns) k), rel) into n;
        if n <> 0 then
            raise exception 'snapshot % has no unique rows by %', rel, array_to_string(s.key_columns, ', ')
                using errcode = '42P17', hint = 'The key of the stream table is another one than at the snapshot''s time.';
        end if;
    end if;
end $$;

create or replace function pgtrickle._restore(id bigint, source text, restore_definition boolean, path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    started timestamptz := clock_timestamp();
    s pgtrickle.pgt_stream_tables;
    snap pgtrickle.pgt_snapshots;
    rel regclass;
    label text;
    done record;
    live boolean;
begin
    select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    label := format('%I.%I', s.pgt_schema, s.pgt_name);
    if pg_is_in_recovery() then
        raise exception 'cannot restore a snapshot on a read replica' using errcode = '25006', hint = 'Run it on the primary.';
    elsif current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'a snapshot cannot be restored in a % transaction', current_setting('transaction_isolation')
            using errcode = '25001', hint = 'Call it in a READ COMMITTED transaction: it must see what it replaces.';
    end if;
    select * into snap from pgtrickle.pgt_snapshots x where x.snapshot_id = (select pgtrickle._find_snapshot(source, path));
    rel := pgtrickle._snapshot_relation(snap.mark, snap.snapshot_table, snap.owner);
    if snap.pgt_id <> id and (snap.pgt_schema, snap.pgt_name) is distinct from (s.pgt_schema, s.pgt_name) then
        raise exception '% is a snapshot of %.%, not of %', rel, quote_ident(snap.pgt_schema), quote_ident(snap.pgt_name), label
            using errcode = '42P17', hint = 'SELECT snapshot_table FROM pgtrickle.list_snapshots(name) lists those of one stream table.';
    end if;
    if not exists (select from pg_class c where c.oid = s.pgt_relid)
       or not exists (select from pg_class c where c.oid = s.query_view) then
        raise exception 'the table of stream table % was dropped', label using errcode = '42P01',
            hint = format('Clean up with SELECT pgtrickle.drop_stream_table(%L); and create it again.', label);
    end if;
    if not pgtrickle._same_query(id, s.query_view, snap.defining_query) then
        if not coalesce(restore_definition, false) then
            raise exception 'snapshot % was made under another query of stream table %', rel, label using errcode = '42P17',
                detail = 'Its query was: ' || snap.defining_query,
                hint = 'restore_definition => true brings the snapshot''s query back too.';
        end if;
        perform pgtrickle._restore_definition(id, snap);
        select * into strict s from pgtrickle.pgt_stream_tables where pgt_id = id;
    end if;
    perform pgtrickle._check_snapshot(s, snap, rel);
    if to_regprocedure(format('pgtrickle_queries.apply_%s(text[], text[])', id)) is null then
        perform pgtrickle._create_functions(id);
    end if;

    -- Other writers. A sidecar that lives finds the new config_version and reconciles; what it has under way fails or is
    -- overwritten by that reconcile. One that comes back finds a new generation.
    perform pgtrickle._await_let_go(id);
    live := pgtrickle.sidecar_alive(s.pipeline);
    if not live then
        live := pgtrickle._take_over(s.pipeline) is null;
    elsif s.status = 'SUSPENDED' then
        perform pgtrickle._await_release(id);
    end if;
    perform pg_advisory_xact_lock(hashtextextended('pgtrickle recompute ' || id, 0));
    execute format('lock table only %s in share row exclusive mode', s.pgt_relid);
    perform pgtrickle._create_recompute('restore', id, s.pgt_relid, rel, s.key_columns, s.query_settings);
    if current_user <> s.owner then
        execute format('alter function pgtrickle_queries.restore_%s() owner to %I', id, s.owner);
    end if;
    execute format('select * from pgtrickle_queries.restore_%s()', id) into done;
    execute format('drop function pgtrickle_queries.restore_%s()', id);

    update pgtrickle.pgt_stream_tables t
       set is_populated = true, frontier = snap.frontier, data_timestamp = snap.data_timestamp,
           last_refresh_at = clock_timestamp(), updated_at = now(), config_version = t.config_version + 1,
           status = case when t.status = 'SUSPENDED' then t.status
                         when t.refresh_mode = 'FULL' then 'ACTIVE' else 'INITIALIZING' end,
           -- Suspended it stays let go of.
           released_version = t.config_version + 1,
           consecutive_errors = 0, last_error_sqlstate = null, last_error_message = null, last_error_query = null, last_error_at = null
     where t.pgt_id = id returning * into s;
    if to_regclass('pgtrickle.pgt_refresh_history') is null then
        perform pgtrickle._make_history();
    end if;
    insert into pgtrickle.pgt_refresh_history (pgt_id, pgt_name, data_timestamp, start_time, end_time, action, status,
        rows_inserted, rows_updated, rows_deleted, delta_row_count, reason, initiated_by, frontier)
    values (id, s.pgt_name, snap.data_timestamp, started, clock_timestamp(), 'REINITIALIZE', 'COMPLETED',
        done.inserted_rows, done.updated_rows, done.deleted_rows,
        done.inserted_rows + done.updated_rows + done.deleted_rows, 'restored from snapshot ' || rel, 'MANUAL', snap.frontier);
    raise notice 'stream table % holds the rows of % (complete up to %); %', label, rel, snap.data_timestamp,
        case when s.status = 'SUSPENDED' then 'it is suspended and keeps them until it is resumed'
             when live then 'the sidecar now brings it to the present answer of its query'
             else 'no sidecar is running: it keeps them until one starts' end;
end $$;

-- Writes the difference between a stream table and one of its snapshots: readers are never blocked, and see the old or
-- the new rows. A live sidecar then brings it to the query's present answer; suspend it first to keep the rows.
-- restore_definition => true also brings back the query that the snapshot was made under.
create or replace function pgtrickle.restore_from_snapshot(name text, source text,
                                                           restore_definition boolean default false) returns void
language sql volatile as $$
    select pgtrickle._restore(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true), $2, $3,
                              pg_catalog.current_setting('search_path'))
$$;
