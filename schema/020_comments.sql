-- What each function that users call does, in one place: \df+ shows it, and docs/sql-reference.md is made of it.
do $$
declare
    f record;
    signature regprocedure;
begin
    for f in values
    -- life of a stream table
    ('create_stream_table', 'Makes a table that always equals the query. `schedule`: calculated (follows every commit), a duration such as 5s or 1h30m, a cron expression, or manual. `refresh_mode`: AUTO (incremental where possible, else FULL with the reason visible), DIFFERENTIAL (refused where it is not possible), FULL. `initialize => false` leaves it empty until the first refresh. `user_writes`: refuse or allow direct writes. `pipeline`: which one maintains it. Runs as its caller, who needs SELECT on what the query reads and owns the table.'),
    ('create_stream_table_if_not_exists', 'As create_stream_table; says so and does nothing where a stream table of that name exists.'),
    ('create_or_replace_stream_table', 'As create_stream_table where there is none of that name, else as alter_stream_table with everything given. Readers never see an empty table.'),
    ('alter_stream_table', 'Changes what is not null. A new query keeps the table and its columns where they are compatible; readers see the old answer until the new one is there, in one step. `status`: ACTIVE or SUSPENDED. `pipeline`: moves it there, as move_stream_table does.'),
    ('drop_stream_table', 'Drops the table, its query and what captured its sources if nothing else needs it. `cascade` drops stream tables and views over it too; without it they are an error.'),
    ('refresh_stream_table', 'Returns when everything that was committed before the call is in the stream table (a FULL one is recomputed). With a live sidecar it waits, up to the setting refresh_timeout (55P03); without one the table is recomputed here by difference, with a WARNING that changes are not captured. One that is suspended or failed is left out with a WARNING.'),
    ('wait_for', 'Waits until every incremental stream table of the pipeline (null: of all) that is maintained continuously contains all commits up to a position of the WAL (null: everything committed so far), also those that reach it through stream tables of other pipelines. False when the time is over.'),
    ('suspend_stream_table', 'Stops maintaining it; the rows stay as they are.'),
    ('resume_stream_table', 'Takes a suspended or failed stream table back: it is computed again and the difference is written.'),
    ('repair_stream_table', 'Computes it again and writes the difference, makes again what is missing around it, and tells what was done. An intact one: nothing is written.'),
    ('set_state_limit', 'Bounds the state that one stream table may hold in the sidecar''s memory; null: back to the setting state_limit_mb. In effect at once. One that grows beyond it is suspended (54000); resume_stream_table takes it up again.'),
    ('verify_stream_table', 'Compares the stream table with its query at one moment, and changes nothing.'),
    ('explain_refresh_mode', 'Which mode was asked for, which is in use, and why it is not incremental.'),
    -- status
    ('pgt_status', 'One row for each stream table: mode, status, how old its answer is, the last error. Its message and last_error_query are shown to the owner and members of it: the statement that PostgreSQL ran for the sidecar (its beginning), or the defining query where the sidecar computes itself.'),
    ('health_check', 'All checks of this database, each with OK, WARN or ERROR and a sentence. docs/health.md lists them.'),
    ('get_refresh_history', 'The last refreshes of a stream table with the rows they wrote, the newest first. Rows of a continuously maintained one are summed per interval.'),
    ('stream_table_state', 'What a stream table holds in the sidecar''s memory, operator by operator as in pgtrickle explain, at most half a minute old. `shared`: sources and arrangements that other stream tables use, too. Only for its owner.'),
    ('list_sources', 'The tables that a stream table reads, how each is captured, and which columns are used.'),
    ('slot_health', 'The replication slots of the pipelines as the server shows them.'),
    ('pause', 'Makes the sidecar leave until the given moment, seven days at most, and keep its slot: nothing has to be read again afterwards. Ends early when the slot retains more than slot_lag_critical_threshold_mb. For the installing role and the sidecar''s.'),
    ('unpause', 'Ends a pause early.'),
    ('check_cdc_health', 'Capture of each source, with an alert where something is wrong.'),
    ('wal_source_status', 'Capture of each source from the WAL, and what is in the way where it is not.'),
    ('trigger_inventory', 'The capture triggers that should exist, and whether they do.'),
    ('change_buffer_sizes', 'Rows and bytes that wait in change buffers of captured tables.'),
    ('sidecar_alive', 'Whether a sidecar serves the pipeline now.'),
    ('version', 'Version of the schema''s functions.'),
    ('parse_schedule', 'What a schedule means: its kind, and seconds where it is a duration. An error where it is none.'),
    -- sources
    ('attach_source', 'Run once by a table''s owner: lets pgtrickle capture its changes by triggers when the WAL can''t be had (after a restore without slots, without logical replication or a replica identity). `pipeline`: null for all that there are.'),
    ('detach_source', 'Takes attach_source back.'),
    ('begin_ddl', 'Before a migration that PostgreSQL refuses because a query uses a column: parks the queries of all stream tables over the table, in the same transaction. Returns their number.'),
    ('end_ddl', 'Puts the queries back after the migration, in the same transaction. A query that no longer fits is an error, and nothing is changed.'),
    -- snapshots and restore
    ('snapshot_stream_table', 'Copies a stream table into a table (by default named after it and the moment) and returns its name.'),
    ('snapshot_stream_tables', 'Copies several, or all of the caller''s, at one moment.'),
    ('list_snapshots', 'Snapshots of a stream table, or all that the caller owns.'),
    ('restore_from_snapshot', 'Writes a snapshot''s rows back as a first approximation; what has changed since is repaired by difference. `restore_definition` takes the query of that moment back as well.'),
    ('drop_snapshot', 'Drops a snapshot''s table and its entry.'),
    ('restore_stream_tables', 'After a restore: brings the catalog in line with the database, makes again what is missing, and tells what was done for each stream table. Safe at any time.'),
    -- pipelines
    ('create_pipeline', 'Makes a pipeline: a slot, a publication and a sidecar of its own. The name is 1 to 20 lower-case letters, digits and _. `roles`: who may own stream tables in it, directly or as a member; null: whoever may use pgtrickle. `settings`: values of its own, such as {"stale_after": "1 min"}. For the installing role.'),
    ('alter_pipeline', 'Changes who may own stream tables in a pipeline; those that are there stay. For the installing role.'),
    ('drop_pipeline', 'Drops a pipeline with its slot, publication, triggers, buffers and settings. Refused while a sidecar serves it, and while it has stream tables; `cascade` drops those, too. For the installing role.'),
    ('move_stream_table', 'Moves a stream table to another pipeline, and with `cascade` those of its pipeline that read it. The rows stay and no change is lost: the former pipeline lets go of it, the new one writes the difference. Returns how many were moved.'),
    -- maintenance
    ('detach', 'Makes a live sidecar leave the database, drops its slot, and keeps it away until attach. Capture triggers, where there are any, stay and record up to their bounds. The first call marks; a call after the commit waits and says that the slot is gone.'),
    ('attach', 'Lets a sidecar serve a detached database again.'),
    ('rebuild_cdc_triggers', 'Makes the capture triggers of all sources again.'),
    ('acknowledge_recoveries', 'For the installing role: takes the incidents that have been seen off health_check; returns how many.'),
    -- rights
    ('grant_usage', 'Lets a role create stream tables. It gets no right on anyone''s tables.'),
    ('revoke_usage', 'Takes grant_usage back.'),
    ('set_sidecar_role', 'Names the login of the sidecar and gives it what it needs.'),
    ('publication_sync', 'For the sidecar''s role: makes its publication hold exactly these tables, sources of stream tables with a usable replica identity only; null drops it.')
    loop
        for signature in select p.oid from pg_proc p
                          where p.pronamespace = 'pgtrickle'::regnamespace and p.proname = f.column1 loop
            execute format('comment on function %s is %L', signature, f.column2);
        end loop;
    end loop;
end $$;

comment on view pgtrickle.stream_tables_info is 'Every stream table that the caller may see, with everything the catalog knows of it.';
comment on view pgtrickle.stream_table_names is 'Names of stream tables and the tables behind them, for every granted role.';
comment on view pgtrickle.stream_table_sizes is 'Rows and bytes that the sidecar holds for each stream table alone.';
comment on view pgtrickle.refresh_history_info is 'The refresh history with names in place of numbers.';
comment on view pgtrickle.source_states is 'Every source: how it is captured, whether triggers could take over, and since when something is missing.';
comment on view pgtrickle.pipeline_slots is 'The slots of the pipelines as the server knows them; one that should be there and is not has a row too.';
comment on view pgtrickle.pgt_settings is 'Every setting of this database: what counts now, and from where; with a row for each value that a pipeline has of its own.';
comment on view pgtrickle.query_views is 'The views that hold the defining queries.';
comment on view pgtrickle.attachments is 'What users have put on stream tables that can stop an apply or repeat its effect: foreign keys that point at them, triggers and rules. CHECK and UNIQUE constraints and policies are not listed.';
comment on view pgtrickle.pipelines_info is 'Every pipeline: whether a sidecar serves it, how fresh it is, and what its slot retains.';
