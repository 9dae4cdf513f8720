//! The checks of `pgtrickle doctor`, as data: what each asks the server, in the order in which findings explain others.
//!
//! A statement gives rows `(severity, evidence, fix)`: severity is `ok`, `warn` or `fail`; fix is SQL (or configuration,
//! as a comment) that mends it, or null. No row counts as `ok` with the check's `fine` sentence. `{role}` stands for the
//! sidecar's role as a literal: whoever asks is most often somebody else.

/// One check.
pub(super) struct Check {
    /// Stable: part of the JSON.
    pub id: &'static str,
    pub needs: Needs,
    pub fine: &'static str,
    pub sql: &'static str,
}

/// What a check presumes; without it, it is skipped with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Server,
    /// Our schema in this database.
    Schema,
    /// Servers of this major version or newer.
    Major(i32),
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "pg.version",
        needs: Needs::Server,
        fine: "",
        sql: "select case when v < 140000 then 'fail' when v >= 190000 then 'warn' else 'ok' end,
                     'PostgreSQL ' || current_setting('server_version')
                        || case when v < 140000 then ' is too old: 14 to 18 are supported'
                                when v >= 190000 then ' is newer than what was tested (14 to 18)' else '' end, null
                from (select current_setting('server_version_num')::int as v) s",
    },
    Check {
        id: "pg.primary",
        needs: Needs::Server,
        fine: "the server accepts writes",
        sql: "select 'fail', 'the server is a standby: the sidecar works on the primary',
                     '-- connect to the primary, by a host name that follows a failover'
               where pg_is_in_recovery()",
    },
    Check {
        id: "pg.encoding",
        needs: Needs::Server,
        fine: "the database is UTF8",
        sql: "select 'warn', 'the database''s encoding is ' || pg_encoding_to_char(encoding)
                        || ': values are converted to UTF8 on the way', null
                from pg_database where datname = current_database() and pg_encoding_to_char(encoding) <> 'UTF8'",
    },
    Check {
        id: "repl.wal_level",
        needs: Needs::Server,
        fine: "wal_level = logical",
        sql: "select 'warn', 'wal_level = ' || current_setting('wal_level') || ': changes are captured by triggers, which costs every write',
                     'alter system set wal_level = ''logical'';  -- takes a restart; RDS, Aurora: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on'
               where current_setting('wal_level') <> 'logical'",
    },
    Check {
        id: "repl.role",
        needs: Needs::Server,
        fine: "the role may replicate",
        sql: "select 'warn', format('role %I has no REPLICATION right: changes are captured by triggers', r.rolname),
                     format('alter role %I replication;  -- RDS, Aurora: grant rds_replication to %I;', r.rolname, r.rolname)
                from pg_roles r where r.rolname = {role} and not r.rolreplication and not r.rolsuper
                 and not exists (select from pg_roles g where g.rolname in ('rds_replication', 'rds_superuser')
                                    and pg_has_role(r.oid, g.oid, 'MEMBER'))",
    },
    Check {
        id: "repl.slots",
        needs: Needs::Server,
        fine: "replication slots are free",
        sql: "select 'fail', format('all %s replication slots are in use', m), 'alter system set max_replication_slots = ' || m + 10 || ';  -- takes a restart'
                from (select current_setting('max_replication_slots')::int as m) s
               where (select count(*) from pg_replication_slots) >= m and not exists (
                    select from pg_replication_slots where slot_name like 'pgtrickle\\_%' and database = current_database())",
    },
    Check {
        id: "repl.senders",
        needs: Needs::Server,
        fine: "walsenders are free",
        sql: "select 'fail', format('all %s walsenders are in use', m), 'alter system set max_wal_senders = ' || m + 10 || ';  -- takes a restart'
                from (select current_setting('max_wal_senders')::int as m) s
               where (select count(*) from pg_stat_replication) >= m and not exists (
                    select from pg_stat_replication where application_name like 'pgtrickle:%')",
    },
    Check {
        id: "repl.sync_standbys",
        needs: Needs::Server,
        fine: "synchronous_standby_names names no walsender of ours",
        sql: "select 'warn', format('synchronous_standby_names = %s takes every walsender for a synchronous standby: changes are '
                        || 'captured by triggers, as commits would wait for the sidecar', s.names),
                     'alter system set synchronous_standby_names = ''...'';  -- application_name of each standby, then: select pg_reload_conf();'
                from (select current_setting('synchronous_standby_names') as names) s
               where exists (select from regexp_split_to_table(s.names, '[\\s,()]+') n
                              where btrim(n, '\"') = '*' or lower(btrim(n, '\"')) like 'pgtrickle:%')",
    },
    Check {
        id: "schema.installed",
        needs: Needs::Server,
        fine: "the schema pgtrickle is installed",
        sql: "select 'fail', 'the schema pgtrickle is not in this database', '-- pgtrickle init --sidecar-role pgtrickle  (or init --print for a DBA)'
               where not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                                  where n.nspname = 'pgtrickle' and c.relname = 'schema_files')",
    },
    Check {
        id: "schema.sidecar_role",
        needs: Needs::Schema,
        fine: "a role for the sidecar is set",
        sql: "select 'warn', 'no role was named for the sidecar: only the installing role can run it', 'select pgtrickle.set_sidecar_role(''pgtrickle'');'
               where not exists (select from pgtrickle.settings where key = 'sidecar_role')
              union all
              select 'fail', format('the sidecar''s role %I does not exist', s.value), format('create role %I login replication;  -- then: select pgtrickle.set_sidecar_role(%L);', s.value, s.value)
                from pgtrickle.settings s where s.key = 'sidecar_role' and not exists (select from pg_roles r where r.rolname = s.value)",
    },
    Check {
        id: "sidecar.alive",
        needs: Needs::Schema,
        fine: "",
        sql: "select case when p.detached_at is not null or p.heartbeat_at is null or p.paused then 'warn'
                          when pgtrickle.sidecar_alive(p.pipeline) then 'ok' else 'fail' end,
                     case when p.detached_at is not null then format('pipeline %s is detached since %s', p.pipeline, p.detached_at)
                          when p.paused then format('pipeline %s is paused until %s', p.pipeline, p.until)
                          when pgtrickle.sidecar_alive(p.pipeline) then format('pipeline %s is served by %s', p.pipeline, p.sidecar)
                          when p.heartbeat_at is null then format('pipeline %s has never been served', p.pipeline)
                          else format('no sidecar serves pipeline %s since %s', p.pipeline, p.heartbeat_at) end,
                     case when p.detached_at is not null then format('select pgtrickle.attach(%L);', p.pipeline)
                          when p.paused then format('select pgtrickle.unpause(%L);', p.pipeline)
                          when not pgtrickle.sidecar_alive(p.pipeline) then '-- pgtrickle run --database-url ...'
                          || case when p.pipeline <> 'main' then ' --pipeline ' || p.pipeline else '' end end
                from (select t.*, u.until, coalesce(u.until > clock_timestamp(), false) as paused from pgtrickle.pgt_pipelines t,
                             lateral (select (to_jsonb(t) ->> 'paused_until')::timestamptz as until) u) p
               -- One that nobody uses needs no sidecar, where another one is used.
               where exists (select from pgtrickle.stream_tables_info i where i.pipeline = p.pipeline)
                  or not exists (select from pgtrickle.stream_tables_info)
               order by p.pipeline",
    },
    Check {
        id: "slot.state",
        needs: Needs::Schema,
        fine: "no slot is in use",
        sql: "select case when not s.present and s.detached_at is null or s.wal_status not in ('reserved', 'extended', 'missing') then 'fail'
                          when s.present and not s.active then 'warn' else 'ok' end,
                     format('%s: %s, %s, %s of WAL retained', s.slot_name, s.wal_status, case when s.active then 'active' else 'nobody streams from it' end,
                            coalesce(pg_size_pretty(s.retained_bytes), 'unknown')),
                     case when s.wal_status not in ('reserved', 'extended') then '-- a running sidecar makes it anew and repairs by difference; see docs/runbook.md' end
                from pgtrickle.pipeline_slots s",
    },
    Check {
        id: "slot.retention",
        needs: Needs::Schema,
        fine: "what a stopped sidecar can make the server keep is bounded",
        sql: "select case p.policy when 'shed' then 'warn' else 'fail' end,
                     case p.policy when 'shed' then 'max_slot_wal_keep_size is unlimited: slot_policy is shed, but a sidecar that is stopped sheds nothing'
                          else 'max_slot_wal_keep_size is unlimited and slot_policy is alert: a sidecar that stays away lets the WAL fill the disk' end,
                     'alter system set max_slot_wal_keep_size = ''10GB''; select pg_reload_conf();' || case p.policy when 'shed' then ''
                          else '  -- or: insert into pgtrickle.settings values (''slot_policy'', ''shed'') on conflict (key, pipeline) do update set value = ''shed'';' end
                from (select pgtrickle._setting('slot_policy') as policy) p
               where current_setting('max_slot_wal_keep_size') = '-1' and exists (select from pgtrickle.pipeline_slots)",
    },
    Check {
        id: "slot.horizon",
        needs: Needs::Server,
        fine: "no transaction holds the slots back",
        sql: "select 'warn', format('a transaction of %s (pid %s) is open since %s: slots cannot advance past it', usename, pid, xact_start),
                     format('-- end it, or: select pg_terminate_backend(%s);', pid)
                from pg_stat_activity where datname = current_database() and backend_xid is not null
                 and xact_start < clock_timestamp() - interval '15 minutes'
              union all
              select 'fail', format('transaction %L was prepared at %s and forgotten', gid, prepared), format('rollback prepared %L;  -- or commit prepared', gid)
                from pg_prepared_xacts where prepared < clock_timestamp() - interval '15 minutes'",
    },
    Check {
        id: "publication",
        needs: Needs::Schema,
        fine: "publications send every change of the sources",
        sql: "select 'fail', format('the publication %s does not send all operations', pubname),
                     format('alter publication %I set (publish = ''insert, update, delete, truncate'');', pubname)
                from pg_publication where pubname in (select publication_name from pgtrickle.pgt_pipelines)
                 and not (pubinsert and pubupdate and pubdelete and pubtruncate)",
    },
    Check {
        id: "publication.parts",
        needs: Needs::Schema,
        fine: "publications send every row and column of their tables",
        // In one transaction no change lies in between; the sidecar sees that a membership is a new one.
        sql: "select 'fail', format('the publication %s sends %s only in part: it has a %s', p.pubname, r.prrelid::regclass,
                            concat_ws(' and a ', case when f.filter then 'row filter' end, case when f.list then 'column list' end)),
                     format('begin; alter publication %I drop table only %s; alter publication %I add table only %s; commit;'
                            || '  -- a running sidecar does so itself, and repairs what was missed',
                            p.pubname, r.prrelid::regclass, p.pubname, r.prrelid::regclass)
                from pg_publication p join pg_publication_rel r on r.prpubid = p.oid,
                     -- Servers before 15 have neither.
                     lateral (select to_jsonb(r) ->> 'prqual' is not null as filter, to_jsonb(r) ->> 'prattrs' is not null as list) f
               where p.pubname in (select publication_name from pgtrickle.pgt_pipelines) and (f.filter or f.list)
               order by 2",
    },
    Check {
        id: "sources.capture",
        needs: Needs::Schema,
        fine: "there are no sources yet",
        sql: "select case when capture = 'wal' then 'ok' else 'warn' end,
                     format('%s: captured by %s', coalesce(source_name, 'a source of another role'), case when capture = 'wal' then 'the WAL' else 'triggers: ' || coalesce(capture_reason, delivery_reason, '-') end),
                     case when capture_reason like '%identity%' then format('alter table %s replica identity full;  -- or give it a primary key', source_name)
                          when capture_reason like '%may not publish%' then (select format('grant %I to %I;  -- or let a superuser install pgtrickle', pg_get_userbyid(c.relowner), pg_get_userbyid(f.proowner))
                            from pg_class c, pg_proc f where c.oid::bigint = source_oid and f.oid = 'pgtrickle.publication_sync(text, regclass[])'::regprocedure) end
                from pgtrickle.source_states order by 1 desc, 2",
    },
    Check {
        id: "sources.rights",
        needs: Needs::Schema,
        fine: "the sidecar's role may read every source",
        sql: "select distinct 'fail', format('role %I may not read %s', r.rolname, c.oid::regclass),
                     concat_ws(' ', case when not has_schema_privilege(r.oid, c.relnamespace, 'USAGE') then format('grant usage on schema %s to %I;', c.relnamespace::regnamespace, r.rolname) end,
                               case when not has_any_column_privilege(r.oid, c.oid, 'SELECT') then format('grant select on %s to %I;', c.oid::regclass, r.rolname) end)
                from pgtrickle.pgt_dependencies d join pgtrickle.pgt_stream_tables s on s.pgt_id = d.pgt_id
                join pg_class c on c.oid = d.source join pg_roles r on r.rolname = {role}
               where d.source_type in ('TABLE', 'PARTITIONED_TABLE', 'STREAM_TABLE') and s.requested_refresh_mode <> 'FULL'
                 and not (has_schema_privilege(r.oid, c.relnamespace, 'USAGE') and has_any_column_privilege(r.oid, c.oid, 'SELECT'))
               order by 2",
    },
    Check {
        id: "sources.fallback",
        needs: Needs::Schema,
        fine: "every source could be captured by triggers if the slot were lost",
        sql: "select 'warn', format('%s: %s', coalesce(source_name, 'a source of another role'), coalesce(fallback_reason, 'triggers cannot take over')),
                     format('select pgtrickle.attach_source(%L);  -- as the owner of the table', source_name)
                from pgtrickle.source_states where is_known and not fallback_ready order by 2",
    },
    Check {
        id: "sources.policies",
        needs: Needs::Schema,
        fine: "no source has row-level security",
        sql: "select 'warn', format('%s has row-level security: stream tables over it are recomputed with their owner''s rows', c.oid::regclass),
                     format('-- where that is not meant, as the owner: alter table %s disable row level security;', c.oid::regclass)
                from pgtrickle.pgt_dependencies d join pg_class c on c.oid = d.source where c.relrowsecurity group by c.oid order by 2",
    },
    Check {
        id: "health",
        needs: Needs::Schema,
        fine: "nothing to report",
        sql: "select case severity when 'ERROR' then 'fail' when 'WARN' then 'warn' else 'ok' end, check_name || ': ' || detail,
                     case check_name when 'recoveries' then 'select pgtrickle.acknowledge_recoveries();  -- once they have been read'
                          when 'guards' then '-- pgtrickle repair --all, as their owner, brings the guards back'
                          when 'error_tables' then '-- docs/runbook.md#stream_table_error'
                          when 'consecutive_errors' then '-- docs/runbook.md#stream_table_error'
                          when 'stale_tables' then '-- docs/runbook.md#stream_table_stale'
                          when 'needs_reinit' then '-- docs/runbook.md#stream_table_initializing'
                          when 'buffer_growth' then '-- docs/runbook.md#buffer_growth'
                          when 'slot_lag' then '-- docs/runbook.md#slot_lag'
                          when 'wal_keep' then '-- docs/runbook.md#slot_lag'
                          when 'capture' then '-- docs/runbook.md#capture_by_triggers'
                          when 'fallback_ready' then '-- docs/runbook.md#fallback_not_ready'
                          else '-- docs/hazards.md' end
                from pgtrickle.health_check()
               -- `sidecar.alive` has said it, and more exactly.
               where severity <> 'OK' and check_name <> 'scheduler_running'",
    },
    Check {
        id: "backup.archiving",
        needs: Needs::Server,
        fine: "WAL is archived: point-in-time recovery is possible",
        sql: "select 'warn', 'archive_mode = ' || current_setting('archive_mode') || ': there is no point-in-time recovery (a managed service may do it in its own way)',
                     'alter system set archive_mode = on;  -- takes a restart; and set archive_command for your backup tool'
               where current_setting('archive_mode') = 'off'
              union all
              select 'fail', 'archive_mode = ' || current_setting('archive_mode') || ', and nothing archives: archive_command is empty',
                     'alter system set archive_command = ''...''; select pg_reload_conf();  -- the command of your backup tool'
               where current_setting('archive_mode') <> 'off' and current_setting('archive_command') in ('', '(disabled)')
                 and coalesce(current_setting('archive_library', true), '') = ''
              union all
              select 'fail', format('archiving fails since %s: %s attempts, last %s', last_failed_time, failed_count, last_failed_wal), '-- see the server''s log; until it works WAL piles up'
                from pg_stat_archiver where last_failed_time > coalesce(last_archived_time, '-infinity') and current_setting('archive_mode') <> 'off'",
    },
    Check {
        id: "failover.slots",
        needs: Needs::Major(17),
        fine: "logical slots survive a failover, or there is no standby",
        sql: "select 'warn', 'a standby is connected, and our slot is not synchronised to it: after a failover the sidecar reads the sources again and repairs by difference', '-- see docs/high-availability.md'
               where exists (select from pg_stat_replication where application_name not like 'pgtrickle:%')
                 and exists (select from pg_replication_slots s where s.slot_name like 'pgtrickle\\_%' and not coalesce((to_jsonb(s) ->> 'failover')::boolean, false))",
    },
    Check {
        id: "server.idle_slot_timeout",
        needs: Needs::Major(18),
        fine: "idle slots are kept",
        sql: "select 'warn', 'idle_replication_slot_timeout = ' || s || ': a sidecar that pauses longer loses its slot (it repairs by difference when it returns)',
                     'alter system set idle_replication_slot_timeout = 0; select pg_reload_conf();'
                from (select current_setting('idle_replication_slot_timeout', true) as s) x where s is not null and s not in ('0', '0s', '0min')",
    },
    Check {
        id: "server.connections",
        needs: Needs::Server,
        fine: "connections are free",
        sql: "select 'warn', format('%s of %s connections are in use: a pipeline takes up to 16', used, m),
                     'alter system set max_connections = ' || m + 50 || ';  -- takes a restart'
                from (select count(*) as used, current_setting('max_connections')::int as m from pg_stat_activity where backend_type = 'client backend') s
               where used + 10 > m",
    },
];
