//! One look at a pipeline: a single statement, so one snapshot of the catalog.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::error;

/// A pipeline as the database shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    pub server_version: String,
    pub sidecar_alive: bool,
    /// `slot` or `poll`; absent before the first start.
    pub delivery: Option<String>,
    pub detached: bool,
    /// Seconds since the moment up to which the incremental stream tables are known to be complete.
    pub freshness_seconds: Option<f64>,
    /// WAL from the frontier to the end, in bytes.
    pub applied_lag_bytes: Option<i64>,
    pub slot: Option<Slot>,
    pub sources: Vec<Source>,
    pub stream_tables: Vec<StreamTable>,
    pub incidents: Vec<Incident>,
}

/// The pipeline's slot; absent numbers are unknown to the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    /// reserved, extended, unreserved, lost, missing, or why the server invalidated it.
    pub wal_status: Option<String>,
    pub retained_bytes: Option<i64>,
    pub lag_bytes: Option<i64>,
    pub safe_bytes: Option<i64>,
    /// Thresholds of this database (`slot_lag_..._threshold_mb`).
    pub warning_bytes: i64,
    pub critical_bytes: i64,
}

/// A table whose changes are captured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    pub name: String,
    /// wal, trigger or transitioning.
    pub capture: String,
    /// Whether capture by triggers could be installed if the slot were lost.
    pub fallback_ready: bool,
    pub buffer_bytes: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StreamTable {
    pub name: String,
    pub status: String,
    pub refresh_mode: String,
    pub freshness_seconds: Option<f64>,
    pub consecutive_errors: i64,
}

/// A diagnosis with the drift that its reconcile repaired, added up over incidents of one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Incident {
    pub source: String,
    pub diagnosis: String,
    pub incidents: i64,
    pub open: i64,
    pub rows_inserted: i64,
    pub rows_updated: i64,
    pub rows_deleted: i64,
}

const SQL: &str = "
    select json_build_object(
        'server_version', current_setting('server_version'),
        'sidecar_alive', pgtrickle.sidecar_alive(p.pipeline),
        'delivery', p.delivery, 'detached', p.detached_at is not null,
        'freshness_seconds', extract(epoch from clock_timestamp() - p.data_timestamp)::float8,
        'applied_lag_bytes', greatest(0, pg_wal_lsn_diff(pgtrickle._wal_position(), p.frontier))::bigint,
        'slot', (select json_build_object('name', s.slot_name, 'active', s.active, 'wal_status', s.wal_status,
                    'retained_bytes', s.retained_bytes, 'lag_bytes', s.lag_bytes, 'safe_bytes', s.safe_wal_size,
                    'warning_bytes', pgtrickle._setting_mb('slot_lag_warning_threshold_mb', 100),
                    'critical_bytes', pgtrickle._setting_mb('slot_lag_critical_threshold_mb', 1024))
                   from pgtrickle.pipeline_slots s where s.pipeline = p.pipeline),
        'sources', (select coalesce(json_agg(json_build_object('name', c.source_name, 'capture', c.capture,
                    'fallback_ready', coalesce(c.fallback_ready, false), 'buffer_bytes', b.bytes)
                    order by c.source_name), '[]')
                   from pgtrickle.pgt_sources c left join lateral pgtrickle._buffer(c.source_id, 0) b on true
                  where c.pipeline = p.pipeline),
        'stream_tables', (select coalesce(json_agg(json_build_object('name', format('%I.%I', i.pgt_schema, i.pgt_name),
                    'status', i.status, 'refresh_mode', i.refresh_mode,
                    'freshness_seconds', extract(epoch from i.staleness)::float8,
                    'consecutive_errors', i.consecutive_errors) order by i.pgt_schema, i.pgt_name), '[]')
                   from pgtrickle.stream_tables_info i where i.pipeline = p.pipeline),
        'incidents', (select coalesce(json_agg(r order by r.source, r.diagnosis), '[]') from (
                    select r.source_name as source, r.diagnosis, count(*) as incidents,
                           count(*) filter (where r.completed_at is null) as open,
                           coalesce(sum(r.rows_inserted), 0)::bigint as rows_inserted,
                           coalesce(sum(r.rows_updated), 0)::bigint as rows_updated,
                           coalesce(sum(r.rows_deleted), 0)::bigint as rows_deleted
                      from pgtrickle.pgt_recoveries r where r.pipeline = p.pipeline group by 1, 2) r))
      from pgtrickle.pgt_pipelines p where p.pipeline = $1";

/// Reads a sample.
///
/// # Errors
/// `Config` when the pipeline is not in the database; else what the server says.
pub(super) async fn read(client: &Client, pipeline: &str) -> Result<Sample> {
    let row = client.query_opt(SQL, &[&pipeline]).await.map_err(error)?;
    let row = row.ok_or_else(|| Error::new(ErrorKind::Config, format!("there is no pipeline {pipeline}")))?;
    let value: serde_json::Value = row.get(0);
    serde_json::from_value(value).map_err(|e| Error::internal(format!("a sample of the catalog is odd: {e}")))
}

impl Sample {
    /// Why the pipeline cannot be relied on at this moment.
    pub(super) fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.detached {
            return vec!["detached; pgtrickle attach brings it back".to_owned()];
        }
        if !self.sidecar_alive {
            obstacles.push("no sidecar holds the pipeline".to_owned());
        }
        match &self.slot {
            Some(slot) if !slot.active => {
                let status = slot.wal_status.as_deref().unwrap_or("of unknown state");
                obstacles.push(format!("the slot {} is {status} and nobody streams from it", slot.name));
            }
            _ if self.delivery.is_none() => obstacles.push("the pipeline has not started yet".to_owned()),
            _ => {}
        }
        let waiting = self.stream_tables.iter().filter(|s| s.status == "INITIALIZING");
        obstacles.extend(waiting.map(|s| format!("{} is being loaded", s.name)));
        obstacles
    }
}
