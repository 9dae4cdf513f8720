select json_build_object(
    'server_version', current_setting('server_version'),
    'server_started_at', pg_postmaster_start_time(),
    'is_standby', pg_is_in_recovery(),
    'wal_lsn', pgtrickle._wal_position(),
    'wal_keep_bytes', (select nullif(s.setting::bigint, -1) * 1048576 from pg_settings s where s.name = 'max_slot_wal_keep_size'),
    'sidecar_alive', pgtrickle.sidecar_alive(p.pipeline),
    'sidecar', p.sidecar, 'generation', p.generation, 'started_at', p.started_at, 'heartbeat_at', p.heartbeat_at,
    'delivery', p.delivery, 'delivery_reason', p.delivery_reason,
    'paused', coalesce((to_jsonb(p) ->> 'paused_until')::timestamptz > clock_timestamp(), false),
    'detached', p.detached_at is not null, 'detached_at', p.detached_at,
    'publication', p.publication_name, 'frontier', p.frontier, 'data_timestamp', p.data_timestamp,
    'freshness_seconds', extract(epoch from clock_timestamp() - p.data_timestamp)::float8,
    'applied_lag_bytes', greatest(0, pg_wal_lsn_diff(pgtrickle._wal_position(), p.frontier))::bigint,
    'slot', (select json_build_object('name', s.slot_name, 'active', s.active, 'wal_status', s.wal_status,
                'retained_bytes', s.retained_bytes, 'lag_bytes', s.lag_bytes, 'safe_bytes', s.safe_wal_size,
                'warning_bytes', pgtrickle._setting_mb('slot_lag_warning_threshold_mb', p.pipeline),
                'critical_bytes', pgtrickle._setting_mb('slot_lag_critical_threshold_mb', p.pipeline))
               from pgtrickle.pipeline_slots s where s.pipeline = p.pipeline),
    -- Every slot of the server: another one's can fill the same disk. Columns of later versions are read by name.
    'server_slots', (select coalesce(json_agg(json_build_object('name', r.slot_name,
                'ours', r.database = current_database() and exists (select from pgtrickle.pgt_pipelines o where o.slot_name = r.slot_name),
                'kind', r.slot_type, 'plugin', r.plugin, 'database', r.database, 'temporary', r.temporary,
                'active', r.active, 'pid', r.active_pid, 'wal_status', r.wal_status,
                'retained_bytes', pg_wal_lsn_diff(pgtrickle._wal_position(), r.restart_lsn)::bigint,
                'lag_bytes', greatest(0, pg_wal_lsn_diff(pgtrickle._wal_position(), r.confirmed_flush_lsn))::bigint,
                'safe_bytes', r.safe_wal_size, 'restart_lsn', r.restart_lsn, 'confirmed_flush_lsn', r.confirmed_flush_lsn,
                'inactive_since', to_jsonb(r) ->> 'inactive_since',
                'invalidation_reason', coalesce(to_jsonb(r) ->> 'invalidation_reason',
                                                case when r.wal_status = 'lost' then 'wal_removed' end),
                'failover', (to_jsonb(r) ->> 'failover')::bool, 'synced', (to_jsonb(r) ->> 'synced')::bool,
                'client', t.application_name, 'stream_state', t.state, 'sent_lsn', t.sent_lsn,
                'feedback_age_seconds', extract(epoch from clock_timestamp() - t.reply_time)::float8)
                order by r.slot_name), '[]')
               from pg_replication_slots r left join pg_stat_replication t on t.pid = r.active_pid),
    'sources', (select coalesce(json_agg(json_build_object('name', c.source_name, 'capture', c.capture,
                'capture_reason', c.capture_reason, 'capture_since', c.capture_since, 'gap_since', c.gap_since,
                'fallback_ready', coalesce(c.fallback_ready, false), 'fallback_reason', c.fallback_reason,
                'buffer_bytes', b.bytes)
                order by c.source_name), '[]')
               from pgtrickle.pgt_sources c left join lateral pgtrickle._buffer(c.source_id, 0) b on true
              where c.pipeline = p.pipeline),
    'stream_tables', (select coalesce(json_agg(json_build_object('name', format('%I.%I', i.pgt_schema, i.pgt_name),
                'status', i.status, 'refresh_mode', i.refresh_mode, 'requested_mode', i.requested_refresh_mode,
                'owner', i.owner, 'schedule', i.schedule, 'is_populated', i.is_populated,
                'reason', s.refresh_reason, 'stale', coalesce(i.stale, false),
                'freshness_seconds', extract(epoch from i.staleness)::float8,
                -- Of its own frontier: one with a schedule stands still while the pipeline goes on.
                'lag_bytes', greatest(0, pg_wal_lsn_diff(pgtrickle._wal_position(), i.frontier))::bigint,
                'data_timestamp', i.data_timestamp, 'last_refresh_at', i.last_refresh_at,
                'consecutive_errors', i.consecutive_errors, 'sqlstate', i.last_error_sqlstate,
                'error', coalesce(s.last_error_message, i.last_error_message), 'error_at', i.last_error_at,
                'rows', pg_stat_get_live_tuples(i.pgt_relid), 'state_rows', z.state_rows, 'state_bytes', z.state_bytes,
                'rows_written', pg_stat_get_tuples_inserted(i.pgt_relid) + pg_stat_get_tuples_updated(i.pgt_relid)
                              + pg_stat_get_tuples_deleted(i.pgt_relid),
                'reads', (select coalesce(json_agg(json_build_object('name', d.source_name, 'kind', d.source_type)
                                  order by d.source_name), '[]')
                            from pgtrickle.pgt_dependencies d where d.pgt_id = i.pgt_id))
                order by i.pgt_schema, i.pgt_name), '[]')
               from pgtrickle.stream_tables_info i
               left join pgtrickle.pgt_stream_tables s on s.pgt_id = i.pgt_id
               left join pgtrickle.stream_table_sizes z on z.pgt_id = i.pgt_id
              where i.pipeline = p.pipeline),
    'incidents', (select coalesce(json_agg(r order by r.source, r.diagnosis), '[]') from (
                select r.source_name as source, r.diagnosis, count(*) as incidents,
                       count(*) filter (where r.completed_at is null) as open,
                       coalesce(sum(r.rows_inserted), 0)::bigint as rows_inserted,
                       coalesce(sum(r.rows_updated), 0)::bigint as rows_updated,
                       coalesce(sum(r.rows_deleted), 0)::bigint as rows_deleted
                  from pgtrickle.pgt_recoveries r where r.pipeline = p.pipeline group by 1, 2) r),
    -- One row per incident that somebody should know of; the tables over which it went are counted.
    'recent', (select coalesce(json_agg(q order by q.detected_at desc), '[]') from (
                select r.diagnosis, min(r.cause) as cause, min(r.action) as action, min(r.detected_at) as detected_at,
                       case when bool_and(r.completed_at is not null) then max(r.completed_at) end as completed_at,
                       count(*) as sources, min(r.source_name) as source,
                       sum(r.rows_inserted)::bigint as rows_inserted, sum(r.rows_updated)::bigint as rows_updated,
                       sum(r.rows_deleted)::bigint as rows_deleted
                  from pgtrickle.pgt_recoveries r
                 where r.pipeline = p.pipeline and (r.completed_at is null
                    or r.acknowledged_at is null and r.detected_at > now() - interval '24 hours')
                 group by r.diagnosis, r.identity_key order by min(r.detected_at) desc limit 20) q))
  from pgtrickle.pgt_pipelines p where p.pipeline = $1
